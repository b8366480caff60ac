"""The last stage of ``mixnas sweep --retrain``: winners trained for good, the beaten stopped early.

One retraining after the other in this process, each a run in the folder of the search that found
its network. Who goes on is decided by `mixnas.jobs.halving`, from the retrainings' own curves; a
repeat after a kill reads the same curves, decides the same, and goes on.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixnas.errors import TrainingDiverged
from mixnas.jobs.halving import counts, rungs
from mixnas.jobs.problem import Problem
from mixnas.jobs.retrain_settings import Conditions, RetrainSettings
from mixnas.jobs.retraining import Task, carry_out, prepare, rehearse
from mixnas.jobs.settings import Listener, Silent, duration
from mixnas.jobs.sweep_races import DIVERGED, FOLDER, Races
from mixnas.jobs.sweep_settings import SweepSettings
from mixnas.run import Run
from mixnas.train.world import World

MEASURED = "retraining.json"
"""What the plan measured of retrainings, in the sweep's folder."""


@dataclass(frozen=True)
class Expected:
    """What retrainings take, measured on the dearest network of the sweep's spaces.

    Attributes:
        epoch_seconds: of one epoch, at most.
    """

    epoch_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": 1, "epoch_seconds": self.epoch_seconds}


def expected(asked: SweepSettings, trunks: Sequence[Problem], folder: Path) -> Expected:
    """Return what the plan measured, or measure it by a few steps.

    Args:
        asked: the sweep.
        trunks: the problem of each space's supernet.
        folder: the sweep's; is only read.

    Raises:
        MixnasError: if such a retraining cannot be done; nothing has been written.
    """
    if (folder / MEASURED).is_file():
        run = Run.open(folder)
        with run.reading(MEASURED):
            return Expected(float(run.read(MEASURED)["epoch_seconds"]))
    return Expected(max(_epoch_seconds(asked, trunk) for trunk in trunks))


def _epoch_seconds(asked: SweepSettings, trunk: Problem) -> float:
    """Time a retraining of the dearest network of a space: seconds of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        arch = Path(folder) / "arch.json"
        arch.write_text(trunk.feasible.greatest().to_json(), encoding="utf-8")
        settings = RetrainSettings(
            str(arch),
            data=asked.common.data,
            epochs=asked.retrain,
            resolution=asked.common.resolution,
        )
        task = _task(settings, asked, Path(folder), None, trunk.device.type)
        return rehearse(task)["step_seconds"] * task.per_epoch


def plan_row(asked: SweepSettings, measured: Expected) -> tuple[str, float]:
    """Return what the retrainings of a sweep will do, for people, and seconds at most."""
    epochs = asked.retrain or 0
    at = rungs(epochs, asked.scheduling)
    number = len(asked.seeds) * len(asked.spaces)
    training = counts(number, at)
    ends = [*at, epochs]
    spent = sum(
        many * (end - start) for many, start, end in zip(training, [0, *at], ends, strict=True)
    )
    seconds = len(asked.budgets) * spent * measured.epoch_seconds
    steps = ", ".join(f"{many} to epoch {end}" for many, end in zip(training, ends, strict=True))
    text = (
        f"winners of each budget: {steps}, fewer where searches agree; the test images once, "
        f"at the end; about {duration(seconds)} at most"
    )
    return text, seconds


def retrain_winners(sweep: Run, asked: SweepSettings, device: str, listener: Listener) -> None:
    """Do what a sweep's retrainings still lack; one that diverges counts as beaten by all others.

    Args:
        sweep: its run, whose finished searches' winners are retrained.
        asked: what it was asked.
        device: ``cpu`` or ``cuda``.
        listener: is told how they get on.

    Raises:
        KeyboardInterrupt: if it was asked to stop; what was done is kept.
        MixnasError: for whatever else a user can mend.
    """
    races, tasks = Races.of(sweep, asked), dict[str, Task]()
    races.check()
    while (wanted := races.next()) is not None:
        holder, epoch = wanted
        listener.note(f"retraining the winner of {holder} to epoch {epoch} of {races.epochs}")
        if holder not in tasks:
            tasks[holder] = _task(races.task(holder), asked, sweep.path, FOLDER, device)
        _train(tasks[holder], None if epoch == races.epochs else epoch, listener)
        before = set(races.stops())
        races.look(holder)
        for name, stop in races.stops().items():
            if name not in before:
                listener.note(f"{name}: {races.said(stop)}")


def _task(
    settings: RetrainSettings, asked: SweepSettings, runs: Path, name: str | None, device: str
) -> Task:
    settings.check()
    conditions = Conditions(device=asked.common.device)
    return prepare(settings, conditions, runs, name, World.alone(device), Silent(), processes=1)


def _train(task: Task, until: int | None, listener: Listener) -> None:
    """Train to an epoch or to the end; note a training that breaks off, so that it stays so."""
    try:
        carry_out(task, _Unplanned(listener), until)
    except TrainingDiverged as error:
        listener.note(str(error))
        with Run.open(task.root / task.name, lock=True) as run:
            run.mark(DIVERGED, reason=str(error))


class _Unplanned(Silent):
    """A listener that hears no plans: the sweep's own has been told.

    Args:
        listener: who hears the rest.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Hand it on."""
        self._listener.stage(name, total, done)

    def advance(self, by: int, **figures: float | str) -> None:
        """Hand it on."""
        self._listener.advance(by, **figures)

    def note(self, text: str) -> None:
        """Hand it on."""
        self._listener.note(text)

    def end(self) -> None:
        """Hand it on."""
        self._listener.end()
