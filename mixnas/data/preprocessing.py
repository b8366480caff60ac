"""`Preprocessing`: from any picture to what a network sees, the same in training and in use."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input.

    Attributes:
        image: side of the network's images in pixels.
        mean: of the normalisation, one a channel, or one for all; pixels in [0, 1].
        deviation: of the normalisation, likewise.
        grey: whether the network was trained on grey images: colours are dropped first.
        crop: share of the shorter side that a central square keeps; None squeezes the whole
            picture into the square.
    """

    image: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    grey: bool = False
    crop: float | None = None

    def __call__(self, picture: Image.Image) -> Tensor:
        """Turn a picture of any size and mode into a normalised tensor ``(3, image, image)``."""
        return self.normalised(self.pixels(picture)[None])[0]

    def pixels(self, picture: Image.Image) -> Tensor:
        """Resize and crop: uint8, shape ``(C, image, image)``, C 1 if grey, else 3."""
        picture = as_rgb(picture)
        if self.grey:
            picture = picture.convert("L")
        if self.crop is not None:
            return evaluation_transform(self.image, self.crop)(picture)
        values = torch.from_numpy(np.array(picture))
        values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
        return squeezed(values[None], self.image)[0]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Map uint8 ``(B, C, S, S)``, C 1 or 3, to float32 ``(B, 3, S, S)``."""
        mean, deviation = (
            torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation)
        )
        values = (pixels.float() / 255 - mean) / deviation
        return values.expand(-1, 3, -1, -1).contiguous()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        data = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is not that.
        """
        crop = data["crop"]
        return cls(
            image=int(data["image"]),
            mean=tuple(float(value) for value in data["mean"]),
            deviation=tuple(float(value) for value in data["deviation"]),
            grey=bool(data["grey"]),
            crop=None if crop is None else float(crop),
        )


def squeezed(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images ``(B, C, H, W)`` to a square, bicubically: ``(B, C, side, side)``."""
    if images.shape[-2:] == (side, side):
        return images
    size = (side, side)
    resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def evaluation_transform(side: int, crop: float) -> Any:
    """Return timm's: resize the shorter side, crop the central square; uint8 ``(C, S, S)``."""
    return create_transform(
        (3, side, side), interpolation="bicubic", crop_pct=crop, normalize=False
    )


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB; 16-bit greys are scaled, not clipped."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        depth = 257 if grey.max() > 255 else 1
        image = Image.fromarray(np.clip(grey // depth, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow asks for this detour
    return image.convert("RGB")
