"""Patch stems: from an image to the first map of the pyramid.

A stem's kind names its form and its stride. It enters the pyramid at that stride and skips the
finer stages. Overlapping stems are stacks of 3x3 convolutions of stride 2 (LeViT; SHViT's 16x16
overlapping patchify is ``conv16``), so their map is ``ceil(image / stride)`` on each side.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.arch import STEM_STRIDES
from mixnas.elastic import BatchNorm, Conv
from mixnas.folding import fold


class ConvStem(nn.Module):
    """``log2(stride)`` 3x3 convolutions of stride 2, each with batch norm, ReLU between them.

    The channels double up to the width: D/8, D/4, D/2, D at stride 16 (SHViT, section 3.1).

    Args:
        width: output channels D at most, a multiple of ``stride / 2``.
        stride: 4, 8 or 16.
        in_chans: channels of the image.
    """

    def __init__(self, width: int, stride: int, in_chans: int = 3) -> None:
        super().__init__()
        steps = stride.bit_length() - 1
        self.halvings = list(range(steps - 1, -1, -1))
        channels = [in_chans, *(width >> halving for halving in self.halvings)]
        pairs = itertools.pairwise(channels)
        self.convs = nn.ModuleList(Conv(a, b, 3, stride=2) for a, b in pairs)
        self.norms = nn.ModuleList(BatchNorm(b) for b in channels[1:])

    def forward(self, images: Tensor, width: int) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, width, ceil(H / stride), ceil(W / stride))``."""
        x = images
        for halving, conv, norm in zip(self.halvings, self.convs, self.norms, strict=True):
            x = norm(conv(x, width >> halving))
            x = F.relu(x) if halving else x
        return x

    def folded(self) -> "ConvStem":
        """Fold each norm into its convolution."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            fold(conv, norm)
        self.norms = nn.ModuleList(nn.Identity() for _ in self.norms)
        return self


class PatchStem(nn.Module):
    """One linear map of each non-overlapping patch (ViT, equation 1).

    An image whose side is no multiple of the stride is padded with zeros right and below.

    Args:
        width: output channels at most.
        stride: side of a patch.
        in_chans: channels of the image.
    """

    def __init__(self, width: int, stride: int, in_chans: int = 3) -> None:
        super().__init__()
        self.stride = stride
        self.patch = Conv(in_chans, width, stride, stride=stride, padding=0, bias=True)

    def forward(self, images: Tensor, width: int) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, width, ceil(H / stride), ceil(W / stride))``."""
        height, breadth = images.shape[-2:]
        padding = (0, -breadth % self.stride, 0, -height % self.stride)
        return self.patch(F.pad(images, padding) if any(padding) else images, width)


def create(kind: str, width: int, in_chans: int = 3) -> nn.Module:
    """Build a stem; `kind` is a key of `arch.STEM_STRIDES`."""
    form = PatchStem if kind.startswith("patch") else ConvStem
    return form(width, STEM_STRIDES[kind], in_chans)
