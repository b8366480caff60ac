"""A search made ready: `Problem` is what is searched, `Plan` what the search will take."""

import hashlib
import json
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch

from mixnas import data as datasets
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.graph import Graph
from mixnas.cost.limit import Limit, describe, parse_all
from mixnas.cost.memory import PeakMemory
from mixnas.cost.predictor import Predictor
from mixnas.cost.table import CostTable
from mixnas.errors import InvalidOption, RunConflict
from mixnas.evaluate import SupernetEvaluator
from mixnas.jobs.devices import Device, devices, file_of
from mixnas.jobs.settings import Listener, Settings, duration, seconds
from mixnas.network import Network
from mixnas.remote import fetch
from mixnas.report import percent
from mixnas.run import SETTINGS, Run, agree
from mixnas.run import runs as runs_in
from mixnas.space import SearchSpace
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe, suited
from mixnas.train.supernet import SupernetTrainer
from mixnas.train.world import World

CALIBRATION = 4
"""Batches of training images that re-estimate a candidate's batch-norm statistics."""

Table: TypeAlias = CostTable | PeakMemory | Predictor

PLAN = "plan.json"
LONGEST = 160
"""Bytes of a default name at most."""

EPOCHS = 26
MOST_STEPS = {"cpu": 3000, "cuda": 50_000}
LEAST_STEPS = 50
TRIED = 200
"""Draws that tell the acceptance."""
OVERHEAD = 45.0
"""Seconds for starting workers, timing finalists and writing the report."""


