"""A supernet that is trained already: what a run says of its own, and which other run's fits.

A search takes over the weights of a finished training if they are what its own training would
serve: the same space before any limit narrowed it, the same images and splits, the same seed,
recipe, resolution and device, and limits that hold **within** those that it was trained for. That
is: each limit of the training is there again, on the same cost (and where it is measured, by the
same figures), at its ends or inside them. Limits that the training did not have are free to come.
"""

import hashlib
import json
import resource
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.errors import InvalidBudget, InvalidSpace, MixnasError, RunConflict
from mixnas.jobs.devices import file_of
from mixnas.jobs.problem import Plan, Problem, kept_settings, time_evaluation
from mixnas.jobs.settings import Listener, Settings
from mixnas.network import Network
from mixnas.run import Run
from mixnas.run import runs as runs_in
from mixnas.space import SearchSpace
from mixnas.storage import link
from mixnas.train.recipe import Recipe

RECORD = "supernet.json"
WEIGHTS = "supernet.safetensors"
CURVE = "supernet.csv"
FORMAT = 1
SAME = ("epochs", "time", "batch", "resolution", "inlined", "found")
"""Settings of a run that decide its supernet, beside its limits and its training's seed."""


@dataclass(frozen=True)
class Trained:
    """A finished supernet, as ``supernet.json`` tells of it.

    Attributes:
        space: that it holds, narrowed by the limits it was trained for.
        limits: that it was trained for; it serves what lies within them.
        recipe: of its training, as plain data.
        epochs: passes over the training images.
        params: how many it has.
        device: type of the device that it was trained on.
        weights: SHA-256 of its file, in hexadecimal.
        source: the run that trained it, None if this one did.
    """

    space: SearchSpace
    limits: tuple[Limit, ...]
    recipe: Mapping[str, Any]
    epochs: float
    params: int
    device: str
    weights: str
    source: str | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of its training."""
        return int(self.recipe["steps"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        limits = [asdict(limit) for limit in self.limits]
        plain = {"space": self.space.to_dict(), "limits": limits, "recipe": dict(self.recipe)}
        return {"format": FORMAT, **data, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Trained":
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError, InvalidSpace: if it is something else.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        found = {field.name: data[field.name] for field in fields(cls)}
        limits = tuple(Limit(**limit) for limit in found["limits"])
        return cls(**{**found, "space": SearchSpace.from_dict(data["space"]), "limits": limits})


def of(run: Run) -> Trained | None:
    """Return what a run says of its supernet; None where it says nothing (made before it did).

    Raises:
        RunConflict: if its record is damaged.
    """
    if not run.file(RECORD).is_file():
        return None
    try:
        return Trained.from_dict(run.read(RECORD))
    except (LookupError, TypeError, ValueError, AttributeError, InvalidSpace):
        raise run.broken(RECORD) from None


def keep(
    problem: Problem, run: Run, *, recipe: Recipe, epochs: float, params: int, data: bytes
) -> None:
    """Write a run's record of the supernet that it has trained, and its weights.

    Args:
        problem: that it was trained for.
        run: that trained it.
        recipe: by which it was trained: not that of today, if it was begun under another.
        epochs: passes over the training images.
        params: how many it has.
        data: the file of its weights.

    Raises:
        StorageFull: if the disk is full.
    """
    run.write(WEIGHTS, data)
    trained = Trained(
        space=problem.space,
        limits=problem.limits,
        recipe=asdict(recipe),
        epochs=epochs,
        params=params,
        device=problem.device.type,
        weights=digest(data),
    )
    run.write(RECORD, trained.to_dict())


def within(limits: Iterable[Limit], trained: Sequence[Limit]) -> bool:
    """Say whether limits allow nothing that others do not: every other is there, or a tighter."""
    given = {limit.cost: limit for limit in limits}
    return all(
        (new := given.get(old.cost)) is not None and old.low <= new.low and new.high <= old.high
        for old in trained
    )


def covered(problem: Problem, trained: Sequence[Limit]) -> bool:
    """Say whether a search allows nothing that a supernet's limits do not.

    Each limit of the supernet is there again, as tight or tighter; or it is one of FLOPs or
    parameters, which the search does not limit, and no architecture of its space lies beyond it.
    """
    given = {limit.cost: limit for limit in problem.limits}
    for old in trained:
        if old.cost in given or old.cost not in ("flops", "params"):
            if not within(problem.limits, (old,)):
                return False
            continue
        low, high = reach(problem, old.cost)
        if not old.low <= low <= high <= old.high:
            return False
    return True


def reach(problem: Problem, cost: str) -> tuple[int, int]:
    """Return the least and the greatest of a counted cost in the space that a search narrowed."""
    table = problem.tables[cost]
    whole = Feasible(problem.space, [Limit(cost, 0, 10**18)], {cost: table})
    return table(whole.least()), table(whole.greatest())


def holds(larger: SearchSpace, smaller: SearchSpace) -> bool:
    """Say whether a space offers every choice of another."""
    return all(
        key in larger.genes and set(choices) <= set(larger.genes[key])
        for key, choices in smaller.genes.items()
    )


def tightened(limits: Sequence[Limit], trained: Sequence[Limit], run: str) -> tuple[Limit, ...]:
    """Put limits inside those that a supernet was trained for.

    A limit of the training that is not given stays as it is, and a limit without a lower end
    gets that of the training.

    Raises:
        InvalidBudget: if one reaches beyond; the message names the range.
    """
    given = {limit.cost: limit for limit in limits}
    for old in trained:
        new = given.get(old.cost, old)
        if new.high > old.high or 0 < new.low < old.low or new.high < old.low:
            raise InvalidBudget(
                f"budget {new}: the supernet of run '{run}' was trained for {old}; give a budget "
                "inside that, or search anew with yours"
            )
        given[old.cost] = Limit(old.cost, max(new.low, old.low), new.high)
    return tuple(given.values())


def find(problem: Problem) -> Run | None:
    """Return the run whose supernet a search takes over: of those that fit the most focused.

    The smallest space comes first, then a run that trained its own, then the earliest.
    """
    fitting = []
    for run in runs_in(problem.runs):
        trained = None if run.name == problem.name else fits(run, problem)
        if trained is not None:
            order = trained.space.size(), trained.source is not None, run.made["made"], run.name
            fitting.append((order, run))
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def fits(run: Run, problem: Problem) -> Trained | None:
    """Return a run's supernet if a search may take it over, None if not; see the module's text."""
    with suppress(MixnasError):  # a damaged run serves nobody, and is nobody's fault here
        trained = of(run) if run.done("training") else None
        if trained is None:
            return None
        settings, (limits, data) = problem.settings, (problem.limits, problem.data)
        wanted = plain(kept_settings(settings, limits, data, problem.full))
        if (
            all(run.settings.get(key) == wanted[key] for key in SAME)
            and Settings.from_dict(run.settings).training_seed == settings.training_seed
            and _same_training(trained, problem)
            and covered(problem, trained.limits)
            and holds(trained.space, problem.space)
            and _same_figures(run, problem, trained)
            and _whole(run, trained)
        ):
            return trained
    return None


def _same_training(trained: Trained, problem: Problem) -> bool:
    """Say whether a search would train for as many steps, by the same recipe, on such a device."""
    return (
        (problem.settings.time is not None or trained.steps == problem.steps())
        and trained.recipe == plain(asdict(problem.recipe(trained.steps)))
        and trained.device == problem.device.type
    )


def plain(data: Any) -> Any:
    """Return what JSON makes of plain data: lists for tuples."""
    return json.loads(json.dumps(data))


def _same_figures(run: Run, problem: Problem, trained: Trained) -> bool:
    """Say whether the training's measured limits held by the figures that the search has."""
    return all(
        run.read(file_of(limit.cost))["predictor"]
        == plain(problem.devices[limit.cost].predictor.to_dict())
        for limit in trained.limits
        if limit.cost in problem.devices
    )


