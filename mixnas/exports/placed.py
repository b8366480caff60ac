"""ONNX Runtime as a runtime of the stopwatch: modules as `mixnas export` would ship them."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixnas.errors import InvalidOption
from mixnas.exports.onnx_model import FOLDED, Session, graph_of
from mixnas.exports.runtime import hushed, needed
from mixnas.folding import fuse
from mixnas.timing.conditions import Conditions
from mixnas.timing.reference import Shape
from mixnas.timing.runtimes import Call, images

CURE = "leave its mixer out with --mixers, or measure with another --runtime"


class Written(nn.Module):
    """A module that has been written as a graph: its file stands for it.

    Args:
        path: of the ``.onnx`` file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path


class OnnxRuntime:
    """Places a module as an ONNX graph: batch norms folded, constants folded, the batch open.

    The graph is the one that ``mixnas export --to onnx`` writes, run by the same session. A
    part's batch norms are folded as the whole network's are, so that the graphs of all parts have
    together the whole graph's operators.
    """

    def place(self, module: nn.Module, shape: Shape, conditions: Conditions) -> Call:
        """Return a call that computes once, on one fixed random input of ``(batch, *shape)``.

        Writing the graph takes one to ten seconds. The session's threads are made here, so they
        may run where the calling thread may run now.

        Args:
            module: a part or a whole network, on the CPU, which is left as it is; or `Written`.
            shape: the input without the batch, ``(C, H, W)``.
            conditions: those of `Conditions.of` with the runtime ``onnxruntime``.

        Raises:
            InvalidOption: if the conditions are another runtime's, or a package is missing.
            ExportMismatch: if an operator has no ONNX form; it is named.
        """
        found = (conditions.runtime, conditions.place.type, conditions.precision)
        if found != ("onnxruntime", "cpu", "fp32"):
            raise InvalidOption(
                f"runtime '{conditions.runtime}' on {conditions.device} in {conditions.precision}: "
                "ONNX Runtime is measured on the CPU in fp32 only; use --runtime onnxruntime "
                "--device cpu --precision fp32"
            )
        if isinstance(module, Written):
            data = module.path.read_bytes()
        else:
            data = graph(module, shape).SerializeToString()
        session = Session(data, conditions.threads).session
        feed = {session.get_inputs()[0].name: images(shape, conditions).contiguous().numpy()}
        gc.collect()  # an exporter leaves cycles, and a stopwatch stops the collector
        return lambda: session.run(None, feed)


def graph(
    module: nn.Module, shape: Shape, name: str | None = None, *, batch: int | None = None
) -> Any:
    """Write a part or a whole network, folded for inference, as an ONNX graph.

    Args:
        module: on the CPU, float32; it is left as it is.
        shape: the input without the batch, ``(C, H, W)``.
        name: of the graph, and in errors; by default the module's class and its input.
        batch: images at once, for runtimes that want every size fixed; open by default.

    Returns:
        An ``onnx.ModelProto`` with the input ``images`` and the output ``logits``.

    Raises:
        ExportMismatch: if an operator has no ONNX form; it is named.
        InvalidOption: if onnx, onnxscript or onnxruntime is not installed.
    """
    inner = getattr(module, "mixer", module)
    named = name or f"{type(inner).__name__} on {'x'.join(map(str, shape))}"
    written = graph_of(fuse(module), torch.zeros(2, *shape), named, cure=CURE)
    if batch is None:
        return written
    sizes: Any = needed("onnxruntime.tools.onnx_model_utils", "onnx")
    folding: Any = needed("onnxscript.optimizer", "onnx")
    with hushed():
        sizes.make_dim_param_fixed(written.graph, _batch(written), batch)
        sizes.fix_output_shapes(written)
        # What was computed from the number of images is a constant now.
        return folding.optimize(written, input_size_limit=FOLDED, output_size_limit=FOLDED)


def _batch(written: Any) -> str:
    """Return the name of the first axis of a graph's input."""
    return str(written.graph.input[0].type.tensor_type.shape.dim[0].dim_param)


ONNX_RUNTIME = OnnxRuntime()
"""``--runtime onnxruntime``."""
