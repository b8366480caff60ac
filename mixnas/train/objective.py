"""`Objective`: what a network trained alone learns from, the labels and perhaps a teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixnas.train.recipe import AloneRecipe


class Objective:
    """The loss of a batch.

    Without a teacher every head learns from the labels, by cross-entropy. With one, the first
    head does, and the last learns from the teacher (Touvron et al., 2021, equations 2 and 3): a
    network with a single head learns from both with that.

    Args:
        recipe: says smoothing and distillation.
    """

    def __init__(self, recipe: AloneRecipe) -> None:
        self.smoothing = recipe.smoothing
        self.kind = recipe.distillation
        self.share = recipe.teaching
        self.temperature = recipe.temperature

    def __call__(self, heads: Sequence[Tensor], targets: Tensor, taught: Tensor | None) -> Tensor:
        """Return the mean loss over a batch, a scalar.

        Args:
            heads: logits ``(B, classes)``, one tensor a head.
            targets: labels ``(B,)``, or probabilities ``(B, classes)`` that are smoothed already.
            taught: the teacher's logits ``(B, classes)``, if there is one.
        """
        if taught is None:
            return torch.stack([self._labels(logits, targets) for logits in heads]).mean()
        own = self._labels(heads[0], targets)
        return (1 - self.share) * own + self.share * self._teacher(heads[-1], taught)

    def _labels(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() == 2:
            return F.cross_entropy(logits, targets.to(logits.dtype))
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def _teacher(self, logits: Tensor, taught: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(logits, taught.argmax(1))
        warmth = self.temperature
        own, other = ((x / warmth).log_softmax(1) for x in (logits, taught.to(logits.dtype)))
        return warmth**2 * F.kl_div(own, other, reduction="batchmean", log_target=True)
