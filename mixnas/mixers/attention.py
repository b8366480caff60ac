"""Plain multi-head self-attention (Vaswani et al., 2017; ViT): the control with every pair."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mixnas.arch import Knob
from mixnas.elastic import Linear, grid, tokens
from mixnas.mixers import Choices, Mixer, heads_fit, register


def attend(
    query: Tensor, key: Tensor, value: Tensor, head_width: int, scale: float | None = None
) -> Tensor:
    """Softmax attention, heads side by side on the last axis.

    Strided views of a fused projection are taken as they are: the fused kernels of
    `scaled_dot_product_attention` need no copy.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        value: ``(B, M, C)``.
        head_width: channels of one head; divides C.
        scale: factor of the scores, ``head_width ** -0.5`` by default.

    Returns:
        ``(B, N, C)``.
    """
    query, key, value = (
        t.unflatten(-1, (-1, head_width)).transpose(1, 2) for t in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


@register("attention")
class Attention(Mixer):
    """Attend from every token to every token: ``softmax(q k^T / sqrt(d)) v``, then project.

    Parameters 4C^2 + 4C; multiply-adds 4NC^2 + 2N^2 C: quadratic in the N tokens.

    Args:
        dim: channels C at most, a multiple of `head_width`.
        head_width: channels d of one head; a narrower slice drops heads.
        qkv_bias: whether query, key and value have a bias.
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {"head_width": (32,)}
    shift_invariant = ("query_key_value.bias[1]",)
    summary = "control: multi-head softmax attention over all pairs of tokens; O(N^2)"

    def __init__(self, dim: int, *, head_width: Choices = 32, qkv_bias: bool = True) -> None:
        super().__init__(dim, head_width=head_width)
        self.query_key_value = Linear(dim, dim, groups=3, bias=qkv_bias)
        self.project = Linear(dim, dim)

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Heads must divide the width."""
        return heads_fit(dim, knobs)

    def forward(self, x: Tensor, *, head_width: int | None = None) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        head_width = self.pick("head_width", head_width)
        query, key, value = self.query_key_value(tokens(x), channels).chunk(3, dim=-1)
        mixed = attend(query, key, value, head_width)
        return grid(self.project(mixed, channels), height, width)
