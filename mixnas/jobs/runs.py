"""`mixnas runs`: the runs in a folder, and how far a run has come."""

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixnas.errors import InvalidOption, RunConflict, RunDamaged
from mixnas.jobs import measured_run, retrained
from mixnas.jobs.audited import made_in
from mixnas.jobs.measured_run import JOB
from mixnas.jobs.retrain_settings import words as retrain_command
from mixnas.jobs.settings import Settings
from mixnas.jobs.sweep_settings import JOB as SWEEP
from mixnas.jobs.sweep_settings import SUPERNET
from mixnas.remote import glimpse, rooted
from mixnas.run import Run, opened

STAGES = ("training", "search", "finalists")
SUMMARY, DAMAGED = "summary.json", "damaged"
LAST = {SWEEP: "sweep", SUPERNET: "training"}
"""The last stage of jobs that name no winner of their own."""
UNDER_WAY = {JOB: "measuring", SWEEP: "sweeping", SUPERNET: "training"}
"""What the state of an unfinished job is called, where its stages have no names."""


def runs(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """Describe each run of a folder, the latest first, those that cannot be opened last.

    Returns:
        For each: run (its name), job (``search``, ``measure``, ``retrain`` or ``export``),
        folder, made (ISO time) and age (seconds since), budget, data, space, state; of a finished
        search the winner's accuracy, flops and id; damage: what is wrong with the files of a run
        whose state is ``damaged`` (or ``unreadable``: of another format), and the cure, else None;
        and retrained: state, top1 and flops of the retraining that it is or that its folder holds,
        None if there is none. Of a run that cannot be opened nothing else is known: None.

    Raises:
        InvalidOption: if the folder is a file.
    """
    folder = rooted(folder)
    glimpse(folder)
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InvalidOption(f"runs {folder}: not a folder; give the folder of all runs")
    there, damaged = opened(folder)
    found = [_describe(run) for run in there]
    found.sort(key=lambda row: str(row["made"]), reverse=True)
    return found + [_unopened(path, error) for path, error in damaged.items()]


def _unopened(path: Path, error: RunConflict) -> dict[str, Any]:
    """Describe a folder whose ``run.json`` does not tell what the run is."""
    state = DAMAGED if isinstance(error, RunDamaged) else "unreadable"
    known = {"run": path.name, "folder": str(path), "state": state, "damage": str(error)}
    unknown = ("made", "age", "data", "space", "accuracy", "flops", "id", "retrained")
    return {"job": None, "budget": [], **dict.fromkeys(unknown), **known}


def _describe(run: Run) -> dict[str, Any]:
    winner, training = _winner(run), _retrained(run)
    stage, damage = _state(run)
    made = datetime.fromisoformat(run.made["made"])
    return {
        "run": run.name,
        "job": job(run),
        "folder": str(run.path),
        "made": run.made["made"],
        "age": max(0, round((datetime.now(UTC) - made).total_seconds())),
        "budget": _budget(run),
        "data": run.settings.get("data"),
        "space": run.settings.get("space") or ", ".join(run.settings.get("spaces", ())) or None,
        "state": stage,
        "damage": damage,
        "accuracy": winner.get("accuracy"),
        "flops": winner.get("flops") or (training or {}).get("flops"),
        "id": winner.get("id"),
        "retrained": training,
    }


def _budget(run: Run) -> list[str]:
    """Return a run's limits; of a sweep, the limits of each of its searches."""
    swept = [" and ".join(each) for each in run.settings.get("budgets", ())]
    return swept or list(run.settings.get("budget", ()))


def _state(run: Run) -> tuple[str, str | None]:
    """Return the state of a run, and what is wrong with its files, if anything."""
    try:
        told = state(run)
        if told == "finished":
            _check(run)
    except RunConflict as error:
        return DAMAGED, str(error)
    return told, None


def _check(run: Run) -> None:
    """Read what a finished run found.

    Raises:
        RunConflict: if it is damaged.
    """
    if job(run) == JOB:
        measured_run.shown(run)
    elif job(run) == retrained.EXPORT_JOB:
        retrained.exports(run)
    elif retrained.is_retraining(run):
        retrained.described(run)
    elif job(run) == SUPERNET:
        run.read("supernet.json")
    elif job(run) == SWEEP:
        if not isinstance(run.read(SUMMARY), dict):
            raise run.broken(SUMMARY)
    elif not isinstance(run.read(SUMMARY), dict) or not (made_in(run) or _winner(run)):
        raise run.broken(SUMMARY)


def _winner(run: Run) -> dict[str, Any]:
    """Return the winner's figures, none if there is no winner or its file is broken."""
    if job(run) != "search":
        return {}
    try:
        return dict(run.read(SUMMARY)["winner"]) if finished(run) else {}
    except (RunConflict, ValueError, KeyError, TypeError):
        return {}


def _retrained(run: Run) -> dict[str, Any] | None:
    """Return state, top1 and flops of the retraining that a run is or holds."""
    one = run if retrained.is_retraining(run) else next(retrained.retrainings(run), None)
    if one is None:
        return None
    try:
        told = retrained.described(one)
    except RunConflict:
        return {"state": "damaged", "top1": None, "flops": None}
    return {key: told[key] for key in ("state", "top1", "flops")}


def job(run: Run) -> str:
    """Return what made a run: ``search``, ``measure``, ``retrain``, ``export``."""
    return str(run.settings.get("job", "search"))


def finished(run: Run) -> bool:
    """Tell whether a run has what it was made for: a winner, a predictor, a judgement, forms."""
    if job(run) == JOB:
        return measured_run.finished(run)
    if job(run) in LAST:
        return run.done(LAST[job(run)])
    if job(run) == retrained.EXPORT_JOB:
        return run.file(retrained.EXPORTS).is_file()
    if retrained.is_retraining(run):
        return retrained.finished(run)
    return run.file(SUMMARY).is_file()


def state(run: Run) -> str:
    """Return ``finished``, or the stage that the run goes on with."""
    if retrained.is_retraining(run):
        return retrained.state(run)
    if finished(run):
        return "finished"
    if job(run) in UNDER_WAY:
        return UNDER_WAY[job(run)]
    done = [stage for stage in STAGES if run.done(stage)]
    if done:
        after = STAGES.index(done[-1]) + 1
        return STAGES[min(after, len(STAGES) - 1)]
    if run.file("log.jsonl").is_file():
        return "search"
    return "training" if run.file("supernet.csv").is_file() else "planned"


def progress(run: Run) -> str:
    """Say how far the current stage of an unfinished run has come."""
    if retrained.is_retraining(run):
        return retrained.progress(run)
    if job(run) == JOB:
        return measured_run.progress(run)
    stage = state(run)
    if stage == "sweeping":
        searches = [one for one in opened(run.path)[0] if job(one) == "search"]
        return f"{sum(map(finished, searches))} of its searches done"
    if stage == "search":
        told = sum('"tell"' in line for line in _lines(run.file("log.jsonl")))
        return f"{told} of {run.settings.get('trials')} architectures evaluated"
    if stage == "training" and (rows := list(_lines(run.file("supernet.csv")))[1:]):
        return f"step {rows[-1].split(',')[0]} on record"
    return ""


def command(run: Run) -> str:
    """Return the shell command that made a run, and that goes on with it."""
    if retrained.is_retraining(run):
        return retrain_command(run)
    if job(run) == JOB:
        return measured_run.command(run)
    if job(run) == retrained.EXPORT_JOB:
        return shlex.join(["mixnas", "export", str(run.settings.get("subject", "ARCH.json"))])
    if job(run) == SUPERNET:  # it is trained by its sweep
        return command(Run.open(run.path.parent))
    if job(run) == SWEEP:
        return shlex.join(["mixnas", "sweep", run.name, *retrained.where(run.path.parent)])
    words = ["mixnas", "search"]
    for option in fields(Settings):
        default = None if option.default is MISSING else option.default
        words += _words(option.name, run.settings.get(option.name), default)
    words += ["--name", run.name]
    return shlex.join([*words, *retrained.where(run.path.parent)])


def _words(name: str, value: Any, default: Any) -> Iterator[str]:
    if name == "budget":
        for limit in value or ():
            yield from ("--budget", str(limit))
    elif value and name == "mixers":
        yield from ("--mixers", ",".join(value))
    elif value is not None and value != (list(default) if isinstance(default, tuple) else default):
        yield from (f"--{name.replace('_', '-')}", str(value))


def _lines(path: Path) -> Iterator[str]:
    """Yield a file's whole lines: the last one may still be under way."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        yield from (line for line in lines if line.endswith("\n"))
