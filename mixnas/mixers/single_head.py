"""Single-head self-attention on part of the channels (SHViT; Yun and Ro, CVPR 2024)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import BatchNorm, GroupNorm, Linear, grid, tokens
from mixnas.folding import fold
from mixnas.mixers import Choices, Mixer, in_graph, register

KEY_WIDTH = 16
"""Width of query and key in every published SHViT."""


def part(channels: int, partial: float) -> int:
    """Return the attending channels; the small term keeps published parts like 48 of 224."""
    return int(int(channels) * partial + 1e-6)


FEW = 256
"""Up to so many tokens the weights are quicker formed than fused (timed on CPUs)."""


def attend(query: Tensor, key: Tensor, value: Tensor, key_width: int) -> Tensor:
    """Attend with values of another width than keys: ``(B, N, d)`` twice, ``(B, N, p)``.

    The fused CPU kernel wants equal widths: there the narrower are padded with zeros, the scale
    kept, which changes nothing. A traced or compiled graph holds the equations as they are, so
    that counted multiply-adds are N^2 (d + p).
    """
    scale = key_width**-0.5
    if query.shape[1] <= FEW:
        weights = torch.matmul(query * scale, key.transpose(1, 2)).softmax(dim=-1)
        return torch.matmul(weights, value)
    size = value.shape[-1]
    if value.device.type == "cpu" and not in_graph(value):
        widest = max(size, key_width)
        query, key, value = (F.pad(t, (0, widest - t.shape[-1])) for t in (query, key, value))
    query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)
    return mixed[..., :size]


@register("single_head")
class SingleHead(Mixer):
    """Attend with one head on the first channels and leave the others to the projection.

    With N tokens and ``p = int(C * partial)``, [x1, x2] the first p channels and the rest::

        q, k, v = split(BN(W1 GN(x1)), (d, d, p))          GN: one group, over p * H * W
        y       = softmax(q k^T / sqrt(d)) v
        out     = BN(W2 relu([y, x2]))                     the last BN starts at weight 0

    Parameters p(2d + p) + 2(2d + p) + 2p + C^2 + 2C; multiply-adds
    N p (2d + p) + N C^2 + N^2 (d + p): quadratic in N, on a part of the channels. The system
    puts no norm before it.

    Args:
        dim: channels C at most.
        partial: share of the channels that attend.
        key_width: channels d of query and of key: 16 in every published SHViT, a setting of
            each stage in the authors' class. A slice keeps all of them.
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {"partial": (0.25,)}
    norm = "none"
    # The keys' share of the bias, at the default key width.
    shift_invariant = (
        "part_norm.bias",
        f"fused_norm.bias[{KEY_WIDTH}:{2 * KEY_WIDTH}]",
    )
    summary = "SHSA (SHViT): one head on a part of the channels; O(N^2) on that part"

    def __init__(self, dim: int, *, partial: Choices = 0.25, key_width: int = KEY_WIDTH) -> None:
        super().__init__(dim, partial=partial)
        widest = part(dim, max(self.choices["partial"]))
        self.key_width = key_width
        self.part_norm = GroupNorm(widest)
        self.fused_norm: nn.Module
        self.project_norm: nn.Module
        self.fused = Linear(widest, 2 * key_width + widest, bias=False)
        self.fused_norm = BatchNorm(2 * key_width + widest)
        self.project = Linear(dim, dim, bias=False)
        self.project_norm = BatchNorm(dim, gain=0.0)

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """At least one channel must attend, and no more than there are."""
        if 1 <= part(dim, float(knobs["partial"])) <= dim:
            return None
        return f"partial={knobs['partial']} is not a share of its channels"

    def forward(self, x: Tensor, *, partial: float | None = None) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        first = part(channels, self.pick("partial", partial))
        keys = self.key_width
        fused = self.fused(tokens(self.part_norm(x[:, :first])), 2 * keys + first)
        fused = tokens(self.fused_norm(grid(fused, height, width)))
        query, key, value = fused.split((keys, keys, first), dim=-1)
        mixed = attend(query, key, value, keys)
        joined = torch.cat([mixed, tokens(x[:, first:])], dim=-1).relu_()
        return self.project_norm(grid(self.project(joined, channels), height, width))

    def folded(self) -> "SingleHead":
        """Fold both batch norms into their projections."""
        fold(self.fused, self.fused_norm)
        fold(self.project, self.project_norm)
        self.fused_norm = self.project_norm = nn.Identity()
        return self
