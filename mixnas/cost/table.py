"""`CostTable`: an architecture's cost as a sum over its parts, each measured once.

`Limit` says what a cost may be; it stands in `mixnas.cost.limit` and is named here too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mixnas.arch import Architecture
from mixnas.cost.limit import Limit, describe, parse_all
from mixnas.errors import TableMissing
from mixnas.network import Part, Segment, parts, walk
from mixnas.storage import write

__all__ = ["Additive", "CostTable", "Limit", "Measure", "Peaking", "describe", "parse_all"]

Measure = Callable[[Part], int]

FORMAT = 1


class Additive(Protocol):
    """A table of a cost that is a sum over segments: `CostTable`, a calibrated predictor."""

    cost: str

    def __call__(self, arch: Architecture) -> int:
        """Return an architecture's cost."""

    def segment(self, segment: Segment) -> int:
        """Return what a segment adds."""


@runtime_checkable
class Peaking(Protocol):
    """A table of a cost that is a sum and a maximum over segments: `memory.PeakMemory`."""

    cost: str

    def __call__(self, arch: Architecture) -> int:
        """Return an architecture's cost."""

    def weights(self, segment: Segment) -> int:
        """Return what a segment adds to the sum."""

    def peak(self, segment: Segment) -> int:
        """Return a segment's part in the maximum."""


class CostTable:
    """Sums integer costs of parts; looks each up by its content, measures it on first use.

    Args:
        measure: what a part costs: `count.flops`, `count.params` or a `latency.Stopwatch`. Its
            name (or its attribute `cost`) names the cost, and its attribute `conditions`, if it
            has one, says under which conditions its figures hold.
        image: side of the deployed image in pixels.
        classes: classes of the deployed network.
        in_chans: channels of the image.
    """

    def __init__(self, measure: Measure, *, image: int, classes: int, in_chans: int = 3) -> None:
        self.measure = measure
        self.image = image
        self.classes = classes
        self.in_chans = in_chans
        self.cost = str(getattr(measure, "cost", getattr(measure, "__name__", "cost")))
        self._segments: dict[tuple[Any, ...], int] = {}
        self._parts: dict[Part, int] = {}

    @property
    def conditions(self) -> dict[str, Any]:
        """What the figures depend on; a saved table serves only under equal ones."""
        own = {
            "cost": self.cost,
            "image": self.image,
            "classes": self.classes,
            "in_chans": self.in_chans,
        }
        return own | dict(getattr(self.measure, "conditions", {}))

    def __call__(self, arch: Architecture) -> int:
        """Return an architecture's cost: multiply-adds, parameters or nanoseconds."""
        known = self._segments
        total = 0
        for segment in walk(arch):
            cost = known.get(_key(segment))
            total += self.segment(segment) if cost is None else cost
        return total

    def segment(self, segment: Segment) -> int:
        """Return the cost of one segment of `network.walk`."""
        key = _key(segment)
        if key not in self._segments:
            taken = parts(segment, image=self.image, classes=self.classes, in_chans=self.in_chans)
            self._segments[key] = sum(self.part(part) for part in taken)
        return self._segments[key]

    def part(self, part: Part) -> int:
        """Return the cost of one part."""
        if part not in self._parts:
            self._parts[part] = int(self.measure(part))
        return self._parts[part]

    def __len__(self) -> int:
        return len(self._parts)

    def save(self, path: str | Path) -> None:
        """Write the measured parts and their conditions as JSON, all or nothing.

        Raises:
            StorageFull: if the disk refuses; an older file is still whole.
        """
        entries = [[p.kind, p.spec, p.shape, cost] for p, cost in self._parts.items()]
        data = {"format": FORMAT, "conditions": self.conditions, "parts": entries}
        write(Path(path), (json.dumps(data, separators=(",", ":")) + "\n").encode())

    def load(self, path: str | Path) -> None:
        """Take over what `save` wrote.

        Raises:
            TableMissing: if there is no such table, or it was made under other conditions.
        """
        data = _read(Path(path))
        here = json.loads(json.dumps(self.conditions))
        there: Mapping[str, Any] = data["conditions"]
        differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if differing:
            what = ", ".join(f"{k} {there.get(k)!r}, not {here.get(k)!r}" for k in differing)
            raise TableMissing(f"{path}: measured under other conditions ({what}); measure again")
        for kind, spec, shape, cost in data["parts"]:
            self._parts[Part(kind, _frozen(spec), _frozen(shape))] = cost


def _key(segment: Segment) -> tuple[Any, ...]:
    """Return a segment as plain values, which a dictionary finds thrice as fast as a `Block`."""
    if segment[0] != "block":
        return segment
    _, stride, width, block = segment
    return stride, width, block.mixer, block.knobs, block.ratio


def _frozen(value: Any) -> Any:
    """Turn JSON's lists back into tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    """Read a saved table and check its form."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableMissing(f"{path}: no cost table there ({error.strerror}); measure one") from None
    except ValueError:
        data = None
    form = isinstance(data, dict) and isinstance(data.get("conditions"), dict)
    if not form or data.get("format") != FORMAT or not all(map(_entry, data.get("parts", [None]))):
        raise TableMissing(f"{path}: not a cost table of format {FORMAT}; measure again")
    return data


def _entry(entry: Any) -> bool:
    """Say whether this is ``[kind, spec, shape, cost]``."""
    if not isinstance(entry, list) or len(entry) != 4:
        return False
    kind, spec, shape, cost = entry
    lists = isinstance(spec, list) and isinstance(shape, list) and len(shape) == 3
    return isinstance(kind, str) and lists and type(cost) is int
