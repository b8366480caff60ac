"""Parts and networks as ONNX graphs on disk, written by several processes before they are timed.

Writing a graph takes seconds and timing it far less, so graphs are written first, by as many
processes as there are cores, and nothing computes beside the stopwatch.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from mixnas import storage
from mixnas.arch import Architecture
from mixnas.cost.tablerows import label
from mixnas.exports.placed import Written, graph
from mixnas.jobs.settings import cores
from mixnas.network import Part, build
from mixnas.space import SearchSpace

Item = Part | Architecture


class Graphs:
    """A folder of graphs, and the processes that write them; a context that ends these.

    Args:
        folder: where the graphs stand; those that are there are taken as they are.
        space: says image and classes of whole networks.
        processes: that write at once; the cores by default.
    """

    def __init__(self, folder: Path, space: SearchSpace, processes: int | None = None) -> None:
        self.folder = folder
        self.space = space
        self._pool = ProcessPoolExecutor(
            processes or cores(), mp_context=get_context("spawn"), initializer=_alone
        )

    def write(self, items: Iterable[Item]) -> None:
        """Write the graphs that are not there yet.

        Raises:
            ExportMismatch: if an operator has no ONNX form; it is named.
            StorageFull: if the disk is full.
        """
        wanted = {self.path(item): item for item in items}
        waiting = {path: item for path, item in wanted.items() if not path.is_file()}
        sizes = [(self.space.image, self.space.classes)] * len(waiting)
        list(self._pool.map(_write, waiting, waiting.values(), sizes))

    def module(self, item: Item) -> Written:
        """Return what stands for a part or a network that has been written."""
        return Written(self.path(item))

    def path(self, item: Item) -> Path:
        """Return where a graph stands."""
        if isinstance(item, Architecture):
            return self.folder / f"{item.id}.onnx"
        digest = hashlib.sha256(repr(item).encode()).hexdigest()[:12]
        return self.folder / f"{label(item)}-{digest}.onnx"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=error is None, cancel_futures=True)


def _alone() -> None:
    """Keep a writing process to one core."""
    torch.set_num_threads(1)


def _write(path: Path, item: Item, sizes: tuple[int, int]) -> None:
    image, classes = sizes
    module: nn.Module
    if isinstance(item, Architecture):
        module, shape = build(item, classes), (3, image, image)
    else:
        module, shape = item.build(), item.shape
    storage.write(path, graph(module.eval(), shape, path.stem).SerializeToString())
