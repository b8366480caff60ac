"""What an audit found, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mixnas.report import (
    REGION_HEADS,
    REGION_SHORT,
    audited_conditions,
    audited_notes,
    region_rows,
    winner_beats,
)
from mixnas.screen.parts import grid, heading
from mixnas.terminal import rows


def audited(summary: Mapping[str, Any]) -> RenderableType:
    """Render the summary of an audit: the verdict and what it rests on; the page tells the rest."""
    regions = grid(*REGION_HEADS, words=1)
    for row in region_rows(summary, REGION_SHORT):
        regions.add_row(*map(Text, row))
    return Group(
        heading(f"{summary['of']}: the supernet's ranking against trainings from scratch"),
        regions,
        rows(dict(winner_beats(summary))),
        Text(
            summary["misplaced"] if summary["axes"] else "Too few networks tell what is misplaced."
        ),
        rows(dict(audited_notes(summary))),
        rows(dict(audited_conditions(summary))),
        heading(summary["sentence"]),
        rows(summary["files"]),
    )
