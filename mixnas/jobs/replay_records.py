"""What a run keeps beside what its logs make again: its records, its weights, its logs' ends.

They are compared with the facts that the log of finalists has, with each other, and with the
stages that are marked as done. Nothing is computed by a network.
"""

import csv
import math
from collections.abc import Container, Iterator, Mapping
from io import StringIO
from itertools import zip_longest
from typing import Any, TypeAlias

import pandas

from mixnas.cost.feasible import Feasible
from mixnas.errors import RunConflict
from mixnas.jobs import attribution, reuse, verdicts
from mixnas.jobs.problem import PLAN, Plan
from mixnas.jobs.replayed import Counted, Replayed
from mixnas.run import Run, provenance

Claim: TypeAlias = tuple[str, Any, Any]
"""A place in a file, what stands there, what the log says."""

TOLERANCE = 1e-9
"""Relative difference of two figures that another machine's rounding explains."""
BEST = "best.safetensors"


def records(found: Replayed) -> Iterator[str]:
    """Yield the differences between the log's facts and what was asked, planned and trained."""
    if found.facts is None:
        return
    yield from (line for claim in _asked(found) for line in differing(*claim))
    for name, claims in ((PLAN, _planned), (reuse.RECORD, _trained)):
        try:
            yield from (line for claim in claims(found) for line in differing(*claim))
        except (RunConflict, TypeError, ValueError):
            there = found.run.file(name).is_file()
            yield f"{name}: {'cannot be read' if there else 'is not there'}"


def _asked(found: Replayed) -> Iterator[Claim]:
    """Yield what ``run.json`` says of the facts in the log."""
    facts, settings, full = found.facts, found.settings, found.full
    if facts is None:
        return
    yield "run.json, budget", list(settings.budget), facts.budget
    yield "run.json, data", settings.data, facts.data
    yield "run.json, space", full.name, facts.space
    yield "run.json, image", full.image, facts.image
    yield "run.json, classes", full.classes, facts.classes
    if settings.resolution is not None:
        yield "run.json, resolution", settings.resolution, facts.resolution
    match found.run.settings.get("found"):
        case {"labels": list(labels)}:
            yield "run.json, labels", len(labels), facts.labels


def _planned(found: Replayed) -> Iterator[Claim]:
    """Yield what ``plan.json`` says of the facts in the log.

    Raises:
        RunConflict: if it is missing or damaged.
    """
    if not (found.run.file(PLAN).is_file() or found.run.done("finalists")):
        return
    plan = Plan.of(found.run)
    for name in ("params", "steps", "lower", "upper"):
        yield f"{PLAN}, {name}", getattr(plan, name), getattr(found.facts, name)


def _trained(found: Replayed) -> Iterator[Claim]:
    """Yield what ``supernet.json`` says of the facts in the log.

    Raises:
        RunConflict: if it is damaged.
    """
    trained, facts = reuse.of(found.run), found.facts
    if trained is None or facts is None:
        return
    yield f"{reuse.RECORD}, limits", [str(limit) for limit in trained.limits], facts.trained_for
    yield f"{reuse.RECORD}, params", trained.params, facts.params
    yield f"{reuse.RECORD}, recipe, steps", dict(trained.recipe).get("steps"), facts.steps
    yield f"{reuse.RECORD}, source", trained.source, facts.source


def weights(run: Run) -> Iterator[str]:
    """Yield what is wrong with a run's weights: missing, or not those of which it keeps the SHA."""
    if run.done("finalists") and not run.file(BEST).is_file():
        yield f"{BEST}: is not there"
    file = run.file(reuse.WEIGHTS)
    if not file.is_file():
        if run.done("training"):
            yield f"{reuse.WEIGHTS}: is not there"
        return
    try:
        trained = reuse.of(run)
    except RunConflict:  # which `records` tells
        return
    if trained is not None and reuse.digest(file.read_bytes()) != trained.weights:
        yield f"{reuse.WEIGHTS}: not the weights whose SHA-256 {reuse.RECORD} has"


def ends(found: Replayed) -> Iterator[str]:
    """Yield what is wrong with the logs of stages that are done: a torn end, a round too many.

    Of a stage that goes on a last line may be torn by a kill: it is cut off when it goes on.
    """
    run = found.run
    logs = [(turn.log, turn.stage) for turn in found.turns]
    for log, stage in [*logs, (run.file(verdicts.LOG), "finalists")]:
        if run.done(stage) and log.is_file() and not log.read_bytes().endswith(b"\n"):
            yield f"{log.name}: its last line is torn"
    if run.done("finalists") and found.facts is not None and found.winner is None:
        yield f"{verdicts.LOG}: has no finalists"
    known = {log.name for log, _ in logs}
    for log in sorted(run.path.glob("log*.jsonl")):
        if log.name not in known and found.facts is not None:
            yield f"{log.name}: is of no round of this search"


