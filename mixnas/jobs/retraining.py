"""A retraining made ready and carried out: `Task` is what is trained, on what, and where."""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from os import environ
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from mixnas import report, zoo
from mixnas.cost.count import count_flops
from mixnas.cost.limit import describe
from mixnas.data import Augmentation, Data, load
from mixnas.data.splits import SplitName
from mixnas.errors import InvalidCheckpoint, InvalidOption, RunConflict
from mixnas.jobs import weights
from mixnas.jobs.curves import FOLDER, check_curves, curves, viewing
from mixnas.jobs.long_training import CHECKPOINT, LongTraining, judged
from mixnas.jobs.retrain_settings import Conditions, RetrainSettings
from mixnas.jobs.settings import Listener, cores, duration, split_seed
from mixnas.jobs.subject import Subject, resolve
from mixnas.metrics import metrics
from mixnas.model import Model
from mixnas.run import SETTINGS, Run, agree
from mixnas.train.alone import AloneTrainer
from mixnas.train.execution import Execution
from mixnas.train.recipe import AloneRecipe
from mixnas.train.recipefile import find
from mixnas.train.recipes import Course
from mixnas.train.world import World

MODEL, WEIGHTS, METRICS, SUMMARY = (
    "model.json", "model.safetensors", "metrics.json", "summary.json",
)  # fmt: skip
PLAN = "plan.json"
LEARNT: tuple[SplitName, ...] = ("train",)
WATCHED: tuple[SplitName, ...] = ("rank", "report")
MOST_LOADERS = 4
"""Processes that decode image files beside each training process, at most."""
FEW = 1000
"""Images that this process decodes itself: others would take seconds to start."""
REHEARSED = 4
"""Steps that are timed before a training begins; the first does not count."""


