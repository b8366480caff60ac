"""The front judged afresh: what its points are worth on images that did not choose them.

A front is chosen by the loss on the ranking images, which flatters it: of many candidates those
stand on it that were lucky there. So its points answer the report images once more, image by
image (`mixnas.jobs.front_answers`); intervals, and the chance that a point beats its cheaper
neighbour, come from these answers. There is a front over each of several costs, since one cost
alone may favour what it does not see, and beside them stands what FLOPs leave out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.arch import Architecture
from mixnas.asktell import Trial
from mixnas.asktell import trial as trials_module
from mixnas.cost.conventions import Conventions, Unsaid
from mixnas.cost.limit import MEASURED, Limit, column, in_column, kind_of
from mixnas.evaluate import SupernetEvaluator
from mixnas.jobs import front_answers
from mixnas.jobs.bootstrap import (
    DRAWS,
    LEVEL,
    chance_of_less,
    hypervolume,
    interval,
    resampled,
)
from mixnas.jobs.found import point
from mixnas.jobs.front_answers import Batches, Judged, Record
from mixnas.jobs.problem import Problem
from mixnas.jobs.settings import Listener
from mixnas.ranking import proportion
from mixnas.run import Run

FILE = "fronts.json"
FORMAT = 1

MOST = 24
"""Points of a front that are judged."""
TOLD_APART = 0.8
"""Chance of beating the cheaper neighbour below which two points are not told apart."""


@dataclass(frozen=True)
class Ground:
    """What fronts are drawn up on, beside trials and answers.

    Attributes:
        limits: of the search, the first one's cost being the one that it weighed.
        labels: classes of the data.
        image: side of the deployed image in pixels.
        classes: classes of the deployed network.
    """

    limits: tuple[Limit, ...]
    labels: int
    image: int
    classes: int

    def costs(self, trials: Sequence[Trial]) -> list[str]:
        """Return the costs over which there is a front, the search's own first.

        FLOPs are among them, and what is measured; where nothing is, parameters.
        """
        known = trials[0].costs if trials else {}
        measured = [cost for cost in known if kind_of(cost) in MEASURED]
        return list(dict.fromkeys([self.limits[0].cost, "flops", *(measured or ["params"])]))

    def reference(self, cost: str, trials: Iterable[Trial]) -> tuple[int, float]:
        """Return the point that is worth nothing: guessing at the budget.

        Its loss is that of giving all classes the same probability. Its cost is the limit's upper
        end; of a cost without a limit, that of the dearest trial.
        """
        ends = [limit.high for limit in self.limits if limit.cost == cost]
        dearest = ends or [max(trial.costs[cost] for trial in trials if trial.score)]
        return dearest[0], math.log(self.labels)


def over(trials: Iterable[Trial], cost: str) -> list[Trial]:
    """Return the trials that no other beats in both loss and a cost, cheapest first."""
    return trials_module.front(
        replace(trial, costs={cost: trial.costs[cost]} | dict(trial.costs)) for trial in trials
    )


def left_out(trials: Iterable[Trial], cost: str) -> int:
    """Return how many trials would stand on a front, had their evaluation not been stopped early.

    Such a trial was beaten by one that is no dearer in the search's own cost, yet may be cheaper
    in another.
    """
    known = list(trials)
    stopped = {trial.number for trial in known if trial.score and not trial.contends}
    whole = [
        replace(trial, score=replace(trial.score, beaten_by=None)) if trial.score else trial
        for trial in known
    ]
    return sum(trial.number in stopped for trial in over(whole, cost))


def thinned(front: Sequence[Trial], most: int = MOST) -> list[Trial]:
    """Return at most so many points of a front, both ends among them, spread evenly over cost."""
    if len(front) <= most:
        return list(front)
    costs = np.array([trial.cost for trial in front], dtype=np.float64)
    chosen = [0, len(front) - 1]
    while len(chosen) < most:
        gaps = np.abs(costs[:, None] - costs[chosen]).min(axis=1)
        gaps[chosen] = -1.0
        chosen.append(int(gaps.argmax()))
    return [front[place] for place in sorted(chosen)]


def wanted(trials: Iterable[Trial], record: Record, ground: Ground) -> list[Architecture]:
    """Return the architectures of all fronts' points, which have to answer."""
    weighed = record.weighed(trials)
    costs = ground.costs(weighed)
    return [trial.arch for cost in costs for trial in thinned(over(weighed, cost))]


