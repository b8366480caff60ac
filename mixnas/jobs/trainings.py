"""One training of a comparison, in a worker: the same recipe, data and seeds for every entrant.

A training is a pure function of its task. It keeps its state beside its result-to-be, so that one
that was killed goes on where it was and ends as if undisturbed, bit for bit on the CPU.
"""

import io
import time
from collections.abc import Iterator, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixnas import data as datasets
from mixnas.errors import TrainingDiverged
from mixnas.evaluate import answers
from mixnas.jobs.entrants import create
from mixnas.storage import UNREADABLE, write
from mixnas.train.alone import AloneTrainer
from mixnas.train.recipe import AloneRecipe

EVERY = 30.0
"""Seconds of training between checkpoints: what a kill can lose."""
JUDGED = 256
"""Images that are judged at once."""


@cache
def loaded(spec: str, seed: int, resolution: int) -> datasets.Data:
    """Open a data set, once in a process."""
    return datasets.load(spec, seed=seed, image=resolution)


def train(task: Mapping[str, Any], *, every: float = EVERY) -> dict[str, Any]:
    """Train an entrant from scratch and judge it on images that chose nothing.

    Args:
        task: plain data: `source` of the network, `seed` of its first weights and of the order of
            the images, `data` (specification, seed of the splits, side of the images), `recipe`,
            `device`, `state`, the path where the training keeps its state, and perhaps `split`,
            the images that judge: "report" by default.
        every: seconds between checkpoints.

    Returns:
        accuracy, loss, images, hits (a digit for each image, 1 where it was right), steps and
        seconds of training; or `reason`, why there is none of these (it diverged).

    Raises:
        DataError: if the data cannot be read.
        StorageFull: if a checkpoint cannot be written.
    """
    data = loaded(*task["data"])
    recipe = AloneRecipe(**task["recipe"])
    keeper = Keeper(task, trainer(task, data, recipe), every)
    stream = data.train(batch=recipe.batch, seed=task["seed"], start=keeper.trainer.step)
    try:
        for _ in keeper.trainer.run(stream):
            keeper.keep()
    except TrainingDiverged as error:
        return {"reason": str(error), "steps": keeper.trainer.step, "seconds": keeper.seconds}
    taken = {"steps": keeper.trainer.step, "seconds": keeper.seconds}
    split = task.get("split", "report")
    told = judge(keeper.trainer.network, data.batches(split, batch=JUDGED))
    if not isfinite(told["loss"]):
        return {"reason": f"its loss on new images is {told['loss']}", **taken}
    return told | taken


def trainer(task: Mapping[str, Any], data: datasets.Data, recipe: AloneRecipe) -> AloneTrainer:
    """Build a training at its first step: its first weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task["seed"])
        network = create(task["source"], classes=len(data.labels), image=data.image)
    network = network.to(memory_format=torch.channels_last).to(task["device"])
    return AloneTrainer(network, recipe, seed=task["seed"])


class Keeper:
    """Keeps a training's state in a file, now and then, and goes on from it."""

    def __init__(self, task: Mapping[str, Any], trainer: AloneTrainer, every: float) -> None:
        self.trainer = trainer
        self.path = Path(task["state"])
        self.task = {key: task[key] for key in ("source", "seed", "recipe", "data")}
        self.every = every
        self.before = 0.0
        if state := self._read():
            trainer.restore(state["trainer"])
            self.before = state["seconds"]
        self.began = self.kept = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the training took so far, over all its sittings."""
        return self.before + time.perf_counter() - self.began

    def _read(self) -> dict[str, Any]:
        """Return the state of this very task; nothing if there is none that can be read."""
        try:
            state = torch.load(self.path, map_location=self.trainer.device, weights_only=True)
            return state if state["task"] == self.task else {}
        except UNREADABLE:
            return {}

    def keep(self) -> None:
        """Write the state, whole or not at all, if the last one is old."""
        if time.perf_counter() - self.kept < self.every:
            return
        buffer = io.BytesIO()
        state = {"task": self.task, "trainer": self.trainer.state(), "seconds": self.seconds}
        torch.save(state, buffer)
        write(self.path, buffer.getvalue())
        self.kept = time.perf_counter()


def judge(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Classify images and return accuracy, loss, and for each image whether it was right."""
    answered = answers(network, batches)
    result = answered.score()
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "images": result.images,
        "hits": "".join(map(str, answered.right.int().tolist())),
    }
