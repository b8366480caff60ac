"""Curves for TensorBoard, if one asks for them."""

from importlib import import_module
from pathlib import Path
from typing import Protocol

from mixnas.errors import InvalidOption


class Curves(Protocol):
    """Takes figures, step by step."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take a figure."""


def curves(folder: Path) -> Curves:
    """Return a writer of event files in a folder.

    Raises:
        InvalidOption: if the package that writes them is not installed.
    """
    try:
        writer: Curves = import_module("tensorboardX").SummaryWriter(str(folder))
    except ImportError:
        raise InvalidOption(
            "--tensorboard needs a package that is missing: pip install tensorboardX"
        ) from None
    return writer
