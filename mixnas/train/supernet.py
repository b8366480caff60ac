"""Train a supernet: sandwich rule, in-place distillation, a guard, a checkpoint at any step.

One step sees one batch. The dearest draw learns from the labels; the others learn from the
dearest one's probabilities (in-place distillation, Yu and Huang, 2019; BigNAS). All of it is a
pure function of the seed and the step, so a resumed training goes on bit for bit (on one CPU
process).

What AdamW does to weights that a step did not draw: a tensor of which no corner was drawn has no
gradient and is left alone, neither moved nor decayed. Of a tensor that was drawn in part, the
rest has a zero gradient, so its momentum fades and its decay goes on; the dearest draw makes
that rest small.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from mixnas.errors import TrainingDiverged
from mixnas.network import Network
from mixnas.train.draws import Draw, Draws, tally
from mixnas.train.recipe import Recipe

Batch = tuple[Tensor, Tensor]
State = dict[str, Any]


@dataclass
class StepResult:
    """What a step tells: its losses by role, the dearest draw's training accuracy, its rate."""

    step: int
    rate: float
    accuracy: float
    losses: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def row(self) -> dict[str, float]:
        """Return one line of ``supernet.csv``."""
        losses = {f"loss_{role}": loss for role, loss in self.losses.items()}
        return {"step": self.step, "lr": self.rate, **losses, "accuracy": self.accuracy}


class SupernetTrainer:
    """Trains a supernet by steps; `state` and `restore` carry it over a kill.

    Args:
        network: the supernet, on its device.
        draws: the architectures of every step.
        recipe: how to train.
    """

    def __init__(self, network: Network, draws: Draws, recipe: Recipe) -> None:
        self.network = network.train()
        self.draws = draws
        self.recipe = recipe
        self.step = 0
        self.bad = 0
        self.usual = math.nan
        self.tally: Counter[str] = Counter()
        self.device = next(network.parameters()).device
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = create_optimizer_v2(
            network, opt="adamw", lr=recipe.rate, weight_decay=recipe.decay, fused=fused
        )
        warmup = max(1, round(recipe.warmup * recipe.steps))
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(recipe.steps, warmup + 1),
            lr_min=recipe.rate * 0.01,
            warmup_t=warmup,
            warmup_lr_init=recipe.rate / warmup,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.schedule.step_update(0)
        self.ema = ModelEmaV3(network, decay=recipe.ema, use_warmup=True, warmup_power=0.75)

    def run(self, batches: Iterator[Batch], until: int | None = None) -> Iterator[StepResult]:
        """Train step after step and yield what each tells.

        Args:
            batches: the stream of training batches from the current step on.
            until: the step to stop before; the recipe's last by default.

        Raises:
            TrainingDiverged: when the loss stays non-finite or exploded for the recipe's
                patience; the message names the architecture.
        """
        until = self.recipe.steps if until is None else until
        while self.step < until:
            yield self.train(*next(batches))

    def train(self, images: Tensor, labels: Tensor) -> StepResult:
        """Perform one step on one batch of images ``(B, C, H, W)`` and labels ``(B,)``."""
        images, labels = images.to(self.device), labels.to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        rate = self.optimizer.param_groups[0]["lr"]
        result = StepResult(self.step, rate, math.nan)
        self.optimizer.zero_grad(set_to_none=True)
        targets: Tensor | None = None
        counts: Counter[str] = Counter()
        for draw in self.draws.at(self.step):
            with self._precision():
                logits = self.network(images, draw.arch).float()
            loss = self._loss(logits, labels, targets)
            if reason := self._trouble(draw, loss.item()):
                return self._skip(result, draw, reason)
            loss.backward()
            if targets is None:
                targets = logits.detach().softmax(dim=1)
                result.accuracy = (logits.argmax(1) == labels).float().mean().item()
            result.losses[draw.role] = result.losses.get(draw.role, 0.0) + loss.item()
            counts[draw.role] += 1
            tally(self.tally, draw.arch)
        result.losses = {role: loss / counts[role] for role, loss in result.losses.items()}
        return self._finish(result)

    def _precision(self) -> AbstractContextManager[Any]:
        """Mixed precision where there is a GPU that has bfloat16; float32 elsewhere."""
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _loss(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Learn from the labels (the dearest draw), or from the dearest draw's probabilities."""
        if targets is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.recipe.smoothing)
        return F.cross_entropy(logits, targets)

    def _trouble(self, draw: Draw, loss: float) -> str | None:
        """Say what is wrong with a loss: not finite, or far above what is usual."""
        if not math.isfinite(loss):
            return f"a loss of {loss}"
        usual = self.usual if math.isfinite(self.usual) else math.log(self.network.num_classes)
        ceiling = 5.0 * max(usual, math.log(self.network.num_classes))
        return f"a loss of {loss:.3g}, usual is {usual:.3g}" if loss > ceiling else None

    def _skip(self, result: StepResult, draw: Draw, reason: str) -> StepResult:
        """Leave the weights as they are; stop when it goes on."""
        self.bad += 1
        result.skipped = f"step {self.step}: {draw.role} architecture {draw.arch.id} gave {reason}"
        if self.bad >= self.recipe.patience:
            raise TrainingDiverged(
                f"{result.skipped}, {self.bad} steps in a row; lower the learning rate, or look at "
                f"that architecture: {draw.arch.to_json()}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self._advance()
        return result

    def _finish(self, result: StepResult) -> StepResult:
        """Clip, check the gradient, step, average."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        if not math.isfinite(norm.item()):
            return self._skip(
                result, next(self.draws.at(self.step)), f"a gradient of {norm.item()}"
            )
        self.bad = 0
        loss = result.losses["dearest"]
        self.usual = 0.95 * self.usual + 0.05 * loss if math.isfinite(self.usual) else loss
        self.optimizer.step()
        self._advance()
        return result

    def _advance(self) -> None:
        self.step += 1
        self.schedule.step_update(self.step)
        self.ema.update(self.network, step=self.step)

    def state(self) -> State:
        """Return everything that the next step depends on, as tensors and plain numbers."""
        return {
            "step": self.step,
            "bad": self.bad,
            "usual": self.usual,
            "tally": dict(self.tally),
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.step, self.bad, self.usual = state["step"], state["bad"], state["usual"]
        self.tally = Counter(state["tally"])
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.step_update(self.step)


def weights(trainer: SupernetTrainer) -> dict[str, Tensor]:
    """Return the averaged weights, on the CPU, ready for safetensors."""
    module: Network = trainer.ema.module
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
