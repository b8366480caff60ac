"""What every training shares: an optimiser, its schedule, precision, what a step tells, a guard.

One definition, so that a supernet, a discovered network and a published one are trained alike.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from mixnas.errors import InvalidOption, did_you_mean
from mixnas.train.recipe import AloneRecipe, Recipe

Batch = tuple[Tensor, Tensor]
State = dict[str, Any]

EXPLODED = 5.0
"""A loss this many times above the usual one, or above that of guessing, is not trained on."""

UNREPEATABLE = "kron"
"""timm's PSGD Kron and its kin: trained on from their kept state they do not go on alike."""


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
    """An optimiser under a cosine with a linear warm-up, by steps.

    Biases, norms and scales do not decay. The rate rises to its peak over the recipe's share of
    the steps and falls to the recipe's least, a hundredth by default.

    Args:
        network: whose parameters are trained.
        recipe: says optimiser, rate, decay, steps, warm-up and clipping; a supernet's says some
            of it, the rest is as by default.

    Raises:
        InvalidOption: if there is no such optimiser here, or it needs more than gradients.
    """

    def __init__(self, network: nn.Module, recipe: Recipe | AloneRecipe) -> None:
        recipe = recipe if isinstance(recipe, AloneRecipe) else _alone(recipe)
        self.parameters = list(network.parameters())
        self.most, self.mode = recipe.clip, recipe.clip_mode
        self.optimizer = _optimizer(network, recipe)
        warmup = max(1, round(recipe.warmup * recipe.steps))
        start = recipe.rate / warmup if recipe.start is None else recipe.rate * recipe.start
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(recipe.steps, warmup + 1),
            lr_min=recipe.rate * recipe.least,
            warmup_t=warmup,
            warmup_lr_init=start,
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
        """Shorten the gradient as the recipe says; return the norm that it had."""
        if self.mode == "norm" and self.most is not None:
            return torch.nn.utils.clip_grad_norm_(self.parameters, self.most).item()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if self.most is not None:
            dispatch_clip_grad(self.parameters, self.most, mode=self.mode)
        return norm

    def move(self) -> None:
        """Change the weights by the gradient."""
        self.optimizer.step()

    def turn(self, step: int) -> None:
        """Set the learning rate of a step."""
        self.schedule.step_update(step)


def _alone(recipe: Recipe) -> AloneRecipe:
    """Return what a supernet's recipe says of its descent."""
    return AloneRecipe(
        steps=recipe.steps,
        rate=recipe.rate,
        decay=recipe.decay,
        warmup=recipe.warmup,
        clip=recipe.clip,
    )


def _optimizer(network: nn.Module, recipe: AloneRecipe) -> torch.optim.Optimizer:
    name = recipe.optimizer
    known = [known for known in list_optimizers() if not known.startswith(UNREPEATABLE)]
    if name not in known:
        raise InvalidOption(f"optimizer '{name}' is not offered: {did_you_mean(name, known)}")
    own: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.eps}
    settings = {key: value for key, value in own.items() if value is not None}
    if name == "adamw":
        settings["fused"] = next(network.parameters()).device.type in ("cpu", "cuda")
    try:
        made = create_optimizer_v2(
            network, opt=name, lr=recipe.rate, weight_decay=recipe.decay, **settings
        )
    except (ImportError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidOption(
            f"optimizer '{name}' cannot be used here ({type(error).__name__}: {error}); try adamw"
        ) from None
    if getattr(made, "is_second_order", False):
        raise InvalidOption(f"optimizer '{name}' needs second derivatives; try adamw")
    return made


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


def precise(logits: Tensor) -> Tensor:
    """Return logits in float32, or as they are if they are in double precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where there is a GPU that has bfloat16; float32 elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def placed(batch: Batch, device: torch.device, channels_last: bool = True) -> Batch:
    """Return a batch on a device, its images' channels last in memory, if they shall be."""
    images, labels = batch[0].to(device), batch[1].to(device)
    if not channels_last:
        return images.contiguous(), labels
    return images.contiguous(memory_format=torch.channels_last), labels
