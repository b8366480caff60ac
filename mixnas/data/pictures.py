"""Images that are decoded when they are needed: files, or a data set's own items."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from mixnas.data.augment import seeded
from mixnas.data.preprocessing import as_rgb, evaluation_transform
from mixnas.data.splits import Indices, key_number
from mixnas.errors import DataError

WHOLE_IMAGE_BELOW: Final = 128  # small images are not cropped for evaluation


class Album(Protocol):
    """Opens image number i."""

    def open(self, index: int) -> Image.Image:
        """Open an image; decoding may wait."""

    def name(self, index: int) -> str:
        """Say which image it is, for a user to find it."""

    def identity(self) -> str:
        """Say what identifies the content."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of any size and mode, brought to RGB and to the training side by timm's transforms.

    Attributes:
        album: opens an image by its index.
        targets: class of every image, shape (N,); the set's own test images last.
        labels: class names.
        side: typical shorter side in pixels.
        own_test: how many images at the end are the set's own test set.
    """

    album: Album = field(repr=False)
    targets: Indices = field(repr=False)
    labels: tuple[str, ...]
    side: int
    own_test: int = 0
    heavy: bool = True
    flip: bool = True
    grey: bool = False

    def crop(self, side: int) -> float:
        """Share of the shorter side that evaluation keeps: all of a small image."""
        return 1.0 if side < WHOLE_IMAGE_BELOW else 0.875

    def identity(self) -> str:
        """Hash the album's identity and the labels."""
        digest = hashlib.sha256(self.album.identity().encode())
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()

    def clean(self, indices: Indices, side: int) -> Tensor:
        """Resize and crop centrally: uint8, shape (B, 3, side, side)."""
        transform = evaluation_transform(side, self.crop(side))
        return torch.stack([transform(self.picture(int(index))) for index in indices])

    def varied(self, indices: Indices, side: int, *key: int) -> Tensor:
        """Crop, mirror and jitter colours at random, each image by the key and its own index.

        Weak on purpose: a supernet learns better from weak augmentation (NASViT, section 3).
        """
        transform, images = _training_transform(side), []
        for index in indices:
            image = self.picture(int(index))
            with seeded(key_number(*key, int(index))):
                images.append(transform(image))
        return torch.stack(images)

    def moments(self, indices: Indices, side: int) -> tuple[list[float], list[float]]:
        """ImageNet's mean and standard deviation, whatever the images."""
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)

    def picture(self, index: int) -> Image.Image:
        """Decode an image and bring it to RGB, in full size.

        Raises:
            DataError: it is gone or cannot be decoded.
        """
        try:
            with self.album.open(index) as image:
                return as_rgb(image)
        except FileNotFoundError as error:
            raise DataError(_gone(error.filename or self.album.name(index))) from error
        except Exception as error:  # decoders raise anything on a broken file
            raise DataError(
                f"image {self.album.name(index)!r} cannot be decoded ({one_line(error)}); "
                "put a sound copy in its place, then repeat the command: it goes on"
            ) from error


def one_line(error: BaseException) -> str:
    """Shorten an exception to the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


def _gone(name: str | bytes) -> str:
    """Name the image that is missing, or the folder with which it vanished."""
    missing = Path(os.fsdecode(name))
    what = f"image {str(missing)!r}"
    while not missing.parent.exists():
        missing = missing.parent
        what = f"folder {str(missing)!r}"
    return f"{what} is gone; put it back, then repeat the command: it goes on"


def _training_transform(side: int) -> Callable[[Image.Image], Tensor]:
    options: dict[str, Any] = {"scale": (0.35, 1.0), "hflip": 0.5, "color_jitter": 0.2}
    return create_transform(
        (3, side, side), is_training=True, interpolation="bicubic", normalize=False, **options
    )
