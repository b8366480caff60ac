"""Data sets under timm's names: hfds/..., wds/..., torch/..., tfds/... [timm.data]."""

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset

from mixnas.data.arrays import Arrays
from mixnas.data.pictures import Pictures, one_line
from mixnas.data.preprocessing import as_rgb
from mixnas.data.sources import Source, renumber
from mixnas.data.splits import Indices
from mixnas.errors import DataError

# The package that reads each family: (module, what pip installs).
PACKAGES: Final = {
    "hfds": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "torch": ("torchvision", "torchvision"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}
TEST_SPLITS: Final = ("test", "validation", "val")
MIRRORED: Final = 3  # colour photographs may be mirrored; greyscale sets are characters
MOST_BYTES: Final = 4 * 2**30
LONG_ENOUGH: Final = 256  # shorter side kept of images that are held in memory
PROBES: Final = 32


def is_timm_name(spec: str) -> bool:
    """Say whether a text is a timm data set name."""
    return re.match(rf"({'|'.join(PACKAGES)})/.", spec) is not None


def read_set(spec: str) -> Source:
    """Open a data set by its timm name, `name` or `name@root`.

    The root is where it lies or is downloaded to: for torch/ the folder ~/.cache/mixnas unless
    given, for wds/ the rest of the name, for the others their package's own place.

    Raises:
        DataError: a package is missing, the set cannot be had, or it does not fit in memory.
    """
    family, name, root = _parse(spec)
    _require(spec, family)
    train = _open_training(spec, family, name, root)
    test = _open_test(spec, family, name, root)
    if _is_stream(train):
        return from_streams(spec, train, test)
    return _from_items(spec, train, test)


def _parse(spec: str) -> tuple[str, str, str | None]:
    name, _, root = spec.partition("@")
    family, _, rest = name.partition("/")
    if family == "torch" and rest.lower() in ("folder", "image_folder"):
        raise DataError(f"data {spec!r}: give the folder itself, without {name!r}")
    default = {"torch": str(Path("~/.cache/mixnas").expanduser()), "wds": rest}.get(family)
    return family, name, str(Path(root).expanduser()) if root else default


def _require(spec: str, family: str) -> None:
    module, package = PACKAGES[family]
    if find_spec(module) is None:
        raise DataError(f"data {spec!r} needs a package that is missing: pip install {package}")


def _open(family: str, name: str, root: str | None, split: str, download: bool) -> Any:
    extra = {"download": True} if download and family in ("torch", "tfds") else {}
    return create_dataset(name, root=root, split=split, search_split=False, **extra)


def _open_training(spec: str, family: str, name: str, root: str | None) -> Any:
    """Open what is there; fetch it only if that fails (a fetch may refuse what is there)."""
    try:
        try:
            return _open(family, name, root, "train", download=family == "tfds")
        except RuntimeError:
            return _open(family, name, root, "train", download=True)
    except Exception as error:  # whatever the set's own package raises
        raise DataError(_unavailable(spec, error)) from error


def _open_test(spec: str, family: str, name: str, root: str | None) -> Any | None:
    """Open the set's own test split, or its validation split; None if it has neither."""
    for split in TEST_SPLITS:
        try:
            found = _open(family, name, root, split, download=False)
            if _is_stream(found) or _numbers(found).min(initial=0) >= 0:  # -1: labels kept secret
                return found
        except OSError as error:  # no network: not the same as no such split
            raise DataError(_unavailable(spec, error)) from error
        except Exception:  # each package has its own way to say that there is no such split
            continue
    return None


def _unavailable(spec: str, error: BaseException) -> str:
    return (
        f"data {spec!r} cannot be had ({one_line(error)}); check its name and the network, give "
        "the place where it lies as NAME@FOLDER, or unpack it into a folder of class folders"
    )


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, torch.utils.data.IterableDataset)


def _numbers(dataset: Any) -> Indices:
    """Raw labels of a listable set, from its index where it has one."""
    if hasattr(dataset, "targets"):
        numbers = np.asarray(dataset.targets, dtype=np.int64)
        return numbers[:, 0] if numbers.ndim == 2 else numbers  # QMNIST keeps eight a image
    if hasattr(dataset, "reader"):
        return np.fromiter(dataset.reader.iter_targets(), dtype=np.int64)
    return np.fromiter((dataset[i][1] for i in range(len(dataset))), dtype=np.int64)


