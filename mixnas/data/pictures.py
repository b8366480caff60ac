"""Images that are decoded when they are needed: files, or a data set's own items."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

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

    def identity(self) -> str:
        """Hash the album's identity and the labels."""
        digest = hashlib.sha256(self.album.identity().encode())
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()

    def clean(self, indices: Indices, side: int) -> Tensor:
        """Resize and crop centrally: uint8, shape (B, 3, side, side)."""
        transform = _evaluation_transform(side)
        return torch.stack([transform(self._decode(int(index))) for index in indices])

    def varied(self, indices: Indices, side: int, *key: int) -> Tensor:
        """Crop, mirror and jitter colours at random, each image by the key and its own index.

        Weak on purpose: a supernet learns better from weak augmentation (NASViT, section 3).
        """
        transform, images = _training_transform(side), []
        for index in indices:
            image = self._decode(int(index))
            with _seeded(key_number(*key, int(index))):
                images.append(transform(image))
        return torch.stack(images)

    def moments(self, indices: Indices, side: int) -> tuple[list[float], list[float]]:
        """ImageNet's mean and standard deviation, whatever the images."""
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)

    def _decode(self, index: int) -> Image.Image:
        try:
            with self.album.open(index) as image:
                return as_rgb(image)
        except Exception as error:  # decoders raise anything on a broken file
            raise DataError(
                f"image {self.album.name(index)!r} cannot be decoded ({one_line(error)}); "
                "replace it or delete it"
            ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB; 16-bit greys are scaled, not clipped."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        depth = 257 if grey.max() > 255 else 1
        image = Image.fromarray(np.clip(grey // depth, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow asks for this detour
    return image.convert("RGB")


def one_line(error: BaseException) -> str:
    """Shorten an exception to the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


def _training_transform(side: int) -> Callable[[Image.Image], Tensor]:
    options: dict[str, Any] = {"scale": (0.35, 1.0), "hflip": 0.5, "color_jitter": 0.2}
    return create_transform(
        (3, side, side), is_training=True, interpolation="bicubic", normalize=False, **options
    )


def _evaluation_transform(side: int) -> Callable[[Image.Image], Tensor]:
    share = 1.0 if side < WHOLE_IMAGE_BELOW else 0.875
    return create_transform(
        (3, side, side), interpolation="bicubic", crop_pct=share, normalize=False
    )


@contextmanager
def _seeded(number: int) -> Iterator[None]:
    """Seed the two generators that timm's transforms draw from; put both back afterwards.

    `torch.manual_seed` would also reseed a GPU on which a network may be training.
    """
    python, torch_state = random.getstate(), torch.default_generator.get_state()
    random.seed(number)
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(python)
        torch.default_generator.set_state(torch_state)
