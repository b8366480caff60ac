"""What a network's time is made of: terms that add up over its parts, in models plain to rich.

A model gives each part its shares of some terms; a term's sum over a network times its coefficient
is what the term adds. Whatever the model, a network's figure is a sum over its segments, which is
what the dynamic programme and the search need.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mixnas.cost import count
from mixnas.network import Part

Floats = NDArray[np.float64]
Shares = dict[str, float]

CONSTANT = "network"
"""The term that each network has once, charged to its stem: starting, stopping, a last copy."""
MEGA = 1e-6


def _together(part: Part, figure: float) -> Shares:
    return {"parts": figure}


def _number(part: Part, figure: float) -> Shares:
    return {"parts": figure, "number": 1.0}


def _traffic(part: Part, figure: float) -> Shares:
    """Memory that a part alone finds in a cache, and in a network does not."""
    weights, inputs = MEGA * _params(part), MEGA * prod(part.shape)
    return {"parts": figure, "number": 1.0, "weights": weights, "activations": inputs}


def _stages(part: Part, figure: float) -> Shares:
    return {f"parts at {part.shape[1]}x{part.shape[2]}": figure}


def _kinds(part: Part, figure: float) -> Shares:
    return {f"parts: {part.kind}": figure}


def _mixers(part: Part, figure: float) -> Shares:
    return {f"parts: {part.spec[0] if part.kind == 'mixer' else part.kind}": figure}


MODELS: Mapping[str, Callable[[Part, float], Shares]] = MappingProxyType(
    {
        "parts": _together,
        "number": _number,
        "traffic": _traffic,
        "kinds": _kinds,
        "stages": _stages,
        "mixers": _mixers,
    }
)
"""Models by name, the plainest first: a constant and one factor of the parts' sum; that and the
number of parts; that and the bytes; and a factor for each kind of part, for each resolution, for
each kind and mixer."""


@cache
def _params(part: Part) -> int:
    return count.params(part)


def shares(model: str, part: Part, figure: float) -> Shares:
    """Return a part's shares of a model's terms.

    Args:
        model: a name of `MODELS`.
        part: the part.
        figure: what it takes when it is measured alone.
    """
    found = MODELS[model](part, figure)
    return {**found, CONSTANT: 1.0} if part.kind == "stem" else found


def scaled(term: str) -> bool:
    """Say whether a term is parts' figures, so that its coefficient is a factor near 1."""
    return term.startswith("parts")


def design(
    model: str, networks: Sequence[Sequence[Part]], figures: Mapping[Part, float]
) -> tuple[tuple[str, ...], Floats]:
    """Return a model's terms, sorted, and their sums over networks, ``(networks, terms)``.

    Args:
        model: a name of `MODELS`.
        networks: each network's parts.
        figures: the parts' figures.
    """
    known = {part: shares(model, part, figure) for part, figure in figures.items()}
    terms = tuple(sorted({term for found in known.values() for term in found} | {CONSTANT}))
    place = {term: index for index, term in enumerate(terms)}
    sums = np.zeros((len(networks), len(terms)))
    for row, taken in zip(sums, networks, strict=True):
        for part in taken:
            for term, share in known[part].items():
                row[place[term]] += share
    return terms, sums
