"""How fast an export is beside eager PyTorch, on this machine's CPU."""

from typing import Any

import torch
from torch import nn

from mixnas.errors import TooNoisy
from mixnas.timing.conditions import Conditions
from mixnas.timing.stopwatch import Stopwatch

ROUNDS = {1: 30, 32: 7}
"""Runs that count at each batch."""


def timed(
    exported: nn.Module,
    eager: nn.Module,
    image: int,
    rounds: dict[int, int] | None = None,
    *,
    patience: float = 10.0,
) -> dict[str, dict[str, Any]]:
    """Time an exported network and its source in turn, so that they share the noise.

    Both compute on as many threads as torch has now, in float32.

    Args:
        exported: as `Form.load` gives it.
        eager: the network that was exported, in PyTorch.
        image: side of the images in pixels.
        rounds: runs that count by batch, `ROUNDS` by default.
        patience: seconds that the stopwatch may take for one of them.

    Returns:
        By batch: ``exported`` and ``eager``, each milliseconds of one batch (``lower`` quartile,
        ``median``, ``upper`` quartile, ``reference`` of the stopwatch's own network, and more).
        A batch is left out where the machine was too busy for a true time.
    """
    found: dict[str, dict[str, Any]] = {}
    for batch, count in (ROUNDS if rounds is None else rounds).items():
        conditions = Conditions.of("cpu", threads=torch.get_num_threads(), batch=batch)
        watch = Stopwatch(conditions, patience=patience)
        try:
            first, second = watch.interleave([exported, eager], (3, image, image), rounds=count)
        except TooNoisy:
            continue
        found[str(batch)] = {"exported": first.to_dict(), "eager": second.to_dict()}
    return found
