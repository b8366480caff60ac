"""Figures that no device can have: a table in the wrong unit, or a row of it.

What a part should take is bracketed by the rows of its like (its kind; a mixer's name), on two
assumptions between which devices lie: that all take the same time (what is launched counts, as on
a large GPU), and that time grows with multiply-adds (as on a small CPU). On two real tables of
the default space (a 2-core x86 in eager PyTorch and in ONNX Runtime, 204 parts each) no row lies
more than 3.5 times outside its bracket, and each row, made 1000 times slower or faster, is found.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median
from typing import Any

from mixnas.arch import Architecture
from mixnas.cost.tablerows import UNITS, Row, Sizes
from mixnas.errors import InvalidTable
from mixnas.network import Part

RATES = {"latency": (1e7, 1e15), "energy": (1e5, 1e14)}
"""Multiply-adds a second (a joule) of the dearest parts: no phone is so slow, no GPU so fast."""
FACTOR = 30.0
"""A row so many times off what others imply is refused."""
LIKE = 5
"""Rows at least that are judged among themselves; those of a smaller group among all."""


def judge(
    rows: Sequence[Row],
    sizes: Sizes,
    flops: Callable[[Part], int],
    quantity: str,
    where: str,
    *,
    batch: Any = 1,
) -> None:
    """Refuse absurd figures.

    Args:
        rows: all rows, each sound by itself.
        sizes: image and classes.
        flops: counts a part's multiply-adds for one image.
        quantity: ``latency`` or ``energy``.
        where: the file's name, for messages.
        batch: images at once, if the table says so.

    Raises:
        InvalidTable: naming the line.
    """
    images = batch if isinstance(batch, int) and batch > 0 else 1
    counted = [(row, images * flops(row.item)) for row in rows if isinstance(row.item, Part)]
    _rate(counted, quantity, where)
    for row, implied in _implied(counted):
        if not implied[0] / FACTOR <= row.value <= implied[1] * FACTOR:
            near = implied[0] if row.value < implied[0] else implied[1]
            times = row.value / near if row.value > near else near / row.value
            raise InvalidTable(
                f"{where}, line {row.line}: {row.value:g} {UNITS[quantity]}, "
                f"{times:,.0f} times {'more' if row.value > near else 'less'} than rows of its "
                f"like imply (about {near:.3g}); is it in another unit? Measure it again"
            )
    _wholes(rows, sizes, quantity, where)


def _rate(counted: Sequence[tuple[Row, int]], quantity: str, where: str) -> None:
    """Refuse a table whose dearest parts compute absurdly fast or slowly."""
    dearest = sorted(counted, key=lambda pair: -pair[1])[: max(1, len(counted) // 4)]
    if not dearest or not dearest[0][1]:
        return
    rate = median(1000 * flops / row.value for row, flops in dearest)
    low, high = RATES[quantity]
    if not low <= rate <= high:
        row, flops = dearest[0]
        per = {"latency": "second", "energy": "joule"}[quantity]
        raise InvalidTable(
            f"{where}, line {row.line}: {row.value:g} {UNITS[quantity]} for {flops:,} "
            f"multiply-adds; the dearest rows compute {rate:.2g} a {per}, which no device does: "
            f"is the column in {UNITS[quantity]}?"
        )


def _implied(counted: Sequence[tuple[Row, int]]) -> list[tuple[Row, tuple[float, float]]]:
    """Return for each row the bracket in which its figure should lie.

    Nothing is implied to be faster than the fastest row but one: what takes no multiply-adds takes
    time to be called. Fewer rows than `LIKE` imply nothing.
    """
    groups: Mapping[str, list[tuple[Row, int]]] = defaultdict(list)
    for row, flops in counted:
        groups[_like(row.item)].append((row, flops))
    if len(counted) < LIKE:
        return []
    fastest = sorted(row.value for row, _ in counted)[1]
    found = []
    for group in groups.values():
        like = group if len(group) >= LIKE else counted
        same = median(row.value for row, _ in like)
        each = median(row.value / max(flops, 1) for row, flops in like)
        for row, flops in group:
            ends = sorted((same, each * flops))
            found.append((row, (max(ends[0], fastest), max(ends[1], fastest))))
    return found


def _like(item: Part | Architecture) -> str:
    """Return the group in which a part is judged."""
    if not isinstance(item, Part):
        return "network"
    return f"mixer {item.spec[0]}" if item.kind == "mixer" else item.kind


def _wholes(rows: Sequence[Row], sizes: Sizes, quantity: str, where: str) -> None:
    """Refuse networks that take nothing like their parts together."""
    known = {row.item: row.value for row in rows if isinstance(row.item, Part)}
    for row in rows:
        if isinstance(row.item, Architecture):
            taken = sizes.parts(row.item)
            together = sum(known.get(part, inf) for part in taken)  # a part that is missing: no say
            if together < inf and not together / FACTOR <= row.value <= together * FACTOR:
                raise InvalidTable(
                    f"{where}, line {row.line}: {row.value:g} {UNITS[quantity]} for a network "
                    f"whose parts take {together:.3g} together; give both in {UNITS[quantity]}"
                )
