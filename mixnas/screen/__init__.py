"""What a command prints when it is done: tables for people, from a job's plain data."""

from mixnas.screen.audit import audited
from mixnas.screen.known import count, mixers, spaces, zoo
from mixnas.screen.learnt import picked, replayed
from mixnas.screen.measured import explained, measured
from mixnas.screen.retrained import exported, predicted, retrained
from mixnas.screen.searched import compared, found, markdown, runs
from mixnas.screen.swept import swept

__all__ = [
    "audited",
    "compared",
    "count",
    "explained",
    "exported",
    "found",
    "markdown",
    "measured",
    "mixers",
    "picked",
    "predicted",
    "replayed",
    "retrained",
    "runs",
    "spaces",
    "swept",
    "zoo",
]
