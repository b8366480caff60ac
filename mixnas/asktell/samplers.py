"""Where the next vector of genes comes from: a surrogate, Optuna's samplers, evolution.

A sampler never keeps a random state: each draw is seeded by the caller, so a search rebuilt from
its log draws what the undisturbed one would have drawn.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Protocol

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from mixnas.arch import Architecture
from mixnas.asktell.feasible_set import FeasibleSet
from mixnas.asktell.genotype import Genotype
from mixnas.asktell.surrogate import SurrogateSampler
from mixnas.asktell.trial import Genes, Trial
from mixnas.errors import InvalidOption, did_you_mean

SAMPLERS = ("surrogate", "nsga2", "tpe", "gp", "random", "evolution")


class Sampler(Protocol):
    """The source of genes for a search that asks in generations.

    Attributes:
        redraws: how often to ask it for one candidate, when it repeats itself.
    """

    redraws: int

    def draw(self, generation: int, seed: int) -> Genes | None:
        """Propose genes; None leaves the choice to a uniform draw from the feasible set."""

    def asked(self, trial: Trial) -> None:
        """Note a candidate of the current generation."""

    def told(self, trials: Sequence[Trial]) -> None:
        """Note the outcomes of a whole generation, in the order of their numbers."""


def create(
    name: str,
    genotype: Genotype,
    population: int,
    *,
    feasible: FeasibleSet,
    cost: Callable[[Architecture], int],
    seed: int,
) -> Sampler:
    """Make a sampler by its name.

    Args:
        name: one of `SAMPLERS`.
        genotype: of the space.
        population: size of a generation.
        feasible: the architectures within the limits.
        cost: the first cost, which the front weighs.
        seed: of the search.

    Raises:
        InvalidOption: if there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise InvalidOption(f"no sampler '{name}'; {did_you_mean(name, SAMPLERS)}")
    if name == "random":
        return UniformSampler()
    if name == "surrogate":
        return SurrogateSampler(genotype, feasible, cost, seed)
    if name == "evolution":
        return EvolutionSampler(genotype, population)
    return StudySampler(name, genotype, population)


class UniformSampler:
    """Uniform over the feasible architectures: the baseline that a search must beat."""

    redraws = 1

    def draw(self, generation: int, seed: int) -> Genes | None:
        """Leave every choice to the feasible set."""
        return None

    def asked(self, trial: Trial) -> None:
        """Nothing to note."""

    def told(self, trials: Sequence[Trial]) -> None:
        """Nothing to learn."""


class EvolutionSampler:
    """Regularised evolution: a tournament among the latest, one gene mutated, the oldest dies.

    Source: Real et al., Regularized Evolution for Image Classifier Architecture Search,
    AAAI 2019, algorithm 1. A failed trial never enters the population.
    """

    def __init__(self, genotype: Genotype, population: int) -> None:
        self._genotype = genotype
        self._alive: deque[Trial] = deque(maxlen=population)
        self.redraws = 4
        self._tournament = max(2, population // 4)

    def draw(self, generation: int, seed: int) -> Genes | None:
        """Mutate the winner of a tournament."""
        if not self._alive:
            return None
        rng = Random(seed)
        entrants = [rng.choice(self._alive) for _ in range(self._tournament)]
        parent = min(entrants, key=lambda trial: (trial.loss, trial.number))
        return self._genotype.mutant(parent.genes, rng)

    def asked(self, trial: Trial) -> None:
        """Nothing to note before the outcome."""

    def told(self, trials: Sequence[Trial]) -> None:
        """Let the complete trials in, at the cost of the oldest."""
        self._alive.extend(trial for trial in trials if trial.score)


class StudySampler:
    """One of Optuna's samplers over an in-memory study of what was really evaluated.

    NSGA-II minimises loss and the first cost together; TPE and GP minimise the loss, under the
    limits by construction (Optuna's TPE is multivariate for one objective only, and its GP
    models one surrogate an objective). The study holds each candidate as it was evaluated:
    running while its generation is open, so that TPE and GP do not ask it twice.
    """

    def __init__(self, name: str, genotype: Genotype, population: int) -> None:
        self._make = _MAKERS[name]
        self._population = max(2, population)
        self._both = name == "nsga2"
        self.redraws = 4 if self._both else 1  # TPE and GP are dear, and know what is running
        self._distributions = {
            key: CategoricalDistribution(tuple(range(size)))
            for key, size in zip(genotype.keys, genotype.sizes, strict=True)
        }
        with quiet():
            self._study = optuna.create_study(
                directions=["minimize"] * (2 if self._both else 1), sampler=self._sampler(0)
            )
        self._numbers: dict[int, int] = {}
        self._complete = 0

    def draw(self, generation: int, seed: int) -> Genes | None:
        """Ask Optuna for a child; its own trial is closed as failed, so that it weighs nothing.

        None, which is a fresh draw, while NSGA-II has fewer than two parents.
        """
        if self._both and self._complete < 2:
            return None
        sampler = self._sampler(seed)
        with quiet():
            self._study.add_trial(self._trial({}, generation))
            probe = self._study.get_trials(deepcopy=False)[-1]
            found = sampler.sample_relative(self._study, probe, dict(self._distributions))
            self._study.tell(probe.number, state=TrialState.FAIL)
        rest = Random(seed)
        return tuple(
            int(found[key]) if key in found else rest.randrange(len(distribution.choices))
            for key, distribution in self._distributions.items()
        )

    def asked(self, trial: Trial) -> None:
        """Add a candidate as a running trial."""
        params = dict(zip(self._distributions, trial.genes, strict=True))
        with quiet():
            self._study.add_trial(self._trial(params, trial.generation))
        self._numbers[trial.number] = len(self._study.get_trials(deepcopy=False)) - 1

    def told(self, trials: Sequence[Trial]) -> None:
        """Close a generation's running trials in order, then let NSGA-II choose its parents."""
        with quiet():
            for trial in trials:
                number = self._numbers.pop(trial.number)
                if trial.score is None:
                    self._study.tell(number, state=TrialState.FAIL)
                else:
                    self._complete += 1
                    values = [trial.loss, float(trial.cost)] if self._both else [trial.loss]
                    self._study.tell(number, values)
        if self._both and trials:
            # Chosen now and kept in the study, the parents have one order for every draw; a
            # study rebuilt from a long log would otherwise recurse through all generations.
            sampler = NSGAIISampler(population_size=self._population)
            sampler.get_parent_population(self._study, trials[0].generation + 1)

    def _sampler(self, seed: int) -> BaseSampler:
        return self._make(seed, self._population)

    def _trial(self, params: dict[str, int], generation: int) -> optuna.trial.FrozenTrial:
        return create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={key: self._distributions[key] for key in params},
            system_attrs={GENERATION: generation},
        )


# Where NSGA-II keeps a trial's generation (optuna.samplers._ga._base.BaseGASampler, 5.0).
GENERATION = "NSGAIISampler:generation"


def _nsga2(seed: int, population: int) -> BaseSampler:
    return NSGAIISampler(population_size=population, seed=seed)


def _tpe(seed: int, population: int) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=1, seed=seed)


def _gp(seed: int, population: int) -> BaseSampler:
    return GPSampler(n_startup_trials=1, seed=seed)


_MAKERS: dict[str, Callable[[int, int], BaseSampler]] = {"nsga2": _nsga2, "tpe": _tpe, "gp": _gp}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notices off the terminal for a while."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
