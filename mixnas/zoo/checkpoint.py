"""Published weights: read safely, translated from the authors' names, checked key by key."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mixnas.errors import InvalidCheckpoint
from mixnas.storage import UNREADABLE
from mixnas.zoo.system import State, System

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts put the weights."""

PREFIX = "module."
"""What data-parallel training puts before every name."""

HEAD = "head"
"""How the names of a classifier's weights begin."""

CURES = {
    HEAD: "give num_classes=, its number of classes",
    "positions": "give image=, the side of its images in pixels",
}
"""What to do about weights of another shape, by how their name begins."""

BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, SafetensorError)
"""What reading a file raises that is damaged, or no file of weights."""

DEPTH = 4
"""How many wrappers of training scripts are taken off at most."""


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
        what = "no plain file" if path.exists() else "no such file"
        raise InvalidCheckpoint(f"{path}: {what}; give the path of downloaded weights")
    try:
        if _is_safetensors(path):
            return dict(load_file(path))
        # A namespace of options is plain data, and stands in many of them.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InvalidCheckpoint(f"{path}: {_refused(str(error))}") from None
    except BROKEN as error:
        raise InvalidCheckpoint(
            f"{path}: not a file of weights, or damaged ({type(error).__name__}); give PyTorch's "
            "own or safetensors, downloaded whole"
        ) from None
    return _tensors(content, path)


def _is_safetensors(path: Path) -> bool:
    """Say by its first bytes, whatever its name: a length, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _refused(reason: str) -> str:
    """Say why PyTorch would not read a file of tensors alone, in words of our own."""
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    if found is None:
        return "not a file of weights, or damaged; give PyTorch's own or safetensors"
    return (
        f"holds more than tensors ({found[1]}) and is not opened, since that would run code of "
        "its own; ask its source for the state dict alone, as safetensors"
    )


def _tensors(content: Any, path: Path) -> State:
    """Unwrap a state dict."""
    for _ in range(DEPTH):
        wrapped = content if isinstance(content, Mapping) else {}
        inner = next((wrapped[key] for key in WRAPPERS if key in wrapped), None)
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
        if state[key].layout != torch.strided or state[key].is_complex():
            raise InvalidCheckpoint(f"{path}: {key} is sparse or complex; dense weights are needed")
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
