"""Which architectures are worth an evaluation under another budget: a quick model on what is known.

A ridge regression (scikit-learn's, its penalty chosen by cross-validation) of the loss on the
genes, the number of blocks of each mixer and the logarithm of FLOPs and parameters. On 60 known
losses of `search_spaces/tabular.toml` it orders the others with a Kendall's tau of 0.60; extra
trees reach 0.55, a Gaussian process 0.60.
"""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from mixnas.arch import Architecture
from mixnas.asktell.genotype import Genotype
from mixnas.cost.feasible import Feasible
from mixnas.errors import BudgetUnreachable
from mixnas.space import SearchSpace

DRAWS = 300
"""Feasible architectures drawn for each batch."""
PARENTS, CHILDREN = 8, 25
"""The best known within the limits, and neighbours made of each for a batch."""
LEAST = 8
"""Known losses from which the model is used; below, candidates are taken as they are drawn."""

Cost = Callable[[Architecture], int]


@dataclass(frozen=True)
class Origin:
    """Where an architecture comes from.

    Attributes:
        root: the trial or the draw that it goes back to.
        steps: how many times a neighbour was made since.
        now: whether it was evaluated for this pick.
    """

    root: str
    steps: int = 0
    now: bool = False

    def __str__(self) -> str:
        """Return it for people: ``a neighbour of trial 14 of log.jsonl, evaluated now``."""
        near = {0: "", 1: "a neighbour of "}.get(self.steps, f"{self.steps} steps from ")
        return f"{near}{self.root}{', evaluated now' if self.now else ''}"


@dataclass(frozen=True)
class Idea:
    """An architecture within the limits, and where it comes from."""

    arch: Architecture
    origin: Origin


class Ideas:
    """Proposes architectures within the limits, most promising first.

    Args:
        space: that the supernet holds.
        feasible: what is within the limits.
        costs: FLOPs and parameters.
        rng: of all draws.
        stopped: within the limits, evaluated before, but not to the end.
    """

    def __init__(
        self,
        space: SearchSpace,
        feasible: Feasible,
        costs: Sequence[Cost],
        rng: Random,
        stopped: Sequence[Idea] = (),
    ) -> None:
        self.space, self.feasible, self.costs = space, feasible, costs
        self._rng, self._stopped = rng, stopped
        self._genotype = Genotype(space)

    def batch(
        self,
        known: Mapping[str, tuple[Architecture, float]],
        whole: Container[str],
        best: Sequence[tuple[Origin, Architecture]],
        number: int,
    ) -> list[Idea]:
        """Return at most so many architectures that have not been judged whole.

        Args:
            known: architecture and loss by id, within the limits or not, estimates included.
            whole: ids of those whose losses are no estimates.
            best: origin and architecture of the best within them.
            number: how many to return.
        """
        pool = {idea.arch.id: idea for idea in self._pool(best) if idea.arch.id not in whole}
        if len(known) < LEAST:
            return list(islice(pool.values(), number))
        ranked = self._ranked(list(known.values()), list(pool.values()))
        return ranked[:number]

    def _pool(self, best: Sequence[tuple[Origin, Architecture]]) -> Iterator[Idea]:
        for _ in range(DRAWS):
            yield Idea(self.feasible.sample(self._rng), Origin("a feasible draw", now=True))
        for origin, arch in best[:PARENTS]:
            for _ in range(CHILDREN):
                child = self._child(arch)
                if child is not None:
                    yield Idea(child, Origin(origin.root, origin.steps + 1, now=True))
        yield from self._stopped  # last: of an architecture proposed twice, this origin is kept

    def _child(self, arch: Architecture) -> Architecture | None:
        """Change a gene; put what leaves the limits back by as few further changes as can be."""
        genes = self._genotype.encode(arch, self._genotype.random(self._rng))
        child = self._genotype.decode(self._genotype.mutant(genes, self._rng))
        if child in self.feasible:
            return child
        try:
            return self.feasible.nearest(child, self._rng)
        except BudgetUnreachable:  # further limits have rejected all that were tried
            return None

    def _ranked(
        self, known: Sequence[tuple[Architecture, float]], pool: Sequence[Idea]
    ) -> list[Idea]:
        """Order the pool by the loss that the model expects, least first."""
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if not pool:
            return []
        model = make_pipeline(
            DictVectorizer(sparse=False), StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))
        )
        model.fit([self.features(arch) for arch, _ in known], [loss for _, loss in known])
        expected = model.predict([self.features(idea.arch) for idea in pool])
        order = sorted(range(len(pool)), key=lambda i: (expected[i], pool[i].arch.id))
        return [pool[place] for place in order]

    def features(self, arch: Architecture) -> dict[str, float]:
        """Return what the model sees of an architecture, by name."""
        mixers = Counter(block.mixer for stage in arch.stages for block in stage.blocks)
        found = {f"{key}={value}": 1.0 for key, value in self.space.genotype(arch).items()}
        found |= {f"blocks of {mixer}": float(number) for mixer, number in mixers.items()}
        return found | {
            f"cost {place}": math.log(max(1, cost(arch))) for place, cost in enumerate(self.costs)
        }
