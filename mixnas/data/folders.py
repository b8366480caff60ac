"""A folder of class folders, alone or as train/ beside val/, validation/ or test/."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Final

import numpy as np
from PIL import Image

from mixnas.data.pictures import Pictures, one_line
from mixnas.data.sources import renumber
from mixnas.errors import DataError

ENDINGS: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
)
TEST_FOLDERS: Final = ("test", "validation", "val", "valid")
READERS: Final = 8  # threads that check files; most of that time is waiting for the disk
BLOCK: Final = 256  # files a thread checks at a time
EDGE: Final = 4096  # bytes at both ends of a file by which it is known again
JPEG_END: Final = b"\xff\xd9"


@dataclass(frozen=True, eq=False)
class Files:
    """Image files, opened by their position in a list.

    Attributes:
        root: the folder that the user named.
        paths: files relative to it.
        marks: of each file, its bytes and a digest of how it begins and ends.
    """

    root: Path
    paths: tuple[str, ...]
    marks: tuple[str, ...]

    def open(self, index: int) -> Image.Image:
        """Open a file; its pixels are decoded later."""
        return Image.open(self.root / self.paths[index])

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.root / self.paths[index])

    def identity(self) -> str:
        """Hash names and marks: quick, and it notices what is added, removed or replaced."""
        listing = "\n".join(f"{p}\t{m}" for p, m in zip(self.paths, self.marks, strict=True))
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def read_folder(root: Path) -> Pictures:
    """Find classes and images, and check every file before any long work.

    A class is a folder, its images lie in it at any depth. With a train/ folder that holds class
    folders, the first of test/, validation/, val/ and valid/ that holds some is the test set.

    Raises:
        DataError: there is no class or only one, a class is empty, or an image is broken.
    """
    training, test = _layout(root)
    found = _find_classes(root, training)
    tested = _find_classes(root, test) if test else {}
    names = sorted(found.keys() | tested.keys())
    numbers = {name: number for number, name in enumerate(names)}
    raw = [
        np.array([numbers[name] for name in part for _ in part[name]], dtype=np.int64)
        for part in (found, tested)
    ]
    targets, labels = renumber(raw[0], raw[1], names, str(root))
    paths = tuple(path for part in (found, tested) for files in part.values() for path in files)
    sides, marks = _check_files(root, paths)
    album = Files(root, paths, tuple(marks))
    return Pictures(album, targets, labels, side=median_low(sides), own_test=len(raw[1]))


def _layout(root: Path) -> tuple[Path, Path | None]:
    training = root / "train"
    test = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not training.is_dir() or not (test or _stands_alone(training)):
        return root, None
    return training, next((folder for folder in test if _has_classes(folder)), None)


def _stands_alone(training: Path) -> bool:
    """Tell a train/ that holds the classes from a class of that name beside others."""
    siblings = (sub for sub in _subfolders(training.parent) if sub != training)
    return _has_classes(training) and not any(_images(sibling) for sibling in siblings)


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(_images(sub) for sub in _subfolders(folder))


def _find_classes(root: Path, folder: Path) -> dict[str, list[str]]:
    """Map each class to its images, relative to root, both sorted."""
    classes = {sub.name: _images(sub) for sub in _subfolders(folder)}
    if not any(classes.values()):
        raise DataError(_nothing_found(folder))
    for name, files in classes.items():
        if not files:
            raise DataError(
                f"class folder {str(folder / name)!r} holds no images; add some "
                f"({_ending_list()}) or remove the folder"
            )
    return {n: [os.path.relpath(f, root) for f in files] for n, files in classes.items()}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _hidden(p.name))


def _images(folder: Path) -> list[str]:
    files = []
    for where, folders, names in os.walk(folder):  # no links: a loop would list images twice
        folders[:] = [name for name in folders if not _hidden(name)]
        files += [
            os.path.join(where, name)
            for name in names
            if os.path.splitext(name)[1].lower() in ENDINGS and not _hidden(name)
        ]
    return sorted(files)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _nothing_found(folder: Path) -> str:
    if not any(folder.iterdir()):
        return f"data {str(folder)!r} is an empty folder; give one with a folder of images a class"
    loose = any(Path(entry).suffix.lower() in ENDINGS for entry in os.listdir(folder))
    what = "images, but no class folders" if loose else "neither class folders nor IDX files"
    return (
        f"data {str(folder)!r} holds {what}; put the images ({_ending_list()}) "
        "into one folder a class, named after it"
    )


def _ending_list() -> str:
    return ", ".join(sorted(ending[1:] for ending in ENDINGS))


def _check_files(root: Path, paths: Sequence[str]) -> tuple[list[int], list[str]]:
    """Check every image; return shorter sides in pixels, and marks."""
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    with ThreadPoolExecutor(READERS) as pool:
        checked = pool.map(lambda block: [_check_file(root / path) for path in block], blocks)
        seen = [fact for facts in checked for fact in facts]
    broken = [
        (path, fault) for path, fault in zip(paths, seen, strict=True) if isinstance(fault, str)
    ]
    if broken:
        path, fault = broken[0]
        count = "a broken image" if len(broken) == 1 else f"{len(broken)} broken images, the first"
        raise DataError(
            f"data {str(root)!r} holds {count}: {str(root / path)!r} ({fault}); "
            "replace it or delete it"
        )
    sound = [fact for fact in seen if not isinstance(fact, str)]
    return [side for side, _ in sound], [mark for _, mark in sound]


def _check_file(path: Path) -> tuple[int, str] | str:
    """Return (shorter side, mark) of a sound image, or what is wrong with it.

    A PNG carries checksums and a complete JPEG its end mark, which spares decoding them all.
    """
    try:
        with Image.open(path) as image:
            side = min(image.size)
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG" or not _ends_like_jpeg(path):
                image.load()
        return side, _mark(path)
    except Exception as error:  # decoders raise anything on a broken file
        return one_line(error).replace(str(path), path.name)


def _mark(path: Path) -> str:
    """Return a file's bytes, and a digest of its first and last `EDGE`."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        edges = file.read(EDGE)
        file.seek(max(0, size - EDGE))
        edges += file.read()
    return f"{size} {hashlib.sha256(edges).hexdigest()[:16]}"


def _ends_like_jpeg(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return JPEG_END in file.read()
