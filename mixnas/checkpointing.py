"""Gradient checkpointing: a block's activations are computed again in the backward pass.

Memory for time (Chen et al. 2016, arXiv 1604.06174). What is learnt is the same, bit for bit:
random drops are drawn again alike, and the second computation leaves the running statistics of
the batch norms alone, which the first one has already moved.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

WHOLE = "2.15"
"""A release of torch whose compiler computes again without moving statistics; 2.8 moves them."""


def recomputer() -> Callable[..., Tensor]:
    """Return `recomputed`, out of an older compiler's reach: it compiles blocks on their own."""
    if torch.__version__ >= WHOLE:
        return recomputed
    return cast(Callable[..., Tensor], torch.compiler.disable(recomputed, recursive=False))


def recomputed(module: nn.Module, *args: Any) -> Tensor:
    """Call a module now, and once more in the backward pass instead of keeping its activations."""
    if not torch.is_grad_enabled():
        return cast(Tensor, module(*args))
    if torch.compiler.is_compiling():  # the compiler knows no contexts, and needs none
        return cast(Tensor, checkpoint(module, *args, use_reentrant=False))
    contexts = partial(_contexts, module)
    return cast(Tensor, checkpoint(module, *args, use_reentrant=False, context_fn=contexts))


def _contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _still(module)


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a module's batch norms where they are.

    A momentum of 0 does it with the same operators, so that what they save for the backward pass
    is the same too; the count of batches is taken away meanwhile.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Blocks(nn.Sequential):
    """A sequence of blocks, each of which may be computed again in the backward pass.

    Attributes:
        recomputed: calls a block so (`recomputer`); None where activations are kept.
    """

    recomputed: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks in turn."""
        for block in self:
            x = self.recomputed(block, x) if self.recomputed else block(x)
        return x
