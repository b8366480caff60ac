"""Counting the paths of a graph by the exact sums of two costs, where such pairs are few."""

from collections.abc import Callable

import numpy as np

from mixnas.cost.graph import NEVER, Graph, Integers, Mask

Pair = tuple[int, int]
Ways = list[dict[Pair, int]]
WORK = 300_000
"""Additions that an exact count may take (some 0.2 s)."""
Bounds = tuple[Pair, Pair]
"""Least and greatest reduced cost of a path, for each of the two costs."""


def pairs(
    graph: Graph, costs: tuple[Integers, Integers], allowed: Mask, bounds: Bounds, work: int
) -> Ways | None:
    """Count the ways from each node to the end by both exact costs; None if they are too many.

    Args:
        graph: the graph.
        costs: its edges' two reduced costs.
        allowed: the edges that may be used.
        bounds: of the paths that count.
        work: additions that may be spent.
    """
    fits = [_open(graph, cost, allowed, *ends) for cost, ends in zip(costs, bounds, strict=True)]
    ways: Ways = [{} for _ in range(graph.nodes)]
    ways[-1][0, 0] = 1
    first, second = (cost.tolist() for cost in costs)
    for node in range(graph.nodes - 2, -1, -1):
        here = ways[node]
        (least_a, most_a), (least_b, most_b) = (fit(node) for fit in fits)
        for index in range(graph.first[node], graph.first[node + 1]):
            if not allowed[index]:
                continue
            onward = ways[graph.end[index]]
            work -= len(onward)
            if work < 0:
                return None
            for (a, b), number in onward.items():
                pair = a + first[index], b + second[index]
                if least_a <= pair[0] <= most_a and least_b <= pair[1] <= most_b:
                    here[pair] = here.get(pair, 0) + number
    return ways


def through(graph: Graph, costs: tuple[Integers, Integers], allowed: Mask, ways: Ways) -> list[int]:
    """Return how many of the counted paths lead over each edge, exactly."""
    found = [0] * len(graph.edges)
    before: Ways = [{} for _ in range(graph.nodes)]
    before[0] = dict.fromkeys(ways[0], 1)
    first, second = (cost.tolist() for cost in costs)
    for node in range(graph.nodes - 1):
        for index in range(graph.first[node], graph.first[node + 1]):
            if not allowed[index]:
                continue
            end = graph.end[index]
            for (a, b), number in before[node].items():
                rest = a - first[index], b - second[index]
                if rest in ways[end]:
                    found[index] += number * ways[end][rest]
                    before[end][rest] = before[end].get(rest, 0) + number
    return found


def follow(
    graph: Graph, costs: tuple[Integers, Integers], allowed: Mask, ways: Ways, left: Pair
) -> list[int]:
    """Return the first path of an exact pair of reduced costs."""
    path, node = [], 0
    while node != graph.nodes - 1:
        for index in range(graph.first[node], graph.first[node + 1]):
            rest = left[0] - int(costs[0][index]), left[1] - int(costs[1][index])
            if allowed[index] and rest in ways[graph.end[index]]:
                path.append(index)
                left, node = rest, int(graph.end[index])
                break
    return path


def _open(
    graph: Graph, cost: Integers, allowed: Mask, low: int, high: int
) -> Callable[[int], Pair]:
    """Return a function of the node: what a way on may cost, so that some path counts."""
    usable = allowed & (cost < NEVER)
    least = graph.backward(np.where(usable, cost, NEVER))
    most = graph.backward(np.where(usable, cost, -NEVER), greatest=True)
    return lambda node: (low - int(most[node]), high - int(least[node]))
