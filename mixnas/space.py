"""`SearchSpace`: what an architecture may choose, and one walk over the choices.

A space is a table of **genes**: ``"s16.b0.mixer"`` (block 0 of the stage at stride 16) to the
tuple of its choices. `pick` walks the genes that an architecture really uses and asks for each;
sampling, the extremes, mutation, checking and the mapping from Optuna's parameters are all that
one walk with another way to answer.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from mixnas.arch import STEM_STRIDES, Architecture, Block, Stage, Stem
from mixnas.errors import InvalidSpace, NotInSpace, UnknownMixer, did_you_mean

Choose = Callable[[str, tuple[Any, ...]], Any]

FORMAT = 1


@dataclass(frozen=True)
class SearchSpace:
    """A set of architectures, and the image and classes at which they are deployed.

    Attributes:
        name: what the space is called.
        image: side of the deployed image in pixels; costs are counted at it.
        classes: classes of the deployed network; costs are counted at them.
        genes: each gene's choices, in increasing order where they are ordered.
    """

    name: str
    image: int
    classes: int
    genes: Mapping[str, tuple[Any, ...]] = field(repr=False)

    @classmethod
    def load(cls, name: str | Path) -> "SearchSpace":
        """Read a shipped space by its name, or any TOML file by its path.

        Raises:
            InvalidSpace: if there is no such file, or it is not a space; the message names the
                file, the stage and the field.
        """
        path = find(name)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSpace(f"{path}: not a TOML file: {error}") from None
        except OSError as error:
            raise InvalidSpace(f"{path}: cannot be read: {error.strerror}") from None
        from mixnas.spacefile import read

        return read(data, path)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The strides at which the space has stages, finest first."""
        return tuple(int(key[1:-6]) for key in self.genes if key.endswith(".depth"))

    @property
    def widest(self) -> int:
        """Width of the widest stage, in channels."""
        return max(max(self.genes[f"s{stride}.width"]) for stride in self.strides)

    def entered(self, stem: str) -> tuple[int, ...]:
        """Return the strides of the stages that follow a stem."""
        return tuple(stride for stride in self.strides if stride >= STEM_STRIDES[stem])

    def blocks(self, stride: int) -> int:
        """Return the greatest depth of a stage."""
        return int(self.genes[f"s{stride}.depth"][-1])

    def knobs(self, block: str, mixer: str) -> dict[str, tuple[Any, ...]]:
        """Return the choices of a mixer's knobs in a block (``"s16.b0"``), sorted by name."""
        return self._knobs.get((block, mixer), {})

    @cached_property
    def _knobs(self) -> dict[tuple[str, str], dict[str, tuple[Any, ...]]]:
        table: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {}
        for key in sorted(self.genes):
            if key.count(".") == 3:
                stage, block, mixer, knob = key.split(".")
                table.setdefault((f"{stage}.{block}", mixer), {})[knob] = self.genes[key]
        return table

    def pick(self, choose: Choose) -> Architecture:
        """Build an architecture by asking for each active gene, in a fixed order.

        Args:
            choose: gets a gene's key and its choices, returns one of them.
        """

        def ask(key: str) -> Any:
            return choose(key, self.genes[key])

        def block(at: str) -> Block:
            mixer = ask(f"{at}.mixer")
            knobs = {knob: ask(f"{at}.{mixer}.{knob}") for knob in self.knobs(at, mixer)}
            return Block.of(mixer, ask(f"{at}.ratio"), **knobs)

        stem = Stem(ask("stem"))
        stages = []
        for stride in self.entered(stem.kind):
            if depth := ask(f"s{stride}.depth"):
                width = ask(f"s{stride}.width")
                stages.append(Stage(width, tuple(block(f"s{stride}.b{i}") for i in range(depth))))
        return Architecture(stem, tuple(stages))

    def architectures(self) -> Iterator[Architecture]:
        """Yield every architecture once, in the order of the choices; for small spaces."""
        turns: list[int] = []
        while True:
            offered: list[int] = []

            def choose(_: str, choices: tuple[Any, ...], offered: list[int] = offered) -> Any:
                place = len(offered)
                if place == len(turns):
                    turns.append(0)
                offered.append(len(choices))
                return choices[turns[place]]

            yield self.pick(choose)
            while turns and turns[-1] + 1 == offered[len(turns) - 1]:
                turns.pop()
            if not turns:
                return
            turns[-1] += 1

    def sample(self, rng: Random) -> Architecture:
        """Draw each active gene uniformly (which is *not* uniform over architectures)."""
        return self.pick(lambda _, choices: rng.choice(choices))

    def smallest(self, rng: Random) -> Architecture:
        """Take the least of every ordered gene; mixers and stem are drawn."""
        return self.pick(lambda key, choices: _extreme(key, choices, 0, rng))

    def largest(self, rng: Random) -> Architecture:
        """Take the greatest of every ordered gene; mixers and stem are drawn."""
        return self.pick(lambda key, choices: _extreme(key, choices, -1, rng))

    def genotype(self, arch: Architecture) -> dict[str, Any]:
        """Return the active genes of an architecture and what it chose.

        Raises:
            NotInSpace: naming the gene whose choice the space does not offer.
        """
        chosen: dict[str, Any] = {}
        values = dict(_values(arch, self))

        def choose(key: str, choices: tuple[Any, ...]) -> Any:
            value = values.get(key, 0 if key.endswith(".depth") else None)
            if value not in choices:
                raise NotInSpace(
                    f"space '{self.name}', {key}: {value!r} is not offered (choices: {choices})"
                )
            chosen[key] = value
            return value

        if self.pick(choose) != arch:
            raise NotInSpace(
                f"space '{self.name}': the architecture has stages, blocks or knobs that it lacks"
            )
        return chosen

    def check(self, arch: Architecture) -> None:
        """Raise `NotInSpace` unless the architecture belongs to the space."""
        self.genotype(arch)

    def __contains__(self, arch: Architecture) -> bool:
        try:
            self.check(arch)
        except NotInSpace:
            return False
        return True

    def keep(self, genes: Mapping[str, tuple[Any, ...]]) -> "SearchSpace":
        """Return the space with these genes only, each with these choices only.

        A stage that is left with depth 0 alone is left out.
        """
        absent = {key.split(".")[0] for key, choices in genes.items() if tuple(choices) == (0,)}
        kept = (key for key in self.genes if key in genes and key.split(".")[0] not in absent)
        return replace(self, genes={key: tuple(genes[key]) for key in kept})

    def only(self, arch: Architecture) -> "SearchSpace":
        """Return the space that holds just this architecture."""
        return self.keep({key: (value,) for key, value in self.genotype(arch).items()})

    @property
    def sole(self) -> Architecture | None:
        """The one architecture that the space holds, or None if it holds more."""
        if any(len(choices) > 1 for choices in self.genes.values()):
            return None
        return self.pick(lambda _, choices: choices[0])

    def size(self) -> int:
        """Count the architectures."""

        def block(at: str) -> int:
            mixers = (
                prod(len(choices) for choices in self.knobs(at, mixer).values())
                for mixer in self.genes[f"{at}.mixer"]
            )
            return sum(mixers) * len(self.genes[f"{at}.ratio"])

        def stage(stride: int) -> int:
            per_depth = (
                prod(block(f"s{stride}.b{i}") for i in range(depth))
                * (len(self.genes[f"s{stride}.width"]) if depth else 1)
                for depth in self.genes[f"s{stride}.depth"]
            )
            return sum(per_depth)

        return sum(
            prod(stage(stride) for stride in self.entered(kind)) for kind in self.genes["stem"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; `from_dict` is its inverse."""
        return {
            "format": FORMAT,
            "name": self.name,
            "image": self.image,
            "classes": self.classes,
            "genes": {key: list(choices) for key, choices in self.genes.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SearchSpace":
        """Read what `to_dict` wrote."""
        try:
            genes = {str(key): tuple(choices) for key, choices in data["genes"].items()}
            return cls(str(data["name"]), int(data["image"]), int(data["classes"]), genes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidSpace(f"not a search space: {type(error).__name__} {error}") from None

    def only_mixers(self, wanted: tuple[str, ...]) -> "SearchSpace":
        """Return the space with these mixers only, in every block.

        Raises:
            UnknownMixer: if the space offers no such mixer anywhere.
            InvalidSpace: if some block would be left without any.
        """
        offered = {m for k, choices in self.genes.items() if k.endswith(".mixer") for m in choices}
        for mixer in wanted:
            if mixer not in offered:
                raise UnknownMixer(
                    f"space '{self.name}': no mixer '{mixer}'; {did_you_mean(mixer, offered)}"
                )
        genes = dict(self.genes)
        for key, choices in self.genes.items():
            parts = key.split(".")
            if key.endswith(".mixer"):
                genes[key] = tuple(mixer for mixer in choices if mixer in wanted)
                if not genes[key]:
                    raise InvalidSpace(
                        f"space '{self.name}', {key}: none of {', '.join(wanted)} is offered there "
                        f"(choices: {', '.join(choices)})"
                    )
            elif len(parts) == 4 and parts[2] not in wanted:
                del genes[key]
        return self.keep(genes)


def find(name: str | Path) -> Path:
    """Return the path of a shipped space by name, or of a TOML file.

    Raises:
        InvalidSpace: if there is none; the message names the shipped ones.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.parent != Path("."):
        if not path.is_file():
            raise InvalidSpace(f"{path}: no such space file (shipped: {', '.join(shipped())})")
        return path
    if str(name) not in shipped():
        raise InvalidSpace(f"no search space '{name}'; {did_you_mean(str(name), shipped())}")
    return shipped()[str(name)]


def shipped() -> dict[str, Path]:
    """Return the spaces that come with mixnas, name to file."""
    here = Path(__file__).parent
    folder = here / "search_spaces"  # in the wheel; beside the package in a checkout
    folder = folder if folder.is_dir() else here.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _extreme(key: str, choices: tuple[Any, ...], end: int, rng: Random) -> Any:
    unordered = key == "stem" or key.endswith(".mixer")
    return rng.choice(choices) if unordered else choices[end]


def _values(arch: Architecture, space: SearchSpace) -> Iterator[tuple[str, Any]]:
    """Yield the gene and the value of every choice that an architecture makes."""
    if arch.stem.kind not in STEM_STRIDES:
        raise NotInSpace(f"space '{space.name}', stem: no stem '{arch.stem.kind}'")
    yield "stem", arch.stem.kind
    for index, stage in enumerate(arch.stages):
        at = f"s{arch.stem.stride << index}"
        yield f"{at}.depth", len(stage.blocks)
        yield f"{at}.width", stage.width
        for i, block in enumerate(stage.blocks):
            yield f"{at}.b{i}.mixer", block.mixer
            yield f"{at}.b{i}.ratio", block.ratio
            for knob, value in block.knobs:
                yield f"{at}.b{i}.{block.mixer}.{knob}", value
