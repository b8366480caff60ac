"""How well one ranking foretells another: rank correlations, their ceiling, regret.

Losses everywhere: the less, the better.
"""

import math
from itertools import combinations
from statistics import fmean

import numpy as np

from mixnas.ranking.intervals import Numbers

SHORT = 128
"""Length up to which a list's pairs are all compared."""


def kendall(first: Numbers, second: Numbers) -> float:
    """Return Kendall's tau-b of two lists of equal length; not a number if one is constant.

    Short lists, of which a bootstrap has thousands, go by the definition, in a twentieth of the
    time that scipy takes for a test with them.
    """
    if _constant(first) or _constant(second):
        return math.nan
    if len(first) > SHORT:
        from scipy import stats

        return float(stats.kendalltau(first, second).statistic)
    one, other = (np.sign(x[:, None] - x).ravel() for x in (first, second))
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def spearman(first: Numbers, second: Numbers) -> float:
    """Return Spearman's rho of two lists of equal length; not a number if one is constant."""
    from scipy import stats

    if _constant(first) or _constant(second):
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def _constant(values: Numbers) -> bool:
    return bool((values == values[0]).all())


def ceiling(truths: Numbers) -> float:
    """Return Kendall's tau of one training seed against another, the mean over all pairs.

    Args:
        truths: losses of shape (networks, seeds); with one seed there is no ceiling (nan).
    """
    pairs = combinations(range(truths.shape[1]), 2)
    return fmean([kendall(truths[:, a], truths[:, b]) for a, b in pairs] or [math.nan])


def against_mean(ceiling: float, seeds: int) -> float:
    """Return the tau that a perfect ranking would reach against the mean of several seeds.

    The tau between seeds gives their correlation r (Greiner's relation for normal variables,
    r = sin(pi tau / 2)), r the reliability of a mean of S seeds, S r / (1 + (S - 1) r) (Spearman
    and Brown), and its root is the correlation of that mean with the truth (Spearman, 1904). With
    `seeds` 1: against one seed.

    Args:
        ceiling: tau of one seed against another; less than 0 counts as 0.
        seeds: whose mean is taken for the truth.
    """
    if math.isnan(ceiling):
        return math.nan
    between = math.sin(math.pi / 2 * max(ceiling, 0.0))
    reliability = seeds * between / (1 + (seeds - 1) * between)
    return 2 / math.pi * math.asin(math.sqrt(min(reliability, 1.0)))


def regret(predicted: Numbers, truth: Numbers, top: int) -> float:
    """Return the true loss of the best among the foretold `top`, less that of the best of all."""
    chosen = np.argsort(predicted, kind="stable")[:top]
    return float(truth[chosen].min() - truth.min())


def regret_by_chance(truth: Numbers, top: int) -> float:
    """Return the mean regret of so many networks drawn at random, without replacement."""
    ordered, number = np.sort(truth), len(truth)
    top = min(top, number)
    ways = [math.comb(number - 1 - place, top - 1) for place in range(number)]
    return float(ordered @ np.array(ways, dtype=float) / math.comb(number, top) - ordered[0])