def attributed(found: Replayed, counted: Counted) -> Iterator[str]:
    """Yield the differences between a run's attribution and what its trials make of it."""
    run = found.run
    feasible = Feasible(counted.space, found.limits, counted.tables)
    bases = attribution.base_rates(counted.space, feasible.rates().genes)
    told = reuse.plain(attribution.attributed(found.trials, counted.space, bases))
    yield from compared(run, attribution.FILE, told)
    rows = pandas.DataFrame(told["blocks"] + told["stages"], columns=list(attribution.COLUMNS))
    figures = set(attribution.COLUMNS) - {"block", "mixer", "told"}
    yield from tabled(run, attribution.TABLE, rows, figures)


def same_version(run: Run) -> bool:
    """Say whether this mixnas is the one that the run was made with."""
    now = provenance()
    match run.made:
        case {"git": commit, "versions": {"mixnas": version}}:
            return bool(commit == now["git"] and version == now["versions"].get("mixnas"))
    return False


def compared(run: Run, name: str, data: Any, out: Container[str] = ()) -> Iterator[str]:
    """Yield the differences between one of the run's files and what the logs make of it.

    Args:
        run: whose file.
        name: of the file, JSON.
        data: what the logs make of it.
        out: keys that no log has.
    """
    if not run.file(name).is_file():
        if run.done("finalists"):
            yield f"{name}: is not there"
        return
    try:
        was = run.read(name)
    except RunConflict:
        yield f"{name}: cannot be read"
        return
    if isinstance(was, Mapping):
        was = {key: value for key, value in was.items() if key not in out}
        data = {key: value for key, value in data.items() if key not in out}
    yield from differing(name, was, data)


def tabled(
    run: Run,
    name: str,
    rows: pandas.DataFrame,
    figures: Container[str],
    what: str = "rows",
) -> Iterator[str]:
    """Yield the differences between a table of the run and that of the logs, cell by cell.

    Args:
        run: whose table.
        name: of the file, CSV.
        rows: what the logs make of it.
        figures: columns of numbers that may be written in other ways: ``180.0`` for ``180``, as
            pandas does where one is lacking.
        what: stands in a row.
    """
    if not run.file(name).is_file():
        if run.done("finalists"):
            yield f"{name}: is not there"
        return
    try:
        text = run.file(name).read_text(encoding="utf-8")
        reader = csv.DictReader(StringIO(text))
        was = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error):
        yield f"{name}: cannot be read"
        return
    if was and not text.endswith("\n"):
        yield f"{name}, line {was.pop()[0]}: is torn"
    now = list(csv.DictReader(StringIO(rows.to_csv(index=False))))
    if len(was) != len(now):
        yield f"{name}: {len(was)} rows, {len(now)} {what} in the log"
    for (line, old), new in zip(was, now, strict=False):
        yield from _cells(f"{name}, line {line}", old, new, figures)


def _cells(
    where: str, was: Mapping[str, str], now: Mapping[str, str], figures: Container[str]
) -> Iterator[str]:
    """Yield the cells of a line that differ."""
    for name in dict.fromkeys([*was, *now]):
        old, new = was.get(name) or "", now.get(name) or ""
        if old != new and not (name in figures and _equal(old, new)):
            yield f"{where}, {name}: {old or 'nothing'} there, {new or 'nothing'} by the log"


def _equal(was: str, now: str) -> bool:
    try:
        return alike(float(was), float(now))
    except ValueError:
        return False


_ABSENT = object()


def differing(where: str, was: Any, now: Any) -> Iterator[str]:
    """Yield every difference between plain data, with its place; rounding is none."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            place = f"{where}, {key}"
            yield from differing(place, was.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(was, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip_longest(was, now, fillvalue=_ABSENT)):
            yield from differing(f"{where}, {index}", old, new)
    elif not alike(was, now):
        yield f"{where}: {_shown(was)} there, {_shown(now)} by the log"


def alike(was: Any, now: Any) -> bool:
    """Say whether two values are the same but for rounding."""
    figures = [isinstance(one, int | float) and not isinstance(one, bool) for one in (was, now)]
    if all(figures):
        both = math.isnan(was) and math.isnan(now)
        return both or math.isclose(was, now, rel_tol=TOLERANCE, abs_tol=1e-15)
    return bool(was == now) and type(was) is type(now)


def _shown(value: Any) -> str:
    text = "nothing" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
