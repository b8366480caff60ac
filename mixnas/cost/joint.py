"""Two limits that hold together: one programme over pairs of sums, or over bins of both."""

from collections.abc import Iterator
from functools import cached_property
from random import Random

import numpy as np

from mixnas.cost import pairs
from mixnas.cost.graph import Integers, Mask
from mixnas.cost.limit import describe
from mixnas.cost.plane import Plane, Window
from mixnas.cost.programme import LOOKS, Accept, Programme
from mixnas.cost.within import extreme_within

SIDE = 512
"""Bins of each cost, in what is computed once."""
NARROW = 16.0
"""How many times finer one cost may be cut than the other, where its window is narrower."""
EDGE = 64
"""Bins at most in search of an extreme."""


class Joint:
    """The dynamic programme of two costs at once, each with its own limit.

    Args:
        first: one limit's programme; extremes are in its cost.
        second: the other's, on the same graph.
        allowed: the edges that each limit by itself allows.
    """

    def __init__(self, first: Programme, second: Programme, allowed: Mask) -> None:
        self.graph = first.graph
        self.first, self.second = first, second
        self._allowed = allowed
        self._planes: dict[tuple[int, int], Plane] = {}
        self._last: tuple[object, Plane] | None = None

    @cached_property
    def exact(self) -> pairs.Ways | None:
        """The ways on from each node by their exact pairs of reduced costs, where they are few."""
        bounds = tuple(
            (each.floor - each.least, each.high - each.least) for each in (self.first, self.second)
        )
        return pairs.pairs(
            self.graph, self._reduced, self._allowed, (bounds[0], bounds[1]), pairs.WORK
        )

    @property
    def _reduced(self) -> tuple[Integers, Integers]:
        return self.first.reduced, self.second.reduced

    def plane(self, sides: tuple[int, int], given: Mask | None = None, key: object = None) -> Plane:
        """Return the counts in so many bins of each cost, rounded down.

        Args:
            sides: bins of the first cost, and of the second.
            given: the edges that may be used, if not all; the last such plane is kept.
            key: tells one such plane from another.
        """
        if given is not None:
            if self._last is None or self._last[0] != (sides, key):
                self._last = (sides, key), self._counted(sides, self.useful & given)
            return self._last[1]
        if sides not in self._planes:
            self._planes[sides] = self._counted(sides, self._allowed)
        return self._planes[sides]

    def _counted(self, sides: tuple[int, int], allowed: Mask, rounding: str = "down") -> Plane:
        first, second = self.first.bins(sides[0], rounding), self.second.bins(sides[1], rounding)
        return Plane(first, second, allowed)

    def sides(self, low: int, high: int, side: int) -> tuple[int, int]:
        """Return how many bins to use of each cost: more of the one whose window is narrower.

        Args:
            low: least value of the first cost that is wanted.
            high: its greatest.
            side: bins of each, if neither is narrow.
        """
        first, second = self.first, self.second
        widths = (
            (high - low) / max(first.high - first.least, 1),
            (second.high - second.floor) / max(second.high - second.least, 1),
        )
        ratio = max(widths[1], 1 / side) / max(widths[0], 1 / side)
        ratio = min(max(ratio, 1 / NARROW), NARROW)
        finer = 2 ** round(np.log2(ratio) / 2)  # powers of two, so that planes are used again
        return int(side * finer), int(side / finer)

    def window(self, plane: Plane, low: int, high: int) -> Window:
        """Return the cells of every path between two values of the first, and within the second."""
        first, second = self.first, self.second
        ends = (first, plane.first, low, high), (second, plane.second, second.low, second.high)
        (a, b), (c, d) = (
            bins.window(least - each.slack - each.least, most - each.least)
            for each, bins, least, most in ends
        )
        return a, b, c, d

    @cached_property
    def fine(self) -> tuple[Plane, Window]:
        """The fine counts of all paths, and the cells of those within both limits."""
        plane = self.plane((SIDE, SIDE))
        return plane, self.window(plane, self.first.low, self.first.high)

    @cached_property
    def useful(self) -> Mask:
        """The edges of some path within both limits: exact where the pairs are few.

        Where they are binned it may keep an edge too many, and never drops one of use.
        """
        if self.exact is not None:
            found = pairs.through(self.graph, self._reduced, self._allowed, self.exact)
            return np.array([number > 0 for number in found])
        plane, window = self.fine
        mask: Mask = plane.through(window) > 0
        return mask

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """Give a lower and an upper bound of the paths within both limits."""
        upper = self.fine[0].total(self.fine[1])
        inner = self._counted((SIDE, SIDE), self._allowed, "up")
        (a, b), (c, d) = (
            bins.inner(each.low - each.least, each.high - each.least)
            for each, bins in ((self.first, inner.first), (self.second, inner.second))
        )
        lower = inner.total((a, b, c, d))
        return int(lower * (1 - 1e-9)), int(upper * (1 + 1e-9)) + 1  # floats: rounded outward

    def unreachable(self, name: str) -> str | None:
        """Return why no architecture can lie within both limits, or None if one may.

        Args:
            name: the space's.
        """
        if self.exact is not None:
            if self.exact[0]:
                return None
        elif not self._missed() and self.fine[0].total(self.fine[1]):
            return None
        near = [self._near(held, other) for held, other in self._orders]
        return (
            f"budget {self.first.limit} and {self.second.limit}: no architecture of '{name}' "
            f"meets both{''.join(near)}; widen the budget or the space"
        )

    @property
    def _orders(self) -> tuple[tuple[Programme, Programme], tuple[Programme, Programme]]:
        return (self.first, self.second), (self.second, self.first)

    def _missed(self) -> bool:
        """Say whether it is certain that all paths within one limit miss the other."""
        for held, other in self._orders:
            for greatest in (False, True):
                path = extreme_within(held, other.cost, self._allowed, greatest=greatest)
                if path is None:
                    return True
                cost = other.cost_of(path)
                if (cost < other.floor) if greatest else (cost > other.high):
                    return True
        return False

    def _near(self, held: Programme, other: Programme) -> str:
        """Say how near to one limit the paths within the other come; nothing if unknown."""
        everything = np.ones(len(self.graph.edges), bool)
        for greatest in (False, True):
            path = extreme_within(held, other.cost, everything, greatest=greatest, rounding="up")
            if path is None or not held.keeps(path):
                continue
            value = other.value(path)
            if (value < other.limit.low) if greatest else (value > other.limit.high):
                most = "most" if greatest else "least"
                said = describe(other.limit.cost, value, "down" if greatest else "up")
                return f"; within {held.limit} the {most} is {said.replace(' ', '')}"
        return ""

    def extreme(self, accept: Accept, *, greatest: bool) -> list[int] | None:
        """Return the path of the first cost's extreme within both limits that is accepted.

        Exact where pairs are few, and nearly so (one bin of `programme.FINE` of the second cost)
        where the first limit cuts nothing off at that end; elsewhere the best of draws from the
        edge, within a few bins.
        """
        paths = self._candidates(greatest=greatest)
        return next((path for path in paths if accept(path)), None) or self._drawn(
            accept, greatest=greatest
        )

    def _candidates(self, *, greatest: bool) -> Iterator[list[int]]:
        """Yield the paths of the best known extremes."""
        if self.exact is not None:
            ends = sorted(self.exact[0], reverse=greatest)[:LOOKS]
            for left in ends:
                yield pairs.follow(self.graph, self._reduced, self._allowed, self.exact, left)
            return
        path = extreme_within(
            self.second, self.first.cost, self._allowed, greatest=greatest, rounding="up"
        )
        if path is not None:
            yield path

    def _drawn(self, accept: Accept, *, greatest: bool) -> list[int] | None:
        """Return the best of the paths drawn from the outermost bins."""
        (plane, window), rng = self.fine, Random(0)
        filled = plane.filled(window)
        best: tuple[int, list[int]] | None = None
        for bin_ in (filled[::-1] if greatest else filled)[:EDGE].tolist():
            for _ in range(LOOKS * LOOKS):
                path = plane.draw(rng, (bin_, bin_, *window[2:]))
                if path is None or not accept(path):
                    continue
                cost = self.first.cost_of(path)
                if best is None or (cost > best[0]) == greatest:
                    best = cost, path
            if best is not None:
                return best[1]
        return None
