"""The points of a front answer the report images, and their answers are kept.

``front.jsonl`` is an append-only log: a header, which says whose latency the trials were weighed
by if no limit asked for one, and a line for each network that answered: bit by bit whether an
image was right, its loss in single precision as it was computed, and what was predicted of it. A
judging that was killed goes on where it was, and the fronts can be told again without weights.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import Tensor, from_numpy

from mixnas.arch import Architecture
from mixnas.asktell import Trial
from mixnas.asktell.log import Line, Log, parse
from mixnas.cost.limit import column
from mixnas.cost.predictor import Predictor
from mixnas.errors import MixnasError
from mixnas.evaluate import Answers, SupernetEvaluator, answers
from mixnas.jobs import measured_run
from mixnas.jobs.devices import ELSEWHERE, tabled
from mixnas.jobs.settings import Listener
from mixnas.run import Run
from mixnas.run import runs as runs_in
from mixnas.space import SearchSpace

LOG = "front.jsonl"
FORMAT = 1

Batches = Sequence[tuple[Tensor, Tensor]]
Predicted = Mapping[str, Mapping[str, float]]
Table: TypeAlias = tuple[str, Predictor]


@dataclass(frozen=True)
class Judged:
    """What is known of a network that answered.

    Attributes:
        answers: to the report images.
        predicted: value, low and high end by the run's columns, in milliseconds or millijoules.
    """

    answers: Answers
    predicted: Predicted = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What the log holds.

    Attributes:
        judged: by the architecture's id.
        table: the cost that trials were weighed by though no limit asked for it, if any.
        values: of that cost, nanoseconds by the architecture's id.
    """

    judged: Mapping[str, Judged]
    table: str | None = None
    values: Mapping[str, int] = field(default_factory=dict)

    def weighed(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return trials with the table's cost among theirs, where it has one of them all."""
        known = list(trials)
        if self.table is None or any(trial.arch.id not in self.values for trial in known):
            return known
        return [
            replace(trial, costs={**trial.costs, self.table: self.values[trial.arch.id]})
            for trial in known
        ]


def at_hand(space: SearchSpace, runs: Path) -> Table | None:
    """Return a latency that was measured before, of a whole space: its cost and its predictor.

    Looked for among the runs of `mixnas measure` in a folder; one that was measured on this
    machine goes first.
    """
    found: dict[bool, Table] = {}
    for run in runs_in(runs):
        if run.settings.get("job") == measured_run.JOB and measured_run.finished(run):
            with suppress(MixnasError):  # of another space, another size or another quantity
                device = tabled(run.name, "latency", space, runs)
                cost = f"latency@{ELSEWHERE}{run.name}"
                found.setdefault(device.conditions is not None, (cost, device.predictor))
    return found.get(True) or found.get(False)


def begin(run: Run, trials: Iterable[Trial], table: Table | None) -> Record:
    """Write the header, unless it is there; return what the log holds.

    Args:
        run: keeps the log.
        trials: what was evaluated.
        table: a latency that no limit asked for, by which they are weighed all the same.

    Raises:
        RunConflict: if the log is damaged.
        StorageFull: if the disk is full.
    """
    log = Log(run.file(LOG))
    try:
        if not log.lines:
            values = {trial.arch.id: table[1](trial.arch) for trial in trials} if table else {}
            cost = table[0] if table else None
            log.append([{"format": FORMAT, "table": cost, "values": values}])
    finally:
        log.close()
    return read(run)


def judge(
    run: Run,
    wanted: Iterable[Architecture],
    evaluator: SupernetEvaluator,
    batches: Batches,
    predictors: Mapping[str, Predictor],
    listener: Listener,
) -> Record:
    """Let architectures answer the report images; those in the log have done so.

    Args:
        run: keeps the answers; `begin` has been called on it.
        wanted: the architectures.
        evaluator: prepares networks with fresh statistics.
        batches: the report images and their labels.
        predictors: what foretells each measured cost.
        listener: is told how it gets on.

    Raises:
        RunConflict: if the log is damaged.
        StorageFull: if the disk is full.
    """
    record = read(run)
    archs = {arch.id: arch for arch in wanted}
    lacking = [arch for key, arch in archs.items() if key not in record.judged]
    listener.stage("front", len(archs), len(archs) - len(lacking))
    log = Log(run.file(LOG))
    try:
        for arch in lacking:
            given = answers(evaluator.prepared(arch), batches)
            log.append([_line(arch, given, predictors)])
            listener.advance(1)
    finally:
        log.close()
    listener.end()
    return read(run)


def _line(arch: Architecture, given: Answers, predictors: Mapping[str, Predictor]) -> Line:
    right = np.packbits(given.right.numpy())
    losses = given.losses.numpy().astype("<f4")
    return {
        "judged": arch.id,
        "images": len(losses),
        "right": base64.b64encode(right.tobytes()).decode(),
        "losses": base64.b64encode(losses.tobytes()).decode(),
        "predicted": {column(cost): asdict(one.predict(arch)) for cost, one in predictors.items()},
    }


def read(run: Run) -> Record:
    """Return what a run's log holds; of a run without one, a record without a network.

    Raises:
        RunConflict: if the log is damaged.
    """
    lines, _ = parse(run.file(LOG))
    try:
        judged = {str(line["judged"]): _judged(line) for line in lines[1:]}
        nothing: Line = {"format": FORMAT, "table": None, "values": {}}
        first = lines[0] if lines else nothing
        if first["format"] != FORMAT:
            raise ValueError(f"format {first['format']!r}")
        values = {str(key): int(value) for key, value in first["values"].items()}
        return Record(judged, first["table"], values)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise run.broken(LOG) from None


def _judged(line: Line) -> Judged:
    """Read what `_line` wrote.

    Raises:
        KeyError, TypeError, ValueError: if it is something else.
    """
    images = line["images"]
    bits = np.frombuffer(base64.b64decode(line["right"], validate=True), dtype=np.uint8)
    losses = np.frombuffer(base64.b64decode(line["losses"], validate=True), dtype="<f4")
    if not len(losses) == images > 0 or len(bits) != -(-images // 8):
        raise ValueError("another number of images")
    right = np.unpackbits(bits, count=images).astype(bool)
    given = Answers(from_numpy(right), from_numpy(losses.astype(np.float64)))
    return Judged(given, line["predicted"])
