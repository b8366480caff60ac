"""A search space as a layered graph: a path is exactly one architecture, an edge has a cost.

Nodes stand in topological order: the start, then for each stride and width "entered", "after
block 1", "after block 2", ..., "left", and last the end. An edge sets some genes and passes one
segment of `network.walk`, so the cost of a path is the cost of its architecture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.arch import Architecture, Block
from mixnas.errors import NotInSpace
from mixnas.network import Segment
from mixnas.space import SearchSpace

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Genes = tuple[tuple[str, Any], ...]

NEVER = 1 << 61
"""The cost of a path that does not exist; twice this still fits 64 bits."""


@dataclass(frozen=True)
class Edge:
    """A step from one node to a later one: the genes that it sets, the segment that it passes."""

    start: int
    end: int
    segment: Segment | None
    genes: Genes


class Graph:
    """The layered graph of a space.

    Args:
        space: the search space.
        edges: all edges, if they are others than the space's own; nodes are numbered in
            topological order from the start, 0, and the last one is the end.

    Attributes:
        edges: sorted by their start.
        end: each edge's end node, as an array.
        first: the edges of node n are ``first[n]`` to ``first[n + 1]``.
        nodes: how many nodes there are; node 0 is the start, the last one the end.
    """

    def __init__(self, space: SearchSpace, edges: Sequence[Edge] | None = None) -> None:
        self.space = space
        steps = _edges(space) if edges is None else edges
        self.edges = sorted(steps, key=lambda edge: edge.start)
        self.nodes = 1 + max(edge.end for edge in self.edges)
        self.start = np.array([edge.start for edge in self.edges])
        self.end = np.array([edge.end for edge in self.edges])
        self.first = np.searchsorted(self.start, np.arange(self.nodes + 1))
        self._setting: dict[str, dict[Any, Mask]] = {}
        for index, edge in enumerate(self.edges):
            for key, value in edge.genes:
                others = self._setting.setdefault(key, {})
                others.setdefault(value, np.zeros(len(self.edges), bool))[index] = True

    def measure(self, cost: Callable[[Segment], int]) -> Integers:
        """Return each edge's cost."""
        return np.array([cost(e.segment) if e.segment else 0 for e in self.edges], dtype=np.int64)

    def given(self, genes: Mapping[str, Any]) -> Mask:
        """Return the edges that agree with the genes given; an inactive gene forbids nothing.

        Raises:
            NotInSpace: if a gene or its value is not offered.
        """
        agreeing = np.ones(len(self.edges), bool)
        for key, value in genes.items():
            if value not in self.space.genes.get(key, ()):
                raise NotInSpace(
                    f"space '{self.space.name}', {key}: {value!r} is not offered "
                    f"(choices: {self.space.genes.get(key, 'no such gene')})"
                )
            for other, setting in self._setting.get(key, {}).items():
                if other != value:
                    agreeing &= ~setting
        return agreeing

    def architecture(self, path: Sequence[int]) -> Architecture:
        """Return the architecture of a path, given by its edges."""
        genes = dict(chain.from_iterable(self.edges[index].genes for index in path))
        return self.space.pick(lambda key, _: genes[key])

    def onward(self, cost: Integers, *, greatest: bool = False) -> Integers:
        """Return each node's least (greatest) cost to the end; -+`NEVER` where none leads there."""
        sign = -1 if greatest else 1
        best = np.full(self.nodes, NEVER)
        best[-1] = 0
        for node in range(self.nodes - 2, -1, -1):
            edges = slice(self.first[node], self.first[node + 1])
            costs = sign * cost[edges] + best[self.end[edges]]
            best[node] = min(costs.min(initial=NEVER), NEVER)
        return sign * best

    def backward(self, cost: Integers, *, greatest: bool = False) -> Integers:
        """Return each node's least (greatest) cost from the start; -+`NEVER` where none leads."""
        sign = -1 if greatest else 1
        best = np.full(self.nodes, NEVER)
        best[0] = 0
        for node in range(self.nodes - 1):
            edges = slice(self.first[node], self.first[node + 1])
            if best[node] < NEVER:
                np.minimum.at(best, self.end[edges], sign * cost[edges] + best[node])
        return sign * best

    def steepest(self, cost: Integers, onward: Integers) -> list[int]:
        """Return the path that follows the extremes computed by `onward`."""
        path, node = [], 0
        while node != self.nodes - 1:
            edges = slice(self.first[node], self.first[node + 1])
            exact = cost[edges] + onward[self.end[edges]] == onward[node]
            path.append(int(self.first[node] + exact.argmax()))
            node = int(self.end[path[-1]])
        return path

    def used(self, mask: Mask) -> dict[str, tuple[Any, ...]]:
        """Return the genes that some of these edges set, with those of their choices."""
        seen: dict[str, set[Any]] = {}
        for index in np.flatnonzero(mask):
            for key, value in self.edges[index].genes:
                seen.setdefault(key, set()).add(value)
        genes = self.space.genes.items()
        return {k: tuple(v for v in choices if v in seen[k]) for k, choices in genes if k in seen}


