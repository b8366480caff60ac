"""`Ranking`: a supernet's ranking beside trainings of the same networks from scratch.

Networks are the unit of every interval. Training noise is in them, since each network has its
own; seeds are drawn anew only where it is said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from mixnas.ranking.correlation import against_mean, ceiling, kendall, spearman
from mixnas.ranking.intervals import (
    DRAWS,
    Estimate,
    Numbers,
    bootstrap,
    estimate,
    rho_ends,
    tau_ends,
    widened,
)

LEAST = 4
"""Networks below which no correlation is told."""
ENOUGH = 8
"""Networks below which no ranking is judged by its correlations."""
TAUS = ("tau", "tau_accuracy", "tau_seed", "tau_cost", "ceiling")
"""The figures of a ranking that are Kendall's tau."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Networks that a supernet has ranked and that were trained alone.

    Attributes:
        predicted: the supernet's loss, shape (networks,).
        truths: losses of the networks trained alone, shape (networks, seeds).
        accuracies: the same trainings' accuracies.
        costs: of each network, shape (networks,).
    """

    predicted: Numbers
    truths: Numbers
    accuracies: Numbers
    costs: Numbers

    @property
    def truth(self) -> Numbers:
        """The mean loss over the seeds."""
        return np.asarray(self.truths.mean(1))

    def at(self, networks: NDArray[np.int_], seeds: NDArray[np.int_] | None = None) -> "Ranking":
        """Return some of the networks (and seeds), with repetitions."""
        truths, accuracies = self.truths[networks], self.accuracies[networks]
        if seeds is not None:
            truths, accuracies = truths[:, seeds], accuracies[:, seeds]
        return Ranking(self.predicted[networks], truths, accuracies, self.costs[networks])

    def figures(self) -> dict[str, float]:
        """Return what is told of a ranking; what cannot be known is not a number.

        tau and rho of supernet and mean over the seeds; tau_accuracy, the same with accuracy;
        tau_seed, the mean tau with one seed alone; tau_cost, that of a ranking by cost (the
        dearer, the better); ceiling, one seed against another; best, what a perfect ranking would
        reach against the mean; share and strict, tau as a share of these two.
        """
        seeds = self.truths.shape[1]
        tau, top = kendall(self.predicted, self.truth), ceiling(self.truths)
        best = against_mean(top, seeds)
        return {
            "tau": tau,
            "rho": spearman(self.predicted, self.truth),
            "tau_accuracy": kendall(self.predicted, -self.accuracies.mean(1)),
            "tau_seed": fmean(kendall(self.predicted, self.truths[:, s]) for s in range(seeds)),
            "tau_cost": kendall(-self.costs, self.truth),
            "ceiling": top,
            "best": best,
            "share": tau / top if top > 0 else math.nan,
            "strict": tau / best if best > 0 else math.nan,
        }

    def estimates(self, draws: int = DRAWS) -> dict[str, Estimate | None]:
        """Return every figure with its interval; None for what cannot be known.

        A share of a ceiling that cannot be told from 0 is not known.

        Raises:
            ValueError: if there are fewer than `LEAST` networks.
        """
        if len(self.predicted) < LEAST:
            raise ValueError(f"{len(self.predicted)} networks; at least {LEAST} are needed")
        found = self.figures()
        drawn = bootstrap(lambda chosen: self.at(chosen).figures(), len(self.predicted), draws)
        return self._honest({name: estimate(found[name], drawn[name]) for name in found})

    def _honest(self, told: Mapping[str, Estimate | None]) -> dict[str, Estimate | None]:
        """Return figures whose intervals are as wide as so few networks make them."""
        units, seeds = len(self.predicted), self.truths.shape[1]
        ends = {n: tau_ends(each.value, units) for n in TAUS if (each := told[n])}
        if rho := told["rho"]:
            ends["rho"] = rho_ends(rho.value, units)
        found = {name: widened(told[name], units, ends[name]) for name in ends}
        tau, top = found.get("tau"), found.get("ceiling")
        known = tau is not None and top is not None and top.low > 0
        if top is not None and top.value > 0:
            reach = (against_mean(top.low, seeds), against_mean(top.high, seeds))
            found["best"] = widened(told["best"], units, reach)
        for name, whole in (("share", top), ("strict", found.get("best"))):
            found[name] = None
            if known and tau is not None and whole is not None:
                shares = (tau.low / whole.value, tau.high / whole.value)
                found[name] = widened(told[name], units, shares)
        return {name: found.get(name) for name in told}

    def over_seeds(self, draws: int = DRAWS) -> Estimate | None:
        """Return tau with an interval for which networks and seeds are both drawn anew.

        It lies lower than tau itself: a mean of seeds drawn twice is noisier than of all.
        """
        rng = np.random.default_rng(1)
        seeds = self.truths.shape[1]
        if seeds < 2:
            return None

        def tau(chosen: NDArray[np.int_]) -> dict[str, float]:
            part = self.at(chosen, np.asarray(rng.integers(0, seeds, size=seeds)))
            return {"tau": kendall(part.predicted, part.truth)}

        units, value = len(self.predicted), kendall(self.predicted, self.truth)
        drawn = bootstrap(tau, units, draws)
        return widened(estimate(value, drawn["tau"]), units, tau_ends(value, units))
