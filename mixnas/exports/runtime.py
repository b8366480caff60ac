"""What the forms share: packages that may be missing, and exporters that chatter."""

import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from mixnas.errors import ExportMismatch, InvalidOption
from mixnas.model import Model

BATCH = torch.export.Dim("batch", min=1)
"""The number of images, left open in every graph."""


def needed(package: str, what: str) -> Any:
    """Import a package that only ``mixnas[export]`` installs.

    Raises:
        InvalidOption: if it is not there.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InvalidOption(
            f"{what}: package '{package}' is not installed; run: pip install 'mixnas[export]'"
        ) from None


@contextmanager
def hushed() -> Iterator[None]:
    """Keep warnings, prints and log lines of an exporter from the user; errors still rise."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def sample(model: Model, images: int = 2) -> Tensor:
    """Return zeros of the network's input: two images, since a graph of one would stay at one."""
    return torch.zeros(images, 3, model.image, model.image)


@contextmanager
def traced(
    network: nn.Module, name: str, form: str, cure: str = "choose another form"
) -> Iterator[None]:
    """Name the network and the operator that a graph cannot hold, whatever the exporter raises.

    Args:
        network: to be traced.
        name: its name, for the message.
        form: the graph's, for the message.
        cure: what the user can do.

    Raises:
        ExportMismatch: if the block fails.
    """
    if network.training:
        raise InvalidOption(f"{form}: the network is in training mode; export network.eval()")
    try:
        with torch.no_grad(), hushed():
            yield
    except Exception as error:  # exporters raise whatever their passes do
        raise ExportMismatch(
            f"{form}: {name} cannot be written as such a graph ({culprit(error)}); {cure}"
        ) from error


def culprit(error: BaseException) -> str:
    """Return the operator that the innermost cause names, or its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"(?:aten|torchvision|prims)(?:::|\.)\w+(?:\.\w+)?", str(error))
    if operator is not None:
        return f"operator {operator.group()}"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
