"""``mixnas sweep``: many searches, one supernet for each space, one crew, one table, one front.

The sweep's folder is a run that holds runs: ``supernet-SPACE`` for each space, trained for all the
budgets together, and one folder for each search, which takes that supernet over. All searches of a
space run side by side on the same workers: while one waits for the last of its generation, the
others ask. Then, if asked, the winners are retrained (`mixnas.jobs.sweep_retrain`). What was done
when the sweep was stopped is done; the same call goes on.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixnas import cluster
from mixnas.asktell import Several, Trial
from mixnas.cluster import Crew, visit
from mixnas.cost.limit import Limit
from mixnas.errors import EvaluationFailed, InvalidOption, MixnasError
from mixnas.jobs import reuse
from mixnas.jobs.curves import drawn, viewing
from mixnas.jobs.finalists import name_winner
from mixnas.jobs.problem import PLAN, Plan, Problem, Stock, prepare, rehearse
from mixnas.jobs.runs import finished
from mixnas.jobs.search import check_views, crewed, patient, shared, training
from mixnas.jobs.settings import Listener, Settings, Silent, cores, duration
from mixnas.jobs.stages import (
    begin_storage,
    check_shared,
    evaluating,
    first_round,
    mirror,
    search_of,
    supernet,
    train_together,
)
from mixnas.jobs.status import recorded
from mixnas.jobs.sweep_retrain import MEASURED, Expected, expected, plan_row, retrain_winners
from mixnas.jobs.sweep_settings import SUPERNET, SweepSettings, crossed, named
from mixnas.jobs.swept import collect
from mixnas.remote import fetch, rooted
from mixnas.run import Run, agree

FINALISTS_SECONDS = 40.0
"""What naming a winner takes, roughly."""


@dataclass(frozen=True)
class Group:
    """Searches that share a supernet.

    Attributes:
        trunk: the problem that the supernet is trained for: the union of the searches' limits.
        members: the searches.
    """

    trunk: Problem
    members: tuple[Problem, ...]


def sweep(
    budget: Iterable[str | Iterable[str]] | SweepSettings,
    *,
    seed: Iterable[int] = (0,),
    space: Iterable[str] = ("default",),
    on: Iterable[str] = (),
    retrain: int | None = None,
    scheduler: str | None = None,
    trainers: int | None = None,
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    trial_timeout: str | float | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    storage: str | None = None,
    dashboard: bool = False,
    tensorboard: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
    **common: Any,
) -> Run | dict[str, Any]:
    """Search every budget, with every seed, in every space.

    The same call after a kill at any moment goes on where it was.

    Args:
        budget: a budget of each search, or limits that hold together in it; or all that is asked,
            as a TOML file says it (`SweepSettings.load`).
        seed: of the searches; the first one is also that of splits and supernets.
        space: shipped spaces' names or TOML files.
        on: devices, on each of which the measured budgets are meant: ``cpu``, ``table:FILE``.
        retrain: epochs for which the winners are retrained, one training for each architecture;
            none by default.
        scheduler: ``asha`` stops retrainings early that others of the same budget beat (see
            `mixnas.jobs.halving`), ``none`` stops none; ``asha`` by default.
        trainers: as in `mixnas.search`, with the five that follow.
        workers: processes that evaluate.
        cpus_per_worker: processor cores of each worker.
        gpus_per_worker: GPUs of each worker.
        address: a Ray cluster to search on.
        trial_timeout: how long one evaluation may take.
        name: the sweep's folder; by default made of data, spaces, budgets and seeds.
        runs: the folder of all runs.
        storage: an Optuna storage that shows the trials live, in a study for each search, named
            SWEEP/SEARCH; as in `mixnas.search`.
        dashboard: as in `mixnas.search`.
        tensorboard: whether to draw training and search for TensorBoard, into the folder of each
            supernet.
        dry_run: stop before anything long, and return the plan.
        listener: is told how the job gets on.
        common: further options of `mixnas.search`, alike for all searches.

    Returns:
        The finished sweep, whose ``sweep.csv`` has a row for each search; or the plan of a dry run.

    Raises:
        MixnasError: for whatever a user can mend; nothing half-written is left.
        EvaluationFailed: at the end, if a search could not be finished; the others are.
    """
    if isinstance(budget, SweepSettings):
        asked = budget
    else:
        limits = [(each,) if isinstance(each, str) else tuple(each) for each in budget]
        settings = Settings(budget=(), **common)
        budgets = crossed(limits, tuple(on))
        asked = SweepSettings(budgets, tuple(seed), tuple(space), settings, retrain, scheduler)
    asked.check()
    check_views(storage, tensorboard=tensorboard)
    crew = crewed(
        asked.common,
        workers,
        cpus_per_worker,
        gpus_per_worker,
        address,
        trial_timeout,
        dashboard=dashboard,
    )
    trains = training(asked.common, trainers, crew)
    listener = listener or Silent()
    name, runs = name or asked.name(), rooted(runs)
    fetch(runs / name)
    agree(runs, name, asked.to_dict())
    folder = runs / name
    groups = [_mirrored(group, name, storage) for group in _groups(asked, folder, trains, listener)]
    if not all(group.trunk.trained for group in groups):
        visit(crew)  # before anything long
    plans = [_plan(group, crew) for group in groups]
    trunks = [group.trunk for group in groups]
    measured = None if asked.retrain is None else expected(asked, trunks, folder)
    rows = _rows(folder, groups, plans, crew, asked, measured) | shared(trains)
    listener.plan(rows)
    if dry_run:
        return rows
    _begin_storage(groups)
    with Run.create(runs, name, asked.to_dict()) as run, recorded(listener, run) as listener:
        failed: dict[str, str] = {}
        if tensorboard:
            listener.note(viewing(run.path))
        for group, plan in zip(groups, plans, strict=True):
            trunk = group.trunk.runs / group.trunk.name
            with drawn(listener, trunk, wanted=tensorboard) as told:
                failed |= _do(group, plan, crew, trains, told)
        names = [member.name for group in groups for member in group.members]
        if measured is not None:
            run.write(MEASURED, measured.to_dict())
            collect(run, names, failed)  # what was found is told while the retrainings take long
            retrain_winners(run, asked, trunks[0].device.type, listener)
        collect(run, names, failed)
        if failed:
            first, reason = next(iter(failed.items()))
            raise EvaluationFailed(
                f"{len(failed)} of {sum(len(group.members) for group in groups)} searches could "
                f"not be finished, first '{first}': {reason}"
            )
        run.mark("sweep")
        return run


def _groups(
    asked: SweepSettings, folder: Path, trains: Crew | None, listener: Listener
) -> list[Group]:
    """Set up every search, and what the supernet of each space is trained for."""
    stock = Stock()
    groups: list[Group] = []
    for space in asked.spaces:
        members = tuple(
            prepare(settings, folder, named(settings), listener, stock, measured=folder.parent)
            for settings in asked.searches()
            if settings.space == space
        )
        limits = union(members)
        trunk = replace(members[0].settings, budget=tuple(map(str, limits)), seed=asked.seeds[0])
        trunk_name = f"{SUPERNET}-{members[0].full.name}"
        if trunk_name in (group.trunk.name for group in groups):
            raise InvalidOption(
                f"space {space}: another space of the sweep is named {members[0].full.name} too; "
                "give each file a name of its own (its first line, name = ...)"
            )
        problem = prepare(
            trunk, folder, trunk_name, listener, stock, SUPERNET, measured=folder.parent
        )
        check_shared(problem, trains)
        groups.append(Group(problem, members))
    return groups


def _mirrored(group: Group, name: str, storage: str | None) -> Group:
    """Have a storage, if there is one, show the group's searches."""
    shown = (replace(member, storage=storage, sweep=name) for member in group.members)
    return replace(group, members=tuple(shown))


