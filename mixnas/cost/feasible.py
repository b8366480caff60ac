"""`Feasible`: the architectures of a space within its limits, by one dynamic programme.

It counts them, draws uniformly among them (some genes given, if wanted), says how often each
choice stands among them, and finds the cheapest, the dearest and the nearest. The programme runs
over the costs of the two tightest limits at once; further limits take out of the space what can
never meet them, and reject the rest, a bounded number of times. So does peak memory, which is not
a sum: see `mixnas.cost.bottleneck`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from mixnas.arch import Architecture
from mixnas.cost.bottleneck import Bottleneck
from mixnas.cost.drawing import Drawing, Wish
from mixnas.cost.graph import Graph
from mixnas.cost.joint import Joint
from mixnas.cost.limit import Limit
from mixnas.cost.nearest import Nearest, changes
from mixnas.cost.programme import Programme
from mixnas.cost.rates import Rates, counted, drawn
from mixnas.cost.table import Additive, Peaking
from mixnas.errors import BudgetUnreachable, InvalidOption
from mixnas.space import SearchSpace

TRIES = 2000
"""Draws at most for one architecture."""
STEPS = 50_000
"""Steps at most of a search for the nearest, at one number of changes."""
SAMPLED = 400
"""Draws of a fixed seed that estimate a count."""
COUNTED = 2000
"""Draws that tell base rates where limits reject."""


class Feasible:
    """The architectures of a space that lie within every limit.

    Args:
        space: the search space.
        limits: they hold together; none at all leaves the whole space.
        tables: the table of each limit's cost.

    Attributes:
        drawn: paths drawn so far.
        accepted: of these, how many lay within every limit.

    Raises:
        BudgetUnreachable: if no architecture of the space can lie within a limit; the message
            names the nearest cost that can be reached.
    """

    def __init__(
        self,
        space: SearchSpace,
        limits: Sequence[Limit],
        tables: Mapping[str, Additive | Peaking],
    ) -> None:
        for limit in limits:
            if limit.cost not in tables:
                raise InvalidOption(f"budget {limit}: no table of {limit.cost} given; give one")
        self.space = space
        self.limits = tuple(limits)
        self.tables = {limit.cost: tables[limit.cost] for limit in limits}
        self.drawn = 0
        self.accepted = 0
        self._graph, self._programmes = _programmes(space, self.limits, self.tables)
        for programme in self._programmes:
            if reason := programme.unreachable(space.name):
                raise BudgetUnreachable(reason)
        if len(self._programmes) > 1:  # rejection is the less, the tighter the limits that lead
            self._programmes.sort(key=lambda each: (not each.cuts, each.bounds()[1]))
        self._main = self._programmes[0]
        self._allowed = np.logical_and.reduce([each.useful for each in self._programmes])
        self._joint = self._together()
        if self._joint is not None:
            self._allowed = self._allowed & self._joint.useful
        held = self._programmes[: 2 if self._joint else 1]
        self._checked = [
            each for each in self._programmes if each.cuts and (each.slack or each not in held)
        ]
        self._drawing = Drawing(self._graph, self._main, self._joint, self._allowed)

    def _together(self) -> Joint | None:
        """Return the programme of the two tightest limits, if two cut something off.

        Raises:
            BudgetUnreachable: if nothing lies within both.
        """
        if not all(each.cuts for each in self._programmes[:2]) or len(self._programmes) < 2:
            return None
        joint = Joint(self._programmes[0], self._programmes[1], self._allowed)
        if reason := joint.unreachable(self.space.name):
            raise BudgetUnreachable(reason)
        return joint

    @property
    def acceptance(self) -> float:
        """The share of the draws so far that lay within every limit."""
        return self.accepted / self.drawn if self.drawn else 1.0

    @property
    def exact(self) -> bool:
        """Whether `count` is exact: two limits at most, of sums, and few distinct costs."""
        return not self._checked and bool(self._ways)

    @property
    def _ways(self) -> Sequence[Mapping[Any, int]] | None:
        """The ways from each node by their exact sums, under one limit or two."""
        return self._main.exact if self._joint is None else self._joint.exact

    def count(self) -> int:
        """Count the feasible architectures: exactly if `exact`, else as an estimate.

        With one limit of a sum, costs are rounded to the nearest bin. With more, the draws' source
        is counted, times the share of `SAMPLED` draws (of a fixed seed) that lie within all limits;
        these draws count for `acceptance`.
        """
        if self._ways is not None and not self._checked:
            return sum(self._ways[0].values())
        if self._joint is None and not self._checked:
            return self._main.estimate()
        (low, high), share = self.bounds(), self.tried(SAMPLED)
        return min(max(int(self._drawing.total(self._whole) * share), low), high)

    def tried(self, draws: int) -> float:
        """Draw so often (by a fixed seed) and return the share that lay within every limit.

        These draws count for `acceptance`.
        """
        rng, within = Random(0), 0
        for _ in range(draws):
            path = self._drawing.draw(rng, self._whole, 0)
            within += path is not None and self._within(path)
        self.drawn += draws
        self.accepted += within
        return within / draws

    def bounds(self) -> tuple[int, int]:
        """Return a lower and an upper bound of the count; equal if `exact`."""
        if self.exact:
            return self.count(), self.count()
        low, high = self._main.bounds()
        if self._joint is not None:
            low, both = self._joint.bounds
            high = min(high, both)
        return (0 if self._checked else low), high

    def rates(self) -> Rates:
        """Return how often each choice stands among the feasible: the base rates.

        Counted by the programme, without draws, under two limits of sums at most; with further
        limits, peak memory, or a window too narrow for that, from `COUNTED` draws of a fixed seed
        (fewer where no more are found).
        """
        second = self._joint.second if self._joint else None
        found = None if self._checked else counted(self._main, second, self._allowed)
        return drawn(self.space, self._draws(COUNTED)) if found is None else found

    def _draws(self, number: int) -> Iterator[Architecture]:
        rng = Random(0)
        with suppress(BudgetUnreachable):
            for _ in range(number):
                yield self.sample(rng)

    def window(self) -> tuple[int, int]:
        """Return the costs of `least` and `greatest`, in the tightest limit's unit."""
        return (
            self._main.value(self._extreme(greatest=False)),
            self._main.value(self._extreme(greatest=True)),
        )

    def __contains__(self, arch: Architecture) -> bool:
        return arch in self.space and all(excess <= 0 for excess in self.excess(arch))

    def excess(self, arch: Architecture) -> tuple[int, ...]:
        """Return how far an architecture lies outside each limit: at most 0 within it."""
        return tuple(limit.excess(self.tables[limit.cost](arch)) for limit in self.limits)

    def useful(self) -> dict[str, tuple[Any, ...]]:
        """Return the genes for `SearchSpace.keep`: the choices that something feasible makes.

        Exact for one limit with one end, and for two where `exact`. For a window, or several
        limits, it may keep a choice too many; it never drops one that a feasible architecture
        makes.
        """
        return self._graph.used(self._allowed)

    def least(self) -> Architecture:
        """Return the cheapest feasible architecture, by the tightest limit's cost.

        Exact where the limit has no lower end, or the costs are few; within a bin or two of it
        (about a ten-thousandth of the budget) elsewhere; within a few bins (some hundredths of the
        budget) where further limits cut it off.
        """
        return self._graph.architecture(self._extreme(greatest=False))

    def greatest(self) -> Architecture:
        """Return the dearest feasible architecture, by the tightest limit's cost; as `least`."""
        return self._graph.architecture(self._extreme(greatest=True))

    def nearest(self, arch: Architecture, rng: Random | None = None) -> Architecture:
        """Return a feasible architecture that changes the fewest genes.

        A gene is changed if both architectures use it with different values. One that is within
        the limits is its own nearest. Exact, unless narrow windows exhaust the search: its bounds
        are those of each cost by itself, and what meets them is tried in turn.

        Args:
            arch: an architecture of the space.
            rng: chooses among equally near ones; the first in the space's order without it.

        Raises:
            NotInSpace: if `arch` is not of the space.
            BudgetUnreachable: if none was found.
        """
        genes = self.space.genotype(arch)
        costs = np.stack([each.cost for each in self._programmes])
        low = np.array([each.floor for each in self._programmes])
        high = np.array([each.high for each in self._programmes])
        finder = Nearest(self._graph, costs, changes(self._graph, genes), self._allowed, rng)
        steps = STEPS if self._joint is None else STEPS // 10  # more of them are in vain
        for number in range(len(genes) + 1):
            finder.extend()
            for path in finder.paths(number, low, high, steps):
                if self._others(path):
                    return self._graph.architecture(path)
        return self.sample(rng or Random(0))

    def sample(
        self,
        rng: Random,
        given: Mapping[str, Any] | None = None,
        *,
        low: int | None = None,
        high: int | None = None,
        share: tuple[float, float] = (0.0, 1.0),
    ) -> Architecture:
        """Draw uniformly among the feasible architectures that have the given genes.

        A draw comes from a set that is a little larger, since costs are rounded down to bins,
        and is repeated if its true cost lies outside: what is returned is exactly uniform.

        Args:
            rng: the source of randomness.
            given: genes and their values; one that the architecture does not use is passed over.
            low: a least cost, besides the limit's.
            high: a greatest cost, besides the limit's.
            share: the part of the costs reachable under `given` from which to draw, to a bin:
                ``(0.9, 1.0)`` is near the upper edge of the budget.

        Raises:
            BudgetUnreachable: if there is none, or none was found in `TRIES` draws.
            NotInSpace: if a given gene or value is not offered.
        """
        main = self._main
        least = main.low if low is None else max(main.low, low)
        most = main.high if high is None else min(main.high, high)
        wish, missed = Wish(dict(given or {}), least, most, share), 0
        for _ in range(TRIES):
            path = self._drawing.draw(rng, wish, missed)
            if path is None:
                raise BudgetUnreachable(self._none(wish, None))
            self.drawn += 1
            if not self._drawing.holds(path, wish):
                missed += 1
            elif least <= main.value(path) <= most and self._others(path):
                self.accepted += 1
                return self._graph.architecture(path)
        raise BudgetUnreachable(self._none(wish, missed))

    @property
    def _whole(self) -> Wish:
        """Everything within the limits."""
        return Wish({}, self._main.low, self._main.high, (0.0, 1.0))

    def _none(self, wish: Wish, outside: int | None) -> str:
        given, ends = wish.given, (wish.low, wish.high)
        budget = " and ".join(map(str, self.limits)) or "none"
        fixed = f" with {', '.join(f'{k}={v}' for k, v in given.items())}" if given else ""
        whole = self._main.low, self._main.high
        window = f" at a cost of {wish.low} to {wish.high}" if ends != whole else ""
        lies = "was found" if outside is not None else "lies"
        seen = "" if outside is None else f" in {TRIES} draws, {outside} of them missed its edges"
        return (
            f"budget {budget}: no architecture of '{self.space.name}'{fixed}{window} {lies} "
            f"within it{seen}; widen the budget or the space"
        )

    def _within(self, path: list[int]) -> bool:
        """Say whether a path lies within every limit."""
        return self._drawing.holds(path, self._whole) and self._others(path)

    def _others(self, path: list[int]) -> bool:
        """Say whether a path lies within every limit that the programme does not hold itself."""
        return all(programme.keeps(path) for programme in self._checked)

    def _extreme(self, *, greatest: bool) -> list[int]:
        if self._joint is not None:
            path = self._joint.extreme(self._within, greatest=greatest)
        else:
            path = self._main.extreme(self._others, self._allowed, greatest=greatest)
        if path is None:
            raise BudgetUnreachable(self._none(self._whole, TRIES))
        return path


def _programmes(
    space: SearchSpace, limits: Sequence[Limit], tables: Mapping[str, Additive | Peaking]
) -> tuple[Graph, list[Programme]]:
    """Return the graph of a space, split if peaks are limited, and each limit's programme on it."""
    graph = Graph(space)
    found: list[Programme] = []
    for limit in limits:
        table = tables[limit.cost]
        if isinstance(table, Peaking):
            weights, peaks = graph.measure(table.weights), graph.measure(table.peak)
            found.append(Bottleneck(graph, limit, weights, peaks))
            graph = found[0].graph
    for limit in limits:
        table = tables[limit.cost]
        if not isinstance(table, Peaking):
            found.append(Programme(graph, limit, graph.measure(table.segment)))
    everything = Programme(graph, Limit("flops", 0, 0), graph.measure(lambda _: 0))
    return graph, found or [everything]