def _class_names(dataset: Any) -> list[str]:
    if hasattr(dataset, "reader"):
        numbered = dict(getattr(dataset.reader, "class_to_idx", None) or {})
        return [str(name) for name in sorted(numbered, key=lambda name: numbered[name])]
    names = getattr(dataset, "classes", ())
    return [str(name) if isinstance(name, str) else str(name[0]) for name in names]


def _from_items(spec: str, train: Any, test: Any | None) -> Source:
    raw = [_numbers(part) if part is not None else np.zeros(0, np.int64) for part in (train, test)]
    targets, labels = renumber(raw[0], raw[1], _class_names(train), spec)
    parts = (train,) if test is None else (train, test)
    if all(hasattr(part, "data") for part in parts):
        pixels = torch.cat([_pixels(part.data) for part in parts])
        flip = pixels.shape[1] == MIRRORED
        return Arrays(pixels, targets, labels, own_test=len(raw[1]), flip=flip)
    items = Items(spec, parts, len(raw[0]))
    probes = np.linspace(0, len(raw[0]) - 1, PROBES).astype(int)
    pictures = Pictures(items, targets, labels, side=0, own_test=len(raw[1]))
    sides = [min(pictures.picture(int(index)).size) for index in probes]
    return replace(pictures, side=int(np.median(sides)))


def _pixels(data: Any) -> torch.Tensor:
    """Bring (N, H, W) or (N, H, W, 3) to (N, C, H, W)."""
    pixels = torch.as_tensor(data)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class Items:
    """The items of a listable set: its training part, then its own test part.

    Attributes:
        spec: the name that the user gave.
        parts: one or two data sets.
        first: length of the first.
    """

    spec: str
    parts: tuple[Any, ...]
    first: int

    def open(self, index: int) -> Image.Image:
        """Open an item's image, past timm's habit of skipping to the next if it is broken."""
        second = index >= self.first
        dataset, index = self.parts[second], index - self.first * second
        if hasattr(dataset, "reader"):
            with dataset.reader[index][0] as file:
                return Image.open(io.BytesIO(file.read()))
        return dataset[index][0]

    def name(self, index: int) -> str:
        """Return the set's name and the item's number."""
        return f"{self.spec} item {index}"

    def identity(self) -> str:
        """Return the name and the lengths; labels are hashed by whoever asks."""
        return f"{self.spec} {[len(part) for part in self.parts]}"


def from_streams(spec: str, train: Any, test: Any | None) -> Source:
    """Read a set that can only be walked through, once, into memory.

    Raises:
        DataError: it cannot be read, or takes more than 4 GiB.
    """
    frames: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    raw: list[Indices] = []
    taken = 0
    for part in (train, () if test is None else test):
        numbers: list[int] = []
        for image, number in _walk(spec, part):
            frames.append(image)
            numbers.append(number)
            taken += image.nbytes
            _check_memory(spec, taken)
        raw.append(np.array(numbers, dtype=np.int64))
    targets, labels = renumber(raw[0], raw[1], _class_names(train), spec)
    side = int(np.median([min(frame.shape[:2]) for frame in frames]))
    return Pictures(Frames(spec, frames), targets, labels, side=side, own_test=len(raw[1]))


def _walk(spec: str, part: Iterable[Any]) -> Iterable[tuple[Any, int]]:
    """Yield images as arrays, shrunk where they are larger than training needs."""
    try:
        for image, number in part:
            scale = LONG_ENOUGH / min(image.size)
            if scale < 1:
                image = image.resize([max(1, round(n * scale)) for n in image.size])
            yield np.asarray(as_rgb(image)), int(number)
    except Exception as error:  # whatever the set's own package raises
        raise DataError(_unavailable(spec, error)) from error


def _check_memory(spec: str, taken: int) -> None:
    if taken > MOST_BYTES:
        raise DataError(
            f"data {spec!r} takes more than {MOST_BYTES / 2**30:.0f} GiB in memory; "
            "unpack it into a folder of class folders and give that"
        )


@dataclass(frozen=True, eq=False)
class Frames:
    """Images held in memory, each of its own size.

    Attributes:
        spec: the name that the user gave.
        frames: uint8 arrays of shape (H, W, 3).
    """

    spec: str
    frames: list[np.ndarray[Any, np.dtype[np.uint8]]]

    def open(self, index: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.frames[index])

    def name(self, index: int) -> str:
        """Return the set's name and the item's number."""
        return f"{self.spec} item {index}"

    def identity(self) -> str:
        """Hash every pixel."""
        digest = hashlib.sha256(self.spec.encode())
        for frame in self.frames:
            digest.update(np.ascontiguousarray(frame).data)
        return digest.hexdigest()
