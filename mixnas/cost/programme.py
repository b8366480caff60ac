"""One limit over a space's graph: what it allows, how many paths it holds, and its extremes."""

from collections.abc import Callable, Iterator
from functools import cached_property
from random import Random

import numpy as np

from mixnas.cost.bins import Bins, Counts, reduce, sums, useful
from mixnas.cost.graph import NEVER, Graph, Integers, Mask
from mixnas.cost.limit import Limit, describe

FINE = 8192
"""Bins of what is computed once."""
WORK = 300_000
"""Additions that an exact count may take (some 0.1 s)."""
LOOKS = 8
"""Draws from one bin in search of an extreme."""

Accept = Callable[[list[int]], bool]


class Programme:
    """The dynamic programme of one additive cost.

    Args:
        graph: the space's graph.
        limit: the window of the cost.
        cost: each edge's cost.

    Attributes:
        reduced: each edge's reduced cost (see `mixnas.cost.bins`).
        least: cost of the cheapest path of all.
        greatest: cost of the dearest path of all.
        low: least cost within the limit, no less than `least`.
        high: greatest cost within the limit, no more than `greatest`.
        slack: by how much a path's value may be above its cost: 0 where costs add up.
    """

    slack = 0

    def __init__(self, graph: Graph, limit: Limit, cost: Integers) -> None:
        self.graph = graph
        self.limit = limit
        self.cost = cost
        self.least, self.reduced = reduce(graph, self.cost)
        self._dear = np.where(self.reduced < NEVER, self.cost, -NEVER)
        self.greatest = int(graph.onward(self._dear, greatest=True)[0])
        self.low = max(limit.low, self.least)
        self.high = min(limit.high, self.greatest)
        self._bins: dict[tuple[int, str], Bins] = {}

    def bins(self, number: int, rounding: str = "down") -> Bins:
        """Cut the costs up to the limit into so many bins."""
        key = number, rounding
        if key not in self._bins:
            top = max(self.high - self.least, 0)
            self._bins[key] = Bins.of(self.graph, self.reduced, top, number, rounding)
        return self._bins[key]

    def window(self, counts: Counts, low: int, high: int) -> tuple[int, int]:
        """Return the bins of every path between two values."""
        return counts.bins.window(low - self.slack - self.least, high - self.least)

    def cost_of(self, path: list[int]) -> int:
        """Return the cost of a path."""
        return int(self.cost[path].sum())

    def value(self, path: list[int]) -> int:
        """Return what is limited of a path: its cost."""
        return self.cost_of(path)

    def keeps(self, path: list[int]) -> bool:
        """Say whether a path lies within the limit."""
        return self.low <= self.value(path) <= self.high

    @property
    def floor(self) -> int:
        """The least cost of a path that may lie within the limit."""
        return max(self.low - self.slack, self.least)

    @cached_property
    def everything(self) -> Mask:
        """All edges."""
        return np.ones(len(self.cost), bool)

    @cached_property
    def counts(self) -> Counts:
        """The fine count of all paths, in bins rounded down."""
        return Counts(self.bins(FINE), self.everything)

    @cached_property
    def exact(self) -> list[dict[int, int]] | None:
        """The ways on from each node by their exact reduced costs, where they are few enough."""
        if (self.floor, self.high) == (self.least, self.greatest):  # all paths: costs do not matter
            return sums(self.graph, np.zeros_like(self.cost), self.everything, 0, 0, WORK)
        low, high = self.floor - self.least, self.high - self.least
        return sums(self.graph, self.reduced, self.useful, low, high, WORK)

    @cached_property
    def useful(self) -> Mask:
        """The edges of some path within the limit: exact with one end, no fewer in a window."""
        start, end, graph = self.graph.start, self.graph.end, self.graph
        before, onward = graph.backward(self.cost), graph.onward(self.cost)
        mask: Mask = before[start] + self.cost + onward[end] <= self.high
        before = graph.backward(self._dear, greatest=True)
        onward = graph.onward(self._dear, greatest=True)
        mask &= before[start] + self.cost + onward[end] >= self.floor
        if self.two_sided:
            mask &= useful(self.counts, *self.window(self.counts, self.low, self.high))
        return mask

    @property
    def cuts(self) -> bool:
        """Whether the limit cuts anything off at all."""
        cheapest, dearest = self.extremes
        return self.limit.low > cheapest or self.limit.high < dearest

    @property
    def two_sided(self) -> bool:
        """Whether both ends of the limit cut something off."""
        return self.least < self.floor <= self.high < self.greatest

    def unreachable(self, name: str) -> str | None:
        """Return why no architecture can lie within the limit, or None if one may.

        Args:
            name: the space's.
        """
        limit = self.limit
        cheapest, dearest = self.extremes
        if cheapest > limit.high:
            return (
                f"budget {limit}: the cheapest architecture of '{name}' needs "
                f"{self._say(cheapest, 'up')}; raise the budget or widen the space"
            )
        if dearest < limit.low:
            return (
                f"budget {limit}: the dearest architecture of '{name}' needs only "
                f"{self._say(dearest, 'down')}; lower the budget or widen the space"
            )
        return self._gap(name) if self.two_sided and self._empty() else None

    @property
    def extremes(self) -> tuple[int, int]:
        """The least and the greatest value of all paths."""
        return self.least, self.greatest

    def _empty(self) -> bool:
        """Say whether it is certain that no path lies in the window."""
        low, high = self.window(self.counts, self.low, self.high)
        if not self.counts.totals[low : high + 1].any():
            return True
        return self.exact is not None and not self.exact[0]

    def _gap(self, name: str) -> str:
        limit = self.limit
        near = []
        for low, high, greatest in (
            (0, limit.low - 1, True),
            (limit.high + 1, self.greatest, False),
        ):
            side = Programme(self.graph, Limit(limit.cost, low, high), self.cost)
            path = side.extreme(lambda _: True, side.everything, greatest=greatest)
            if path is not None:
                near.append(self._say(self.cost_of(path), "down" if greatest else "up"))
        return (
            f"budget {limit}: no architecture of '{name}' needs that; the nearest need "
            f"{' and '.join(near)}; widen the budget"
        )

    def _say(self, value: int, rounding: str) -> str:
        return describe(self.limit.cost, value, rounding).replace(" ", "")

    def bounds(self) -> tuple[int, int]:
        """Return a lower and an upper bound of the paths within the limit."""
        first, last = self.window(self.counts, self.low, self.high)
        upper = self.counts.totals[first : last + 1].sum()
        inner = Counts(self.bins(FINE, "up"), self.everything)
        first, last = inner.bins.inner(self.low - self.least, self.high - self.least)
        lower = inner.totals[first : last + 1].sum()
        return int(lower * (1 - 1e-9)), int(upper * (1 + 1e-9)) + 1  # floats: rounded outward

    def estimate(self) -> int:
        """Return about how many paths lie within the limit: costs go to the nearest bin."""
        counts = Counts(self.bins(FINE, "nearest"), self.everything)
        step = counts.bins.step
        first, last = -(-(self.floor - self.least) // step), (self.high - self.least) // step
        low, high = self.bounds()
        return min(max(int(counts.totals[max(first, 0) : last + 1].sum()), low), high)

    def extreme(self, accept: Accept, allowed: Mask, *, greatest: bool) -> list[int] | None:
        """Return the cheapest (dearest) path within the limit that is accepted.

        Exact where the limit cuts nothing off at that end, or where `exact` is known; elsewhere
        the best of many draws from the bins at the edge, so within a bin or two.
        """
        paths = self._candidates(allowed, greatest=greatest)
        return next((path for path in paths if accept(path)), None) or self._drawn(
            accept, allowed, greatest=greatest
        )

    def _candidates(self, allowed: Mask, *, greatest: bool) -> Iterator[list[int]]:
        """Yield the path at the true extreme, where it is known."""
        end = self.greatest if greatest else self.least
        if self.limit.low <= end <= self.limit.high:
            cost = self._dear if greatest else self.cost
            yield self.graph.steepest(self.cost, self.graph.onward(cost, greatest=greatest))
        elif self.exact:
            for total in sorted(self.exact[0], reverse=greatest)[:LOOKS]:
                yield self._follow(self.exact, total)

    def _follow(self, ways: list[dict[int, int]], left: int) -> list[int]:
        """Return the first path of an exact reduced cost."""
        path, node = [], 0
        while node != self.graph.nodes - 1:
            for index in range(self.graph.first[node], self.graph.first[node + 1]):
                rest = left - int(self.reduced[index])
                if self.useful[index] and rest in ways[self.graph.end[index]]:
                    path.append(index)
                    left, node = rest, int(self.graph.end[index])
                    break
        return path

    def _drawn(self, accept: Accept, allowed: Mask, *, greatest: bool) -> list[int] | None:
        """Return the best of the paths drawn from the bins at one edge of the limit."""
        counts, rng = Counts(self.bins(FINE), allowed), Random(0)
        first, last = self.window(counts, self.low, self.high)
        filled = first + np.flatnonzero(counts.totals[first : last + 1])
        best: tuple[int, list[int]] | None = None
        for bin_ in (filled[::-1] if greatest else filled)[:512].tolist():
            if best and self._beyond(counts.bins, bin_, best[0], greatest=greatest):
                break
            for _ in range(LOOKS):
                path = counts.draw(rng, bin_, bin_)
                cost = self.cost_of(path) if path else -1
                better = not best or (cost > best[0]) == greatest
                if path and self.floor <= cost <= self.high and better and accept(path):
                    best = cost, path
        return best[1] if best else None

    def _beyond(self, bins: Bins, bin_: int, cost: int, *, greatest: bool) -> bool:
        """Say whether no path of a bin can better a cost (at most: the bin's own error)."""
        floor = self.least + bin_ * bins.step
        return floor + bins.loss <= cost if greatest else floor >= cost
