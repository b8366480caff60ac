"""The endless training stream: batch number t is a pure function of the seed and t.

A resumed training asks for batch t and gets what the undisturbed one got, with any number of
worker processes, and a process of several that share the work gets its part of that very batch.
"""

import itertools
import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixnas.data.augment import Augmentation, augmented
from mixnas.data.sources import Source
from mixnas.data.splits import Indices, generator, key_number
from mixnas.errors import DataError, WorkerLost

Made: TypeAlias = tuple[Tensor, Tensor, tuple[int, ...]]
"""uint8 images ``(B, C, S, S)``, int64 labels ``(B,)``, the number that augments each image."""


@dataclass(eq=False)
class Steps(Dataset[Made | str]):
    """Training batches by step number: epoch after epoch, each in its own order, none partial.

    Attributes:
        source: where the images are.
        members: indices of the training images.
        side: side of the images in pixels.
        batch: images a batch, at most as many as there are.
        seed: any integer.
        mean: of the set, per channel.
        augmentation: of a stand-alone training; None is the weak one of a supernet.
        shard: number and count of the processes that share each batch, in contiguous parts.
    """

    source: Source
    members: Indices
    side: int
    batch: int
    seed: int
    mean: tuple[float, ...] = ()
    augmentation: Augmentation | None = None
    shard: tuple[int, int] = (0, 1)
    _epoch: int = field(default=-1, init=False)
    _order: Indices = field(init=False)

    @property
    def per_epoch(self) -> int:
        """Return how many whole batches an epoch has."""
        return len(self.members) // self.batch

    def __getitem__(self, step: int) -> Made | str:
        """Make this process's part of a batch, or the text of a `DataError`.

        The text crosses a process boundary on one line, where an exception would gather a
        traceback.
        """
        epoch, number = divmod(step, self.per_epoch)
        places = number * self.batch + np.arange(self.batch)
        try:
            chosen, images, numbers = self._made(epoch, places)
        except DataError as error:
            return str(error)
        return images, torch.from_numpy(self.source.targets[chosen]), numbers

    def _made(self, epoch: int, places: Indices) -> tuple[Indices, Tensor, tuple[int, ...]]:
        rank, size = self.shard
        part = slice(rank * self.batch // size, (rank + 1) * self.batch // size)
        if self.augmentation is None:
            chosen = self._ordered(epoch)[places]
            # What a supernet's images become may depend on the whole batch.
            images = self.source.varied(chosen, self.side, self.seed, epoch)
            return chosen[part], images[part], ()
        chosen, numbers = self._numbered(epoch, places[part], self.augmentation.repeats)
        images = augmented(self.source, chosen, numbers, self.side, self.augmentation, self.mean)
        return chosen, images, numbers

    def _numbered(
        self, epoch: int, places: Indices, repeats: int
    ) -> tuple[Indices, tuple[int, ...]]:
        """Return the images at those places of the epoch, and the number that augments each.

        A number is a hash of seed, epoch, image and copy: an image's batch has no part in it.
        """
        chosen = self._ordered(epoch)[places // repeats]
        copies = zip(chosen.tolist(), (places % repeats).tolist(), strict=True)
        return chosen, tuple(key_number(self.seed, epoch, index, copy) for index, copy in copies)

    def _ordered(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._order = generator(self.seed, "epoch", epoch).permutation(self.members)
            self._epoch = epoch
        return self._order


def follow(steps: Steps, start: int, workers: int) -> Iterator[Made]:
    """Yield batches from step `start` on, for ever.

    Raises:
        DataError: an image cannot be decoded.
        WorkerLost: a worker process ended.
    """
    numbers = itertools.count(start)
    made = _by_workers(steps, numbers, workers) if workers else (steps[n] for n in numbers)
    with closing(made):  # ends the workers now, not when a traceback is forgotten
        for result in made:
            if isinstance(result, str):
                raise DataError(result)
            yield result


def _by_workers(
    steps: Steps, numbers: Iterator[int], workers: int
) -> Generator[Made | str, None, None]:
    """Let worker processes make whole batches, in order.

    A fork of a process with threads (torch, Ray) may hang; a fork server has none.
    """
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context="forkserver",
        worker_init_fn=_leave_interrupts,
    )
    try:
        yield from loader
    except (EOFError, OSError, RuntimeError) as error:
        if not _is_loss(error):
            raise
        raise WorkerLost(
            "a process that loads images ended before its work was done, most often for want of "
            "memory; repeat the command, which goes on from its last checkpoint, and where that "
            "does not help give it fewer workers or more memory (/dev/shm counts)"
        ) from error


def _is_loss(error: Exception) -> bool:
    """Tell a lost worker from an error that a living one handed on.

    Torch says so in words alone; a worker that dies while its batch is fetched breaks the pipe.
    """
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return "in DataLoader worker process" not in str(error)


def _leave_interrupts(_worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
