"""`cosines`: how far gradients of architectures that share weights agree.

Two architectures alike but for one gene (a block's mixer) share all other parameters. The cosine
of their gradients there, on the same batch, says whether the two want the same of what they share;
that of one architecture on two batches says how much of any disagreement is noise.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import nan, sqrt
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixnas.arch import Architecture
from mixnas.network import Network
from mixnas.space import SearchSpace
from mixnas.train.conflict import still

Gradients = dict[str, Tensor]
Matrix = tuple[tuple[float, ...], ...]

TRIES = 50
"""Draws at most for one group."""

_KINDS = {"stems": "stem", "merges": "merge", "norms": "head"}


@dataclass(frozen=True)
class Group:
    """Architectures alike but for one gene.

    Attributes:
        key: the gene ("s8.b0.mixer").
        archs: the architectures by its value.
    """

    key: str
    archs: Mapping[Any, Architecture]


@dataclass(frozen=True)
class Cosines:
    """How gradients of architectures that differ in one gene lie to each other.

    Attributes:
        gene: the last part of the genes' keys: "mixer", "width", "ratio", "depth", "stem".
        values: its values, in order; the axes of every matrix.
        groups: architectures whose gene was varied.
        same: mean cosine of each pair of values, on the same batch; 1 on the diagonal.
        apart: the same on two different batches: its diagonal is what a batch's noise leaves of
            a value's agreement with itself.
        error: standard errors of `same`.
        parts: mean cosine on the same batch by kind of part, NaN on the diagonal. Parts of the
            block that was varied are told apart ("mlp beside").
    """

    gene: str
    values: tuple[Any, ...]
    groups: int
    same: Matrix
    apart: Matrix
    error: Matrix
    parts: Mapping[str, Matrix]


def groups(
    space: SearchSpace,
    gene: str,
    *,
    count: int,
    rng: Random,
    within: Container[Architecture] | None = None,
) -> Iterator[Group]:
    """Yield random architectures, one of whose genes takes each of its values.

    What a value alone brings along (a mixer's knobs, a deeper stage's blocks) is drawn once.

    Args:
        space: the space.
        gene: the last part of the gene's key ("mixer").
        count: how many groups; fewer, if hardly any draw has two architectures that are kept.
        rng: the source of randomness.
        within: what is kept of the architectures, a `Feasible` for one; all by default.
    """
    found = (_group(space, gene, rng, within) for _ in range(TRIES * count))
    yield from islice((group for group in found if len(group.archs) > 1), count)


def _group(
    space: SearchSpace, gene: str, rng: Random, within: Container[Architecture] | None
) -> Group:
    """Draw an architecture and vary one of its genes; perhaps there is none to vary."""
    choose = _Remembering(rng)
    base = space.genotype(space.pick(choose))
    keys = [k for k in base if k.rsplit(".", 1)[-1] == gene and len(space.genes[k]) > 1]
    if not keys:
        return Group("", {})
    key = rng.choice(keys)
    found: dict[Any, Architecture] = {}
    for value in space.genes[key]:
        choose.genes[key] = value
        found[value] = space.pick(choose)
    return Group(key, {value: a for value, a in found.items() if within is None or a in within})


class _Remembering:
    """Chooses at random, and the same whenever it is asked for a gene again."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.genes: dict[str, Any] = {}

    def __call__(self, key: str, choices: tuple[Any, ...]) -> Any:
        if key not in self.genes:
            self.genes[key] = self.rng.choice(choices)
        return self.genes[key]


def cosines(
    network: Network, gene: str, found: Iterable[Group], batches: Iterator[tuple[Tensor, Tensor]]
) -> Cosines:
    """Measure the cosine of the gradients of architectures that differ in one gene.

    The gradient is that of the mean cross-entropy with the labels, in training mode; each pair is
    compared on the parameters, and the corners of them, that both use. The network is left as it
    was, its gradients and statistics too.

    Args:
        network: the supernet.
        gene: what the groups differ in.
        found: the groups.
        batches: images ``(B, C, H, W)`` and labels ``(B,)``; each group takes two.
    """
    seen: dict[tuple[str, Any, Any], list[float]] = defaultdict(list)
    number = 0
    for group in found:
        number += 1
        first, second = (_gradients(network, group, next(batches)) for _ in range(2))
        for one in group.archs:
            for other in group.archs:
                by_part = _compared(first[one], first[other], group.key)
                seen["same", one, other].append(by_part.pop("all"))
                seen["apart", one, other].append(_compared(first[one], second[other], "")["all"])
                for part, cosine in by_part.items() if one != other else ():
                    seen[part, one, other].append(cosine)
    values = tuple(sorted({one for _, one, _ in seen}))
    kinds = sorted({kind for kind, _, _ in seen} - {"same", "apart"})

    def matrix(kind: str, of: Callable[[Sequence[float]], float]) -> Matrix:
        return tuple(tuple(of(seen.get((kind, a, b), ())) for b in values) for a in values)

    return Cosines(
        gene=gene,
        values=values,
        groups=number,
        same=matrix("same", _mean),
        apart=matrix("apart", _mean),
        error=matrix("same", _error),
        parts={kind: matrix(kind, _mean) for kind in kinds},
    )


def _gradients(
    network: Network, group: Group, batch: tuple[Tensor, Tensor]
) -> dict[Any, Gradients]:
    """Return the gradient of each of a group's architectures on a batch, by parameter."""
    training, device = network.training, next(network.parameters()).device
    images, labels = batch[0].to(device), batch[1].to(device)
    named = dict(network.named_parameters())
    found: dict[Any, Gradients] = {}
    network.train()
    try:
        with still(network):
            for value, arch in group.archs.items():
                loss = F.cross_entropy(network(images, arch).float(), labels)
                taken = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
                pairs = zip(named, taken, strict=True)
                found[value] = {name: g.double() for name, g in pairs if g is not None}
    finally:
        network.train(training)
    return found


def _compared(one: Gradients, other: Gradients, key: str) -> dict[str, float]:
    """Return the cosine on what both use, "all" of it and by kind of part."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name in one.keys() & other.keys():
        first, second = one[name], other[name]
        both = (first != 0) & (second != 0)  # outside its corner a gradient is nought
        products = (first * second)[both], first[both].square(), second[both].square()
        for kind in ("all", _part(name, key)):
            for place, product in enumerate(products):
                sums[kind][place] += float(product.sum())
    return {
        kind: product / sqrt(mine * theirs) if mine and theirs else 0.0
        for kind, (product, mine, theirs) in sums.items()
    }


def _part(name: str, key: str) -> str:
    """Return the kind of part that a parameter belongs to, and whether it is beside the gene."""
    kind, *rest = name.split(".")
    if kind != "stages":
        return _KINDS.get(kind, kind)
    stride, index, part = rest[:3]
    beside = key.startswith(f"s{stride}.b{index}.")
    return f"{part} beside" if beside else part


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return nan
    mean = _mean(values)
    return sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
