"""``mixnas retrain``: train one architecture for good, on one process or many, and judge it once.

The stages, each of which resumes: **training** (a checkpoint now and then, a row an epoch) and
**test** (the test images, read once, at the very end).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from mixnas.errors import InvalidOption
from mixnas.jobs.across import across, trainers
from mixnas.jobs.launch import launch, processes
from mixnas.jobs.problem import torch_device
from mixnas.jobs.retrain_settings import Conditions, RetrainSettings, command
from mixnas.jobs.retraining import Task, carry_out, finished, plan_rows, prepare, rehearse
from mixnas.jobs.settings import Listener, Silent
from mixnas.remote import Mirror, rooted
from mixnas.run import Run
from mixnas.train.world import World


def retrain(
    subject: str | Path | Run,
    *,
    data: str | Path | None = None,
    recipe: str | Path = "quick",
    epochs: int | None = None,
    batch: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    init: str | Path = "scratch",
    teacher: str | None = None,
    teacher_weights: str | Path | None = None,
    distillation: str = "soft",
    resolution: int | None = None,
    width: float | None = None,
    all_images: bool = False,
    precision: str = "auto",
    sync_norms: bool = False,
    device: str = "auto",
    gpus: int | None = None,
    compile: bool = False,
    channels_last: bool = True,
    accumulate: int = 1,
    checkpointing: bool = False,
    workers: int | None = None,
    tensorboard: bool = False,
    address: str | None = None,
    cpus_per_process: float | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    dry_run: bool = False,
    listener: Listener | None = None,
) -> Run | dict[str, str] | None:
    """Train one architecture for good, and judge it on the test images, which nothing has seen.

    The same call after a kill at any moment goes on where it was; on one CPU process it ends with
    the very weights of an undisturbed training.

    Args:
        subject: a finished search (its name, folder, or the run), a file that holds an
            architecture, or ``zoo:NAME``.
        data: ``digits``, a folder of class folders, a folder of IDX files, or a timm data set
            name; by default what the run was searched on, else digits.
        recipe: ``quick``, ``deit``, ``litv2``, ``shvit``, or a TOML file.
        epochs: passes over the training images; the recipe's by default.
        batch: images in a step, over all processes; the recipe's by default.
        rate: peak learning rate; by default the recipe's, scaled with the batch.
        seed: of first weights, order and augmentation.
        init: ``scratch``, ``supernet`` (the weights that a run's winner inherits), or a file of
            weights.
        teacher: ``supernet`` (a run's largest network) or ``timm:NAME``, to distil from.
        teacher_weights: a file of the timm teacher's weights.
        distillation: ``soft`` or ``hard``.
        resolution: side of the training images in pixels; the run's or the data's by default.
        width: a factor on a published network's widths.
        all_images: whether to train on the images that the search ranks and reports by too.
        precision: ``auto`` (bf16 where a GPU has it), ``fp32``, ``bf16`` or ``fp16``.
        sync_norms: whether batch norms see the batch of all processes (GPUs only).
        device: ``auto``, ``cpu`` or ``cuda``.
        gpus: processes to start, one for each GPU; with device cpu so many with gloo. Under
            torchrun or SLURM the processes that are there join; with an address they are those
            of a cluster.
        compile: whether to use `torch.compile`.
        channels_last: whether tensors keep their channels last in memory.
        accumulate: parts in which a process takes its share of a batch, one after the other.
        checkpointing: whether to compute activations again instead of keeping them.
        workers: processes that decode image files, for each training process.
        tensorboard: whether to write the curves for TensorBoard too.
        address: a Ray cluster whose machines train and share the folder of runs: ``auto`` or
            ``HOST:PORT``. When a process or a machine is lost, all begin again, a few times, at
            the last checkpoint.
        cpus_per_process: processor cores of each process there; by default one.
        name: of the folder: in a run's folder by default ``retrain``, else made of data, network,
            recipe and seed.
        runs: the folder of all runs.
        dry_run: stop before anything long, and return the plan.
        listener: is told how the job gets on.

    Returns:
        The retraining's folder, whose ``model.safetensors`` holds the weights; the plan of a dry
        run; None in every process but the first of several.

    Raises:
        MixnasError: for whatever a user can mend; nothing half-written is left.
    """
    settings = RetrainSettings(
        subject=str(subject.path) if isinstance(subject, Run) else str(subject),
        data=None if data is None else str(data),
        recipe=str(recipe),
        epochs=epochs,
        batch=batch,
        rate=rate,
        seed=seed,
        init=str(init),
        teacher=teacher,
        teacher_weights=None if teacher_weights is None else str(teacher_weights),
        distillation=distillation,
        resolution=resolution,
        width=width,
        all_images=all_images,
        precision=precision,
        sync_norms=sync_norms,
    )
    conditions = Conditions(
        device=device,
        processes=gpus,
        compile=compile,
        channels_last=channels_last,
        accumulate=accumulate,
        checkpointing=checkpointing,
        workers=workers,
        tensorboard=tensorboard,
        address=address,
        cpus=cpus_per_process,
    )
    settings.check()
    conditions.check()
    folder, listener = rooted(runs), listener or Silent()
    if address is not None:
        return _across(settings, conditions, folder, name, dry_run, listener)
    place = torch_device(device)
    world = World.join(place.type)
    try:
        if world.joined:
            listener = listener if world.main else Silent()
            task = prepare(settings, conditions, folder, name, world, listener)
            kept = None if dry_run else carry_out(task, listener)
            return kept if world.main else None
        return _here(settings, conditions, folder, name, world, dry_run, listener)
    finally:
        world.close()


def _here(
    settings: RetrainSettings,
    conditions: Conditions,
    runs: Path,
    name: str | None,
    world: World,
    dry_run: bool,
    listener: Listener,
) -> Run | dict[str, str]:
    """Train in this process, or start several and wait for them."""
    number = processes(conditions.processes, world.device)
    task = prepare(settings, conditions, runs, name, world, listener, processes=number)
    if dry_run:
        plan = plan_rows(task, rehearse(task), number)
        listener.plan(plan)
        return plan
    if number == 1:
        return carry_out(task, listener)
    listener.plan(plan_rows(task, {}, number))
    launch([*command(settings, runs, name)[1:], *conditions.words(), "--launched"], number)
    return Run.open(task.root / task.name)


def _check_folder(task: Task) -> None:
    """Refuse runs in an object store: machines that train together share a file system.

    Raises:
        InvalidOption: in one line, with the cure.
    """
    if Mirror.of(task.root / task.name) is not None:
        raise InvalidOption(
            f"run {task.name}: kept at an address, but machines that train together share a "
            "folder; give --runs one that all of them see, or leave --address out"
        )


def _across(
    settings: RetrainSettings,
    conditions: Conditions,
    runs: Path,
    name: str | None,
    dry_run: bool,
    listener: Listener,
) -> Run | dict[str, str]:
    """Train on the machines of a cluster; this process holds the run, and only waits."""
    device = conditions.device  # whoever starts it may have no GPU
    device = torch_device(device).type if device == "auto" else device
    number = conditions.processes or 1
    crew = trainers(number, device == "cuda", conditions.cpus, conditions.address)
    world = World.alone("cpu")
    task = prepare(settings, conditions, runs, name, world, listener, processes=number)
    where = f"{number} on {device}, of the cluster at {conditions.address}"
    _check_folder(task)
    plan = plan_rows(task, {}, number) | {"processes": where}
    listener.plan(plan)
    if dry_run:
        return plan
    if finished(task):
        return Run.open(task.root / task.name)
    with Run.create(task.root, task.name, task.kept) as run:
        across(run, crew, listener, partial(_part, task))
        return run


def _part(task: Task, run: Run, world: World, listener: Listener) -> None:
    """Train as one of several processes, where that one computes."""
    carry_out(replace(task, world=world), listener, lent=run)
