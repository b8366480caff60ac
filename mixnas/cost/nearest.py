"""The path nearest to a given one within windows of costs: a search bounded by exact extremes."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import numpy as np

from mixnas.cost.graph import NEVER, Graph, Integers, Mask


def changes(graph: Graph, genes: Mapping[str, Any]) -> Integers:
    """Return how many of the given genes each edge sets to another value."""
    differing = [sum(genes.get(key, value) != value for key, value in e.genes) for e in graph.edges]
    return np.array(differing, dtype=np.int64)


class Nearest:
    """Paths by the number of genes that they change, with the least and greatest cost of each.

    Args:
        graph: the graph.
        costs: its edges' costs, of shape (costs, edges).
        changed: how many genes each edge changes.
        allowed: the edges that may be used.
        rng: shuffles the order in which edges are tried, which otherwise is the graph's.
    """

    def __init__(
        self, graph: Graph, costs: Integers, changed: Integers, allowed: Mask, rng: Random | None
    ) -> None:
        self.graph = graph
        self.costs = costs
        self.changed = changed
        self.allowed = allowed
        self.rng = rng
        self.least = np.empty((len(costs), 0, graph.nodes), dtype=np.int64)
        self.greatest = np.empty((len(costs), 0, graph.nodes), dtype=np.int64)
        self._steps = 0

    def extend(self) -> None:
        """Compute the extremes of the ways on that change one gene more than so far."""
        graph, number = self.graph, self.least.shape[1]
        row = np.full((len(self.costs), 1, graph.nodes), NEVER)
        self.least = np.concatenate([self.least, row], axis=1)
        self.greatest = np.concatenate([self.greatest, -row], axis=1)
        if not number:
            self.least[:, 0, -1] = self.greatest[:, 0, -1] = 0
        usable = self.allowed & (self.changed <= number)
        for node in range(graph.nodes - 2, -1, -1):
            edges = np.arange(graph.first[node], graph.first[node + 1])
            edges = edges[usable[edges]]
            rest, end, cost = number - self.changed[edges], graph.end[edges], self.costs[:, edges]
            least, greatest = cost + self.least[:, rest, end], cost + self.greatest[:, rest, end]
            self.least[:, number, node] = np.minimum(least.min(axis=1, initial=NEVER), NEVER)
            self.greatest[:, number, node] = np.maximum(
                greatest.max(axis=1, initial=-NEVER), -NEVER
            )

    def paths(self, number: int, low: Integers, high: Integers, steps: int) -> Iterator[list[int]]:
        """Yield the paths that change exactly `number` genes and cost `low` to `high`.

        Ways on whose extremes miss a window are not entered: with one cost and one end to its
        window no step is in vain, elsewhere some are, so their number is bounded.

        Args:
            number: genes changed; `extend` was called more often than that.
            low: least of each cost.
            high: greatest of each cost.
            steps: edges entered at most.
        """
        self._steps = steps
        yield from self._onward(0, number, low, high, [])

    def _onward(
        self, node: int, number: int, low: Integers, high: Integers, path: list[int]
    ) -> Iterator[list[int]]:
        if node == self.graph.nodes - 1:
            yield list(path)
            return
        for index in self._open(node, number, low, high):
            self._steps -= 1
            if self._steps < 0:
                return
            path.append(index)
            cost, rest = self.costs[:, index], number - int(self.changed[index])
            yield from self._onward(int(self.graph.end[index]), rest, low - cost, high - cost, path)
            path.pop()

    def _open(self, node: int, number: int, low: Integers, high: Integers) -> list[int]:
        """Return the edges behind which the windows lie between the extremes of each cost."""
        edges = np.arange(self.graph.first[node], self.graph.first[node + 1])
        edges = edges[self.allowed[edges] & (self.changed[edges] <= number)]
        rest, end, cost = number - self.changed[edges], self.graph.end[edges], self.costs[:, edges]
        reaching = (cost + self.least[:, rest, end] <= high[:, None]) & (
            cost + self.greatest[:, rest, end] >= low[:, None]
        )
        chosen: list[int] = edges[reaching.all(axis=0)].tolist()
        if self.rng:
            self.rng.shuffle(chosen)
        return chosen
