"""A run of `mixnas measure`: measured whole, its predictor fitted, its page written."""

import time
from pathlib import Path
from typing import Any

from mixnas import report
from mixnas.cost.measured import Measured
from mixnas.cost.predictor import Predictor
from mixnas.jobs.measured_run import DONE, PREDICTOR, SUMMARY, finished
from mixnas.jobs.measuring import Bench, Measuring, kept
from mixnas.jobs.settings import Listener, duration
from mixnas.network import Part
from mixnas.run import Run, agree

EXTREMES = 8
"""Parts that a summary names, of the fastest and of the slowest."""


def measure_space(
    bench: Bench, runs: Path, name: str | None, listener: Listener, *, told: bool = False
) -> Run:
    """Measure a space under some conditions, or go on with what has been measured.

    Args:
        bench: what to measure.
        runs: the folder of all runs.
        name: the run's own folder, by default made of space and conditions.
        listener: is told how it gets on.
        told: whether the listener hears the plan.

    Raises:
        RunConflict: if the run was made under other conditions; they are named.
        TooNoisy: if the machine is too busy; what was measured is kept.
        InvalidOption: if the device cannot tell the quantity.
    """
    name = name or bench.name
    agree(runs, name, bench.settings())
    with Run.create(runs, name, bench.settings()) as run:
        if finished(run):
            return run
        began = time.perf_counter()
        measuring = Measuring(bench, kept(run), listener)
        if told:
            listener.plan(plan(bench, runs / name, measuring))
        else:
            listener.note(f"measuring {bench.quantity} on {bench.conditions.name}, in {run.path}")
        measuring.carry_out(run)
        conclude(run, measuring.measured, time.perf_counter() - began)
    return run


def plan(bench: Bench, path: Path, measuring: Measuring) -> dict[str, str]:
    """Measure a part and a network, and return what the rest will take, for people.

    Args:
        bench: what is measured.
        path: the run's folder.
        measuring: what has been measured already.
    """
    parts, networks = measuring.lacking
    done = len(measuring.parts) + len(measuring.networks)
    seconds = measuring.rehearse()
    conditions = bench.conditions
    threads = f", {conditions.threads} threads" if conditions.device == "cpu" else ""
    return {
        "run": str(path),
        "space": f"{bench.space.name}, at {bench.space.image} px, {bench.space.classes} classes",
        "device": f"{conditions.device}: {conditions.to_dict()['processor']}{threads}",
        "runtime": f"{conditions.runtime}, {conditions.precision}, batch {conditions.batch}",
        "to measure": f"{bench.quantity} of {len(parts)} parts and {len(networks)} whole networks"
        + (f"; {done} figures are there already" if done else ""),
        "time": f"about {duration(seconds)} on a quiet machine",
    }


def conclude(run: Run, measured: Measured, seconds: float) -> None:
    """Fit the predictor, and write it with a summary, a picture and a page."""
    predictor = Predictor.fit(measured)
    run.write(PREDICTOR, predictor.to_dict())
    run.write(SUMMARY, summary(run, measured, predictor, seconds))
    report.calibration(run)
    report.measured_html(run)
    run.mark(DONE, seconds=seconds)


def summary(run: Run, measured: Measured, predictor: Predictor, seconds: float) -> dict[str, Any]:
    """Return what was found, as plain data."""
    parts = sorted(measured.parts.items(), key=lambda entry: entry[1])
    return {
        "format": 1,
        "run": run.name,
        "space": run.settings["space"],
        "image": measured.conditions["image"],
        "classes": measured.conditions["classes"],
        "quantity": measured.quantity,
        "conditions": dict(measured.conditions),
        "parts": len(measured.parts),
        "networks": len(measured.networks),
        "reference_ms": measured.conditions.get("reference_ms"),
        "calibrated": predictor.calibrated,
        "quality": dict(predictor.quality),
        "points": _points(predictor),
        "fastest": [_named(part, value) for part, value in parts[:EXTREMES]],
        "slowest": [_named(part, value) for part, value in parts[: -EXTREMES - 1 : -1]],
        "seconds": {"measuring": seconds},
    }


def _points(predictor: Predictor) -> list[dict[str, Any]]:
    """Return each measured network beside what is predicted without having seen it."""
    return [
        {
            "id": one.arch.id,
            "stem": one.arch.stem.kind,
            "predicted": one.predicted.value,
            "low": one.predicted.low,
            "high": one.predicted.high,
            "measured": one.measured,
        }
        for one in predictor.held_out()
    ]


def _named(part: Part, value: float) -> dict[str, Any]:
    return {"kind": part.kind, "spec": list(part.spec), "shape": list(part.shape), "value": value}
