"""HiLo attention (LITv2; Pan, Cai and Zhuang, NeurIPS 2022, arXiv 2205.13213)."""

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mixnas.arch import Knob
from mixnas.elastic import Linear
from mixnas.mixers import Choices, Mixer, heads_fit, register
from mixnas.mixers.attention import attend


def split(channels: int, head_width: int, window: int, alpha: float) -> tuple[int, int]:
    """Return the channels of the high and of the low branch; ``int`` truncates as published."""
    heads = int(channels) // head_width
    low = heads if window == 1 else int(heads * alpha)
    return (heads - low) * head_width, low * head_width


@register("hilo")
class HiLo(Mixer):
    """Attend inside windows with some heads, to the windows' means with the others.

    With N tokens, windows of s x s, M = N / s^2, h heads of width d = C / h, and
    ``C_lo = d * int(h * alpha)``, ``C_hi = C - C_lo``::

        high = softmax(q k^T / sqrt(d)) v over the s^2 tokens of a window, then C_hi -> C_hi
        low  = the same with q from every token, k and v from the M means, then C_lo -> C_lo
        out  = [high, low]                     nothing mixes the two halves afterwards

    A window of 1 is plain multi-head attention, all of it low, whatever alpha says. Sizes that
    the window does not divide are padded with zeros at the right and the bottom and cropped
    after; padded tokens take part in both branches, as in the authors' dense-prediction code.

    Parameters 3C^2 + C_hi^2 + C_lo^2 + 4C; multiply-adds
    ``3 N C C_hi + 2 N s^2 C_hi + N C_hi^2 + N C C_lo + 2 M C C_lo + 2 N M C_lo + N C_lo^2``:
    quadratic in N, divided by s^2.

    Args:
        dim: channels C at most, a multiple of `head_width`.
        head_width: channels d of one head; a narrower slice drops heads.
        window: side s of a window.
        alpha: share of the heads that are low.
        qkv_bias: whether queries, keys and values have a bias (every LITv2 has).
        scale: factor of the scores, ``head_width ** -0.5`` by default (every LITv2's).
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {
        "head_width": (32,),
        "window": (2,),
        "alpha": (0.5,),
    }
    shift_invariant = ("high_query_key_value.bias[1]", "low_key_value.bias[0]")
    summary = "HiLo (LITv2): windows for high, pooled keys for low frequencies; O(N^2 / window^2)"

    def __init__(
        self,
        dim: int,
        *,
        head_width: Choices = 32,
        window: Choices = 2,
        alpha: Choices = 0.5,
        qkv_bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__(dim, head_width=head_width, window=window, alpha=alpha)
        self.scale = scale
        options = product(*(self.choices[name] for name in ("head_width", "window", "alpha")))
        splits = [split(dim, *option) for option in options]
        high, low = (max(sizes) for sizes in zip(*splits, strict=True))
        if high:
            self.high_query_key_value = Linear(dim, high, groups=3, bias=qkv_bias)
            self.high_project = Linear(high, high)
        if low:
            self.low_query = Linear(dim, low, bias=qkv_bias)
            self.low_key_value = Linear(dim, low, groups=2, bias=qkv_bias)
            self.low_project = Linear(low, low)

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Heads must divide the width, the window be a whole number, alpha a share."""
        if int(knobs["window"]) < 1:
            return f"window={knobs['window']} is less than 1"
        if not 0 <= float(knobs["alpha"]) <= 1:
            return f"alpha={knobs['alpha']} is not between 0 and 1"
        return heads_fit(dim, knobs)

    def forward(
        self,
        x: Tensor,
        *,
        head_width: int | None = None,
        window: int | None = None,
        alpha: float | None = None,
    ) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        height, width = x.shape[2:]
        head_width, window = self.pick("head_width", head_width), self.pick("window", window)
        high, low = split(x.shape[1], head_width, window, self.pick("alpha", alpha))
        right, bottom = -width % window, -height % window
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        rows, columns = x.shape[2] // window, x.shape[3] // window
        # Tokens stand window by window for the whole layer, which costs one copy of x: the low
        # queries do not mind their order, and the means are taken over one axis.
        windows = x.permute(0, 2, 3, 1).unflatten(2, (columns, window))
        windows = windows.unflatten(1, (rows, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        branches = []
        if high:
            branches.append(self.high(windows, high, head_width))
        if low:
            branches.append(self.low(windows, low, head_width))
        branches = [
            branch.view(-1, rows, columns, window, window, branch.shape[-1]).transpose(2, 3)
            for branch in branches
        ]
        mixed = torch.cat(branches, dim=-1) if len(branches) == 2 else branches[0]
        mixed = mixed.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        return mixed.permute(0, 3, 1, 2)

    def high(self, windows: Tensor, channels: int, head_width: int) -> Tensor:
        """Attend inside each window of ``(B, M, s^2, C)``; return ``(B, M, s^2, channels)``."""
        fused = self.high_query_key_value(windows, channels).flatten(0, 1)
        query, key, value = fused.chunk(3, dim=-1)
        mixed = attend(query, key, value, head_width, self.scale)
        return self.high_project(mixed, channels).unflatten(0, windows.shape[:2])

    def low(self, windows: Tensor, channels: int, head_width: int) -> Tensor:
        """Attend to the means of the windows; return ``(B, M, s^2, channels)``."""
        query = self.low_query(windows, channels).flatten(1, 2)
        key, value = self.low_key_value(windows.mean(dim=2), channels).chunk(2, dim=-1)
        mixed = attend(query, key, value, head_width, self.scale)
        return self.low_project(mixed, channels).unflatten(1, windows.shape[1:3])
