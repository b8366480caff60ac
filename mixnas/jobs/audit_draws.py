"""Which architectures an audit trains: spread evenly over the budget's costs, and near its end.

Each is drawn uniformly among the feasible ones of some costs. Which costs is a fixed sequence that
fills the span ever finer, so an audit that is asked for more of them keeps those that it has.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from math import ceil
from random import Random

from mixnas.arch import Architecture
from mixnas.errors import BudgetUnreachable
from mixnas.jobs.entrants import Entrant, Maker
from mixnas.jobs.problem import Problem

GROUPS = ("across", "inside")
"""Drawn over the whole span of costs; drawn within `INSIDE` of the dearest one's."""

INSIDE = 0.1
"""How near to the dearest feasible cost is inside the budget, as a share of that cost."""

NEAR = 0.02
"""How far a draw's cost may lie from its place, as a share of the span; doubled until one does."""

ATTEMPTS = 20
"""Draws at one width for an architecture that has not been drawn before."""


class Span:
    """The costs of the feasible architectures, in the unit of the tightest limit.

    Attributes:
        cost: the name of that limit's cost.
        least: of the cheapest.
        greatest: of the dearest.
    """

    def __init__(self, problem: Problem) -> None:
        feasible = problem.feasible
        self.least, self.greatest = feasible.window()
        dearest = feasible.greatest()
        self.cost = next(
            (
                limit.cost
                for limit in problem.limits
                if problem.tables[limit.cost](dearest) == self.greatest
            ),
            problem.limits[0].cost,
        )

    @property
    def edge(self) -> int:
        """The cost from which on an architecture is inside the budget's upper end."""
        return max(self.least, ceil(self.greatest * (1 - INSIDE)))


class Drawer:
    """Draws architectures that are all different.

    Args:
        problem: what was searched.
        taken: ids of those that are not to be drawn.
    """

    def __init__(self, problem: Problem, taken: Collection[str]) -> None:
        self.problem = problem
        self.taken = set(taken)
        self.span = Span(problem)

    def across(self, number: int) -> Architecture:
        """Draw the so-manyth architecture of those spread over the costs, counted from 0."""
        span = self.span.greatest - self.span.least
        middle = self.span.least + halves(number + 1) * span
        reach = max(1.0, NEAR * span)
        while True:
            low, high = round(middle - reach), round(middle + reach)
            found = self._new(Random(self._seed("across", number)), low, high)
            if found is not None:
                return found
            if low <= self.span.least and high >= self.span.greatest:
                raise BudgetUnreachable("no further architecture lies within the budget")
            reach *= 2

    def inside(self, number: int) -> Architecture:
        """Draw the so-manyth architecture near the upper end of the budget, counted from 0."""
        rng = Random(self._seed("inside", number))
        found = self._new(rng, self.span.edge, self.span.greatest)
        if found is None:
            raise BudgetUnreachable(
                f"no further architecture lies within {100 * INSIDE:.0f} % of the dearest "
                "feasible cost"
            )
        return found

    def _seed(self, group: str, number: int) -> str:
        return f"audit {self.problem.settings.seed} {group} {number}"

    def _new(self, rng: Random, low: int, high: int) -> Architecture | None:
        for _ in range(ATTEMPTS):
            try:
                arch = self.problem.feasible.sample(rng, low=low, high=high)
            except BudgetUnreachable:
                return None
            if arch.id not in self.taken:
                self.taken.add(arch.id)
                return arch
        return None


def halves(number: int) -> float:
    """Return the so-manyth of 1/2, 1/4, 3/4, 1/8, ... (van der Corput's sequence), from 1 on."""
    value, part = 0.0, 0.5
    while number:
        value += part * (number % 2)
        number, part = number // 2, part / 2
    return value


def makers(
    problem: Problem, winner: Architecture, across: int, inside: int, known: Mapping[str, str]
) -> dict[str, Maker]:
    """Return who is trained: key to a call that draws the architecture.

    Args:
        problem: what was searched.
        winner: what it found.
        across: how many over the whole span of costs.
        inside: how many near its upper end.
        known: ids of the architectures that the audit has drawn, by key.
    """
    drawer = Drawer(problem, {winner.id, *known.values()})
    draws: dict[str, Callable[[], Architecture]] = dict(_draws(drawer, across, inside))
    return {
        "winner": partial(_entrant, problem, "winner", lambda: winner),
        **{key: partial(_entrant, problem, key, draw) for key, draw in draws.items()},
    }


def _draws(
    drawer: Drawer, across: int, inside: int
) -> Iterator[tuple[str, Callable[[], Architecture]]]:
    for group, number in zip(GROUPS, (across, inside), strict=True):
        draw = drawer.across if group == "across" else drawer.inside
        for place in range(number):
            yield f"{group}-{place + 1}", partial(draw, place)


def _entrant(problem: Problem, key: str, draw: Callable[[], Architecture]) -> Entrant:
    arch = draw()
    costs = {name: table(arch) for name, table in problem.tables.items()}
    kind = "winner" if key == "winner" else "random"
    label = "the winner" if key == "winner" else key.replace("-", " ")
    return Entrant(key, kind, label, {"arch": arch.to_dict()}, costs)
