"""int8: ONNX Runtime's static quantisation of an exported graph, judged before it is kept."""

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixnas import storage
from mixnas.errors import ExportMismatch, InvalidOption
from mixnas.exports.forms import Exported
from mixnas.exports.onnx_model import ONNX, SPECTRAL, Session
from mixnas.exports.proof import Batches
from mixnas.exports.runtime import culprit, hushed, needed

PLACE = "model.int8.onnx"
"""Where it stands, beside the float graph."""

OPERATORS = ("Conv", "Gemm", "MatMul")
"""Those with weights; norms, softmax and whatever ONNX Runtime does not know stay in float32."""


@dataclass(frozen=True)
class Quantised:
    """What the int8 graph costs and gains.

    Attributes:
        exported: the int8 graph as read back.
        accuracy_before: top-1 of the float graph, as a share of the images.
        accuracy_after: of the int8 graph.
        agreement: share of the images of which both name the same class.
        images: judged.
        bytes_before: size of the float file.
        bytes_after: of the int8 file.
        layers: convolutions and matrix products of weights that became int8.
        floats: those that stayed.
    """

    exported: Exported
    accuracy_before: float
    accuracy_after: float
    agreement: float
    images: int
    bytes_before: int
    bytes_after: int
    layers: int
    floats: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        figures = {key: value for key, value in vars(self).items() if key != "exported"}
        return dict(figures)


def quantise(path: Path, calibration: Iterable[Tensor], batches: Batches) -> Quantised:
    """Write `PLACE` beside a float ONNX file.

    Weights have one scale for each output channel, activations one each, by the least and
    greatest value that the calibration images give. Fourier filters stay in float32: a spectrum's
    mean is hundreds of times its other frequencies.

    Args:
        path: a float ``.onnx`` that `ONNX` wrote and `prove` proved.
        calibration: batches of normalised images ``(B, 3, S, S)``, of the training set.
        batches: images with labels to judge both graphs with.

    Raises:
        InvalidOption: if there are no images, or a package is missing.
        ExportMismatch: if ONNX Runtime cannot quantise the graph.
        InvalidCheckpoint: if the float file cannot be read.
        StorageFull: if the disk is full.
    """
    before = ONNX.load(path)
    place = path.with_name(PLACE)
    workshop = path.with_name(f".{PLACE}.{os.getpid()}.tmp")
    with storage.guarded(place):
        workshop.mkdir(parents=True)
        try:
            _write(path, workshop / PLACE, before, calibration)
            after = ONNX.load(workshop / PLACE)
            accuracies = _judged(before, after, batches)
            layers, floats = _counted(workshop / PLACE)
            sizes = (path.stat().st_size, (workshop / PLACE).stat().st_size)
            (workshop / PLACE).replace(place)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return Quantised(after, *accuracies, *sizes, layers, floats)


def _write(path: Path, target: Path, before: Exported, calibration: Iterable[Tensor]) -> None:
    """Quantise by ONNX Runtime."""
    tool: Any = needed("onnxruntime.quantization", "int8")
    needed("onnx", "int8")
    assert isinstance(before.network, Session)
    spectral = json.loads(before.network.metadata.get(SPECTRAL, "[]"))

    feeds = _feeds(calibration)
    if (first := next(feeds, None)) is None:
        raise InvalidOption("int8: no images to calibrate with; give at least one")
    try:
        with hushed():
            tool.quantize_static(
                path,
                target,
                Reader(itertools.chain([first], feeds)),
                quant_format=tool.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_exclude=spectral,
                per_channel=True,
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    except Exception as error:  # ONNX Runtime's own classes have no common one
        raise ExportMismatch(
            f"int8: ONNX Runtime cannot quantise {path.name} ({culprit(error)}); the float file "
            "is kept"
        ) from error


class Reader:
    """Hands ONNX Runtime, which asks for `get_next`, one batch after the other."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, None after the last."""
        return next(self.feeds, None)


def _feeds(calibration: Iterable[Tensor]) -> Iterator[dict[str, Any]]:
    for images in calibration:
        yield {"images": images.float().cpu().contiguous().numpy()}


def _judged(before: Exported, after: Exported, batches: Batches) -> tuple[float, float, float, int]:
    """Return both accuracies, the agreement, and the number of images."""
    rows = [
        torch.stack([before.network(images).argmax(1), after.network(images).argmax(1), labels])
        for images, labels in batches
    ]
    if not rows:
        raise InvalidOption("int8: no images to judge with; give at least one")
    mine, theirs, labels = torch.cat(rows, dim=1)
    return (
        float((mine == labels).double().mean()),
        float((theirs == labels).double().mean()),
        float((mine == theirs).double().mean()),
        len(labels),
    )


def _counted(path: Path) -> tuple[int, int]:
    """Return how many layers with weights are int8, and how many are not."""
    graph = needed("onnx", "int8").load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    weights = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    seconds = [node.input[1] for node in graph.node if node.op_type in OPERATORS]
    return sum(name in weights for name in seconds), sum(name in constants for name in seconds)
