"""`Augmentation`: what a stand-alone training does to its images, each by a number of its own."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mixnas.data.sources import Source
from mixnas.data.splits import Indices, generator, key_number
from mixnas.errors import InvalidOption, did_you_mean

SHIFT: Final = 8  # images are shifted by up to a SHIFT-th of their side
INTERPOLATIONS: Final = ("bicubic", "bilinear", "random")
WHOLE: Final = (1.0, 1.0)


@dataclass(frozen=True)
class Augmentation:
    """How training images vary; timm's transforms, in timm's order. The default varies nothing.

    Attributes:
        shift: move the image by up to an eighth of its side, on black.
        randaugment: timm's words for RandAugment (Cubuk et al. 2020): "rand-m9-mstd0.5-inc1".
        scale: least and greatest share of the area that a random crop keeps, or None: no crop.
        ratio: least and greatest width by height of that crop; None is 3/4 to 4/3.
        hflip: chance of a mirrored image; None is the set's own rule (a digit is never mirrored).
        color_jitter: greatest change of brightness, contrast and saturation. RandAugment, which
            has such changes of its own, leaves it out, as in timm.
        erasing: chance that a rectangle becomes noise (Zhong et al. 2020), after normalisation.
        interpolation: of the crop and of RandAugment: "bicubic", "bilinear" or "random".
        repeats: how often each drawn image stands in a row, differently augmented (repeated
            augmentation: Hoffer et al. 2020). An epoch is as long as without, of fewer images.

    Raises:
        InvalidOption: if a value is outside what its line says.
    """

    shift: bool = False
    randaugment: str | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    hflip: float | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    interpolation: str = "bicubic"
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("hflip", "erasing"):
            value = getattr(self, name)
            _need(value is None or 0 <= value <= 1, name, value, "a chance from 0 to 1")
        for name, most in (("scale", 1.0), ("ratio", float("inf"))):
            value = getattr(self, name)
            ordered = value is None or (len(value) == 2 and 0 < value[0] <= value[1] <= most)
            _need(ordered, name, value, "a least and a greatest share above 0, a scale up to 1")
        _need(self.color_jitter >= 0, "color_jitter", self.color_jitter, "0 or more")
        known = self.interpolation in INTERPOLATIONS
        _need(known, "interpolation", self.interpolation, f"one of {', '.join(INTERPOLATIONS)}")
        _need(
            self.repeats in range(1, 101), "repeats", self.repeats, "a whole number from 1 to 100"
        )
        readable = self.randaugment is None or _is_randaugment(self.randaugment)
        _need(readable, "randaugment", self.randaugment, "words of timm: rand-m9-mstd0.5-inc1")

    def transform(
        self, side: int, mean: Sequence[float], flip: bool
    ) -> Callable[[Image.Image], Tensor] | None:
        """Return what turns a picture into uint8 ``(3, side, side)``; None if nothing does.

        It draws from the global generators: call it inside `seeded`. Without a crop it expects
        pictures of that side.

        Args:
            side: of the result in pixels.
            mean: of the set; what RandAugment moves out of the picture leaves this colour.
            flip: the set's own rule on mirrored images.
        """
        mirrored = (0.5 if flip else 0.0) if self.hflip is None else self.hflip
        if not (self.randaugment or self.scale or mirrored or self.color_jitter):
            return None
        transform = create_transform(
            (3, side, side),
            is_training=True,
            scale=self.scale or WHOLE,
            ratio=self.ratio if self.scale else WHOLE,
            hflip=mirrored,
            color_jitter=self.color_jitter or None,
            auto_augment=self.randaugment,
            interpolation=self.interpolation,
            mean=tuple(mean) * (3 // len(mean)),
            normalize=False,
        )
        _keep_a_bit(transform.transforms)
        return cast(Callable[[Image.Image], Tensor], transform)

    def erased(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Erase a rectangle of some images, in place.

        Args:
            images: normalised, shape (B, 3, S, S).
            numbers: of each image; the same number erases the same.
        """
        erase = RandomErasing(self.erasing, mode="pixel", device="cpu")
        for image, number in zip(images, numbers, strict=True) if self.erasing else ():
            with seeded(key_number("erasing", number)):
                erase(image)
        return images

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Augmentation":
        """Read what `to_dict` wrote; what is left out has its default.

        Raises:
            InvalidOption: if a name is unknown or a value makes no sense.
        """
        known = [field.name for field in fields(cls)]
        if strange := next((name for name in data if name not in known), None):
            raise InvalidOption(f"augmentation: no {strange!r}; {did_you_mean(strange, known)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidOption(f"augmentation {dict(data)}: {error}; give numbers") from None


def _keep_a_bit(transforms: Sequence[Any]) -> None:
    """Let RandAugment's posterising leave one bit: timm asks for none, which Pillow 13 refuses."""
    for step in transforms:
        for operation in getattr(step, "ops", ()):
            if getattr(operation, "name", "").startswith("Posterize"):
                operation.level_fn = partial(_bits, operation.level_fn)


def _bits(level: Callable[..., tuple[int]], *given: Any) -> tuple[int]:
    return (max(1, level(*given)[0]),)


def augmented(
    source: Source,
    indices: Indices,
    numbers: Sequence[int],
    side: int,
    augmentation: Augmentation,
    mean: Sequence[float],
) -> Tensor:
    """Return augmented images, each a function of its index and its number alone.

    Args:
        source: where the images are.
        indices: of the images, shape (B,).
        numbers: B integers; an index with another number becomes another image.
        side: of the result in pixels.
        augmentation: what is done; erasing and repeats are others' work.
        mean: of the set, per channel.

    Returns:
        uint8, shape (B, C, side, side), C as of the source.

    Raises:
        DataError: an image cannot be decoded.
    """
    transform = augmentation.transform(side, mean, source.flip)
    if transform is None:
        images = source.clean(indices, side)
    else:
        kept, whole = slice(0, 1 if source.grey else 3), augmentation.scale is None
        made = []
        for index, number in zip(indices, numbers, strict=True):
            picture = _square(source, int(index), side) if whole else source.picture(int(index))
            with seeded(number):
                made.append(transform(picture)[kept])
        images = torch.stack(made)
    if not augmentation.shift:
        return images
    draws = [generator("shift", n).integers(0, 2 * (side // SHIFT) + 1, size=2) for n in numbers]
    return shifted(images, torch.from_numpy(np.stack(draws, axis=1)[:, :, None]))


def shifted(images: Tensor, corners: Tensor) -> Tensor:
    """Pad with black by an eighth of the side and cut out as much as there was.

    Args:
        images: shape (B, C, S, S).
        corners: first row and column kept of each padded image, shape (2, B, 1).
    """
    batch, side = images.shape[0], images.shape[-1]
    padded = F.pad(images, (side // SHIFT,) * 4)
    rows, columns = corners + torch.arange(side)
    each = torch.arange(batch)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Seed the generators that timm's transforms draw from; put all three back afterwards.

    `torch.manual_seed` would also reseed a GPU on which a network may be training.
    """
    python, array, tensor = random.getstate(), np.random.get_state(), torch.default_generator
    state = tensor.get_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    tensor.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        tensor.set_state(state)


def _square(source: Source, index: int, side: int) -> Image.Image:
    pixels = source.clean(np.array([index]), side)[0]
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _is_randaugment(words: str) -> bool:
    try:
        # Some of timm's releases write into their defaults where they get none.
        rand_augment_transform(words, {"translate_const": 1})
    except (AssertionError, KeyError, TypeError, ValueError):
        return False
    return True


def _need(allowed: bool, name: str, value: Any, what: str) -> None:
    if not allowed:
        raise InvalidOption(f"augmentation: {name} {value!r} is not allowed; give {what}")
