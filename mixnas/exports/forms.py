"""`Form`: a way to ship a trained classifier; `Exported`: one that was read back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from mixnas.model import Model


@dataclass(frozen=True)
class Exported:
    """A classifier read back from a file of some form.

    Attributes:
        model: its description.
        network: maps normalised float32 images ``(B, 3, S, S)``, any B of at least 1, to logits
            ``(B, classes)``, in the form's own runtime on the CPU.
    """

    model: Model
    network: nn.Module


class Form(Protocol):
    """A way to ship a classifier, and to read it back.

    Attributes:
        name: what the command line calls it (``"onnx"``).
        place: where it stands in an export folder: a file (``"model.onnx"``) or a folder
            (``"hf"``).
    """

    name: str
    place: str

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write the classifier.

        Args:
            path: the file or folder to make; nothing is there yet, its parent is.
            network: in evaluation mode, float32, on the CPU, folded where `model` says so.
            model: its description.
            facts: plain data about it: FLOPs, parameters, accuracy, run, data, recipe.

        Raises:
            ExportMismatch: if the form cannot hold this network; what stands in the way is named.
            InvalidOption: if a package that the form needs is not installed.
        """
        ...

    def holds(self, path: Path) -> bool:
        """Say whether the file or folder looks like this form, by its name and its beginning."""
        ...

    def load(self, path: Path) -> Exported:
        """Read what `write` wrote, running and unpickling nothing that stands in it.

        Raises:
            InvalidCheckpoint: if it is broken, cut short, or not mixnas's.
            InvalidOption: if a package that the form needs is not installed.
        """
        ...
