"""How often each choice stands among the feasible: what an elite has to be compared with.

An edge's share of all feasible paths is the ways to it times the ways on from it, over all: no
draws are needed. The genes that edges set then say how often each choice is made.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.arch import Architecture
from mixnas.cost import pairs
from mixnas.cost.bins import Bins
from mixnas.cost.graph import Graph, Mask
from mixnas.cost.plane import Plane
from mixnas.cost.programme import FINE, Programme
from mixnas.space import SearchSpace

SIDE = 512
"""Bins of each cost, if there are two and their pairs are too many."""

Shares = Mapping[Any, float]


@dataclass(frozen=True)
class Rates:
    """The base rates of choices under a uniform draw among the feasible.

    Attributes:
        genes: for each gene of the space and each of its values, the share of feasible
            architectures that use the gene with that value; a gene's values add up to the share
            that uses it at all (a block beyond the depth, a stage that the stem skips, and a knob
            of another mixer are not used).
        how: ``"exact"`` (sums were counted one by one), ``"bins"`` (counted too, with costs
            rounded to the nearest of hundreds of bins) or ``"draws"`` (further limits reject).
        draws: how many architectures were drawn, 0 if they were counted.
    """

    genes: Mapping[str, Shares]
    how: str
    draws: int = 0

    @property
    def stems(self) -> Shares:
        """Share of architectures by stem."""
        return self.genes["stem"]

    @property
    def widths(self) -> Mapping[int, Shares]:
        """Share of architectures by width, for each stride; the rest has no such stage."""
        return self._stages("width")

    @property
    def depths(self) -> Mapping[int, Shares]:
        """Share of architectures by depth, for each stride; the rest enters behind it."""
        return self._stages("depth")

    @property
    def places(self) -> Mapping[tuple[int, int], Shares]:
        """Share of architectures by mixer, for each stride and block; the rest lacks the block."""
        found = {}
        for key, shares in self.genes.items():
            stage, *rest = key.split(".")
            if len(rest) == 2 and rest[1] == "mixer":
                found[int(stage[1:]), int(rest[0][1:])] = shares
        return found

    @property
    def blocks(self) -> float:
        """How many blocks an architecture has on average."""
        return sum(sum(shares.values()) for shares in self.places.values())

    @property
    def mixers(self) -> Shares:
        """Share of all blocks by mixer."""
        numbers: dict[str, float] = defaultdict(float)
        for shares in self.places.values():
            for mixer, share in shares.items():
                numbers[mixer] += share
        return {mixer: number / self.blocks for mixer, number in numbers.items()}

    def _stages(self, what: str) -> dict[int, Shares]:
        split = ((key.partition("."), shares) for key, shares in self.genes.items())
        return {int(at[1:]): shares for (at, _, rest), shares in split if rest == what}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers among the keys become text there."""
        return {
            "how": self.how,
            "draws": self.draws,
            "blocks": self.blocks,
            "mixers": dict(self.mixers),
            "stems": dict(self.stems),
            "widths": {str(stride): _text(shares) for stride, shares in self.widths.items()},
            "depths": {str(stride): _text(shares) for stride, shares in self.depths.items()},
            "genes": {key: _text(shares) for key, shares in self.genes.items()},
        }


def counted(first: Programme, second: Programme | None, allowed: Mask) -> Rates | None:
    """Return the rates among all paths within one or two limits, by the programme.

    None where sums are too many to be exact and a window is narrower than a bin.

    Args:
        first: a limit's programme.
        second: another one's on the same graph, if there is one.
        allowed: the edges that each limit by itself allows.
    """
    graph = first.graph
    exact = _exactly(first, second, allowed)
    shares = _nearly(first, second, allowed) if exact is None else exact
    if shares is None:
        return None
    genes: dict[str, dict[Any, float]] = {key: {} for key in graph.space.genes}
    for index in np.flatnonzero(shares).tolist():
        for key, value in graph.edges[index].genes:
            genes[key][value] = genes[key].get(value, 0.0) + float(shares[index])
    return Rates(_ordered(graph.space, genes), "bins" if exact is None else "exact")


def drawn(space: SearchSpace, archs: Iterable[Architecture]) -> Rates:
    """Return the rates among drawn architectures of a space."""
    counts: dict[str, Counter[Any]] = {key: Counter() for key in space.genes}
    number = 0
    for arch in archs:
        number += 1
        for key, value in space.genotype(arch).items():
            counts[key][value] += 1
    genes = {
        key: {value: times / max(number, 1) for value, times in counter.items()}
        for key, counter in counts.items()
    }
    return Rates(_ordered(space, genes), "draws", number)


def _exactly(
    first: Programme, second: Programme | None, allowed: Mask
) -> NDArray[np.float64] | None:
    """Return each edge's share of paths by exact sums; None if they are too many."""
    nothing = np.zeros_like(first.reduced)
    held = [each if each is not None and each.cuts else None for each in (first, second)]
    costs = [nothing if each is None else each.reduced for each in held]
    ends = [
        (0, 0) if each is None else (each.floor - each.least, each.high - each.least)
        for each in held
    ]
    both, bounds = (costs[0], costs[1]), (ends[0], ends[1])
    ways = pairs.pairs(first.graph, both, allowed, bounds, pairs.WORK)
    if ways is None:
        return None
    total = sum(ways[0].values())
    found = pairs.through(first.graph, both, allowed, ways)
    return np.array([number / total for number in found])


def _nearly(
    first: Programme, second: Programme | None, allowed: Mask
) -> NDArray[np.float64] | None:
    """Return each edge's share of paths, with costs rounded to the nearest bin.

    None where no bin lies within the limits.
    """
    side = FINE if second is None else SIDE
    one = first.bins(side, "nearest")
    two = _one_bin(first.graph) if second is None else second.bins(side, "nearest")
    window = (*_nearest(first, one), *((0, 0) if second is None else _nearest(second, two)))
    plane = Plane(one, two, allowed)
    total = plane.total(window)
    if not total:
        return None
    shares: NDArray[np.float64] = plane.through(window) / total
    return shares


def _one_bin(graph: Graph) -> Bins:
    return Bins.of(graph, np.zeros(len(graph.edges), np.int64), 0, 1)


def _nearest(programme: Programme, bins: Bins) -> tuple[int, int]:
    """Return the bins of a limit where costs go to the nearest."""
    first = -(-(programme.floor - programme.least) // bins.step)
    return max(first, 0), (programme.high - programme.least) // bins.step


def _ordered(space: SearchSpace, genes: Mapping[str, Shares]) -> dict[str, Shares]:
    """Return shares in the order of the space, 0 for the choices that nothing makes."""
    return {
        key: {value: genes[key].get(value, 0.0) for value in choices}
        for key, choices in space.genes.items()
    }


def _text(shares: Shares) -> dict[str, float]:
    return {str(value): share for value, share in shares.items()}
