"""How far a retraining has come, what it found, and what to type next."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixnas.jobs.retrain_settings import words
from mixnas.remote import given
from mixnas.report import exported_cells, quantised_rows, retrained_rows
from mixnas.run import Run
from mixnas.run import runs as runs_in

JOB, NAME = "retrain", "retrain"
EXPORT_JOB = "export"
SUMMARY, CURVE, CHECKPOINT = "summary.json", "metrics.csv", "checkpoint.pt"
MODEL = ("model.json", "model.safetensors")
EXPORTS = "export/exports.json"
PRODUCTS = (
    *MODEL,
    "metrics.json",
    CURVE,
    "figures/curves.png",
    "figures/confusion.png",
    "report.html",
    "export/report.html",
)
JUDGEMENT = ("top1", "standard_error", "images", "flops", "recipe", "epochs")
"""Of a summary, what is told of a retraining in a search's folder."""


def is_retraining(run: Run) -> bool:
    """Say whether `mixnas retrain` made a folder."""
    return run.settings.get("job") == JOB


def finished(run: Run) -> bool:
    """Say whether a retraining has been judged, and its weights are kept."""
    return all(run.file(name).is_file() for name in (SUMMARY, *MODEL))


def state(run: Run) -> str:
    """Return ``planned``, ``training`` or ``finished``."""
    if finished(run):
        return "finished"
    begun = any(run.file(name).is_file() for name in (CURVE, CHECKPOINT))
    return "training" if begun else "planned"


def progress(run: Run) -> str:
    """Say how many epochs of an unfinished training are on record.

    Raises:
        RunConflict: if its curve is damaged.
    """
    if finished(run) or not run.file(CURVE).is_file():
        return ""
    with run.reading(CURVE):
        curve = run.read(CURVE)
        if not len(curve):
            return ""
        last = curve.iloc[-1]
        steps = int(run.settings["found"]["recipe"]["steps"])
        epochs = float(last["epoch"]) * steps / float(last["step"])
        return (
            f"epoch {float(last['epoch']):.4g} of {epochs:.4g}, "
            f"step {int(last['step']):,} of {steps:,} on record"
        )


def exports(run: Run) -> dict[str, Any]:
    """Return the record of a retraining's exports, by form; empty if there are none.

    Raises:
        RunConflict: if it is damaged.
    """
    if not run.file(EXPORTS).is_file():
        return {}
    found = run.read(EXPORTS)
    with run.reading(EXPORTS):
        _ = [exported_cells(form, facts) for form, facts in found.items()]
        _ = dict(quantised_rows(found))
    return dict(found)


def described(run: Run) -> dict[str, Any]:
    """Return what a search's page says of a retraining in its folder.

    Returns:
        name, folder, state, progress, command (which goes on with it) and exports; of a finished
        one top1, standard_error, images, flops, recipe and epochs, else None in their place.

    Raises:
        RunConflict: if one of its files is damaged.
    """
    judged: dict[str, Any] = dict.fromkeys(JUDGEMENT)
    if finished(run):
        summary = _summary(run)
        judged = {key: summary[key] for key in JUDGEMENT}
    return {
        "name": run.name,
        "folder": str(run.path),
        "state": state(run),
        "progress": progress(run),
        "command": words(run),
        "exports": exports(run),
        **judged,
    }


def retrainings(run: Run) -> Iterator[Run]:
    """Yield the retrainings in a search's folder, the one named ``retrain`` first."""
    found = [kept for kept in runs_in(run.path) if is_retraining(kept)]
    yield from sorted(found, key=lambda kept: (kept.name != NAME, kept.name))


def next_step(search: Run, found: list[dict[str, Any]]) -> str:
    """Return the command that follows on a finished search, given its retrainings."""
    if not found:
        return shlex.join(["mixnas", "retrain", search.name, *where(search.path.parent)])
    best = next((one for one in found if one["state"] == "finished"), None)
    return found[0]["command"] if best is None else after(Run.open(best["folder"]))


def after(run: Run) -> str:
    """Return the command that follows on a finished retraining."""
    for facts in exports(run).values():
        return shlex.join(["mixnas", "predict", str(run.file(f"export/{facts['file']}")), "IMAGE"])
    return shlex.join(["mixnas", "export", *reference(run), "--to", "onnx"])


def reference(run: Run) -> list[str]:
    """Return the words by which a retraining is named: of a search, the search's name."""
    if run.settings.get("of") is None:
        return [run.name, *where(run.path.parent)]
    search = run.path.parent
    return [search.name, *where(search.parent)] if run.name == NAME else [str(run.path)]


def where(runs: Path) -> list[str]:
    """Return the option that names the folder of runs, where it is not the default."""
    return [] if runs == Path("runs") else ["--runs", given(runs)]


def findings(run: Run) -> dict[str, Any]:
    """Return what `mixnas show` tells of a finished retraining beside what it tells of any run.

    Raises:
        RunConflict: if one of its files is damaged.
    """
    return {**_summary(run), "next": after(run), "load": _snippet(run.path)}


def _summary(run: Run) -> dict[str, Any]:
    """Read what a finished retraining found; whatever can be read can be told."""
    summary = run.read(SUMMARY)
    with run.reading(SUMMARY):
        _ = dict(retrained_rows(summary)), float(summary["seconds"])
    return dict(summary)


def _snippet(folder: Path) -> str:
    """Return Python lines that load what was trained and ask it about an image."""
    return "\n".join(
        (
            "from PIL import Image",
            "from mixnas.exports import open_model",
            f"trained = open_model({str(folder)!r})",
            'image = trained.model.preprocessing(Image.open("IMAGE"))',
            "print(trained.model.labels[trained.network(image[None]).argmax()])",
        )
    )
