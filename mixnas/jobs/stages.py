"""The long stages of a search, each resumable: training the supernet, searching it."""

import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import environ
from typing import Any, TypeAlias

import numpy as np
import pandas
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from mixnas import cluster
from mixnas.asktell import POPULATION, Mirror, Search, Trial, begin_study, identity
from mixnas.cluster import Crew
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.errors import InvalidOption
from mixnas.evaluate import Score, SupernetEvaluator
from mixnas.jobs import reuse
from mixnas.jobs.across import across
from mixnas.jobs.problem import LEAST_STEPS, Plan, Problem
from mixnas.jobs.reuse import CURVE
from mixnas.jobs.settings import Listener, cores
from mixnas.network import Network
from mixnas.racing import RATE, RacingEvaluator
from mixnas.run import Run
from mixnas.space import SearchSpace
from mixnas.storage import UNREADABLE
from mixnas.train.optimise import State, StepResult
from mixnas.train.recipe import Recipe
from mixnas.train.supernet import SupernetTrainer, weights
from mixnas.train.world import World

STATE = "supernet.state.pt"
EVERY = 30.0
"""Seconds of training between checkpoints: what a kill can lose."""

MOST_LOADERS = 4
"""Processes that decode image files beside the training, at most."""


def train_together(
    problem: Problem, plan: Plan, run: Run, crew: Crew | None, listener: Listener
) -> None:
    """Train the supernet here, or by several processes of a cluster; or go on with it.

    Args:
        problem: what is searched; it travels to the processes.
        plan: for how many steps.
        run: keeps the training; held by this process.
        crew: who trains; None for this process alone.
        listener: is told how it gets on.

    Raises:
        InvalidOption: if a machine does not see the run's folder.
        WorkerLost: if processes are lost more often than they are begun again.
        MixnasError: as `train_supernet`.
    """
    if crew is None:
        train_supernet(problem, plan, run, listener)
    elif not run.done("training"):
        across(run, crew, listener, partial(_train_part, problem, plan))


def _train_part(problem: Problem, plan: Plan, run: Run, world: World, listener: Listener) -> None:
    """Train a supernet as one of several processes, where that one computes."""
    train_supernet(replace(problem, device=world.device), plan, run, listener, world)


def check_shared(problem: Problem, crew: Crew | None) -> None:
    """Refuse as many trainers as a step's images cannot be divided among.

    Raises:
        InvalidOption: says which numbers are allowed.
    """
    batch = problem.recipe(LEAST_STEPS).batch
    number = 1 if crew is None else crew.workers or 1
    if batch % number:
        raise InvalidOption(
            f"--trainers {number}: the {batch} images of a step do not divide into {number} equal "
            f"parts; give a --batch that is a multiple of {number} (there are "
            f"{problem.data.sizes['train']:,} images to train on), or other --trainers"
        )


def train_supernet(
    problem: Problem, plan: Plan, run: Run, listener: Listener, world: World | None = None
) -> None:
    """Train the supernet, or go on at its last checkpoint, and keep its averaged weights.

    What was begun by one recipe goes on by it, whatever the recipe of today is.

    Args:
        problem: what is searched.
        plan: for how many steps.
        run: keeps the training; of several processes the first one writes.
        listener: is told how it gets on.
        world: the processes that train together; this one alone by default.

    Raises:
        TrainingDiverged: if its loss became and stayed non-finite or exploded.
        StorageFull: if a checkpoint cannot be written.
    """
    world = world or World.alone(problem.device)
    if world.any(world.main and run.done("training")):
        return
    began = time.perf_counter()
    state = _kept(run, world)
    recipe = problem.recipe(plan.steps) if state is None else _begun_by(state, problem, plan, run)
    trainer = problem.trainer(recipe, world)
    keeper = _Keeper(trainer, run, state)
    listener.stage("training", plan.steps, trainer.step)
    if trainer.step:
        listener.note(f"training goes on at step {trainer.step} of {plan.steps}")
    stream = problem.data.train(
        batch=trainer.recipe.batch,
        seed=problem.settings.training_seed,
        start=trainer.step,
        workers=_loaders(world),
        shard=world.shard,
    )
    per_epoch = plan.steps / plan.epochs
    try:
        for result in trainer.run(stream):
            keeper.add(result, per_epoch)
            if result.skipped:
                listener.note(f"skipped {result.skipped}")
            listener.advance(
                1, loss=result.losses.get("dearest", float("nan")), accuracy=result.accuracy
            )
    except KeyboardInterrupt:
        keeper.keep()
        raise
    keeper.keep()
    world.barrier()
    if not world.main:
        return
    data = save_tensors(weights(trainer))
    reuse.keep(
        problem, run, recipe=trainer.recipe, epochs=plan.epochs, params=plan.params, data=data
    )
    facts = {"processes": world.size, "drawn": dict(sorted(trainer.tally.items()))}
    run.mark("training", seconds=keeper.seconds(began), **facts)
    run.file(STATE).unlink(missing_ok=True)
    listener.end()


