"""Finalists measured whole, on every device that is here and that a limit names."""

import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import nn

from mixnas.arch import Architecture
from mixnas.cost.limit import Limit, column, in_column
from mixnas.errors import TooNoisy
from mixnas.jobs.measuring import runtime, stopwatch
from mixnas.jobs.problem import Problem
from mixnas.jobs.settings import Listener
from mixnas.network import build
from mixnas.timing.conditions import Conditions
from mixnas.timing.energy import EnergyMeter
from mixnas.timing.memory import peak_memory
from mixnas.timing.stopwatch import LONGEST, Shape, Stopwatch

NANO = 1_000_000
"""A cost's unit (nanoseconds, nanojoules) in that of its figures (milliseconds, millijoules)."""

LIMITED, TOLD = 20.0, 10.0
"""Seconds that the stopwatch may take for a network that a limit is about; and in all, for a
latency that no limit asked for."""

Figures = Mapping[str, Any]
Span = dict[str, Any] | str
"""A network's figures, or why there are none."""


def whole(
    archs: Sequence[Architecture], problem: Problem, listener: Listener
) -> list[dict[str, Any]]:
    """Measure networks whole, in turn, while no worker runs.

    Args:
        archs: the networks' architectures, the most important first: where no limit asks for
            latency, as many of them are timed as a few seconds allow.
        problem: says what is limited, and where.
        listener: is told where the stopwatch refused.

    Returns:
        For each network by the run's column (``latency_ms``, ``latency_ms@cuda``): ``lower``
        quartile, ``median``, ``upper`` quartile and more, as `Timing.to_dict` says; None where it
        could not be measured, and then the reason under ``not_timed`` by the column. If memory is
        limited, megabytes under ``memory_mb`` (computed) and ``memory_mb_measured``.
    """
    found: list[dict[str, Any]] = [{} for _ in archs]
    for cost, device in _devices(problem).items():
        spans = _spans(cost, device, archs, problem, listener)
        for entry, span in zip(found, spans, strict=True):
            entry[column(cost)] = None if isinstance(span, str) else span
            if isinstance(span, str):
                entry.setdefault("not_timed", {})[column(cost)] = span
    if any(limit.kind == "memory" for limit in problem.limits):
        for entry, arch in zip(found, archs, strict=True):
            entry["memory_mb"] = in_column("memory", problem.tables["memory"](arch))
            entry["memory_mb_measured"] = _memory(arch, problem)
    return found


def _devices(problem: Problem) -> dict[str, tuple[Conditions | None, float | None]]:
    """Return conditions and typical reference of each cost that is measured whole.

    Latency on the run's own device is always told, whether it is limited or not.
    """
    known: dict[str, tuple[Conditions | None, float | None]] = {
        cost: (device.conditions, device.reference) for cost, device in problem.devices.items()
    }
    if not any(cost.startswith("latency") for cost in known):
        known["latency"] = Conditions.of(str(problem.device)), None
    return known


def _spans(
    cost: str,
    device: tuple[Conditions | None, float | None],
    archs: Sequence[Architecture],
    problem: Problem,
    listener: Listener,
) -> list[Span]:
    conditions, typical = device
    if conditions is None:
        return ["its device is not here"] * len(archs)
    networks = [build(arch, problem.space.classes).eval() for arch in archs]
    shape = (3, problem.space.image, problem.space.image)
    if cost.startswith("energy"):
        meter, placing = EnergyMeter.of(conditions.device), runtime(conditions)
        joules = [meter.measure(placing.place(one, shape, conditions)) for one in networks]
        return [dict.fromkeys(("lower", "median", "upper"), value) for value in joules]
    if cost not in problem.devices:
        found = told(stopwatch(conditions, typical), networks, shape)
        if isinstance(found[0], str):
            listener.note(f"the finalists' {cost} was not measured whole: {found[0]}")
        return found
    try:
        spans = stopwatch(conditions, typical, patience=LIMITED).interleave(networks, shape)
    except TooNoisy as error:
        listener.note(f"the finalists' {cost} was not measured whole: {error}")
        return [str(error)] * len(archs)
    return [span.to_dict() for span in spans]


def told(
    watch: Stopwatch, networks: Sequence[nn.Module], shape: Shape, *, span: float = TOLD
) -> list[Span]:
    """Time networks one by one for a few seconds in all, the first first; none after a refusal.

    Args:
        watch: its patience is set to what is left.
        networks: the most important first.
        shape: of the input without the batch.
        span: seconds that the stopwatch may take in all.
    """
    found: list[Span] = []
    began = time.monotonic()
    for network in networks:
        left = span - (time.monotonic() - began)
        if found and (left <= 0 or isinstance(found[-1], str)):
            found.append(_untried(found[-1], span))
            continue
        watch.patience = left / LONGEST
        try:
            found.append(watch.time(network, shape).to_dict())
        except TooNoisy as error:
            found.append(str(error))
    return found


def _untried(before: Span, span: float) -> str:
    """Say why a network was not tried: as the one before it was not, or for time."""
    return before if isinstance(before, str) else f"the {span:.0f} s for timing were over"


def _memory(arch: Architecture, problem: Problem) -> float | None:
    """Return the measured peak in megabytes, None where the device cannot tell."""
    shape = (3, problem.space.image, problem.space.image)
    network = build(arch, problem.space.classes).eval()
    measured = peak_memory(network, shape, Conditions.of(str(problem.device)))
    return None if measured is None else measured / 1e6


def excess(entry: Figures, limits: Sequence[Limit], devices: Container[str]) -> float:
    """Return by which share a finalist misses the measured limits, 0 if it keeps them all.

    By the median of its whole measurements; where there is none, its predicted upper end holds.
    """
    missed = 0.0
    for limit in limits:
        figures = entry.get(column(limit.cost))
        if limit.cost in devices and figures is not None:
            value = figures["median"] * NANO
            missed += max(0.0, value / limit.high - 1, (limit.low - value) / limit.high)
    return missed


def tightened(
    limits: Sequence[Limit], judged: Sequence[Figures], devices: Container[str]
) -> tuple[Limit, ...]:
    """Return the limits less what the finalists took beyond the upper end of their interval."""
    found = []
    for limit in limits:
        ratios = [
            entry[column(limit.cost)]["median"] * NANO / entry[limit.cost]
            for entry in judged
            if limit.cost in devices and entry.get(column(limit.cost)) is not None
        ]
        ratio = max([1.0, *ratios])
        found.append(Limit(limit.cost, int(limit.low / ratio), int(limit.high / ratio)))
    return tuple(found)
