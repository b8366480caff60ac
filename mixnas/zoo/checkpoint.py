"""Published weights: read safely, translated from the authors' names, checked key by key."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mixnas.errors import InvalidCheckpoint
from mixnas.zoo.system import State, System

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts put the weights."""

PREFIX = "module."
"""What data-parallel training puts before every name."""

HEAD = "head"
"""How the names of a classifier's weights begin."""

CURES = {
    HEAD: "give its number of classes",
    "positions": "give image=, the side of its images in pixels",
}
"""What to do about weights of another shape, by how their name begins."""


def load_checkpoint(network: nn.Module, path: Path, name: str, system: System) -> None:
    """Fill a network with its authors' weights.

    A file in our own names serves as well. The classifier of another number of classes is not
    taken over silently; a network of features only leaves it out.

    Raises:
        InvalidCheckpoint: if the file cannot be read safely, or does not fit; the message names
            the first key that differs.
    """
    own = network.state_dict()
    state = _wanted(read(path), own)
    if not state.keys() <= own.keys():
        if system.translate is None:
            raise InvalidCheckpoint(
                f"{path}: not weights of {name} in mixnas's own names ({_first(state, own)}), and "
                f"no published weights of {system.title} are known"
            )
        state = _wanted(system.translate(state), own)
    _check(state, own, path, name)
    network.load_state_dict(state)


def _wanted(state: State, own: Mapping[str, Tensor]) -> State:
    """Leave out the classifiers if the network has none."""
    if any(key.startswith(HEAD) for key in own):
        return state
    return {key: tensor for key, tensor in state.items() if not key.startswith(HEAD)}


def read(path: Path) -> State:
    """Return the tensors of a file, out of whatever a training script wrapped them in.

    Raises:
        InvalidCheckpoint: if the file is missing, damaged, or would need unpickling.
    """
    if not path.is_file():
        raise InvalidCheckpoint(f"{path}: no such file; give the path of downloaded weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain data in many of them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        what = str(error).splitlines()[0]
        raise InvalidCheckpoint(
            f"{path}: holds more than tensors, or is damaged ({what}); where you trust it, save "
            "its state dict alone, as safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise InvalidCheckpoint(
            f"{path}: cannot be read ({type(error).__name__}); download it again"
        ) from None
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> State:
    """Unwrap a state dict."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if key in content), None)
        if not isinstance(inner, Mapping):
            break
        content = inner
    if not isinstance(content, Mapping):
        raise InvalidCheckpoint(f"{path}: no state dict, but a {type(content).__name__}")
    state = {str(key).removeprefix(PREFIX): v for key, v in content.items() if torch.is_tensor(v)}
    if not state:
        raise InvalidCheckpoint(f"{path}: holds no tensors under their names")
    return state


def _check(state: State, own: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Refuse weights that do not fit, naming the first that does not."""
    if state.keys() != own.keys():
        raise InvalidCheckpoint(f"{path}: not weights of {name}: {_first(state, own)}")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            shapes = f"{tuple(state[key].shape)} there, {tuple(tensor.shape)} here"
            hint = "".join(f"; {cure}" for part, cure in CURES.items() if key.startswith(part))
            raise InvalidCheckpoint(f"{path}: not weights of {name}: {key} is {shapes}{hint}")


def _first(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Name the first key that one has and the other lacks."""
    strange, missing = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
    said = [f"{len(strange)} unknown ({strange[0]})"] if strange else []
    said += [f"{len(missing)} missing ({missing[0]})"] if missing else []
    return ", ".join(said)
