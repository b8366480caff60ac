"""`Feasible`: the architectures of a space within its limits, by one dynamic programme.

It counts them, draws uniformly among them (some genes given, if wanted), and finds the cheapest,
the dearest and the nearest. The programme runs over the tightest limit's cost; further limits take
out of the space what can never meet them, and reject the rest, a bounded number of times. So does
peak memory, which is not a sum: see `mixnas.cost.bottleneck`.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor
from random import Random
from typing import Any

import numpy as np

from mixnas.arch import Architecture
from mixnas.cost.bins import Counts
from mixnas.cost.bottleneck import Bottleneck
from mixnas.cost.graph import Graph
from mixnas.cost.limit import Limit
from mixnas.cost.nearest import Nearest, changes
from mixnas.cost.programme import FINE, Programme
from mixnas.cost.table import Additive, Peaking
from mixnas.errors import BudgetUnreachable, InvalidOption
from mixnas.space import SearchSpace

COARSE = 1024
"""Bins of a draw under given genes: a programme of its own at every training step."""
FINEST = 65536
"""Bins at most, when a narrow window rejects nearly every draw."""
TRIES = 2000
"""Draws at most for one architecture."""
STEPS = 50_000
"""Steps at most of a search for the nearest, at one number of changes."""


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
        if len(self._programmes) > 1:  # rejection is the less, the tighter the limit that leads
            self._programmes.sort(key=lambda programme: programme.bounds()[1])
        self._main = self._programmes[0]
        self._checked = self._programmes if self._main.slack else self._programmes[1:]
        self._allowed = np.logical_and.reduce([each.useful for each in self._programmes])
        self._counts: dict[int, Counts] = {}
        self._last: tuple[object, Counts] | None = None

    @property
    def acceptance(self) -> float:
        """The share of the draws so far that lay within every limit."""
        return self.accepted / self.drawn if self.drawn else 1.0

    @property
    def exact(self) -> bool:
        """Whether `count` is exact: one limit at most, of a sum, and few distinct costs."""
        return not self._checked and self._main.exact is not None

    def count(self) -> int:
        """Count the feasible architectures: exactly if `exact`, else as an estimate.

        The estimate rounds costs to the nearest bin; further limits are estimated by the share
        of 400 draws (of a fixed seed) that lie within them.
        """
        exact = self._main.exact
        first = self._main.estimate() if exact is None else sum(exact[0].values())
        if not self._checked:
            return first
        rng, counts = Random(0), self._counted(FINE, {})
        window = self._main.window(counts, self._main.low, self._main.high)
        paths = [path for _ in range(400) if (path := counts.draw(rng, *window))]
        within = [path for path in paths if self._first(path)]
        meeting = sum(self._others(path) for path in within)
        # Edges that no other limit allows are left out of the draws, so out of their total.
        upper = int(counts.totals[window[0] : window[1] + 1].sum())
        return min(first, upper * meeting // len(paths)) if paths else 0

    def bounds(self) -> tuple[int, int]:
        """Return a lower and an upper bound of the count; equal if `exact`."""
        if self.exact:
            return self.count(), self.count()
        low, high = self._main.bounds()
        return (0 if self._checked else low), high

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

        Exact for one limit with one end. For a window, or several limits, it may keep a choice
        too many; it never drops one that a feasible architecture makes.
        """
        return self._graph.used(self._allowed)

    def least(self) -> Architecture:
        """Return the cheapest feasible architecture, by the tightest limit's cost.

        Exact where the limit has no lower end, or the costs are few; within a bin or two of it
        (about a ten-thousandth of the budget) elsewhere, and where further limits cut it off.
        """
        return self._graph.architecture(self._extreme(greatest=False))

    def greatest(self) -> Architecture:
        """Return the dearest feasible architecture, by the tightest limit's cost; as `least`."""
        return self._graph.architecture(self._extreme(greatest=True))

    def nearest(self, arch: Architecture, rng: Random | None = None) -> Architecture:
        """Return a feasible architecture that changes the fewest genes.

        A gene is changed if both architectures use it with different values. One that is within
        the limits is its own nearest. Exact for one limit, unless a narrow window exhausts the
        search; further limits are met by trying the nearest ones in turn.

        Args:
            arch: an architecture of the space.
            rng: chooses among equally near ones; the first in the space's order without it.

        Raises:
            NotInSpace: if `arch` is not of the space.
            BudgetUnreachable: if none was found.
        """
        genes = self.space.genotype(arch)
        finder = Nearest(
            self._graph, self._main.cost, changes(self._graph, genes), self._allowed, rng
        )
        for number in range(len(genes) + 1):
            finder.extend()
            for path in finder.paths(number, self._main.floor, self._main.high, STEPS):
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
        main, given = self._main, dict(given or {})
        least = main.low if low is None else max(main.low, low)
        most = main.high if high is None else min(main.high, high)
        outside = 0
        for _ in range(TRIES):
            number = _fineness(
                outside, (most - least) / max(main.high - main.least, 1), bool(given)
            )
            counts = self._counted(number, given)
            bins = _part(counts, *main.window(counts, least, most), share)
            path = counts.draw(rng, *bins)
            if path is None:
                raise BudgetUnreachable(self._none(given, least, most, None))
            self.drawn += 1
            if not least - main.slack <= main.cost_of(path) <= most:
                outside += 1
            elif least <= main.value(path) <= most and self._others(path):
                self.accepted += 1
                return self._graph.architecture(path)
        raise BudgetUnreachable(self._none(given, least, most, outside))

    def _none(self, given: Mapping[str, Any], low: int, high: int, outside: int | None) -> str:
        budget = " and ".join(map(str, self.limits)) or "none"
        fixed = f" with {', '.join(f'{k}={v}' for k, v in given.items())}" if given else ""
        window = f" at a cost of {low} to {high}" if (low, high) != self._ends else ""
        lies = "was found" if outside is not None else "lies"
        seen = "" if outside is None else f" in {TRIES} draws, {outside} of them missed its edges"
        return (
            f"budget {budget}: no architecture of '{self.space.name}'{fixed}{window} {lies} "
            f"within it{seen}; widen the budget or the space"
        )

    @property
    def _ends(self) -> tuple[int, int]:
        return self._main.low, self._main.high

    def _first(self, path: list[int]) -> bool:
        return self._main.floor <= self._main.cost_of(path) <= self._main.high

    def _others(self, path: list[int]) -> bool:
        """Say whether a path lies within every limit that the programme does not hold itself."""
        return all(programme.keeps(path) for programme in self._checked)

    def _extreme(self, *, greatest: bool) -> list[int]:
        path = self._main.extreme(self._others, self._allowed, greatest=greatest)
        if path is None:
            raise BudgetUnreachable(self._none({}, *self._ends, TRIES))
        return path

    def _counted(self, bins: int, given: Mapping[str, Any]) -> Counts:
        """Return the ways under given genes; the last ones are kept, and those under none."""
        if not given:
            if bins not in self._counts:
                self._counts[bins] = Counts(self._main.bins(bins), self._allowed)
            return self._counts[bins]
        key = bins, frozenset(given.items())
        if self._last is None or self._last[0] != key:
            allowed = self._allowed & self._graph.given(given)
            self._last = key, Counts(self._main.bins(bins), allowed)
        return self._last[1]


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


def _fineness(outside: int, width: float, given: bool) -> int:
    """Return how many bins to use.

    Args:
        outside: draws that missed the window so far.
        width: of the window, as a share of the costs within the budget.
        given: whether genes are given, so that the bins serve a few draws only.
    """
    if outside >= 512:
        return FINEST
    return COARSE if given and outside < 64 and width * COARSE > 64 else FINE


def _part(counts: Counts, low: int, high: int, share: tuple[float, float]) -> tuple[int, int]:
    """Return a part of the bins from `low` to `high`, between the outermost that are filled."""
    if share == (0.0, 1.0):
        return low, high
    filled = np.flatnonzero(counts.totals[low : high + 1])
    if not len(filled):
        return low, high
    first, span = low + int(filled[0]), int(filled[-1] - filled[0])
    return first + floor(share[0] * span), first + ceil(share[1] * span)