def answered(trials: Iterable[Trial], record: Record, ground: Ground) -> bool:
    """Say whether there are points, and all of them have answered."""
    known = list(trials)
    return bool(wanted(known, record, ground)) and not silent(known, record, ground)


def silent(trials: Iterable[Trial], record: Record, ground: Ground) -> list[Trial]:
    """Return the trials on the fronts that have not answered, each once."""
    known = list(trials)
    lacking = {arch.id for arch in wanted(known, record, ground)} - record.judged.keys()
    return [trial for trial in known if trial.arch.id in lacking]


def tellable(trials: Iterable[Trial], record: Record, ground: Ground) -> bool:
    """Say whether of every front a point has answered, so that there is something to tell."""
    weighed = record.weighed(trials)
    return bool(weighed) and all(
        any(trial.arch.id in record.judged for trial in thinned(over(weighed, cost)))
        for cost in ground.costs(weighed)
    )


def judged_fronts(
    problem: Problem,
    run: Run,
    trials: Sequence[Trial],
    finalists: Iterable[Mapping[str, Any]],
    evaluator: SupernetEvaluator,
    batches: Batches,
    listener: Listener,
) -> dict[str, Any]:
    """Judge the points of the fronts, or go on with it; return what `tell_fronts` tells.

    Args:
        problem: that was searched.
        run: keeps the answers.
        trials: what was evaluated.
        finalists: what was measured whole.
        evaluator: prepares networks with fresh statistics.
        batches: the report images and their labels.
        listener: is told how it gets on.

    Raises:
        RunConflict: if the log of answers is damaged.
        StorageFull: if the disk is full.
    """
    space = problem.space
    ground = Ground(problem.limits, len(problem.data.labels), space.image, space.classes)
    table = None if problem.devices else front_answers.at_hand(space, problem.runs)
    predictors = {cost: device.predictor for cost, device in problem.devices.items()}
    predictors |= dict([table] if table else [])
    record = front_answers.begin(run, trials, table)
    archs = wanted(trials, record, ground)
    record = front_answers.judge(run, archs, evaluator, batches, predictors, listener)
    return tell_fronts(trials, record, finalists, ground)


def tell_fronts(
    trials: Sequence[Trial],
    record: Record,
    finalists: Iterable[Mapping[str, Any]],
    ground: Ground,
) -> dict[str, Any]:
    """Return the fronts as plain data: a function of what the logs hold, whoever asks.

    A point that has not answered is left out (see `silent`); of each front one has (`tellable`).

    Args:
        trials: what was evaluated.
        record: the points' answers.
        finalists: what was measured whole.
        ground: what the fronts are drawn up on.

    Returns:
        level, draws, told_apart, images; ``fronts``, for each cost: cost, of (points before they
        were thinned), left_out (see there), points (in the order of cost, as `_point` tells),
        hypervolume (value, low, high, rank: on the images that chose, and the reference) and
        selection (mean loss on the images that chose and on others); conventions (`_conventions`).
    """
    weighed = record.weighed(trials)
    measured = {entry["id"]: entry for entry in finalists}
    return {
        "format": FORMAT,
        "level": LEVEL,
        "draws": DRAWS,
        "told_apart": TOLD_APART,
        "images": len(next(iter(record.judged.values())).answers.losses),
        "fronts": [
            _front(cost, weighed, record.judged, measured, ground) for cost in ground.costs(weighed)
        ],
        "conventions": _conventions(thinned(over(weighed, "flops")), ground),
    }


