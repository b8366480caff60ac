"""``mixnas pick``: another budget from what a run has learnt, in seconds, without training."""

import re
import shlex
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import save as save_tensors

from mixnas.arch import Architecture
from mixnas.asktell import read_trials
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import MEASURED, Limit, column, in_column, parse_all
from mixnas.cost.memory import PeakMemory
from mixnas.errors import BudgetUnreachable, InvalidBudget, InvalidOption, RunConflict
from mixnas.evaluate import Score, SupernetEvaluator, score
from mixnas.jobs import reuse
from mixnas.jobs.devices import ELSEWHERE, tabled
from mixnas.jobs.finalists import TRIALS
from mixnas.jobs.found import describe
from mixnas.jobs.picking import Idea, Ideas, Origin
from mixnas.jobs.problem import Problem, Table, reopen
from mixnas.jobs.runs import command, job
from mixnas.jobs.settings import Listener, Silent, seconds
from mixnas.jobs.show import open_run
from mixnas.jobs.stages import supernet
from mixnas.ranking import proportion
from mixnas.remote import rooted
from mixnas.run import Run

FOLDER = "picks"
EVALUATED, BATCH = 40, 8
"""Architectures evaluated at most, and at a time; then the model learns from them."""
JUDGED = 5
"""The best, which are judged again with fresh statistics."""
SHARE = 0.6
"""Of the time: evaluating; the rest is for judging the best."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a run: limits, the supernet's architectures within them, time.

    Attributes:
        run: that has a trained supernet.
        problem: what it searched.
        limits: the budget, within what the supernet was trained for.
        trained: the limits it was trained for.
        tables: cost by name, of every limit and of FLOPs and parameters.
        feasible: the supernet's architectures within the limits.
        began: when the evaluations began, on the monotonic clock.
        span: seconds that they may take.
    """

    run: Run
    problem: Problem
    limits: tuple[Limit, ...]
    trained: tuple[Limit, ...]
    tables: Mapping[str, Table]
    feasible: Feasible
    began: float
    span: float

    def over(self, share: float = 1.0) -> bool:
        """Say whether a share of the time has passed."""
        return clock.monotonic() - self.began > share * self.span


