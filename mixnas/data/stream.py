"""The endless training stream: batch number t is a pure function of the seed and t.

A resumed training asks for batch t and gets what the undisturbed one got, with any number of
worker processes.
"""

import itertools
import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixnas.data.sources import Source
from mixnas.data.splits import Indices, generator
from mixnas.errors import DataError


@dataclass(eq=False)
class Steps(Dataset[tuple[Tensor, Tensor] | str]):
    """Training batches by step number: epoch after epoch, each in its own order, none partial.

    Attributes:
        source: where the images are.
        members: indices of the training images.
        side: side of the images in pixels.
        batch: images a batch, at most as many as there are.
        seed: any integer.
    """

    source: Source
    members: Indices
    side: int
    batch: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: Indices = field(init=False)

    @property
    def per_epoch(self) -> int:
        """Return how many whole batches an epoch has."""
        return len(self.members) // self.batch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        """Make a batch: uint8 images and int64 labels, or the text of a `DataError`.

        The text crosses a process boundary on one line, where an exception would gather a
        traceback.
        """
        epoch, number = divmod(step, self.per_epoch)
        chosen = self._ordered(epoch)[number * self.batch : (number + 1) * self.batch]
        try:
            images = self.source.varied(chosen, self.side, self.seed, epoch)
        except DataError as error:
            return str(error)
        return images, torch.from_numpy(self.source.targets[chosen])

    def _ordered(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._order = generator(self.seed, "epoch", epoch).permutation(self.members)
            self._epoch = epoch
        return self._order


def follow(steps: Steps, start: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches from step `start` on, for ever.

    Raises:
        DataError: an image cannot be decoded.
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
) -> Generator[tuple[Tensor, Tensor] | str, None, None]:
    """Let worker processes make whole batches, in order.

    A fork of a process with threads (torch, Ray) may hang; a fork server has none.
    """
    yield from DataLoader(
        steps,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context="forkserver",
        worker_init_fn=_leave_interrupts,
    )


def _leave_interrupts(_worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
