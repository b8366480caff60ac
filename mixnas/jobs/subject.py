"""What is retrained or exported: `RUN`, `ARCH.json` or `zoo:NAME`, as one plain description."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixnas import mixers, model, zoo
from mixnas.arch import STEM_STRIDES, Architecture, Block
from mixnas.errors import (
    InvalidOption,
    InvalidSpace,
    MixnasError,
    RunConflict,
    UnknownMixer,
    did_you_mean,
)
from mixnas.jobs.show import open_run
from mixnas.run import SETTINGS, Run

ZOO = "zoo:"
MOST = 2 * 10**9
"""Parameters of an architecture in a file."""

SMALLEST = 4
"""Side of the first stage's map when an architecture is tried out, in positions."""


@dataclass(frozen=True)
class Subject:
    """A network that a job is about.

    Attributes:
        source: what it is built from, as in `mixnas.model.Model`.
        name: short, safe as part of a folder's name.
        label: for people.
        run: the finished search that found it, or None.
    """

    source: Mapping[str, Any]
    name: str
    label: str
    run: Run | None = None


def resolve(text: str | Path | Run, runs: Path, *, width: float | None = None) -> Subject:
    """Find out what was given.

    Args:
        text: a run, its name or folder; a file that holds an architecture's JSON; ``zoo:NAME``.
        runs: the folder of runs.
        width: a factor on the widths of a published network.

    Raises:
        RunConflict: if there is no such run, or it has no winner yet.
        InvalidSpace: if the file holds no architecture that can be built.
        UnknownNetwork: if the zoo has none of that name.
        InvalidOption: if a width is given for something else.
    """
    if isinstance(text, str) and text.startswith(ZOO):
        return _published(text.removeprefix(ZOO), 1.0 if width is None else width)
    if width is not None:
        raise InvalidOption(f"--width {width:g}: only a published network has it; give zoo:NAME")
    if isinstance(text, Run):
        return searched(text)
    path = Path(text)
    if path.is_file() or (path.suffix == ".json" and not (runs / path / SETTINGS).is_file()):
        return _from_file(path)
    try:
        return searched(open_run(text, runs))
    except RunConflict as error:
        if _is_run(runs / path) or _is_run(path):
            raise
        known = did_you_mean(str(text), zoo.names()) if str(text).lower() in zoo.names() else ""
        hint = f"the zoo's is zoo:{text}" if known else "or give ARCH.json or zoo:NAME"
        raise RunConflict(f"{error}; {hint}") from None


def _is_run(path: Path) -> bool:
    return (path / SETTINGS).is_file()


def searched(run: Run) -> Subject:
    """Return the winner of a finished search.

    Raises:
        RunConflict: if there is none, or its file is damaged.
    """
    if run.settings.get("job") == "measure":
        raise RunConflict(f"run '{run.name}' is a measured table and has no winner; give a search")
    if run.settings.get("job") == "sweep":
        raise RunConflict(
            f"run '{run.name}' is a sweep and has many winners; give one of its searches, such as "
            f"{run.path}/NAME (mixnas show {run.name} names them)"
        )
    if not run.file("best.json").is_file():
        raise RunConflict(
            f"run '{run.name}' has no winner yet; go on with the search (mixnas show {run.name} "
            "says how far it is), then repeat this"
        )
    try:
        arch = Architecture.from_dict(run.read("best.json"))
    except InvalidSpace:
        raise run.broken("best.json") from None
    return Subject({"arch": arch.to_dict()}, arch.id, f"{run.name}'s winner {arch.id}", run)


def _published(name: str, width: float) -> Subject:
    zoo.options(name, width)
    source = {"zoo": name} | ({} if width == 1 else {"width": width})
    label = name if width == 1 else f"{name} x {width:g}"
    return Subject(source, label.replace(" ", ""), label)


def _from_file(path: Path) -> Subject:
    try:
        arch = Architecture.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidSpace(
            f"{path}: cannot be read ({type(error).__name__}: {error}); give a file that holds an "
            "architecture's JSON, such as a run's best.json"
        ) from None
    except InvalidSpace as error:
        raise InvalidSpace(f"{path}: {error}") from None
    try:
        _try_out(arch, path)
    except UnknownMixer as error:
        raise InvalidSpace(f"{path}: {error}") from None
    return Subject({"arch": arch.to_dict()}, arch.id, f"architecture {arch.id}")


def _try_out(arch: Architecture, path: Path) -> None:
    """Refuse an architecture that makes no network, before anything long."""
    if arch.stem.kind not in STEM_STRIDES:
        raise InvalidSpace(
            f"{path}: no stem '{arch.stem.kind}'; {did_you_mean(arch.stem.kind, STEM_STRIDES)}"
        )
    for number, stage in enumerate(arch.stages, 1):
        for block in stage.blocks:
            if reason := _fault(block, stage.width):
                raise InvalidSpace(f"{path}, stage {number}: mixer '{block.mixer}' {reason}")
    side = SMALLEST * arch.stem.stride
    try:
        build = partial(model.create, {"arch": arch.to_dict()}, classes=2, image=side)
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in build().parameters())
        if params > MOST:
            raise InvalidSpace(f"{params:,} parameters; at most {MOST:,} are allowed")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            build().eval()(torch.zeros(1, 3, side, side))
    except MixnasError as error:
        raise InvalidSpace(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InvalidSpace(
            f"{path}: this architecture makes no network ({type(error).__name__}: {error}); give "
            "one that a search found, such as a run's best.json"
        ) from None


def _fault(block: Block, width: int) -> str | None:
    """Say why a block's mixer cannot be built at a width, or return None."""
    kind = mixers.get(block.mixer)
    for knob in block.options.keys() - kind.knobs.keys():
        return f"has no knob '{knob}'; {did_you_mean(knob, kind.knobs)}"
    defaults = {knob: values[0] for knob, values in kind.knobs.items()}
    reason = kind.check(width, **{**defaults, **block.options}) if width > 0 else "is below 1"
    return None if reason is None else f"at width {width}: {reason}"
