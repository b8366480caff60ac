"""What a measuring found: a table of a device, and where a network's time goes."""

import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixnas.jobs.settings import duration
from mixnas.report import (
    explained_rows,
    figure_of,
    measured_rows,
    short_heads,
    short_rows,
    sum_cells,
    sum_heads,
)
from mixnas.screen.parts import grid, heading
from mixnas.terminal import rows

TYPICAL = 20.0
"""Milliseconds (millijoules) of a limit where no network was measured whole."""

SHARES_ARE_OF = (
    "shares are of the parts' sum; price: share of the {} over share of the FLOPs, so 2 is twice "
    "as dear as the network's mean"
)


def measured(summary: Mapping[str, Any]) -> RenderableType:
    """Render the summary of a measured table.

    Args:
        summary: what ``summary.json`` holds; `files` (label to path), `next` (the command that
            uses the table) and `again` are told where they are there.
    """
    where = summary["conditions"].get("device", "a device")
    seconds = sum(summary["seconds"].values())
    spent = {"time spent": duration(seconds)} if seconds else {}
    return Group(
        heading(f"{summary['run']}: {summary['quantity']} on {where}, measured"),
        rows(dict(measured_rows(summary)) | spent | dict(summary.get("files", {}))),
        Text(f"\nNext: {summary.get('next') or suggestion(summary)}"),
    )


def suggestion(summary: Mapping[str, Any]) -> str:
    """Return a search with this table, under a limit that half of the measured networks keep."""
    values = [point["measured"] for point in summary["points"]]
    value = statistics.median(values) if values else TYPICAL
    limit = figure_of(summary["quantity"], value).replace(" ", "")
    files = summary.get("files", {})
    folder = Path(files["table.csv"]).parent if "table.csv" in files else summary["run"]
    words = ["mixnas", "search", "--space", summary["space"], "--image", summary["image"]]
    words += ["--classes", summary["classes"], "--budget", f"{limit}@table:{folder}"]
    return shlex.join(map(str, words))


def explained(found: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.explain` returned; `files` are told where they are there."""
    what = "energy" if found["quantity"] == "energy" else "time"
    parts: list[RenderableType] = [
        heading(f"Where the {what} of {found.get('of', found['id'])} goes"),
        Text(f"{found['sentence']}."),
        rows(dict(explained_rows(found))),
        heading("By stage"),
        _sums(found, "stages", "stage"),
    ]
    if found["mixers"]:
        parts += [heading("By mixer"), _sums(found, "mixers", "mixer")]
    parts += [
        heading("By kind of part"),
        _sums(found, "kinds", "kind"),
        heading("Part by part"),
        _parts(found),
        Text(SHARES_ARE_OF.format(what)),
        rows(found.get("files", {})),
    ]
    return Group(*parts)


def _sums(found: Mapping[str, Any], key: str, first: str) -> Table:
    table = grid(*sum_heads(found, first), words=1)
    for row in found[key]:
        table.add_row(*map(Text, sum_cells(found, row)))
    return table


def _parts(found: Mapping[str, Any]) -> Table:
    table = grid(*short_heads(found), words=2)
    for row in short_rows(found):
        table.add_row(*map(Text, row))
    return table
