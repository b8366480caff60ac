"""`Measured`: what was measured of a space on a device, part by part and whole; as a CSV file.

The same file serves tables that were made here and tables that were made elsewhere, on a phone or
a board. It is text: comments that say under which conditions (``# image: 224``), then one row for
each part and for each whole network. `mixnas.cost.tablefile` reads and checks it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixnas.arch import Architecture
from mixnas.cost import count, tablefile
from mixnas.cost.graph import Graph
from mixnas.cost.tablerows import KINDS, Item, Sizes, label
from mixnas.errors import InvalidTable
from mixnas.network import Part, parts
from mixnas.space import SearchSpace


@dataclass(frozen=True)
class Measured:
    """What the parts of a space take on a device, and what whole networks take there.

    Attributes:
        quantity: ``"latency"`` (milliseconds) or ``"energy"`` (millijoules).
        conditions: under which the figures hold, plain values; with ``image``, ``classes`` and
            ``in_chans``.
        parts: each part's figure for one batch.
        networks: whole networks' figures, from which a predictor learns what parts do not tell.
    """

    quantity: str
    conditions: Mapping[str, Any]
    parts: Mapping[Part, float]
    networks: Mapping[Architecture, float]

    @property
    def image(self) -> int:
        """Side of the image in pixels."""
        return int(self.conditions["image"])

    @property
    def classes(self) -> int:
        """Classes of the head."""
        return int(self.conditions["classes"])

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return int(self.conditions.get("in_chans", 3))

    def to_csv(self) -> str:
        """Return the table as text; `from_csv` is its inverse.

        Raises:
            InvalidTable: if a condition has a name that a comment cannot hold.
        """
        rows: list[tuple[Item, float]] = [*self.parts.items(), *self.networks.items()]
        return tablefile.write(self.quantity, self.conditions, rows)

    @classmethod
    def from_csv(
        cls, text: str, where: str, *, flops: Callable[[Part], int] | None = None
    ) -> "Measured":
        """Read and check a table's text.

        Args:
            text: the file's text.
            where: its name, for messages.
            flops: counts a part's multiply-adds, by which absurd figures are found; without it
                none are looked for.

        Raises:
            InvalidTable: naming the file, the line as an editor shows it, and the cure.
        """
        return cls(*tablefile.read(text, where, flops))

    @classmethod
    def load(
        cls, path: str | Path, *, flops: Callable[[Part], int] | None = count.flops
    ) -> "Measured":
        """Read and check a table's file, which someone else may have written.

        Args:
            path: the file.
            flops: as of `from_csv`; counting takes some seconds.

        Raises:
            InvalidTable: if it is missing, too large, not UTF-8, or as `from_csv` says.
        """
        return cls.from_csv(tablefile.text_of(Path(path)), str(path), flops=flops)

    def missing(self, space: SearchSpace) -> list[Part]:
        """Return the parts of a space that the table lacks, sorted."""
        return [part for part in parts_of(space, self.in_chans) if part not in self.parts]

    def check(self, space: SearchSpace, where: str) -> None:
        """Refuse a table that cannot serve a space.

        Args:
            space: at the image and classes of deployment.
            where: the table's name, for the message.

        Raises:
            InvalidTable: if it is for another image or number of classes, or lacks parts of
                the space or of its own networks.
        """
        for key, here in (("image", space.image), ("classes", space.classes)):
            if self.conditions[key] != here:
                raise InvalidTable(
                    f"{where}: the table is for {key} {self.conditions[key]}, space "
                    f"'{space.name}' deploys {here}; measure at {key} {here}, or give --{key} "
                    f"{self.conditions[key]}"
                )
        if lacking := self.missing(space):
            some = ", ".join(map(label, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
            raise InvalidTable(
                f"{where}: {len(lacking)} of the {len(parts_of(space, self.in_chans))} parts of "
                f"space '{space.name}' are missing ({some}); measure them, or narrow the space "
                "with --mixers"
            )
        sizes = Sizes.of(self.conditions)
        for arch in self.networks:
            if other := next((part for part in sizes.parts(arch) if part not in self.parts), None):
                raise InvalidTable(
                    f"{where}: the table lacks a part of its network {arch.id}, {label(other)} "
                    f"{list(other.spec)}; measure it, or delete the network's row"
                )


def parts_of(space: SearchSpace, in_chans: int = 3) -> list[Part]:
    """Return every part that some architecture of a space has, in a fixed order."""
    sizes = {"image": space.image, "classes": space.classes, "in_chans": in_chans}
    segments = {edge.segment for edge in Graph(space).edges if edge.segment}
    found = {part for segment in segments for part in parts(segment, **sizes)}
    return sorted(found, key=lambda part: (KINDS.index(part.kind), part.shape, str(part.spec)))


def template(space: SearchSpace, networks: Sequence[Architecture] = (), in_chans: int = 3) -> str:
    """Return a table without figures, to be filled in where the parts' files can be timed.

    Args:
        space: at the image and classes of deployment.
        networks: whole networks to be timed as well.
        in_chans: channels of the image.
    """
    conditions = {
        "device": "write here what was measured on",
        "runtime": "write here what computed it",
        "threads": 1,
        "batch": 1,
        "image": space.image,
        "classes": space.classes,
        "in_chans": in_chans,
    }
    listed = list(items(space, networks, in_chans))
    return tablefile.write(
        "latency",
        conditions,
        [(item, None) for item, _ in listed],
        [file for _, file in listed],
    )


def items(
    space: SearchSpace, networks: Sequence[Architecture] = (), in_chans: int = 3
) -> Iterator[tuple[Item, str]]:
    """Yield the rows of a `template`, in order: a part or a network, and its file's name."""
    listed: list[Item] = [*parts_of(space, in_chans), *networks]
    for number, item in enumerate(listed, start=1):
        yield item, file_name(number, item)


def file_name(index: int, item: Item) -> str:
    """Return the ONNX file of a template's row: ``parts/0007-mixer-hilo-128x14x14.onnx``."""
    if isinstance(item, Architecture):
        return f"networks/{index:04d}-{item.id}.onnx"
    return f"parts/{index:04d}-{label(item)}.onnx"