def _whole(run: Run, trained: Trained) -> bool:
    """Say whether the weights are those that were trained."""
    try:
        data = run.file(WEIGHTS).read_bytes()
    except OSError:
        return False
    return digest(data) == trained.weights


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def load(run: Run, space: SearchSpace, classes: int, *, weights: str | None) -> Network:
    """Read a run's supernet, on the CPU.

    Args:
        run: that has it.
        space: that it holds.
        classes: of its data.
        weights: SHA-256 of its file, as the run's record has it; None for a run without a record.

    Raises:
        RunConflict: if its file is missing or damaged.
    """
    network = Network(space, classes)
    try:
        data = run.file(WEIGHTS).read_bytes()
        if weights not in (None, digest(data)):
            raise ValueError("not the weights that were trained")
        network.load_state_dict(load_tensors(data))
    except (OSError, RuntimeError, SafetensorError, ValueError):
        raise RunConflict(
            f"{run.file(WEIGHTS)} is missing or damaged; remove {run.file('stages.json')} and "
            "repeat the command that made the run: the supernet is trained again"
        ) from None
    return network.to(memory_format=torch.channels_last).eval()


def rehearse(problem: Problem, source: Run, workers: int) -> Plan:
    """Plan a search by another run's supernet: an evaluation is timed, nothing is trained.

    Raises:
        RunConflict: if that run has no supernet, or its weights are missing or damaged.
    """
    trained = of(source)
    if trained is None:
        raise RunConflict(f"run '{source.name}' has no supernet to take over")
    lower, upper = problem.feasible.bounds()
    classes = len(problem.data.labels)
    network = load(source, trained.space, classes, weights=trained.weights)
    return Plan(
        steps=trained.steps,
        epochs=trained.epochs,
        params=trained.params,
        lower=lower,
        upper=upper,
        step_seconds=0.0,
        evaluation_seconds=time_evaluation(problem, network),
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        workers=workers,
        source=source.name,
    )


def supply(problem: Problem, source: str, run: Run, listener: Listener) -> None:
    """Give a run the supernet of another that fits it (see `give`).

    If that run has gone since the plan was made, or fits no longer, nothing is done: the run
    trains a supernet of its own, for as many steps.

    Raises:
        StorageFull: if the disk is full.
    """
    known = {other.name: other for other in runs_in(problem.runs)}
    trained = fits(known[source], problem) if source in known else None
    if trained is None:
        listener.note(f"the supernet of run {source} is no longer there; one is trained")
        return
    give(known[source], trained, run, listener)


def give(source: Run, trained: Trained, run: Run, listener: Listener) -> None:
    """Give a run another's supernet, as a second name of its file, and mark it as trained.

    Raises:
        StorageFull: if the disk is full.
    """
    for name in (CURVE, WEIGHTS):
        if source.file(name).is_file():
            link(source.file(name), run.file(name))
    root = trained.source or source.name
    run.write(RECORD, {**trained.to_dict(), "source": root})
    drawn = source.stages["training"].get("drawn", {})
    run.mark("training", seconds=0.0, source=root, drawn=drawn)
    limits = " and ".join(map(str, trained.limits))
    listener.note(
        f"the supernet of run {root}, trained for {limits}, serves this budget: no training "
        "(--fresh trains one anyway)"
    )
