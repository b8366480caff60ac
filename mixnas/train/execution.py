"""`Execution`: how a training's steps are computed, which leaves what is learnt alone."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixnas.errors import InvalidOption, MixnasError, OutOfMemory

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""What a network computes in; "auto" is bf16 where a GPU has it, else fp32."""

_REFUSALS = ("DefaultCPUAllocator", "not enough memory", "allocate memory")


@dataclass(frozen=True)
class Execution:
    """How steps are computed: a matter of speed and memory.

    Attributes:
        precision: "auto", "fp32", "bf16" or "fp16"; weights, losses and the optimiser stay in
            float32 (mixed precision).
        compile: whether torch.compile makes one program of the network.
        channels_last: whether images and convolutions lie channels last in memory.
        accumulate: parts in which a process's batch is computed, one after the other. A batch
            norm that is trained sees each part alone.
        checkpointing: whether activations are computed anew for the gradient instead of kept.
        synchronised: whether batch norms see the batch of all processes, not of their own; CUDA
            only, as torch has it.
    """

    precision: str = "auto"
    compile: bool = False
    channels_last: bool = True
    accumulate: int = 1
    checkpointing: bool = False
    synchronised: bool = False

    def __post_init__(self) -> None:
        """Refuse what there is not.

        Raises:
            InvalidOption: names the option and what is allowed.
        """
        if self.precision not in PRECISIONS:
            raise InvalidOption(
                f"precision '{self.precision}' is not known; give {', '.join(PRECISIONS)}"
            )
        if self.accumulate < 1:
            raise InvalidOption(f"accumulate {self.accumulate} is not allowed; give at least 1")

    def kind(self, device: torch.device) -> torch.dtype:
        """Return the type in which a network computes on a device.

        Raises:
            InvalidOption: if the device has no bfloat16 and it was asked for.
        """
        has = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        if self.precision == "bf16" and not has:
            raise InvalidOption("precision bf16: this GPU has none; give fp16 or fp32")
        if self.precision == "auto":
            return torch.bfloat16 if device.type == "cuda" and has else torch.float32
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return kinds[self.precision]

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which a network computes."""
        kind = self.kind(device)
        return nullcontext() if kind == torch.float32 else torch.autocast(device.type, kind)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return what keeps float16's gradients from vanishing; elsewhere it does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.kind(device) == torch.float16)

    def prepare(self, network: nn.Module, device: torch.device) -> None:
        """Fit a network to this execution, in place.

        Raises:
            InvalidOption: if the network or the device cannot do what is asked for.
        """
        self.kind(device)
        if self.synchronised:
            if device.type != "cuda":
                raise InvalidOption(
                    f"synchronised batch norms need CUDA, not {device.type}; leave them out, or "
                    "freeze the norms"
                )
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.checkpointing:
            _checkpoint(network)

    def compiled(self, network: nn.Module) -> nn.Module:
        """Return the network as one program, if that was asked for."""
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]

    @contextmanager
    def watched(self, what: str, images: int) -> Iterator[None]:
        """Turn memory's end, and a compiler's failure, into a sentence.

        Args:
            what: what is being done ("step 7").
            images: of a process's batch.

        Raises:
            OutOfMemory: names the batch and how to do with less.
            InvalidOption: if the network cannot be compiled here.
        """
        try:
            yield
        except MixnasError:
            raise
        except (RuntimeError, MemoryError) as error:
            if _refused(error):
                raise OutOfMemory(self._advice(what, images, error)) from None
            if self.compile and type(error).__module__.startswith(("torch._dynamo", "torch._indu")):
                raise InvalidOption(
                    f"{what}: torch.compile failed here ({_line(error)}); leave --compile out, "
                    "and the same command goes on"
                ) from None
            raise

    def _advice(self, what: str, images: int, error: BaseException) -> str:
        parts = f"--accumulate {2 * self.accumulate}"
        if 2 * self.accumulate > images:
            parts = "a smaller --batch under another name"
        ways = parts if self.checkpointing else f"{parts} or --checkpointing"
        size = math.ceil(images / self.accumulate)
        return (
            f"{what}: memory does not hold the training of {size} images at once "
            f"({_line(error)}); repeat the same command with {ways}: it goes on from its last "
            "checkpoint"
        )


def _checkpoint(network: nn.Module) -> None:
    """Let a network compute its activations anew, as timm's networks are told to."""
    switch = getattr(network, "set_grad_checkpointing", None)
    refused = f"checkpointing: {type(network).__name__} cannot do without its activations; leave "
    if not callable(switch):
        raise InvalidOption(f"{refused}--checkpointing out, or use --accumulate")
    try:
        switch(True)
    except AssertionError:  # how timm says that a network has none
        raise InvalidOption(f"{refused}--checkpointing out, or use --accumulate") from None


def _refused(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _REFUSALS)


def _line(error: BaseException) -> str:
    """Return an error's words on one line, cut short."""
    return " ".join(str(error).split())[:160] or type(error).__name__