@dataclass
class Known:
    """What is known of architectures by the supernet's weights.

    Attributes:
        losses: architecture and loss on the ranking images, by id; within the limits or not. They
            teach the model.
        whole: ids of those whose every image was judged; the others may be evaluated again, for a
            race stopped them against a rival that may lie outside these limits.
        origins: where those of `whole` within the limits come from, by id; only they can be picked.
        stopped: those within the limits that a race stopped.
        evaluated: how many were evaluated now.
    """

    losses: dict[str, tuple[Architecture, float]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    origins: dict[str, Origin] = field(default_factory=dict)
    stopped: list[Idea] = field(default_factory=list)
    evaluated: int = 0

    def best(self) -> list[tuple[Origin, Architecture]]:
        """Return origin and architecture of those that can be picked, least loss first."""
        order = sorted(self.origins, key=lambda name: (self.losses[name][1], name))
        return [(self.origins[name], self.losses[name][0]) for name in order]


def pick(
    run: str | Path | Run,
    budget: str | Iterable[str],
    *,
    time: str | float = "20s",
    runs: str | Path = "runs",
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Find the best architecture within another budget by a run's supernet, without training.

    Its trials within the budget, and the most promising of further architectures there, which are
    evaluated in this process; the best few are judged again with fresh statistics, and the one
    that is picked is reported on images that chose nothing.

    Args:
        run: a search whose supernet is trained: its name, or its folder.
        budget: limits that hold together, inside those that the supernet was trained for; of
            these, what is not given anew stays as it was.
        time: how long the evaluations may take, such as ``"20s"`` or a number of seconds; what has
            begun is finished.
        runs: the folder of runs.
        listener: is told how it gets on.

    Returns:
        run, budget, trained_for, id, description, architecture, costs, accuracy, interval (of
        95 %, Wilson's), loss, images, rank_accuracy, rank_loss, origin, candidates (how many were
        known, and evaluated now), seconds, files and next.

    Raises:
        InvalidBudget: if a limit reaches beyond what the supernet was trained for.
        BudgetUnreachable: if no architecture keeps the limits, or none that does can be judged.
        RunConflict: if there is no such run, its supernet is not trained yet, or its log is
            damaged.
    """
    wanted = parse_all((budget,) if isinstance(budget, str) else tuple(budget))
    if not wanted:
        raise InvalidBudget("no budget given; give one, such as --budget 1.2GFLOPs")
    begun, span = clock.monotonic(), seconds(time)
    found = run if isinstance(run, Run) else open_run(run, rooted(runs))
    if job(found) != "search":
        raise RunConflict(f"run '{found.name}' is no search and has no supernet; give a search")
    if not found.done("training"):
        raise RunConflict(
            f"run '{found.name}': its supernet is not trained yet; go on with: {command(found)}"
        )
    with Run.open(found.path, lock=True) as kept:
        asked = _asked(kept, wanted, span, listener or Silent())
        told = _answer(asked, listener or Silent())
        told["seconds"] = round(clock.monotonic() - begun, 2)
        kept.write(_file(asked.limits, "found.json"), told)
        return told


def _asked(run: Run, wanted: Sequence[Limit], span: float, listener: Listener) -> Asked:
    """Put a budget inside what the supernet was trained for, and see what keeps it."""
    problem = reopen(run, listener)
    known = reuse.of(run)
    trained = problem.limits if known is None else known.limits
    limits = reuse.tightened(wanted, trained, run.name)
    tables = _tables(problem, limits, run)
    space = problem.space if known is None else known.space
    feasible = Feasible(space, limits, tables)
    return Asked(run, problem, limits, trained, tables, feasible, clock.monotonic(), span)


def _tables(problem: Problem, limits: Sequence[Limit], run: Run) -> dict[str, Table]:
    """Return the tables of a budget: those of the run, and what needs no measuring."""
    tables = dict(problem.tables)
    for limit in limits:
        if limit.cost in tables:
            continue
        if limit.kind in MEASURED:
            if not limit.where.startswith(ELSEWHERE):
                raise InvalidOption(
                    f"budget {limit}: run '{run.name}' was searched without it, and pick measures "
                    "nothing; give a measured table, such as 20ms@table:RUN (see mixnas measure)"
                )
            name = limit.where.removeprefix(ELSEWHERE)
            device = tabled(name, limit.kind, problem.full, run.path.parent)
            tables[limit.cost] = device.predictor
        else:
            space = problem.full
            tables[limit.cost] = PeakMemory(image=space.image, classes=space.classes)
    return tables


def _answer(asked: Asked, listener: Listener) -> dict[str, Any]:
    """Evaluate, judge, and tell what is picked."""
    problem = asked.problem
    network = supernet(problem, asked.run)
    known = _learnt(asked)
    trials = len(known.origins)
    _explore(asked, known, problem.evaluator(network), listener)
    if not known.origins:
        raise BudgetUnreachable(
            f"budget {' and '.join(map(str, asked.limits))}: run '{asked.run.name}' knows no "
            "architecture within it, and none was found to evaluate; give a wider budget"
        )
    judge = problem.evaluator(network, fresh=True)
    listener.stage("finalists", min(JUDGED, len(known.origins)))
    judged: list[tuple[float, Origin, Architecture, Score]] = []
    for origin, arch in known.best()[:JUDGED]:
        ranked = score(judge.prepared(arch), judge.batches)
        judged.append((ranked.loss, origin, arch, ranked))
        listener.advance(1, loss=ranked.loss)
        if asked.over():
            break
    listener.end()
    _, origin, arch, ranked = min(judged, key=lambda one: (one[0], one[2].id))
    told = _told(asked, judge, origin, arch, ranked)
    told["candidates"] = {"known": trials, "evaluated": known.evaluated, "judged": len(judged)}
    return told


def _learnt(asked: Asked) -> Known:
    """Return what the run's logs know: every loss for the model, those within for picking."""
    known = Known()
    for log in sorted(asked.run.path.glob("log*.jsonl")):
        for trial in read_trials(log):
            name, origin = trial.arch.id, f"trial {trial.number} of {log.name}"
            if trial.score is None or name in known.whole:
                continue
            known.losses[name] = trial.arch, trial.score.loss
            if trial.contends:
                known.whole.add(name)
            if trial.arch not in asked.feasible:
                continue
            if trial.contends:
                known.origins[name] = Origin(origin)
            else:
                known.stopped.append(Idea(trial.arch, Origin(origin, now=True)))
    _hold_against(asked.run, known)
    return known


def _hold_against(run: Run, known: Known) -> None:
    """Refuse logs that lack trials of a finished search, or are another's.

    Raises:
        RunConflict: says how many trials are there, and how many should be.
    """
    if not run.file(TRIALS).is_file():
        return  # the search goes on
    table = run.read(TRIALS)
    try:
        told = set(table.loc[table["loss"].notna(), "id"])
    except (KeyError, TypeError, AttributeError):
        raise run.broken(TRIALS) from None
    if told != known.losses.keys():
        raise RunConflict(
            f"{run.path}: its logs hold {len(told & known.losses.keys())} of the {len(told)} "
            f"architectures in {TRIALS} and {len(known.losses.keys() - told)} others, so a log is "
            "damaged or another run's; put log.jsonl back from a copy of the run"
        )


def _explore(asked: Asked, known: Known, evaluator: SupernetEvaluator, listener: Listener) -> None:
    """Evaluate the most promising architectures that are not known, until the time is up."""
    problem = asked.problem
    rng = Random(f"{problem.settings.seed}/pick/{' and '.join(map(str, asked.limits))}")
    costs = [problem.tables["flops"], problem.tables["params"]]
    ideas = Ideas(asked.feasible.space, asked.feasible, costs, rng, known.stopped)
    listener.stage("evaluations", EVALUATED)
    while known.evaluated < EVALUATED and not (known.origins and asked.over(SHARE)):
        number = min(BATCH, EVALUATED - known.evaluated)
        batch = ideas.batch(known.losses, known.whole, known.best(), number)
        for idea in batch:
            loss = evaluator(idea.arch).loss
            known.losses[idea.arch.id] = idea.arch, loss
            known.whole.add(idea.arch.id)
            known.origins[idea.arch.id] = idea.origin
            known.evaluated += 1
            listener.advance(1, loss=loss)
            if asked.over(SHARE):
                break
        if not batch:
            break
    listener.end()


def _told(
    asked: Asked, judge: SupernetEvaluator, origin: Origin, arch: Architecture, ranked: Score
) -> dict[str, Any]:
    """Report what is picked on the images that chose nothing, and keep its weights.

    Architecture and weights have its id in their names: a kill leaves none beside another's.
    """
    run, problem = asked.run, asked.problem
    network = judge.prepared(arch)
    reported = score(network, problem.data.batches("report", batch=256))
    place, weights = (
        _file(asked.limits, f"{arch.id}.{suffix}") for suffix in ("json", "safetensors")
    )
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    run.write(weights, save_tensors(tensors))
    run.write(place, arch.to_json() + "\n")
    files = {"architecture": str(run.file(place)), "weights": str(run.file(weights))}
    return {
        "format": 1,
        "run": run.name,
        "budget": [str(limit) for limit in asked.limits],
        "trained_for": [str(limit) for limit in asked.trained],
        "id": arch.id,
        "description": describe(arch),
        "architecture": arch.to_dict(),
        "costs": {
            column(cost): in_column(cost, table(arch)) for cost, table in asked.tables.items()
        },
        "predicted": {
            column(cost): asdict(table.predict(arch))
            for cost, table in asked.tables.items()
            if hasattr(table, "predict")
        },
        "accuracy": reported.accuracy,
        "interval": interval(reported),
        "loss": reported.loss,
        "images": reported.images,
        "rank_accuracy": ranked.accuracy,
        "rank_loss": ranked.loss,
        "origin": str(origin),
        "files": files,
        "next": _next(problem, files),
    }


def interval(result: Score) -> list[float]:
    """Return Wilson's interval of an accuracy: its two ends."""
    found = proportion(round(result.accuracy * result.images), result.images)
    return [found.low, found.high]


def _file(limits: Sequence[Limit], suffix: str) -> str:
    """Return the name of a pick's file: its budget, without what no folder can hold."""
    budget = re.sub(r"[^A-Za-z0-9@.+-]+", "-", "+".join(map(str, limits)))
    return f"{FOLDER}/{budget[:160]}.{suffix}"


def _next(problem: Problem, files: Mapping[str, str]) -> str:
    words = ["mixnas", "retrain", files["architecture"], "--init", files["weights"]]
    words += ["--data", problem.settings.data]
    if problem.settings.resolution is not None:
        words += ["--resolution", str(problem.settings.resolution)]
    return shlex.join(words)