def _edges(space: SearchSpace) -> list[Edge]:
    number = {node: index for index, node in enumerate(_nodes(space))}
    return [Edge(number[a], number[b], s, genes) for a, b, s, genes in _steps(space)]


def _nodes(space: SearchSpace) -> Iterator[Any]:
    yield "start"
    for stride in space.strides:
        for width in space.genes[f"s{stride}.width"]:
            yield from ((stride, width, done) for done in range(space.blocks(stride) + 1))
            yield stride, width, "left"
    yield "end"


def _steps(space: SearchSpace) -> Iterator[tuple[Any, Any, Segment | None, Genes]]:
    """Yield start, end, segment and genes of every edge."""
    for kind in space.genes["stem"]:
        stride = space.entered(kind)[0]
        for width in space.genes[f"s{stride}.width"]:
            genes: Genes = (("stem", kind), (f"s{stride}.width", width))
            yield "start", (stride, width, 0), ("stem", kind, width), genes
    for stride in space.strides:
        for width in space.genes[f"s{stride}.width"]:
            for done in range(space.blocks(stride)):
                for block, chosen in _blocks(space, f"s{stride}.b{done}"):
                    segment = ("block", stride, width, block)
                    yield (stride, width, done), (stride, width, done + 1), segment, chosen
            for depth in filter(None, space.genes[f"s{stride}.depth"]):
                left = ((f"s{stride}.depth", depth),)
                yield (stride, width, depth), (stride, width, "left"), None, left
            yield from _leave(space, stride, width)


def _leave(
    space: SearchSpace, stride: int, width: int
) -> Iterator[tuple[Any, Any, Segment | None, Genes]]:
    """Yield the edges from a finished stage to the next one, or to the end."""
    left, coarse, head = (stride, width, "left"), 2 * stride, ("head", stride, width)
    if coarse not in space.strides:
        yield left, "end", head, ()
        return
    if 0 in space.genes[f"s{coarse}.depth"]:
        yield left, "end", head, ((f"s{coarse}.depth", 0),)
    for wider in space.genes[f"s{coarse}.width"]:
        merge = ("merge", coarse, width, wider)
        yield left, (coarse, wider, 0), merge, ((f"s{coarse}.width", wider),)


def _blocks(space: SearchSpace, at: str) -> Iterator[tuple[Block, Genes]]:
    """Yield every block that may stand at a place, with its genes."""
    for mixer in space.genes[f"{at}.mixer"]:
        knobs = space.knobs(at, mixer)
        for values in product(*knobs.values()):
            chosen = dict(zip(knobs, values, strict=True))
            genes = [(f"{at}.{mixer}.{knob}", value) for knob, value in chosen.items()]
            for ratio in space.genes[f"{at}.ratio"]:
                block = Block.of(mixer, ratio, **chosen)
                yield block, ((f"{at}.mixer", mixer), *genes, (f"{at}.ratio", ratio))
