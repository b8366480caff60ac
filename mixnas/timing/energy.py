"""Energy of one inference, where the device counts it."""

import contextlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mixnas.errors import InvalidOption
from mixnas.timing.runtimes import Call

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of the processor (RAPL: Running Average Power Limit)."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only rises, and begins again at 0 after its range.

    Attributes:
        read: returns millijoules.
        span: millijoules after which it begins again; 0 if it never does.
    """

    read: Callable[[], float]
    span: float = 0.0

    def since(self, before: float) -> float:
        """Return the millijoules since an earlier reading, one new beginning allowed for."""
        used = self.read() - before
        return used + self.span if used < 0 else used


class EnergyMeter:
    """Measures what a call costs in energy: the whole device's, idle power included.

    Where it was written there was no such counter: the processor's was tried on a folder that a
    test writes, the GPU's not at all.

    Args:
        counters: whose sum is the device's energy.
        wait: waits until the device has computed all that it was given.
    """

    def __init__(self, counters: list[Counter], wait: Callable[[], object] = lambda: None) -> None:
        self._counters = counters
        self._wait = wait

    @classmethod
    def of(cls, device: str, folder: Path = POWERCAP) -> "EnergyMeter":
        """Find a device's counters.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:1``.
            folder: where Linux shows the processor's.

        Raises:
            InvalidOption: if the device tells none.
        """
        place = torch.device(device)
        if place.type == "cuda":
            return cls([_gpu(place)], lambda: torch.cuda.synchronize(place))
        counters = _packages(folder) if place.type == "cpu" else []
        if not counters:
            raise InvalidOption(
                f"device {device} tells no energy here (no readable counter at "
                f"{folder}/intel-rapl:*/energy_uj); measure on Linux with the right to read "
                "it, or bring a table from elsewhere with --from"
            )
        return cls(counters)

    def measure(self, call: Call, seconds: float = 0.5) -> float:
        """Return the millijoules of one call, over as many as fill the time, at least one.

        Args:
            call: computes once.
            seconds: the counters tell anew every 1 to 100 milliseconds only.
        """
        self._wait()
        before = [counter.read() for counter in self._counters]
        ends = time.perf_counter() + seconds
        runs = 0
        with torch.inference_mode():
            while not runs or time.perf_counter() < ends:
                call()
                self._wait()
                runs += 1
        pairs = zip(self._counters, before, strict=True)
        return sum(counter.since(start) for counter, start in pairs) / runs


def _packages(folder: Path) -> list[Counter]:
    """Return the counters of the processor's packages, and of the memory beside them.

    A package's counter holds its cores' and its graphics', but not the memory's (powercap, in
    the Linux kernel's documentation).
    """
    zones = sorted([*folder.glob("intel-rapl:*")])
    found = []
    for zone in zones:
        with contextlib.suppress(OSError, ValueError):
            name = (zone / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                counter = Counter(_reader(zone), _millijoules(zone / "max_energy_range_uj"))
                counter.read()  # root's only, on many systems
                found.append(counter)
    return found


def _reader(zone: Path) -> Callable[[], float]:
    return lambda: _millijoules(zone / "energy_uj")


def _millijoules(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1000


def _gpu(place: torch.device) -> Counter:
    """Return the total counter of an NVIDIA GPU (since Volta), by NVML.

    Raises:
        InvalidOption: if ``pynvml`` is not installed, or the GPU has no counter.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(place).uuid
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own classes are known only once it is imported
        raise InvalidOption(
            f"device {place} tells no energy here ({type(error).__name__}: {error}); a GPU since "
            "Volta and the package are needed: pip install nvidia-ml-py"
        ) from error
    return Counter(lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))
