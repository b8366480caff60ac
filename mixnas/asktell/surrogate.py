"""`SurrogateSampler`: a model of the loss, refitted each generation, says what to evaluate next.

The model is scikit-learn's Gaussian process over an architecture's active genes and its cost. It
chooses among feasible candidates only, by its optimism and under a budget of the ask's own, so
that a generation covers the front. Nothing is kept but the trials: a search rebuilt from its log
proposes what the undisturbed one would have proposed.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.arch import Architecture
from mixnas.asktell.feasible_set import FeasibleSet
from mixnas.asktell.genotype import Genotype
from mixnas.asktell.trial import Genes, Trial, front
from mixnas.errors import BudgetUnreachable

FRESH = 100
"""Uniform draws among a generation's candidates."""
NEIGHBOURS = 100
"""Children of the elite among them, each time that the elite is renewed."""
RENEWALS = 1
"""How often a generation's elite is renewed by the model before it proposes."""
ELITE = 10
"""How many of the least loss are parents, besides the front."""
MOST = 400
"""Trials that the model learns from, at most: its time grows with their cube."""
STRETCH = 1.4
"""Distance between the ends of an ordered gene; two mixers lie at the square root of 2."""

Array = NDArray[np.float64]
Cost = Callable[[Architecture], int]


class SurrogateSampler:
    """Least optimistic loss under a budget, by a Gaussian process over the feasible candidates.

    Each ask draws its optimism, as many standard deviations as an exponential variable of mean 1
    says (Hutter, Hoos and Leyton-Brown, Parallel Algorithm Configuration, LION 2012), and in half
    of the cases a budget of its own, uniform between the costs of the cheapest and the dearest
    candidate. So asks that are to be evaluated together differ, and the front is sought along its
    whole length, while the other half seeks the least loss at the search's own budget.

    Args:
        genotype: of the space.
        feasible: the architectures within the limits.
        cost: the first cost, which the front weighs.
        seed: of the candidates.
    """

    redraws = 1

    def __init__(
        self, genotype: Genotype, feasible: FeasibleSet, cost: Cost, seed: int = 0
    ) -> None:
        self._genotype = genotype
        self._feasible = feasible
        self._seed = seed
        self._model = Model(genotype, cost)
        self._cost = cost
        self._trials: list[Trial] = []
        self._known: set[str] = set()
        self._open: set[str] = set()
        self._generation = -1
        self._candidates: list[Architecture] = []
        self._costs, self._loss, self._spread = (np.zeros(0) for _ in range(3))

    def draw(self, generation: int, seed: int) -> Genes | None:
        """Propose the best candidate that has not been asked; None if there is none."""
        if self._generation != generation:
            self._prepare(generation)
        rng = np.random.default_rng(seed)
        optimism, own, part = rng.exponential(), rng.random() < 0.5, rng.random()
        left = np.array([arch.id not in self._open for arch in self._candidates], dtype=bool)
        if not left.any():
            return None
        promise = np.where(left, self._loss - optimism * self._spread, np.inf)
        if own:
            cheapest, dearest = self._costs[left].min(), self._costs[left].max()
            promise[self._costs > cheapest + part * (dearest - cheapest)] = np.inf
        # Rounded, so that two equals are told apart by their order, not by the machine's last bit.
        chosen = self._candidates[int(np.argmin(np.round(promise, 9)))]
        return self._genotype.encode(chosen, self._genotype.random(Random(seed)))

    def asked(self, trial: Trial) -> None:
        """Note that a candidate of the open generation is taken."""
        self._open.add(trial.arch.id)

    def told(self, trials: Sequence[Trial]) -> None:
        """Learn a generation's losses."""
        self._trials.extend(trial for trial in trials if trial.score)
        self._known |= {trial.arch.id for trial in trials}
        self._open.clear()

    def _prepare(self, generation: int) -> None:
        """Fit the model; gather a generation's candidates and what the model says of them."""
        self._generation, self._candidates = generation, []
        if len(self._trials) < 2:
            return
        self._model.fit(instructive(self._trials))
        rng = Random(f"{self._seed} candidates {generation}")
        found: dict[str, Architecture] = {}
        with suppress(BudgetUnreachable):  # two windows may be too narrow for a draw to hit
            for _ in range(FRESH):
                arch = self._feasible.sample(rng)
                found[arch.id] = arch
        parents = [trial.arch for trial in _elite(self._trials)]
        for renewal in range(RENEWALS + 1):
            found |= {arch.id: arch for arch in self._children(parents, rng)}
            archs = [arch for key, arch in found.items() if key not in self._known]
            if not archs:
                return
            self._candidates, self._costs = archs, np.array([float(self._cost(a)) for a in archs])
            self._loss, self._spread = self._model.predict(archs)
            if renewal < RENEWALS:
                parents = self._promising()

    def _children(self, parents: Sequence[Architecture], rng: Random) -> Iterable[Architecture]:
        """Cross parents half of the time, change one to three genes, make the child feasible."""
        encoded = [self._genotype.encode(arch, self._genotype.random(rng)) for arch in parents]
        for _ in range(NEIGHBOURS):
            genes = rng.choice(encoded)
            if rng.random() < 0.5:
                genes = tuple(map(rng.choice, zip(genes, rng.choice(encoded), strict=True)))
            for _ in range(rng.choice((1, 1, 2, 3))):
                genes = self._genotype.mutant(genes, rng)
            child = self._genotype.decode(genes)
            yield child if child in self._feasible else self._feasible.nearest(child)

    def _promising(self) -> list[Architecture]:
        """Return the candidates of the predicted front, and those of the least predicted loss."""
        order = np.lexsort((self._loss, self._costs))
        loss = np.round(self._loss[order], 9)
        before = np.concatenate(([np.inf], np.minimum.accumulate(loss)[:-1]))
        chosen = [
            *order[loss < before],
            *np.argsort(np.round(self._loss, 9), kind="stable")[:ELITE],
        ]
        return [self._candidates[place] for place in chosen]


