"""Successive halving: which of several trainings go on past a rung, decided by figures alone.

Synchronous: a rung is decided when all that are still in the race have reached it, and by what they
reached there. So the decisions are a function of the figures: neither the order in which trainings
end nor a kill between them changes any, and nothing but the trainings' own curves need be kept.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REDUCTION = 3
"""Of so many that reach a rung one goes on, and a rung has so many times the epochs of the last."""
BEFORE_LAST = 2
"""Rungs: the first one lies at the whole length divided so many times by `REDUCTION`."""
ASHA, NONE = "asha", "none"
SCHEDULERS = (ASHA, NONE)
"""How retrainings are stopped early: by successive halving, or not at all."""


@dataclass(frozen=True)
class Figure:
    """What a network reached on the images that judge an epoch.

    Attributes:
        accuracy: share of them that it named rightly, 0 to 1; -inf for a training that broke off.
        loss: its mean cross-entropy; decides between equal accuracies.
    """

    accuracy: float
    loss: float

    @property
    def order(self) -> tuple[float, float]:
        """The better, the greater; what is not a number is worse than all that is."""
        accuracy = -math.inf if math.isnan(self.accuracy) else self.accuracy
        return accuracy, -math.inf if math.isnan(self.loss) else -self.loss


WORST = Figure(-math.inf, math.inf)
"""Of a training that broke off."""


@dataclass(frozen=True)
class Stop:
    """Why a training was stopped.

    Attributes:
        epoch: after which.
        figure: what it had reached there.
        against: what the least of those that went on had reached there.
    """

    epoch: int
    figure: Figure
    against: Figure


@dataclass(frozen=True)
class Standing:
    """How a race stands.

    Attributes:
        alive: who is still in it, in the order given.
        stopped: who was stopped, and why.
        rung: the epoch that all who are alive must reach before any goes further; None once every
            rung is decided.
    """

    alive: tuple[str, ...]
    stopped: Mapping[str, Stop]
    rung: int | None


def rungs(epochs: int, scheduler: str = ASHA) -> tuple[int, ...]:
    """Return the epochs after which trainings are compared, the earliest first.

    The first rung is at a ninth of the whole length, rounded up; each further one has three times
    its epochs; the end itself is none.

    Args:
        epochs: of a whole training.
        scheduler: ``asha``, or ``none``, which has no rungs.
    """
    if scheduler == NONE:
        return ()
    found, rung = [], -(-epochs // REDUCTION**BEFORE_LAST)
    while rung < epochs:
        found.append(rung)
        rung *= REDUCTION
    return tuple(found)


def kept(number: int) -> int:
    """Return how many of `number` go on past a rung: a third, rounded up."""
    return -(-number // REDUCTION)


def survivors(figures: Mapping[str, Figure]) -> tuple[str, ...]:
    """Return who goes on: the best third, rounded up, and whoever equals the last of it."""
    if not figures:
        return ()
    least = _least(figures)
    return tuple(name for name, figure in figures.items() if figure.order >= least.order)


def race(
    names: Iterable[str], epochs: Iterable[int], figures: Mapping[str, Mapping[int, Figure]]
) -> Standing:
    """Return how a race stands.

    Args:
        names: who takes part.
        epochs: the rungs, the earliest first.
        figures: what each has reached so far, by epoch.
    """
    alive, stopped = tuple(names), dict[str, Stop]()
    for rung in epochs:
        if any(rung not in figures.get(name, {}) for name in alive):
            return Standing(alive, stopped, rung)
        reached = {name: figures[name][rung] for name in alive}
        on = survivors(reached)
        for name in alive:
            if name not in on:
                stopped[name] = Stop(rung, reached[name], _least(reached))
        alive = on
    return Standing(alive, stopped, None)


def counts(number: int, epochs: Iterable[int]) -> list[int]:
    """Return how many train towards each rung and then to the end, where no two are equal."""
    found = [number]
    for _ in epochs:
        found.append(kept(found[-1]))
    return found


def _least(figures: Mapping[str, Figure]) -> Figure:
    """Return what one must have reached to go on."""
    return sorted(figures.values(), key=lambda each: each.order, reverse=True)[
        kept(len(figures)) - 1
    ]
