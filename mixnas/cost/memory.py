"""Peak inference memory: the weights, and the most bytes of activations that live at once.

No formula of a mixer stands here. Each segment's own modules compute zeros in memory, and every
storage that an operator makes is followed until nothing refers to it any more, as eager PyTorch
keeps it: views cost nothing, the image stays with the caller, a module's input stays until it
returns. Images and convolutions' weights are channels-last, as the stopwatch places them; others
are copied first. What a kernel takes and gives back within one operator is not seen: on the CPU a
convolution's reordered weights, or the unfolded input of a small one.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mixnas.arch import Architecture, Block
from mixnas.cost.count import without_memory
from mixnas.network import MixBlock, Part, Segment, parts, walk


class PeakMemory:
    """Bytes that one inference takes: the sum of all weights and the greatest peak of a segment.

    Not a sum over segments, so a table of its own kind: `mixnas.cost.feasible.Feasible` knows it
    by `weights` and `peak`.

    Args:
        image: side of the deployed image in pixels.
        classes: classes of the deployed network.
        in_chans: channels of the image.
        batch: images at once.
        dtype: of weights, activations and input; what a mixer computes in float32 all the same
            counts as such.
    """

    cost = "memory"

    def __init__(
        self,
        *,
        image: int,
        classes: int,
        in_chans: int = 3,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.image = image
        self.classes = classes
        self.in_chans = in_chans
        self.batch = batch
        self.dtype = dtype
        self._weights: dict[tuple[str, tuple[Any, ...]], int] = {}
        self._peaks: dict[Segment, int] = {}

    @property
    def conditions(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "cost": self.cost,
            "image": self.image,
            "classes": self.classes,
            "in_chans": self.in_chans,
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def __call__(self, arch: Architecture) -> int:
        """Return the peak of an architecture's network, in bytes."""
        segments = walk(arch)
        return sum(map(self.weights, segments)) + max(map(self.peak, segments))

    def weights(self, segment: Segment) -> int:
        """Return the bytes of a segment's parameters and buffers."""
        return sum(self._stored(part) for part in self._parts(segment))

    def _stored(self, part: Part) -> int:
        key = part.kind, part.spec
        if key not in self._weights:
            with torch.device("meta"):
                module = part.build().to(self.dtype)
            self._weights[key] = sum(tensor.nbytes for tensor in _stored(module))
        return self._weights[key]

    def peak(self, segment: Segment) -> int:
        """Return the most bytes of activations, with the image, while a segment computes.

        Raises:
            RuntimeError: if an operator does not exist for the data type on the CPU.
        """
        if segment not in self._peaks:
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and not wanted
                self._peaks[segment] = without_memory(
                    lambda: self._module(segment), lambda module: self._run(module, segment)
                )
        return self._peaks[segment]

    def _module(self, segment: Segment) -> nn.Module:
        """Build a segment as `Network` holds it: a block's parts within the block."""
        if segment[0] == "block":
            _, _, width, block = segment
            offered = {block.mixer: {knob: (value,) for knob, value in block.knobs}}
            return MixBlock(width, offered, block.ratio)
        return self._parts(segment)[0].build()

    def _parts(self, segment: Segment) -> tuple[Part, ...]:
        return parts(segment, image=self.image, classes=self.classes, in_chans=self.in_chans)

    def _run(self, module: nn.Module, segment: Segment) -> int:
        """Follow what lives while a segment computes."""
        module = module.to(self.dtype).to_empty(device="cpu").eval()
        for tensor in _stored(module):
            tensor.detach().zero_()
        image = self._zeros((self.in_chans, self.image, self.image))
        if segment[0] == "stem":
            return peak(lambda: module(image), image)
        shape = self._parts(segment)[0].shape
        x = self._zeros(shape)
        told: tuple[Block, ...] = segment[3:] if segment[0] == "block" else ()
        return peak(lambda: module(x, *told), image, x)

    def _zeros(self, shape: tuple[int, int, int]) -> Tensor:
        x = torch.zeros(self.batch, *shape, dtype=self.dtype, device="cpu")
        return x.contiguous(memory_format=torch.channels_last)


def peak(call: Callable[[], object], *held: Tensor) -> int:
    """Return the most bytes that live at once while a call computes.

    Only what its operators make counts, and what is held: weights do not, nor constants that a
    mixer keeps from one call to the next, so the call is made once before.

    Args:
        call: calls a module in evaluation mode; under ``torch.no_grad``, where composite
            operators come apart.
        held: what the caller holds all the while.
    """
    live = _Live()
    live.add(held)
    with torch.no_grad():
        call()
        with live:
            call()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows the storages that operators make, by references that do not keep them alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes: dict[StorageWeakRef, int] = {}
        self._older: set[StorageWeakRef] = set()

    def add(self, made: Any) -> None:
        """Take note of tensors, and of the total."""
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._older:
                self._bytes[reference] = storage.nbytes()
        for reference in [each for each in self._bytes if each.expired()]:
            del self._bytes[reference]
        self.peak = max(self.peak, sum(self._bytes.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, having told apart what was there before: it may come back as a view."""
        given = {StorageWeakRef(t.untyped_storage()) for t in _tensors(args)}
        self._older |= given - self._bytes.keys()
        made = func(*args, **(kwargs or {}))
        self.add(made)
        return made


def _tensors(made: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, tuple | list):
        for each in made:
            yield from _tensors(each)


def _stored(module: nn.Module) -> Iterator[Tensor]:
    """Yield each parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()
