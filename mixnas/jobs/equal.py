"""The equal-compute control: what random search finds for the compute of supernet and search.

Random feasible architectures are trained alone, one by one until their trainings have cost at
least as much as the supernet's training and search did together, and the one of least loss on the
images that rank is chosen. Compute is counted in multiply-adds at the training resolution, so it
is the same on every machine: three of a forward pass for a training step (forward, and twice as
much backward), one for an evaluation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from random import Random
from statistics import fmean
from typing import Any

from mixnas import cluster, report
from mixnas.arch import Architecture
from mixnas.asktell.trial import read_trials
from mixnas.cluster import Crew
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable
from mixnas.errors import EvaluationFailed, TrainingDiverged
from mixnas.evaluate import Failure
from mixnas.jobs import reuse
from mixnas.jobs.finalists import FINALISTS_FILE, earlier
from mixnas.jobs.problem import CALIBRATION, Plan, Problem
from mixnas.jobs.settings import Listener
from mixnas.jobs.trainings import train
from mixnas.run import Run
from mixnas.train.draws import Draws
from mixnas.train.recipe import AloneRecipe, Recipe

FOLDER = "equal"
SEED = 1000
"""Of the trainings that choose; what is chosen is trained anew by the comparison's own seeds."""
PASSES = 3
"""Forward passes that a training step on an image is worth."""
EVERY = 16
"""Of so many steps of the supernet one is counted, for all."""
MOST = 10_000


@dataclass(frozen=True)
class Spent:
    """What a search has cost, in multiply-adds.

    Attributes:
        training: of the supernet.
        search: of the evaluations, with what workers judged once more for rivals of a race, and
            of the finalists' second judging on the images that rank.
    """

    training: float
    search: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.training + self.search


def spent(run: Run, problem: Problem) -> Spent:
    """Count what a run's supernet and search have cost, whichever run trained the supernet.

    Raises:
        RunConflict: if a file of the run is damaged.
    """
    cost = _cost(problem)
    plan = Plan.of(run)
    recipe = problem.recipe(plan.steps)
    steps = range(0, plan.steps, EVERY)
    offered = _draws(run, problem, recipe)
    drawn = sum(cost(draw.arch) for step in steps for draw in offered.at(step))
    training = PASSES * recipe.batch * drawn * plan.steps / max(1, len(steps))
    return Spent(training, _judging(run, cost))


def _draws(run: Run, problem: Problem, recipe: Recipe) -> Draws:
    """Return the draws by which the supernet learnt, within the limits that it was trained for."""
    space, feasible, trained = problem.space, problem.feasible, reuse.of(run)
    if trained is not None and trained.limits != problem.limits:
        space = trained.space
        feasible = Feasible(space, trained.limits, problem.tables)
    return Draws.by(recipe, space, feasible, seed=problem.settings.seed)


def _judging(run: Run, cost: CostTable) -> float:
    """Return the multiply-adds of all evaluations of a search."""
    settled = CALIBRATION * 64
    logs = sorted(run.path.glob("log*.jsonl"))
    trials = [trial for log in logs for trial in read_trials(log) if trial.score]
    costs = {trial.arch.id: cost(trial.arch) for trial in trials}
    told = sum(costs[t.arch.id] * (t.score.images + settled) for t in trials if t.score)
    again = report.rejudged(run) * fmean(costs.values()) if costs else 0.0
    try:
        judged = [(costs[one["id"]], one["rank"]["images"]) for one in earlier(run)]
    except (LookupError, TypeError):
        raise run.broken(FINALISTS_FILE) from None
    return told + again + sum(each * (images + 2 * settled) for each, images in judged)


def draws(problem: Problem, recipe: AloneRecipe, total: float) -> list[Architecture]:
    """Draw distinct architectures uniformly until their trainings cost the total, or more."""
    cost = _price(problem, recipe)
    rng = Random(f"equal {problem.settings.seed}")
    found: dict[str, Architecture] = {}
    left = total
    for _ in range(MOST):
        arch = problem.feasible.sample(rng)
        if arch.id not in found:
            found[arch.id] = arch
            left -= cost(arch)
        if left <= 0:
            break
    return list(found.values())


def _price(problem: Problem, recipe: AloneRecipe) -> Callable[[Architecture], int]:
    """Return what gives the multiply-adds of an architecture's training and its evaluation."""
    cost = _cost(problem)
    images = PASSES * recipe.batch * recipe.steps + problem.data.sizes["rank"]
    return lambda arch: cost(arch) * images


