"""`Conditions`: on what, by what and how a figure was measured; a table serves only equal ones."""

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mixnas.errors import InvalidOption, did_you_mean
from mixnas.timing.machine import available, description, physical_cores

RUNTIMES = ("eager", "compile", "onnxruntime")
"""What computes a network: PyTorch as it is, `torch.compile`, or ONNX Runtime on the CPU."""

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Conditions:
    """How a measurement is made.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        runtime: one of `RUNTIMES`.
        threads: on the CPU; 1 elsewhere.
        batch: images at once.
        precision: one of `PRECISIONS`: of weights, activations and input.
    """

    device: str
    runtime: str
    threads: int
    batch: int
    precision: str

    @classmethod
    def of(
        cls,
        device: str = "auto",
        runtime: str = "eager",
        *,
        threads: int | None = None,
        batch: int = 1,
        precision: str = "fp32",
    ) -> "Conditions":
        """Check what was asked for, and fill in what was not.

        Args:
            device: ``auto`` is CUDA where there is a GPU, else the CPU.
            runtime: one of `RUNTIMES`.
            threads: the physical cores by default.
            batch: images at once.
            precision: one of `PRECISIONS`.

        Raises:
            InvalidOption: for an unknown name, a device that is not there, numbers below 1, or
                a runtime that cannot compute so.
        """
        if runtime not in RUNTIMES:
            raise InvalidOption(f"no runtime '{runtime}'; {did_you_mean(runtime, RUNTIMES)}")
        if precision not in PRECISIONS:
            raise InvalidOption(
                f"no precision '{precision}'; {did_you_mean(precision, PRECISIONS)}"
            )
        if device == "auto":
            gpu = torch.cuda.is_available() and runtime != "onnxruntime"
            device = "cuda" if gpu else "cpu"
        kind = available(device).type
        for name, value in (("threads", threads), ("batch", batch)):
            if value is not None and value < 1:
                raise InvalidOption(f"{name} {value}: at least 1 is needed")
        if runtime == "onnxruntime" and (kind != "cpu" or precision != "fp32"):
            raise InvalidOption(
                f"runtime 'onnxruntime' with device {device}, precision {precision}: it is "
                "measured on the CPU in fp32 only; use --device cpu --precision fp32"
            )
        cores = physical_cores() if threads is None else threads
        return cls(device, runtime, cores if kind == "cpu" else 1, batch, precision)

    @classmethod
    def at(cls, where: str, **others: Any) -> "Conditions":
        """Read what stands behind a budget's ``@``: ``cpu``, ``cuda:1``, ``cpu:onnxruntime``.

        Raises:
            InvalidOption: as `of` does.
        """
        device, _, last = where.rpartition(":")
        if not device or last.isdigit():
            return cls.of(where, **others)
        return cls.of(device, last, **others)

    @property
    def place(self) -> torch.device:
        """The device itself."""
        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.precision
        ]

    @property
    def name(self) -> str:
        """The conditions as a part of a file's name: ``cpu-eager-fp32-b1-t2``."""
        words = [self.device.replace(":", ""), self.runtime, self.precision, f"b{self.batch}"]
        return "-".join([*words, *([f"t{self.threads}"] if self.device == "cpu" else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return all that figures depend on: the conditions, the processor, the versions."""
        found = {**asdict(self), "processor": description(self.place), "torch": torch.__version__}
        if self.place.type == "cuda":
            found["cuda"] = torch.version.cuda
            found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(self.place)))
        if self.runtime == "onnxruntime":
            found["onnxruntime"] = _version("onnxruntime")
        return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
