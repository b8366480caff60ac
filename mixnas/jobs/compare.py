"""``mixnas compare``: the winner of a search beside other networks, all trained from scratch alike.

The stages, each of which resumes: **entrants** (who takes part), **trainings** (every entrant with
every seed, in workers), **timing** (all in turn, while no worker runs). What is asked for is what
the table shows; what an earlier call has trained is kept and used.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mixnas.arch import Architecture
from mixnas.errors import InvalidOption, InvalidSpace, RunConflict
from mixnas.jobs import entrants
from mixnas.jobs.audited import ASKED, audited, searches
from mixnas.jobs.contest import Comparison, Contest, left_out, settled
from mixnas.jobs.entrants import Maker
from mixnas.jobs.equal import EqualCompute
from mixnas.jobs.problem import Plan, reopen
from mixnas.jobs.runs import command, finished, state
from mixnas.jobs.settings import Listener, Silent, at_least, cores
from mixnas.jobs.show import open_run
from mixnas.remote import rooted
from mixnas.run import SETTINGS, Run, agree


def compare(
    run: str | Path | Run,
    *,
    seeds: int = 3,
    epochs: int | None = None,
    random: int = 3,
    only: Iterable[str] = (),
    timm: str | None = None,
    workers: int | None = None,
    name: str = "compare",
    runs: str | Path = "runs",
    dry_run: bool = False,
    listener: Listener | None = None,
) -> Run | Comparison:
    """Train a run's winner and others of its cost from scratch, all alike, and compare them.

    The same call after a kill goes on where it was; one with more seeds adds to what is there.

    Args:
        run: a finished search: its name in `runs`, its folder, or the run.
        seeds: trainings of each entrant.
        epochs: of each training; by default as many as the run's supernet had.
        random: how many random feasible architectures take part.
        only: the kinds that stand beside the winner (`mixnas.jobs.entrants.KINDS`); by default
            all but ``equal``, the equal-compute control, which takes as long as the search did.
        timm: a network of timm that takes part; by default the nearest in cost of well-known
            ones.
        workers: processes that train; by default one for each core.
        name: the comparison's folder inside the run's.
        runs: the folder of all runs.
        dry_run: stop before anything long, and return the plan.
        listener: is told how the job gets on.

    Returns:
        The comparison, a folder in the run's, whose ``summary.json`` holds the table; or the plan
        of a dry run.

    Raises:
        RunConflict: if the run is not finished, or the folder holds another comparison.
        InvalidOption: if the name is kept for something else, or no search is given.
        MixnasError: for whatever else a user can mend.
    """
    only = tuple(only)
    workers = cores() if workers is None else workers
    for word, value, least in (("seeds", seeds, 1), ("random", random, 0), ("workers", workers, 1)):
        at_least(word, value, least)
    if epochs is not None:
        at_least("epochs", epochs, 1)
    entrants.check(only, timm)
    searched = searches(
        run if isinstance(run, Run) else open_run(run, rooted(runs)), name, "compare"
    )
    winner = _winner(searched)
    listener = listener or Silent()
    epochs = max(1, round(Plan.of(searched).epochs)) if epochs is None else epochs
    problem = reopen(searched, listener)
    contest = Contest(searched, problem, winner, epochs, name, workers, listener)
    agree(searched.path, name, contest.settings)
    makers = entrants.makers(problem, winner, only, random, timm)
    if makers.keys() <= {"winner"} and "equal" not in only:
        raise InvalidOption(
            f"random {random}, only {','.join(only)}: nobody would stand beside the winner; give "
            "--random 1 or more, or further kinds by --only"
        )
    control = EqualCompute.of(searched, problem, contest.recipe) if "equal" in only else None
    if dry_run:
        there = (searched.path / name / SETTINGS).is_file()
        kept = Run.open(searched.path / name) if there else None
        plan = _plan(contest, makers, seeds, kept, control, keep=False)
        listener.plan(plan.rows())
        return plan
    with Run.create(searched.path, name, contest.settings) as kept:
        words = {"only": ",".join(only), "random": random, "timm": timm, "seeds": seeds}
        kept.write(ASKED, words)
        if fewer := left_out(kept, makers):
            listener.note(
                f"{len(fewer)} networks of an earlier call are not asked for and leave the tables; "
                "their trainings stay, and asking for them again brings them back"
            )
        plan = _plan(contest, makers, seeds, kept, control, keep=True)
        listener.plan(plan.rows())
        if control and plan.to_come:
            makers |= _chosen(contest, kept, control)
            plan = contest.plan(makers, seeds, kept, keep=True, equal=control.reckoning)
        results = contest.train(plan, kept)
        contest.conclude(plan, kept, results, contest.time(plan, kept, results))
        return kept


def _plan(
    contest: Contest,
    makers: Mapping[str, Maker],
    seeds: int,
    kept: Run | None,
    control: EqualCompute | None,
    *,
    keep: bool,
) -> Comparison:
    """Plan with the equal-compute control, whether it has been chosen yet or not."""
    if control is None:
        return contest.plan(makers, seeds, kept, keep=keep)
    told = control.reckoning
    if kept is not None and settled(kept, "equal"):
        everyone = {**makers, **_chosen(contest, kept, control)}
        return contest.plan(everyone, seeds, kept, keep=keep, equal=told)
    first = len(control.lacking(kept))
    return contest.plan(makers, seeds, kept, keep=keep, first=first, to_come=1, equal=told)


def _chosen(contest: Contest, kept: Run, control: EqualCompute) -> dict[str, Maker]:
    """Return the equal-compute control as an entrant, which is trained for once."""
    choose = partial(control.choose, kept, contest.workers, contest.listener)
    return entrants.equal(contest.problem, choose)


def comparison(kept: Run) -> dict[str, Any]:
    """Return what a comparison found: its ``summary.json``, its folder and its files.

    Raises:
        RunConflict: if it is not finished.
    """
    return audited(kept)


def _winner(run: Run) -> Architecture:
    if not finished(run):
        raise RunConflict(
            f"run '{run.name}' is not finished ({state(run)}), so there is no winner to compare; "
            f"go on with: {command(run)}"
        )
    try:
        return Architecture.from_dict(run.read("best.json"))
    except InvalidSpace:
        raise run.broken("best.json") from None
