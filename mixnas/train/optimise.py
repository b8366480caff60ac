"""What every training shares: AdamW and its schedule, mixed precision, what a step tells, a guard.

One definition, so that a supernet, a discovered network and a published one are trained alike.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from mixnas.train.recipe import AloneRecipe, Recipe

Batch = tuple[Tensor, Tensor]
State = dict[str, Any]

EXPLODED = 5.0
"""A loss this many times above the usual one, or above that of guessing, is not trained on."""


@dataclass
class StepResult:
    """What a step tells: its losses by role, its training accuracy, its rate.

    Attributes:
        step: number of the step.
        rate: its learning rate.
        accuracy: share of the batch that what learns from the labels classified rightly.
        losses: mean loss of each role: a supernet's draws, or ``labels`` where there is but one.
        skipped: why the step was not taken.
    """

    step: int
    rate: float
    accuracy: float = math.nan
    losses: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def row(self) -> dict[str, float]:
        """Return one line of a training's curve."""
        losses = {f"loss_{role}": loss for role, loss in self.losses.items()}
        return {"step": self.step, "lr": self.rate, **losses, "accuracy": self.accuracy}


class Descent:
    """AdamW (no decay on biases, norms and scales) under a cosine with a linear warm-up, by steps.

    The rate rises to its peak over the recipe's share of the steps and falls to a hundredth.

    Args:
        network: whose parameters are trained.
        recipe: says rate, decay, steps and warm-up.
    """

    def __init__(self, network: nn.Module, recipe: Recipe | AloneRecipe) -> None:
        self.parameters = list(network.parameters())
        self.most = recipe.clip
        fused = self.parameters[0].device.type in ("cpu", "cuda")
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
        self.turn(0)

    @property
    def rate(self) -> float:
        """Return the learning rate of the step at hand."""
        return self.optimizer.param_groups[0]["lr"]

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Shorten the gradient to the recipe's greatest norm; return the norm that it had."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.most).item()

    def move(self) -> None:
        """Change the weights by the gradient."""
        self.optimizer.step()

    def turn(self, step: int) -> None:
        """Set the learning rate of a step."""
        self.schedule.step_update(step)


class Guard:
    """Tells a loss that is not finite, or far above what is usual, and counts them in a row.

    Args:
        patience: bad steps in a row after which a training should stop.

    Attributes:
        bad: bad steps in a row so far.
        usual: moving average of the loss; NaN before the first good step.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.bad = 0
        self.usual = math.nan

    def trouble(self, loss: float, classes: int) -> str | None:
        """Say what is wrong with a loss, if anything."""
        if not math.isfinite(loss):
            return f"a loss of {loss}"
        guess = math.log(classes)
        usual = self.usual if math.isfinite(self.usual) else guess
        ceiling = EXPLODED * max(usual, guess)
        return f"a loss of {loss:.3g}, usual is {usual:.3g}" if loss > ceiling else None

    def failed(self) -> bool:
        """Count a bad step; tell whether patience is at its end."""
        self.bad += 1
        return self.bad >= self.patience

    def passed(self, loss: float) -> None:
        """Note a good step."""
        self.bad = 0
        self.usual = 0.95 * self.usual + 0.05 * loss if math.isfinite(self.usual) else loss


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where there is a GPU that has bfloat16; float32 elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def placed(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device, its images' channels last in memory."""
    images, labels = batch[0].to(device), batch[1].to(device)
    return images.contiguous(memory_format=torch.channels_last), labels
