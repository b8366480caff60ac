"""Plain weights beside their description, as ``mixnas retrain`` leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from mixnas import storage
from mixnas.errors import InvalidCheckpoint
from mixnas.exports.forms import Exported
from mixnas.model import Model

DESCRIPTION = "model.json"
TENSORS = "model.safetensors"


class Weights:
    """A folder of ``model.json`` and ``model.safetensors``, run by PyTorch."""

    name = "weights"
    place = "weights"

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write both files; the facts have no place in them."""
        storage.write(path / TENSORS, save(network.state_dict()))
        storage.write(path / DESCRIPTION, json.dumps(model.to_dict(), indent=1).encode())

    def holds(self, path: Path) -> bool:
        """Say whether both files are in the folder."""
        return (path / DESCRIPTION).is_file() and (path / TENSORS).is_file()

    def load(self, path: Path) -> Exported:
        """Build the network of the description with the weights beside it.

        Raises:
            InvalidCheckpoint: if either is broken, or they do not belong together.
        """
        where = path / DESCRIPTION
        try:
            data = json.loads(where.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidCheckpoint(
                f"{where}: cannot be read ({type(error).__name__}: {error}); give a folder that "
                "mixnas retrain wrote"
            ) from None
        model = Model.from_dict(data, str(where))
        return Exported(model, model.load(path / TENSORS))


WEIGHTS = Weights()
"""What ``mixnas retrain`` keeps."""
