"""`load` resolves what the user wrote; `Data` is what training and evaluation read."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixnas.data import arrays, folders, idx, timm_sets
from mixnas.data.augment import Augmentation
from mixnas.data.preprocessing import Preprocessing
from mixnas.data.sources import KNOWN, Source, training_side
from mixnas.data.splits import NAMES, Indices, SplitName, generator, stratified
from mixnas.data.stream import Steps, follow
from mixnas.errors import DataError, InvalidOption


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled set in four disjoint splits, with the streams that training and scoring need.

    Attributes:
        name: short, safe as part of a folder's name.
        labels: class names.
        image: side of the training images in pixels.
        fingerprint: 16 hex digits over name, labels, splits and content: another set has another.
        mean: of the normalisation, per channel, pixels in [0, 1].
        deviation: of the normalisation, per channel.
    """

    name: str
    labels: tuple[str, ...]
    image: int
    fingerprint: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    _source: Source = field(repr=False)
    _splits: dict[SplitName, Indices] = field(repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Return the number of images in each split."""
        return {name: len(members) for name, members in self._splits.items()}

    def indices(self, split: SplitName) -> tuple[int, ...]:
        """Return a split's image numbers, in the order in which `batches` yields them."""
        return tuple(self._splits[split].tolist())

    @property
    def preprocessing(self) -> Preprocessing:
        """Return what `batches` does to a picture, for pictures from elsewhere."""
        source = self._source
        crop = source.crop(self.image)
        return Preprocessing(self.image, self.mean, self.deviation, source.grey, crop)

    def steps_per_epoch(self, batch: int, splits: Sequence[SplitName] = ("train",)) -> int:
        """Return how many whole batches the training split, or several together, give."""
        return self._steps(batch, 0, splits).per_epoch

    def train(
        self,
        *,
        batch: int,
        seed: int,
        start: int = 0,
        workers: int = 0,
        augmentation: Augmentation | None = None,
        shard: tuple[int, int] = (0, 1),
        splits: Sequence[SplitName] = ("train",),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented training batches from step `start` on, for ever.

        A batch is a pure function of batch size, seed and step, for any number of workers, and
        the parts of all shards are together the batch of one process. Only whole batches; a batch
        larger than the training images is all of them.

        Args:
            batch: images a batch, of all shards together.
            seed: any integer.
            start: first step.
            workers: processes that decode and augment; light work on images in memory needs none.
            augmentation: of a stand-alone training; None is the weak one of a supernet.
            shard: number and count of the processes that share each batch, in contiguous parts.
            splits: where the images are drawn from; any but "test".

        Yields:
            Normalised images, float32 of shape (B, 3, S, S), and labels, int64 of shape (B,).

        Raises:
            DataError: an image is gone or cannot be decoded.
            InvalidOption: the batch does not divide into the shards, or a split is not for
                training.
            WorkerLost: a worker process ended.
        """
        steps = self._steps(batch, seed, splits)
        _check_shard(shard, steps.batch)
        steps = replace(steps, augmentation=augmentation, shard=shard)
        crew = workers if self._is_work(augmentation) else 0
        for images, targets, numbers in follow(steps, start, crew):
            pixels = self._normalised(images)
            yield augmentation.erased(pixels, numbers) if augmentation else pixels, targets

    def batches(
        self,
        split: SplitName,
        *,
        batch: int,
        limit: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split once, without augmentation, in a fixed and mixed order.

        Args:
            split: "train", "rank", "report" or "test".
            batch: images a batch; the last may be smaller.
            limit: stop after that many images.
            shard: number r and count n of the processes that share the split: image r, then every
                n-th, so that each image is one shard's.

        Yields:
            Normalised images, float32 of shape (B, 3, S, S), and labels, int64 of shape (B,).

        Raises:
            DataError: an image is gone or cannot be decoded.
            InvalidOption: there is no such shard.
        """
        _check_shard(shard)
        members = self._splits[split][:limit][shard[0] :: shard[1]]
        for start in range(0, len(members), _positive(batch)):
            chosen = members[start : start + batch]
            targets = torch.from_numpy(self._source.targets[chosen])
            yield self._normalised(self._source.clean(chosen, self.image)), targets

    def calibration(self, *, batches: int, batch: int, seed: int) -> list[Tensor]:
        """Draw training images without augmentation, to re-estimate batch-norm statistics by.

        Without replacement as far as the split goes, then over again.

        Returns:
            Normalised images, float32 of shape (B, 3, S, S), one tensor a batch.
        """
        members = self._splits["train"]
        batch = min(_positive(batch), len(members))
        rounds = -(-batches * batch // len(members))
        drawn = [generator(seed, "calibration", r).permutation(members) for r in range(rounds)]
        chosen = np.concatenate(drawn or [members[:0]])[: batches * batch].reshape(-1, batch)
        return [self._normalised(self._source.clean(part, self.image)) for part in chosen]

    def _steps(self, batch: int, seed: int, splits: Sequence[SplitName]) -> Steps:
        _check_splits(splits)
        members = np.concatenate([self._splits[split] for split in splits])
        batch = min(_positive(batch), len(members))
        return Steps(self._source, members, self.image, batch, seed, self.mean)

    def _is_work(self, augmentation: Augmentation | None) -> bool:
        """Say whether worker processes are worth their start."""
        if self._source.heavy or augmentation is None:
            return self._source.heavy
        return augmentation.transform(self.image, self.mean, self._source.flip) is not None

    def _normalised(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalised(images)


def load(spec: str = "digits", *, seed: int = 0, image: int | None = None) -> Data:
    """Open a data set and split it by (seed, labels).

    Args:
        spec: "digits" (embedded), a folder of class folders, a folder of IDX files, or a timm name
            (hfds/..., wds/..., torch/..., tfds/..., each with @FOLDER where it lies elsewhere).
        seed: of the split; any integer.
        image: side of the training images in pixels; by default the stored images' shorter side
            rounded up to a multiple of 32, from 32 to 224.

    Raises:
        DataError: the set is missing, empty, broken or unfit, or the side is too small.
    """
    training_side(0, image)  # a wrong side is found before the set is read
    source = _resolve(spec)
    side = training_side(source.side, image)
    try:
        splits = stratified(source.targets, source.labels, source.own_test, seed)
    except DataError as error:
        raise DataError(f"data {spec!r}: {error}") from error
    mean, deviation = source.moments(splits["train"], side)
    name = _safe_name(spec)
    fingerprint = _fingerprint(name, source, splits)
    return Data(
        name, source.labels, side, fingerprint, tuple(mean), tuple(deviation), source, splits
    )


def _resolve(spec: str) -> Source:
    if spec == "digits":
        return arrays.digits()
    if timm_sets.is_timm_name(spec):
        return timm_sets.read_set(spec)
    folder = Path(spec).expanduser()
    try:
        _check_folder(spec, folder)
        return idx.read_folder(folder) if idx.holds_idx(folder) else folders.read_folder(folder)
    except OSError as error:
        raise DataError(f"data {spec!r} cannot be read: {error}; check its permissions") from error


def _check_folder(spec: str, folder: Path) -> None:
    if not spec or not folder.exists():
        what = "no such folder" if os.sep in spec else "neither a known name nor a folder"
        raise DataError(f"data {spec!r}: {what}; give {KNOWN}")
    if not folder.is_dir():
        raise DataError(f"data {spec!r} is a file; give a folder: {KNOWN}")


def _safe_name(spec: str) -> str:
    """Turn the last part of a name or path into letters, digits, '.', '_' and '-'."""
    if timm_sets.is_timm_name(spec):
        last = spec.partition("@")[0].rstrip("/").rpartition("/")[2]
    else:
        last = spec if spec == "digits" else Path(spec).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")[:40] or "data"


def _fingerprint(name: str, source: Source, splits: dict[SplitName, Indices]) -> str:
    digest = hashlib.sha256(repr((name, source.labels, source.identity())).encode())
    for split, members in splits.items():
        digest.update(split.encode())
        digest.update(np.ascontiguousarray(members).data)
    return digest.hexdigest()[:16]


def _check_splits(splits: Sequence[SplitName]) -> None:
    allowed = [name for name in NAMES if name != "test"]
    if not splits or len(set(splits)) < len(splits) or not set(splits) <= set(allowed):
        raise InvalidOption(
            f"training on the splits {', '.join(splits) or 'none'} is not allowed; give each of "
            f"{', '.join(allowed)} at most once, and at least one of them"
        )


def _check_shard(shard: tuple[int, int], batch: int = 0) -> None:
    rank, size = shard
    if not 0 <= rank < size:
        raise InvalidOption(f"shard {rank} of {size} is not allowed; give 0 to {size - 1}")
    if batch % size:
        raise InvalidOption(
            f"a batch of {batch} images does not divide into {size} equal parts, one a process; "
            f"give a multiple of {size}, of at most as many images as there are to train on"
        )


def _positive(batch: int) -> int:
    if batch < 1:
        raise InvalidOption(f"batch size {batch} is not allowed; give at least 1")
    return batch