def _begin_storage(groups: Sequence[Group]) -> None:
    """Make the studies that shall show the searches, if a storage is given."""
    for member in (each for group in groups for each in group.members):
        begin_storage(member)


def _finished(member: Problem) -> bool:
    """Tell whether a search has named its winner, and written all of it down."""
    folder = member.runs / member.name
    if not folder.is_dir():
        return False
    run = Run.open(folder)
    return finished(run) and run.done("finalists")


def union(members: Sequence[Problem]) -> tuple[Limit, ...]:
    """Return limits that allow whatever the searches of a space allow.

    Where all limit the same costs, it is the least box around theirs; where they do not, the
    FLOPs from the cheapest to the dearest network that any of them can name.
    """
    costs = [tuple(sorted(limit.cost for limit in member.limits)) for member in members]
    if len(set(costs)) == 1:
        together = [limit for member in members for limit in member.limits]
        return tuple(
            Limit(
                cost,
                min(limit.low for limit in together if limit.cost == cost),
                max(limit.high for limit in together if limit.cost == cost),
            )
            for cost in dict.fromkeys(limit.cost for limit in together)
        )
    reaches = [reuse.reach(member, "flops") for member in members]
    low, high = min(low for low, _ in reaches), max(high for _, high in reaches)
    return (Limit("flops", low * 99 // 100, -(-high * 101 // 100)),)  # the ends are near, not exact


def _plan(group: Group, crew: Crew) -> Plan:
    """Return the plan that a supernet was begun with, or make one by a few steps."""
    if group.trunk.begun:
        return Plan.of(Run.open(group.trunk.runs / group.trunk.name))
    return rehearse(group.trunk, crew.workers or cores())


def _rows(
    folder: Path,
    groups: Sequence[Group],
    plans: Sequence[Plan],
    crew: Crew,
    asked: SweepSettings,
    measured: Expected | None,
) -> dict[str, Any]:
    """Return the plan for people: label to text."""
    text, retraining = ("", 0.0) if measured is None else plan_row(asked, measured)
    members = [member for group in groups for member in group.members]
    training = sum(plan.training_seconds for plan in plans)
    workers = crew.workers or cores()
    searching = sum(
        len(group.members) * group.trunk.settings.trials * plan.evaluation_seconds / workers
        for group, plan in zip(groups, plans, strict=True)
    )
    total = training + searching + FINALISTS_SECONDS * len(members) + retraining
    done = sum(_finished(member) for member in members)
    sizes = members[0].data.sizes
    return {
        "run": str(folder),
        "data": f"{members[0].data.name}: "
        + ", ".join(f"{n:,} {split}" for split, n in sizes.items()),
        "searches": f"{len(members)} ({done} of them done), "
        f"{members[0].settings.trials} architectures each by {members[0].settings.sampler}",
        **{
            f"supernet {group.trunk.full.name}": f"for {' and '.join(map(str, group.trunk.limits))}"
            f", {plan.steps:,} steps; serves "
            + "; ".join(" and ".join(map(str, each.limits)) for each in _once(group.members))
            for group, plan in zip(groups, plans, strict=True)
        },
        **({"retraining": text} if text else {}),
        "time": f"about {duration(total)} from nothing ({duration(training)} training)",
    }


def _once(members: Iterable[Problem]) -> list[Problem]:
    """Return one search of each budget."""
    return list({member.limits: member for member in members}.values())


def _do(
    group: Group, plan: Plan, crew: Crew, trains: Crew | None, listener: Listener
) -> dict[str, str]:
    """Do what a group still lacks; return the searches that could not be finished, and why."""
    with ExitStack() as stack:
        trunk = stack.enter_context(group.trunk.open_run())
        if not trunk.file(PLAN).exists():
            trunk.write(PLAN, plan.to_dict())
        train_together(group.trunk, plan, trunk, trains, listener)
        # A storage shows what was done without it, too.
        lacking = [each for each in group.members if each.storage or not _finished(each)]
        opened = [(member, stack.enter_context(member.open_run())) for member in lacking]
        for member, run in opened:
            _supply(member, run, plan, trunk, listener)
        failed = _search(group, opened, patient(crew, plan), listener)
        for member, run in opened:
            if member.name in failed:
                continue
            try:
                _finish(member, run, crew, listener)
            except MixnasError as error:
                failed[member.name] = str(error)
                listener.note(f"{member.name}: {error}")
    return failed


def _supply(member: Problem, run: Run, plan: Plan, trunk: Run, listener: Listener) -> None:
    """Give a search its plan and the group's supernet."""
    if not run.file(PLAN).exists():
        lower, upper = member.feasible.bounds()
        own = replace(plan, lower=lower, upper=upper, step_seconds=0.0, source=trunk.name)
        run.write(PLAN, own.to_dict())
    if not run.done("training"):
        trained = reuse.of(trunk)
        if trained is None:
            raise trunk.broken(reuse.RECORD)
        reuse.give(trunk, trained, run, listener)


def _search(
    group: Group, opened: Sequence[tuple[Problem, Run]], crew: Crew, listener: Listener
) -> dict[str, str]:
    """Run the searches of a group side by side; return those that failed, and why."""
    waiting = [(member, run) for member, run in opened if not run.done("search")]
    if not waiting:
        return {}
    with ExitStack() as stack:
        searches = []
        for member, run in waiting:
            searches.append(search_of(member, run, first_round(member)))
            stack.callback(searches[-1].close)
            mirror(searches[-1], member, first_round(member), listener, stack)
        several = Several(searches)
        listener.stage("search", several.goal, several.complete)

        def report(trial: Trial) -> None:
            if trial.score is not None:
                done = sum(search.finished for search in searches)
                bests = [each.best() for each in searches]
                best = min((one.loss for one in bests if one), default=trial.loss)
                told = f"{done} of {len(searches)} done"
                listener.advance(1, searches=told, best_loss=best, loss=trial.loss)

        trunk = Run.open(group.trunk.runs / group.trunk.name)
        evaluator = group.trunk.evaluator(supernet(group.trunk, trunk))
        racing = group.trunk.settings.racing
        began = time.perf_counter()
        again = cluster.evaluate(
            several, evaluating(evaluator, crew, racing), crew, progress=report, note=listener.note
        )
        listener.end()
        seconds = (time.perf_counter() - began) / len(searches)
        failed = {}
        for place, (search, (member, run)) in enumerate(zip(searches, waiting, strict=True)):
            if place in several.failed:
                failed[member.name] = str(several.failed[place])
                listener.note(f"{member.name}: {failed[member.name]}")
                continue
            facts = {"exhausted": search.exhausted, "rejudged": several.share(again, place)}
            run.mark("search", seconds=seconds, **facts)
    return failed


def _finish(member: Problem, run: Run, crew: Crew, listener: Listener) -> None:
    """Name a search's winner, if it has none yet."""
    with ExitStack() as stack:
        search = search_of(member, run, first_round(member))
        stack.callback(search.close)
        mirror(search, member, first_round(member), listener, stack)
        trials = search.trials
    if _finished(member):
        return
    listener.note(f"finalists of {member.name}")
    name_winner(member, Plan.of(run), run, trials, crew, listener)
