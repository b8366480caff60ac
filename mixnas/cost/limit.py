"""`Limit`: what a budget says, in exact integers; a unit names the cost, ``@`` its device.

FLOPs, parameters and memory follow from the architecture alone. Latency and energy are measured:
``20ms@cpu`` and ``2ms@cuda`` are two costs, each with its own table and its own column.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from fractions import Fraction
from math import ceil, floor

from mixnas.errors import InvalidBudget, did_you_mean

UNITS: dict[str, dict[str, int]] = {
    "flops": {
        "FLOPs": 1,
        "KFLOPs": 10**3,
        "MFLOPs": 10**6,
        "GFLOPs": 10**9,
        "TFLOPs": 10**12,
        "MACs": 1,
        "KMACs": 10**3,
        "MMACs": 10**6,
        "GMACs": 10**9,
        "TMACs": 10**12,
    },
    "latency": {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
    "params": {"params": 1, "Kparams": 10**3, "Mparams": 10**6, "Bparams": 10**9},
    "memory": {
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    },
    "energy": {"nJ": 1, "uJ": 10**3, "mJ": 10**6, "J": 10**9},
}
"""Kind of cost to its units, each with its factor.

Printed is the first spelling of a factor that is a power of ten.
"""

MEASURED = ("latency", "energy")
"""The kinds that depend on a device, so that a budget may say on which."""

EXAMPLES = "write 1.5GFLOPs, 1.2-1.5GFLOPs, 20ms, 8ms@cuda, 200MB or 10Mparams"

COLUMNS = {
    "flops": ("flops", 1),
    "params": ("params", 1),
    "latency": ("latency_ms", 10**6),
    "memory": ("memory_mb", 10**6),
    "energy": ("energy_mj", 10**6),
}
"""Each kind's column in a run's tables, and what a value is divided by there."""

_KNOWN = {
    unit.lower(): (cost, unit, factor)
    for cost, units in UNITS.items()
    for unit, factor in units.items()
}
_PRINTED = {
    kind: {unit: factor for unit, factor in units.items() if str(factor).strip("0") == "1"}
    for kind, units in UNITS.items()
}
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:nan|inf(?:inity)?)"
_BUDGET = re.compile(
    rf"(?P<first>{_NUMBER})\s*(?P<early>[a-zµμ]*)(?:\s*[-\u2013]\s*(?P<second>{_NUMBER})"
    r"\s*(?P<unit>[a-zµμ]*))?",
    re.IGNORECASE,
)
_PLACE = re.compile(r"(?:cpu|mps|cuda(?::[0-9]+)?)(?::(?:eager|compile|onnxruntime))?")
_PLACES = "cpu, cuda, cuda:1 or mps, each with :eager, :compile or :onnxruntime, or table:FILE"
_TABLE = "table:"
_GREATEST = 10**18


@dataclass(frozen=True)
class Limit:
    """A cost lies within ``low`` and ``high``, both included, in the cost's smallest unit.

    Attributes:
        cost: ``"flops"`` (multiply-adds), ``"params"``, ``"latency"`` (nanoseconds), ``"memory"``
            (bytes) or ``"energy"`` (nanojoules); where it says on what a cost is measured, that
            stands behind an ``@``: ``"latency@cpu:onnxruntime"``.
        low: least value, 0 where the budget gives none.
        high: greatest value.
    """

    cost: str
    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read ``"1.5GFLOPs"``, ``"20ms"``, ``"8ms@cuda"`` or a range ``"1.2-1.5GFLOPs"``.

        Units and devices are read without regard to case; MACs and FLOPs are the same thing.

        Raises:
            InvalidBudget: if it is not a positive, finite amount or range of a known unit, or
                names a place that is none, or that means nothing for its cost.
        """
        shown = _shown(text)
        amount, at, where = text.partition("@") if isinstance(text, str) else ("", "", "")
        kind, low, high = _amount(amount, shown)
        return cls(f"{kind}@{_where(where, kind, shown)}" if at else kind, low, high)

    @property
    def kind(self) -> str:
        """The cost without its place: one of `UNITS`."""
        return kind_of(self.cost)

    @property
    def where(self) -> str:
        """On what it is measured: ``cpu``, ``cuda:1:compile``, ``table:FILE``; empty if unsaid."""
        return self.cost.partition("@")[2]

    def excess(self, value: int) -> int:
        """Return how far a value lies outside: at most 0 within the limit."""
        return max(value - self.high, self.low - value)

    def __str__(self) -> str:
        unit, factor = _scale(self.cost, self.high)
        low = f"{_decimal(self.low, factor)}-" if self.low else ""
        place = f"@{self.where}" if self.where else ""
        return f"{low}{_decimal(self.high, factor)}{unit}{place}"


