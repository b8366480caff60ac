"""`FeasibleSet`: what a search and its samplers ask of the architectures within the limits."""

from collections.abc import Mapping
from random import Random
from typing import Any, Protocol

from mixnas.arch import Architecture


class FeasibleSet(Protocol):
    """The architectures within the limits, as `mixnas.cost.feasible.Feasible` offers them."""

    def __contains__(self, arch: Architecture) -> bool: ...

    def bounds(self) -> tuple[int, int]:
        """Return a lower and an upper bound of how many there are."""

    def sample(self, rng: Random, given: Mapping[str, Any] | None = None) -> Architecture:
        """Draw one uniformly."""

    def nearest(self, arch: Architecture) -> Architecture:
        """Return the feasible neighbour of an architecture."""
