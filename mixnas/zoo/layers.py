"""What the published networks share: convolution with batch norm, and timm's conventions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixnas.checkpointing import Blocks, recomputer
from mixnas.features import Intermediates
from mixnas.folding import fold


class ConvNorm(nn.Module):
    """A square convolution without bias, then batch norm (eps 1e-5, momentum 0.1).

    Args:
        channels: input channels.
        out: output channels.
        kernel: side of the kernel, padded by ``kernel // 2`` times the dilation.
        stride: step of the kernel.
        groups: of the convolution; as many as channels is depth-wise.
        dilation: distance of the kernel's taps.
        gain: initial weight of the norm.
    """

    forward: Callable[..., Tensor]

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(
            channels, out, kernel, stride, padding, dilation, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[no-redef]
        """Map ``(B, channels, H, W)`` to ``(B, out, ceil(H / stride), ceil(W / stride))``."""
        return self.norm(self.conv(x))

    def folded(self) -> nn.Conv2d:
        """Return the same as one convolution."""
        return fold(self.conv, self.norm)


class Classified(Intermediates):
    """A network with features and a linear classifier, after timm's conventions.

    A subclass builds its layers, sets `num_features` and `feature_info`, ends its constructor
    with `reset_classifier`, and defines what `Intermediates` asks for, and `pool`.
    """

    num_features: int
    num_classes: int
    head: nn.Module
    recomputed: Callable[..., Tensor] | None = None

    forward: Callable[..., Tensor]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's activations again in the backward pass, to save memory."""
        self.recomputed = recomputer() if enable else None
        for blocks in self.modules():
            if isinstance(blocks, Blocks):
                blocks.recomputed = self.recomputed

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images to the last features, normalised if the system does so before pooling."""
        size = (images.shape[2], images.shape[3])
        x = self.begin(images)
        for index in range(self.remaining()):
            x = self.advance(x, index, size)
        return self.finish(x)

    def pool(self, x: Tensor) -> Tensor:
        """Reduce the features to ``(B, num_features)``: by default their mean over space."""
        return x.mean(dim=(2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the features and classify them into ``(B, num_classes)``."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[no-redef]
        """Classify ``(B, in_chans, H, W)`` into ``(B, num_classes)``."""
        images = images.contiguous(memory_format=torch.channels_last)
        return self.forward_head(self.forward_features(images))

    def classifier(self, classes: int) -> nn.Module:
        """Return a new classifier, initialised as the system's."""
        return nn.Linear(self.num_features, classes)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, untrained classifier in place (0: features only)."""
        self.num_classes = num_classes
        head = self.classifier(num_classes) if num_classes else nn.Identity()
        reference = next(self.parameters())
        self.head = head.to(reference.device, reference.dtype).train(self.training)
