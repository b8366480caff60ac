"""What audits found, read off their folders inside a search's."""

import shlex
from collections.abc import Iterator
from typing import Any

from mixnas.errors import InvalidOption
from mixnas.run import Run
from mixnas.run import runs as runs_in

JOB = "audit"
SUMMARY = "summary.json"
PRODUCTS = ("audit.csv", "trainings.csv", "entrants.json", "figures/audit.png", "audit.html")
COMPARED = ("compare.csv", "trainings.csv", "entrants.json", "figures/compare.png", "report.html")
TOLD = ("sentence", "misplaced", "trusted", "ranked", "trained")
"""What is told of an audit beside the run that it judges."""
PAGE = "audit.html"
ASKED = "asked.json"
"""What the last call asked for beside the settings: options by name, as the command has them."""
COMPARISON = "compare"
RESERVED = (
    "figures", "replay", "picks", "explain", "equal", "export", "trainings", "retrain",
)  # fmt: skip
"""Folders that a run, or what lies in it, keeps for something else."""


def is_audit(run: Run) -> bool:
    """Say whether `mixnas audit` made a folder."""
    return run.settings.get("job") == JOB


def is_comparison(run: Run) -> bool:
    """Say whether `mixnas compare` made a folder."""
    return "job" not in run.settings and "winner" in run.settings and "data" not in run.settings


def made_in(run: Run) -> str | None:
    """Return what made a folder in a search's, ``audit`` or ``compare``; None for another run."""
    return JOB if is_audit(run) else COMPARISON if is_comparison(run) else None


def searches(run: Run, name: str, job: str) -> Run:
    """Return a run in whose folder a job may keep what it finds under a name.

    Raises:
        InvalidOption: if the run is itself an audit or a comparison, or the name is kept for
            something else.
    """
    if made := made_in(run):
        article = {JOB: "an audit", COMPARISON: "a comparison"}[made]
        whole = shlex.join(["mixnas", job, str(run.path.parent)])
        raise InvalidOption(
            f"'{run.name}' is {article} of the run '{run.path.absolute().parent.name}', not a "
            f"search; give the search: {whole}"
        )
    if name in RESERVED or name in {JOB, COMPARISON} - {job}:
        raise InvalidOption(
            f"--name {name}: a run keeps something else in a folder of that name; give another, "
            f"{job}-2 say"
        )
    return run


def command(kept: Run) -> str:
    """Return the shell command that goes on with an audit or a comparison."""
    job = made_in(kept) or JOB
    words = ["mixnas", job, str(kept.path.parent), "--epochs", str(kept.settings.get("epochs", 1))]
    words += [word for option in _asked(kept).items() for word in option]
    if job == JOB:
        words += ["--resolution", str(kept.settings.get("found", {}).get("resolution", ""))]
    return shlex.join([*words, *(["--name", kept.name] if kept.name != job else [])])


def _asked(kept: Run) -> dict[str, str]:
    """Return the options of the last call, as words; none for a folder of long ago."""
    told = kept.read(ASKED) if kept.file(ASKED).is_file() else {}
    if not isinstance(told, dict):
        raise kept.broken(ASKED)
    return {f"--{name}": str(value) for name, value in told.items() if value not in (None, "")}


def audited(kept: Run) -> dict[str, Any]:
    """Return what an audit (or a comparison) found: its ``summary.json``, folder and files.

    Raises:
        RunConflict: if it is not finished, or damaged.
    """
    names = COMPARED if is_comparison(kept) else PRODUCTS
    files = {name: str(kept.file(name)) for name in names if kept.file(name).is_file()}
    summary = kept.read(SUMMARY)
    if not isinstance(summary, dict) or "sentence" not in summary:
        raise kept.broken(SUMMARY)
    return {**summary, "folder": str(kept.path), "files": files}


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
            page = {"page": str(kept.file(PAGE))} if kept.file(PAGE).is_file() else {}
            yield {"name": kept.name, "folder": str(kept.path), **page, **found}
