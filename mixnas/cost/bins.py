"""Counting the paths of a graph by their cost: exactly where sums are few, in bins elsewhere.

Edge costs come *reduced*: less what the cheapest way on saves (Johnson's potentials), so that
every cost is at least 0, a path's reduced cost is its cost less the least of all, and the
cheapest edge of each node is 0 and falls into its bin without an error.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mixnas.cost.graph import NEVER, Graph, Integers, Mask

Floats = NDArray[np.float64]


def reduce(graph: Graph, cost: Integers) -> tuple[int, Integers]:
    """Return the least cost of a path, and each edge's reduced cost (`NEVER` if it is no way)."""
    onward = graph.onward(cost)
    leads = onward[graph.end] < NEVER
    reduced = np.where(leads, cost + onward[graph.end] - onward[graph.start], NEVER)
    return int(onward[0]), reduced


@dataclass(frozen=True)
class Bins:
    """Equal bins of reduced costs from 0 to `high`, and what rounding into them can lose.

    Attributes:
        step: width of a bin.
        shift: each edge's bins, at most `length` (beyond every budget).
        length: bins up to and with the one that holds `high`.
        loss: the most by which a path's bins understate its cost (overstate, if rounded up).
    """

    graph: Graph
    high: int
    step: int
    shift: Integers
    length: int
    loss: int

    @classmethod
    def of(
        cls, graph: Graph, reduced: Integers, high: int, bins: int, rounding: str = "down"
    ) -> "Bins":
        """Cut the range from 0 to `high` into at most `bins` bins.

        Args:
            graph: the graph.
            reduced: its edges' reduced costs.
            high: the greatest reduced cost that counts.
            bins: at most so many.
            rounding: of each edge's cost: ``"down"``, ``"up"`` or ``"nearest"``.
        """
        step = max(1, -(-(high + 1) // bins))
        length = high // step + 1
        extra = {"down": 0, "up": step - 1, "nearest": step // 2}[rounding]
        shift = (np.minimum(reduced, high + step) + extra) // step
        lost = np.where(shift < length, np.abs(reduced - step * shift), 0)
        loss = int(graph.onward(lost, greatest=True)[0])
        return cls(graph, high, step, np.minimum(shift, length), length, max(loss, 0))

    def window(self, low: int, high: int) -> tuple[int, int]:
        """Return the bins (both included) in which every path between two costs lies.

        For bins rounded down. A path elsewhere costs too much or too little. Where even the least
        path costs too much, the last bin is -1.
        """
        first = max(0, -(-(low - self.loss) // self.step))
        return first, max(min(high, self.high) // self.step, -1)

    def inner(self, low: int, high: int) -> tuple[int, int]:
        """Return the bins in which no path lies but those between two costs; if rounded up."""
        least = -(-(low + self.loss) // self.step) if low > 0 else 0
        return least, min(high, self.high) // self.step


class Counts:
    """How many ways lead from each node to the end, by bins; and draws among them.

    Args:
        bins: the bins.
        allowed: the edges that may be used.
    """

    def __init__(self, bins: Bins, allowed: Mask) -> None:
        graph = bins.graph
        self.bins = bins
        self.edges = np.flatnonzero(allowed & (bins.shift < bins.length))
        self.first = np.searchsorted(graph.start[self.edges], np.arange(graph.nodes + 1)).tolist()
        self.end = graph.end[self.edges]
        self.back = bins.length - bins.shift[self.edges]
        self.ways = np.zeros((graph.nodes, 2 * bins.length))
        self.ways[-1, bins.length] = 1
        shifted = sliding_window_view(self.ways, bins.length, axis=1)
        for node in range(graph.nodes - 2, -1, -1):
            a, b = self.first[node : node + 2]
            if a < b:
                rows = shifted[self.end[a:b], self.back[a:b]]
                np.sum(rows, axis=0, out=self.ways[node, bins.length :])

    @property
    def totals(self) -> Floats:
        """How many paths there are in each bin."""
        return self.ways[0, self.bins.length :]

    def draw(self, rng: Random, low: int, high: int) -> list[int] | None:
        """Draw a path (its edges) uniformly among those in bins `low` to `high`, if there is one.

        The bin comes first, then each edge in proportion to the ways that it leaves open.
        """
        left = choose(rng, self.totals[low : high + 1].cumsum())
        if left is None:
            return None
        left += low
        path, node, last = [], 0, self.bins.graph.nodes - 1
        while node != last:
            a, b = self.first[node : node + 2]
            chosen = choose(rng, self.ways[self.end[a:b], self.back[a:b] + left].cumsum())
            if chosen is None:
                raise AssertionError("a counted path is not there")
            index = a + chosen
            path.append(int(self.edges[index]))
            left -= self.bins.length - int(self.back[index])
            node = int(self.end[index])
        return path


def choose(rng: Random, sums: Floats) -> int | None:
    """Draw an index in proportion to its weight; None if all are 0.

    Args:
        rng: the source of randomness.
        sums: the weights' running sums.
    """
    if not len(sums) or sums[-1] <= 0:
        return None
    index = sums.searchsorted(rng.random() * sums[-1], side="right")
    if index == len(sums):  # the product was rounded up to the sum: take the last that counts
        index = sums.searchsorted(sums[-1])
    return int(index)


def useful(counts: Counts, low: int, high: int) -> Mask:
    """Return the edges of some path in bins `low` to `high`."""
    bins, graph = counts.bins, counts.bins.graph
    length = bins.length
    before = np.zeros((graph.nodes, length), bool)
    before[0, 0] = True
    open_ = np.zeros((graph.nodes, length), bool)  # [node, x]: some way on from x ends in bounds
    spent = np.arange(length)
    sums = np.pad((counts.ways[:, length:] > 0).cumsum(axis=1), ((0, 0), (1, 0)))
    open_[:] = sums[:, np.maximum(high + 1 - spent, 0)] > sums[:, np.maximum(low - spent, 0)]
    mask = np.zeros(len(graph.edges), bool)
    for index in counts.edges:
        a, b, shift = graph.start[index], graph.end[index], bins.shift[index]
        mask[index] = (before[a, : length - shift] & open_[b, shift:]).any()
        before[b, shift:] |= before[a, : length - shift]
    return mask


def sums(
    graph: Graph, reduced: Integers, allowed: Mask, low: int, high: int, work: int
) -> list[dict[int, int]] | None:
    """Count the ways from each node to the end by their exact costs; None if they are too many.

    Args:
        graph: the graph.
        reduced: its edges' reduced costs.
        allowed: the edges that may be used.
        low: least reduced cost of a path that counts.
        high: greatest one.
        work: additions that may be spent.
    """
    usable = np.where(allowed, reduced, NEVER)
    least = graph.backward(usable)
    greatest = graph.backward(np.where(allowed & (reduced < NEVER), reduced, -NEVER), greatest=True)
    ways: list[dict[int, int]] = [{} for _ in range(graph.nodes)]
    ways[-1][0] = 1
    for node in range(graph.nodes - 2, -1, -1):
        here = ways[node]
        top, bottom = high - int(least[node]), low - int(greatest[node])
        for index in range(graph.first[node], graph.first[node + 1]):
            if not allowed[index] or reduced[index] > top:
                continue
            onward, cost = ways[graph.end[index]], int(reduced[index])
            work -= len(onward)
            if work < 0:
                return None
            for rest, number in onward.items():
                if bottom <= rest + cost <= top:
                    here[rest + cost] = here.get(rest + cost, 0) + number
    return ways
