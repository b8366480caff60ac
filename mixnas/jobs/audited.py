"""What audits found, read off their folders inside a search's."""

from collections.abc import Iterator
from typing import Any

from mixnas.run import Run
from mixnas.run import runs as runs_in

JOB = "audit"
SUMMARY = "summary.json"
PRODUCTS = ("audit.csv", "trainings.csv", "entrants.json", "figures/audit.png", "audit.html")
TOLD = ("sentence", "misplaced", "trusted", "ranked", "trained")
"""What is told of an audit beside the run that it judges."""


def is_audit(run: Run) -> bool:
    """Say whether `mixnas audit` made a folder."""
    return run.settings.get("job") == JOB


def audited(kept: Run) -> dict[str, Any]:
    """Return what an audit found: its ``summary.json``, its folder and its files.

    Raises:
        RunConflict: if it is not finished, or damaged.
    """
    files = {name: str(kept.file(name)) for name in PRODUCTS if kept.file(name).is_file()}
    return {**kept.read(SUMMARY), "folder": str(kept.path), "files": files}


def audits(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the audits in a run's folder that are done: name, folder, and what `TOLD` lists.

    Raises:
        RunConflict: if the summary of one is damaged.
    """
    for kept in runs_in(run.path):
        if is_audit(kept) and kept.file(SUMMARY).is_file():
            summary = kept.read(SUMMARY)
            if not isinstance(summary, dict) or not set(TOLD) <= summary.keys():
                raise kept.broken(SUMMARY)
            found = {name: summary[name] for name in TOLD}
            yield {"name": kept.name, "folder": str(kept.path), **found}
