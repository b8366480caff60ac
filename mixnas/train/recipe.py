"""`Recipe`: how a supernet is trained, `AloneRecipe`: how a network alone is; as values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mixnas.errors import InvalidOption, did_you_mean

CLIP_MODES = ("norm", "agc", "value")
"""What is clipped: the whole gradient's norm, each unit's (Brock et al., 2021), each number."""

DISTILLATIONS = ("none", "soft", "hard")
"""What a teacher teaches: nothing, its probabilities, its best class (Touvron et al., 2021)."""


SUPERNET_KINDS = {
    "spread": ("uniform", "stratified", "focused"),
    "fairness": ("strict", "stages", "uniform", "none"),
    "attention": ("none", "best", "worst"),
    "lesson": ("soft", "alpha", "labels"),
    "projection": ("none", "dearest", "others"),
}
"""What each of a supernet's choices may be; the first is the default."""

RATE = 2e-3
"""Peak learning rate of a wide supernet."""
NARROW, WIDE = 64, 128
"""Widths of the widest stage, up to which and from which a supernet counts as narrow and wide."""


@dataclass(frozen=True)
class Recipe:
    """The supernet's recipe.

    Attributes:
        steps: optimiser steps.
        batch: images in a step.
        rate: peak learning rate of AdamW, at this batch (see `suited`).
        decay: AdamW's weight decay (none on biases, norms and scales).
        warmup: share of the steps in which the rate rises linearly.
        clip: greatest norm of the gradient.
        smoothing: label smoothing of the dearest draw's loss.
        draws: random architectures in a step, beside the dearest and the cheapest.
        ema: decay of the exponential moving average of the weights, warmed up.
        edge: share of the budget's span that counts as its upper or lower edge.
        patience: bad steps in a row (non-finite or exploding loss) before training stops.
        spread: how random draws lie over the costs that their mixers can reach: "uniform" over
            architectures; "stratified": each step's from equal strata of the costs; "focused":
            likewise, but twice as densely at the upper end, where winners are, as in the middle.
        fairness: mixers and stem of a draw: "strict": a place in a permutation of those offered
            (FairNAS, Chu et al. 2021), "stages": likewise, a stem as often as it has stages, since
            those of the finest stem are trained by no other; "uniform": each at random, "none": as
            often as feasible architectures have them.
        attention: of each random draw's candidates, alike in mixers and cost, the one with the
            least ("best") or the greatest ("worst") loss on the batch is trained (AttentiveNAS,
            Wang et al. 2021); "none": there is one candidate.
        candidates: how many, where attention chooses among them.
        lesson: what all but the dearest learn from: "soft", the dearest's probabilities, by
            cross-entropy, whose gradient is that of the KL divergence; "alpha", the same by
            AlphaNet's adaptive alpha-divergence (Wang et al. 2021); "labels".
        projection: whose gradient gives way where that of the dearest and another's conflict
            (`mixnas.train.conflict`): "dearest" (NASViT, Gong et al. 2022), "others" or "none".
        dearest_first: share of the steps, at the beginning, that train the dearest draw alone.

    Raises:
        InvalidOption: if one of these is not offered.
    """

    steps: int
    batch: int = 64
    rate: float = RATE
    decay: float = 0.05
    warmup: float = 0.1
    clip: float = 5.0
    smoothing: float = 0.1
    draws: int = 2
    ema: float = 0.99
    edge: float = 0.1
    patience: int = 10
    spread: str = "uniform"
    fairness: str = "strict"
    attention: str = "none"
    candidates: int = 3
    lesson: str = "soft"
    projection: str = "none"
    dearest_first: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        for name, offered in SUPERNET_KINDS.items():
            if getattr(self, name) not in offered:
                known = did_you_mean(str(getattr(self, name)), offered)
                raise InvalidOption(f"recipe, {name} '{getattr(self, name)}': not offered; {known}")
        if self.candidates < 1:
            raise InvalidOption(f"recipe, candidates {self.candidates}: give at least 1")
        if not 0 <= self.dearest_first <= 1:
            raise InvalidOption(f"recipe, dearest_first {self.dearest_first}: give 0 to 1")