class Model:
    """The loss of an architecture from its active genes and its cost, with its uncertainty.

    A Gaussian process with one length for all features and a noise of its own (evaluations are
    noisy), its three parameters by maximum likelihood.
    """

    def __init__(self, genotype: Genotype, cost: Cost) -> None:
        self._genotype = genotype
        self._cost = cost
        self._process: Any = None

    def fit(self, trials: Sequence[Trial]) -> None:
        """Learn from complete trials, two at least."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        features = self._raw([trial.arch for trial in trials])
        losses = np.array([trial.loss for trial in trials])
        self._middle, self._scale = features[:, -1].mean(), features[:, -1].std() or 1.0
        self._mean, self._unit = losses.mean(), losses.std() or 1.0
        features, losses = self._scaled(features), (losses - self._mean) / self._unit
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * RBF(2.0, (0.7, 30.0))
        kernel += WhiteKernel(0.2, (1e-3, 2.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a parameter at the end of its range is no harm
            likeliest = GaussianProcessRegressor(kernel).fit(features, losses).kernel_.theta
            # Rounded, so that machines that add in another order agree on the model.
            kernel = kernel.clone_with_theta(np.round(likeliest, 2))
            self._process = GaussianProcessRegressor(kernel, optimizer=None).fit(features, losses)
        self._noise = kernel.k2.noise_level

    def predict(self, archs: Sequence[Architecture]) -> tuple[Array, Array]:
        """Return the expected loss of each, and its standard deviation without the noise."""
        features = self._scaled(self._raw(archs))
        mean, deviation = self._process.predict(features, return_std=True)
        spread = np.sqrt(np.maximum(deviation**2 - self._noise, 1e-9))
        return mean * self._unit + self._mean, spread * self._unit

    def _raw(self, archs: Sequence[Architecture]) -> Array:
        return np.array([[*self._genes(arch), np.log(max(self._cost(arch), 1))] for arch in archs])

    def _scaled(self, features: Array) -> Array:
        costs = (features[:, -1:] - self._middle) / self._scale
        return np.hstack([features[:, :-1], costs])

    def _genes(self, arch: Architecture) -> list[float]:
        """Return stem and mixers as indicators, ordered genes as numbers, inactive ones as 0."""
        active, row = self._genotype.active(arch), []
        for key, size in zip(self._genotype.keys, self._genotype.sizes, strict=True):
            if key == "stem" or key.endswith(".mixer"):
                row += [float(active.get(key) == choice) for choice in range(size)]
            else:
                row.append(STRETCH * active.get(key, 0) / (size - 1))
        return row


def instructive(trials: Sequence[Trial]) -> Sequence[Trial]:
    """Return the trials to learn from: the better half of them by loss, the rest the latest."""
    if len(trials) <= MOST:
        return trials
    best = sorted(trials, key=lambda trial: (trial.loss, trial.number))[: MOST // 2]
    kept = {trial.number for trial in best}
    latest = [trial for trial in trials if trial.number not in kept][-(MOST - len(best)) :]
    return [*best, *latest]


def _elite(trials: Sequence[Trial]) -> list[Trial]:
    """Return the front and the trials of least loss."""
    least = sorted(trials, key=lambda trial: (trial.loss, trial.number))[:ELITE]
    return list({trial.number: trial for trial in [*front(trials), *least]}.values())
