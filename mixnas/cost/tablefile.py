"""The file of a measured table: CSV with comments; written, read, and refused with the line named.

A line's number is the one that an editor shows. Spreadsheets leave traces (a byte order mark,
``# image: 224,,,,``, a quoted comment), which are read as what they were.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixnas.arch import Architecture
from mixnas.cost.plausible import judge
from mixnas.cost.tablerows import COLUMNS, UNITS, Item, Sizes, distinct, rows_of, spec_of
from mixnas.errors import InvalidTable, did_you_mean
from mixnas.network import Part

FORMAT = 1
RESERVED = {"format", "quantity"}
"""Comments that are no conditions."""
LARGEST = 16 * 2**20
"""Bytes of a file at most; 204 parts and 60 networks take 100 kB."""
MOST = 100_000
"""Rows at most."""

_KEY = re.compile(r"[A-Za-z0-9_]+")


def write(
    quantity: str,
    conditions: Mapping[str, Any],
    rows: Sequence[tuple[Item, float | None]],
    files: Sequence[str] = (),
) -> str:
    """Return the text of a table.

    Args:
        quantity: one of `UNITS`.
        conditions: plain values, with ``image``, ``classes`` and perhaps ``in_chans``.
        rows: parts and networks, each with its figure; None leaves the cell empty.
        files: each row's file, for a table that is to be filled in.

    Raises:
        InvalidTable: if the quantity is unknown or a condition's name is not one word.
    """
    if quantity not in UNITS:
        raise InvalidTable(f"no quantity '{quantity}' of a table; {did_you_mean(quantity, UNITS)}")
    out = io.StringIO()
    for key, value in {"format": FORMAT, "quantity": quantity, **conditions}.items():
        if not _KEY.fullmatch(key) or conditions.keys() & RESERVED:
            raise InvalidTable(
                f"condition {key!r} of a table: its name must be one plain word, and none of "
                f"{', '.join(sorted(RESERVED))}"
            )
        out.write(f"# {key}: {_said(value)}\n")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([*COLUMNS, UNITS[quantity], *(["file"] if files else [])])
    whole = Sizes.of(conditions).images
    for number, (item, value) in enumerate(rows):
        kind, shape = (item.kind, item.shape) if isinstance(item, Part) else ("network", whole)
        figure = "" if value is None else repr(float(value))
        lines.writerow([kind, spec_of(item), *shape, figure, *files[number : number + 1]])
    return out.getvalue()


def _said(value: Any) -> str:
    """Return a condition's value as a comment holds it: JSON, or plain text where that is clear."""
    if not isinstance(value, str) or not value or not value.isprintable():
        return json.dumps(value)
    clear = value == value.strip(" ,;\"'") and _meant(value) == value
    return value if clear else json.dumps(value)


def _meant(text: str) -> Any:
    """Return what a comment's value means: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def text_of(path: Path) -> str:
    """Return the text of a table's file.

    Raises:
        InvalidTable: if it is not there, larger than any table, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InvalidTable(f"{path}: cannot be read ({error.strerror}); give a CSV file") from None
    if len(data) > LARGEST:
        raise InvalidTable(
            f"{path}: over {LARGEST // 2**20} MiB, more than the table of any space; give the "
            "table's CSV file"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidTable(f"{path}, line {line}: not UTF-8; save it as CSV UTF-8") from None


def read(
    text: str, where: str, flops: Callable[[Part], int] | None
) -> tuple[str, dict[str, Any], dict[Part, float], dict[Architecture, float]]:
    """Read and check a table.

    Args:
        text: the file's text.
        where: its name, for messages.
        flops: counts a part's multiply-adds, to find absurd figures; None looks for none.

    Returns:
        Quantity, conditions, parts and networks: the fields of `measured.Measured`.

    Raises:
        InvalidTable: for the first thing that is wrong; names the line and the cure.
    """
    conditions, records = _records(text, where)
    quantity = _quantity(conditions, where)
    sizes = Sizes.read(conditions, where)
    if not records:
        raise InvalidTable(f"{where}: no table in it; its first row must name the columns")
    rows = list(rows_of(records, quantity, sizes, where))
    found = distinct(rows, where)
    if flops is not None:
        judge(rows, sizes, flops, quantity, where, batch=conditions.get("batch", 1))
    parts = {item: value for item, value in found.items() if isinstance(item, Part)}
    networks = {item: value for item, value in found.items() if isinstance(item, Architecture)}
    return quantity, conditions, parts, networks


def _quantity(conditions: dict[str, Any], where: str) -> str:
    """Take out what is no condition: format and quantity."""
    found, quantity = conditions.pop("format", FORMAT), conditions.pop("quantity", "latency")
    if found != FORMAT:
        raise InvalidTable(f"{where}: a table of format {found!r}; this mixnas reads {FORMAT}")
    if quantity not in UNITS:
        hint = did_you_mean(str(quantity), UNITS)
        raise InvalidTable(f"{where}: no quantity {quantity!r} of a table; {hint}")
    return str(quantity)


def _records(text: str, where: str) -> tuple[dict[str, Any], list[tuple[int, list[str]]]]:
    """Split a text into what its comments say and its rows, each with its line."""
    conditions: dict[str, Any] = {}
    records: list[tuple[int, list[str]]] = []
    for line, cells in _lines(text.removeprefix("\ufeff"), where):
        if cells and cells[0].startswith("#"):
            key, colon, value = ",".join(cells)[1:].rstrip(",; ").partition(":")
            if colon and _KEY.fullmatch(key.strip()):
                conditions[key.strip()] = _meant(value.strip())
        elif any(cell.strip() for cell in cells):
            records.append((line, [cell.strip() for cell in cells]))
        if len(records) > MOST + 1:
            raise InvalidTable(f"{where}, line {line}: over {MOST:,} rows; give one space's table")
    return conditions, records


def _lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record's cells, with the line on which it begins."""
    reader = csv.reader(_commented(io.StringIO(text, newline="")), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidTable(
                f"{where}, line {line}: not CSV ({error}); quote cells as a spreadsheet does"
            ) from None
        yield line, cells


def _commented(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, a comment's as one quoted cell: its own quotes are none of CSV's."""
    for line in lines:
        if line.startswith("#"):
            yield '"' + line.rstrip("\r\n").replace('"', '""') + '"\n'
        else:
            yield line
