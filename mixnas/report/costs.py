"""How costs and shares appear in tables and figures: heads, cells and axes."""

from collections.abc import Iterable, Mapping
from typing import Any

from mixnas.cost.limit import cost_in, describe, from_column, kind_of

AXES = {
    "flops": ("GFLOPs (multiply-adds, as deployed)", 1e9),
    "params": ("million parameters", 1e6),
    "latency": ("milliseconds (upper end of what is predicted)", 1.0),
    "memory": ("megabytes at the peak of one inference", 1.0),
    "energy": ("millijoules (upper end of what is predicted)", 1.0),
}
"""Each kind's label, and what its column is divided by."""

SMALLER = {
    "flops": (
        ("MFLOPs (multiply-adds, as deployed)", 1e6),
        ("KFLOPs (multiply-adds, as deployed)", 1e3),
    ),
    "params": (("thousand parameters", 1e3),),
}
"""The same for what is too small for these, in falling order."""

COUNTED = ("flops", "params")
"""The kinds that every table has, limited or not."""


def axis(cost: str, most: float | None = None) -> tuple[str, float]:
    """Return the label of a cost's axis, and what its column is divided by.

    Args:
        cost: what is drawn.
        most: the greatest value of its column, to which the unit is fitted.
    """
    kind = kind_of(cost)
    units = [AXES[kind], *SMALLER.get(kind, ())] if most else [AXES[kind]]
    label, divisor = next((unit for unit in units if (most or 0) >= unit[1]), units[-1])
    where = cost.partition("@")[2]
    return (f"{label}, {where}" if where else label), divisor


def further(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the costs beside FLOPs and parameters that some row has a figure of, in order."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            cost = cost_in(name)
            if cost is not None and kind_of(cost) not in COUNTED and value is not None:
                found[cost] = None
    return list(found)


def head(cost: str) -> str:
    """Return a cost as the head of a column: ``"latency"``, ``"latency cuda:1"``."""
    return cost.replace("@", " ", 1)


def cell(cost: str, value: float | Mapping[str, float] | None) -> str:
    """Return a column's value for people, with the quartiles where they are known."""
    if value is None or value != value:  # an empty cell of a table is not a number
        return "-"
    if isinstance(value, Mapping):
        lower, median, upper = (cell(cost, value[key]) for key in ("lower", "median", "upper"))
        return f"{median} (quartiles {lower} to {upper})"
    return describe(cost, from_column(cost, value))


def percent(share: float) -> str:
    """Return a share in per cent; neither nothing nor all is said of what is only nearly so."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 - 1e-9 else f"{share:.1%}"


def latency(value: float | Mapping[str, float] | None) -> str:
    """Return milliseconds for people, with the quartiles where they are known."""
    return cell("latency", value)
