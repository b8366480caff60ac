"""Measuring a space on a device, part by part and some networks whole, in a run that resumes."""

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from mixnas.arch import Architecture
from mixnas.cost.measured import Measured, parts_of
from mixnas.errors import InvalidTable, TooNoisy
from mixnas.jobs.measured_run import JOB, TABLE
from mixnas.jobs.settings import Listener
from mixnas.network import Part, build
from mixnas.run import Run
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions
from mixnas.timing.energy import EnergyMeter
from mixnas.timing.runtimes import RUNTIMES_HERE
from mixnas.timing.stopwatch import Runtime, Stopwatch

NETWORKS = 60
"""Networks that are measured whole, to calibrate the sum of parts."""

EVERY = 5.0
"""Seconds between two writings of the table: what a kill can lose."""

PATIENCE = 20.0
"""Seconds that a figure may take on a busy machine."""

GRAPHS = "graphs"
CHUNK = 16
"""Graphs that are written before they are timed: what they take of the disk stays small."""

NOISY = 3
"""Figures in a row that the stopwatch may refuse before the measuring gives up."""

if TYPE_CHECKING:
    from mixnas.jobs.graphs import Graphs

Meter = Callable[[nn.Module, tuple[int, int, int]], float]
Item = TypeVar("Item", Part, Architecture)


@dataclass(frozen=True)
class Bench:
    """What is measured, and how.

    Attributes:
        space: at its deployed image and classes.
        conditions: on what, by what and how.
        quantity: ``latency`` (milliseconds) or ``energy`` (millijoules).
        networks: how many networks are measured whole.
    """

    space: SearchSpace
    conditions: Conditions
    quantity: str = "latency"
    networks: int = NETWORKS

    @property
    def name(self) -> str:
        """The default name of the run: equal for equal parts under equal conditions."""
        genes = json.dumps(self.space.to_dict(), sort_keys=True)
        digest = hashlib.sha256(genes.encode()).hexdigest()[:6]
        words = [self.quantity, self.space.name, digest, self.conditions.name]
        return "-".join(words + [f"n{self.networks}"] * (self.networks != NETWORKS))

    def settings(self) -> dict[str, Any]:
        """Return what decides the figures, as a run keeps it."""
        return {
            "job": JOB,
            "space": self.space.name,
            "image": self.space.image,
            "classes": self.space.classes,
            "quantity": self.quantity,
            "networks": self.networks,
            "conditions": self.conditions.to_dict(),
            "inlined": self.space.to_dict(),
        }

    def architectures(self) -> list[Architecture]:
        """Return the networks that are measured whole: drawn from the space, each once."""
        return draws(self.space, self.networks, 0)


