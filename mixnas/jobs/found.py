"""What a search found, as plain data: rows of trials, the front, and the run's summary.

Everything here follows from the trials, the finalists and a few `Facts`, so that a run's log alone
can make it again (see `mixnas.jobs.replay`).
"""

import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mixnas.arch import Architecture
from mixnas.asktell import Trial, images
from mixnas.cost import count
from mixnas.cost.limit import Limit, column, in_column
from mixnas.cost.table import CostTable
from mixnas.jobs import reuse
from mixnas.jobs.problem import Plan, Problem
from mixnas.jobs.whole import excess
from mixnas.racing import RATE
from mixnas.run import Run

MEASURED_COLUMNS = ("latency_ms", "energy_mj", "memory_mb")
"""What columns of measured figures begin with."""


@dataclass(frozen=True)
class Facts:
    """What a summary tells beside the trials and the winner.

    Attributes:
        run: the run's name.
        budget: the limits.
        data: where the images are, as it was given.
        space: the space's name.
        image: side of the deployed image.
        classes: classes of the deployed network.
        resolution: side of the training images.
        labels: classes of the data.
        params: parameters of the supernet.
        steps: that it was trained for.
        lower: a bound on how many architectures fit, from below.
        upper: the same from above.
        trained_for: the limits that the supernet was trained for.
        source: the run that trained it, None if this one did.
        racing: error rate of the race, None where every image was judged.
    """

    run: str
    budget: list[str]
    data: str
    space: str
    image: int
    classes: int
    resolution: int
    labels: int
    params: int
    steps: int
    lower: int
    upper: int
    trained_for: list[str]
    source: str | None
    racing: float | None

    @classmethod
    def of(cls, problem: Problem, plan: Plan, run: Run) -> "Facts":
        """Collect the facts of a search.

        Raises:
            RunConflict: if the record of the run's supernet is damaged.
        """
        trained = reuse.of(run)
        limits = problem.limits if trained is None else trained.limits
        return cls(
            run=problem.name,
            budget=[str(limit) for limit in problem.limits],
            data=problem.settings.data,
            space=problem.space.name,
            image=problem.space.image,
            classes=problem.space.classes,
            resolution=problem.data.image,
            labels=len(problem.data.labels),
            params=plan.params,
            steps=plan.steps,
            lower=plan.lower,
            upper=plan.upper,
            trained_for=[str(limit) for limit in limits],
            source=None if trained is None else trained.source,
            racing=RATE if problem.settings.racing else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Facts":
        """Read what `to_dict` wrote."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


def row(trial: Trial) -> dict[str, Any]:
    """Return one line of ``trials.csv``; one that a race stopped is not complete but beaten."""
    costs = {column(cost): in_column(cost, value) for cost, value in trial.costs.items()}
    result = trial.score
    return {
        "number": trial.number,
        "id": trial.arch.id,
        "state": "beaten" if _beaten(trial) else trial.state,
        "origin": trial.origin,
        "accuracy": result.accuracy if result else None,
        "loss": result.loss if result else None,
        "loss_error": result.loss_error if result else None,
        "images": result.images if result else None,
        "beaten_by": result.beaten_by if result else None,
        **costs,
        "stem": trial.arch.stem.kind,
        "depth": sum(len(stage.blocks) for stage in trial.arch.stages),
        "reason": trial.reason,
    }


def _beaten(trial: Trial) -> bool:
    """Say whether a race stopped its evaluation, so that its loss is an estimate."""
    return trial.state == "complete" and not trial.contends


def point(trial: Trial) -> dict[str, Any]:
    """Return one point of ``front.json``."""
    return row(trial) | {"arch": trial.arch.to_dict()}


def summary(
    facts: Facts,
    trials: Sequence[Trial],
    winner: Mapping[str, Any],
    front: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what ``mixnas show`` tells of a finished run.

    Args:
        facts: of the search.
        trials: all of them.
        winner: the finalist that was named.
        front: the points of ``front.json``.
        seconds: what each stage took.
    """
    return {
        "format": 1,
        **{key: getattr(facts, key) for key in ("run", "budget", "data", "space")},
        "image": facts.image,
        "classes": facts.classes,
        "winner": _winner(facts, named(trials, winner), winner),
        "front": list(front),
        "supernet": {
            **{key: getattr(facts, key) for key in ("params", "steps", "trained_for", "source")},
            "random": _random(trials),
        },
        "trials": {
            "asked": len(trials),
            "complete": sum(trial.contends for trial in trials),
            "beaten": sum(map(_beaten, trials)),
            "failed": sum(trial.state == "failed" for trial in trials),
        },
        "racing": {"rate": facts.racing, **images(trials)},
        "seconds": {**seconds, "total": sum(seconds.values())},
        "feasible": {"lower": facts.lower, "upper": facts.upper},
    }


def closing(
    limits: Sequence[Limit],
    measured: Container[str],
    finalists: Sequence[Mapping[str, Any]],
    winner: Mapping[str, Any],
    last: Sequence[Limit],
) -> dict[str, Any]:
    """Return what a summary says of how the finalists kept the limits.

    Args:
        limits: of the search.
        measured: the limited costs that are measured.
        finalists: all of them.
        winner: the one that was named.
        last: the limits as they were tightened at the end.
    """
    found: dict[str, Any] = {
        "judged": len(finalists),
        "kept": any(not excess(entry, limits, measured) for entry in finalists),
        "predicted_only": [
            str(limit)
            for limit in limits
            if limit.cost in measured and winner.get(column(limit.cost)) is None
        ],
    }
    if tuple(last) != tuple(limits):
        found["tightened"] = [str(limit) for limit in last]
    return found


def named(trials: Sequence[Trial], winner: Mapping[str, Any]) -> Architecture:
    """Return the architecture of the finalist that was named."""
    return next(trial.arch for trial in trials if trial.number == winner["number"])


def _winner(facts: Facts, best: Architecture, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the winner's figures: as budgeted, and at the size at which it was trained."""
    trained = CostTable(count.flops, image=facts.resolution, classes=facts.labels)
    return {
        "number": entry["number"],
        "id": entry["id"],
        "accuracy": entry["report"]["accuracy"],
        "standard_error": entry["report"]["standard_error"],
        "loss": entry["report"]["loss"],
        "images": entry["report"]["images"],
        "rank_accuracy": entry["rank"]["accuracy"],
        "rank_loss": entry["rank"]["loss"],
        "flops": entry["flops"],
        "params": entry["params"],
        **{key: value for key, value in entry.items() if key.startswith(MEASURED_COLUMNS)},
        **({"not_timed": entry["not_timed"]} if "not_timed" in entry else {}),
        "predicted": entry["predicted"],
        "flops_as_trained": trained(best),
        "resolution": facts.resolution,
        "labels": facts.labels,
        "description": describe(best),
        "arch": best.to_dict(),
    }


def describe(arch: Architecture) -> str:
    """Return an architecture on one line: ``conv8 > 64: xnorm, hilo > 128: aff``."""
    stages = (
        f"{stage.width}: {', '.join(block.mixer for block in stage.blocks)}"
        for stage in arch.stages
    )
    return " > ".join([arch.stem.kind, *stages])


def _random(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return how random feasible architectures score: what the supernet has learnt.

    The first population is drawn at random, so its spread beside its standard error says
    whether the supernet can tell architectures apart.
    """
    scores = [t.score for t in trials if t.score and t.origin == "first"]
    if not scores:
        return {}
    accuracies = [s.accuracy for s in scores]
    losses = [s.loss for s in scores]
    return {
        "architectures": len(scores),
        "accuracy": _spread(accuracies),
        "loss": _spread(losses),
        "standard_error": max(s.standard_error for s in scores),
        "loss_error": statistics.median(s.loss_error for s in scores),
        "loss_deviation": statistics.pstdev(losses),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
