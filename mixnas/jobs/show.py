"""`mixnas show RUN`: what a run found, or how far it has come."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixnas.errors import RunConflict
from mixnas.jobs import audited, measured_run, retrained
from mixnas.jobs.audited import audits, is_comparison, made_in
from mixnas.jobs.runs import command, finished, job, progress, state
from mixnas.jobs.sweep_settings import JOB as SWEEP
from mixnas.jobs.swept import swept
from mixnas.remote import fetch, is_address, rooted
from mixnas.report import ATTRIBUTED, FRONTS_FILE, rejudged
from mixnas.run import SETTINGS, Run
from mixnas.run import runs as runs_in

PRODUCTS = (
    "best.json",
    "best.safetensors",
    "front.json",
    "fronts.json",
    "trials.csv",
    "figures/front.png",
    "figures/fronts.png",
    "attribution.csv",
    "figures/attribution.png",
    "figures/training.png",
    "figures/winner.png",
    "report.html",
    "export/report.html",
)


def show(run: str | Path | Run, runs: str | Path = "runs") -> dict[str, Any]:
    """Return what a run found.

    Args:
        run: a run's name in `runs`, or the path of its folder.
        runs: the folder of runs.

    Returns:
        Of every run: run, job (``search``, ``measure``, ``retrain``, ``export``, ``audit`` or
        ``compare``), folder, state, settings, budget, command (which goes on with it), again (which
        shows it), files (the products that are there) and exports (the record of each form). Of an
        audit or a comparison: the whole of its ``summary.json``. Of an unfinished one:
        progress. Of a finished one: the whole of its ``summary.json``, load (Python that loads
        the winner, or what was trained) and next (the command that follows). Of a finished search:
        the winner's architecture, comparisons (name, sentence and folder of each that is done),
        audits (as `mixnas.jobs.audited.audits` says) and retrainings (as
        `mixnas.jobs.retrained.described` says).

    Raises:
        RunConflict: if there is no such run, or its files cannot be read.
    """
    found = run if isinstance(run, Run) else open_run(run, rooted(runs))
    made_by = made_in(found) or job(found)
    if made_by == SWEEP:
        return {"job": SWEEP, **swept(found), "command": command(found)}
    products = PRODUCTS if made_by == "search" else retrained.PRODUCTS
    common: dict[str, Any] = {
        "run": found.name,
        "job": made_by,
        "folder": str(found.path),
        "state": state(found),
        "settings": {k: v for k, v in found.settings.items() if not isinstance(v, Mapping)},
        "budget": list(found.settings.get("budget", ())),
        "command": audited.command(found) if made_in(found) else command(found),
        "again": _again(found),
        "files": {name: str(path) for name in products if (path := found.file(name)).is_file()},
        "exports": retrained.exports(found),
    }
    if not finished(found):
        return {**common, "progress": "" if made_in(found) else progress(found)}
    if made_in(found):
        return {**common, **audited.audited(found)}
    if made_by == retrained.JOB:
        return {**retrained.findings(found), **common}
    if made_by == measured_run.JOB:
        return {**common, **measured_run.shown(found)}
    if made_by == retrained.EXPORT_JOB:
        return {**common, "next": retrained.after(found)}
    try:
        comparisons = list(_comparisons(found))
        retrainings = [retrained.described(one) for one in retrained.retrainings(found)]
        return {
            **found.read("summary.json"),
            **common,
            **_winner(found),
            **_read(found, FRONTS_FILE, "fronts"),
            **_rejudged(found),
            **_read(found, ATTRIBUTED, "attribution"),
            "comparisons": comparisons,
            "audits": list(audits(found)),
            "retrainings": retrainings,
            "next": retrained.next_step(found, retrainings),
        }
    except (ValueError, KeyError, TypeError):
        raise RunConflict(
            f"run {found.path}: what it found is damaged; remove its summary.json and go on with: "
            f"{command(found)}"
        ) from None


def open_run(name: str | Path, folder: Path) -> Run:
    """Open a run by its name in the folder, or else by its path.

    Raises:
        RunConflict: if there is none.
    """
    if is_address(name):
        return Run.open(name)
    nameless = Path(name).name in ("", "..")  # what has no name of its own: ".", "..", "/"
    if not str(name) or (nameless and not (Path(name) / SETTINGS).is_file()):
        raise _nameless(str(name), folder)
    try:
        fetch(folder / name)
        if not (folder / name / SETTINGS).is_file() and (Path(name) / SETTINGS).is_file():
            return Run.open(Path(name).resolve() if nameless else Path(name))
        return Run.open(folder / name)
    except OSError as error:
        raise RunConflict(f"run '{str(name)[:60]}': cannot be opened ({error.strerror})") from None


def _nameless(given: str, folder: Path) -> RunConflict:
    """Return the error for what names no run by itself: nothing, or a folder like ``.``."""
    known = sorted(run.name for run in runs_in(folder))
    there = f"known there: {', '.join(known)}" if known else "there are none yet"
    fault = f"the folder {Path(given).resolve()} is no run's" if given else "the name is empty"
    return RunConflict(
        f"run '{given}': {fault}; give the name of a run in {folder} ({there}), or the path of a "
        "run's folder"
    )


def _comparisons(run: Run) -> Iterator[dict[str, str]]:
    """Yield the comparisons in a run's folder that are done."""
    for kept in runs_in(run.path):
        if is_comparison(kept) and kept.file("summary.json").is_file():
            summary = kept.read("summary.json")
            if "sentence" in summary:
                told = {"name": kept.name, "sentence": str(summary["sentence"])}
                yield told | {"folder": str(kept.path)}


def _again(run: Run) -> str:
    """Return the shell command that shows a run; one in a search's folder is named by its path."""
    inside = retrained.is_retraining(run) and run.settings.get("of") is not None
    inside = inside or made_in(run) is not None
    words = [str(run.path)] if inside else [run.name, *retrained.where(run.path.parent)]
    return shlex.join(["mixnas", "show", *words])


def _rejudged(run: Run) -> dict[str, Any]:
    """Return what a race cost beside its own images: those that workers judged for rivals."""
    again = rejudged(run)
    return {"rejudged": again} if again else {}


def _read(run: Run, file: str, key: str) -> dict[str, Any]:
    """Return what one of a run's files holds, under a key; a run of long ago may lack it."""
    return {key: run.read(file)} if run.file(file).is_file() else {}


def _winner(run: Run) -> dict[str, Any]:
    winner = run.read("summary.json")["winner"]
    return {
        "architecture": run.read("best.json"),
        "load": _snippet(run.path, winner["labels"]),
    }


def _snippet(folder: Path, classes: int) -> str:
    """Return Python lines that build the winner and load its weights."""
    return "\n".join(
        (
            "from pathlib import Path",
            "import mixnas",
            "from safetensors.torch import load_file",
            f"folder = Path({str(folder)!r})",
            'arch = mixnas.Architecture.from_json((folder / "best.json").read_text())',
            f"model = mixnas.build(arch, num_classes={classes})",
            'model.load_state_dict(load_file(folder / "best.safetensors"))',
            "model.eval()",
        )
    )
