"""Train one network by labels: a discovered one, a published one, any classifier.

What is compared must be trained alike, so there is one loop and one recipe for all. By default it
keeps no moving average of the weights: over the few hundred steps of a comparison an average
would mostly remember the beginning, and how much would depend on the training's length.

A step is a pure function of the seed, its number and the process's rank: what a network draws at
random while it trains (dropout, drop path) and how images are mixed come from generators seeded
by these, and the process's own generators are given back as they were. A resumed training
therefore goes on bit for bit (on one CPU process), whatever else has drawn random numbers
meanwhile.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from random import Random

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixnas.errors import DataError, InvalidOption, TrainingDiverged
from mixnas.train.execution import Execution
from mixnas.train.mixing import Mixing
from mixnas.train.objective import Objective
from mixnas.train.optimise import Batch, Descent, Guard, State, StepResult, placed, precise
from mixnas.train.recipe import AloneRecipe
from mixnas.train.teacher import check
from mixnas.train.world import World, local


class AloneTrainer:
    """Trains a network by steps; `state` and `restore` carry it over a kill.

    Args:
        network: maps images ``(B, C, H, W)`` to logits ``(B, classes)``, on its device; while
            it trains it may return several such tensors: of two heads, the second learns from
            the teacher, or without one from the labels as the first does.
        recipe: how to train.
        seed: of what is drawn at random while it trains.
        execution: how steps are computed.
        world: the processes that train together, this one alone by default; each gives `train`
            its own share of the batch.
        teacher: maps the same images to logits of the same classes, on the same device.

    Raises:
        InvalidOption: if network, recipe, execution and teacher do not fit together.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: AloneRecipe,
        seed: int = 0,
        *,
        execution: Execution | None = None,
        world: World | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.seed = seed
        self.step = 0
        self.device = next(network.parameters()).device
        self.execution = execution or Execution()
        self.world = world or World.alone(self.device)
        self.teacher = _fitting(teacher, recipe)
        self.mixing = _mixing(network, recipe)
        self.objective = Objective(recipe)
        self.execution.prepare(network, self.device)
        self.world.share(network)
        self.descent = Descent(network, recipe)
        self.scaler = self.execution.scaler(self.device)
        self.guard = Guard(recipe.patience)
        self.ema = _average(network, recipe.ema)
        self.parallel = self.world.parallel(network)
        self.runner = self.execution.compiled(self.parallel)

    @property
    def judged(self) -> nn.Module:
        """The network to judge and to keep: the averaged one, if the recipe wants an average."""
        return self.network if self.ema is None else self.ema.module

    def run(self, batches: Iterator[Batch], until: int | None = None) -> Iterator[StepResult]:
        """Train step after step and yield what each tells.

        Args:
            batches: the stream of training batches from the current step on.
            until: the step to stop before; the recipe's last by default.

        Raises:
            TrainingDiverged: when the loss or the gradient stays non-finite or exploded for the
                recipe's patience.
            OutOfMemory: when a batch does not fit.
            DataError: when a label is none of the network's classes.
            WorkerLost: when another process is gone.
        """
        until = self.recipe.steps if until is None else until
        while self.step < until:
            yield self.train(*next(batches))

    def train(self, images: Tensor, labels: Tensor) -> StepResult:
        """Perform one step on this process's images ``(B, C, H, W)`` and labels ``(B,)``."""
        span = (int(labels.min()), int(labels.max()))  # before they leave the CPU
        with self.execution.watched(f"step {self.step}", len(images)), self.world.watched():
            return self._train(images, labels, span)

    def _train(self, images: Tensor, labels: Tensor, span: tuple[int, int]) -> StepResult:
        images, labels = placed((images, labels), self.device, self.execution.channels_last)
        self._wake()
        self.descent.clear()
        result = StepResult(self.step, self.descent.rate)
        with _kept(self.network) as put_back:
            if trouble := self._learn(result, images, labels, span):
                put_back()
                self._skip(result, trouble)
            else:
                self.guard.passed(result.losses["labels"])
                self._move()
        self.step += 1
        self.descent.turn(self.step)
        return result

    def _wake(self) -> None:
        """Let the network train, but for norms that are frozen."""
        self.network.train()
        if self.recipe.frozen_norms:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _learn(
        self, result: StepResult, images: Tensor, labels: Tensor, span: tuple[int, int]
    ) -> str | None:
        """Make the gradient, and say what is wrong with it or with the loss, if anything."""
        rank = f"/{self.world.rank}" if self.world.rank else ""
        at = f"{self.seed}/{self.step}{rank}"
        targets = labels
        if self.mixing is not None:
            _check(*span, self.mixing.classes)
            images, targets = self.mixing(images, labels, f"{at}/mix")
        with _randomness(at, self.device):
            loss, accuracy, classes = self._gradient(images, labels, targets, span)
        self.scaler.unscale_(self.descent.optimizer)
        loss, accuracy = self.world.means([loss, accuracy])
        if trouble := self.guard.trouble(loss, classes):
            return trouble
        norm = self.descent.clip()
        result.losses["labels"] = loss
        result.accuracy = accuracy
        return None if math.isfinite(norm) else f"a gradient of {norm}"

    def _gradient(
        self, images: Tensor, labels: Tensor, targets: Tensor, span: tuple[int, int]
    ) -> tuple[float, float, int]:
        """Add up the gradient part by part; return loss, accuracy and number of classes."""
        count = len(images)
        parts = self._parts(images, labels, targets)
        total, right, classes = 0.0, 0.0, 0
        for number, (pictures, truth, wanted) in enumerate(parts, 1):
            with local(self.parallel) if number < len(parts) else nullcontext():
                heads = self._heads(pictures)
                classes = heads[0].shape[1]
                _check(*span, classes)
                loss = self.objective(heads, wanted, self._taught(pictures, classes))
                share = len(pictures) / count
                self.scaler.scale(loss * share if len(parts) > 1 else loss).backward()
            total += loss.item() * share
            guesses = torch.stack(heads).detach().mean(0).argmax(1)
            right += (guesses == truth).float().mean().item() * share
        return total, right, classes

    def _parts(
        self, images: Tensor, labels: Tensor, targets: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Cut a batch into the execution's parts, as equal as can be."""
        many = self.execution.accumulate
        if many > len(images):
            raise InvalidOption(
                f"accumulate {many}: a process's batch has only {len(images)} images; give at "
                "most as many parts"
            )
        cut = (tensor.tensor_split(many) for tensor in (images, labels, targets))
        return list(zip(*cut, strict=True))

    def _heads(self, images: Tensor) -> list[Tensor]:
        """Return the logits of every head, in float32 or better."""
        with self.execution.autocast(self.device):
            outputs = self.runner(images)
        heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        return [precise(logits) for logits in heads]

    def _taught(self, images: Tensor, classes: int) -> Tensor | None:
        """Return what the teacher answers, if there is one."""
        if self.teacher is None:
            return None
        with torch.no_grad(), self.execution.autocast(self.device):
            taught = precise(self.teacher(images))
        check(taught, classes)
        return taught

    def _move(self) -> None:
        """Take the step, and let the statistics of all processes and the average follow."""
        self.scaler.step(self.descent.optimizer)
        self.scaler.update()
        self.world.average(list(self.network.buffers()))
        if self.ema is not None:
            self.ema.update(self.network, step=self.step + 1)

    def _skip(self, result: StepResult, trouble: str) -> None:
        """Leave the weights as they were; stop when it goes on."""
        self.descent.clear()
        self.scaler.update()
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
            "ema": None if self.ema is None else deepcopy(self.ema.module.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned, in every process from the same."""
        self.step, self.guard.bad, self.guard.usual = state["step"], state["bad"], state["usual"]
        self.network.load_state_dict(state["network"])
        self.descent.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if state["scaler"]:  # empty where another precision was used before
            self.scaler.load_state_dict(state["scaler"])
        self.descent.turn(self.step)


def _fitting(teacher: nn.Module | None, recipe: AloneRecipe) -> nn.Module | None:
    if (teacher is None) != (recipe.distillation == "none"):
        has = "there is no teacher" if teacher is None else "there is a teacher"
        raise InvalidOption(
            f"distillation '{recipe.distillation}', but {has}; give both, or neither"
        )
    return teacher


def _mixing(network: nn.Module, recipe: AloneRecipe) -> Mixing | None:
    if not (recipe.mixup or recipe.cutmix) or not recipe.mixed:
        return None
    classes = getattr(network, "num_classes", None)
    if not isinstance(classes, int):
        raise InvalidOption(
            f"mixup and cutmix: {type(network).__name__} does not say its num_classes; leave "
            "them out"
        )
    return Mixing(recipe, classes)


def _average(network: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Return the moving average of a network's weights; its decay is warmed up."""
    return ModelEmaV3(network, decay=decay, use_warmup=True, warmup_power=0.75) if decay else None


def _check(least: int, most: int, classes: int) -> None:
    """Refuse labels that the network has no class for: a GPU would die of them.

    Raises:
        DataError: names the label.
    """
    if least < 0 or most >= classes:
        raise DataError(
            f"label {least if least < 0 else most} is none of the network's {classes} classes "
            f"(0 to {classes - 1}); use the data whose classes the network has"
        )


@contextmanager
def _kept(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Yield what puts a network's statistics back as they were; it is done after an error too."""
    before = [buffer.clone() for buffer in network.buffers()]

    def put_back() -> None:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)

    try:
        yield put_back
    except BaseException:
        put_back()
        raise


@contextmanager
def _randomness(seed: str, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, from which layers draw, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(Random(seed).getrandbits(63))
        yield
