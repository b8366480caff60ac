"""No mixing at all: the control that asks whether a mixer matters."""

from typing import ClassVar

from torch import Tensor

from mixnas.mixers import Mixer, register


@register("identity")
class Identity(Mixer):
    """Return the input; a block leaves out the whole branch, its norm and scale included.

    What remains of token mixing is then the block's depth-wise convolution alone.

    Args:
        dim: channels at most; nothing depends on it.
    """

    norm = "none"
    skipped: ClassVar[bool] = True
    summary = "control: no mixer, only the block's depth-wise convolution; costs nothing"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` as it is."""
        return x
