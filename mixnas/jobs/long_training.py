"""One training in its folder: steps, a row an epoch, checkpoints that a kill cannot break."""

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas
import torch
from torch import Tensor, nn

from mixnas.data import Data
from mixnas.data.splits import SplitName
from mixnas.errors import TrainingDiverged
from mixnas.jobs.settings import Listener
from mixnas.jobs.stopping import deferred
from mixnas.metrics import logits
from mixnas.run import Run
from mixnas.storage import UNREADABLE
from mixnas.train.alone import AloneTrainer
from mixnas.train.optimise import StepResult
from mixnas.train.world import World

CHECKPOINT = "checkpoint.pt"
CURVE = "metrics.csv"
COLUMNS = (
    "epoch", "step", "lr", "loss", "val_loss", "val_accuracy", "seconds", "images_per_second",
)  # fmt: skip
EVERY = 30.0
"""Seconds of training between checkpoints: what a kill can lose."""
JUDGED = 256
"""Images that are judged at once, by all processes together."""


@dataclass
class Epoch:
    """What the epoch at hand has summed up so far."""

    losses: float = 0.0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class LongTraining:
    """A training that writes a row of ``metrics.csv`` an epoch and keeps its state in its run.

    Attributes:
        trainer: at its first step.
        data: what it learns from.
        learnt: splits that are trained on.
        watched: splits that are judged after every epoch; none if all are trained on.
        per_epoch: steps in an epoch.
        augmentation: of the training images.
        workers: processes that decode files.
        run: its folder; None in any process but the first.
        world: its processes.
        listener: is told how it gets on.
        curves: takes a row of figures for TensorBoard; None for no such curves.
        task: what the training is; a checkpoint of another is refused.
    """

    trainer: AloneTrainer
    data: Data
    learnt: tuple[SplitName, ...]
    watched: tuple[SplitName, ...]
    per_epoch: int
    augmentation: Any
    workers: int
    run: Run
    world: World
    listener: Listener
    curves: Any
    task: Mapping[str, Any]
    rows: list[dict[str, float]] = field(default_factory=list)
    epoch: Epoch = field(default_factory=Epoch)
    before: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    kept: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long the training took so far, over all its sittings."""
        return self.before + time.perf_counter() - self.began

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one.

        Raises:
            RunConflict: if it is damaged, or of another training.
        """
        path = self.run.file(CHECKPOINT)
        kept = self.world.told(path.read_bytes() if self.world.main and path.exists() else None)
        if kept is None:
            return
        try:
            device = self.trainer.device
            state = torch.load(io.BytesIO(kept), map_location=device, weights_only=True)
            if state["task"] != dict(self.task):
                raise ValueError("of another training")
            self.trainer.restore(state["trainer"])
            self.rows, self.epoch = state["rows"], Epoch(**state["epoch"])
            self.before = state["seconds"]
        except UNREADABLE:
            raise self.run.broken(CHECKPOINT) from None
        self._draw()  # what stopped it may have come between the checkpoint and the curve
        self.listener.note(
            f"training goes on at step {self.trainer.step:,} of {self.trainer.recipe.steps:,}"
        )

    def go(self, until: int | None = None) -> None:
        """Train to the last step, or pause before it; the schedule is that of the whole training.

        Args:
            until: the step to pause after; the recipe's last by default.

        Raises:
            KeyboardInterrupt: if it was asked to stop; its state is kept first.
            MixnasError: if it diverged, ran out of memory, or lost a file or a process.
        """
        trainer, steps = self.trainer, self.trainer.recipe.steps
        self.listener.stage("training", steps if until is None else until, trainer.step)
        stream = self.data.train(
            batch=trainer.recipe.batch,
            seed=trainer.seed,
            start=trainer.step,
            workers=self.workers,
            augmentation=self.augmentation,
            shard=(self.world.rank, self.world.size),
            splits=self.learnt,
        )
        try:
            self._steps(trainer.run(stream, until))
        except TrainingDiverged as error:
            raise TrainingDiverged(
                f"{error}: repeat with --rate {trainer.recipe.rate / 2:.3g} under another --name; "
                f"the last good checkpoint is kept in {self.run.path}"
            ) from None
        self.keep()
        self.listener.end()

    def _steps(self, results: Iterator[StepResult]) -> None:
        """Follow the steps; stop between two of them, with everything kept."""
        trainer = self.trainer
        with deferred() as stop:
            mark = time.perf_counter()
            for result in results:
                self._add(result, time.perf_counter() - mark)
                if trainer.step % self.per_epoch == 0 or trainer.step == trainer.recipe.steps:
                    self._end_epoch(result)
                self._tell(result)
                if stop.asked or time.perf_counter() - self.kept > EVERY:
                    self.keep()
                stop.check()
                mark = time.perf_counter()

    def _add(self, result: StepResult, seconds: float) -> None:
        loss = result.losses.get("labels", math.nan)
        if result.skipped:
            self.listener.note(f"skipped {result.skipped}")
        else:
            self.epoch.losses += loss
            self.epoch.steps += 1
        self.epoch.seconds += seconds

    def _tell(self, result: StepResult) -> None:
        """Tell of a step that is whole; who is told may ask to stop."""
        figures = {"loss": result.losses.get("labels", math.nan)}
        if self.rows and not math.isnan(self.rows[-1]["val_accuracy"]):
            figures["val_accuracy"] = self.rows[-1]["val_accuracy"]
        try:
            self.listener.advance(1, **figures)
        except KeyboardInterrupt:
            self.keep()
            raise

    def _end_epoch(self, result: StepResult) -> None:
        """Judge the network on the watched images and add a row."""
        loss, accuracy = self._watch()
        epoch, done = self.epoch, max(1, self.epoch.steps)
        images = done * self.trainer.recipe.batch
        row = {
            "epoch": self.trainer.step / self.per_epoch,
            "step": self.trainer.step,
            "lr": result.rate,
            "loss": epoch.losses / done,
            "val_loss": loss,
            "val_accuracy": accuracy,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images / max(epoch.seconds, 1e-9), 1),
        }
        self.rows.append(row)
        self.epoch = Epoch()
        if self.curves is not None:
            for name in COLUMNS[2:]:
                self.curves.add_scalar(name, row[name], self.trainer.step)

    def _watch(self) -> tuple[float, float]:
        if not self.watched:
            return math.nan, math.nan
        found, labels = judged(self.trainer.judged, self.data, self.watched, self.world)
        loss = torch.nn.functional.cross_entropy(found, labels).item()
        return loss, (found.argmax(1) == labels).double().mean().item()

    def keep(self) -> None:
        """Write the state, whole or not at all, and the curve: in the first process."""
        if self.world.main:
            buffer = io.BytesIO()
            state = {
                "task": dict(self.task),
                "trainer": self.trainer.state(),
                "rows": self.rows,
                "epoch": vars(self.epoch),
                "seconds": self.seconds,
            }
            torch.save(state, buffer)
            self.run.write(CHECKPOINT, buffer.getvalue())
        self._draw()
        self.kept = time.perf_counter()

    def _draw(self) -> None:
        """Write the curve: in the first process."""
        if self.world.main:
            self.run.write(CURVE, pandas.DataFrame(self.rows, columns=list(COLUMNS)))


def judged(
    network: nn.Module, data: Data, splits: Sequence[SplitName], world: World
) -> tuple[Tensor, Tensor]:
    """Return the logits of whole splits and their labels, each image once, in every process."""
    world.share(network)
    batch = max(1, JUDGED // world.size)
    shard = (world.rank, world.size)
    classes = len(data.labels)
    batches = (data.batches(split, batch=batch, shard=shard) for split in splits)
    parts = [logits(network, part, classes=classes) for part in batches]
    found, labels = (torch.cat(list(tensors)) for tensors in zip(*parts, strict=True))
    return world.gather(found), world.gather(labels)
