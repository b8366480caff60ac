"""`Architecture`: one network of a search space, as a frozen value. No torch here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from mixnas.errors import InvalidSpace

FORMAT = 1

Knob = int | float | str | bool

STEM_STRIDES = {"conv4": 4, "conv8": 8, "conv16": 16, "patch16": 16}
"""The kinds of patch stem, and the stride at which each enters the pyramid."""


@dataclass(frozen=True)
class Block:
    """One block: its mixer, the mixer's knobs (sorted by name), the MLP's ratio."""

    mixer: str
    knobs: tuple[tuple[str, Knob], ...]
    ratio: float

    @classmethod
    def of(cls, mixer: str, ratio: float, **knobs: Knob) -> "Block":
        """Build a block with its knobs as keywords; equal blocks are one object, kept for good.

        A search holds thousands of architectures, made of a few hundred different blocks.
        """
        block = cls(mixer, tuple(sorted(knobs.items())), ratio)
        return _KNOWN.setdefault(repr(block), block)  # 1, 1.0 and True are equal, and three texts

    @property
    def options(self) -> dict[str, Knob]:
        """The knobs as a dictionary, ready for ``mixer(x, **options)``."""
        return dict(self.knobs)


_KNOWN: dict[str, Block] = {}


@dataclass(frozen=True)
class Stage:
    """A run of blocks at one resolution and one width (channels)."""

    width: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Stem:
    """The patch stem; its kind fixes the stride at which it enters the pyramid."""

    kind: str

    @property
    def stride(self) -> int:
        """The stride of the map that the stem makes."""
        return STEM_STRIDES[self.kind]


@dataclass(frozen=True)
class Architecture:
    """A stem and the stages that follow it, each at twice the stride of the one before.

    The first stage stands at the stem's own stride. Two architectures are equal when their
    JSON is equal; `id` is the short name of that JSON.
    """

    stem: Stem
    stages: tuple[Stage, ...]

    @cached_property
    def id(self) -> str:
        """12 hex digits of the canonical JSON: file name and cache key."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        stages = [
            {
                "width": stage.width,
                "blocks": [
                    {"mixer": block.mixer, "knobs": block.options, "ratio": block.ratio}
                    for block in stage.blocks
                ],
            }
            for stage in self.stages
        ]
        return {"format": FORMAT, "stem": asdict(self.stem), "stages": stages}

    def to_json(self) -> str:
        """Return canonical JSON on one line (keys sorted)."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """Read what `to_dict` wrote.

        Raises:
            InvalidSpace: if a field is missing, of another type, or of another format.
        """
        try:
            if data["format"] != FORMAT:
                raise InvalidSpace(
                    f"architecture of format {data['format']!r}: this mixnas reads format {FORMAT}"
                )
            stages = tuple(
                Stage(int(stage["width"]), tuple(_block(block) for block in stage["blocks"]))
                for stage in data["stages"]
            )
            return cls(Stem(str(data["stem"]["kind"])), stages)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidSpace(
                f"not an architecture: {type(error).__name__} {error}; "
                "expected the JSON that Architecture.to_json() writes"
            ) from None

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Read what `to_json` wrote.

        Raises:
            InvalidSpace: if the text is not such JSON.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidSpace(f"not an architecture: not JSON ({error})") from None
        return cls.from_dict(data)


def _block(data: Mapping[str, Any]) -> Block:
    return Block.of(str(data["mixer"]), data["ratio"], **data["knobs"])
