"""Which architectures a training step sees: a sandwich between the budget's edges, mixers fair.

A step trains the **dearest** draw (from the upper edge of the budget), the **cheapest** (from its
lower edge) and a few **random** ones. Fairness comes first: in each round every block's mixers,
and the stems, are a permutation of those offered (FairNAS' strict fairness), and the dynamic
programme draws the rest uniformly among what is feasible *given* them. Uniform feasible draws
alone would favour cheap mixers and great depth. A recipe may spread the random draws over the
costs, offer several candidates for each, or be less fair.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from mixnas.arch import Architecture
from mixnas.cost.feasible import Feasible
from mixnas.errors import BudgetUnreachable
from mixnas.space import SearchSpace
from mixnas.train.recipe import Recipe

ROLES = ("dearest", "cheapest", "random")

Share = tuple[float, float]

WHOLE: Share = (0.0, 1.0)


@dataclass(frozen=True)
class Draw:
    """One architecture of a step and the role it plays.

    Attributes:
        role: "dearest", "cheapest" or "random".
        arch: the architecture.
        others: candidates for its place, of its mixers and near its cost.
    """

    role: str
    arch: Architecture
    others: tuple[Architecture, ...] = ()


class Draws:
    """The draws of every step: a pure function of the seed and the step.

    Args:
        space: the space, narrowed to what is feasible.
        feasible: draws architectures within the budget.
        seed: of the whole schedule.
        random: random draws in a step.
        edge: share of the reachable costs that is the budget's upper or lower edge, and the width
            of the stretch of costs that a draw comes from where a spread says which.
        spread: of the random draws over the costs, as in `Recipe`.
        fairness: of the mixers and stems, as in `Recipe`.
        candidates: architectures that each random draw offers.
        alone: steps at the beginning that see the dearest draw only.
    """

    def __init__(
        self,
        space: SearchSpace,
        feasible: Feasible,
        *,
        seed: int,
        random: int,
        edge: float,
        spread: str = "uniform",
        fairness: str = "strict",
        candidates: int = 1,
        alone: int = 0,
    ) -> None:
        self.space = space
        self.feasible = feasible
        self.seed = seed
        self.random = random
        self.edge = edge
        self.spread = spread
        self.fairness = fairness
        self.candidates = candidates
        self.alone = alone
        self.fair = {
            key: choices
            for key, choices in space.genes.items()
            if key == "stem" or key.endswith(".mixer")
        }

    @classmethod
    def by(cls, recipe: Recipe, space: SearchSpace, feasible: Feasible, *, seed: int) -> "Draws":
        """Return the draws that a recipe asks for."""
        return cls(
            space,
            feasible,
            seed=seed,
            random=recipe.draws,
            edge=recipe.edge,
            spread=recipe.spread,
            fairness=recipe.fairness,
            candidates=1 if recipe.attention == "none" else recipe.candidates,
            alone=round(recipe.dearest_first * recipe.steps),
        )

    def at(self, step: int) -> Iterator[Draw]:
        """Yield the draws of a step, the dearest first."""
        yield Draw("dearest", self._draw("dearest", step))
        if step < self.alone:
            return
        yield Draw("cheapest", self._draw("cheapest", step))
        for index in range(step * self.random, (step + 1) * self.random):
            arch = self._draw("random", index)
            yield Draw("random", arch, self._others(arch, index))

    def _draw(self, role: str, index: int) -> Architecture:
        """Draw what the round prescribes; where that cannot be, let go of the stem, then of all.

        Before it lets go of fairness, a random draw lets go of where among the costs it should lie.
        """
        rng = Random(f"{self.seed}/{role}/{index}")
        given = self._given(role, index)
        mixers = {key: value for key, value in given.items() if key != "stem"}
        share = self._share(role, index)
        shares = [share, WHOLE] if role == "random" and share != WHOLE else [share]
        for wish in (given, mixers, {}):
            for part in shares:
                try:
                    return self.feasible.sample(rng, wish, share=part)
                except BudgetUnreachable:
                    continue
        return self.feasible.sample(rng)

    def _others(self, arch: Architecture, index: int) -> tuple[Architecture, ...]:
        """Draw further candidates, of the same mixers and stem and from the same costs."""
        if self.candidates == 1:
            return ()
        genes = self.space.genotype(arch)
        used = {key: genes[key] for key in self.fair if key in genes}
        same = self._given("random", index) | used  # the round's, too, where it has fewer blocks
        share, found = self._share("random", index), []
        for number in range(1, self.candidates):
            rng = Random(f"{self.seed}/candidate/{index}/{number}")
            try:
                found.append(self.feasible.sample(rng, same, share=share))
            except BudgetUnreachable:
                found.append(self.feasible.sample(rng, same))
        return tuple(found)

    def _share(self, role: str, index: int) -> Share:
        """Return the part of the reachable costs from which a draw comes."""
        if role == "dearest":
            return 1 - self.edge, 1.0
        if role == "cheapest":
            return 0.0, self.edge
        if self.spread == "uniform":
            return WHOLE
        jitter = Random(f"{self.seed}/cost/{index}").random()
        place = (index % self.random + jitter) / self.random
        if self.spread == "focused":
            place = math.sqrt(place)  # so that its density rises in a line from nought
        low = place * (1 - self.edge)
        return low, low + self.edge

    def _given(self, role: str, index: int) -> dict[str, Any]:
        """Return stem and mixers of a draw, as fair as it shall be.

        Strict fairness is its place in each gene's current permutation; where stems are fair by
        their stages, each stands in it as often as it has stages.
        """
        if self.fairness == "none":
            return {}
        if self.fairness == "uniform":
            rng = Random(f"{self.seed}/{role}/genes/{index}")
            return {key: rng.choice(choices) for key, choices in self.fair.items()}
        given = {}
        for key, choices in self.fair.items():
            if key == "stem" and self.fairness == "stages":
                choices = tuple(stem for stem in choices for _ in self.space.entered(stem))
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