@dataclass(frozen=True)
class Task:
    """What is trained, on what, in which processes, and where it is kept.

    Attributes:
        settings: what was asked.
        conditions: how it is computed.
        subject: the network.
        model: its description, as it will be kept.
        data: the splits.
        spec: the data's name or folder.
        course: the recipe by name, and what it says of itself.
        recipe: the recipe resolved to steps.
        world: the processes.
        root: the folder that holds the retraining's folder.
        name: the retraining's folder.
    """

    settings: RetrainSettings
    conditions: Conditions
    subject: Subject
    model: Model
    data: Data
    spec: str
    course: Course
    recipe: AloneRecipe
    world: World
    root: Path
    name: str

    @property
    def learnt(self) -> tuple[SplitName, ...]:
        """The splits that are trained on."""
        return LEARNT + WATCHED if self.settings.all_images else LEARNT

    @property
    def watched(self) -> tuple[SplitName, ...]:
        """The splits that are judged after every epoch."""
        return () if self.settings.all_images else WATCHED

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return self.data.steps_per_epoch(self.recipe.batch, splits=self.learnt)

    @property
    def augmentation(self) -> Augmentation | None:
        """How training images vary; None is the supernet's weak way."""
        values = self.recipe.augmentation
        return None if values is None else Augmentation.from_dict(values)

    @property
    def kept(self) -> dict[str, Any]:
        """What ``run.json`` keeps: what was asked, and what it was resolved to."""
        run = self.subject.run
        found = {"data": self.data.fingerprint, "labels": list(self.data.labels)}
        return {
            "job": "retrain",
            **self.settings.to_dict(),
            "subject": run.name if run else self.settings.subject,
            "data": self.spec,
            "of": run.name if run else None,
            "source": dict(self.model.source),
            "found": found | {"recipe": self.recipe.to_dict()},
        }

    @property
    def begun(self) -> bool:
        """Whether the retraining has a folder, with what its plan measured."""
        return (self.root / self.name / PLAN).is_file()

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must be of: plain data."""
        return {
            "source": dict(self.model.source),
            "data": self.data.fingerprint,
            "recipe": self.recipe.to_dict(),
            "seed": self.settings.seed,
        }

    def network(self) -> nn.Module:
        """Build the network at its first weights, the same ones each time."""
        drops = {"drop_path": self.recipe.drop_path} if self.drops else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            network = self.model.build(**drops).train()
        weights.begin(network, self)
        return network

    @property
    def drops(self) -> bool:
        """Whether the network has stochastic depth, and the recipe wants it."""
        name = self.model.source.get("zoo")
        has = name is None or "drop_path" in zoo.options(name)
        return has and self.recipe.drop_path > 0

    def trainer(self) -> AloneTrainer:
        """Build the training at its first step."""
        asked, device = self.conditions, self.world.device
        execution = Execution(
            precision=self.settings.precision,
            compile=asked.compile,
            channels_last=asked.channels_last,
            accumulate=asked.accumulate,
            checkpointing=asked.checkpointing,
            synchronised=self.settings.sync_norms,
        )
        return AloneTrainer(
            self.network().to(device),
            self.recipe,
            self.settings.seed,
            execution=execution,
            world=self.world,
            teacher=weights.teacher(self),
        )


def prepare(
    settings: RetrainSettings,
    conditions: Conditions,
    runs: Path,
    name: str | None,
    world: World,
    listener: Listener,
    *,
    processes: int | None = None,
) -> Task:
    """Check everything that can be wrong, and set up what the stages share.

    Raises:
        MixnasError: the first thing that is wrong; nothing has been written.
    """
    subject = resolve(settings.subject, runs, width=settings.width)
    weights.check(settings, subject)
    course = find(settings.recipe)
    data, spec = _data(settings, subject)
    root = subject.run.path if subject.run else runs
    name = name or _default_name(subject, data, course, settings)
    _same_images(root / name, data)
    learnt = LEARNT + WATCHED if settings.all_images else LEARNT
    images = sum(data.sizes[split] for split in learnt)
    batch = _batch(settings, course, images, world.size if processes is None else processes)
    recipe = course.recipe(
        epochs=course.epochs if settings.epochs is None else settings.epochs,
        batch=batch,
        per_epoch=data.steps_per_epoch(batch, splits=learnt),
        rate=settings.rate,
    )
    if settings.teacher is not None:
        recipe = replace(recipe, distillation=settings.distillation)
    task = Task(
        settings=settings,
        conditions=conditions,
        subject=subject,
        model=Model(weights.source(subject, settings), data.labels, data.preprocessing),
        data=data,
        spec=spec,
        course=course,
        recipe=recipe,
        world=world,
        root=root,
        name=name,
    )
    if recipe.drop_path and not task.drops:
        listener.note(f"{subject.label} has no stochastic depth as published: none is used")
    agree(task.root, task.name, task.kept)
    if note := weights.left_out(task):
        listener.note(note)
    return task


def _same_images(folder: Path, data: Data) -> None:
    """Refuse to go on with a training whose images have changed.

    Raises:
        RunConflict: in one line, with the cure.
    """
    if not (folder / SETTINGS).is_file():
        return
    was = Run.open(folder).settings.get("found", {})
    if isinstance(was, dict) and was.get("data", data.fingerprint) != data.fingerprint:
        raise RunConflict(
            f"run {folder}: the images are not those that it was begun with (fingerprint "
            f"{data.fingerprint}, not {was['data']}); put them back, or give another --name"
        )


def _batch(settings: RetrainSettings, course: Course, images: int, processes: int) -> int:
    """Return the images in a step, over all processes: a multiple of their number.

    Raises:
        InvalidOption: if what was asked for cannot be divided among the processes.
    """
    asked = settings.batch
    if asked is not None and (asked % processes or asked > images):
        raise InvalidOption(
            f"--batch {asked}: {images:,} images to train on, {processes} processes; give a "
            f"multiple of {processes} up to {images - images % processes}"
        )
    batch = min(course.batch, images) if asked is None else asked
    return batch - batch % processes


def _data(settings: RetrainSettings, subject: Subject) -> tuple[Data, str]:
    """Open the data, split as the search split it, so that its test images are still unseen."""
    searched: Mapping[str, Any] = subject.run.settings if subject.run else {}
    own = searched.get("data")
    spec = settings.data or own or "digits"
    same = spec == own
    seed = split_seed(searched) if same else 0
    side = settings.resolution or (searched.get("resolution") if same else None)
    data = load(spec, seed=seed, image=side)
    if same:  # the fingerprint does not depend on the side
        fingerprint = searched.get("found", {}).get("data")
        if data.fingerprint != fingerprint:
            raise RunConflict(
                f"data {spec!r} is not what run '{subject.run and subject.run.name}' was searched "
                f"on (fingerprint {data.fingerprint}, not {fingerprint}), so its test images may "
                "have been seen; put the same images back, or give other data by --data"
            )
    return data, spec


def _default_name(subject: Subject, data: Data, course: Course, settings: RetrainSettings) -> str:
    """Return ``retrain`` inside a run; else data, network, recipe and seed."""
    if subject.run:
        return "retrain"
    return f"{data.name}-{subject.name}-{course.name}-seed{settings.seed}"


def rehearse(task: Task) -> dict[str, float]:
    """Time a few steps on a throw-away training: seconds a step, and bytes of memory."""
    trainer = task.trainer()
    stream = task.data.train(
        batch=task.recipe.batch,
        seed=task.settings.seed,
        augmentation=task.augmentation,
        splits=task.learnt,
    )
    spans = []
    for images, labels in islice(stream, REHEARSED):
        began = time.perf_counter()
        trainer.train(images, labels)
        spans.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if task.world.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(task.world.device)
    return {"step_seconds": sum(spans[1:]) / len(spans[1:]), "memory": memory}


def plan_rows(task: Task, measured: Mapping[str, float], processes: int) -> dict[str, str]:
    """Return what a retraining will take, for people: label to text."""
    recipe, sizes = task.recipe, task.data.sizes
    with torch.device("meta"):
        network = task.model.build()
    params = sum(parameter.numel() for parameter in network.parameters())
    learnt = sum(sizes[split] for split in task.learnt)
    tensors = 4 if recipe.ema else 3
    plan = {
        "run": str(task.root / task.name),
        "network": f"{task.subject.label}, {describe('params', params)}, from {task.settings.init}",
        "data": f"{task.data.name}: {len(task.data.labels)} classes, {learnt:,} images to train "
        f"on, {sizes['test']:,} to test once at the end, at {task.data.image} px",
        "recipe": f"{task.course.name}: {recipe.steps / task.per_epoch:.4g} epochs, "
        f"{recipe.steps:,} steps of {recipe.batch} images, rate {recipe.rate:.3g}",
        "processes": f"{processes} on {task.world.device.type}",
    }
    if measured:
        total = duration(recipe.steps * measured["step_seconds"] / processes)
        plan["time"] = f"about {total} ({1000 * measured['step_seconds']:.0f} ms a step)"
        plan["memory"] = f"about {measured['memory'] / 2**30:.1f} GiB a process"
    return plan | {"disk": f"about {max(1, round(4 * tensors * params / 2**20)):,} MiB"}


def carry_out(
    task: Task, listener: Listener, until: int | None = None, lent: Run | None = None
) -> Run:
    """Do what the retraining still lacks, or a part of it.

    Args:
        task: what is trained.
        listener: is told how it gets on.
        until: the epoch to pause after; the test images are not read then. The same call with a
            later epoch, or none, goes on, and ends as if there had been no pause.
        lent: the retraining's run, if the process that started this one holds it; else the first
            of the world's processes does.

    Raises:
        WorkerLost: if another of several processes ended.
        MixnasError: for whatever else a user can mend.
    """
    world = task.world
    if lent is None:
        _share_cores(world)
    if task.conditions.tensorboard:
        check_curves()
    if finished(task):
        listener.plan(plan_rows(task, {}, world.size))
        return Run.open(task.root / task.name)
    # What is wrong with network, recipe or memory is found before anything is written.
    alone = world.size == 1 and lent is None
    measured = rehearse(task) if alone and not task.begun else {}
    trainer = task.trainer()
    with lent or _held(task) as run:
        if measured:
            run.write(PLAN, measured)
        elif run.file(PLAN).is_file():
            measured = dict(run.read(PLAN))
        listener.plan(plan_rows(task, measured, world.size))
        training = _training(task, trainer, run, listener)
        training.resume()
        steps = trainer.recipe.steps
        end = steps if until is None else min(steps, until * task.per_epoch)
        if trainer.step < end:
            with _drawn(task, training, run, listener):
                training.go(end)
        if until is None:
            _conclude(task, training, run, listener)
        return run


@contextmanager
def _drawn(task: Task, training: LongTraining, run: Run, listener: Listener) -> Iterator[None]:
    """Draw a training's curves for TensorBoard, if they are wanted, by the first process."""
    if not (task.conditions.tensorboard and task.world.main):
        yield
        return
    training.curves = curves(run.file(FOLDER), training.trainer.step + 1)
    listener.note(viewing(run.file(FOLDER)))
    try:
        yield
    finally:
        training.curves.close()


