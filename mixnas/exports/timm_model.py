"""The timm form: weights, and one small file whose import makes timm know the model.

timm then builds it, loads it, gives it another head, other channels or drop path, and makes a
backbone of it, as it does with its own models.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import wrap
from types import ModuleType
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from mixnas import storage
from mixnas.errors import InvalidCheckpoint, InvalidOption, MixnasError
from mixnas.exports.forms import Exported
from mixnas.features import Intermediates
from mixnas.folding import fuse
from mixnas.model import Model, create, mismatch, read_weights

KEY = "mixnas"
"""Where the description stands among a safetensors file's metadata."""

FEW = 5
"""A network of at most so many features is a backbone of all of them; else of the last three."""

UNBUILDABLE = (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, AttributeError)
"""What building a network of senseless numbers raises."""


def register(description: str, module: str) -> Callable[..., nn.Module]:
    """Make timm know the model of a description, by its name (``"mixnas_9224685899a5"``).

    Args:
        description: `Model.to_dict` as JSON.
        module: name of the imported module that stands for the model, as timm's own files of
            models do; weights in its folder are those of ``pretrained=True``.

    Returns:
        The entry point that timm calls.

    Raises:
        InvalidCheckpoint: if the description is none, or makes no network.
    """
    model = Model.from_dict(_parsed(description, module), module)
    home = sys.modules[module]
    outline = _outline(model, module)
    cfg = pretrained_cfg(model, outline)
    if weights := _beside(getattr(home, "__file__", None)):
        cfg = {**cfg, "file": str(weights)}
    home.__dict__["default_cfgs"] = generate_default_cfgs({model.name: cfg})

    def entry(pretrained: bool = False, **settings: Any) -> nn.Module:
        """Build the network, with its weights if told."""
        return _built(model, outline, pretrained, settings)

    entry.__name__ = entry.__qualname__ = model.name
    entry.__module__ = module
    return cast(Callable[..., nn.Module], register_model(entry))


def _beside(file: str | None) -> Path | None:
    """Return the weights in a file's folder: under its name, or under the Hub's."""
    if file is None:
        return None
    places = Path(file).with_suffix(".safetensors"), Path(file).with_name("model.safetensors")
    return next((place for place in places if place.is_file()), None)


def pretrained_cfg(model: Model, network: nn.Module) -> dict[str, Any]:
    """Return what timm's users read of a model: sizes, normalisation, labels, layers' names.

    Args:
        model: the description.
        network: of its layers; the weights do not matter.
    """
    given = model.preprocessing
    channels = 3
    mean, std = (
        tuple(values) * (channels if len(values) == 1 else 1)
        for values in (given.mean, given.deviation)
    )
    grey = ["trained on grey images: make a picture grey before it is normalised"]
    return {
        "input_size": (channels, given.image, given.image),
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if given.crop is None else given.crop,
        "crop_mode": "squash" if given.crop is None else "center",
        "mean": mean,
        "std": std,
        "num_classes": len(model.labels),
        "label_names": model.labels,
        "first_conv": _first_convolution(network, channels),
        "classifier": _name_of(network, _classifier(network)),
        **({"notes": tuple(grey)} if given.grey else {}),
    }


def _classifier(network: nn.Module) -> nn.Module:
    return cast(nn.Module, cast(Any, network).get_classifier())


def _first_convolution(network: nn.Module, channels: int) -> str | None:
    """Name the layer that reads the images."""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4 and weight.shape[1] == channels:
            return name
    return None


def _name_of(network: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is wanted)


def _outline(model: Model, where: str) -> nn.Module:
    """Return the network without weights: names and shapes.

    Raises:
        InvalidCheckpoint: if the description makes no network.
    """
    try:
        with torch.device("meta"):
            return model.build()
    except (MixnasError, *UNBUILDABLE) as error:
        raise InvalidCheckpoint(
            f"{where}: its description makes no network ({type(error).__name__}: {error}); give a "
            "model that mixnas export wrote"
        ) from None


def _built(
    model: Model, outline: nn.Module, pretrained: bool, settings: Mapping[str, Any]
) -> nn.Module:
    """Build the network as timm builds its own."""
    count = len(outline.feature_info) if isinstance(outline, Intermediates) else 0
    wanted = {"feature_cls": "getter", "out_indices": tuple(range(count)) if count <= FEW else 3}
    network = build_model_with_cfg(
        partial(_network, model), model.name, pretrained, feature_cfg=wanted, **settings
    )
    shapes = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    places = _first_convolution(outline, 3), _name_of(outline, _classifier(outline))
    network.register_load_state_dict_pre_hook(partial(_adapted, shapes, *places))
    return cast(nn.Module, network)


def _network(
    model: Model,
    *,
    num_classes: int,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    **others: Any,
) -> nn.Module:
    """Build the network with timm's settings, in training mode as timm's are.

    Raises:
        InvalidOption: if a setting is given that the network does not have.
    """
    strange = next((name for name, value in others.items() if value), None)
    if strange is not None:
        raise InvalidOption(
            f"{model.name}: no setting '{strange}'; known: drop_path_rate, features_only, "
            "in_chans, num_classes, out_indices (the size of the images needs no setting)"
        )
    dropping = {"drop_path": drop_path_rate} if drop_path_rate else {}
    network = create(
        model.source, classes=num_classes, image=model.image, in_chans=in_chans, **dropping
    )
    return (fuse(network) if model.fused else network).train()


