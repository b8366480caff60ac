"""Networks compared in pairs over the seeds that they were trained with: the seed is the unit.

A randomised block design: the accuracy of network n under seed s is what n is worth, plus what s
brings to all (its order of images), plus noise. The noise is pooled over all networks, with
(N - 1)(S - 1) degrees of freedom, so that three seeds say more than a t test of each pair alone;
with two networks it is that very paired t test. Taken for granted: the noise of one network is
as large as another's (with one of 19 networks three times as noisy, some network is wrongly told
apart in 12 of 100 comparisons, where it should be 5). An accuracy is a whole number of images, so
noise is never taken for less than that rounding leaves. Many comparisons are corrected by Holm's
procedure (A simple sequentially rejective multiple test procedure, Scandinavian Journal of
Statistics, 1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Confidence of an interval; a corrected probability of less than 1 - `LEVEL` is a difference."""


@dataclass(frozen=True)
class Paired:
    """How far a network is from the reference.

    Attributes:
        difference: mean over the common seeds.
        low: of its interval, of this comparison alone.
        high: the same from above.
        chance: of so great a difference if there were none, corrected for all comparisons.
    """

    difference: float
    low: float
    high: float
    chance: float

    @property
    def verdict(self) -> str:
        """Where the network stands: "ahead", "behind" or "level", which is a tie."""
        if self.chance >= 1 - LEVEL:
            return "level"
        return "ahead" if self.difference > 0 else "behind"


def paired(
    values: Mapping[str, Mapping[int, float]], reference: str, images: float = math.inf
) -> dict[str, Paired]:
    """Compare every network with one of them.

    Args:
        values: accuracy by network and seed.
        reference: the network that the others are compared with.
        images: on how many accuracy was judged.

    Returns:
        The others that share a seed with it; none if the seeds are too few to know the noise.
    """
    from scipy import stats

    variance, freedom = noise(values, reference)
    if not freedom:
        return {}
    variance = max(variance, 1 / (12 * images**2))
    own = values[reference]
    gaps = {
        key: [found[seed] - own[seed] for seed in sorted(found.keys() & own.keys())]
        for key, found in values.items()
        if key != reference and found.keys() & own.keys()
    }
    means = {key: sum(gap) / len(gap) for key, gap in gaps.items()}
    errors = {key: math.sqrt(2 * variance / len(gap)) for key, gap in gaps.items()}
    chances = {key: _chance(means[key], errors[key], freedom) for key in gaps}
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    wide = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    return {
        key: Paired(mean, mean - wide * errors[key], mean + wide * errors[key], corrected[key])
        for key, mean in means.items()
    }


def noise(values: Mapping[str, Mapping[int, float]], reference: str) -> tuple[float, int]:
    """Return the variance of one training about network and seed, and its degrees of freedom.

    Of the networks that have all the seeds of the reference or, if none has, as many of them as
    any has; zero degrees if nothing can be said.
    """
    own = values.get(reference, {}).keys()
    shared = (sorted(own & found.keys()) for key, found in values.items() if key != reference)
    seeds = max(shared, key=len, default=[])
    rows = [[found[s] for s in seeds] for found in values.values() if set(seeds) <= found.keys()]
    if len(rows) < 2 or len(seeds) < 2:
        return 0.0, 0
    freedom = (len(rows) - 1) * (len(seeds) - 1)
    table = np.array(rows)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float((rest**2).sum()) / freedom, freedom


def holm(chances: Sequence[float]) -> list[float]:
    """Correct the probabilities of several tests; none is lowered, and their order stays."""
    order = np.argsort(chances, kind="stable")
    corrected, worst = [0.0] * len(chances), 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, (len(chances) - place) * chances[index]))
        corrected[index] = worst
    return corrected


def _chance(difference: float, error: float, freedom: int) -> float:
    from scipy import stats

    if error == 0:  # every training ended alike: any difference is one
        return 0.0 if difference else 1.0
    return float(2 * stats.t.sf(abs(difference) / error, freedom))
