"""What a run of `mixnas measure` holds, how far it has come, and which command goes on with it."""

import shlex
from pathlib import Path
from typing import Any

from mixnas.remote import given as address
from mixnas.run import SETTINGS, Run

JOB = "measure"
TABLE, PREDICTOR, SUMMARY = "table.csv", "predictor.json", "summary.json"
PRODUCTS = (TABLE, PREDICTOR, SUMMARY, "figures/calibration.png", "report.html")
DONE = "measured"
"""The stage that marks a measuring as concluded."""


def finished(run: Run) -> bool:
    """Say whether a measuring has been concluded, and its products are there."""
    return run.done(DONE) and all(run.file(product).is_file() for product in PRODUCTS)


def progress(run: Run) -> str:
    """Say how many figures of an unfinished measuring are on record."""
    if not run.file(TABLE).is_file():
        return ""
    lines = run.file(TABLE).read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    return f"{max(0, len(rows) - 1)} figures on record"


def command(run: Run) -> str:
    """Return the shell command that made a run, and that goes on with it.

    Raises:
        RunConflict: if its settings are not those of a measuring.
    """
    settings = run.settings
    try:
        if "source" in settings:
            given = ["--from", str(settings["source"])]
        else:
            found = settings["conditions"]
            threads = "threads" if found["device"] == "cpu" else None
            chosen = ("device", "runtime", *filter(None, [threads]), "batch", "precision")
            given = [word for key in chosen for word in (f"--{key}", str(found[key]))]
        told = [f"--{key}={settings[key]}" for key in ("space", "image", "classes")]
        told += [f"--cost={settings['quantity']}", f"--networks={settings['networks']}"]
    except (KeyError, TypeError):
        raise run.broken(SETTINGS) from None
    words = ["mixnas", "measure", *told, *given, "--name", run.name]
    if run.path.parent != Path("runs"):
        words += ["--runs", address(run.path.parent)]
    return shlex.join(words)


def shown(run: Run) -> dict[str, Any]:
    """Return what ``mixnas measure`` and ``mixnas show`` tell of a measured table.

    Raises:
        RunConflict: if it has not been concluded.
    """
    summary = run.read(SUMMARY)
    wanted = {"conditions", "points", "quality", "seconds", "quantity", "space", "image", "classes"}
    if not isinstance(summary, dict) or not wanted <= summary.keys():
        raise run.broken(SUMMARY)
    files = {name: str(run.file(name)) for name in PRODUCTS if run.file(name).is_file()}
    return {**summary, "job": "measure", "files": files}
