"""How sure losses on some images are: the images drawn anew, the same ones for every network.

The bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections
6 and 13) tells the noise of the images that were at hand. It does not tell the noise of training:
another seed of the supernet would give other losses.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DRAWS = 2000
"""Bootstrap draws."""
LEVEL = 0.95
"""Confidence of an interval."""


def resampled(losses: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Return mean losses on images drawn anew with replacement, paired over the networks.

    Args:
        losses: of each network on each image, ``(networks, images)``.
        draws: how many times the images are drawn.
        seed: of the draws.

    Returns:
        Means, ``(draws, networks)``.
    """
    values = np.asarray(losses, dtype=np.float64)
    rng, images = np.random.default_rng(seed), values.shape[1]
    means = np.empty((draws, len(values)))
    for draw in range(draws):
        times = np.bincount(rng.integers(0, images, images), minlength=images)
        means[draw] = values @ times / images
    return means


def interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of what was resampled, ``(draws,)``."""
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def chance_of_less(first: ArrayLike, second: ArrayLike) -> float:
    """Return the share of draws in which the first loses less; equal ones count by half."""
    gap = np.asarray(first) - np.asarray(second)
    return float((gap < 0).mean() + (gap == 0).mean() / 2)


def hypervolume(
    costs: Sequence[float], losses: ArrayLike, reference: tuple[float, float]
) -> Floats:
    """Return what points dominate of the rectangle from nothing to a reference point.

    The measure of what at least one point beats in both (Zitzler and Thiele, IEEE Transactions
    on Evolutionary Computation 3, 1999), as a share of the rectangle; it grows with better
    points, and it can be compared only between fronts of the same reference point.

    Args:
        costs: of the points, in ascending order, ``(points,)``.
        losses: of the points, ``(..., points)``.
        reference: cost and loss that are worth nothing.
    """
    dearest, worst = reference
    ends = np.minimum(np.append(costs, dearest), dearest).astype(np.float64)
    widths = np.maximum(np.diff(ends), 0.0)
    least = np.minimum.accumulate(np.asarray(losses, dtype=np.float64), axis=-1)
    areas = np.maximum(worst - least, 0.0) @ widths
    return np.asarray(areas / (dearest * worst))
