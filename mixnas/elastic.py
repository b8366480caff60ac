"""Layers that hold the largest size and compute at any smaller one.

The small layer is the leading corner of the big one. Nothing is set beforehand: the sizes are
read off the input and the arguments of the call, so nothing can stay set. Each layer's `narrow`
returns the tensors that a call would use, and `forward` uses just those; extraction replays the
calls of one forward pass and copies what `narrow` returns, so the extracted network is the
shared one by construction (`extract_weights`).

Inside mixnas activations are channels-last: a ``(B, C, H, W)`` tensor whose memory is
``(B, H, W, C)``, so that `tokens` and `grid` below are views and a 1x1 convolution is a matrix
product over the last axis.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens(x: Tensor) -> Tensor:
    """View a ``(B, C, H, W)`` map as ``(B, H*W, C)`` tokens (a copy if not channels-last)."""
    return x.flatten(2).transpose(1, 2)


def grid(x: Tensor, height: int, width: int) -> Tensor:
    """View ``(B, H*W, C)`` tokens as a channels-last ``(B, C, H, W)`` map."""
    return x.transpose(1, 2).unflatten(2, (height, width))


def corner(tensor: Tensor, *sizes: int) -> Tensor:
    """Return the leading corner of a tensor; the tensor itself where nothing is cut."""
    for axis, size in enumerate(sizes):
        if size != tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, size)
    return tensor


class Elastic(nn.Module):
    """A layer whose `narrow(*args)` gives the tensors that `forward(*args)` computes with.

    The tensors come in the order of the layer's own parameters and buffers, absent ones left
    out.
    """

    forward: Callable[..., Tensor]

    def narrow(self, *args: Tensor | int | None) -> tuple[Tensor, ...]:
        """Return the active tensors, in the order of `stored`."""
        raise TypeError(f"{type(self).__name__} must define narrow")

    def stored(self) -> list[Tensor]:
        """Return the layer's own parameters, then its floating-point buffers."""
        return [
            *self.parameters(recurse=False),
            *(b for b in self.buffers(recurse=False) if b.is_floating_point()),
        ]


class Table(Elastic):
    """A bare parameter of any shape; a call returns its leading corner.

    Args:
        shape: the largest shape.
        init: fills the tensor in place (zeros by default).
    """

    def __init__(self, *shape: int, init: Callable[[Tensor], object] = nn.init.zeros_) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape))
        init(self.value)

    def narrow(self, *sizes: int) -> tuple[Tensor]:  # type: ignore[override]
        """Return the leading corner of the given sizes."""
        return (corner(self.value, *sizes),)

    def forward(self, *sizes: int) -> Tensor:
        """Return the leading corner of the given sizes."""
        return self.narrow(*sizes)[0]