def draws(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Return architectures drawn from a space, each once; fewer where the space has no more."""
    rng, drawn = Random(seed), dict[Architecture, None]()
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        drawn[space.sample(rng)] = None
    return list(drawn)


def runtime(conditions: Conditions) -> Runtime:
    """Return what places modules under some conditions."""
    if conditions.runtime == "onnxruntime":
        from mixnas.exports.placed import ONNX_RUNTIME

        return ONNX_RUNTIME
    return RUNTIMES_HERE[conditions.runtime]


def graphs_of(folder: Path, space: SearchSpace) -> "Graphs":
    """Return what writes graphs into a folder; its packages are imported only then."""
    from mixnas.jobs.graphs import Graphs

    return Graphs(folder, space)


def stopwatch(
    conditions: Conditions, typical: float | None = None, *, patience: float = PATIENCE
) -> Stopwatch:
    """Return a stopwatch under some conditions.

    Args:
        conditions: on what, by what and how.
        typical: a table's own time of the reference network, in milliseconds.
        patience: seconds that one figure may take.
    """
    return Stopwatch(conditions, runtime(conditions), typical=typical, patience=patience)


class Measuring:
    """A bench at work: what has been measured so far, and how the rest is measured.

    Args:
        bench: what to measure.
        measured: what an earlier call measured.
        listener: is told how it gets on.

    Raises:
        TooNoisy: if the machine is too busy to say how fast it is.
        InvalidOption: if the device cannot tell the quantity.
    """

    def __init__(self, bench: Bench, measured: Measured | None, listener: Listener) -> None:
        self.bench = bench
        self.listener = listener
        if measured is None:
            sizes = {"image": bench.space.image, "classes": bench.space.classes, "in_chans": 3}
            told = bench.conditions.to_dict() | sizes
            if bench.quantity == "latency":
                told["reference_ms"] = stopwatch(bench.conditions).calibrate()
            measured = Measured(bench.quantity, told, {}, {})
        self.conditions = dict(measured.conditions)
        self.parts = dict(measured.parts)
        self.networks = dict(measured.networks)
        self._meter = self._make_meter()
        self._kept = time.perf_counter()
        self._graphs: Graphs | None = None

    def _make_meter(self) -> Meter:
        conditions = self.bench.conditions
        if self.bench.quantity == "latency":
            watch = stopwatch(conditions, self.conditions["reference_ms"])
            return lambda module, shape: watch.time(module, shape).median
        meter, placing = EnergyMeter.of(conditions.device), runtime(conditions)
        return lambda module, shape: meter.measure(placing.place(module, shape, conditions))

    @property
    def measured(self) -> Measured:
        """What has been measured so far."""
        return Measured(self.bench.quantity, self.conditions, self.parts, self.networks)

    @property
    def lacking(self) -> tuple[list[Part], list[Architecture]]:
        """The parts and the networks that have no figure yet."""
        parts = [part for part in parts_of(self.bench.space) if part not in self.parts]
        wanted = self.bench.architectures()
        return parts, [arch for arch in wanted if arch not in self.networks]

    def rehearse(self) -> float:
        """Measure a part and a network, and return the seconds that the rest will take."""
        parts, networks = self.lacking
        return self._sample(parts, self.parts, self._part) + self._sample(
            networks, self.networks, self._network
        )

    def _sample(
        self, items: list[Item], found: dict[Item, float], measure: Callable[[Item], float]
    ) -> float:
        """Measure the one in the middle, and return the seconds that the others will take."""
        if not items:
            return 0.0
        item, began = items[len(items) // 2], time.perf_counter()
        found[item] = measure(item)
        return (len(items) - 1) * (time.perf_counter() - began)

    def carry_out(self, run: Run) -> None:
        """Measure what has no figure yet; the run's table grows as it goes.

        Raises:
            TooNoisy: if the stopwatch refused several figures in a row; the others are kept.
        """
        parts, networks = self.lacking
        folder = run.file(GRAPHS)
        try:
            with ExitStack() as stack:
                if self.bench.conditions.runtime == "onnxruntime" and (parts or networks):
                    self._graphs = stack.enter_context(graphs_of(folder, self.bench.space))
                self._each("parts", parts, self.parts, self._part, run)
                self._each("networks", networks, self.networks, self._network, run)
        finally:
            self._graphs = None
            shutil.rmtree(folder, ignore_errors=True)
            self._keep(run)

    def measure_parts(self) -> None:
        """Measure the parts alone, without keeping them anywhere.

        Raises:
            TooNoisy: if the stopwatch refused several in a row.
        """
        self._each("parts", self.lacking[0], self.parts, self._part, None)

    def _part(self, part: Part) -> float:
        module = self._graphs.module(part) if self._graphs else part.build()
        return self._meter(module, part.shape)

    def _network(self, arch: Architecture) -> float:
        image, classes = self.bench.space.image, self.bench.space.classes
        module = self._graphs.module(arch) if self._graphs else build(arch, classes).eval()
        return self._meter(module, (3, image, image))

    def _each(
        self,
        stage: str,
        items: Sequence[Item],
        found: dict[Item, float],
        measure: Callable[[Item], float],
        run: Run | None,
    ) -> None:
        """Measure each; what the stopwatch refuses is tried again at the end."""
        waiting, refused = deque(items), 0
        self.listener.stage(stage, len(found) + len(waiting), len(found))
        while waiting:
            item = self._next(waiting)
            try:
                found[item] = measure(item)
            except TooNoisy as error:
                refused += 1
                if refused > NOISY:
                    raise
                self.listener.note(f"measured again later: {error}")
                waiting.append(item)
                continue
            refused = 0
            self._forget(item)
            self.listener.advance(1)
            if run and time.perf_counter() - self._kept > EVERY:
                self._keep(run)
        self.listener.end()

    def _next(self, waiting: deque[Item]) -> Item:
        """Take the next; where graphs are needed, those of the next `CHUNK` are written."""
        if self._graphs and not self._graphs.path(waiting[0]).is_file():
            self._graphs.write(islice(waiting, CHUNK))
        return waiting.popleft()

    def _forget(self, item: Part | Architecture) -> None:
        """Remove the graph of what has its figure."""
        if self._graphs:
            self._graphs.path(item).unlink(missing_ok=True)

    def _keep(self, run: Run) -> None:
        run.write(TABLE, self.measured.to_csv())
        self._kept = time.perf_counter()


def kept(run: Run) -> Measured | None:
    """Return what a run has measured, None if nothing.

    Raises:
        RunConflict: if its table is damaged.
    """
    path = run.file(TABLE)
    if not path.is_file():
        return None
    try:
        found = Measured.from_csv(path.read_text(encoding="utf-8"), str(path))
    except (InvalidTable, UnicodeDecodeError):
        raise run.broken(TABLE) from None
    ours = "source" not in run.settings and found.quantity == "latency"
    if ours and not isinstance(found.conditions.get("reference_ms"), float):
        raise run.broken(TABLE)
    return found


def sized(space: SearchSpace, image: int | None, classes: int | None) -> SearchSpace:
    """Return a space at another image and other classes, where they are given."""
    return replace(space, image=image or space.image, classes=classes or space.classes)
