"""The common rule by which the published systems are brought to a budget.

Of each system the published network is taken whose cost, unscaled, is nearest to the upper end of
the first limit (as a ratio). All its widths are multiplied by one factor, the greatest in steps of
a 1024th whose network keeps every limit; depths, ratios, head widths and kernels stay. Costs are
those of the whole network at the deployed image and classes: multiply-adds and parameters counted,
latency, energy and memory (where they are limited) measured.
"""

import json
from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import torch
from torch import nn

from mixnas import zoo
from mixnas.cost import count
from mixnas.cost.limit import Limit, describe
from mixnas.cost.memory import peak
from mixnas.errors import BudgetUnreachable
from mixnas.jobs.measuring import runtime, stopwatch
from mixnas.jobs.problem import Problem
from mixnas.timing.energy import EnergyMeter

STEPS = 1024
"""Steps of the factor between nothing and the published width."""
WIDEST = 8
"""Greatest factor."""

MILLI = 1_000_000
"""Nanoseconds of a millisecond, nanojoules of a millijoule."""

Create = Callable[..., nn.Module]


class Scales:
    """Weighs whole networks at the deployed image, each once.

    Args:
        problem: what was searched: its limits, image, classes and device.
        create: builds a network from a source.
    """

    def __init__(self, problem: Problem, create: Create) -> None:
        self.problem = problem
        self._create = create
        self._known: dict[str, dict[str, int]] = {}

    def __call__(self, source: Mapping[str, Any]) -> dict[str, int]:
        """Return flops, params, and what else is limited.

        Raises:
            BudgetUnreachable: if a limit is of a cost that cannot be measured here.
            TooNoisy: if the machine is too busy to be timed.
        """
        key = _identity(source)
        if key not in self._known:
            self._known[key] = self._weigh(source)
        return self._known[key]

    def _weigh(self, source: Mapping[str, Any]) -> dict[str, int]:
        space = self.problem.space

        def create() -> nn.Module:
            return self._create(source, classes=space.classes, image=space.image)

        with torch.random.fork_rng(devices=[]):
            costs = count.without_memory(create, lambda network: _counted(network, space.image))
            for limit in self.problem.limits:
                if limit.cost not in costs:
                    costs[limit.cost] = self._measured(limit, create())
        return costs

    def _measured(self, limit: Limit, network: nn.Module) -> int:
        """Return a limited cost of a whole network: bytes, nanoseconds or nanojoules."""
        shape = (3, self.problem.space.image, self.problem.space.image)
        if limit.kind == "memory":
            return _peak(network, shape)
        device = self.problem.devices[limit.cost]
        conditions = device.conditions
        if conditions is None:
            raise BudgetUnreachable(f"{limit}: what it takes there cannot be measured here")
        if limit.kind == "energy":
            call = runtime(conditions).place(network, shape, conditions)
            return round(MILLI * EnergyMeter.of(conditions.device).measure(call))
        watch = stopwatch(conditions, device.reference)
        return round(MILLI * watch.time(network, shape).median)

    def load(self, costs: Mapping[str, int]) -> float:
        """Return the greatest share of an upper limit that costs take."""
        return max(costs[limit.cost] / limit.high for limit in self.problem.limits)

    def within(self, costs: Mapping[str, int]) -> bool:
        """Say whether costs keep every limit, both ends."""
        return all(limit.excess(costs[limit.cost]) <= 0 for limit in self.problem.limits)


def _counted(network: nn.Module, image: int) -> dict[str, int]:
    return {"flops": count.count_flops(network, image), "params": count.count_params(network)}


def _peak(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the bytes of one inference: weights, and what else lives at the peak."""
    images = torch.zeros(1, *shape).contiguous(memory_format=torch.channels_last)
    network = network.eval().to(memory_format=torch.channels_last)
    stored = (*network.parameters(), *network.buffers())
    return sum(tensor.nbytes for tensor in stored) + peak(lambda: network(images), images)


def _identity(source: Mapping[str, Any]) -> str:
    """Return what distinguishes networks: two factors may round to the same widths."""
    if "zoo" in source:
        source = {"zoo": source["zoo"], **zoo.options(source["zoo"], source["width"])}
    return json.dumps(source, sort_keys=True, default=str)


def contenders() -> list[str]:
    """Return the systems that take part: those of a mixer that is searched."""
    return [name for name in zoo.systems() if _variants(name)]


def _variants(name: str) -> list[str]:
    """Return a system's networks of its own mixer: its plain baselines are left out."""
    system = zoo.systems()[name]
    own = system.mixer
    return [
        variant
        for variant, published in system.variants.items()
        if own != "attention" and published.options.get("mixer", own) == own
    ]


def scaled(name: str, scales: Scales) -> dict[str, Any]:
    """Return the source of a system at the greatest width whose network keeps the limits.

    Raises:
        BudgetUnreachable: if none does.
    """
    base = _base(name, scales)

    def load(step: int) -> float:
        return scales.load(scales({"zoo": base, "width": step / STEPS}))

    step = greatest(load)
    source = {"zoo": base, "width": max(step, 1) / STEPS}
    if not step or not scales.within(scales(source)):
        raise BudgetUnreachable(_outside(scales(source), scales, "thinnest" if not step else ""))
    return source


def _base(name: str, scales: Scales) -> str:
    """Return the variant whose cost as published is nearest to the first limit, as a ratio."""
    lead = scales.problem.limits[0]
    published = zoo.systems()[name].variants
    ratios: dict[str, float] = {}
    for variant in sorted(_variants(name), key=lambda variant: published[variant].flops):
        cost = scales({"zoo": variant, "width": 1.0})[lead.cost]
        ratios[variant] = max(cost / lead.high, lead.high / cost)
        if cost > lead.high:  # the dearer ones are farther away
            break
    return min(ratios, key=lambda variant: ratios[variant])


def greatest(load: Callable[[int], float]) -> int:
    """Return the greatest step whose load is at most 1; 0 if there is none.

    The load grows about as the square of the step: every other step between the ends is where
    its square root, taken as a line, meets 1; the others halve what is left.

    Args:
        load: of a step, 1 to ``WIDEST * STEPS``; it does not fall.
    """
    low, high = (0, 0.0), (STEPS, load(STEPS))
    while high[1] <= 1 and high[0] < WIDEST * STEPS:
        low, high = high, (2 * high[0], load(2 * high[0]))
    if high[1] <= 1:
        return high[0]
    halve = False
    while high[0] - low[0] > 1:
        share = (1 - sqrt(low[1])) / (sqrt(high[1]) - sqrt(low[1]))
        span = high[0] - low[0]
        step = low[0] + min(max(round((0.5 if halve else share) * span), 1), span - 1)
        halve = not halve
        here = (step, load(step))
        low, high = (here, high) if here[1] <= 1 else (low, here)
    return low[0]


def _outside(costs: Mapping[str, int], scales: Scales, which: str) -> str:
    """Say by what a network misses the limits."""
    missed = [limit for limit in scales.problem.limits if limit.excess(costs[limit.cost]) > 0]
    needs = " and ".join(describe(limit.cost, costs[limit.cost]) for limit in missed)
    what = "even its thinnest network" if which else "its widest network below the budget"
    return f"{what} takes {needs}, the budget is {' and '.join(map(str, missed))}"
