"""`Lesson`: what the draws of a step learn from, the labels or the dearest draw's probabilities.

In-place distillation by cross-entropy with the dearest's probabilities (Yu and Huang, 2019;
BigNAS) has the gradient of the KL divergence, from which it differs by the teacher's entropy.
AlphaNet's adaptive alpha-divergence (Wang et al. 2021, equations 4 to 7) takes, for each image,
the greater of two divergences: one that punishes a student for missing what the teacher deems
likely, as KL does, one for being sure where the teacher is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixnas.train.recipe import Recipe

ALPHAS = (-1.0, 1.0)
"""The two divergences, as AlphaNet's experiments have them."""
MOST = 5.0
"""Where the powers of the probabilities' ratio are clipped, as there."""


class Lesson:
    """The loss of a draw.

    Args:
        recipe: says what is learnt from, and the smoothing of labels.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.kind = recipe.lesson
        self.smoothing = recipe.smoothing

    def __call__(self, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        """Return the mean loss over a batch, a scalar.

        Args:
            logits: ``(B, classes)``.
            labels: ``(B,)``.
            taught: the dearest draw's probabilities ``(B, classes)``; None for itself.
        """
        if taught is None or self.kind == "labels":
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if self.kind == "alpha":
            return adaptive(logits, taught)
        return F.cross_entropy(logits, taught)


def adaptive(logits: Tensor, taught: Tensor, most: float = MOST) -> Tensor:
    """Return AlphaNet's adaptive alpha-divergence, the mean over a batch.

    Its gradient is the clipped one of the paper, not that of the value.

    Args:
        logits: of the student, ``(B, classes)``.
        taught: the teacher's probabilities ``(B, classes)``; no gradient flows into them.
        most: where ``(p / q) ** alpha`` is clipped.
    """
    pairs = [divergence(logits, taught, alpha, most) for alpha in ALPHAS]
    values = torch.stack([value for value, _ in pairs])
    surrogates = torch.stack([surrogate for _, surrogate in pairs])
    greater = values.argmax(0, keepdim=True)
    surrogate = surrogates.gather(0, greater).mean()
    return surrogate - surrogate.detach() + values.amax(0).mean()


def divergence(
    logits: Tensor, taught: Tensor, alpha: float, most: float = MOST
) -> tuple[Tensor, Tensor]:
    """Return the clipped alpha-divergence of each image, and what has its gradient.

    Of a student q and a teacher p it is
    ``sum(q * ((p / q) ** alpha - 1)) / (alpha * (alpha - 1))``, at alpha = 1 its limit, the KL
    divergence, where nothing is clipped. Its gradient is
    ``-sum(q * (p / q) ** alpha * grad(log q)) / alpha``.

    Args:
        logits: of the student, ``(B, classes)``.
        taught: the teacher's probabilities ``(B, classes)``.
        alpha: not 0.
        most: where ``(p / q) ** alpha`` is clipped.

    Returns:
        The value ``(B,)`` without gradient, and a surrogate ``(B,)`` with it.
    """
    log_student = logits.log_softmax(1)
    with torch.no_grad():
        student = log_student.exp()
        log_teacher = taught.clamp_min(torch.finfo(taught.dtype).tiny).log()
        log_ratio = log_teacher - log_student
        if alpha == 1:
            weight = taught
            value = (taught * log_ratio).sum(1)
        else:
            power = (alpha * log_ratio).exp().clamp_max(most)
            weight = student * power / alpha
            value = (student * (power - 1)).sum(1) / (alpha * (alpha - 1))
    return value, -(weight * log_student).sum(1)
