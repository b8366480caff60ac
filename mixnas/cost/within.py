"""The least (greatest) of one cost among the paths within a window of another.

One cost is cut into bins, the other stays exact: for each node and each bin the best way on. Bins
rounded down hold every path of the window, so that their best is a bound; bins rounded up hold
none but those, so that their best is reached.
"""

from typing import Literal

import numpy as np

from mixnas.cost.graph import NEVER, Integers, Mask
from mixnas.cost.programme import FINE, Programme


def extreme_within(
    held: Programme,
    cost: Integers,
    allowed: Mask,
    *,
    greatest: bool = False,
    rounding: Literal["down", "up"] = "down",
    bins: int = FINE,
) -> list[int] | None:
    """Return the path of the least (greatest) cost among those within a limit; None without one.

    Args:
        held: the limit's programme, whose cost is binned.
        cost: each edge's cost that is to be least (greatest).
        allowed: the edges that may be used.
        greatest: whether the greatest is wanted.
        rounding: ``"down"``: the path may lie a little outside the limit, and no path within it
            is better; ``"up"``: it lies within, and some path may be a little better.
        bins: of the limit's cost.
    """
    graph, cut = held.graph, held.bins(bins, rounding)
    sign = -1 if greatest else 1
    usable = allowed & (cut.shift < cut.length)
    best = np.full((graph.nodes, cut.length), NEVER)
    best[-1, 0] = 0
    for index in np.flatnonzero(usable)[::-1].tolist():
        start, end, shift = graph.start[index], graph.end[index], int(cut.shift[index])
        onward = best[end, : cut.length - shift] + sign * int(cost[index])
        here = best[start, shift:]
        np.minimum(here, np.where(onward < NEVER // 2, onward, NEVER), out=here)
    low, high = held.low - held.slack - held.least, held.high - held.least
    first, last = cut.window(low, high) if rounding == "down" else cut.inner(low, high)
    window = best[0, max(first, 0) : last + 1]
    if not (window < NEVER).any():
        return None
    return _follow(held, cut.shift, sign * cost, usable, best, max(first, 0) + int(window.argmin()))


def _follow(
    held: Programme, shift: Integers, cost: Integers, usable: Mask, best: Integers, left: int
) -> list[int]:
    """Return the path that ends in a bin at its best cost."""
    graph, path, node = held.graph, [], 0
    while node != graph.nodes - 1:
        edges = np.arange(graph.first[node], graph.first[node + 1])
        edges = edges[usable[edges] & (shift[edges] <= left)]
        onward = cost[edges] + best[graph.end[edges], left - shift[edges]]
        path.append(int(edges[onward.argmin()]))
        left -= int(shift[path[-1]])
        node = int(graph.end[path[-1]])
    return path