@dataclass(frozen=True)
class Problem:
    """What is searched, under which limits, on what data, where.

    Attributes:
        settings: what was asked.
        name: the run's name.
        runs: the folder of all runs.
        data: the splits.
        space: narrowed to the choices that some feasible architecture uses.
        full: the space before the limits narrowed it.
        limits: in the order given; the first is the one that the dynamic programme holds.
        tables: cost by name: FLOPs and parameters always, others where they are limited.
        devices: where each measured limit holds, by the limit's cost.
        feasible: the architectures within the limits.
        device: where the supernet is trained.
        job: what the run is for, where that is not a search.
        storage: the Optuna storage that shows the trials, if one shall; no part of the run.
        sweep: the sweep that the search belongs to, if it does.
    """

    settings: Settings
    name: str
    runs: Path
    data: datasets.Data
    space: SearchSpace
    full: SearchSpace
    limits: tuple[Limit, ...]
    tables: Mapping[str, Table]
    devices: Mapping[str, Device]
    feasible: Feasible
    device: torch.device
    job: str | None = None
    storage: str | None = None
    sweep: str | None = None

    @property
    def study(self) -> str:
        """The name of the study that shows the search in a storage."""
        return self.name if self.sweep is None else f"{self.sweep}/{self.name}"

    @property
    def begun(self) -> bool:
        """Whether the run has a plan, by which it goes on."""
        return (self.runs / self.name / PLAN).exists()

    @property
    def trained(self) -> bool:
        """Whether the run has its supernet."""
        folder = self.runs / self.name
        return self.begun and Run.open(folder).done("training")

    def open_run(self) -> Run:
        """Make the run's folder, or take it up again.

        Raises:
            RunConflict: if it was made with other settings, or is in use.
        """
        kept = kept_settings(self.settings, self.limits, self.data, self.full, self.job)
        run = Run.create(self.runs, self.name, kept)
        for cost, device in self.devices.items():
            if not run.file(file_of(cost)).exists():
                run.write(file_of(cost), device.to_dict())
        return run

    def network(self) -> Network:
        """Build the untrained supernet, the same one each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.training_seed)
            network = Network(self.space, len(self.data.labels))
        return network.to(memory_format=torch.channels_last).to(self.device)

    def trainer(self, recipe: Recipe, world: World | None = None) -> SupernetTrainer:
        """Build a trainer at its first step, alone or as one of several processes."""
        draws = Draws.by(recipe, self.space, self.feasible, seed=self.settings.training_seed)
        return SupernetTrainer(self.network(), draws, recipe, world)

    def recipe(self, steps: int) -> Recipe:
        """Return the recipe for a number of steps."""
        batch = min(self.settings.batch, self.data.sizes["train"])
        return suited(self.full.widest, steps, batch)

    def steps(self) -> int:
        """Return how many steps the supernet is trained for, where no time is given."""
        per_epoch = self.data.steps_per_epoch(self.recipe(LEAST_STEPS).batch)
        if self.settings.epochs is not None:
            return self.settings.epochs * per_epoch
        return max(min(EPOCHS * per_epoch, MOST_STEPS[self.device.type]), LEAST_STEPS)

    def evaluator(self, network: Network, *, fresh: bool = False) -> SupernetEvaluator:
        """Judge by a trained supernet's weights, on the images that rank.

        Args:
            network: the trained supernet.
            fresh: whether the statistics come from other images, and more of them.
        """
        batch = 64
        calibration = self.data.calibration(
            batches=CALIBRATION * (2 if fresh else 1),
            batch=batch,
            seed=self.settings.training_seed + (1 if fresh else 0),
        )
        return SupernetEvaluator(
            network.cpu().eval(), calibration, list(self.data.batches("rank", batch=256))
        )


@dataclass(frozen=True)
class Plan:
    """What a search will take, measured on a few steps before it begins, and kept in the run.

    Attributes:
        steps: optimiser steps of the supernet.
        epochs: the same in passes over the training images.
        params: parameters of the supernet.
        lower: a bound on how many architectures fit, from below; equal to `upper` where exact.
        upper: the same from above.
        step_seconds: of one training step, measured.
        evaluation_seconds: of one evaluation on one thread, measured.
        memory: bytes of the process after those steps, measured.
        workers: processes that evaluate.
        source: the run whose supernet is taken over; None if one is trained.
        acceptance: share of draws that lay within every limit; None in older plans.
    """

    steps: int
    epochs: float
    params: int
    lower: int
    upper: int
    step_seconds: float
    evaluation_seconds: float
    memory: int
    workers: int
    source: str | None = None
    acceptance: float | None = None

    @property
    def training_seconds(self) -> float:
        """How long the training should take."""
        return self.steps * self.step_seconds

    def search_seconds(self, trials: int) -> float:
        """How long the search should take."""
        return OVERHEAD + trials * self.evaluation_seconds / self.workers

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": 1, **asdict(self)}

    def _trained(self) -> str:
        """Say what a step takes, or that none is made."""
        if self.source is None:
            return f"{1000 * self.step_seconds:.0f} ms each"
        return f"taken over from run {self.source}: no training"

    def _accepted(self) -> str:
        """Say how many draws lie within every limit, where that is known."""
        share = self.acceptance
        return "" if share is None else f" ({percent(share)} of draws accepted)"

    def _warning(self, problem: Problem) -> dict[str, str]:
        """Return a row if the budget limits nothing."""
        if self.lower < problem.full.size():
            return {}
        text = f"every architecture of '{problem.full.name}' fits"
        if len(problem.limits) == 1:
            cost = problem.limits[0].cost
            most = problem.tables[cost](problem.feasible.greatest())
            text += f"; the dearest takes {describe(cost, most)}"
        return {"warning": text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """Read what `to_dict` wrote."""
        known = {"source": None, "acceptance": None, **data}  # older plans lack them
        return cls(**{field.name: known[field.name] for field in fields(cls)})

    @classmethod
    def of(cls, run: Run) -> "Plan":
        """Read the plan that a run was begun with.

        Raises:
            RunConflict: if it cannot be read.
        """
        try:
            return cls.from_dict(run.read(PLAN))
        except (KeyError, TypeError):
            raise run.broken(PLAN) from None

    def rows(self, problem: Problem) -> dict[str, str]:
        """Return the plan for people: label to text."""
        sizes, size = problem.data.sizes, problem.full.size()
        total = self.training_seconds + self.search_seconds(problem.settings.trials)
        disk = 5 * 4 * self.params
        return {
            "run": str(problem.runs / problem.name),
            "data": f"{problem.data.name}: {len(problem.data.labels)} classes, "
            + ", ".join(f"{n:,} {split}" for split, n in sizes.items())
            + f", at {problem.data.image} px",
            "budget": " and ".join(str(limit) for limit in problem.limits)
            + f" (costs at {problem.space.image} px, {problem.space.classes} classes)",
            "space": f"{problem.full.name}: {_bounds(size, size)} architectures, "
            f"{_bounds(self.lower, self.upper)} fit{self._accepted()}",
            **self._warning(problem),
            "supernet": f"{describe('params', self.params)}, {self.steps:,} steps "
            f"({self.epochs:.3g} epochs), {self._trained()}",
            "search": f"{problem.settings.trials} architectures by {problem.settings.sampler}, "
            f"{self.workers} workers, {1000 * self.evaluation_seconds:.0f} ms each",
            "time": f"about {duration(total)} ({duration(self.training_seconds)} training)",
            "memory": f"about {self.memory / 2**30:.1f} GiB while training",
            "disk": f"about {max(1, round(disk / 2**20)):,} MiB",
        }


class Stock:
    """Data sets and cost tables, each made once for all the problems that one process sets up."""

    def __init__(self) -> None:
        self._data: dict[str, datasets.Data] = {}
        self._tables: dict[str, dict[str, Table]] = {}

    def data(self, settings: Settings) -> datasets.Data:
        """Return the images that a search trains and judges on.

        Raises:
            DataError: if there are none, or they are broken.
        """
        key = repr((settings.data, settings.training_seed, settings.resolution))
        if key not in self._data:
            self._data[key] = datasets.load(
                settings.data, seed=settings.training_seed, image=settings.resolution
            )
        return self._data[key]

    def tables(
        self, space: SearchSpace, limits: tuple[Limit, ...], listener: Listener
    ) -> dict[str, Table]:
        """Return the tables of what is counted for a space under some limits."""
        memory = any(limit.kind == "memory" for limit in limits)
        key = json.dumps([space.to_dict(), memory], sort_keys=True)
        if key not in self._tables:
            self._tables[key] = cost_tables(space, limits, listener)
        return dict(self._tables[key])


def prepare(
    settings: Settings,
    runs: Path,
    name: str | None,
    listener: Listener,
    stock: Stock | None = None,
    job: str | None = None,
    measured: Path | None = None,
) -> Problem:
    """Check everything that can be wrong, and set up what the stages share.

    Args:
        settings: what is asked.
        runs: the folder of all runs.
        name: the run's; by default made of data, space, budget and seed.
        listener: is told how the counting gets on.
        stock: what other problems have set up already.
        job: what the run is for, where that is not a search.
        measured: the folder of runs that keeps what is measured; by default that of this run.

    Raises:
        MixnasError: the first thing that is wrong; nothing has been written.
    """
    stock = stock or Stock()
    limits = parse_all(settings.budget)
    device = torch_device(settings.device)
    full = SearchSpace.load(settings.space)
    if settings.mixers:
        full = full.only_mixers(settings.mixers)
    data = stock.data(settings)
    full = deployed(full, settings, data)
    name = name or default_name(data.name, full.name, limits, settings)
    fetch(runs / name)
    settings = _as_begun(settings, runs, name, listener)
    agree(runs, name, kept_settings(settings, limits, data, full, job))
    tables = stock.tables(full, limits, listener)
    where = measured or runs
    problem = _set_up(settings, runs / name, where, data, full, limits, device, tables, listener)
    return replace(problem, job=job)


def _as_begun(settings: Settings, runs: Path, name: str, listener: Listener) -> Settings:
    """Go on without racing in a run that was begun without it, by choice or before it was known."""
    begun = next((run for run in runs_in(runs) if run.name == name), None)
    if not settings.racing or begun is None or "racing" in begun.settings:
        return settings
    listener.note("the run goes on as it was begun: every image is judged, without racing")
    return replace(settings, racing=False)


def reopen(run: Run, listener: Listener) -> Problem:
    """Set up what a run searched, by what it keeps: the file of its space is not read again.

    Raises:
        RunConflict: if its settings cannot be read, or the data is not what it was.
        MixnasError: if the data or the device is not there.
    """
    try:
        settings = Settings.from_dict(run.settings)
        full = SearchSpace.from_dict(run.settings["inlined"])
        fingerprint = run.settings["found"]["data"]
    except (KeyError, TypeError):
        raise RunConflict(f"run {run.path}: {SETTINGS} lacks what a search keeps there") from None
    data = Stock().data(settings)
    if data.fingerprint != fingerprint:
        raise RunConflict(
            f"run {run.path}: data {settings.data!r} is not what it was searched on (fingerprint "
            f"{data.fingerprint}, not {fingerprint}); put the same images back"
        )
    limits, device = parse_all(settings.budget), torch_device(settings.device)
    tables = cost_tables(full, limits, listener)
    beside = run.path.parent
    return _set_up(settings, run.path, beside, data, full, limits, device, tables, listener)


def _set_up(
    settings: Settings,
    folder: Path,
    measured: Path,
    data: datasets.Data,
    full: SearchSpace,
    limits: tuple[Limit, ...],
    device: torch.device,
    tables: dict[str, Table],
    listener: Listener,
) -> Problem:
    where = devices(limits, full, str(device), folder, measured, listener)
    tables |= {cost: device.predictor for cost, device in where.items()}
    feasible = Feasible(full, limits, tables)
    space = full.keep(feasible.useful())
    return Problem(
        settings=settings,
        name=folder.name,
        runs=folder.parent,
        data=data,
        space=space,
        full=full,
        limits=limits,
        tables=tables,
        devices=where,
        feasible=Feasible(space, limits, tables),
        device=device,
    )


def kept_settings(
    settings: Settings,
    limits: tuple[Limit, ...],
    data: datasets.Data,
    full: SearchSpace,
    job: str | None = None,
) -> dict[str, Any]:
    """Return what ``run.json`` keeps: what was asked, and what it was resolved to."""
    named = {} if job is None else {"job": job}
    return (
        named
        | settings.to_dict()
        | {
            "budget": [str(limit) for limit in limits],
            "found": {"data": data.fingerprint, "labels": list(data.labels)},
            "inlined": full.to_dict(),
        }
    )


def default_name(data: str, space: str, limits: tuple[Limit, ...], settings: Settings) -> str:
    """Return the run's name: data, space, budget, seed; what no folder can hold is left out."""
    seeds = [f"seed{settings.seed}"]
    if settings.training_seed != settings.seed:
        seeds.append(f"supernet{settings.training_seed}")
    name = "-".join([data, space, *map(str, limits), *seeds])
    plain = re.sub(r"[/\\\s]+", "-", name)
    if len(plain.encode()) <= LONGEST:
        return plain
    return f"{plain[: LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def deployed(space: SearchSpace, settings: Settings, data: datasets.Data) -> SearchSpace:
    """Return the space at the image and the classes of deployment.

    The user's own data bring their number of classes; the embedded digits are a demonstration
    and leave the space's.
    """
    own = space.classes if settings.data == "digits" else len(data.labels)
    classes = own if settings.classes is None else settings.classes
    image = space.image if settings.image is None else settings.image
    return SearchSpace(space.name, image, classes, space.genes)


