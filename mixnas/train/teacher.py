"""`Teacher`: a trained network from which another learns, in its own normalisation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.errors import InvalidOption


class Teacher(nn.Module):
    """A network in evaluation mode that is never trained.

    Args:
        network: maps images ``(B, C, H, W)`` to logits ``(B, classes)``.
        mean: the normalisation of the images that are given, one a channel, or one for all.
        deviation: likewise.
        own_mean: the normalisation that the teacher was trained with; the same by default.
        own_deviation: likewise.
        image: side of the images that the teacher takes; those given, by default.
    """

    factor: Tensor
    addend: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
        own_mean: Sequence[float] | None = None,
        own_deviation: Sequence[float] | None = None,
        image: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.image = image
        given, spread, wanted, own_spread = (
            torch.tensor(tuple(values), dtype=torch.float64)[:, None, None]
            for values in (mean, deviation, own_mean or mean, own_deviation or deviation)
        )
        self.same = torch.equal(given, wanted) and torch.equal(spread, own_spread)
        # What is given, x = (pixel - given) / spread, becomes (pixel - wanted) / own spread.
        self.register_buffer("factor", (spread / own_spread).float(), persistent=False)
        self.register_buffer("addend", ((given - wanted) / own_spread).float(), persistent=False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, classes)`` of normalised images ``(B, C, H, W)``."""
        if not self.same:
            images = images * self.factor + self.addend
        if self.image not in (None, images.shape[-1]):
            size = (self.image, self.image)
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        return self.network(images)


def check(taught: Tensor, classes: int) -> None:
    """Refuse a teacher of other classes.

    Raises:
        InvalidOption: says how many it has.
    """
    if taught.dim() != 2 or taught.shape[1] != classes:
        raise InvalidOption(
            f"the teacher answers {list(taught.shape[1:])} numbers an image, the network has "
            f"{classes} classes; give a teacher of the same classes"
        )
