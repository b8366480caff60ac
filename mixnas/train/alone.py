"""Train one network by labels: a discovered one, a published one, any classifier.

What is compared must be trained alike, so there is one loop and one recipe for all. It keeps no
moving average of the weights: over the few hundred steps of a comparison an average would mostly
remember the beginning, and how much would depend on the training's length.

A step is a pure function of the seed and its number: what a network draws at random while it
trains (dropout, drop path) comes from a generator seeded by both, and the process's own generator
is given back as it was. A resumed training therefore goes on bit for bit (on one CPU process),
whatever else has drawn random numbers meanwhile.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.errors import TrainingDiverged
from mixnas.train.optimise import Batch, Descent, Guard, State, StepResult, placed, precision
from mixnas.train.recipe import AloneRecipe


class AloneTrainer:
    """Trains a network by steps; `state` and `restore` carry it over a kill.

    Args:
        network: maps images ``(B, C, H, W)`` to logits ``(B, classes)``, on its device; while
            it trains it may return several such tensors (a head for distillation), of which
            each learns from the labels.
        recipe: how to train.
        seed: of what the network draws at random while it trains.
    """

    def __init__(self, network: nn.Module, recipe: AloneRecipe, seed: int = 0) -> None:
        self.network = network
        self.recipe = recipe
        self.seed = seed
        self.step = 0
        self.device = next(network.parameters()).device
        self.descent = Descent(network, recipe)
        self.guard = Guard(recipe.patience)

    def run(self, batches: Iterator[Batch], until: int | None = None) -> Iterator[StepResult]:
        """Train step after step and yield what each tells.

        Args:
            batches: the stream of training batches from the current step on.
            until: the step to stop before; the recipe's last by default.

        Raises:
            TrainingDiverged: when the loss or the gradient stays non-finite or exploded for the
                recipe's patience.
        """
        until = self.recipe.steps if until is None else until
        while self.step < until:
            yield self.train(*next(batches))

    def train(self, images: Tensor, labels: Tensor) -> StepResult:
        """Perform one step on one batch of images ``(B, C, H, W)`` and labels ``(B,)``."""
        images, labels = placed((images, labels), self.device)
        self.network.train()
        self.descent.clear()
        result = StepResult(self.step, self.descent.rate)
        before = [buffer.clone() for buffer in self.network.buffers()]
        if trouble := self._learn(result, images, labels):
            self._skip(result, trouble, before)
        else:
            self.guard.passed(result.losses["labels"])
            self.descent.move()
        self.step += 1
        self.descent.turn(self.step)
        return result

    def _learn(self, result: StepResult, images: Tensor, labels: Tensor) -> str | None:
        """Make the gradient, and say what is wrong with it or with the loss, if anything."""
        with _randomness(f"{self.seed}/{self.step}", self.device), precision(self.device):
            outputs = self.network(images)
        heads = [logits.float() for logits in (outputs if _several(outputs) else [outputs])]
        smoothing = self.recipe.smoothing
        losses = [F.cross_entropy(logits, labels, label_smoothing=smoothing) for logits in heads]
        loss = torch.stack(losses).mean()
        if trouble := self.guard.trouble(loss.item(), heads[0].shape[1]):
            return trouble
        loss.backward()
        norm = self.descent.clip()
        logits = torch.stack(heads).mean(0)
        result.losses["labels"] = loss.item()
        result.accuracy = (logits.argmax(1) == labels).float().mean().item()
        return None if math.isfinite(norm) else f"a gradient of {norm}"

    def _skip(self, result: StepResult, trouble: str, before: list[Tensor]) -> None:
        """Leave weights and statistics as they were; stop when it goes on."""
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
        result.skipped = f"step {self.step}: {type(self.network).__name__} gave {trouble}"
        if self.guard.failed():
            raise TrainingDiverged(
                f"{result.skipped}, {self.guard.bad} steps in a row; lower the learning rate of "
                f"{self.recipe.rate:g}"
            )

    def state(self) -> State:
        """Return everything that the next step depends on, as plain numbers and copied tensors."""
        return {
            "step": self.step,
            "bad": self.guard.bad,
            "usual": self.guard.usual,
            "network": deepcopy(self.network.state_dict()),
            "optimizer": deepcopy(self.descent.optimizer.state_dict()),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.step, self.guard.bad, self.guard.usual = state["step"], state["bad"], state["usual"]
        self.network.load_state_dict(state["network"])
        self.descent.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.descent.turn(self.step)


def _several(outputs: Tensor | tuple[Tensor, ...] | list[Tensor]) -> bool:
    return not isinstance(outputs, Tensor)


@contextmanager
def _randomness(seed: str, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, from which layers draw, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(Random(seed).getrandbits(63))
        yield
