"""How fast an export is beside eager PyTorch, on this machine's CPU."""

from typing import Any

import torch
from torch import nn

from mixnas.cost.latency import Stopwatch

ROUNDS = {1: 30, 32: 7}
"""Runs that count at each batch."""


def timed(
    exported: nn.Module, eager: nn.Module, image: int, rounds: dict[int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Time an exported network and its source in turn, so that they share the noise.

    Both compute on as many threads as torch has now, in float32.

    Args:
        exported: as `Form.load` gives it.
        eager: the network that was exported, in PyTorch.
        image: side of the images in pixels.
        rounds: runs that count by batch, `ROUNDS` by default.

    Returns:
        By batch: ``exported`` and ``eager``, each milliseconds of one batch (``lower`` quartile,
        ``median``, ``upper`` quartile, and ``reference`` of the stopwatch's own network).
    """
    found: dict[str, dict[str, Any]] = {}
    for batch, count in (ROUNDS if rounds is None else rounds).items():
        watch = Stopwatch(threads=torch.get_num_threads(), batch=batch, warmup=2)
        first, second = watch.interleave([exported, eager], (3, image, image), rounds=count)
        found[str(batch)] = {"exported": first, "eager": second}
    return found
