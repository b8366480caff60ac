"""``mixnas search``: train a supernet, search it under a budget, name a winner.

The stages, each of which resumes: **latency** (a table, if a limit asks for one), **training**
(or a supernet that another run has trained, see `mixnas.jobs.reuse`), **search**, **finalists**.
The run's folder says what has been done; the same call goes on.
"""

from collections.abc import Iterable
from pathlib import Path

from mixnas.jobs import reuse
from mixnas.jobs.finalists import name_winner
from mixnas.jobs.problem import PLAN, Plan, Problem, prepare, rehearse
from mixnas.jobs.settings import Listener, Settings, Silent, at_least, cores, written
from mixnas.jobs.stages import first_round, search_supernet, train_supernet
from mixnas.run import Run


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
    workers: int | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    fresh: bool = False,
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
        workers: processes that evaluate; by default one for each core.
        name: the run's folder; by default made of data, space, budget and seed.
        runs: the folder of all runs.
        fresh: whether to train a supernet even if a run in that folder has one that fits.
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
    )
    settings.check()
    workers = cores() if workers is None else workers
    at_least("workers", workers, 1)
    listener = listener or Silent()
    problem = prepare(settings, Path(runs), name, listener)
    plan = None if problem.begun and not dry_run else _planned(problem, workers, fresh)
    if plan and dry_run:
        listener.plan(plan.rows(problem))
        return plan
    with problem.open_run() as run:
        return _go_on(problem, run, workers, listener, plan)


def _planned(problem: Problem, workers: int, fresh: bool) -> Plan:
    """Plan by a supernet that is there, or else by a few steps of training one."""
    source = None if fresh else reuse.find(problem)
    if source is None:
        return rehearse(problem, workers)
    return reuse.rehearse(problem, source, workers)


def _go_on(problem: Problem, run: Run, workers: int, listener: Listener, plan: Plan | None) -> Run:
    """Do what the run still lacks, by the plan that it was begun with."""
    if plan is None:
        plan = Plan.of(run)
    else:
        run.write(PLAN, plan.to_dict())
    listener.plan(plan.rows(problem))
    if plan.source is not None and not run.done("training"):
        reuse.supply(problem, plan.source, run, listener)
    train_supernet(problem, plan, run, listener)
    trials = search_supernet(problem, run, workers, listener, first_round(problem))
    name_winner(problem, plan, run, trials, workers, listener)
    return run
