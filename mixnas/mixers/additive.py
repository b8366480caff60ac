"""Additive attention (Fastformer; Wu et al., 2021, arXiv 2108.09084), the mixer of FViT."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import Linear, Table, grid, tokens
from mixnas.errors import did_you_mean
from mixnas.mixers import Choices, Mixer, heads_fit, in_graph, register

READINGS = {"score": ("full", "head"), "value": ("query", "own")}
"""What may be read in more than one way, the authors' notebook first."""


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

    This is the authors' PyTorch notebook: no value projection, no output projection. The mixer is
    blind to position. Parameters 3C^2 + 3C + 2(hC + h); multiply-adds N(3C^2 + 2hC) + 2NC,
    where the two weighted sums are matrix products.

    Other readings are options. A score may be one vector of the head width, shared by the heads,
    on each head's own channels (``score="head"``; parameters 3C^2 + 3C + 2(d + 1), multiply-adds
    N(3C^2 + 2C) + 2NC): only so do the counts of FViT agree with all that is published of it. The
    value may have a projection of its own (``value="own"``), and a linear layer may follow
    (``project=True``): C^2 + C parameters and NC^2 multiply-adds each, for which the published
    counts have no room.

    Args:
        dim: channels C at most, a multiple of `head_width`.
        head_width: channels d of one head; a narrower slice drops heads.
        score: what a head's score sees: ``"full"``, all of the vector, or ``"head"``, the head's
            own channels, by weights that the heads share.
        value: ``"query"``, shared with the query, or ``"own"``.
        project: whether a linear layer follows.
        qkv_bias: whether query, key and value have a bias.
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {"head_width": (32,)}
    shift_invariant = ("query_score.bias", "key_score_bias.value")
    summary = "Fastformer (FViT): a global query and a global key by additive attention; O(N)"

    def __init__(
        self,
        dim: int,
        *,
        head_width: Choices = 32,
        score: Literal["full", "head"] = "full",
        value: Literal["query", "own"] = "query",
        project: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, head_width=head_width)
        self.per_head = score == "head"
        widths = self.choices["head_width"]
        seen, scores = (max(widths), 1) if self.per_head else (dim, dim // min(widths))
        self.query_key = Linear(dim, dim, groups=2, bias=qkv_bias)
        self.query_score = Linear(seen, scores)
        self.key_score = Table(scores, seen, init=partial(nn.init.trunc_normal_, std=0.02))
        self.key_score_bias = Table(scores)
        self.value = Linear(dim, dim, bias=qkv_bias) if value == "own" else None
        self.transform = Linear(dim, dim)
        self.project = Linear(dim, dim) if project else None

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Heads must divide the width; `score` and `value` have two readings each."""
        for option, known in READINGS.items():
            if option in knobs and knobs[option] not in known:
                return f"no {option} '{knobs[option]}'; {did_you_mean(str(knobs[option]), known)}"
        return heads_fit(dim, knobs)

    def forward(self, x: Tensor, *, head_width: int | None = None) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        channels, height, width = x.shape[1:]
        head_width = self.pick("head_width", head_width)
        heads = channels // head_width
        x = tokens(x)
        query, key = self.query_key(x, channels).chunk(2, dim=-1)
        value = query if self.value is None else self.value(x, channels)
        pooled_query = pool(self._query_score(query, heads, head_width), query, head_width)
        # p = g * k is never formed: its scores are k (Wb * g)^T, its sum is g times the sum of k.
        score = self._key_score(key, pooled_query, head_width)
        pooled_key = pool(score, key, head_width) * pooled_query
        mixed = self.transform(pooled_key * value, channels).add_(query)
        if self.project is not None:
            mixed = self.project(mixed, channels)
        return grid(mixed, height, width)

    def _query_score(self, query: Tensor, heads: int, head_width: int) -> Tensor:
        """Return the scores ``(B, N, h)`` of ``(B, N, C)`` queries."""
        if self.per_head:
            return self.query_score(query.unflatten(-1, (-1, head_width))).squeeze(-1)
        return self.query_score(query, heads)

    def _key_score(self, key: Tensor, pooled_query: Tensor, head_width: int) -> Tensor:
        """Return the scores ``(B, N, h)`` of the global query times ``(B, N, C)`` keys."""
        if self.per_head:
            key, pooled_query = (t.unflatten(-1, (-1, head_width)) for t in (key, pooled_query))
            weight = (self.key_score(1, head_width) * pooled_query).permute(0, 2, 3, 1)
            score = torch.matmul(key.transpose(1, 2), weight).squeeze(-1).transpose(1, 2)
            return score + self.key_score_bias(1)
        heads, channels = key.shape[-1] // head_width, key.shape[-1]
        weight = self.key_score(heads, channels) * pooled_query
        return torch.matmul(key, weight.transpose(1, 2)) + self.key_score_bias(heads)
