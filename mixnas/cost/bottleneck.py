"""A limit on a sum and a maximum together, as peak memory is: weights add up, peaks do not.

The space's graph is split: a node stands once for each level that the greatest peak so far can
have, so that the last edge of a path knows its greatest peak to a level. Weights plus the least
peak of that level add up, and are at most `Bottleneck.slack` below the value that is limited: who
draws rejects the few beyond by their value, and what is drawn stays uniform.
"""

from collections.abc import Iterator
from random import Random

import numpy as np

from mixnas.cost.bins import Counts
from mixnas.cost.graph import NEVER, Edge, Graph, Integers, Mask
from mixnas.cost.limit import Limit
from mixnas.cost.programme import FINE, Accept, Programme

LEVELS = 8
"""Levels at most of the greatest peak."""
DRAWS = 256
"""Draws in search of an extreme that a lower end, or another limit, cuts off."""


class Bottleneck(Programme):
    """The programme of a path's value: the sum of its weights and its greatest peak.

    Args:
        whole: the space's graph; the programme's own, `graph`, is that one split.
        limit: the window of the value.
        weights: what each edge of the whole graph adds to the sum.
        peaks: each one's peak.
    """

    def __init__(self, whole: Graph, limit: Limit, weights: Integers, peaks: Integers) -> None:
        reach = _Reach(whole, limit.high, weights, peaks)
        self._extremes = reach.lightest, reach.heaviest
        fitting = reach.fitting if reach.fitting.any() else np.ones(len(peaks), bool)
        level, floor, self.slack = levels(np.maximum(peaks, reach.floor), fitting, LEVELS)
        graph, origin, reached = split(whole, np.where(fitting, level, -1))
        self.weights, self.peaks = weights[origin], peaks[origin]
        last = np.where(graph.end == graph.nodes - 1, floor[reached], 0)
        super().__init__(graph, limit, self.weights + last)
        self._cheapest = _along(graph, origin, reach.path)

    @property
    def extremes(self) -> tuple[int, int]:
        """The least and the greatest value of all paths, exactly."""
        return self._extremes

    def value(self, path: list[int]) -> int:
        """Return the sum of a path's weights and its greatest peak."""
        return int(self.weights[path].sum() + self.peaks[path].max())

    def keeps(self, path: list[int]) -> bool:
        """Say whether a path lies within the limit."""
        return self.limit.low <= self.value(path) <= self.limit.high

    def _gap(self, name: str) -> str:
        return f"budget {self.limit}: no architecture of '{name}' needs that; widen the budget"

    def _candidates(self, allowed: Mask, *, greatest: bool) -> Iterator[list[int]]:
        """Yield the lightest path of all, if that is wanted."""
        if not greatest and self._cheapest and self.keeps(self._cheapest):
            yield self._cheapest
        if not self.slack:
            yield from super()._candidates(allowed, greatest=greatest)

    def _drawn(self, accept: Accept, allowed: Mask, *, greatest: bool) -> list[int] | None:
        """Return the best by value of draws from the edge of the costs, and from all of them."""
        counts, rng = Counts(self.bins(FINE), allowed), Random(0)
        window = self.window(counts, self.low, self.high)
        drawn = (counts.draw(rng, *window) for _ in range(DRAWS))
        found = [path for path in drawn if path and accept(path)]
        edge = super()._drawn(accept, allowed, greatest=greatest)
        best = max if greatest else min
        return best(found + ([edge] if edge else []), key=self.value, default=None)


class _Reach:
    """What paths can reach: exactly, by a programme for each peak.

    Among the paths whose edges have at most a given peak the lightest is the cheapest; some such
    peak is the greatest of the path itself.

    Attributes:
        floor: the least that the greatest peak of a path can be.
        lightest: the least value of all paths.
        path: a path of that value.
        heaviest: the greatest value of all paths.
        fitting: the edges of the paths whose value is at most `high`.
    """

    def __init__(self, graph: Graph, high: int, weights: Integers, peaks: Integers) -> None:
        self.floor = self.lightest = NEVER
        self.path: list[int] = []
        self.fitting = np.zeros(len(peaks), bool)
        for level in np.unique(peaks).tolist():
            usable = np.where(peaks <= level, weights, NEVER)
            onward = graph.onward(usable)
            if onward[0] >= NEVER:
                continue
            self.floor = min(self.floor, level)
            if onward[0] + level < self.lightest:
                self.lightest = int(onward[0]) + level
                self.path = graph.steepest(usable, onward)
            if onward[0] + level <= high:
                through = graph.backward(usable)[graph.start] + usable + onward[graph.end]
                self.fitting |= through + level <= high
        # A path's value is the greatest, over its edges, of the edge's peak and all weights.
        before = graph.backward(weights, greatest=True)
        onward = graph.onward(weights, greatest=True)
        through = before[graph.start] + weights + onward[graph.end]
        self.heaviest = int((through + peaks).max())


def levels(peaks: Integers, fitting: Mask, number: int) -> tuple[Integers, Integers, int]:
    """Sort peaks into levels: each its own where they are few, else of equal width.

    Args:
        peaks: each edge's peak.
        fitting: the edges that count.
        number: levels at most.

    Returns:
        Each edge's level, each level's least peak, and the greatest width of a level.
    """
    known = np.unique(peaks[fitting])
    if len(known) > number:
        width = -(-(int(known[-1] - known[0]) + 1) // number)
        group = (known - known[0]) // width
    else:
        group = np.arange(len(known))
    first = np.flatnonzero(np.diff(group, prepend=-1))  # levels that are empty are left out
    last = np.append(first[1:], len(known)) - 1
    level = np.searchsorted(known[first], peaks, side="right") - 1
    return level, known[first], int((known[last] - known[first]).max())


def split(graph: Graph, level: Integers) -> tuple[Graph, Integers, Integers]:
    """Split each node by the greatest level so far; paths stay the same, one for one.

    Args:
        graph: the graph.
        level: of each edge; an edge of a negative one is left out.

    Returns:
        The new graph, and for each of its edges: which one of the old graph it is, and the
        greatest level of a path up to and with it.
    """
    states: list[list[int]] = [[] for _ in range(graph.nodes)]
    states[0] = [0]
    found: list[tuple[int, int, int]] = []  # node, level before, old edge
    for node in range(graph.nodes - 1):
        for before in sorted(set(states[node])):
            for index in range(graph.first[node], graph.first[node + 1]):
                if level[index] >= 0:
                    found.append((node, before, index))
                    states[graph.end[index]].append(max(before, int(level[index])))
    last = graph.nodes - 1
    places = [(node, at) for node in range(last) for at in sorted(set(states[node]))]
    number = {place: index for index, place in enumerate(places)}
    edges, origin, reached = [], [], []
    for node, before, index in found:
        after, old = max(before, int(level[index])), graph.edges[index]
        end = len(number) if old.end == last else number[old.end, after]
        edges.append(Edge(number[node, before], end, old.segment, old.genes))
        origin.append(index)
        reached.append(after)
    return Graph(graph.space, edges), np.array(origin), np.array(reached)


def _along(graph: Graph, origin: Integers, path: list[int]) -> list[int]:
    """Return the path of a split graph that is a given one of the whole, if it is there."""
    found, node = [], 0
    for old in path:
        edges = range(graph.first[node], graph.first[node + 1])
        here = [index for index in edges if origin[index] == old]
        if not here:
            return []
        found.append(here[0])
        node = int(graph.end[here[0]])
    return found
