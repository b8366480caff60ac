"""Runs and comparisons as figures and pages: PNG and self-contained HTML.

Everything is read off a run's files, so a report can be made again at any time.
"""

from mixnas.report.comparison import (
    COMPARED,
    COMPARED_HEADS,
    compared_cells,
    compared_conditions,
    compared_figure,
    compared_html,
    compared_notes,
)
from mixnas.report.searched import (
    AXES,
    FRONT,
    HOW_TO_READ,
    PAGE,
    STAGE_HEADS,
    TRAINING,
    WINNER,
    figures,
    front_figure,
    html,
    latency,
    learnt,
    point_cells,
    stage_rows,
    trials_table,
    used,
    winner_rows,
)

__all__ = [
    "AXES",
    "COMPARED",
    "COMPARED_HEADS",
    "FRONT",
    "HOW_TO_READ",
    "PAGE",
    "STAGE_HEADS",
    "TRAINING",
    "WINNER",
    "compared_cells",
    "compared_conditions",
    "compared_figure",
    "compared_html",
    "compared_notes",
    "figures",
    "front_figure",
    "html",
    "latency",
    "learnt",
    "point_cells",
    "stage_rows",
    "trials_table",
    "used",
    "winner_rows",
]
