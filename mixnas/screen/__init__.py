"""What a command prints when it is done: tables for people, from a job's plain data."""

from mixnas.screen.known import count, mixers, spaces, zoo
from mixnas.screen.measured import explained, measured
from mixnas.screen.retrained import exported, predicted, retrained
from mixnas.screen.searched import compared, found, markdown, runs

__all__ = [
    "compared",
    "count",
    "explained",
    "exported",
    "found",
    "markdown",
    "measured",
    "mixers",
    "predicted",
    "retrained",
    "runs",
    "spaces",
    "zoo",
]
