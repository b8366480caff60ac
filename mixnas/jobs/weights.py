"""What a retraining begins with, and whom it learns from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from mixnas import zoo
from mixnas.errors import InvalidCheckpoint, InvalidOption, MixnasError
from mixnas.evaluate import recalibrate
from mixnas.jobs.problem import reopen
from mixnas.jobs.retrain_settings import SCRATCH, SUPERNET, TIMM, RetrainSettings
from mixnas.jobs.settings import Silent
from mixnas.jobs.stages import supernet
from mixnas.jobs.subject import Subject
from mixnas.model import mismatch, read_weights
from mixnas.run import Run
from mixnas.train.teacher import Teacher

if TYPE_CHECKING:
    from mixnas.jobs.retraining import Task

INHERITED = "best.safetensors"
HEAD = "head."
"""How the names of a classifier's weights begin, in every network of ours."""
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of a normalisation, one a channel or one for all."""

CALIBRATION = 8
"""Batches of training images from which a teacher's batch-norm statistics are estimated."""


def check(settings: RetrainSettings, subject: Subject) -> None:
    """Refuse weights and teachers that cannot be had, before any data is read.

    Raises:
        InvalidOption: in one line, with the cure.
    """
    for option, value in (("--init", settings.init), ("--teacher", settings.teacher)):
        if value == SUPERNET and subject.run is None:
            raise InvalidOption(
                f"{option} supernet: {subject.label} comes from no search; give the run that "
                "found it"
            )
    files = {"--init": settings.init, "--teacher-weights": settings.teacher_weights}
    for option, value in files.items():
        if value not in (None, SCRATCH, SUPERNET) and not Path(str(value)).is_file():
            words = "scratch, supernet, or a file" if option == "--init" else "a file"
            raise InvalidOption(f"{option} {value!r}: no such file; give {words} of weights")
    if settings.teacher is not None and settings.teacher.startswith(TIMM):
        name = settings.teacher.removeprefix(TIMM)
        if not timm.is_model(name):
            raise InvalidOption(f"teacher '{settings.teacher}': timm knows no '{name}'")


def source(subject: Subject, settings: RetrainSettings) -> dict[str, Any]:
    """Return what the network is built from; a published one's second head, if one teaches it."""
    found = dict(subject.source)
    name = found.get("zoo")
    if name is not None and settings.teacher and "distillation" in zoo.options(name):
        found["distillation"] = True
    return found


def begin(network: nn.Module, task: "Task") -> None:
    """Fill a network with what it begins from; from scratch it stays as it is.

    The head of a file with another number of classes is left out: the network's own, untrained
    one takes its place.

    Raises:
        InvalidCheckpoint: if the weights cannot be read, or are of another network.
    """
    init, run = task.settings.init, task.subject.run
    if init == SCRATCH:
        return
    path = run.file(INHERITED) if init == SUPERNET and run else Path(init)
    state = read(path)
    own = network.state_dict()
    if not _same_head(state, own):
        state |= {key: value for key, value in own.items() if key.startswith(HEAD)}
    if fault := mismatch(state, own):
        raise InvalidCheckpoint(
            f"{path}: not weights of {task.subject.label} ({fault}); give a file of this very "
            "network, or --init scratch"
        )
    network.load_state_dict(state)


def left_out(task: "Task") -> str:
    """Say that the head of a file of weights is not taken over, if it is for other classes."""
    init = task.settings.init
    if init in (SCRATCH, SUPERNET):
        return ""
    with torch.device("meta"):
        own = task.model.build().state_dict()
    if _same_head(read(Path(init)), own):
        return ""
    return f"{init} has a head for other classes: it is left out, and a new one is trained"


def read(path: Path) -> dict[str, Tensor]:
    """Read weights: safetensors, or tensors alone of PyTorch's own format."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    return dict(zoo.checkpoint.read(path))


def _same_head(state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    heads = [key for key in own if key.startswith(HEAD)]
    return all(key in state and state[key].shape == own[key].shape for key in heads)


def teacher(task: "Task") -> Teacher | None:
    """Return the network that the training learns from, in evaluation mode; None without one.

    Raises:
        MixnasError: if it cannot be built, or classifies into other classes.
    """
    asked = task.settings.teacher
    if asked is None:
        return None
    preprocessing = task.model.preprocessing
    given = preprocessing.mean, preprocessing.deviation
    if asked == SUPERNET:
        assert task.subject.run is not None
        network, own = _largest(task, task.subject.run), given
    else:
        network, own = _of_timm(task, asked.removeprefix(TIMM))
    return Teacher(network.to(task.world.device), *given, *own)


def _largest(task: "Task", run: Run) -> nn.Module:
    """Return the supernet's dearest network within the budget, its statistics estimated anew."""
    problem = reopen(run, Silent())
    arch = problem.feasible.greatest()
    network = supernet(problem, run).extract(arch).eval()
    if network.num_classes != len(task.data.labels):
        raise InvalidOption(
            f"--teacher supernet: run '{run.name}' has {network.num_classes} classes, the data "
            f"has {len(task.data.labels)}"
        )
    images = task.data.calibration(batches=CALIBRATION, batch=64, seed=task.settings.seed)
    recalibrate(network, images)
    return network


def _of_timm(task: "Task", name: str) -> tuple[nn.Module, Moments]:
    classes, weights = len(task.data.labels), task.settings.teacher_weights
    try:
        network = timm.create_model(
            name,
            pretrained=weights is None,
            num_classes=classes if weights else None,
        )
    except Exception as error:  # whatever its hub raises
        raise InvalidOption(
            f"teacher 'timm:{name}' cannot be had ({str(error).strip().splitlines()[0][:160]}); "
            "give a file of its weights by --teacher-weights"
        ) from None
    if weights is not None:
        _fill(network, Path(weights), name)
    if network.num_classes != classes:
        raise InvalidOption(
            f"teacher 'timm:{name}' has {network.num_classes} classes, the data has {classes}; "
            "give --teacher-weights of one that was trained on this data"
        )
    settings = network.pretrained_cfg
    return network, (tuple(settings["mean"]), tuple(settings["std"]))


def _fill(network: nn.Module, path: Path, name: str) -> None:
    state = read(path)
    if fault := mismatch(state, network.state_dict()):
        raise InvalidCheckpoint(
            f"{path}: not weights of timm's {name} with this data's classes ({fault}); give a file "
            "of that very network"
        )
    network.load_state_dict(state)


def inherited(subject: Subject) -> float | None:
    """Return the accuracy of a run's winner by the weights that it inherits, if it is known."""
    if subject.run is None:
        return None
    try:
        return float(subject.run.read("summary.json")["winner"]["accuracy"])
    except (MixnasError, KeyError, TypeError, ValueError):
        return None
