"""The rows of a measured table: a part or a whole network, and its figure, checked one by one."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from mixnas import mixers
from mixnas.arch import STEM_STRIDES, Architecture
from mixnas.errors import InvalidSpace, InvalidTable, UnknownMixer, did_you_mean
from mixnas.network import Part, parts, walk

Item = Part | Architecture

KINDS = ("stem", "local", "mixer", "mlp", "merge", "head")
COLUMNS = ("kind", "spec", "channels", "height", "width")
UNITS = {"latency": "milliseconds", "energy": "millijoules"}
"""Quantities, each with its column; the column's name is its unit."""
FORMS = {
    "stem": '["conv4",WIDTH,IMAGE_CHANNELS]',
    "local": "[CHANNELS]",
    "mixer": '["hilo",CHANNELS,[["alpha",0.5],...]]',
    "mlp": "[CHANNELS,RATIO]",
    "merge": "[CHANNELS,WIDTH]",
    "head": "[CHANNELS,CLASSES]",
    "network": "the JSON that Architecture.to_json() writes",
}
"""What stands in the column `spec`."""

_UNFIT = (
    InvalidSpace,
    UnknownMixer,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
"""What the checks of a spec raise, a mixer's own among them."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LEADING = re.compile(rf"({_NUMBER.pattern})\s*([A-Za-zµμ]+)")


@dataclass(frozen=True)
class Sizes:
    """At what a table's figures hold: the image, the classes, the image's channels."""

    image: int
    classes: int
    in_chans: int

    @classmethod
    def of(cls, conditions: Mapping[str, Any]) -> "Sizes":
        """Take them from conditions."""
        return cls(conditions["image"], conditions["classes"], conditions.get("in_chans", 3))

    @classmethod
    def read(cls, conditions: Mapping[str, Any], where: str) -> "Sizes":
        """Take them from conditions that a file gave.

        Raises:
            InvalidTable: if one is missing or not a whole number above 0.
        """
        defaults = {"image": None, "classes": None, "in_chans": 3, "batch": 1}
        examples = {"image": 224, "classes": 1000, "in_chans": 3, "batch": 1}
        for key, example in examples.items():
            value = conditions.get(key, defaults[key])
            if type(value) is not int or value < 1:
                raise InvalidTable(
                    f"{where}: {key} {'missing' if value is None else repr(value)}; write a line "
                    f"'# {key}: {example}' above the table, as it was measured"
                )
        return cls.of(conditions)

    @property
    def images(self) -> tuple[int, int, int]:
        """The network's input without the batch."""
        return self.in_chans, self.image, self.image

    def parts(self, arch: Architecture) -> tuple[Part, ...]:
        """Return a network's parts, in order."""
        sizes = {"image": self.image, "classes": self.classes, "in_chans": self.in_chans}
        return tuple(part for segment in walk(arch) for part in parts(segment, **sizes))


@dataclass(frozen=True)
class Row:
    """A row of a table: its line, the part or network that it is of, its figure."""

    line: int
    item: Item
    value: float


def spec_of(item: Item) -> str:
    """Return the cell that says what a row is of, as JSON."""
    if isinstance(item, Architecture):
        return item.to_json()
    return json.dumps(item.spec, separators=(",", ":"))


def rows_of(
    records: Sequence[tuple[int, list[str]]], quantity: str, sizes: Sizes, where: str
) -> Iterator[Row]:
    """Read the rows of a table.

    Args:
        records: line and cells of each; the first names the columns.
        quantity: one of `UNITS`.
        sizes: what the table's comments say.
        where: the file's name, for messages.

    Raises:
        InvalidTable: for the first row that is wrong.
    """
    (first, names), unit = records[0], UNITS[quantity]
    places = _places(names, unit, f"{where}, line {first}")
    for line, cells in records[1:]:
        here = f"{where}, line {line}"
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise InvalidTable(
                f"{here}: {len(cells)} cells under {len(names)} columns; a cell with commas or "
                'quotes must be quoted: "[""hilo"",128,...]"'
            )
        found = {name: cells[place] for name, place in places.items()}
        item = _item(found, sizes, here)
        yield Row(line, item, _figure(found[unit], unit, here))


def _places(names: Sequence[str], unit: str, where: str) -> dict[str, int]:
    """Return each needed column's place.

    Raises:
        InvalidTable: if one is missing or there twice; figures in another unit are told so.
    """
    spelt = [name.lower() for name in names]
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise InvalidTable(
            f"{where}: the cells are not separated by commas; save it as CSV with ',' between "
            "cells and '.' in numbers"
        )
    for name in (*COLUMNS, unit):
        if spelt.count(name) > 1:
            raise InvalidTable(f"{where}: two columns '{name}'; keep one")
        if name in spelt:
            continue
        if name != unit:
            raise InvalidTable(
                f"{where}: no column '{name}'; the first row must name the columns "
                f"{','.join((*COLUMNS, unit))}"
            )
        others = [given for given in names if given.lower() not in COLUMNS]
        raise InvalidTable(
            f"{where}: no column '{unit}' (there: {', '.join(others) or 'none'}); figures must be "
            f"in {unit}, in a column of that name"
        )
    return {name: spelt.index(name) for name in (*COLUMNS, unit)}


def _figure(cell: str, unit: str, where: str) -> float:
    """Return a figure.

    Raises:
        InvalidTable: if it is missing, has a unit of its own, or is not above 0 and finite.
    """
    if not cell:
        raise InvalidTable(f"{where}: {unit} is empty; fill it in, or delete the row")
    value = float(cell) if _NUMBER.fullmatch(cell) else None
    if value is not None and isfinite(value) and value > 0:
        return value
    if value is not None:
        raise InvalidTable(
            f"{where}: {unit} {cell} is not above 0 and finite; measure the row again"
        )
    if found := _LEADING.fullmatch(cell):
        raise InvalidTable(
            f"{where}: {unit} {cell!r} has a unit of its own; convert it to {unit} and write the "
            f"number alone (it may not be in '{found[2]}')"
        )
    raise InvalidTable(
        f"{where}: {unit} {cell[:40]!r} is not a number; write it like 3.25, measured"
    )


def _item(found: Mapping[str, str], sizes: Sizes, where: str) -> Item:
    """Return what a row is of.

    Raises:
        InvalidTable: if there is no such part or network.
    """
    kind = found["kind"]
    if kind not in FORMS:
        raise InvalidTable(f"{where}: no kind '{kind}'; {did_you_mean(kind, FORMS)}")
    channels, height, width = (_whole(found[name], name, where) for name in COLUMNS[2:])
    shape = channels, height, width
    try:
        if kind == "network":
            _must(shape == sizes.images, f"its input must be {_times(sizes.images)}, as in '#'")
            return _known(Architecture.from_json(found["spec"]), sizes)
        spec = frozen(json.loads(found["spec"]))
        _must(isinstance(spec, tuple), "it is not a list")
        _CHECKS[kind](spec, shape, sizes)
    except _UNFIT as error:
        reason = str(error).replace("\n", " ")[:300]
        raise InvalidTable(
            f"{where}: spec of kind '{kind}' is wrong ({reason}); write {FORMS[kind]}"
        ) from None
    return Part(kind, spec, shape)


def _whole(cell: str, name: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}(\.0)?", cell) or float(cell) < 1:
        raise InvalidTable(f"{where}: {name} {cell[:40]!r} is not a whole number above 0")
    return int(float(cell))


def frozen(value: Any) -> Any:
    """Turn JSON's lists into tuples."""
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _must(holds: bool, otherwise: str) -> None:
    """Raise a `ValueError` unless something holds."""
    if not holds:
        raise ValueError(otherwise)


def _known(arch: Architecture, sizes: Sizes) -> Architecture:
    """Return an architecture whose parts have the form of parts."""
    _must(arch.stem.kind in STEM_STRIDES, f"no stem '{arch.stem.kind}'")
    _must(bool(arch.stages), "no stages")
    for part in sizes.parts(arch):
        _CHECKS[part.kind](part.spec, part.shape, sizes)
    return arch


def _stem(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    kind, width, in_chans = spec
    _must(kind in STEM_STRIDES, f"no stem {kind!r}; {did_you_mean(str(kind), STEM_STRIDES)}")
    _wide(width)
    _must(shape == sizes.images == (in_chans, *shape[1:]), f"its input is {_times(sizes.images)}")


def _local(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    (dim,) = spec
    _inner(dim, shape, sizes)


def _mlp(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    dim, ratio = spec
    _inner(dim, shape, sizes)
    _must(type(ratio) in (int, float) and 0 < ratio < 1000, f"no ratio {ratio!r}")


def _merge(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    dim, out = spec
    _inner(dim, shape, sizes)
    _wide(out)


def _head(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    dim, classes = spec
    _inner(dim, shape, sizes)
    _must(classes == sizes.classes, f"{classes!r} classes, the table says {sizes.classes}")


def _mixer(spec: tuple[Any, ...], shape: tuple[int, ...], sizes: Sizes) -> None:
    name, dim, knobs = spec
    _inner(dim, shape, sizes)
    _must(isinstance(name, str), f"no mixer {name!r}")
    chosen = dict(knobs)
    kind = mixers.get(name)
    _must(
        tuple(sorted(chosen.items())) == knobs and set(chosen) == set(kind.knobs),
        f"its knobs are {', '.join(sorted(kind.knobs)) or 'none'}, sorted by name",
    )
    reason = kind.check(dim, **chosen)
    _must(reason is None, str(reason))


_CHECKS = {
    "stem": _stem,
    "local": _local,
    "mixer": _mixer,
    "mlp": _mlp,
    "merge": _merge,
    "head": _head,
}


def _wide(width: Any) -> None:
    _must(type(width) is int and 0 < width < 10**6, f"no width {width!r}")


def _inner(dim: Any, shape: tuple[int, ...], sizes: Sizes) -> None:
    """Check the input of a part behind the stem."""
    _wide(dim)
    _must(dim == shape[0], f"{dim} channels in it, {shape[0]} in the column")
    _must(max(shape[1:]) <= sizes.image, f"{_times(shape)} is larger than the image")


def distinct(rows: Sequence[Row], where: str) -> dict[Item, float]:
    """Return each item's figure.

    Raises:
        InvalidTable: if two rows of one item disagree.
    """
    seen: dict[Item, Row] = {}
    for row in rows:
        first = seen.setdefault(row.item, row)
        if first.value != row.value:
            raise InvalidTable(
                f"{where}, line {row.line}: {row.value:g}, but line {first.line} says "
                f"{first.value:g} for the same; keep one of them"
            )
    return {item: row.value for item, row in seen.items()}


def label(part: Part) -> str:
    """Return a part's short name: ``mixer-hilo-128x14x14``; its numbers and knobs are not told."""
    words = [part.kind, *(word for word in part.spec if isinstance(word, str))]
    return "-".join([*words, _times(part.shape)])
