"""The equal-compute control: what random search finds for the compute of supernet and search.

Random feasible architectures are trained alone, one by one until their trainings have cost as
much as the supernet's training and search did together, and the one of least loss on the images
that rank is chosen. Compute is counted in multiply-adds at the training resolution, so it is the
same on every machine: three of a forward pass for a training step (forward, and twice as much
backward), one for an evaluation.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from mixnas import cluster
from mixnas.arch import Architecture
from mixnas.asktell.trial import read_trials
from mixnas.cost import count
from mixnas.cost.table import CostTable
from mixnas.errors import EvaluationFailed
from mixnas.evaluate import Failure
from mixnas.jobs.problem import CALIBRATION, Plan, Problem
from mixnas.jobs.settings import Listener
from mixnas.jobs.trainings import train
from mixnas.run import Run
from mixnas.train.recipe import AloneRecipe

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
        search: of the evaluations.
    """

    training: float
    search: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.training + self.search


def spent(run: Run, problem: Problem) -> Spent:
    """Count what a run's supernet and search have cost."""
    cost = _cost(problem)
    plan = Plan.of(run)
    trainer = problem.trainer(problem.recipe(plan.steps))
    steps = range(0, plan.steps, EVERY)
    drawn = sum(cost(draw.arch) for step in steps for draw in trainer.draws.at(step))
    batch = trainer.recipe.batch
    training = PASSES * batch * drawn * plan.steps / max(1, len(steps))
    settled = CALIBRATION * 64
    trials = [t for log in sorted(run.path.glob("log*.jsonl")) for t in read_trials(log)]
    search = sum(cost(t.arch) * (t.score.images + settled) for t in trials if t.score)
    return Spent(training, float(search))


def draws(problem: Problem, recipe: AloneRecipe, total: float) -> list[Architecture]:
    """Draw distinct architectures uniformly until their trainings cost the total; one at least."""
    cost = _price(problem, recipe)
    rng = Random(f"equal {problem.settings.seed}")
    found: dict[str, Architecture] = {}
    left = total
    for _ in range(MOST):
        arch = problem.feasible.sample(rng)
        price = cost(arch)
        if arch.id in found:
            continue
        if found and price > left:
            break
        found[arch.id] = arch
        left -= price
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
            EvaluationFailed: if no training came to its end.
        """
        lacking, number = self.lacking(kept), len(self.archs)
        tasks = [self._task(arch, kept) for arch in lacking]
        listener.stage("equal compute", number, number - len(lacking))
        with closing(cluster.each(train, tasks, workers=workers)) as outcomes:
            for index, outcome in outcomes:
                arch = lacking[index]
                if isinstance(outcome, Failure):
                    outcome = {"reason": outcome.reason}
                kept.write(_file(arch), outcome)
                kept.file(f"{FOLDER}/{arch.id}.pt").unlink(missing_ok=True)
                listener.advance(1, loss=outcome.get("loss", float("nan")))
        listener.end()
        best, note = _best(self.archs, [_result(kept, arch) for arch in self.archs])
        return best, f"{note}: {self.note}"

    def _task(self, arch: Architecture, kept: Run) -> dict[str, Any]:
        settings, data = self.problem.settings, self.problem.data
        return {
            "source": {"arch": arch.to_dict()},
            "seed": SEED,
            "data": [settings.data, settings.seed, data.image],
            "recipe": asdict(self.recipe),
            "device": self.problem.device.type,
            "state": str(kept.file(f"{FOLDER}/{arch.id}.pt").absolute()),
            "split": "rank",
        }


def _best(
    archs: Sequence[Architecture], results: Sequence[Mapping[str, Any]]
) -> tuple[Architecture, str]:
    whole = [(r["loss"], place) for place, r in enumerate(results) if "loss" in r]
    if not whole:
        raise EvaluationFailed(
            f"none of {len(archs)} random networks could be trained: {results[0].get('reason')}"
        )
    return archs[min(whole)[1]], f"the best of {len(archs)} random networks trained alone"


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
