"""What a ranking misplaces: which traits of networks it over- or underrates."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixnas.ranking.intervals import LEVEL, Estimate, Numbers, bootstrap, normal, widened

PERMUTATIONS = 4999
"""Of a permutation test, beside what was observed."""
STEP = 1.0
"""Places by which networks may well be off though none was seen to be: the least there is."""


@dataclass(frozen=True)
class Bias:
    """How far networks with some trait are overrated.

    Attributes:
        networks: how many have it, a share counting as a share.
        predicted: their mean place by the supernet.
        true: their mean place by their own training.
        places: the second less the first: above 0, the supernet overrates them.
        chance: of so great a bias, either way, if the trait meant nothing; not corrected.
    """

    networks: float
    predicted: float
    true: float
    places: Estimate
    chance: float


def places(losses: Numbers) -> Numbers:
    """Return the place of each, 1 for the least; equal ones share the mean of theirs."""
    from scipy import stats

    return np.asarray(stats.rankdata(losses), dtype=float)


def bias(predicted: Numbers, truth: Numbers, weight: Numbers) -> Bias:
    """Return how far the supernet overrates networks with a trait, with a permutation test.

    Args:
        predicted: the supernet's loss, shape (networks,).
        truth: the loss after a training alone.
        weight: how much each network has of the trait, 0 to 1; not all 0.

    Where few networks have the trait, the interval is no narrower than the deviation of all
    misplacements over the root of their number allows.
    """
    foretold, found = places(predicted), places(truth)
    share = weight / weight.sum()
    gap = found - foretold

    def mean(chosen: NDArray[np.int_]) -> dict[str, float]:
        total = weight[chosen].sum()
        return {"places": float(weight[chosen] @ gap[chosen] / total) if total else math.nan}

    value = float(share @ gap)
    drawn = bootstrap(mean, len(gap))
    low, high = np.nanquantile(drawn["places"], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    seen = Estimate(value, float(low), float(high))
    units = 1 / float((share**2).sum())  # as many as would weigh alike
    reach = normal() * max(float(gap.std(ddof=1)), STEP) / math.sqrt(units)
    wide = widened(seen, units, (value - reach, value + reach)) or seen
    return Bias(
        float(weight.sum()),
        float(share @ foretold),
        float(share @ found),
        wide,
        _chance(abs(_shuffled(gap) @ share), abs(value)),
    )


def explained(predicted: Numbers, truth: Numbers, traits: Numbers) -> tuple[float, float]:
    """Return what share of the misplacements some traits explain linearly, and its chance.

    Args:
        predicted: the supernet's loss, shape (networks,).
        truth: the loss after a training alone.
        traits: shape (networks, traits).

    Returns:
        R squared, and the share of permutations in which it is at least as great.
    """
    gap = places(truth) - places(predicted)
    centred = traits - traits.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    basis = left[:, sizes > 1e-9 * max(float(sizes.max(initial=0.0)), 1.0)]
    total = float(gap @ gap)
    if not total or not basis.size:
        return 0.0, 1.0
    value = float(((gap @ basis) ** 2).sum()) / total
    return value, _chance(((_shuffled(gap) @ basis) ** 2).sum(1) / total, value)


def _shuffled(values: Numbers) -> Numbers:
    """Return the values in many orders, always the same orders, shape (orders, values)."""
    rng = np.random.default_rng(2)
    return rng.permuted(np.tile(values, (PERMUTATIONS, 1)), axis=1)


def _chance(shuffled: Numbers, observed: float) -> float:
    as_great = int((shuffled >= observed * (1 - 1e-12)).sum())
    return (1 + as_great) / (len(shuffled) + 1)
