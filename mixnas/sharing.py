"""`Sharing`: which surroundings the mixers of a supernet's block have in common.

Mixers always have a norm, weights and, by default, a layer scale of their own. What stands around
them (the depth-wise convolution, the feed-forward part, their norms and scales) is one for all by
default; here it can be told apart, one for each mixer. Of a block that offers one mixer there is
nothing to tell apart, so a stand-alone network is the same network whatever its supernet shared.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields

from torch import nn

from mixnas.errors import InvalidOption, did_you_mean

KINDS = {
    "feed_forward": ("shared", "mixer"),
    "norms": ("shared", "mixer"),
    "scale": ("mixer", "shared", "switchable"),
}
"""Each field of `Sharing` and what it may be; the first is the default."""


@dataclass(frozen=True)
class Sharing:
    """What the mixers of a block share in a supernet.

    Attributes:
        feed_forward: "shared", or "mixer": a whole feed-forward part, its norm and scale with it,
            for each mixer.
        norms: "shared", or "mixer": the norms behind the depth-wise convolution and before the
            feed-forward part for each mixer.
        scale: "mixer": each mixer's branch has a layer scale of its own, the feed-forward part
            one for all. "shared": the mixers' branches have one for all, too; a mixer's initial
            gain then multiplies it. "switchable": the feed-forward part has one for each mixer as
            well (after the switchable scaling of NASViT, Gong et al. 2022).

    Raises:
        InvalidOption: if a field has another value.
    """

    feed_forward: str = "shared"
    norms: str = "shared"
    scale: str = "mixer"

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in KINDS[field.name]:
                known = did_you_mean(str(value), KINDS[field.name])
                raise InvalidOption(f"sharing, {field.name} '{value}' is not offered; {known}")


class OneEach(nn.ModuleDict):
    """A layer for each mixer, where other networks have a single one."""


def one_each(mixers: Collection[str], make: Callable[[], nn.Module]) -> nn.Module:
    """Return a layer for each of several mixers, or a plain one if there are not several."""
    return OneEach({mixer: make() for mixer in mixers}) if len(mixers) > 1 else make()


def chosen(layer: nn.Module, mixer: str | None) -> nn.Module:
    """Return the layer that goes with a mixer."""
    return layer[str(mixer)] if isinstance(layer, OneEach) else layer
