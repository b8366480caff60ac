"""Latency by a stopwatch on the device: part by part for tables, whole for the finalists.

By default one image, float32, eager, channels-last, as many threads as physical cores. Only
medians and quartiles of repeated runs after a warm-up are reported. A sum over parts is an
estimate of the whole: caches and the launch of kernels overlap differently.
"""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixnas.errors import InvalidOption

if TYPE_CHECKING:
    from mixnas.network import Part

Shape = tuple[int, int, int]


class Stopwatch:
    """Times modules on one device; called on a part it gives integer nanoseconds.

    A sum of parts is an estimate of a network's time, good for search; time finalists whole.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        threads: of torch on the CPU; the physical cores by default.
        batch: images at once.
        warmup: runs that do not count.
        repeats: runs at most.
        seconds: a measurement ends after this time, if it has `LEAST` runs.

    Raises:
        InvalidOption: if the device is not there, or a number is not positive.
    """

    cost = "latency"

    def __init__(
        self,
        device: str = "cpu",
        threads: int | None = None,
        *,
        batch: int = 1,
        warmup: int = 3,
        repeats: int = 30,
        seconds: float = 0.06,
    ) -> None:
        self.device = available(device)
        self.threads = physical_cores() if threads is None else threads
        for name, value in (("threads", self.threads), ("batch", batch), ("repeats", repeats)):
            if value < 1:
                raise InvalidOption(f"{name} {value}: at least 1 is needed")
        self.batch = batch
        self.warmup = warmup
        self.repeats = repeats
        self.seconds = seconds

    @property
    def conditions(self) -> dict[str, Any]:
        """Under what the figures hold."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "device": str(self.device),
            "processor": gpu or processor(),
            "threads": self.threads,
            "batch": self.batch,
            "precision": "float32",
            "torch": torch.__version__,
        }

    def __call__(self, part: "Part") -> int:
        """Return the median time of a part in nanoseconds, at least 1."""
        return self.time_module(part.build(), part.shape)

    def time_module(self, module: nn.Module, shape: Shape) -> int:
        """Return the median time in nanoseconds of a module.

        Args:
            module: a part or a whole network; it is put on the device, in evaluation mode.
            shape: the input without the batch, ``(C, H, W)``.
        """
        module = self._placed(module)
        images = self._images(shape)
        with self._quiet():
            began = time.perf_counter()
            for _ in range(self.warmup):
                self._once(module, images)
            spans: list[int] = []
            while len(spans) < self.repeats and (
                len(spans) < LEAST or time.perf_counter() - began < self.seconds
            ):
                spans.append(self._once(module, images))
        return max(1, round(statistics.median(spans)))

    def interleave(
        self, modules: Sequence[nn.Module], shape: Shape, *, rounds: int = 20
    ) -> list[dict[str, float]]:
        """Time whole networks in turn, beside a fixed reference, so that they share the noise.

        In each round every network runs once after the other, the reference first.

        Args:
            modules: networks; they are put on the device, in evaluation mode.
            shape: the input without the batch, ``(C, H, W)``.
            rounds: runs of each that count.

        Returns:
            For each network milliseconds: ``lower`` quartile, ``median``, ``upper`` quartile,
            and ``reference``, the reference's median, by which days and machines compare.
        """
        placed = [self._placed(module) for module in (reference(shape[0]), *modules)]
        images = self._images(shape)
        spans: list[list[int]] = [[] for _ in placed]
        with self._quiet():
            for number in range(self.warmup + rounds):
                for module, times in zip(placed, spans, strict=True):
                    span = self._once(module, images)
                    if number >= self.warmup:
                        times.append(span)
        beside = statistics.median(spans[0]) / 1e6
        return [_quartiles(times) | {"reference": beside} for times in spans[1:]]

    def _placed(self, module: nn.Module) -> nn.Module:
        module = module.eval().to(self.device, torch.float32)
        return module.to(memory_format=torch.channels_last)

    def _images(self, shape: Shape) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, *shape, generator=generator)
        return images.to(self.device, memory_format=torch.channels_last)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Run without gradients on the stopwatch's threads; give torch its own back after."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def _once(self, module: nn.Module, images: Tensor) -> int:
        """Return the nanoseconds of one run, the device's queue empty before and after."""
        self._wait()
        began = time.perf_counter_ns()
        module(images)
        self._wait()
        return time.perf_counter_ns() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


LEAST = 5
"""Runs that a measurement has at least."""


def reference(in_chans: int = 3) -> nn.Module:
    """Return the fixed network that stands beside every timing: four strided convolutions.

    0.18 billion multiply-adds for a 224x224 image of 3 channels.
    """
    widths = (in_chans, 32, 64, 128, 256)
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def available(name: str) -> torch.device:
    """Return a device.

    Raises:
        InvalidOption: if it is not there; the message says which are.
    """
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    if name not in (*devices, *(device.split(":")[0] for device in devices)):
        raise InvalidOption(f"device '{name}': not there; devices here: {', '.join(devices)}")
    return torch.device(name)


def physical_cores() -> int:
    """Return the physical cores that this process may use, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        cores = _cores(Path("/proc/cpuinfo").read_text(encoding="utf-8"), allowed)
    except OSError:
        cores = 0
    return cores or (len(allowed) if allowed else os.cpu_count() or 1)


def _cores(text: str, allowed: set[int] | None) -> int:
    """Count distinct pairs of socket and core in the text of ``/proc/cpuinfo``."""
    found = set()
    for entry in text.strip().split("\n\n"):
        pairs = (line.split(":", 1) for line in entry.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
        number = fields.get("processor", "")
        mine = allowed is None or (number.isdigit() and int(number) in allowed)
        if mine and {"physical id", "core id"} <= fields.keys():
            found.add((fields["physical id"], fields["core id"]))
    return len(found)


def processor() -> str:
    """Return the name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def _quartiles(spans: Sequence[int]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(spans, n=4, method="inclusive")
    return {"lower": lower / 1e6, "median": median / 1e6, "upper": upper / 1e6}
