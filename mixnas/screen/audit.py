"""What an audit found, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mixnas.report import (
    AXIS_HEADS,
    REGION_HEADS,
    VALUE_HEADS,
    audited_conditions,
    audited_notes,
    axis_cells,
    region_rows,
    value_cells,
    winner_beats,
)
from mixnas.screen.parts import grid, heading
from mixnas.terminal import rows


def audited(summary: Mapping[str, Any]) -> RenderableType:
    """Render the summary of an audit."""
    regions = grid(*REGION_HEADS, words=1)
    for row in region_rows(summary):
        regions.add_row(*map(Text, row))
    axes = grid(*AXIS_HEADS, words=1)
    for row in summary["axes"]:
        axes.add_row(*map(Text, axis_cells(row)))
    values = grid(*VALUE_HEADS, words=2)
    for row in summary["values"]:
        values.add_row(*map(Text, value_cells(row)))
    return Group(
        heading(f"{summary['of']}: the supernet's ranking against trainings from scratch"),
        regions,
        rows(dict(winner_beats(summary))),
        heading("What the supernet misplaces"),
        *((axes, values) if summary["values"] else (Text("too few networks to tell"),)),
        Text(summary["misplaced"]),
        rows(dict(audited_notes(summary))),
        rows(dict(audited_conditions(summary))),
        heading(summary["sentence"]),
        rows(summary["files"]),
    )
