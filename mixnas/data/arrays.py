"""Small images held in memory: the embedded digits, IDX files, torchvision's small sets."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from mixnas.data.splits import Indices, generator

MOMENTS_FROM: Final = 4096
MOMENTS_AT_ONCE: Final = 256
SHIFT: Final = 8  # images are shifted by up to a SHIFT-th of their side


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images as one uint8 tensor, resized to the training side batch by batch.

    Attributes:
        pixels: shape (N, C, H, W), C 1 or 3; the set's own test images last.
        targets: class of every image, shape (N,).
        labels: class names.
        own_test: how many images at the end are the set's own test set.
        flip: whether a mirrored image keeps its class (no digit does).
    """

    pixels: Tensor = field(repr=False)
    targets: Indices = field(repr=False)
    labels: tuple[str, ...]
    own_test: int = 0
    flip: bool = False
    heavy: bool = False

    @property
    def side(self) -> int:
        """Shorter side of the stored images, in pixels."""
        return min(self.pixels.shape[-2:])

    def identity(self) -> str:
        """Hash every pixel and label."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()

    def clean(self, indices: Indices, side: int) -> Tensor:
        """Pick images and resize them, bicubically: uint8, shape (B, C, side, side)."""
        images = self.pixels[torch.from_numpy(indices)]
        if images.shape[-2:] == (side, side):
            return images
        size = (side, side)
        large = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        return large.round_().clamp_(0, 255).to(torch.uint8)

    def varied(self, indices: Indices, side: int, *key: int) -> Tensor:
        """Shift each image by up to an eighth of its side on black; mirror half if `flip`.

        The shifts are drawn for the batch as a whole, by the key and its first index.
        """
        images = self.clean(indices, side)
        rng = generator("shift", *key, int(indices[0]))
        if self.flip:
            mirrored = torch.from_numpy(rng.random(len(images)) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        return _shifted(images, rng)

    def moments(self, indices: Indices, side: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over at most 4,096 of the images."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        sample = indices[:MOMENTS_FROM]
        for start in range(0, len(sample), MOMENTS_AT_ONCE):
            pixels = self.clean(sample[start : start + MOMENTS_AT_ONCE], side).double() / 255
            count += pixels.numel() // pixels.shape[1]
            total = total + pixels.sum((0, 2, 3))
            squares = squares + pixels.square().sum((0, 2, 3))
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-4).sqrt()
        return mean.tolist(), deviation.tolist()


def digits() -> Arrays:
    """Return scikit-learn's embedded digits: 1,797 images of 8 x 8 pixels in 17 greys."""
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = tuple(str(name) for name in bunch.target_names)
    return Arrays(torch.from_numpy(grey)[:, None], bunch.target.astype(np.int64), labels)


def _shifted(images: Tensor, rng: np.random.Generator) -> Tensor:
    batch, side = images.shape[0], images.shape[-1]
    margin = side // SHIFT
    padded = F.pad(images, (margin,) * 4)
    corner = torch.from_numpy(rng.integers(0, 2 * margin + 1, size=(2, batch, 1)))
    rows, columns = corner + torch.arange(side)
    each = torch.arange(batch)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
