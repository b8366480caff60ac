"""XNorm attention (UFO-ViT; Song, 2021, arXiv 2109.14382): linear attention without softmax."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import Linear, Table, grid, tokens
from mixnas.mixers import Choices, Mixer, register

KINDS: dict[str, tuple[str | int, ...]] = {
    "axis": ("key", "value"),
    "value": ("bottleneck", "full"),
    "gammas": (1, 2),
}
"""Options of which there are a few kinds, the default first."""


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

    No code of the authors is known, so what the paper leaves open is an option; the defaults are
    the simplest reading.

    Parameters 4Ce + 3e + C + h; multiply-adds 4NCe + 2Ne^2 / h.

    Args:
        dim: channels C at most.
        head_width: channels d of one head; a narrower slice drops heads.
        bottleneck: e over C, rounded to whole heads (UFO-ViT has 1/2, 1/3 and 1/4).
        axis: the axis of k^T v that is normalised, that of the keys or that of the values.
        eps: added to the sums of squares.
        value: ``"bottleneck"``: values have the width of the keys. ``"full"``: values and the
            output projection have the full width C, each head C / h of it: parameters
            2Ce + 2e + 2C^2 + 2C + h, multiply-adds 2NCe + 2NC^2 + 2NCe / h.
        gammas: 1: both norms share a head's gamma, its square scales the head and cannot be
            negative. 2: each norm has its own; their product may change sign. Either way the
            function computed is one factor a head: only training differs.
        gamma_init: initial gamma, 1 for unit lengths; ``"normal"`` draws it from N(0, 1), as a
            widespread port does, so that some heads start nearly shut.
        qkv_bias: whether query, key and value have a bias; without it the mixer's branch is
            homogeneous in x of degree 0: only the directions of tokens count.
        project_bias: whether the output projection has one.
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
        value: Literal["bottleneck", "full"] = "bottleneck",
        gammas: Literal[1, 2] = 1,
        gamma_init: float | Literal["normal"] = 1.0,
        qkv_bias: bool = True,
        project_bias: bool = True,
    ) -> None:
        super().__init__(dim, head_width=head_width, bottleneck=bottleneck)
        widths, most = self.choices["head_width"], max(self.choices["bottleneck"])
        widest = max(embedding(dim, width, most) for width in widths)
        heads = widest // min(widths)
        self.axis = {"key": -2, "value": -1}[axis]
        self.eps = eps
        self.full, self.gammas = value == "full", gammas
        if self.full:
            self.query_key = Linear(dim, widest, groups=2, bias=qkv_bias)
            self.value = Linear(dim, dim, bias=qkv_bias)
        else:
            self.query_key_value = Linear(dim, widest, groups=3, bias=qkv_bias)
        initial = (
            nn.init.normal_
            if gamma_init == "normal"
            else partial(nn.init.constant_, val=float(gamma_init))
        )
        self.gamma = Table(*((heads,) if gammas == 1 else (2, heads)), init=initial)
        self.project = Linear(dim if self.full else widest, dim, bias=project_bias)

    @classmethod
    def head_span(cls, dim: int, **knobs: Any) -> int:
        """All heads share the width inside the mixer."""
        bottleneck = knobs.get("bottleneck", cls.knobs["bottleneck"][0])
        return round(dim * (max(bottleneck) if isinstance(bottleneck, tuple) else bottleneck))

    @classmethod
    def check(cls, dim: int, **knobs: Any) -> str | None:
        """The bottleneck must be positive, heads must share a full width, kinds must be known."""
        bottleneck = float(knobs["bottleneck"])
        if bottleneck <= 0:
            return f"bottleneck={knobs['bottleneck']} is not positive"
        head_width = int(knobs["head_width"])
        heads = embedding(dim, head_width, bottleneck) // head_width
        if knobs.get("value") == "full" and dim % heads:
            return f"value='full' needs a width that its {heads} heads divide"
        for option, kinds in KINDS.items():
            if knobs.get(option, kinds[0]) not in kinds:
                return f"{option}={knobs[option]!r} is not one of {kinds}"
        return None

    def forward(
        self, x: Tensor, *, head_width: int | None = None, bottleneck: float | None = None
    ) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        head_width = self.pick("head_width", head_width)
        inner = embedding(channels, head_width, self.pick("bottleneck", bottleneck))
        sequence = tokens(x)
        if self.full:
            query, key = self.query_key(sequence, inner).chunk(2, dim=-1)
            value = self.value(sequence, channels)
        else:
            query, key, value = self.query_key_value(sequence, inner).chunk(3, dim=-1)
        mixed = self.mix(query, key, value, inner // head_width)
        return grid(self.project(mixed, channels), height, width)

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        """Map ``(B, Q, C)`` queries over a ``(B, N, C)`` context, as class attention does.

        One choice of each knob is needed, as in a network of one architecture.
        """
        channels = queries.shape[-1]
        head_width = self.pick("head_width", None)
        inner = embedding(channels, head_width, self.pick("bottleneck", None))
        if self.full:
            query = self.part(self.query_key, slice(1), queries, inner)
            key = self.part(self.query_key, slice(1, None), context, inner)
            value = self.value(context, channels)
        else:
            query = self.part(self.query_key_value, slice(1), queries, inner)
            fused = self.part(self.query_key_value, slice(1, None), context, inner)
            key, value = fused.chunk(2, dim=-1)
        return self.project(self.mix(query, key, value, inner // head_width), channels)

    def part(self, fused: Linear, groups: slice, x: Tensor, out: int) -> Tensor:
        """Apply some of a fused layer's projections to ``(B, N, C)`` tokens."""
        weight, *bias = (tensor[groups].flatten(0, 1) for tensor in fused.narrow(x, out))
        return F.linear(x, weight, *bias)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Apply the two norms to ``(B, N, ...)`` projections; return ``(B, N, value's)``."""
        query, key, value = (
            t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value)
        )
        gamma = self.gamma(heads).square() if self.gammas == 1 else self.gamma(2, heads).prod(0)
        clusters = torch.matmul(key.transpose(-2, -1), value)
        clusters = clusters * (gamma[:, None, None] * self.inverse_norm(clusters, self.axis))
        mixed = torch.matmul(query, clusters).mul_(self.inverse_norm(query, -1))
        return mixed.transpose(1, 2).flatten(2)

    def inverse_norm(self, x: Tensor, axis: int) -> Tensor:
        """Return one over the length along an axis, kept as an axis of size 1.

        Squares of half precision are summed in float32, where they cannot overflow.
        """
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        return (full.square().sum(axis, keepdim=True) + self.eps).rsqrt().to(x.dtype)