def parse_all(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Read several budgets that hold together.

    Raises:
        InvalidBudget: if one cannot be read, or if two limit the same cost.
    """
    limits: dict[str, Limit] = {}
    for text in texts:
        limit = Limit.parse(text)
        if limit.cost in limits:
            raise InvalidBudget(
                f"budgets {limits[limit.cost]} and {limit}: both limit {limit.cost}; "
                "give one budget for each cost, as a range if it has two ends"
            )
        limits[limit.cost] = limit
    return tuple(limits.values())


def describe(cost: str, value: int, rounding: str = "nearest") -> str:
    """Return a value for people, in three digits: ``"1.42 GFLOPs"``.

    Args:
        cost: a limit's, with or without its place.
        value: in the cost's smallest unit.
        rounding: ``"nearest"``, ``"up"`` or ``"down"`` (a bound that must hold as printed).
    """
    step = 10 ** max(len(str(value)) - 3, 0)
    steps = Fraction(value, step)
    value = {"nearest": round(steps), "up": ceil(steps), "down": floor(steps)}[rounding] * step
    unit, factor = _scale(cost, value)
    return f"{_decimal(value, factor)} {unit}"


def kind_of(cost: str) -> str:
    """Return a cost without its place: ``"latency"`` of ``"latency@cpu"``."""
    return cost.partition("@")[0]


def column(cost: str) -> str:
    """Return the column of a cost in a run's tables: ``"flops"``, ``"latency_ms@cuda"``."""
    kind, at, where = cost.partition("@")
    return f"{COLUMNS[kind][0]}{at}{where}"


def in_column(cost: str, value: int) -> float:
    """Return a value as its column has it: milliseconds, megabytes, millijoules, or as it is.

    Args:
        cost: a limit's, with or without its place.
        value: in the cost's smallest unit.
    """
    divisor = COLUMNS[kind_of(cost)][1]
    return value if divisor == 1 else value / divisor


def cost_in(name: str) -> str | None:
    """Return the cost that a column of this name holds, None if it holds none."""
    first, at, where = name.partition("@")
    kinds = [kind for kind, (known, _) in COLUMNS.items() if known == first]
    return f"{kinds[0]}{at}{where}" if kinds and bool(at) == bool(where) else None


def from_column(cost: str, value: float) -> int:
    """Return what `in_column` turned into a column's value, in the cost's smallest unit."""
    return round(value * COLUMNS[kind_of(cost)][1])


def _shown(text: object) -> str:
    """Return what was given, on one short line."""
    given = text if isinstance(text, str) and text.isprintable() and text.strip() else repr(text)
    return given if len(given) <= 60 else given[:57] + "..."


def _amount(text: str, shown: str) -> tuple[str, int, int]:
    """Return what stands before the ``@``: kind of cost, least and greatest value."""
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise InvalidBudget(f"budget {shown}: not an amount with a unit; {EXAMPLES}")
    first, early, second, late = found.groups()
    cost, factor = _unit(late if second else early, shown)
    if second is None:
        return cost, 0, _whole(first, factor, shown)
    cost_low, factor_low = _unit(early, shown) if early else (cost, factor)
    if cost_low != cost:
        raise InvalidBudget(
            f"budget {shown}: one end is {cost_low}, the other {cost}; "
            "give two budgets, or both ends in one unit"
        )
    low, high = _whole(first, factor_low, shown, low=True), _whole(second, factor, shown)
    if low > high:
        raise InvalidBudget(
            f"budget {shown}: the lower end is above the upper one; write the lower end first"
        )
    return cost, low, high


def _where(text: str, kind: str, shown: str) -> str:
    """Return what stands behind the ``@``, checked."""
    if kind not in MEASURED:
        raise InvalidBudget(
            f"budget {shown}: {kind} is computed, the same on every device; "
            "leave its '@' out (only latency and energy have a place)"
        )
    where = text.strip()
    if where.startswith(_TABLE) and where[len(_TABLE) :].strip() and where.isprintable():
        return where
    if not _PLACE.fullmatch(where.lower()):
        given = _shown(where) if where else "nothing"
        raise InvalidBudget(f"budget {shown}: no place to measure at: {given}; write {_PLACES}")
    return where.lower()


def _unit(name: str, shown: str) -> tuple[str, int]:
    """Return a unit's cost and factor."""
    if not name:
        raise InvalidBudget(f"budget {shown}: no unit; {EXAMPLES}")
    known = _KNOWN.get(re.sub("[µμ]", "u", name).lower())
    if known is None:
        close = get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.5)
        spelling = _KNOWN[close[0]][1] if close else name
        hint = did_you_mean(spelling, (unit for units in UNITS.values() for unit in units))
        raise InvalidBudget(f"budget {shown}: no unit '{name}'; {hint}")
    return known[0], known[2]


def _whole(number: str, factor: int, shown: str, *, low: bool = False) -> int:
    """Return a number of units as an integer, rounded into the limit."""
    try:
        amount = Decimal(number)
    except InvalidOperation:
        raise InvalidBudget(f"budget {shown}: '{number}' is not a number; {EXAMPLES}") from None
    if not amount.is_finite() or (amount and amount.adjusted() > 18):
        raise InvalidBudget(f"budget {shown}: not a finite amount; {EXAMPLES}")
    if amount <= 0:
        raise InvalidBudget(f"budget {shown}: must be above 0; {EXAMPLES}")
    if amount.adjusted() < -18:
        raise InvalidBudget(f"budget {shown}: too small to be met; {EXAMPLES}")
    exact = Fraction(amount) * factor
    value = ceil(exact) if low else floor(exact)
    if value == 0:
        raise InvalidBudget(f"budget {shown}: too small to be met; {EXAMPLES}")
    if value > _GREATEST:
        raise InvalidBudget(f"budget {shown}: beyond any network; {EXAMPLES}")
    return value


def _scale(cost: str, value: int) -> tuple[str, int]:
    """Return the greatest unit that is not above a value."""
    units = _PRINTED[kind_of(cost)]
    fitting = {factor: unit for unit, factor in reversed(units.items()) if factor <= value}
    factor = max(fitting, default=1)
    return fitting.get(factor, next(iter(units))), factor


def _decimal(value: int, factor: int) -> str:
    """Return ``value / factor`` with every digit; factors are powers of ten."""
    whole, rest = divmod(value, factor)
    digits = f"{rest:0{len(str(factor)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