@dataclass(frozen=True)
class EqualCompute:
    """The control of one comparison.

    Attributes:
        problem: what was searched.
        recipe: that of every entrant.
        archs: the random architectures that are trained alone.
        spent: what the search has cost.
    """

    problem: Problem
    recipe: AloneRecipe
    archs: tuple[Architecture, ...]
    spent: Spent

    @classmethod
    def of(cls, run: Run, problem: Problem, recipe: AloneRecipe) -> "EqualCompute":
        """Count what a run has cost, and draw for as much."""
        cost = spent(run, problem)
        return cls(problem, recipe, tuple(draws(problem, recipe, cost.total)), cost)

    @property
    def reckoning(self) -> dict[str, float]:
        """How the number of networks follows from what the search has cost, in multiply-adds.

        training (of the supernet), search, networks (how many are trained alone), price (of one
        with its evaluation, on average) and cost (of all).
        """
        price = _price(self.problem, self.recipe)
        cost = float(sum(map(price, self.archs)))
        number = len(self.archs)
        return {**asdict(self.spent), "networks": number, "price": cost / number, "cost": cost}

    @property
    def note(self) -> str:
        """The reckoning in words."""
        told = self.reckoning
        return (
            f"{told['networks']} random networks x {told['price']:.2g} multiply-adds on average = "
            f"{told['cost']:.2g}, for the supernet's {told['training']:.2g} and the evaluations' "
            f"{told['search']:.2g}"
        )

    def lacking(self, kept: Run | None) -> list[Architecture]:
        """Return the architectures whose trainings are still to be done."""
        return [a for a in self.archs if kept is None or not kept.file(_file(a)).is_file()]

    def choose(self, kept: Run, workers: int, listener: Listener) -> tuple[Architecture, str]:
        """Train what is lacking; return the best of all, and a note.

        Args:
            kept: the comparison's folder; a draw's result is kept there.
            workers: processes that train.
            listener: is told how it gets on.

        Raises:
            EvaluationFailed: if a worker gave nothing; the same call does what is lacking.
            TrainingDiverged: if no training came to its end.
        """
        lacking, number = self.lacking(kept), len(self.archs)
        tasks = [self._task(arch, kept) for arch in lacking]
        lost: list[str] = []
        listener.stage("equal compute", number, number - len(lacking))
        with closing(cluster.each(train, tasks, Crew(workers))) as outcomes:
            for index, outcome in outcomes:
                arch = lacking[index]
                if isinstance(outcome, Failure):
                    lost.append(outcome.reason)
                    listener.advance(1)
                    continue
                kept.write(_file(arch), outcome)
                kept.file(f"{FOLDER}/{arch.id}.pt").unlink(missing_ok=True)
                listener.advance(1, loss=outcome.get("loss", float("nan")))
        listener.end()
        if lost:
            raise EvaluationFailed(
                f"the equal-compute control: {len(lost)} of {number} trainings gave nothing "
                f"({lost[0]}); repeat the same command to do them again"
            )
        best, note = _best(self.archs, [_result(kept, arch) for arch in self.archs])
        return best, f"{note}: {self.note}"

    def _task(self, arch: Architecture, kept: Run) -> dict[str, Any]:
        settings, data = self.problem.settings, self.problem.data
        return {
            "source": {"arch": arch.to_dict()},
            "seed": SEED,
            "data": [settings.data, settings.training_seed, data.image],
            "recipe": asdict(self.recipe),
            "device": self.problem.device.type,
            "state": str(kept.file(f"{FOLDER}/{arch.id}.pt").absolute()),
            "split": "rank",
        }


def _best(
    archs: Sequence[Architecture], results: Sequence[Mapping[str, Any]]
) -> tuple[Architecture, str]:
    losses = [(result.get("loss", math.nan), place) for place, result in enumerate(results)]
    whole = [(loss, place) for loss, place in losses if math.isfinite(loss)]
    if not whole:
        raise TrainingDiverged(
            f"none of {len(archs)} random networks could be trained: {results[0].get('reason')}"
        )
    number = f"{len(whole)} of {len(archs)}" if len(whole) < len(archs) else str(len(archs))
    return archs[min(whole)[1]], f"the best of {number} random networks trained alone"


def _result(kept: Run, arch: Architecture) -> Mapping[str, Any]:
    result = kept.read(_file(arch))
    if not isinstance(result, dict) or not isinstance(result.get("loss", 0.0), int | float):
        raise kept.broken(_file(arch))
    return result


def _file(arch: Architecture) -> str:
    return f"{FOLDER}/{arch.id}.json"


def _cost(problem: Problem) -> CostTable:
    data = problem.data
    return CostTable(count.flops, image=data.image, classes=len(data.labels))
