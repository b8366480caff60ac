"""``mixnas audit``: how far a supernet's ranking can be trusted, by trainings from scratch.

The stages, each of which resumes: **entrants** (architectures are drawn), **scores** (by the
supernet, as the search ranks), **trainings** (each alone, with every seed, in workers), and the
findings. What an earlier call has trained is kept and used.
"""

from dataclasses import replace
from pathlib import Path

from mixnas import data as datasets
from mixnas.arch import Architecture
from mixnas.errors import InvalidOption
from mixnas.jobs import audit_draws
from mixnas.jobs.audit_before import Wanted, known, with_kept
from mixnas.jobs.audit_stages import Audit, Auditing
from mixnas.jobs.audited import ASKED, JOB, searches
from mixnas.jobs.problem import Plan, Problem, reopen
from mixnas.jobs.settings import Listener, Silent, at_least, cores, pixels, within
from mixnas.jobs.show import open_run
from mixnas.jobs.stages import supernet
from mixnas.jobs.subject import searched as subject_of
from mixnas.ranking import LEAST
from mixnas.remote import rooted
from mixnas.run import SETTINGS, Run, agree

MOST_DRAWN = 10_000
"""Architectures of a group: nobody trains more of them alone, and drawing them takes long."""


def audit(
    run: str | Path | Run,
    *,
    architectures: int = 24,
    inside: int = 24,
    epochs: int | None = None,
    seeds: int = 2,
    resolution: int | None = None,
    workers: int | None = None,
    name: str = "audit",
    runs: str | Path = "runs",
    dry_run: bool = False,
    listener: Listener | None = None,
) -> Run | Audit:
    """Train drawn architectures from scratch, and hold the supernet's ranking against the truth.

    The same call after a kill goes on where it was; one with more architectures or seeds adds to
    what is there, and one with fewer judges by all that is there.

    Args:
        run: a finished search: its name in `runs`, its folder, or the run.
        architectures: how many are drawn with costs spread evenly over the budget.
        inside: how many are drawn within 10 % of the dearest feasible cost.
        epochs: of each training; by default as many as the run's supernet had.
        seeds: trainings of each; from two on there is a ceiling.
        resolution: side of the images on which they are trained; by default the run's, at which
            the supernet ranks in any case.
        workers: processes that train; by default one for each core.
        name: the audit's folder inside the run's.
        runs: the folder of all runs.
        dry_run: stop before anything long, and return the plan.
        listener: is told how the job gets on.

    Returns:
        The audit, a folder in the run's, whose ``summary.json`` holds the findings; or the plan
        of a dry run.

    Raises:
        RunConflict: if the run has no winner or no supernet, or the folder holds another audit.
        InvalidOption: if a number or the name cannot be, or no search is given.
        MixnasError: for whatever else a user can mend.
    """
    workers = cores() if workers is None else workers
    asked = Wanted(architectures, inside, seeds)
    _check(asked, epochs, resolution, workers)
    searched = searches(run if isinstance(run, Run) else open_run(run, rooted(runs)), name, JOB)
    winner = Architecture.from_dict(subject_of(searched).source["arch"])
    listener = listener or Silent()
    epochs = max(1, round(Plan.of(searched).epochs)) if epochs is None else epochs
    original = reopen(searched, listener)
    stages = Auditing(
        searched,
        trained_at(original, resolution),
        winner,
        epochs,
        name,
        workers,
        listener,
        original=original,
        network=supernet(original, searched),
    )
    agree(searched.path, name, stages.settings)
    there = (searched.path / name / SETTINGS).is_file()
    before = Run.open(searched.path / name) if there else None
    wanted = with_kept(asked, before)
    _check_enough(wanted)
    if wanted != asked:
        listener.note(f"the audit has more than was asked for and rests on all of it: {wanted}")
    makers = audit_draws.makers(original, winner, wanted.across, wanted.inside, known(before))
    if dry_run:
        plan = stages.audit(stages.plan(makers, wanted.seeds, before, keep=False))
        listener.plan(plan.rows())
        return plan
    with Run.create(searched.path, name, stages.settings) as kept:
        numbers = {"architectures": wanted.across, "inside": wanted.inside, "seeds": wanted.seeds}
        kept.write(ASKED, numbers)
        todo = stages.plan(makers, wanted.seeds, kept, keep=True)
        listener.plan(stages.audit(todo).rows())
        scores = stages.score(todo, kept)
        stages.find(todo, kept, scores, stages.train(todo, kept))
        return kept


def _check(asked: Wanted, epochs: int | None, resolution: int | None, workers: int) -> None:
    within("architectures", asked.across, 0, MOST_DRAWN)
    within("inside", asked.inside, 0, MOST_DRAWN)
    at_least("seeds", asked.seeds, 1)
    at_least("workers", workers, 1)
    if epochs is not None:
        at_least("epochs", epochs, 1)
    pixels("resolution", resolution)


def _check_enough(wanted: Wanted) -> None:
    if wanted.across + wanted.inside < LEAST:
        raise InvalidOption(
            f"{wanted.across} architectures and {wanted.inside} inside: a correlation needs at "
            f"least {LEAST}; give more"
        )


def trained_at(problem: Problem, resolution: int | None) -> Problem:
    """Return a problem with its images at another size, the splits being the same.

    Raises:
        DataError: if they cannot be read, or the size is too small.
    """
    if resolution in (None, problem.data.image):
        return problem
    settings = problem.settings
    return replace(
        problem, data=datasets.load(settings.data, seed=settings.training_seed, image=resolution)
    )
