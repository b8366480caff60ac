"""``mixnas measure --explain``: what a winner's parts take is measured, where it has not been."""

from pathlib import Path
from typing import Any

from mixnas import report
from mixnas.arch import Architecture
from mixnas.cost.measured import Measured
from mixnas.cost.memory import PeakMemory
from mixnas.cost.predictor import Predictor
from mixnas.jobs.explain import explanation, subject_of
from mixnas.jobs.measured_run import PREDICTOR, finished
from mixnas.jobs.measuring import Bench, Measuring, kept, stopwatch
from mixnas.jobs.settings import Listener
from mixnas.jobs.subject import Subject
from mixnas.network import build
from mixnas.run import SETTINGS, Run
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions
from mixnas.timing.memory import peak_memory

FOLDER = "explain"


def explain_run(
    subject: str | Path | Run, conditions: Conditions, runs: Path, listener: Listener
) -> dict[str, Any]:
    """Measure a winner's parts and the whole, and say where its time goes.

    A finished table of the run's space under the same conditions serves; else the winner's own
    parts are measured. What was found is kept in the run's folder, with a picture and a page.

    Args:
        subject: a finished search, its name or folder, or a file that holds an architecture.
        conditions: on what, by what and how.
        runs: the folder of all runs.
        listener: is told how it gets on.

    Returns:
        What `mixnas.jobs.explain.explain` does, with `files` (label to path).

    Raises:
        MixnasError: for what a user can mend.
    """
    found, arch = subject_of(subject, runs)
    space = _space(found, arch)
    table, predictor = _table(Bench(space, conditions), arch, runs, listener)
    shape = (3, space.image, space.image)
    watch = stopwatch(conditions, table.conditions.get("reference_ms"))
    told = explanation(
        arch,
        table,
        predictor,
        whole=watch.time(build(arch, space.classes).eval(), shape).to_dict(),
        memory=PeakMemory(
            image=space.image,
            classes=space.classes,
            batch=conditions.batch,
            dtype=conditions.dtype,
        ),
        memory_measured=_measured_memory(arch, space, conditions),
    )
    told = {"of": found.label, **told}
    return told | {"files": _kept(found.run, told, conditions.name) if found.run else {}}


def _measured_memory(arch: Architecture, space: SearchSpace, conditions: Conditions) -> int | None:
    """Return what one inference takes of PyTorch's memory; ONNX Runtime does not tell."""
    if conditions.runtime == "onnxruntime":
        return None
    network = build(arch, space.classes).eval()
    return peak_memory(network, (3, space.image, space.image), conditions)


def _space(found: Subject, arch: Architecture) -> SearchSpace:
    """Return the space that a run searched, or that holds a file's architecture alone."""
    if found.run is None:
        return build(arch).space
    try:
        return SearchSpace.from_dict(found.run.settings["inlined"])
    except KeyError:
        raise found.run.broken(SETTINGS) from None


def _table(
    bench: Bench, arch: Architecture, runs: Path, listener: Listener
) -> tuple[Measured, Predictor | None]:
    """Return a finished table of the space, or measure the architecture's own parts."""
    if (runs / bench.name / SETTINGS).is_file():
        run = Run.open(runs / bench.name)
        table = kept(run) if finished(run) and run.settings == bench.settings() else None
        if table is not None:
            return table, Predictor.from_dict(run.read(PREDICTOR))
    small = Bench(bench.space.only(arch), bench.conditions, networks=0)
    measuring = Measuring(small, None, listener)
    measuring.measure_parts()
    return measuring.measured, None


def _kept(searched: Run, told: dict[str, Any], name: str) -> dict[str, str]:
    """Write what was found into the run's folder, a file for each device; return the files."""
    place = f"{FOLDER}/{name}"
    with Run.open(searched.path, lock=True) as run:
        facts = run.write(f"{place}.json", told)
        return {"explained": str(facts), "page": str(report.explained(run, place))}