def _loaders(world: World) -> int:
    """Return how many processes decode image files for each that trains."""
    return min(MOST_LOADERS, max(1, cores() // int(environ.get("LOCAL_WORLD_SIZE", world.size))))


def _kept(run: Run, world: World) -> State | None:
    """Read the state that a run keeps of a training begun; None if it keeps none."""
    path = run.file(STATE)
    try:
        kept = world.told(path.read_bytes() if world.main and path.exists() else None)
        if kept is None:
            return None
        return dict(torch.load(io.BytesIO(kept), map_location=world.device, weights_only=True))
    except UNREADABLE:
        raise run.broken(STATE) from None


def _begun_by(state: State, problem: Problem, plan: Plan, run: Run) -> Recipe:
    """Return the recipe that a training was begun by; before states told it, there was but one."""
    if "recipe" not in state:
        return Recipe(plan.steps, problem.recipe(plan.steps).batch)
    try:
        return Recipe(**state["recipe"])
    except (TypeError, InvalidOption):
        raise run.broken(STATE) from None


class _Keeper:
    """Keeps a training's state and its curve in the run, now and then."""

    def __init__(self, trainer: SupernetTrainer, run: Run, state: State | None) -> None:
        self.trainer = trainer
        self.run = run
        self.before = 0.0
        self.rows: list[dict[str, float]] = []
        if state is not None:
            self._restore(state)
        self.began = self.kept = time.perf_counter()

    def _restore(self, state: State) -> None:
        """Go on from the state that the run keeps."""
        try:
            self.trainer.restore(state["trainer"])
            self.before, self.rows = state["seconds"], state["rows"]
        except (RuntimeError, LookupError, TypeError, ValueError):
            raise self.run.broken(STATE) from None

    def seconds(self, began: float) -> float:
        """Return how long the training took, over all its sittings."""
        return self.before + time.perf_counter() - began

    def add(self, result: StepResult, per_epoch: float) -> None:
        """Take one step's result; write a checkpoint if the last one is old."""
        row = result.row() | {
            "epoch": result.step / per_epoch,
            "seconds": round(self.seconds(self.began), 3),
        }
        self.rows.append(row)
        if time.perf_counter() - self.kept > EVERY:
            self.keep()

    def keep(self) -> None:
        """Write the state, whole or not at all, and the curve; of several processes the first."""
        self.kept = time.perf_counter()
        if not self.trainer.world.main:
            return
        buffer = io.BytesIO()
        state = {
            "recipe": asdict(self.trainer.recipe),
            "trainer": self.trainer.state(),
            "seconds": self.seconds(self.began),
            "rows": self.rows,
        }
        torch.save(state, buffer)
        self.run.write(STATE, buffer.getvalue())
        columns = ["step", "epoch", "lr", "loss_dearest", "loss_cheapest", "loss_random"]
        table = pandas.DataFrame(self.rows, columns=[*columns, "accuracy", "seconds"])
        self.run.write(CURVE, table)
        self.kept = time.perf_counter()


@dataclass(frozen=True)
class Round:
    """One of a search's rounds: the first, and others within tightened limits.

    Attributes:
        number: 0 for the first.
        limits: what its architectures keep.
        feasible: the architectures within them.
        trials: how many are evaluated.
    """

    number: int
    limits: tuple[Limit, ...]
    feasible: Feasible
    trials: int

    @property
    def log(self) -> str:
        """The name of its log."""
        return log_of(self.number)

    @property
    def stage(self) -> str:
        """The name under which it is marked as done."""
        return stage_of(self.number)


def log_of(number: int) -> str:
    """Return the name of a round's log."""
    return f"log.{number}.jsonl" if number else "log.jsonl"


def stage_of(number: int) -> str:
    """Return the name under which a round is marked as done."""
    return f"search.{number}" if number else "search"


def first_round(problem: Problem) -> Round:
    """Return the round that a search begins with."""
    return Round(0, problem.limits, problem.feasible, problem.settings.trials)


def search_supernet(
    problem: Problem, run: Run, crew: Crew, listener: Listener, one: Round
) -> list[Trial]:
    """Search by the supernet's weights through Ray Tune, or go on with the log; return the trials.

    Raises:
        EvaluationFailed: if too many evaluations failed.
    """
    search = search_of(problem, run, one)
    with ExitStack() as stack:
        stack.callback(search.close)
        mirror(search, problem, one, listener, stack)
        if not run.done(one.stage):
            began = time.perf_counter()
            listener.stage("search", one.trials, search.complete)
            if (crew.workers or 0) > search.population:
                listener.note(
                    f"{crew.workers} workers, but generations of {search.population}: the others "
                    "wait; --population begins another search, with larger ones"
                )
            evaluator = problem.evaluator(supernet(problem, run))
            again = cluster.evaluate(
                search,
                evaluating(evaluator, crew, bool(search.racing)),
                crew,
                progress=_reporter(search, listener),
                note=listener.note,
            )
            if search.exhausted:
                listener.note(f"all {search.complete} feasible architectures have been evaluated")
            listener.end()
            facts = {"exhausted": search.exhausted, "rejudged": sum(again.values())}
            run.mark(one.stage, seconds=time.perf_counter() - began, **facts)
        return search.trials


def begin_storage(problem: Problem) -> None:
    """Make the study that shall show a search's first round, if one shall.

    Raises:
        InvalidOption: if the storage cannot be used, or has another search's study of that name.
    """
    if problem.storage is not None:
        begin_study(problem.storage, problem.study, _identity(problem, 0))


def _identity(problem: Problem, number: int) -> str:
    """Return what tells a round of a search from any other."""
    budget = list(map(str, problem.limits))  # however it was written
    told = {**problem.settings.to_dict(), "budget": budget, "run": problem.study}
    return identity(told, number)


def mirror(
    search: Search, problem: Problem, one: Round, listener: Listener, stack: ExitStack
) -> None:
    """Have a round's trials shown in the storage, if one is given, until the stack unwinds."""
    if problem.storage is None:
        return
    shelf = Mirror(
        problem.storage,
        f"{problem.study}.{one.number}" if one.number else problem.study,
        _identity(problem, one.number),
        problem.space,
        search.trials,
        listener.note,
    )
    stack.callback(shelf.close)
    search.watch = shelf.show


def search_of(problem: Problem, run: Run, one: Round) -> Search:
    """Return a round's search, which goes on with the run's log.

    Raises:
        RunConflict: if the log is another search's, damaged, or in use.
    """
    return Search(
        problem.space,
        one.feasible,
        costs=costs(problem),
        limits=one.limits,
        sampler=problem.settings.sampler,
        seed=problem.settings.seed + one.number,
        population=problem.settings.population or POPULATION,
        trials=one.trials,
        racing=RATE if problem.settings.racing else None,
        log=run.file(one.log),
    )


def costs(problem: Problem) -> Mapping[str, Callable[..., int]]:
    """Return the cost functions by name, the first limit's first: the front weighs it."""
    names = dict.fromkeys([problem.limits[0].cost, *problem.tables])
    return {name: problem.tables[name] for name in names}


def _reporter(search: Search, listener: Listener) -> Callable[[Trial], None]:
    def report(trial: Trial) -> None:
        if trial.score is None:
            listener.note(f"trial {trial.number} failed: {trial.reason}")
            return
        best = search.best()
        listener.advance(1, best_loss=best.loss if best else trial.loss, loss=trial.loss)

    return report


def supernet(problem: Problem, run: Run) -> Network:
    """Return the supernet that the run has trained or taken over, on the CPU.

    It may hold more than the problem's space, if it was trained for wider limits.

    Raises:
        RunConflict: if its file is missing or damaged.
    """
    trained = reuse.of(run)
    space = problem.space if trained is None else trained.space
    weights = None if trained is None else trained.weights
    return reuse.load(run, space, len(problem.data.labels), weights=weights)


def evaluating(
    evaluator: SupernetEvaluator, crew: Crew, racing: bool
) -> Callable[[], Callable[..., Score]]:
    """Return what builds an evaluator in a worker: one that races, if wanted.

    Args:
        evaluator: what it shall be equal to.
        crew: whether a worker has a GPU.
        racing: whether it stops early those that are beaten.
    """
    build = partial(rebuild, *shared(evaluator), cuda=crew.gpus > 0)
    return partial(racer, build) if racing else build


def racer(build: Callable[[], SupernetEvaluator]) -> RacingEvaluator:
    """Put an evaluator that races together in a worker."""
    return RacingEvaluator(build())


Sent: TypeAlias = tuple[np.ndarray, bool]
"""A tensor on its way to a worker: its array, and whether its channels were moved to the end."""
Shared: TypeAlias = tuple[dict[str, Any], int, dict[str, Sent], list[Sent], list[tuple[Sent, Sent]]]


def shared(evaluator: SupernetEvaluator) -> Shared:
    """Take an evaluator apart into plain data and arrays, which every machine gets once."""
    network = evaluator.network
    return (
        network.space.to_dict(),
        network.num_classes,
        {name: _sent(tensor) for name, tensor in network.state_dict().items()},
        [_sent(images) for images in evaluator.calibration],
        [(_sent(images), _sent(labels)) for images, labels in evaluator.batches],
    )


def _sent(tensor: Tensor) -> Sent:
    """Return a tensor's array in the order of its memory: only such an array can be shared."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return (tensor.permute(0, 2, 3, 1) if last else tensor.contiguous()).numpy(), last


def _received(sent: Sent, device: torch.device) -> Tensor:
    """Return the tensor around an array that was sent, in the same order of memory."""
    array, last = sent
    tensor = torch.from_numpy(array).to(device)
    return tensor.permute(0, 3, 1, 2) if last else tensor


def rebuild(
    space: dict[str, Any],
    classes: int,
    state: Mapping[str, Sent],
    calibration: Sequence[Sent],
    batches: Sequence[tuple[Sent, Sent]],
    cuda: bool = False,
) -> SupernetEvaluator:
    """Put an evaluator together in a worker, around arrays that the workers of a machine share.

    Args:
        space: of the supernet.
        classes: of its data.
        state: its weights.
        calibration: batches of images that estimate statistics.
        batches: batches of images that rank, with their labels.
        cuda: whether it computes on the worker's GPU.
    """
    host = torch.device("cpu")
    device = torch.device("cuda") if cuda else host
    with torch.device("meta"):
        network = Network(SearchSpace.from_dict(space), classes)
    with warnings.catch_warnings():
        # They are shared and read-only: an evaluation copies what it changes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        weights = {name: _received(sent, device) for name, sent in state.items()}
        images = [_received(sent, device) for sent in calibration]
        ranking = [(_received(one, host), _received(two, host)) for one, two in batches]
    network.load_state_dict(weights, assign=True)
    return SupernetEvaluator(network.eval(), images, ranking)