def _held(task: Task) -> Run:
    """Return the retraining's run, made and held by the first of the processes."""
    run = Run.create(task.root, task.name, task.kept) if task.world.main else None
    task.world.barrier()
    return run or Run.open(task.root / task.name)


def _share_cores(world: World) -> None:
    """Give each of several processes on the CPU its share of the cores."""
    if world.size > 1 and world.device.type == "cpu":
        here = int(environ.get("LOCAL_WORLD_SIZE", world.size))
        torch.set_num_threads(max(1, cores() // here))


def finished(task: Task) -> bool:
    """Say whether all is done; what describes the weights is written again if it was damaged.

    Raises:
        RunConflict: if the weights are damaged.
    """
    folder = task.root / task.name
    there = all((folder / name).is_file() for name in (SETTINGS, SUMMARY, WEIGHTS))
    if not task.world.any(task.world.main and there):
        return False
    run = Run.open(folder)
    try:
        task.model.load(run.file(WEIGHTS))
    except InvalidCheckpoint:
        raise run.broken(WEIGHTS) from None
    try:
        described = run.read(MODEL) == task.model.to_dict()
    except RunConflict:
        described = False
    if task.world.main and not described:
        run.write(MODEL, task.model.to_dict())
    return True


def _loaders(task: Task) -> int:
    """Return how many processes decode files: none for few, which take less than their start."""
    images = sum(task.data.sizes[split] for split in task.learnt)
    return 0 if images < FEW else min(MOST_LOADERS, cores())


def _training(task: Task, trainer: AloneTrainer, run: Run, listener: Listener) -> LongTraining:
    asked = task.conditions.workers
    return LongTraining(
        trainer=trainer,
        data=task.data,
        learnt=task.learnt,
        watched=task.watched,
        per_epoch=task.per_epoch,
        augmentation=task.augmentation,
        workers=_loaders(task) if asked is None else asked,
        run=run,
        world=task.world,
        listener=listener,
        curves=None,
        task=task.identity,
    )


def _conclude(task: Task, training: LongTraining, run: Run, listener: Listener) -> None:
    """Read the test images, once; write weights, figures and the page."""
    listener.stage("test", task.data.sizes["test"])
    network = training.trainer.judged
    found, labels = judged(network, task.data, ("test",), task.world)
    listener.advance(len(labels))
    listener.end()
    if not task.world.main:
        return
    figures = metrics(found, labels, task.data.labels)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    run.write(WEIGHTS, save_tensors(state))
    run.write(MODEL, task.model.to_dict())
    run.write(METRICS, figures)
    run.write(SUMMARY, _summary(task, training, figures))
    report.retrained(run)
    run.mark("training", seconds=training.seconds)
    run.file(CHECKPOINT).unlink(missing_ok=True)


def _summary(task: Task, training: LongTraining, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``mixnas show`` tells of a finished retraining."""
    network = task.model.build()
    keys = ("top1", "top5", "standard_error", "calibration_error", "loss", "images")
    rows = training.rows
    return {
        "format": 1,
        "job": "retrain",
        "run": task.name,
        "label": task.subject.label,
        "of": task.subject.run.name if task.subject.run else None,
        "data": task.spec,
        "recipe": task.course.name,
        "epochs": task.recipe.steps // task.per_epoch,
        "steps": task.recipe.steps,
        "batch": task.recipe.batch,
        "resolution": task.data.image,
        "flops": count_flops(network, task.data.image),
        "flops_image": task.data.image,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        **{key: figures[key] for key in keys},
        "val_accuracy": rows[-1]["val_accuracy"] if task.watched and rows else None,
        "seconds": training.seconds,
        "init": task.settings.init,
        "teacher": task.settings.teacher,
        "processes": task.world.size,
        "device": str(task.world.device),
        "inherited": weights.inherited(task.subject),
    }


def summary(run: Run) -> dict[str, Any]:
    """Return what a retraining found: its ``summary.json``, its folder and its files.

    Raises:
        RunConflict: if it is not finished, or damaged.
    """
    names = (MODEL, WEIGHTS, METRICS, "metrics.csv", "report.html")
    files = {name: str(run.file(name)) for name in names if run.file(name).is_file()}
    return {**run.read(SUMMARY), "folder": str(run.path), "files": files}
