"""What machine this is: its devices, its processor and the cores that this process may use."""

import os
import platform
from pathlib import Path

import torch

from mixnas.errors import InvalidOption


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


def description(device: torch.device) -> str:
    """Return the name of a device's processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def physical_cores() -> int:
    """Return the physical cores that this process may use, at least 1."""
    allowed = usable()
    return len(one_of_each_core(allowed)) or len(allowed)


def usable() -> set[int]:
    """Return the processors (hardware threads) that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def one_of_each_core(allowed: set[int]) -> list[int]:
    """Return the first allowed processor of each physical core; empty where no one tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    return sorted(_cores(text, allowed).values())


def _cores(text: str, allowed: set[int]) -> dict[tuple[str, str], int]:
    """Return the first allowed processor by socket and core, of the text of ``/proc/cpuinfo``."""
    found: dict[tuple[str, str], int] = {}
    for entry in text.strip().split("\n\n"):
        pairs = (line.split(":", 1) for line in entry.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
        number = fields.get("processor", "")
        mine = number.isdigit() and int(number) in allowed
        if mine and {"physical id", "core id"} <= fields.keys():
            found.setdefault((fields["physical id"], fields["core id"]), int(number))
    return found


def processor() -> str:
    """Return the name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
