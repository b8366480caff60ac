"""Small images held in memory: the embedded digits, IDX files, torchvision's small sets."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from mixnas.data.augment import SHIFT, shifted
from mixnas.data.preprocessing import squeezed
from mixnas.data.splits import Indices, generator

MOMENTS_FROM: Final = 4096
MOMENTS_AT_ONCE: Final = 256
MOMENTS_SIDE: Final = 256
"""The largest side at which so many images are read at once; at larger ones, as many pixels."""


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

    @property
    def grey(self) -> bool:
        """Whether the images have one channel."""
        return self.pixels.shape[1] == 1

    def crop(self, _side: int) -> None:
        """Nothing is cut off: the whole image is squeezed into the square."""

    def identity(self) -> str:
        """Hash every pixel and label."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()

    def clean(self, indices: Indices, side: int) -> Tensor:
        """Pick images and resize them, bicubically: uint8, shape (B, C, side, side)."""
        return squeezed(self.pixels[torch.from_numpy(indices)], side)

    def picture(self, index: int) -> Image.Image:
        """Return an image as it is stored, in RGB."""
        pixels = self.pixels[index].expand(3, -1, -1).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy())

    def varied(self, indices: Indices, side: int, *key: int) -> Tensor:
        """Shift each image by up to an eighth of its side on black; mirror half if `flip`.

        The shifts are drawn for the batch as a whole, by the key and its first index.
        """
        images = self.clean(indices, side)
        rng = generator("shift", *key, int(indices[0]))
        if self.flip:
            mirrored = torch.from_numpy(rng.random(len(images)) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        corners = rng.integers(0, 2 * (side // SHIFT) + 1, size=(2, len(images), 1))
        return shifted(images, torch.from_numpy(corners))

    def moments(self, indices: Indices, side: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over at most 4,096 of the images."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        sample = indices[:MOMENTS_FROM]
        at_once = max(1, MOMENTS_AT_ONCE * MOMENTS_SIDE**2 // max(side, MOMENTS_SIDE) ** 2)
        for start in range(0, len(sample), at_once):
            pixels = self.clean(sample[start : start + at_once], side).double() / 255
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
