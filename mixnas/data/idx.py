"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the elements in row-major order.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mixnas.data.arrays import Arrays
from mixnas.data.sources import renumber
from mixnas.data.splits import Indices
from mixnas.errors import DataError

UNSIGNED_BYTE: Final = 8
TEST_PREFIXES: Final = ("t10k", "test")
NAMES_FILE: Final = "labels.txt"


def holds_idx(folder: Path) -> bool:
    """Say whether a folder holds files named like IDX files."""
    return any("idx" in path.name and "-ubyte" in path.name for path in folder.iterdir())


def read_folder(folder: Path) -> Arrays:
    """Read train-{images,labels} and, where they exist, t10k- or test-{images,labels}.

    Class names are the labels' numbers, unless `labels.txt` names label k on its line k.

    Raises:
        DataError: a file is missing, broken, truncated, or does not fit its partner.
    """
    images, numbers = _read_pair(folder, "train")
    for prefix in TEST_PREFIXES:
        if _find(folder, f"{prefix}-images", 3):
            test_images, test_numbers = _read_pair(folder, prefix)
            break
    else:
        test_images, test_numbers = images[:0], numbers[:0]
    if test_images.shape[1:] != images.shape[1:]:
        raise DataError(
            f"data {str(folder)!r}: training images are {_size(images)} pixels and test images "
            f"{_size(test_images)}; both must be of one size"
        )
    names = _read_names(folder, int(numbers.max()))
    targets, labels = renumber(numbers, test_numbers, names, str(folder))
    pixels = torch.from_numpy(np.concatenate([images, test_images]))[:, None]
    return Arrays(pixels, targets, labels, own_test=len(test_numbers))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Raises:
        DataError: the file is unreadable, not IDX, of another shape, or not of the length it says.
    """
    data = _read_bytes(path)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise _broken(path, f"it does not begin like IDX bytes in {dimensions} dimension(s)")
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", dimensions, 4))
    if len(data) - start != math.prod(shape):
        sides = " x ".join(map(str, shape))
        raise _broken(path, f"it promises {sides} bytes and holds {len(data) - start}")
    if not all(shape):
        raise _broken(path, "it holds no images")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _read_pair(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], Indices]:
    images_path = _need(folder, f"{prefix}-images", 3)
    labels_path = _need(folder, f"{prefix}-labels", 1)
    images, numbers = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(numbers):
        raise DataError(
            f"IDX files {str(images_path)!r} and {labels_path.name!r} do not belong together: "
            f"{len(images)} images, {len(numbers)} labels; copy both from one set"
        )
    return images, numbers.astype(np.int64)


def _find(folder: Path, stem: str, dimensions: int) -> Path | None:
    ending = f"idx{dimensions}-ubyte"
    names = (f"{stem}{mark}{ending}{gz}" for gz in ("", ".gz") for mark in "-.")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _need(folder: Path, stem: str, dimensions: int) -> Path:
    path = _find(folder, stem, dimensions)
    if path is None:
        raise DataError(
            f"data {str(folder)!r} holds IDX files but no {stem}-idx{dimensions}-ubyte(.gz); "
            "images and labels are both needed, under MNIST's file names"
        )
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, str(error) or type(error).__name__) from error


def _read_names(folder: Path, largest: int) -> list[str]:
    path = folder / NAMES_FILE
    if not path.is_file():
        return []
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names {str(path)!r} cannot be read as UTF-8: {error}") from error
    if len(names) <= largest:
        raise DataError(
            f"class names {str(path)!r} has {len(names)} names, and labels go up to {largest}; "
            "name label k on line k, the first being label 0, or remove the file"
        )
    return names


def _broken(path: Path, reason: str) -> DataError:
    return DataError(f"IDX file {str(path)!r} is broken or truncated: {reason}; fetch it again")


def _size(images: NDArray[np.uint8]) -> str:
    return f"{images.shape[1]} x {images.shape[2]}"