def _adapted(
    shapes: Mapping[str, torch.Size],
    first: str | None,
    classifier: str,
    network: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    *_: Any,
) -> None:
    """Fit the model's own weights, in place, to a network with other channels, head or end.

    timm does this for ``pretrained=True``; here it serves ``checkpoint_path`` too. A head for
    other classes keeps its own new weights; a backbone leaves out what it has dropped. Weights
    that are not exactly the model's are left as they are.
    """
    if prefix or {name: tensor.shape for name, tensor in state.items()} != shapes:
        return
    own, given = network.state_dict(), dict(state)
    state.clear()
    lead = "model." if isinstance(network, FeatureGetterNet) else ""
    for name, tensor in given.items():
        place = lead + name
        if place not in own:
            continue
        layer = name.rpartition(".")[0]
        if own[place].shape != tensor.shape and layer == classifier:
            tensor = own[place]
        elif own[place].shape != tensor.shape and layer == first:
            tensor = adapt_input_conv(own[place].shape[1], tensor)
        state[place] = tensor


def described(weights: Path) -> Model:
    """Read the description in a safetensors file's metadata.

    Raises:
        InvalidCheckpoint: if the file cannot be read, or has none.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InvalidCheckpoint(
            f"{weights}: weights cannot be read ({type(error).__name__}: {error}); give a whole "
            "safetensors file"
        ) from None
    if KEY not in metadata:
        raise InvalidCheckpoint(
            f"{weights}: weights without mixnas's description; give a file that mixnas export wrote"
        )
    return Model.from_dict(_parsed(metadata[KEY], str(weights)), str(weights))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(
            f"{where}: its description is no JSON ({error}); give a model that mixnas export wrote"
        ) from None


def created(model: Model, weights: Path, name: str, **settings: Any) -> nn.Module:
    """Let timm create a described model, and check that it took the weights.

    Args:
        model: the description.
        weights: the safetensors file.
        name: what timm is asked for.
        settings: of `timm.create_model`.

    Returns:
        The network in evaluation mode.

    Raises:
        InvalidCheckpoint: if the weights cannot be read, or are not the model's.
    """
    state = read_weights(weights)
    if fault := mismatch(state, _outline(model, str(weights)).state_dict()):
        raise InvalidCheckpoint(
            f"{weights}: not weights of {model.name} with {len(model.labels)} classes ({fault}); "
            "give the file that belongs to this model"
        )
    _introduce(model)
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, **settings)
    except (AssertionError, OSError, MixnasError, *UNBUILDABLE) as error:
        reason = " ".join(str(error).split())
        raise InvalidCheckpoint(
            f"{weights.parent}: timm cannot load it ({type(error).__name__}: {reason}); give a "
            "folder that mixnas export wrote"
        ) from None
    if any(not torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()):
        raise InvalidCheckpoint(
            f"{weights.parent}: timm took other weights than those of {weights.name}; give a "
            "folder that mixnas export wrote, with nothing added"
        )
    return cast(nn.Module, network.eval())


def _introduce(model: Model) -> None:
    """Register a model without running its file, in place of another of its name."""
    module = ModuleType(model.name)
    before = sys.modules.get(model.name)
    sys.modules[model.name] = module  # where timm looks for what stands beside an entry point
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Overwriting", UserWarning)
            register(json.dumps(model.to_dict()), model.name)
    finally:
        if before is None:
            del sys.modules[model.name]
        else:
            sys.modules[model.name] = before


def packed(network: nn.Module, model: Model) -> bytes:
    """Return a network's weights and its description as a safetensors file."""
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    return save(state, metadata={"format": "pt", KEY: json.dumps(model.to_dict())})


def source(model: Model) -> str:
    """Return the file whose import makes timm know the model."""
    text = json.dumps(model.to_dict(), separators=(",", ":"))
    lines = (f"    {text[i : i + 80]!r}" for i in range(0, len(text), 80))
    asked = f'timm.create_model("{model.name}", pretrained=True)'
    about = wrap(
        f"It needs the packages mixnas and timm. After `import {model.name}`, `{asked}` builds the "
        "network with the weights beside this file; `checkpoint_path=`, `num_classes=`, "
        "`in_chans=`, `features_only=True` and `drop_path_rate=` work as with timm's own models.",
        96,
    )
    return "\n".join(
        [
            f'"""The classifier {model.name}, for timm; written by mixnas export.',
            "",
            *about,
            '"""',
            "",
            "from mixnas.exports.timm_model import register",
            "",
            "DESCRIPTION = (",
            *lines,
            ")",
            "",
            f"{model.name} = register(DESCRIPTION, __name__)",
            "",
        ]
    )


class Timm:
    """A folder with ``<name>.py`` and ``<name>.safetensors``, run by timm."""

    name = "timm"
    place = "timm"

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write both files; the facts have no place in them."""
        storage.write(path / f"{model.name}.safetensors", packed(network, model))
        storage.write(path / f"{model.name}.py", source(model).encode())

    def holds(self, path: Path) -> bool:
        """Say whether the folder has weights and a file of the same name for timm."""
        return bool(_files(path))

    def load(self, path: Path) -> Exported:
        """Let timm create the model that the weights' file describes; its Python file is not run.

        Raises:
            InvalidCheckpoint: if the file is broken, or its weights are not the model's.
        """
        files = _files(path)
        if len(files) != 1:
            raise InvalidCheckpoint(
                f"{path}: {len(files)} models for timm; give a folder that mixnas export wrote"
            )
        model = described(files[0])
        network = created(model, files[0], model.name, checkpoint_path=str(files[0]))
        return Exported(model, network)


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("mixnas_*.safetensors"))
    return [file for file in files if file.with_suffix(".py").is_file()]


TIMM = Timm()
"""The form that timm loads after one import."""