def cost_tables(
    space: SearchSpace, limits: tuple[Limit, ...], listener: Listener
) -> dict[str, Table]:
    """Return the tables of what is counted: FLOPs, parameters, and memory if it is limited.

    Args:
        space: at its deployed image and classes.
        limits: what is limited.
        listener: is told how the counting gets on.
    """
    sizes = {"image": space.image, "classes": space.classes}
    flops = CostTable(count.flops, **sizes)
    memory = PeakMemory(image=space.image, classes=space.classes)
    limited = any(limit.kind == "memory" for limit in limits)
    tables: dict[str, Table] = {"flops": flops, "params": CostTable(count.params, **sizes)}
    tables |= {"memory": memory} if limited else {}
    wanted = {edge.segment for edge in Graph(space).edges if edge.segment}
    listener.stage("counting", len(wanted))
    for segment in sorted(wanted, key=str):
        flops.segment(segment)
        if limited:
            memory.peak(segment)
        listener.advance(1)
    listener.end()
    return tables


def torch_device(name: str) -> torch.device:
    """Return the device that was asked for, or the best there is.

    Raises:
        InvalidOption: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidOption("device 'cuda': torch finds no GPU here; use --device cpu")
    return torch.device(name)


def rehearse(problem: Problem, workers: int) -> Plan:
    """Time a few training steps and an evaluation on a throw-away supernet, and plan by them.

    Raises:
        InvalidOption: if the time that was given is too short for anything.
    """
    trainer = problem.trainer(problem.recipe(LEAST_STEPS))
    batch = trainer.recipe.batch
    stream = problem.data.train(batch=batch, seed=problem.settings.training_seed)
    spans = []
    for images, labels in islice(stream, 4):
        began = time.perf_counter()
        trainer.train(images, labels)
        spans.append(time.perf_counter() - began)
    step_seconds = sum(spans[1:]) / len(spans[1:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    evaluation_seconds = time_evaluation(problem, trainer.ema.module)
    per_epoch = problem.data.steps_per_epoch(batch)
    lower, upper = problem.feasible.bounds()
    plan = Plan(
        steps=0,
        epochs=0.0,
        params=sum(p.numel() for p in trainer.network.parameters()),
        lower=lower,
        upper=upper,
        acceptance=problem.feasible.tried(TRIED),
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        memory=memory,
        workers=workers,
    )
    steps = _steps(problem, plan, per_epoch)
    return Plan.from_dict(plan.to_dict() | {"steps": steps, "epochs": steps / per_epoch})


def _steps(problem: Problem, plan: Plan, per_epoch: int) -> int:
    """Choose the number of steps: by the time, if one is given."""
    settings = problem.settings
    if settings.time is None:
        return problem.steps()
    left = 0.9 * seconds(settings.time) - plan.search_seconds(settings.trials)
    steps = int(left / plan.step_seconds)
    if steps < LEAST_STEPS:
        least = (LEAST_STEPS * plan.step_seconds + plan.search_seconds(settings.trials)) / 0.9
        raise InvalidOption(
            f"time '{settings.time}': too short; {LEAST_STEPS} training steps and "
            f"{settings.trials} trials take about {duration(least)} here: give more time or "
            "fewer --trials"
        )
    return steps


def time_evaluation(problem: Problem, network: Network) -> float:
    """Time one evaluation by a supernet on one thread, as a worker will do it; in seconds."""
    threads = torch.get_num_threads()
    evaluator = problem.evaluator(network)
    torch.set_num_threads(1)
    try:
        arch = problem.feasible.sample(Random(0))
        evaluator(arch)  # what is done once in a process is not timed
        began = time.perf_counter()
        evaluator(arch)
        return time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)


def _bounds(lower: int, upper: int) -> str:
    if lower == upper:
        return f"{lower:,}" if lower < 10**6 else f"{lower:.3g}"
    return f"{lower:.3g} to {upper:.3g}"
