"""XNorm attention (UFO-ViT; Song, 2021, arXiv 2109.14382): linear attention without softmax."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import Linear, Table, grid, tokens
from mixnas.mixers import Choices, Mixer, register


def embedding(channels: int, head_width: int, bottleneck: float) -> int:
    """Return the width inside the mixer: the nearest number of whole heads, at least one."""
    return max(1, round(int(channels) * bottleneck / head_width)) * head_width


@register("xnorm")
class XNorm(Mixer):
    """Multiply ``K^T V`` first and normalise instead of softmax: linear in the tokens.

    With N tokens, h heads of width d, e = h d, and ``XN(a) = gamma a / |a|`` with one gamma a
    head, shared by both norms; per head::

        q, k, v = x Wq + bq, x Wk + bk, x Wv + bv          each (N, d)
        o       = XN_d(q) XN(k^T v)                        q over its channels
        out     = concat_h(o) Wo + bo

    The matrix k^T v is normalised over the axis that q is contracted with, so that each entry
    of o is gamma^2 times a cosine; ``axis="value"`` normalises the other one, as a widespread
    port does. No softmax, no scale. The paper names no epsilon: `eps` is added to the sum of
    squares (0 for parity), since a row of zeros has no direction.

    Parameters 4Ce + 3e + C + h; multiply-adds 4NCe + 2Ne^2 / h.

    Args:
        dim: channels C at most.
        head_width: channels d of one head; a narrower slice drops heads.
        bottleneck: e over C, rounded to whole heads (UFO-ViT has 1/2, 1/3 and 1/4).
        axis: the axis of k^T v that is normalised, that of the keys or that of the values.
        eps: added to the sums of squares.
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {"head_width": (32,), "bottleneck": (1.0,)}
    summary = "XNorm (UFO-ViT): K^T V first, two norms in place of softmax; O(N)"

    def __init__(
        self,
        dim: int,
        *,
        head_width: Choices = 32,
        bottleneck: Choices = 1.0,
        axis: Literal["key", "value"] = "key",
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dim, head_width=head_width, bottleneck=bottleneck)
        widths, most = self.choices["head_width"], max(self.choices["bottleneck"])
        widest = max(embedding(dim, width, most) for width in widths)
        self.axis = {"key": -2, "value": -1}[axis]
        self.eps = eps
        self.query_key_value = Linear(dim, widest, groups=3)
        self.gamma = Table(widest // min(widths), init=nn.init.ones_)
        self.project = Linear(widest, dim)

    @classmethod
    def head_span(cls, dim: int, **knobs: Any) -> int:
        """All heads share the width inside the mixer."""
        bottleneck = knobs.get("bottleneck", cls.knobs["bottleneck"][0])
        return round(dim * (max(bottleneck) if isinstance(bottleneck, tuple) else bottleneck))

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Any width will do; the bottleneck must be positive."""
        if float(knobs["bottleneck"]) > 0:
            return None
        return f"bottleneck={knobs['bottleneck']} is not positive"

    def forward(
        self, x: Tensor, *, head_width: int | None = None, bottleneck: float | None = None
    ) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        head_width = self.pick("head_width", head_width)
        inner = embedding(channels, head_width, self.pick("bottleneck", bottleneck))
        query, key, value = self.query_key_value(tokens(x), inner).chunk(3, dim=-1)
        mixed = self.mix(query, key, value, head_width)
        return grid(self.project(mixed, channels), height, width)

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        """Map ``(B, Q, C)`` queries over a ``(B, N, C)`` context, as class attention does.

        One choice of each knob is needed, as in a network of one architecture.
        """
        channels = queries.shape[-1]
        head_width = self.pick("head_width", None)
        inner = embedding(channels, head_width, self.pick("bottleneck", None))
        weight, bias = self.query_key_value.narrow(context, inner)
        query = F.linear(queries, weight[0], bias[0])
        fused = F.linear(context, weight[1:].flatten(0, 1), bias[1:].flatten())
        key, value = fused.chunk(2, dim=-1)
        return self.project(self.mix(query, key, value, head_width), channels)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, head_width: int) -> Tensor:
        """Apply the two norms to ``(B, N, e)`` projections; return ``(B, N, e)``."""
        query, key, value = (
            t.unflatten(-1, (-1, head_width)).transpose(1, 2) for t in (query, key, value)
        )
        gamma = self.gamma(query.shape[1])[:, None, None]
        clusters = torch.matmul(key.transpose(-2, -1), value)
        clusters = clusters * (gamma.square() * self.inverse_norm(clusters, self.axis))
        mixed = torch.matmul(query, clusters).mul_(self.inverse_norm(query, -1))
        return mixed.transpose(1, 2).flatten(2)

    def inverse_norm(self, x: Tensor, axis: int) -> Tensor:
        """Return one over the length along an axis, kept as an axis of size 1.

        Squares of half precision are summed in float32, where they cannot overflow.
        """
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        return (full.square().sum(axis, keepdim=True) + self.eps).rsqrt().to(x.dtype)
