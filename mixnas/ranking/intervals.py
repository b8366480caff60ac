"""Intervals of a figure: by a bootstrap over units, and of a share of a few."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of an interval."""
DRAWS = 1000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its percentile interval.

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


def proportion(hits: int, number: int) -> Estimate:
    """Return a share with its Wilson interval, which is true to few observations too."""
    from scipy import stats

    interval = stats.binomtest(hits, number).proportion_ci(LEVEL, method="wilson")
    return Estimate(hits / number, float(interval.low), float(interval.high))
