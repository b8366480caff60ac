"""``.pt2``: the graph of torch.export, run by PyTorch without mixnas's code."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixnas import storage
from mixnas.errors import InvalidCheckpoint
from mixnas.exports import archive
from mixnas.exports.forms import Exported
from mixnas.exports.onnx_model import described
from mixnas.exports.runtime import BATCH, hushed, sample, traced
from mixnas.model import Model


class Program(nn.Module):
    """An exported program as a module in evaluation mode for good.

    Args:
        graph: the program's own module, which refuses ``eval()``.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = (graph.requires_grad_(False),)  # out of reach of eval() and to()

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 3, S, S)`` to logits ``(B, classes)``."""
        return self.graph[0](images.contiguous())


class Pt2:
    """A torch.export archive with an open batch, weights inside, and a description beside them."""

    name = "pt2"
    place = "model.pt2"

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write the archive.

        Raises:
            ExportMismatch: if torch.export cannot trace the network, or its graph holds what
                `load` would refuse.
        """
        example = sample(model)
        with traced(network, model.name, "pt2"):
            program = torch.export.export(network, (example,), dynamic_shapes=({0: BATCH},))
            plain(program)
            # One number that poses as the example images: they need not be shipped.
            program.example_inputs = ((torch.zeros(()).expand(example.shape),), {})
            buffer = io.BytesIO()
            extra = {archive.DESCRIPTION: json.dumps(model.to_dict())}
            extra[archive.FACTS] = json.dumps(dict(facts))
            torch.export.save(program, buffer, extra_files=extra)
            archive.vetted(io.BytesIO(buffer.getvalue()), str(path))
        storage.write(path, buffer.getvalue())

    def holds(self, path: Path) -> bool:
        """Say whether it is a file named ``.pt2``."""
        return path.is_file() and path.suffix == ".pt2"

    def load(self, path: Path) -> Exported:
        """Vet the archive, then read the program; nothing foreign is unpickled or evaluated.

        Raises:
            InvalidCheckpoint: if the file is broken, not mixnas's, or could run code.
        """
        try:
            with path.open("rb") as file:
                entries = archive.vetted(file, str(path))
        except OSError as error:
            raise InvalidCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
        model = described(entries.get(archive.EXTRA + archive.DESCRIPTION, b"").decode(), path)
        try:
            with hushed():
                program = torch.export.load(io.BytesIO(archive.packed(entries)))
                network = Program(program.module())
        except Exception as error:  # torch's loader has no error class of its own
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise InvalidCheckpoint(
                f"{path}: torch {torch.__version__} cannot load it ({type(error).__name__}: "
                f"{first}); export it again with this version"
            ) from None
        check_shapes(network, model, path)
        return Exported(model, network)


def check_shapes(network: nn.Module, model: Model, path: Path) -> None:
    """Run one image of zeros, which a program of another network would refuse.

    Raises:
        InvalidCheckpoint: if it does not give one logit a class.
    """
    try:
        with torch.no_grad(), hushed():
            shape = tuple(network(sample(model, 1)).shape)
    except Exception as error:  # a graph may raise anything
        shape = (f"{type(error).__name__}",)
    if shape != (1, len(model.labels)):
        raise InvalidCheckpoint(
            f"{path}: its graph does not map 3 x {model.image} x {model.image} to "
            f"{len(model.labels)} classes as its description says ({shape}); export it again"
        )


def plain(program: torch.export.ExportedProgram) -> None:
    """Drop what tells of the machine that wrote it, and guards, which would be evaluated."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    if hasattr(program, "_guards_code"):
        program._guards_code = []


PT2 = Pt2()
"""``mixnas export --to pt2``."""
