"""`System`: a published family of networks; `Variant`: one network of it, as published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn

Options = Mapping[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """One network of a system: its settings, and what is published of it.

    Attributes:
        options: the settings that the system's network class takes.
        image: side of the published image in pixels.
        params: published parameters.
        flops: published multiply-adds at that image, in the authors' own convention.
        accuracy: published top-1 accuracy on ImageNet-1k in per cent.
        note: what must be said beside these figures: recalled, folded, truncated.
    """

    options: Options
    image: int
    params: float
    flops: float
    accuracy: float | None = None
    note: str = ""


@dataclass(frozen=True)
class System:
    """A published system: how its networks are built, widened, and filled with its weights.

    Attributes:
        title: as its authors call it.
        mixer: the registered token mixer that it is built of.
        paper: authors, venue, identifier.
        network: the class of its networks; called with ``num_classes``, ``in_chans``, ``image``
            and a variant's options.
        widen: returns options whose every width is the old one times a factor, rounded to what
            the system can have.
        variants: its networks by name.
        translate: turns the authors' state dict into that of `network`; None where no
            published weights are known.
    """

    title: str
    mixer: str
    paper: str
    network: Callable[..., nn.Module]
    widen: Callable[[Options, float], dict[str, Any]]
    variants: Mapping[str, Variant]
    translate: Callable[[State], State] | None = None


def rounded(width: float, multiple: int) -> int:
    """Return the multiple nearest to a width, at least one: the zoo's one rule of widening."""
    return max(1, round(width / multiple)) * multiple


def settings(network: Callable[..., nn.Module]) -> dict[str, Any]:
    """Return the defaults of a system's class, but for what every network takes."""
    common = ("num_classes", "in_chans", "image")
    parameters = signature(network).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in common}
