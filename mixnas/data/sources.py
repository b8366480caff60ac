"""What a source of images offers, and the rules that all sources share."""

import math
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from mixnas.data.splits import Indices
from mixnas.errors import DataError

KNOWN: Final = (
    "digits, a folder of class folders, a folder of IDX files, "
    "or a timm name (hfds/..., wds/..., torch/..., tfds/...)"
)
LEAST_SIDE: Final = 16


class Source(Protocol):
    """Labelled images, addressed by index; the set's own test images, if any, come last."""

    @property
    def targets(self) -> Indices:
        """Class of every image, shape (N,), int64."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; a target is a position in them."""

    @property
    def own_test(self) -> int:
        """How many images at the end are the set's own test set."""

    @property
    def side(self) -> int:
        """Typical shorter side of the stored images, in pixels."""

    @property
    def heavy(self) -> bool:
        """Whether a batch costs enough (files to decode) to be worth worker processes."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image keeps its class."""

    @property
    def grey(self) -> bool:
        """Whether the images have one channel."""

    def crop(self, side: int) -> float | None:
        """Share of the shorter side that `clean` keeps at that side; None: it cuts nothing off."""

    def identity(self) -> str:
        """Hash of the content, or of file names and sizes: another set has another one."""

    def clean(self, indices: Indices, side: int) -> Tensor:
        """Images without augmentation, uint8 of shape (B, C, side, side), C 1 or 3."""

    def picture(self, index: int) -> Image.Image:
        """One image in RGB, of the size that it is stored in."""

    def varied(self, indices: Indices, side: int, *key: int) -> Tensor:
        """Like `clean` but augmented; a pure function of the arguments."""

    def moments(self, indices: Indices, side: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, pixels in [0, 1], over those images."""


def training_side(side: int, asked: int | None) -> int:
    """Choose the side of training images: what is asked, else fitted to the stored images.

    Fitted means the typical shorter side, rounded up to a multiple of 32, from 32 to 224.

    Raises:
        DataError: the side asked for is no integer from 16 on.
    """
    if asked is None:
        return min(224, max(32, math.ceil(side / 32) * 32))
    if asked < LEAST_SIDE:
        raise DataError(
            f"images of {asked} pixels are too small; give a side of at least {LEAST_SIDE}"
        )
    return asked


def renumber(
    train: Indices, test: Indices, names: Sequence[str], where: str
) -> tuple[Indices, tuple[str, ...]]:
    """Map raw labels to 0, 1, ... in their order and give each its name.

    Returns:
        Targets of train and test images joined, and class names; a raw label beyond `names`
        is its own name.

    Raises:
        DataError: a label is negative, or a test image's label stands in no training image.
    """
    for part, kind in ((train, "training"), (test, "test")):
        if lacking := int((part < 0).sum()):
            raise DataError(
                f"data {where!r}: {lacking} {kind} images have the label {int(part.min())}, which "
                "stands for no class (labels kept secret?); give a set whose labels are known"
            )
    values = np.unique(train)
    strange = np.setdiff1d(test, values)
    if strange.size:
        raise DataError(
            f"data {where!r}: the test images hold class {_name(names, int(strange[0]))!r}, which "
            "no training image has; remove it there or add it to the training images"
        )
    targets = np.searchsorted(values, np.concatenate([train, test])).astype(np.int64)
    return targets, tuple(_name(names, int(value)) for value in values)


def _name(names: Sequence[str], value: int) -> str:
    return names[value] if 0 <= value < len(names) else str(value)
