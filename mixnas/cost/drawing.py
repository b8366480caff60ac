"""Where draws come from: bins of one cost or of two, coarse for a few draws and finer if need be.

Every source holds each path that is wanted, and some beyond. Who draws rejects those, so that
what is kept is uniform whatever the source; a source that wastes draws gives way to a finer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor
from random import Random
from typing import Any

import numpy as np

from mixnas.cost.bins import Counts
from mixnas.cost.graph import Graph, Integers, Mask
from mixnas.cost.joint import SIDE, Joint
from mixnas.cost.programme import FINE, Programme
from mixnas.cost.within import extreme_within

COARSE = 1024
"""Bins of a draw under given genes: a programme of its own at every training step."""
COARSE_SIDE = 96
"""Bins of each of two costs, likewise."""
PATIENCE = 16
"""Draws under given genes that one cost's bins may waste on the other limit."""
FINEST = 65536
"""Bins at most, when a narrow window rejects nearly every draw."""


@dataclass(frozen=True)
class Wish:
    """What is to be drawn: values `low` to `high` of the first cost, `share` of those reachable."""

    given: Mapping[str, Any]
    low: int
    high: int
    share: tuple[float, float]


class Drawing:
    """Draws paths that lie in bins of the limits.

    Args:
        graph: the space's graph.
        main: the programme of the tightest limit.
        joint: that of the two tightest, if there are two.
        allowed: the edges that may be used.
    """

    def __init__(self, graph: Graph, main: Programme, joint: Joint | None, allowed: Mask) -> None:
        self.graph = graph
        self.main = main
        self.joint = joint
        self._allowed = allowed
        self._counts: dict[int, Counts] = {}
        self._last: tuple[object, Counts] | None = None
        self._ends: tuple[object, tuple[int, int]] | None = None

    def draw(self, rng: Random, wish: Wish, missed: int) -> list[int] | None:
        """Draw a path uniformly from bins that hold all that is wished for; None if none does.

        Args:
            rng: the source of randomness.
            wish: what is to be drawn.
            missed: how many draws lay outside so far.
        """
        joint = self.joint
        if joint is not None and missed < 512 and not (wish.given and missed < PATIENCE):
            return self._both(joint, rng, wish, missed - PATIENCE)
        if joint is not None:
            wish = self._reached(joint, wish)
        span = max(self.main.high - self.main.least, 1)
        number = _fineness(missed, (wish.high - wish.low) / span, bool(wish.given))
        counts = self.counts(number, wish.given)
        first, last = self.main.window(counts, wish.low, wish.high)
        if wish.share != (0.0, 1.0):
            first, last = _part(
                np.flatnonzero(counts.totals[first : last + 1]) + first, first, last, wish.share
            )
        return counts.draw(rng, first, last)

    def _reached(self, joint: Joint, wish: Wish) -> Wish:
        """Return a wish for a share of all costs, less those that the second limit cuts off.

        One cost's bins know nothing of the other limit: where the outermost share of costs is
        wanted, the least and the greatest that it leaves are found first.
        """
        if wish.share == (0.0, 1.0):
            return wish
        key = frozenset(wish.given.items()), wish.share, wish.low, wish.high
        if self._ends is None or self._ends[0] != key:
            self._ends = key, self._ends_of(joint, wish)
        low, high = self._ends[1]
        return replace(wish, low=max(wish.low, low), high=min(wish.high, high))

    def _ends_of(self, joint: Joint, wish: Wish) -> tuple[int, int]:
        """Return bounds of the first cost within the second limit, at the ends that a share has."""
        allowed, ends = self._allowed & self.graph.given(wish.given), [wish.low, wish.high]
        for greatest, wanted in ((False, wish.share[0] == 0), (True, wish.share[1] == 1)):
            path = wanted and extreme_within(
                joint.second, self.main.cost, allowed, greatest=greatest, bins=COARSE
            )
            if path:
                ends[greatest] = self.main.cost_of(path) + self.main.slack * greatest
        return ends[0], ends[1]

    def _both(self, joint: Joint, rng: Random, wish: Wish, missed: int) -> list[int] | None:
        """Draw from bins of two costs."""
        side = COARSE_SIDE if wish.given and missed < 64 else SIDE
        sides = joint.sides(wish.low, wish.high, side)
        if wish.given:
            given = self.graph.given(wish.given)
            plane = joint.plane(sides, given, frozenset(wish.given.items()))
        else:
            plane = joint.plane(sides)
        window = joint.window(plane, wish.low, wish.high)
        if wish.share != (0.0, 1.0):
            part = _part(plane.filled(window), window[0], window[1], wish.share)
            window = (*part, *window[2:])
        return plane.draw(rng, window)

    def total(self, wish: Wish) -> float:
        """Return how many paths a first draw of a wish without given genes chooses among."""
        if self.joint is not None:
            plane = self.joint.plane(self.joint.sides(wish.low, wish.high, SIDE))
            return plane.total(self.joint.window(plane, wish.low, wish.high))
        counts = self.counts(FINE, {})
        first, last = self.main.window(counts, wish.low, wish.high)
        return float(counts.totals[first : last + 1].sum())

    def holds(self, path: list[int], wish: Wish) -> bool:
        """Say whether a path's costs, which add up, lie within what bins only nearly hold."""
        main, second = self.main, self.joint.second if self.joint else None
        return wish.low - main.slack <= main.cost_of(path) <= wish.high and (
            second is None or second.floor <= second.cost_of(path) <= second.high
        )

    def counts(self, bins: int, given: Mapping[str, Any]) -> Counts:
        """Return the ways under given genes; the last ones are kept, and those under none."""
        if not given:
            if bins not in self._counts:
                self._counts[bins] = Counts(self.main.bins(bins), self._allowed)
            return self._counts[bins]
        key = bins, frozenset(given.items())
        if self._last is None or self._last[0] != key:
            allowed = self._allowed & self.graph.given(given)
            self._last = key, Counts(self.main.bins(bins), allowed)
        return self._last[1]


def _fineness(missed: int, width: float, given: bool) -> int:
    """Return how many bins to use of one cost.

    Args:
        missed: draws that lay outside so far.
        width: of the window, as a share of the costs within the budget.
        given: whether genes are given, so that the bins serve a few draws only.
    """
    if missed >= 512:
        return FINEST
    return COARSE if given and missed < 64 and width * COARSE > 64 else FINE


def _part(filled: Integers, low: int, high: int, share: tuple[float, float]) -> tuple[int, int]:
    """Return a part of the bins from `low` to `high`, between the outermost that are filled."""
    if not len(filled):
        return low, high
    first, span = int(filled[0]), int(filled[-1] - filled[0])
    return first + floor(share[0] * span), first + ceil(share[1] * span)
