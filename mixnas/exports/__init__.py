"""Ways to ship a trained classifier: each written, read back in its own runtime, and proved."""

from pathlib import Path

from mixnas.errors import InvalidCheckpoint
from mixnas.exports.forms import Exported, Form
from mixnas.exports.hub import HF
from mixnas.exports.onnx_model import ONNX
from mixnas.exports.program import PT2
from mixnas.exports.timm_model import TIMM
from mixnas.exports.weights import WEIGHTS

__all__ = ["FORMS", "Exported", "Form", "open_model"]

FORMS: dict[str, Form] = {form.name: form for form in (ONNX, PT2, TIMM, HF)}
"""The forms by name."""


def open_model(path: str | Path) -> Exported:
    """Read a classifier of whatever form: a file, or a folder that holds one.

    Args:
        path: what `Form.write` wrote (an int8 ``.onnx`` too), a folder of ``mixnas retrain``
            (``model.json`` and ``model.safetensors``), or the ``.safetensors`` in a folder.

    Raises:
        InvalidCheckpoint: if it is none of them, or broken.
        InvalidOption: if a package that the form needs is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidCheckpoint(f"{path}: not there; give a model that mixnas export wrote")
    place = path.parent if path.suffix == ".safetensors" else path
    for form in (*FORMS.values(), WEIGHTS):
        if form.holds(place):
            return form.load(place)
    raise InvalidCheckpoint(
        f"{path}: no model of mixnas; give a .onnx or .pt2 file, or a folder timm/, hf/ or of "
        "mixnas retrain"
    )
