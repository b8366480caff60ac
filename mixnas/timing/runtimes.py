"""What computes a network here: PyTorch as it is, and `torch.compile`."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from mixnas.errors import InvalidOption
from mixnas.timing.conditions import Conditions
from mixnas.timing.reference import Shape

Call = Callable[[], object]
"""Computes once; to be called in inference mode."""


class Runtime(Protocol):
    """Brings a module to where it is measured."""

    def place(self, module: nn.Module, shape: Shape, conditions: Conditions) -> Call:
        """Return what computes the module once, on one fixed random input.

        Args:
            module: a part or a whole network; a runtime may move and convert it in place.
            shape: the input without the batch, ``(C, H, W)``.
            conditions: device, batch and precision; the threads are the stopwatch's to set
                before it places or calls.
        """


class Eager:
    """PyTorch as it is; weights, input and activations channels-last."""

    def place(self, module: nn.Module, shape: Shape, conditions: Conditions) -> Call:
        """Move and convert the module in place; return what computes it once."""
        return _bound(_moved(module, conditions), images(shape, conditions))


class Compiled:
    """`torch.compile` for one shape and as one graph, compiled before `place` returns."""

    def place(self, module: nn.Module, shape: Shape, conditions: Conditions) -> Call:
        """Move, convert and compile the module; return what computes it once.

        Raises:
            InvalidOption: if it cannot be compiled here: no C++ compiler, an operator, or code
                that would run between two graphs.
        """
        entrance = _entrance(_moved(module, conditions))
        compiled = torch.compile(entrance, dynamic=False, fullgraph=True)
        call = _bound(compiled, images(shape, conditions))
        try:
            with torch.inference_mode():
                call()
        except Exception as error:  # a backend raises whatever its passes do
            raise InvalidOption(
                f"runtime 'compile': torch.compile failed on {type(module).__name__} "
                f"({_cause(error)}); a working C++ compiler is needed; or use --runtime eager"
            ) from error
        return call


RUNTIMES_HERE: Mapping[str, Runtime] = {"eager": Eager(), "compile": Compiled()}
"""The runtimes that need nothing but PyTorch."""


def images(shape: Shape, conditions: Conditions) -> Tensor:
    """Return the fixed random input ``(batch, C, H, W)``, channels-last, on the device."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(conditions.batch, *shape, generator=generator)
    place = conditions.place
    return drawn.to(place, conditions.dtype, memory_format=torch.channels_last)


def _moved(module: nn.Module, conditions: Conditions) -> nn.Module:
    module = module.eval().to(conditions.place, conditions.dtype)
    return module.to(memory_format=torch.channels_last)


def _bound(compute: Callable[[Tensor], object], drawn: Tensor) -> Call:
    def call() -> object:
        return compute(drawn)

    return call


def _entrance(module: nn.Module) -> Callable[[Tensor], object]:
    """Return the module as a function with code of its own.

    What `torch.compile` has compiled it keeps with the code that was called: two hundred parts
    of six classes would share six, and after eight of one class the rest would run as eager.
    """

    def forward(drawn: Tensor) -> object:
        return module(drawn)

    forward.__code__ = forward.__code__.replace()
    return forward


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
