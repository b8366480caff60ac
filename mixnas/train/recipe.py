"""`Recipe`: how a supernet is trained, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The supernet's recipe.

    Attributes:
        steps: optimiser steps.
        batch: images in a step.
        rate: peak learning rate of AdamW, at this batch.
        decay: AdamW's weight decay (none on biases, norms and scales).
        warmup: share of the steps in which the rate rises linearly.
        clip: greatest norm of the gradient.
        smoothing: label smoothing of the dearest draw's loss.
        draws: random architectures in a step, beside the dearest and the cheapest.
        ema: decay of the exponential moving average of the weights, warmed up.
        edge: share of the budget's span that counts as its upper or lower edge.
        patience: bad steps in a row (non-finite or exploding loss) before training stops.
    """

    steps: int
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    warmup: float = 0.1
    clip: float = 5.0
    smoothing: float = 0.1
    draws: int = 2
    ema: float = 0.99
    edge: float = 0.1
    patience: int = 10
