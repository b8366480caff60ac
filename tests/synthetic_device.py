"""A device that is computed: what a module takes follows from what it holds, never from a clock."""

from dataclasses import dataclass, field
from math import prod

from mixnas.errors import TooNoisy
from mixnas.network import parts, walk
from mixnas.timing.stopwatch import Timing

OVERHEAD = 1.1
"""Of a whole network over its parts."""


def takes(module, shape):
    """Return milliseconds: by parameters and positions of a part, over the parts of a network."""
    if not hasattr(module, "space"):
        return (sum(p.numel() for p in module.parameters()) + prod(shape)) / 1e5 + 0.01
    sizes = {"image": shape[-1], "classes": module.num_classes}
    taken = [part for segment in walk(module.space.sole) for part in parts(segment, **sizes)]
    return OVERHEAD * sum(takes(part.build(), part.shape) for part in taken)


@dataclass
class Device:
    """What stands in the place of `mixnas.jobs.measuring.stopwatch`.

    Attributes:
        slower: factor on whole networks when they are timed in turn, as finalists are.
        refuses: figures, by their number, that are refused as too noisy.
        stops: the figure at which the measuring is interrupted.
    """

    slower: float = 1.0
    refuses: set = field(default_factory=set)
    stops: int | None = None
    figures: int = 0

    def __call__(self, conditions, typical=None, *, patience=20.0):
        return Watch(self, conditions)


class Watch:
    def __init__(self, device, conditions):
        self.device, self.conditions = device, conditions

    def calibrate(self):
        return 1.0

    def time(self, module, shape):
        self.device.figures += 1
        if self.device.figures == self.device.stops:
            raise KeyboardInterrupt
        if self.device.figures in self.device.refuses:
            raise TooNoisy("busy machine: a test says so; repeat later")
        return timing(takes(module, shape) * self.conditions.batch)

    def interleave(self, modules, shape, rounds=20):
        return [timing(self.device.slower * takes(module, shape)) for module in modules]


def timing(value):
    return Timing(value, 0.99 * value, 1.01 * value, 20, value, 1.0, 0.01, 0)
