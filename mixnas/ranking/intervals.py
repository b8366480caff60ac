"""Intervals of a figure: by a bootstrap over units, and of few units, where that is too narrow.

A bootstrap cannot see what a small sample lacks: of four networks in the right order every draw is
in the right order. Of fewer than `SMALL` units, and wherever all draws agree, an interval by the
normal distribution is the least that is told.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of an interval."""
DRAWS = 1000
"""Bootstrap draws of an interval."""
SMALL = 10
"""Units below which a bootstrap's interval is never told alone."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: the figure.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    statistics: Callable[[NDArray[np.int_]], Mapping[str, float]], units: int, draws: int = DRAWS
) -> dict[str, Numbers]:
    """Return the figures of so many draws of all units with replacement, always the same draws.

    Args:
        statistics: of some units, by their numbers.
        units: how many there are.
        draws: how often.
    """
    rng = np.random.default_rng(0)
    found = [statistics(rng.integers(0, units, units)) for _ in range(draws)]
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def estimate(value: float, drawn: Numbers) -> Estimate | None:
    """Return a figure with the interval of its bootstrap draws; None if it is not a number."""
    known = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def widened(found: Estimate | None, units: float, ends: tuple[float, float]) -> Estimate | None:
    """Return a bootstrap's estimate, at least as wide as some ends if it rests on too little.

    Args:
        found: the estimate; None stays None.
        units: on how many it rests.
        ends: of the interval that is the least to be told.
    """
    if found is None or (units >= SMALL and found.high - found.low > DEGENERATE):
        return found
    return Estimate(found.value, min(found.low, ends[0]), max(found.high, ends[1]))


DEGENERATE = 1e-9
"""Width of an interval below which all draws of its bootstrap were the same."""


def tau_ends(tau: float, units: int) -> tuple[float, float]:
    """Return the ends of Kendall's tau by its variance under independence (Kendall, 1938).

    That variance, 2 (2 n + 5) / (9 n (n - 1)), is too great rather than too small for a tau far
    from 0. Not a number for fewer than two units.
    """
    if units < 2:
        return math.nan, math.nan
    reach = normal() * math.sqrt(2 * (2 * units + 5) / (9 * units * (units - 1)))
    return max(-1.0, tau - reach), min(1.0, tau + reach)


def rho_ends(rho: float, units: int) -> tuple[float, float]:
    """Return the ends of Spearman's rho by Fisher's z, with Bonett and Wright's variance.

    (1 + rho^2 / 2) / (n - 3), Psychometrika 65, 2000. A rho of 1 counts as half a step, the swap
    of two neighbours, less than 1. Nothing is known from three units.
    """
    if units <= 3:
        return -1.0, 1.0
    most = 1 - 6 / (units * (units**2 - 1))
    middle = math.atanh(max(-most, min(most, rho)))
    reach = normal() * math.sqrt((1 + rho**2 / 2) / (units - 3))
    return math.tanh(middle - reach), min(1.0, max(rho, math.tanh(middle + reach)))


def normal() -> float:
    """Return the normal quantile of `LEVEL`, 1.96."""
    return NormalDist().inv_cdf((1 + LEVEL) / 2)


def proportion(hits: int, number: int) -> Estimate:
    """Return a share with its Wilson interval, which is true to few observations too."""
    from scipy import stats

    interval = stats.binomtest(hits, number).proportion_ci(LEVEL, method="wilson")
    return Estimate(hits / number, float(interval.low), float(interval.high))
