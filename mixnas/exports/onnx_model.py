"""ONNX: one file for ONNX Runtime and whatever else reads the format."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from mixnas import storage
from mixnas.errors import InvalidCheckpoint
from mixnas.exports.forms import Exported
from mixnas.exports.runtime import BATCH, hushed, needed, sample, traced
from mixnas.mixers.aff import AFF
from mixnas.model import Model

OPSET = 18
"""Version of the operators: what PyTorch's exporter writes without converting."""

DEFORMABLE = 20
"""Version for networks with deformable convolutions, which 19 brought."""

FOLDED = 2**31
"""Bytes or numbers of a constant that is computed while the graph is written, at most."""

KEY = "mixnas"
"""Of the metadata, under which the description stands."""

SPECTRAL = "spectral_nodes"
"""Of the metadata, under which the nodes of Fourier filters stand, which int8 would ruin."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Of a node's metadata, under which torch's exporter names the modules that it comes from."""

QUIET = 4
"""ONNX Runtime's level of fatal errors; the others are raised anyway."""


class Session(nn.Module):
    """An ONNX Runtime session as a module.

    Args:
        data: the model's bytes.
        threads: of the session, by default as many as torch has now.

    Raises:
        Exception: whatever ONNX Runtime raises if they are no model.
    """

    def __init__(self, data: bytes, threads: int | None = None) -> None:
        super().__init__()
        runtime = needed("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = QUIET
        # Threads that spin while they wait would slow what else runs: eager PyTorch in a timing.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 3, S, S)`` to logits ``(B, classes)``."""
        feed = {self.session.get_inputs()[0].name: images.float().cpu().contiguous().numpy()}
        return torch.from_numpy(self.session.run(None, feed)[0])

    def shapes(self) -> tuple[list[Any], list[Any]]:
        """Return the shapes of the first input and the first output; open axes are names."""
        return self.session.get_inputs()[0].shape, self.session.get_outputs()[0].shape


class Onnx:
    """An ONNX graph with an open batch, weights inside, and a description in its metadata."""

    name = "onnx"
    place = "model.onnx"

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write the graph by torch's exporter.

        Raises:
            ExportMismatch: if an operator has no ONNX form; it is named.
            InvalidOption: if onnx or onnxscript is not installed.
        """
        graph = graph_of(network, sample(model), model.name, told=metadata(model, facts))
        storage.write(path, graph.SerializeToString())

    def holds(self, path: Path) -> bool:
        """Say whether it is a file named ``.onnx``."""
        return path.is_file() and path.suffix == ".onnx"

    def load(self, path: Path) -> Exported:
        """Start a session of ONNX Runtime.

        Raises:
            InvalidCheckpoint: if the file is broken or not mixnas's.
            InvalidOption: if onnxruntime is not installed.
        """
        needed("onnxruntime", "onnx")
        try:
            with hushed():
                network = Session(path.read_bytes())
        except Exception as error:  # ONNX Runtime's own classes have no common one
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise InvalidCheckpoint(
                f"{path}: no model that ONNX Runtime runs ({type(error).__name__}: {first}); "
                "export it again"
            ) from None
        model = described(network.metadata.get(KEY), path)
        given, returned = network.shapes()
        side, classes = model.image, len(model.labels)
        if given[1:] != [3, side, side] or returned[1:] != [classes]:
            raise InvalidCheckpoint(
                f"{path}: its graph maps {given} to {returned}, its description says 3 x {side} x "
                f"{side} to {classes} classes; export it again"
            )
        return Exported(model, network)


def graph_of(
    network: nn.Module,
    example: Tensor,
    name: str,
    *,
    told: Mapping[str, str] | None = None,
    cure: str = "choose another form",
) -> Any:
    """Write a network, or a part of one, as an ONNX graph with an open batch and weights inside.

    Args:
        network: in evaluation mode, float32, on the CPU.
        example: an input of two images or more, since a graph of one would stay at one.
        name: of the graph, and in errors.
        told: the graph's metadata; `SPECTRAL` is added.
        cure: what the user can do if there is no such graph.

    Returns:
        An ``onnx.ModelProto`` with the input ``images`` and the output ``logits``.

    Raises:
        ExportMismatch: if an operator has no ONNX form; it is named.
        InvalidOption: if onnx or onnxscript is not installed, or the network is in training mode.
    """
    onnx = needed("onnx", "onnx")
    folding = needed("onnxscript.optimizer", "onnx")
    deformable = any(isinstance(module, DeformConv2d) for module in network.modules())
    with traced(network, name, "onnx", cure):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=DEFORMABLE if deformable else OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: BATCH},),
            external_data=False,
            verbose=False,
        )
        # By default only small constants fold; int8 wants every weight as the product has it.
        assert program is not None
        folding.optimize(program.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
        graph = program.model_proto
        nodes = json.dumps(inside(graph, spectral(network)))
        plain(graph)
        onnx.helper.set_model_props(graph, {**(told or {}), SPECTRAL: nodes})
        graph.graph.name = name
        onnx.checker.check_model(graph, full_check=True)
        # Where the open batch fails, torch's exporter falls back to a fixed one.
        if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            raise ValueError("it computes with the number of images as a constant")
    return graph


def metadata(model: Model, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what a graph says about itself, each value text: JSON where it is not one word.

    Keys: ``mixnas`` (`Model.to_dict`, from which the model is read back), ``labels``, ``mean``
    and ``std`` (of the normalisation, pixels in [0, 1]), ``architecture``, and the facts.
    """
    told = {
        KEY: model.to_dict(),
        "labels": list(model.labels),
        "mean": list(model.preprocessing.mean),
        "std": list(model.preprocessing.deviation),
        "architecture": dict(model.source),
    }
    return {key: json.dumps(value) for key, value in {**facts, **told}.items()}


def spectral(network: nn.Module) -> set[str]:
    """Return the names of the modules that filter a spectrum."""
    return {name for name, module in network.named_modules() if isinstance(module, AFF)}


def inside(graph: Any, modules: set[str]) -> list[str]:
    """Return the names of the nodes that come from any of the modules."""
    found = []
    for node in graph.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        if modules.intersection(ast.literal_eval(scopes)):
            found.append(node.name)
    return found


def described(text: str | None, path: Path) -> Model:
    """Read the description that an exported file carries.

    Raises:
        InvalidCheckpoint: if there is none, or it is broken.
    """
    if text is None:
        raise InvalidCheckpoint(f"{path}: not a model of mixnas: its metadata do not say which")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path}: its description cannot be read ({error})") from None
    return Model.from_dict(data, str(path))


def plain(graph: Any) -> None:
    """Drop what tells of the machine that wrote the graph: stack traces, with their paths."""
    for part in (graph.graph, *graph.functions):
        for node in part.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.initializer):
        del value.metadata_props[:]


ONNX = Onnx()
"""``mixnas export --to onnx``."""