def front_rows(trials: Iterable[Trial], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the points of ``front.json``: over the search's own cost, as they were judged.

    Args:
        trials: what was evaluated.
        told: what `tell_fronts` returned.
    """
    extra = ("report", "chance", "told_apart", "predicted", "measured")
    known = {one["number"]: {key: one[key] for key in extra} for one in told["fronts"][0]["points"]}
    return [point(one) | known.get(one.number, {}) for one in trials_module.front(trials)]


def _front(
    cost: str,
    trials: Sequence[Trial],
    judged: Mapping[str, Judged],
    measured: Mapping[str, Mapping[str, Any]],
    ground: Ground,
) -> dict[str, Any]:
    whole = over(trials, cost)
    points = [trial for trial in thinned(whole) if trial.arch.id in judged]
    known = [judged[trial.arch.id] for trial in points]
    losses = np.stack([one.answers.losses.numpy() for one in known])
    means = resampled(losses)
    reference = ground.reference(cost, trials)
    costs = [trial.costs[cost] for trial in points]
    ranked = np.array([trial.loss for trial in points])
    return {
        "cost": cost,
        "of": len(whole),
        "left_out": left_out(trials, cost),
        "points": [
            _point(cost, trial, one, means, place)
            | {"measured": _measured(measured.get(trial.arch.id, {}))}
            for place, (trial, one) in enumerate(zip(points, known, strict=True))
        ],
        "hypervolume": {
            "value": float(hypervolume(costs, losses.mean(axis=1), reference)),
            **_ends(hypervolume(costs, means, reference)),
            "rank": float(hypervolume(costs, ranked, reference)),
            "reference": {column(cost): in_column(cost, reference[0]), "loss": reference[1]},
        },
        "selection": {
            "rank_loss": float(ranked.mean()),
            "report_loss": float(losses.mean()),
            **_ends(means.mean(axis=1)),
        },
    }


def _ends(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("low", "high"), interval(values), strict=True))


def _point(
    cost: str, trial: Trial, known: Judged, means: NDArray[np.float64], place: int
) -> dict[str, Any]:
    """Return what is told of a point.

    Number, id, cost, FLOPs and parameters, accuracy and loss on the ranking images; ``report``:
    the same on the report images, with intervals; ``chance``: that its loss is below its cheaper
    neighbour's, and whether that tells them apart (both None of the cheapest); what is predicted.
    """
    given = known.answers
    right, images = int(given.right.sum()), len(given.right)
    share = proportion(right, images)
    low, high = interval(means[:, place])
    chance = chance_of_less(means[:, place], means[:, place - 1]) if place else None
    return {
        "number": trial.number,
        "id": trial.arch.id,
        **{column(one): in_column(one, trial.costs[one]) for one in ("flops", "params", cost)},
        "accuracy": trial.score.accuracy if trial.score else None,
        "loss": trial.loss,
        "report": {
            "accuracy": share.value,
            "accuracy_low": share.low,
            "accuracy_high": share.high,
            "loss": float(given.losses.mean()),
            "loss_low": low,
            "loss_high": high,
            "images": images,
        },
        "chance": chance,
        "told_apart": None if chance is None else chance >= TOLD_APART,
        "predicted": dict(known.predicted),
    }


def _measured(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finalist's whole measurements, by the run's columns."""
    return {
        name: dict(value)
        for name, value in entry.items()
        if isinstance(value, Mapping) and "median" in value
    }


def _conventions(points: Sequence[Trial], ground: Ground) -> dict[str, Any]:
    """Return what FLOPs do not say of the points of the front over FLOPs.

    ``points``: each one's number and shares (`Unsaid.shares`), and whether it stands on the front
    of these points if what is uncounted is counted in; ``mixers``: FLOPs and shares of each mixer.
    """
    look_up = Conventions(image=ground.image, classes=ground.classes)
    found = [look_up(trial.arch) for trial in points]
    return {
        "points": [
            {"number": trial.number, **unsaid.shares(), "stands": _stands(place, points, found)}
            for place, (trial, unsaid) in enumerate(zip(points, found, strict=True))
        ],
        "mixers": {
            name: {"flops": unsaid.flops, **unsaid.shares()}
            for name, unsaid in look_up.mixers(trial.arch for trial in points).items()
        },
    }


def _stands(place: int, points: Sequence[Trial], found: Sequence[Unsaid]) -> bool:
    """Say whether no point that loses less costs as little, what is uncounted counted in."""
    total = [unsaid.flops + unsaid.uncounted for unsaid in found]
    return not any(
        points[other].loss < points[place].loss and total[other] <= total[place]
        for other in range(len(points))
    )
