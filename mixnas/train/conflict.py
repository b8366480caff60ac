"""`Projection`: where gradients of a step's draws pull against each other, one gives way.

Draws of a step share parameters, and their gradients may point against each other. In NASViT
(Gong et al. 2022) the gradient of the dearest gives way, tensor by tensor, by its part against
that of the others; the contrary can be asked for as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixnas.elastic import BatchNorm


class Projection:
    """Sums the gradients of a step's draws, conflicts with the dearest's taken away.

    Of two gradients ``g`` and ``h`` of one tensor with a negative product, the one that gives way
    becomes ``g - (g . h) / |h|^2 * h``. Outside the corner that a draw uses its gradient stays
    nought.

    Args:
        network: whose parameters' gradients are summed.
        kind: who gives way: "dearest" (to the sum of the others), "others" (each to the
            dearest), or "none": gradients are summed as they come.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        self.kind = kind
        self.parameters = list(network.parameters())
        self.dearest: dict[int, Tensor] = {}
        self.others: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget what was taken."""
        self.dearest, self.others = {}, {}

    def take(self, role: str) -> None:
        """Take over the gradient of a draw that went backward."""
        if self.kind == "none":
            return
        for index, parameter in enumerate(self.parameters):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            if role == "dearest":
                self.dearest[index] = gradient
                continue
            if self.kind == "others" and index in self.dearest:
                active = self.dearest[index] * (gradient != 0)
                gradient = _yielding(gradient, active)
            self.others[index] = self.others.get(index, 0) + gradient

    def finish(self) -> None:
        """Give the parameters the sum of what was taken."""
        if self.kind == "none":
            return
        for index, parameter in enumerate(self.parameters):
            first, rest = self.dearest.get(index), self.others.get(index)
            if first is not None and rest is not None:
                parameter.grad = rest + (
                    _yielding(first, rest) if self.kind == "dearest" else first
                )
            else:
                parameter.grad = first if rest is None else rest
        self.clear()


def _yielding(gradient: Tensor, other: Tensor) -> Tensor:
    """Return a gradient without its part against another."""
    product, length = (gradient * other).sum(), other.square().sum()
    part = torch.where((product < 0) & (length > 0), product / length, product.new_zeros(()))
    return gradient - part * other


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are, in training mode too."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
