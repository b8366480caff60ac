"""Which architectures a training step sees: a sandwich between the budget's edges, mixers fair.

A step trains the **dearest** draw (from the upper edge of the budget), the **cheapest** (from its
lower edge) and a few **random** ones. Fairness comes first: in each round every block's mixers,
and the stems, are a permutation of those offered (FairNAS' strict fairness), and the dynamic
programme draws the rest uniformly among what is feasible *given* them. Uniform feasible draws
alone would favour cheap mixers and great depth.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from mixnas.arch import Architecture
from mixnas.cost.feasible import Feasible
from mixnas.errors import BudgetUnreachable
from mixnas.space import SearchSpace

ROLES = ("dearest", "cheapest", "random")


@dataclass(frozen=True)
class Draw:
    """One architecture of a step and the role it plays."""

    role: str
    arch: Architecture


class Draws:
    """The draws of every step: a pure function of the seed and the step.

    Args:
        space: the space, narrowed to what is feasible.
        feasible: draws architectures within the budget.
        seed: of the whole schedule.
        random: random draws in a step.
        edge: share of the reachable costs that is the budget's upper or lower edge.
    """

    def __init__(
        self, space: SearchSpace, feasible: Feasible, *, seed: int, random: int, edge: float
    ) -> None:
        self.space = space
        self.feasible = feasible
        self.seed = seed
        self.random = random
        self.shares = {"dearest": (1 - edge, 1.0), "cheapest": (0.0, edge), "random": (0.0, 1.0)}
        self.fair = {
            key: choices
            for key, choices in space.genes.items()
            if key == "stem" or key.endswith(".mixer")
        }

    def at(self, step: int) -> Iterator[Draw]:
        """Yield the draws of a step, the dearest first."""
        yield Draw("dearest", self._draw("dearest", step))
        yield Draw("cheapest", self._draw("cheapest", step))
        for index in range(step * self.random, (step + 1) * self.random):
            yield Draw("random", self._draw("random", index))

    def _draw(self, role: str, index: int) -> Architecture:
        """Draw what the round prescribes; where that cannot be, let go of the stem, then of all."""
        rng = Random(f"{self.seed}/{role}/{index}")
        given = self._given(role, index)
        mixers = {key: value for key, value in given.items() if key != "stem"}
        for wish in (given, mixers, {}):
            try:
                return self.feasible.sample(rng, wish, share=self.shares[role])
            except BudgetUnreachable:
                continue
        return self.feasible.sample(rng)

    def _given(self, role: str, index: int) -> dict[str, Any]:
        """Return stem and mixers of a draw: its place in each gene's current permutation."""
        given = {}
        for key, choices in self.fair.items():
            turn, place = divmod(index, len(choices))
            order = list(choices)
            Random(f"{self.seed}/{role}/{key}/{turn}").shuffle(order)
            given[key] = order[place]
        return given


def tally(draws: Counter[str], arch: Architecture) -> None:
    """Count the stem, the mixers and the depths of an architecture that was trained."""
    draws[f"stem {arch.stem.kind}"] += 1
    for index, stage in enumerate(arch.stages):
        draws[f"depth {len(stage.blocks)} at {arch.stem.stride << index}"] += 1
        draws.update(f"mixer {block.mixer}" for block in stage.blocks)
