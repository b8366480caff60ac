"""Additive attention (Fastformer; Wu et al., 2021, arXiv 2108.09084), the mixer of FViT."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import Linear, Table, grid, tokens
from mixnas.mixers import Choices, Mixer, heads_fit, in_graph, register


def pool(score: Tensor, values: Tensor, head_width: int) -> Tensor:
    """Sum ``(B, N, C)`` over the tokens, each head by the softmax of its own scores.

    Args:
        score: ``(B, N, h)``.
        values: ``(B, N, C)``, with ``C = h * head_width``.
        head_width: channels of one head; scores are divided by its root.

    Returns:
        ``(B, 1, C)``.
    """
    weights = (score * head_width**-0.5).softmax(dim=1).transpose(1, 2)
    if in_graph(values):
        split = values.unflatten(-1, (-1, head_width)).transpose(1, 2)
        return torch.matmul(weights.unsqueeze(2), split).flatten(1).unsqueeze(1)
    # Every head's weights on every channel, of which the head's own are kept: a few per cent more
    # products of the whole mixer, yet quicker than the copy that parts the heads.
    summed = torch.matmul(weights, values).unflatten(-1, (-1, head_width))
    return summed.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1).unsqueeze(1)


@register("additive")
class Additive(Mixer):
    """Mix tokens through one global query and one global key, linear in the tokens.

    With N tokens, h heads of width d and ``q = x Wq + bq``, ``k = x Wk + bk``::

        alpha = softmax_N((q Wa + ba) / sqrt(d))          (N, h): each head sees all of q
        g     = concat_h sum_n alpha[n, h] q[n, h]        (C): the global query
        p     = g * k
        beta  = softmax_N((p Wb + bb) / sqrt(d))
        u     = (concat_h sum_n beta[n, h] p[n, h]) * q   the value is the query (v = q)
        out   = u Wt + bt + q                             the residual is the query

    As in the authors' PyTorch notebook: no value projection, no output projection. The mixer is
    blind to position. Parameters 3C^2 + 3C + 2(hC + h); multiply-adds N(3C^2 + 2hC) + 2NC,
    where the two weighted sums are matrix products.

    Args:
        dim: channels C at most, a multiple of `head_width`.
        head_width: channels d of one head; a narrower slice drops heads.
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {"head_width": (32,)}
    shift_invariant = ("query_score.bias", "key_score_bias.value")
    summary = "Fastformer (FViT): a global query and a global key by additive attention; O(N)"

    def __init__(self, dim: int, *, head_width: Choices = 32) -> None:
        super().__init__(dim, head_width=head_width)
        heads = dim // min(self.choices["head_width"])
        self.query_key = Linear(dim, dim, groups=2)
        self.query_score = Linear(dim, heads)
        self.key_score = Table(heads, dim, init=partial(nn.init.trunc_normal_, std=0.02))
        self.key_score_bias = Table(heads)
        self.transform = Linear(dim, dim)

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Heads must divide the width."""
        return heads_fit(dim, knobs)

    def forward(self, x: Tensor, *, head_width: int | None = None) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        head_width = self.pick("head_width", head_width)
        heads = channels // head_width
        query, key = self.query_key(tokens(x), channels).chunk(2, dim=-1)
        pooled_query = pool(self.query_score(query, heads), query, head_width)
        # p = g * k is never formed: its scores are k (Wb * g)^T, its sum is g times the sum of k.
        key_score = self.key_score(heads, channels) * pooled_query
        score = torch.matmul(key, key_score.transpose(1, 2)) + self.key_score_bias(heads)
        pooled_key = pool(score, key, head_width) * pooled_query
        mixed = self.transform(pooled_key * query, channels).add_(query)
        return grid(mixed, height, width)