class Linear(Elastic):
    """``y = x W^T + b`` over the last axis; `groups` projections share one call.

    A fused projection (query, key, value) keeps its group as the leading axis of the weight,
    ``(groups, out, in)``, so that narrowing takes a corner of every projection; the output is
    the groups' outputs side by side.

    Args:
        features: input features at most.
        out: output features at most, of one group.
        groups: fused projections.
        bias: whether a bias is added.
        std: standard deviation of the normal that fills the weight.
    """

    def __init__(
        self, features: int, out: int, *, groups: int = 1, bias: bool = True, std: float = 0.02
    ) -> None:
        super().__init__()
        self.out = out
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups, out, features))
        self.bias = nn.Parameter(torch.zeros(groups, out)) if bias else None
        nn.init.normal_(self.weight, std=std)

    def narrow(self, x: Tensor, out: int | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the weight ``(G, out, in)`` and the bias ``(G, out)`` for this input."""
        out = self.out if out is None else out
        weight = corner(self.weight, self.groups, out, x.shape[-1])
        return (weight,) if self.bias is None else (weight, corner(self.bias, self.groups, out))

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        """Map ``(..., in)`` to ``(..., groups * out)``."""
        weight, *bias = self.narrow(x, out)
        return F.linear(x, weight.flatten(0, 1), bias[0].flatten() if bias else None)


class Conv(Elastic):
    """A dense square convolution, padded by ``kernel // 2``, without bias unless told.

    Args:
        channels: input channels at most.
        out: output channels at most.
        kernel: side of the kernel.
        stride: step of the kernel.
        padding: zeros on each side, ``kernel // 2`` by default.
        bias: whether a bias is added.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def narrow(self, x: Tensor, out: int | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the weight ``(out, in, k, k)`` and the bias for this input."""
        out = self.weight.shape[0] if out is None else out
        weight = corner(self.weight, out, x.shape[1])
        return (weight,) if self.bias is None else (weight, corner(self.bias, out))

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        """Convolve ``(B, in, H, W)`` into ``(B, out, ceil(H / stride), ceil(W / stride))``."""
        weight, *bias = self.narrow(x, out)
        return F.conv2d(x, weight, bias[0] if bias else None, self.stride, self.padding)


class Depthwise(Elastic):
    """A depth-wise square convolution; the channels are the input's.

    It has no bias until a batch norm is folded into it (`mixnas.folding`).

    Args:
        channels: channels at most.
        kernel: side of the kernel, odd.
        stride: step of the kernel.
    """

    bias: nn.Parameter | None

    def __init__(self, channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.register_parameter("bias", None)
        nn.init.normal_(self.weight, std=1 / kernel)

    def narrow(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the kernels, and the bias if there is one, of this input's channels."""
        return tuple(corner(t, x.shape[1]) for t in self.stored())

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel of ``(B, C, H, W)`` on its own."""
        weight, *bias = self.narrow(x)
        padding = weight.shape[-1] // 2
        return F.conv2d(
            x, weight, bias[0] if bias else None, self.stride, padding, groups=x.shape[1]
        )


class BatchNorm(Elastic, nn.BatchNorm2d):
    """Batch normalisation of the input's channels; its statistics are sliced as its weights.

    Args:
        channels: channels at most.
        gain: initial weight (SHViT starts the last norm of a branch at 0).
    """

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        nn.BatchNorm2d.__init__(self, channels)
        nn.init.constant_(self.weight, gain)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and the running variance."""
        _, _, mean, variance = self.stored()
        return mean, variance

    def narrow(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return weight, bias, running mean and running variance for this input."""
        return tuple(corner(t, x.shape[1]) for t in self.stored())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)`` over batch and space."""
        weight, bias, mean, variance = self.narrow(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(x, mean, variance, weight, bias, self.training, momentum, self.eps)


class LayerNorm(Elastic):
    """Layer normalisation over the channels of a ``(B, C, H, W)`` map, at each position.

    Args:
        channels: channels at most.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def narrow(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return weight and bias for this input."""
        return corner(self.weight, x.shape[1]), corner(self.bias, x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position over its channels."""
        weight, bias = self.narrow(x)
        y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.eps)
        return y.permute(0, 3, 1, 2)


class GroupNorm(Elastic):
    """Group normalisation with one group: statistics over ``C * H * W`` of each sample.

    Args:
        channels: channels at most.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def narrow(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return weight and bias for this input."""
        return corner(self.weight, x.shape[1]), corner(self.bias, x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample as a whole."""
        weight, bias = self.narrow(x)
        return F.group_norm(x, 1, weight, bias, self.eps)


class Scale(Elastic):
    """A learnt factor for each channel (layer scale, CaiT).

    Args:
        channels: channels at most.
        gain: initial factor.
    """

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), gain))

    def narrow(self, x: Tensor, gain: float = 1.0) -> tuple[Tensor]:  # type: ignore[override]
        """Return the factors of this input's channels, times a gain."""
        weight = corner(self.weight, x.shape[1])
        return (weight if gain == 1.0 else weight * gain,)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Multiply each channel of ``(B, C, H, W)`` by its factor, times a gain."""
        (weight,) = self.narrow(x, gain)
        return x * weight[:, None, None]


@torch.no_grad()
def extract_weights(
    source: nn.Module,
    target: nn.Module,
    run: Callable[[], object],
    origins: Mapping[str, str] | None = None,
) -> None:
    """Copy into `target` the tensors that `source` uses in one forward pass.

    Args:
        source: a network of elastic layers.
        target: a smaller network whose elastic layers bear the same names.
        run: performs one forward pass of `source` in evaluation mode.
        origins: layers of `target`, and modules of such, that `source` has under another name,
            each with that name.

    Raises:
        RuntimeError: if a tensor of `target` is not fed by an elastic layer of `source`, which
            is a bug in the module that owns it.
    """
    wanted = {n: m for n, m in target.named_modules() if isinstance(m, Elastic)}
    missing = {name for name, _ in target.named_parameters()}
    missing |= {n for n, b in target.named_buffers() if b.is_floating_point()}

    def copy_into(name: str, layer: Elastic) -> Callable[..., None]:
        def hook(
            module: Elastic, args: tuple[Tensor, ...], kwargs: dict[str, int], _: Tensor
        ) -> None:
            for mine, theirs in zip(layer.stored(), module.narrow(*args, **kwargs), strict=True):
                mine.copy_(theirs.reshape(mine.shape))
            for kind in (layer.named_parameters(recurse=False), layer.named_buffers(recurse=False)):
                missing.difference_update(f"{name}.{leaf}" for leaf, _ in kind)

        return hook

    layers = dict(source.named_modules())
    hooks = [
        layers[_origin(name, origins or {})].register_forward_hook(
            copy_into(name, layer), with_kwargs=True
        )
        for name, layer in wanted.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if missing:
        raise RuntimeError(
            f"not extracted: {', '.join(sorted(missing))}; hold every parameter in a layer of "
            "mixnas.elastic"
        )


def _origin(name: str, origins: Mapping[str, str]) -> str:
    """Return a layer's name in the source: what stands for its longest prefix, again and again."""
    for end in range(len(name), 0, -1):
        if (end == len(name) or name[end] == ".") and name[:end] in origins:
            return origins[name[:end]] + name[end:]
    return name