def suited(widest: int, steps: int, batch: int) -> Recipe:
    """Return the recipe by which supernets of such a width rank best, of those that were measured.

    On the space `tabular` (width 48) twice the rate ranks better, and AlphaNet's divergence better
    again (``benchmarks/ranking.py``, several seeds). On `default` (384) either makes it learn far
    too slowly for the time that a search takes. Between the widths the rate falls as 1 / width, as
    that of hidden layers has to under AdamW (Yang et al. 2022, Tensor Programs V).

    Args:
        widest: width of the widest stage, in channels.
        steps: optimiser steps.
        batch: images in a step.
    """
    rate = RATE * WIDE / min(max(widest, NARROW), WIDE)
    return Recipe(steps, batch, rate, lesson="alpha" if widest <= NARROW else "soft")


@dataclass(frozen=True)
class AloneRecipe:
    """One recipe for any network alone: discovered, published, or of timm.

    Rate and clip were chosen on the embedded digits (ten epochs, one seed, nine networks), so that
    one pair serves all: of 1e-3 and 2e-3 the higher rate was better for seven and as good for one;
    the plain vision transformer lost by it, but not with its gradient clipped at 1. At 3e-4 five
    of the six networks tried were worst. What else a training may do is off by default.

    Attributes:
        steps: optimiser steps.
        batch: images in a step, over all processes.
        rate: peak learning rate, at this batch.
        decay: weight decay (none on biases, norms and scales).
        warmup: share of the steps in which the rate rises linearly.
        clip: greatest norm of the gradient, or what `clip_mode` says; None: it is not clipped.
        smoothing: label smoothing.
        patience: bad steps in a row (non-finite or exploding loss) before training stops.
        optimizer: one of `timm.optim.list_optimizers()`.
        betas: of the optimiser's moving averages; its own by default.
        eps: of the optimiser's denominator; its own by default.
        least: the last learning rate, as a share of the peak.
        start: the first learning rate, as a share of the peak; by default, that of a straight
            line through nought.
        clip_mode: "norm", "agc" (adaptive, unit by unit) or "value".
        ema: decay of the exponential moving average of the weights, warmed up; 0: there is none.
        mixup: alpha of mixup's beta distribution (Zhang et al., 2018); 0: none.
        cutmix: alpha of cutmix's beta distribution (Yun et al., 2019); 0: none.
        mixed: probability that a batch is mixed.
        switch: probability of cutmix where there are both.
        drop_path: rate of stochastic depth in the last block, for whoever builds the network.
        distillation: "none", "soft" or "hard".
        teaching: the teacher's share of the loss, 0 to 1.
        temperature: of soft distillation.
        frozen_norms: whether batch norms keep the statistics that they have.
        augmentation: how images are varied, as `Augmentation.to_dict` has it; None: the weak
            shift that a supernet is trained with.
    """

    steps: int
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    warmup: float = 0.1
    clip: float | None = 1.0
    smoothing: float = 0.1
    patience: int = 10
    optimizer: str = "adamw"
    betas: tuple[float, float] | None = None
    eps: float | None = None
    least: float = 0.01
    start: float | None = None
    clip_mode: str = "norm"
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixed: float = 1.0
    switch: float = 0.5
    drop_path: float = 0.0
    distillation: str = "none"
    teaching: float = 0.5
    temperature: float = 1.0
    frozen_norms: bool = False
    augmentation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no training.

        Raises:
            InvalidOption: names the field and what is allowed.
        """
        if self.betas is not None:
            first, second = self.betas
            object.__setattr__(self, "betas", (first, second))  # a list, where it was read
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidOption(f"{name} {value:g} is not allowed; give {low:g} to {high:g}")
        for name, allowed in (("clip_mode", CLIP_MODES), ("distillation", DISTILLATIONS)):
            if getattr(self, name) not in allowed:
                raise InvalidOption(
                    f"{name} '{getattr(self, name)}' is not known; give {', '.join(allowed)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        data = asdict(self)
        return data | {"betas": None if self.betas is None else list(self.betas)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AloneRecipe":
        """Read what `to_dict` wrote.

        Raises:
            TypeError: if a field is unknown.
            InvalidOption: if a value is not allowed.
        """
        return cls(**data)


_MANY = 1e9
_RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (1, _MANY),
    "batch": (1, _MANY),
    "rate": (1e-12, 1e3),
    "decay": (0, 1e3),
    "warmup": (0, 1),
    "clip": (1e-9, _MANY),
    "smoothing": (0, 0.99),
    "patience": (1, _MANY),
    "eps": (0, 1),
    "least": (0, 1),
    "start": (0, 1),
    "ema": (0, 0.999999),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "mixed": (0, 1),
    "switch": (0, 1),
    "drop_path": (0, 0.99),
    "teaching": (0, 1),
    "temperature": (1e-3, 1e3),
}
