"""What makes a run: `Settings`, checked before anything is written."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from mixnas.errors import InvalidBudget, InvalidOption, did_you_mean

SAMPLERS = ("surrogate", "nsga2", "tpe", "gp", "random", "evolution")
DEVICES = ("auto", "cpu", "cuda")
LATER = ("supernet_seed", "population")
"""Settings that runs of old lack."""
MOST_POPULATION = 10_000
MOST_SEED = 2**62
MOST_SECONDS = 366 * 24 * 3600.0
LEAST_PIXELS = 16
MOST_PIXELS = 1024
"""Sides of images: at larger ones neither a step nor the count of costs ends in sensible time."""


class Listener(Protocol):
    """Who is told how a job gets on; the command line draws progress bars from it."""

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Hear what the job will do, before any long work."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Hear that a stage begins, or goes on at `done`."""

    def advance(self, by: int, **figures: float | str) -> None:
        """Hear that the stage got on, and its current figures."""

    def note(self, text: str) -> None:
        """Hear one line worth saying."""

    def end(self) -> None:
        """Hear that the stage has ended."""


class Silent:
    """A listener that says nothing."""

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Ignore the plan."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Ignore the stage."""

    def advance(self, by: int, **figures: float | str) -> None:
        """Ignore the progress."""

    def note(self, text: str) -> None:
        """Ignore the note."""

    def end(self) -> None:
        """Ignore the end."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a search finds; equal settings resume the same run.

    Attributes:
        budget: limits such as ``"1.5GFLOPs"``, holding together.
        data: ``digits``, a folder, or a timm data set name.
        space: a shipped space's name or a TOML file.
        trials: architectures to evaluate.
        sampler: one of `SAMPLERS`.
        seed: of splits, training and search.
        epochs: passes over the training images; by default the recipe chooses.
        time: an upper bound for all of it (``"2h"``), which then chooses the epochs.
        mixers: narrow the space to these.
        image: side of the deployed image, the space's by default.
        classes: classes of the deployed network; by default the data's own, or the space's for
            the embedded digits.
        device: where to train: ``auto``, ``cpu`` or ``cuda``.
        batch: images in a training step.
        resolution: side of the training images, the data's by default.
        racing: whether an evaluation stops as soon as a rival has certainly beaten it.
        supernet_seed: of splits and training, if it is another than the search's: then searches
            with several seeds share a supernet.
        population: architectures of a generation, of which so many can be evaluated at once; by
            default `mixnas.asktell.POPULATION`.
    """

    budget: tuple[str, ...]
    data: str = "digits"
    space: str = "default"
    trials: int = 240
    sampler: str = "surrogate"
    seed: int = 0
    epochs: int | None = None
    time: str | None = None
    mixers: tuple[str, ...] = ()
    image: int | None = None
    classes: int | None = None
    device: str = "auto"
    batch: int = 64
    resolution: int | None = None
    racing: bool = True
    supernet_seed: int | None = None
    population: int | None = None

    @property
    def training_seed(self) -> int:
        """The seed of splits, training and statistics: of all but the search itself."""
        return self.seed if self.supernet_seed is None else self.supernet_seed

    def check(self) -> None:
        """Refuse values outside what is allowed.

        Raises:
            InvalidOption, InvalidBudget: in one line, with the cure.
        """
        if not self.budget:
            raise InvalidBudget("no budget given; give one, such as --budget 1.5GFLOPs")
        at_least("trials", self.trials, 1)
        within("seed", self.seed, 0, MOST_SEED)
        if self.supernet_seed is not None:
            within("supernet_seed", self.supernet_seed, 0, MOST_SEED)
        if self.population is not None:
            within("population", self.population, 2, MOST_POPULATION)
        at_least("batch", self.batch, 2)
        for name, least in (("epochs", 1), ("classes", 2)):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, least)
        pixels("image", self.image)
        pixels("resolution", self.resolution)
        among("sampler", self.sampler, SAMPLERS)
        among("device", self.device, DEVICES)
        if self.time is not None:
            seconds(self.time)
            if self.epochs is not None:
                raise InvalidOption("time and epochs given together; --time chooses the epochs")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, equal to what it was before there were races and `LATER`."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        untold = [] if self.racing else ["racing"]
        untold += [name for name in LATER if plain[name] is None]
        return {key: value for key, value in plain.items() if key not in untold}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Settings":
        """Read what `to_dict` wrote, beside whatever else there is.

        Raises:
            KeyError: if something is lacking.
        """
        known = {"racing": False, **dict.fromkeys(LATER), **data}
        found = {field.name: known[field.name] for field in fields(cls)}
        return cls(**found | {name: tuple(found[name]) for name in ("budget", "mixers")})


def split_seed(settings: Mapping[str, Any]) -> int:
    """Return the seed by which a search split its data, from what its run keeps."""
    own = settings.get("supernet_seed")
    return int(settings.get("seed", 0) if own is None else own)


def at_least(name: str, value: object, least: int) -> None:
    """Raise `InvalidOption` unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(f"{name} {value!r}: a whole number of at least {least} is needed")


def within(name: str, value: int, least: int, most: int) -> None:
    """Raise `InvalidOption` unless the value is a whole number from `least` to `most`."""
    at_least(name, value, least)
    if value > most:
        raise InvalidOption(f"{name} {value}: give at most {most}")


def pixels(name: str, side: int | None) -> None:
    """Raise `InvalidOption` unless an image's side is left to its default or can be computed."""
    if side is not None:
        within(name, side, LEAST_PIXELS, MOST_PIXELS)


def among(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `InvalidOption` unless the value is a known one."""
    if value not in known:
        raise InvalidOption(f"no {name} '{value}'; {did_you_mean(value, known)}")


def seconds(time: object, what: str = "time") -> float:
    """Read a length of time: ``"90s"``, ``"10m"``, ``"1h30m"``, or a number of seconds.

    Raises:
        InvalidOption: if it cannot be read or is not longer than nothing.
    """
    text = written(time)
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(-?)(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip().lower())
    sign, *parts = match.groups() if match else ("",)
    if not any(parts):
        raise InvalidOption(f"{what} '{text}': not a length of time; write 90s, 10m or 1h30m")
    total = sum(float(n or 0) * unit for n, unit in zip(parts, (3600, 60, 1), strict=True))
    if total > MOST_SECONDS:
        raise InvalidOption(f"{what} '{text[:40]}': more than a year; write 90s, 10m or 1h30m")
    if sign or total <= 0:
        raise InvalidOption(
            f"{what} '{text}': it must be longer than nothing; write 90s, 10m or 1h30m"
        )
    return total


def written(time: object) -> str:
    """Return a length of time as it is typed: a number is one of seconds, ``3`` is ``"3s"``."""
    if isinstance(time, int | float) and not isinstance(time, bool):
        return f"{time:.3f}".rstrip("0").rstrip(".") + "s"
    return str(time)


def duration(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
