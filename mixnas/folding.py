"""`fuse`: a network for inference, with its batch norms folded into the layers before them.

A module that can be folded says how: its method ``folded()`` returns the module that takes its
place, usually itself or one of its layers. Nothing else has to know which modules there are, so
the zoo's networks, discovered ones and a mixer of another package fold alike.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def fuse(network: ModuleType) -> ModuleType:
    """Return a copy for inference in which every batch norm that can be folded is.

    A batch norm of known statistics is an affine map of each channel. Right behind a linear
    layer or a convolution it is folded into its weight and bias, which changes a network's
    outputs by rounding only; ``x + BN(depthwise(x))`` becomes one convolution. Batch norms
    elsewhere (before a padded convolution, say) stay.

    Args:
        network: left as it is.

    Returns:
        The folded copy, in evaluation mode, not meant to be trained further.
    """
    with torch.no_grad():
        return _folded(copy.deepcopy(network)).eval()  # what came in place of a norm too


def _folded(module: ModuleType) -> ModuleType:
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    own = getattr(module, "folded", None)
    return own() if callable(own) else module


def fold(layer: ModuleType, norm: nn.Module) -> ModuleType:
    """Fold a batch norm into the linear layer or convolution before it, in place.

    Args:
        layer: its weight's leading axes, flattened, are the norm's channels: ``(out, ...)`` of a
            convolution or a linear layer, ``(groups, out, in)`` of an elastic one.
        norm: over those channels.

    Returns:
        The layer.
    """
    scale, shift = affine(norm)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    rows = weight.double().reshape(len(scale), -1)
    if isinstance(bias, Tensor):
        shift = shift + scale * bias.double().flatten()
    axes = weight.shape[: 1 if weight.shape[0] == len(scale) else 2]
    layer.weight = nn.Parameter((rows * scale[:, None]).reshape(weight.shape).to(weight.dtype))
    layer.bias = nn.Parameter(shift.reshape(axes).to(weight.dtype))
    return layer


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor and the addend of each channel that a batch norm amounts to, in float64."""
    weight, bias, mean, variance = (
        getattr(norm, name).double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * torch.rsqrt(variance + norm.eps)
    return scale, bias - mean * scale
