"""Counting the paths of a graph by two costs at once, in bins; draws, and the paths an edge is on.

What `mixnas.cost.bins.Counts` is for one cost. A node keeps only the cells that its ways on can
fill and that the ways to it leave open, so a plane is smaller than its bins suggest.
"""

from random import Random

import numpy as np

from mixnas.cost.bins import Bins, Floats, choose
from mixnas.cost.graph import NEVER, Integers, Mask

Window = tuple[int, int, int, int]
"""First and last bin of the first cost, then of the second; all are included."""


class Plane:
    """How many ways lead from each node to the end, by the bins of two costs.

    Args:
        first: bins of the first cost.
        second: bins of the second cost, on the same graph.
        allowed: the edges that may be used.
    """

    def __init__(self, first: Bins, second: Bins, allowed: Mask) -> None:
        self.graph = graph = first.graph
        self.first, self.second = first, second
        self.usable: Mask = allowed & (first.shift < first.length) & (second.shift < second.length)
        self._leaving = self._edges()
        self.ways = [np.zeros(box) for box in zip(self._box(first), self._box(second), strict=True)]
        if self.ways[-1].size:
            self.ways[-1][0, 0] = 1
        for node in range(graph.nodes - 2, -1, -1):
            here = self.ways[node]
            for _, end, a, b in self._leaving[node]:
                onward = self.ways[end]
                overlap = here[a : a + len(onward), b : b + onward.shape[1]]
                overlap += onward[: len(overlap), : overlap.shape[1]]
        self._sums: tuple[Window, Floats] | None = None

    def _edges(self) -> list[list[tuple[int, int, int, int]]]:
        """Return for each node the edges that leave it: index, end, bins of both costs."""
        leaving: list[list[tuple[int, int, int, int]]] = [[] for _ in range(self.graph.nodes)]
        kept = np.flatnonzero(self.usable)
        columns = (self.graph.end, self.first.shift, self.second.shift)
        ends, firsts, seconds = (column[kept].tolist() for column in columns)
        for start, *edge in zip(
            self.graph.start[kept].tolist(), kept.tolist(), ends, firsts, seconds, strict=True
        ):
            index, end, a, b = edge
            leaving[start].append((index, end, a, b))
        return leaving

    def _box(self, bins: Bins) -> list[int]:
        """Return how many bins of a cost each node needs."""
        before = self.graph.backward(np.where(self.usable, bins.shift, NEVER))
        onward = self.graph.onward(np.where(self.usable, bins.shift, -NEVER), greatest=True)
        most: Integers = np.minimum(onward, bins.length - 1 - before)
        return np.maximum(most + 1, 0).tolist()

    def total(self, window: Window) -> float:
        """Return how many paths lie in a window."""
        return float(self._part(window).sum())

    def filled(self, window: Window) -> Integers:
        """Return the bins of the first cost that hold a path of a window, in order."""
        return window[0] + np.flatnonzero(self._part(window).any(axis=1))

    def draw(self, rng: Random, window: Window) -> list[int] | None:
        """Draw a path (its edges) uniformly among those in a window, if there is one.

        The cell comes first, then each edge in proportion to the ways that it leaves open.
        """
        part = self._part(window)
        if self._sums is None or self._sums[0] != window:
            self._sums = window, part.cumsum()
        cell = choose(rng, self._sums[1])
        if cell is None:
            return None
        x, y = (
            start + int(at)
            for start, at in zip((window[0], window[2]), divmod(cell, part.shape[1]), strict=True)
        )
        path, node, last = [], 0, self.graph.nodes - 1
        while node != last:
            index, node, a, b = self._step(rng, node, x, y)
            path.append(index)
            x, y = x - a, y - b
        return path

    def through(self, window: Window) -> Floats:
        """Return how many of a window's paths lead over each edge.

        The ways to a node, by what they leave of each of the window's cells, times the ways on.
        """
        found = np.zeros(len(self.graph.edges))
        before: list[Floats | None] = [None] * self.graph.nodes
        before[0] = np.zeros_like(self.ways[0])
        self._part(window, before[0])[:] = 1
        for node in range(self.graph.nodes - 1):
            here, before[node] = before[node], None  # planes are large: only a few are held
            if here is None:
                continue
            for index, end, a, b in self._leaving[node]:
                onward = self.ways[end]
                overlap = here[a : a + len(onward), b : b + onward.shape[1]]
                rows, columns = overlap.shape
                found[index] = (overlap * onward[:rows, :columns]).sum()
                there = before[end]
                if there is None:
                    there = before[end] = np.zeros_like(onward)
                there[:rows, :columns] += overlap
        return found

    def _part(self, window: Window, of: Floats | None = None) -> Floats:
        """Return the cells of a window."""
        a, b, c, d = window
        return (self.ways[0] if of is None else of)[
            max(a, 0) : max(b + 1, 0), max(c, 0) : max(d + 1, 0)
        ]

    def _step(self, rng: Random, node: int, x: int, y: int) -> tuple[int, int, int, int]:
        """Draw an edge in proportion to the ways that it leaves open: index, end, bins."""
        goal = rng.random() * self.ways[node].item(x, y)
        taken = None
        for edge in self._leaving[node]:
            onward, i, j = self.ways[edge[1]], x - edge[2], y - edge[3]
            if i < 0 or j < 0 or i >= onward.shape[0] or j >= onward.shape[1]:
                continue
            if number := onward.item(i, j):
                taken, goal = edge, goal - number
                if goal < 0:
                    break
        if taken is None:
            raise AssertionError("a counted path is not there")
        return taken  # the last that counts, where the sum was rounded up
