"""What makes a retraining: `RetrainSettings`, checked before anything is read, and its command."""

import shlex
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mixnas.errors import InvalidOption, RunConflict
from mixnas.jobs.settings import DEVICES, among, at_least, pixels
from mixnas.remote import given
from mixnas.run import Run

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DISTILLATIONS = ("soft", "hard")
SCRATCH, SUPERNET = "scratch", "supernet"
TIMM = "timm:"


@dataclass(frozen=True)
class RetrainSettings:
    """Everything that decides what a retraining learns; equal settings go on with the same one.

    Attributes:
        subject: a run, a file with an architecture, or ``zoo:NAME``.
        data: ``digits``, a folder, or a timm data set name; by default the run's own, or digits.
        recipe: a course's name, or a TOML file.
        epochs: passes over the training images; the recipe's by default.
        batch: images in a step, over all processes; the recipe's by default.
        rate: peak learning rate; by default the recipe's, scaled with the batch.
        seed: of first weights, order and augmentation.
        init: ``scratch``, ``supernet`` (the weights that the winner inherits), or a file.
        teacher: ``supernet`` (its largest network within the budget), ``timm:NAME``, or none.
        teacher_weights: file of a timm teacher's weights.
        distillation: ``soft`` or ``hard``.
        resolution: side of the training images in pixels.
        width: a factor on a published network's widths.
        all_images: whether the images that rank and report are trained on too.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        sync_norms: whether batch norms see the batch of all processes.
    """

    subject: str
    data: str | None = None
    recipe: str = "quick"
    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    seed: int = 0
    init: str = SCRATCH
    teacher: str | None = None
    teacher_weights: str | None = None
    distillation: str = "soft"
    resolution: int | None = None
    width: float | None = None
    all_images: bool = False
    precision: str = "auto"
    sync_norms: bool = False

    def check(self) -> None:
        """Refuse values outside what is allowed.

        Raises:
            InvalidOption: in one line, with the cure.
        """
        at_least("seed", self.seed, 0)
        for name, least in (("epochs", 1), ("batch", 2)):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, least)
        pixels("resolution", self.resolution)
        if self.rate is not None and not 0 < self.rate <= 10:
            raise InvalidOption(f"rate {self.rate:g}: must be above 0 and at most 10")
        among("precision", self.precision, PRECISIONS)
        among("distillation", self.distillation, DISTILLATIONS)
        self._check_teacher()

    def _check_teacher(self) -> None:
        teacher = self.teacher
        known = teacher is None or teacher == SUPERNET or teacher.startswith(TIMM)
        if not known:
            raise InvalidOption(
                f"teacher '{teacher}': give supernet (of a run), or timm:NAME with "
                "--teacher-weights FILE"
            )
        if self.teacher_weights is not None and not (teacher or "").startswith(TIMM):
            raise InvalidOption("--teacher-weights without --teacher timm:NAME; give both")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Conditions:
    """How a retraining is computed: may differ when it goes on.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        processes: one for each GPU; on the CPU, so many with gloo.
        address: the Ray cluster whose machines train.
        cpus: processor cores of each process in that cluster.
        compile: whether `torch.compile` is used.
        channels_last: whether tensors keep their channels last in memory.
        accumulate: parts in which a process takes its share of a batch, one after the other.
        checkpointing: whether activations are computed again instead of kept.
        workers: processes that decode image files, for each training process.
        tensorboard: whether the curves are written for TensorBoard too.
    """

    device: str = "auto"
    processes: int | None = None
    compile: bool = False
    channels_last: bool = True
    accumulate: int = 1
    checkpointing: bool = False
    workers: int | None = None
    tensorboard: bool = False
    address: str | None = None
    cpus: float | None = None

    def check(self) -> None:
        """Refuse values outside what is allowed.

        Raises:
            InvalidOption: in one line, with the cure.
        """
        among("device", self.device, DEVICES)
        if self.cpus is not None and self.address is None:
            raise InvalidOption(
                f"--cpus-per-process {self.cpus:g} without --address: here the processes share the "
                "cores; leave it out, or give the --address of a cluster"
            )
        at_least("accumulate", self.accumulate, 1)
        if self.processes is not None:
            at_least("gpus", self.processes, 1)
        if self.workers is not None:
            at_least("workers", self.workers, 0)

    def words(self) -> list[str]:
        """Return the options that ask for these conditions, but for the number of processes."""
        words = ["--device", self.device]
        for name in ("compile", "checkpointing", "tensorboard"):
            words += [f"--{name}"] if getattr(self, name) else []
        words += [] if self.channels_last else ["--no-channels-last"]
        words += ["--accumulate", str(self.accumulate)] if self.accumulate > 1 else []
        return words + ([] if self.workers is None else ["--workers", str(self.workers)])


def command(settings: RetrainSettings, runs: Path, name: str | None) -> list[str]:
    """Return the words that make a retraining, and that go on with it."""
    words = ["mixnas", "retrain", settings.subject]
    for option in fields(RetrainSettings)[1:]:
        value = getattr(settings, option.name)
        default = None if option.default is MISSING else option.default
        flag = "--" + option.name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value != default:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if name is not None:
        words += ["--name", name]
    return words if runs == Path("runs") else [*words, "--runs", given(runs)]


def words(run: Run) -> str:
    """Return the shell command that made a retraining, and that goes on with it.

    Raises:
        RunConflict: if its settings cannot be read.
    """
    try:
        settings = RetrainSettings(
            **{f.name: run.settings[f.name] for f in fields(RetrainSettings)}
        )
    except (KeyError, TypeError):
        raise RunConflict(
            f"run {run.path}: run.json lacks what a retraining keeps there; start it anew under "
            "another --name"
        ) from None
    inside = run.settings.get("of") is not None
    runs = run.path.parent.parent if inside else run.path.parent
    return shlex.join(command(settings, runs, run.name))
