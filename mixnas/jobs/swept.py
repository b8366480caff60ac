"""What a sweep has found so far: a row for each search, and one front over all of them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from mixnas.errors import RunConflict
from mixnas.jobs import runs as runs_module
from mixnas.jobs import status as statuses
from mixnas.jobs.settings import Settings
from mixnas.jobs.sweep_races import Races
from mixnas.jobs.sweep_settings import JOB, SUPERNET, SweepSettings, named
from mixnas.run import SETTINGS, Run
from mixnas.run import runs as runs_in

TABLE, FRONT, SUMMARY = "sweep.csv", "front.json", "summary.json"
PRODUCTS = (TABLE, FRONT, "figures/sweep.png", "report.html")
MEASURED = ("latency_ms", "energy_mj", "memory_mb")


def is_sweep(run: Run) -> bool:
    """Say whether `mixnas sweep` made a folder."""
    return run.settings.get("job") == JOB


def collect(run: Run, names: Sequence[str], failed: Mapping[str, str]) -> None:
    """Write a sweep's table, front, figure, page and summary.

    Args:
        run: the sweep.
        names: of its searches' folders, in the order of the table.
        failed: what went wrong, by name.
    """
    from mixnas import report

    rows = table(run, names, failed)
    points = front(run, names)
    run.write(TABLE, pandas.DataFrame(rows))
    run.write(FRONT, points)
    run.write(SUMMARY, {"format": 1, "rows": rows, "front": points, "supernets": supernets(run)})
    report.swept(run, rows, points)


def table(run: Run, names: Iterable[str], failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each search: what it was asked, how far it is, what it found.

    Where winners are retrained, also `mixnas.jobs.sweep_races.COLUMNS`.

    Raises:
        RunConflict: if a file of a search or a retraining is damaged.
    """
    asked = settings_of(run)
    searches = {named(settings): settings for settings in asked.searches()}
    rows = [_row(run, name, searches[name], failed.get(name)) for name in names]
    if asked.retrain is None:
        return rows
    races = Races.of(run, asked)
    return [{**row, **races.told(row["search"])} for row in rows]


def _row(sweep: Run, name: str, asked: Settings, failed: str | None) -> dict[str, Any]:
    settings, found = asked.to_dict(), {}
    state, told = "waiting", ""
    if (sweep.path / name / SETTINGS).is_file():
        run = Run.open(sweep.path / name)
        settings = run.settings
        state, told = runs_module.state(run), runs_module.progress(run)
        if state == "finished":
            with run.reading("summary.json"):
                found = dict(run.read("summary.json")["winner"])
    winner = {key: found.get(key) for key in ("accuracy", "standard_error", "flops", "params")}
    measured = {
        key: value.get("median") if isinstance(value, Mapping) else value
        for key, value in found.items()
        if key.startswith(MEASURED)
    }
    return {
        "search": name,
        "space": Path(str(settings.get("space", ""))).stem,
        "budget": " and ".join(settings.get("budget", ())),
        "seed": settings.get("seed"),
        "state": "failed" if failed else state,
        "progress": failed or told,
        **winner,
        **measured,
        "id": found.get("id"),
        "winner": found.get("description"),
    }


def front(run: Run, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the architectures that none of any search beats in loss and FLOPs, cheapest first.

    Losses are those on the ranking images, by the supernet's weights: of one space they can be
    compared; of two spaces, two supernets stand behind them.
    """
    points: dict[str, dict[str, Any]] = {}
    for name in names:
        if not (run.path / name / FRONT).is_file():
            continue
        search = Run.open(run.path / name)
        with search.reading(FRONT):
            for point in list(search.read(FRONT)):
                kept = {key: point[key] for key in ("id", "loss", "accuracy", "flops", "params")}
                points.setdefault(point["id"], {"search": name, **kept, "arch": point["arch"]})
    chosen: list[dict[str, Any]] = []
    for point in sorted(points.values(), key=lambda each: (each["flops"], each["loss"])):
        if not chosen or point["loss"] < chosen[-1]["loss"]:
            chosen.append(point)
    return chosen


def supernets(run: Run) -> list[dict[str, Any]]:
    """Return the supernets of a sweep: name, what each was trained for, and how far it is."""
    found = []
    for each in runs_in(run.path):
        if each.settings.get("job") == SUPERNET:
            stages = each.stages
            found.append(
                {
                    "run": each.name,
                    "budget": list(each.settings.get("budget", ())),
                    "trained": "training" in stages,
                    "seconds": stages.get("training", {}).get("seconds"),
                }
            )
    return found


def swept(run: Run) -> dict[str, Any]:
    """Return what a sweep has found so far, finished or not.

    Returns:
        run, folder, state (``finished``, ``working``, ``stopped``), rows (as in ``sweep.csv``),
        front (of what is finished), supernets, status (of the process at work, if it tells), and
        again (the command that goes on, if it was stopped).

    Raises:
        RunConflict: if the run is no sweep, or a file of it or of its searches is damaged.
    """
    if not is_sweep(run):
        raise RunConflict(
            f"run '{run.name}' is no sweep; see the sweeps by: mixnas runs, and this by: mixnas "
            f"show {run.name}"
        )
    names = searches(run)
    status = statuses.read(run)
    alive = status is not None and status.alive(time.time())
    failed = {}
    if run.file(SUMMARY).is_file() and not alive:
        with run.reading(SUMMARY):
            rows = run.read(SUMMARY)["rows"]
            failed = {row["search"]: row["progress"] for row in rows if row["state"] == "failed"}
    done = run.done("sweep")
    return {
        "run": run.name,
        "folder": str(run.path),
        "state": "finished" if done else "working" if alive else "stopped",
        "again": None if done or alive else runs_module.command(run),
        "rows": table(run, names, failed),
        "front": front(run, names),
        "supernets": supernets(run),
        "status": status.to_dict() if status and alive else None,
    }


def searches(run: Run) -> list[str]:
    """Return the folders of a sweep's searches, in the order of its table."""
    return [named(settings) for settings in settings_of(run).searches()]


def settings_of(run: Run) -> SweepSettings:
    """Return what a sweep was asked.

    Raises:
        RunConflict: if that cannot be read.
    """
    with run.reading(SETTINGS):
        return SweepSettings.of(run.settings)
