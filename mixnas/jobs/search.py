"""``mixnas search``: train a supernet, search it under a budget, name a winner.

The stages, each of which resumes: **latency** (a table, if a limit asks for one), **training**
(or a supernet that another run has trained, see `mixnas.jobs.reuse`), **search**, **finalists**.
The run's folder says what has been done; the same call goes on.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from mixnas.asktell import check_storage
from mixnas.cluster import Crew, check_dashboard, visit
from mixnas.jobs import across, reuse
from mixnas.jobs.curves import FOLDER, check_curves, drawn, viewing
from mixnas.jobs.finalists import name_winner
from mixnas.jobs.problem import PLAN, Plan, Problem, prepare, rehearse, torch_device
from mixnas.jobs.settings import Listener, Settings, Silent, at_least, cores, seconds, written
from mixnas.jobs.stages import (
    begin_storage,
    check_shared,
    first_round,
    search_supernet,
    train_together,
)
from mixnas.jobs.status import recorded
from mixnas.remote import rooted
from mixnas.run import Run

LEAST_LIMIT, TIMES = 300.0, 100
"""Seconds that an evaluation may take at least, and how often as long as the plan measured."""


def search(
    budget: str | Iterable[str],
    *,
    data: str | Path = "digits",
    space: str | Path = "default",
    trials: int = 240,
    sampler: str = "surrogate",
    seed: int = 0,
    epochs: int | None = None,
    time: str | float | None = None,
    mixers: Iterable[str] = (),
    image: int | None = None,
    classes: int | None = None,
    device: str = "auto",
    batch: int = 64,
    resolution: int | None = None,
    racing: bool = True,
    supernet_seed: int | None = None,
    population: int | None = None,
    trainers: int | None = None,
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    trial_timeout: str | float | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    fresh: bool = False,
    storage: str | None = None,
    dashboard: bool = False,
    tensorboard: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> Run | Plan:
    """Find the best architecture of a space for some data under a budget.

    The same call after a kill at any moment goes on where it was.

    Args:
        budget: limits that hold together: ``"1.5GFLOPs"``, ``["1.2-1.5GFLOPs", "20ms"]``.
        data: ``digits`` (embedded), a folder of class folders, a folder of IDX files, or a timm
            data set name.
        space: a shipped space's name or a TOML file.
        trials: architectures to evaluate.
        sampler: ``surrogate``, ``nsga2``, ``tpe``, ``gp``, ``random`` or ``evolution``.
        seed: of splits, training and search.
        epochs: passes over the training images; the recipe chooses by default.
        time: an upper bound such as ``"2h"`` or a number of seconds, which then chooses the
            epochs.
        mixers: narrow the space to these.
        image: side of the deployed image in pixels; costs are counted at it.
        classes: classes of the deployed network; costs are counted at them.
        device: where to train: ``auto``, ``cpu`` or ``cuda``.
        batch: images in a training step.
        resolution: side of the training images in pixels.
        racing: whether an evaluation stops as soon as a rival has certainly beaten it.
        supernet_seed: of splits and training, if it is another than `seed`: searches with several
            seeds then share a supernet.
        population: architectures of a generation, by default 20; so many can be evaluated at once,
            so give at least as many as workers. Another number finds others.
        trainers: processes that train the supernet together, a GPU each where it is trained on
            one: on the cluster of `address`, whose machines must share the folder of runs, or
            here. By default it is trained in this process.
        workers: processes that evaluate; by default one for each core, or as many as the cluster
            has room for, now and later.
        cpus_per_worker: processor cores of each, or a fraction of one.
        gpus_per_worker: GPUs of each, or a fraction of one; by default this machine's are shared
            where the supernet is trained on one.
        address: a Ray cluster to search on: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; by
            default a private one on this machine.
        trial_timeout: how long one evaluation may take (``"90s"``, or seconds); what takes longer
            has failed. By default a hundred times what the plan measured, five minutes at least.
        name: the run's folder; by default made of data, space, budget and seed.
        runs: the folder of all runs.
        fresh: whether to train a supernet even if a run in that folder has one that fits.
        storage: an Optuna storage that shows the trials live, for its dashboard, in a study of the
            run's name: ``sqlite:///study.db``, ``postgresql://...``, or a journal file's path. One
            way only: the run's own log is the truth, and a storage that fails ends nothing. It is
            no part of the run: going on, give it again, another, or none.
        dashboard: whether the private Ray shows its dashboard, on this machine only; a note tells
            where. It needs ``ray[default]``.
        tensorboard: whether to draw training and search for TensorBoard, into the run's folder
            ``tensorboard``.
        dry_run: stop before anything long, and return the plan.
        listener: is told how the job gets on.

    Returns:
        The finished run, whose ``best.json`` holds the winner; or the plan of a dry run.

    Raises:
        MixnasError: for whatever a user can mend; nothing half-written is left.
    """
    settings = Settings(
        budget=(budget,) if isinstance(budget, str) else tuple(budget),
        data=str(data),
        space=str(space),
        trials=trials,
        sampler=sampler,
        seed=seed,
        epochs=epochs,
        time=None if time is None else written(time),
        mixers=tuple(mixers),
        image=image,
        classes=classes,
        device=device,
        batch=batch,
        resolution=resolution,
        racing=racing,
        supernet_seed=supernet_seed,
        population=population,
    )
    settings.check()
    check_views(storage, tensorboard=tensorboard)
    crew = crewed(
        settings,
        workers,
        cpus_per_worker,
        gpus_per_worker,
        address,
        trial_timeout,
        dashboard=dashboard,
    )
    trains = training(settings, trainers, crew)
    listener = listener or Silent()
    problem = replace(prepare(settings, rooted(runs), name, listener), storage=storage)
    check_shared(problem, trains)
    if not problem.trained:
        visit(crew)  # before anything long
    if not dry_run:
        begin_storage(problem)
    plan = None if problem.begun and not dry_run else _planned(problem, crew, fresh)
    if plan and dry_run:
        listener.plan(plan.rows(problem) | shared(trains))
        return plan
    with (
        problem.open_run() as run,
        recorded(listener, run) as listener,
        drawn(listener, run.path, wanted=tensorboard) as listener,
    ):
        if tensorboard:
            listener.note(viewing(run.file(FOLDER)))
        return _go_on(problem, run, crew, trains, listener, plan)


def check_views(storage: str | None, *, tensorboard: bool) -> None:
    """Refuse, before anything long, views of a search that cannot be had.

    Raises:
        InvalidOption: if the storage's address is none, or TensorBoard's writer is not installed.
    """
    if storage is not None:
        check_storage(storage)
    if tensorboard:
        check_curves()


def patient(crew: Crew, plan: Plan) -> Crew:
    """Give a crew without a limit one: far more than an evaluation was planned to take."""
    if crew.limit is not None:
        return crew
    return replace(crew, limit=max(LEAST_LIMIT, TIMES * plan.evaluation_seconds))


def crewed(
    settings: Settings,
    workers: int | None,
    cpus: float,
    gpus: float | None,
    address: str | None,
    timeout: str | float | None,
    *,
    dashboard: bool = False,
) -> Crew:
    """Return who evaluates: on this machine a worker a core, which share its GPUs if one trains.

    Raises:
        InvalidOption: for numbers that no worker can have, an address that is none, or a dashboard
            that is not installed.
    """
    limit = None if timeout is None else seconds(timeout, "trial-timeout")
    if address is not None:
        return Crew(workers, cpus, gpus or 0.0, address, limit, dashboard)
    crew = Crew(workers, cpus, gpus or 0.0, None, limit, dashboard)
    if dashboard:
        check_dashboard()
    number = workers or max(1, int(cores() / cpus))
    if gpus is None and torch_device(settings.device).type == "cuda":
        gpus = min(1.0, torch.cuda.device_count() / number)
    return replace(crew, workers=number, gpus=gpus or 0.0)


def training(settings: Settings, number: int | None, crew: Crew) -> Crew | None:
    """Return who trains the supernet together; None for this process alone.

    Args:
        settings: on which device it is trained.
        number: how many processes; None, or one on this machine, for this one.
        crew: who evaluates, and where.

    Raises:
        InvalidOption: for numbers that no process can have.
    """
    if number is not None:
        at_least("trainers", number, 1)
    if number is None or (number == 1 and crew.address is None):
        return None
    cuda = settings.device != "cpu" and bool(crew.gpus)
    cuda = cuda or torch_device(settings.device).type == "cuda"
    return across.trainers(number, cuda, crew.cpus if crew.address else None, crew.address)


def shared(trains: Crew | None) -> dict[str, str]:
    """Say for a plan who trains the supernet, if it is not this process alone."""
    if trains is None:
        return {}
    where = f" of the cluster at {trains.address}" if trains.address else ""
    text = f"{trains.workers} processes{where}, {trains.each()} each; times above are of one"
    return {"trainers": text}


def _planned(problem: Problem, crew: Crew, fresh: bool) -> Plan:
    """Plan by a supernet that is there, or else by a few steps of training one."""
    workers = crew.workers or cores()  # of a cluster nothing is known before it is joined
    source = None if fresh else reuse.find(problem)
    if source is None:
        return rehearse(problem, workers)
    return reuse.rehearse(problem, source, workers)


def _go_on(
    problem: Problem,
    run: Run,
    crew: Crew,
    trains: Crew | None,
    listener: Listener,
    plan: Plan | None,
) -> Run:
    """Do what the run still lacks, by the plan that it was begun with."""
    if plan is None:
        plan = Plan.of(run)
    else:
        run.write(PLAN, plan.to_dict())
    listener.plan(plan.rows(problem) | shared(trains))
    if plan.source is not None and not run.done("training"):
        reuse.supply(problem, plan.source, run, listener)
    train_together(problem, plan, run, trains, listener)
    crew = patient(crew, plan)
    trials = search_supernet(problem, run, crew, listener, first_round(problem))
    name_winner(problem, plan, run, trials, crew, listener)
    return run
