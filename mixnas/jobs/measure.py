"""``mixnas measure``: how long a space's networks take on a device, part by part and whole."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixnas.cost.limit import MEASURED
from mixnas.cost.measured import Measured
from mixnas.errors import InvalidOption
from mixnas.jobs.explaining import explain_run
from mixnas.jobs.measure_space import conclude, measure_space, plan
from mixnas.jobs.measured_run import JOB
from mixnas.jobs.measuring import NETWORKS, Bench, Measuring, sized
from mixnas.jobs.parts_folder import write_parts
from mixnas.jobs.settings import Listener, Silent, among, at_least, pixels
from mixnas.remote import rooted
from mixnas.run import Run
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions


def measure(
    space: str | Path = "default",
    *,
    device: str = "auto",
    runtime: str = "eager",
    threads: int | None = None,
    batch: int = 1,
    precision: str = "fp32",
    cost: str = "latency",
    networks: int = NETWORKS,
    mixers: Iterable[str] = (),
    image: int | None = None,
    classes: int | None = None,
    table: str | Path | None = None,
    template: str | Path | None = None,
    explain: str | Path | Run | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    dry_run: bool = False,
    listener: Listener | None = None,
) -> Run | Path | dict[str, Any]:
    """Measure a space on a device, so that a search can keep a limit there.

    Every part of the space is timed alone, some networks whole; from both a predictor is fitted,
    which gives an interval. The same call goes on after a kill.

    Args:
        space: a shipped space's name or a TOML file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        runtime: ``eager``, ``compile`` or ``onnxruntime``.
        threads: on the CPU; the physical cores by default.
        batch: images at once.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        cost: ``latency``, or ``energy`` where the device can tell it.
        networks: how many networks are measured whole.
        mixers: narrow the space to these.
        image: side of the deployed image, the space's by default.
        classes: classes of the deployed network, the space's by default.
        table: a file of figures measured elsewhere: it is checked and calibrated, nothing is timed.
        template: a folder to write: a table to be filled in elsewhere, and an ONNX file a row.
        explain: a finished search: where its winner's time goes.
        name: the run's folder; by default made of space and conditions.
        runs: the folder of all runs.
        dry_run: stop after the plan, and return it.
        listener: is told how the job gets on.

    Returns:
        The run, whose ``table.csv`` and ``predictor.json`` a budget can name
        (``20ms@table:RUN``); the template's table; what explains a winner; or a dry run's plan.

    Raises:
        MixnasError: for whatever a user can mend.
    """
    among("cost", cost, MEASURED)
    at_least("networks", networks, 0)
    pixels("image", image)
    if classes is not None:
        at_least("classes", classes, 2)
    tasks = {"--from": table, "--template": template, "--explain": explain}
    _one_task(tasks, dry_run=dry_run, of_one_image=cost == "latency" and batch == 1)
    listener, folder = listener or Silent(), rooted(runs)
    if explain is not None:
        chosen = Conditions.of(device, runtime, threads=threads, batch=batch, precision=precision)
        return explain_run(explain, chosen, folder, listener)
    loaded = SearchSpace.load(space)
    loaded = loaded.only_mixers(tuple(mixers)) if tuple(mixers) else loaded
    loaded = sized(loaded, image, classes)
    if template is not None:
        return write_parts(Path(template), loaded, networks, 0, listener)
    if table is not None:
        return _imported(Path(table), loaded, cost, folder, name)
    chosen = Conditions.of(device, runtime, threads=threads, batch=batch, precision=precision)
    bench = Bench(loaded, chosen, cost, networks)
    if dry_run:
        path = folder / (name or bench.name)
        rows = plan(bench, path, Measuring(bench, None, listener))
        listener.plan(rows)
        return rows
    return measure_space(bench, folder, name, listener, told=True)


def _one_task(tasks: Mapping[str, object], *, dry_run: bool, of_one_image: bool) -> None:
    """Refuse tasks and options that exclude each other."""
    given = [option for option, value in tasks.items() if value is not None]
    if len(given) > 1:
        raise InvalidOption(f"{' and '.join(given)} given together; give one of them")
    if given and dry_run:
        raise InvalidOption(f"{given[0]} and --dry-run given together: only measuring has a plan")
    if given == ["--template"] and not of_one_image:
        raise InvalidOption(
            "--template: its files are of one image, and its table is one of latency; leave out "
            "--batch and --cost"
        )


def _name_of(path: Path, space: SearchSpace, cost: str) -> str:
    """Return the default name of the run of a table: a template's is known by its folder."""
    parent = path.resolve().parent.name
    return "-".join([cost, space.name, *([parent] if path.stem == "table" else []), path.stem])


def _imported(path: Path, space: SearchSpace, cost: str, runs: Path, name: str | None) -> Run:
    """Take over a table that was measured elsewhere."""
    measured = Measured.load(path)
    if measured.quantity != cost:
        raise InvalidOption(
            f"{path}: a table of {measured.quantity}; give --cost {measured.quantity}"
        )
    measured.check(space, str(path))
    settings = {
        "job": JOB,
        "space": space.name,
        "image": space.image,
        "classes": space.classes,
        "quantity": cost,
        "networks": len(measured.networks),
        "conditions": dict(measured.conditions),
        "inlined": space.to_dict(),
        "source": str(path),
    }
    with Run.create(runs, name or _name_of(path, space, cost), settings) as run:
        run.write("table.csv", measured.to_csv())
        conclude(run, measured, 0.0)
    return run
