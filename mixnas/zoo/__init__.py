"""The zoo: five published systems, whole, built of mixnas's own mixers.

Each file is one system and ends with its `SYSTEM`; `create` builds any of their networks by its
published name, `names` lists them. A sixth system is one more file.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from mixnas.errors import InvalidOption, UnknownNetwork, did_you_mean
from mixnas.zoo.checkpoint import load_checkpoint
from mixnas.zoo.system import System, Variant

__all__ = ["System", "Variant", "create", "get", "names", "options", "systems"]

WIDEST = 16
"""Greatest factor on the widths: some hundred times the cost, beyond any machine's memory soon."""


@cache
def systems() -> dict[str, System]:
    """Return the systems by the name of their file."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in _files()]
    return {m.__name__.rpartition(".")[2]: m.SYSTEM for m in modules if hasattr(m, "SYSTEM")}


def _files() -> list[pkgutil.ModuleInfo]:
    return sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)


def names() -> list[str]:
    """Return the names of the published networks, system by system, small to large."""
    return [name for system in systems().values() for name in system.variants]


def get(name: str) -> tuple[System, Variant]:
    """Return a network's system and what is published of it.

    Raises:
        UnknownNetwork: if there is none of that name; the message names the nearest.
    """
    for system in systems().values():
        if name in system.variants:
            return system, system.variants[name]
    raise UnknownNetwork(f"zoo: no network '{name}'; {did_you_mean(str(name).lower(), names())}")


def options(name: str, width: float = 1.0) -> dict[str, Any]:
    """Return the settings of a network, every width of it times a factor.

    Raises:
        UnknownNetwork: if there is none of that name.
        InvalidOption: if the factor is not positive, or beyond `WIDEST`.
    """
    system, variant = get(name)
    if not isinstance(width, int | float) or not 0 < width <= WIDEST:
        raise InvalidOption(
            f"zoo '{name}': width={width!r} must be above 0 and at most {WIDEST}; 1 is as published"
        )
    return dict(variant.options) if width == 1 else system.widen(variant.options, width)


def create(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    image: int | tuple[int, int] | None = None,
    width: float = 1.0,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> nn.Module:
    """Build a published network.

    Args:
        name: one of `names()`.
        num_classes: classes of the head; 0 for features only.
        in_chans: channels of the images.
        image: side of the images in pixels, or height and width; the published one by default.
            Only networks with a table of positions depend on it.
        width: a factor on every width, rounded to what the system can have; 1 is as published.
        checkpoint: a file of the authors' weights (safetensors, or PyTorch's own, of which
            tensors alone are read).
        settings: override the variant's own, for networks that the tables do not list.

    Raises:
        UnknownNetwork: if there is none of that name.
        InvalidOption: if a setting is unknown or makes no sense.
        InvalidCheckpoint: if the weights cannot be read or are of another network.
    """
    system, variant = get(name)
    given = options(name, width)
    image = variant.image if image is None else image
    _check_sizes(name, num_classes, in_chans, image)
    _check_settings(name, settings, given)
    try:
        network = system.network(
            num_classes=num_classes, in_chans=in_chans, image=image, **{**given, **settings}
        )
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError) as error:
        if not settings:
            raise  # as published: the mistake is ours
        asked = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
        raise InvalidOption(
            f"zoo '{name}': {asked} makes no network ({type(error).__name__}: {error}); as "
            f"published it has {', '.join(f'{key}={given[key]!r}' for key in settings)}"
        ) from error
    if checkpoint is not None:
        load_checkpoint(network, Path(checkpoint), name, system)
    return network


def _check_sizes(name: str, classes: object, channels: object, image: object) -> None:
    """Refuse what is no number of classes, of channels, or of pixels."""
    sides = image if isinstance(image, tuple) else (image, image)
    whole = {"num_classes": (classes, 0), "in_chans": (channels, 1)}
    whole |= {f"image side {number + 1}": (side, 1) for number, side in enumerate(sides)}
    for what, (value, least) in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidOption(
                f"zoo '{name}': {what} {value!r}: a whole number of at least {least} is needed"
            )
    if len(sides) != 2:
        raise InvalidOption(f"zoo '{name}': image={image!r} must be one side, or height and width")


def _check_settings(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse settings that the network does not have, and numbers below 0."""
    for setting, value in settings.items():
        if setting not in known:
            raise InvalidOption(
                f"zoo '{name}': no setting '{setting}'; {did_you_mean(setting, known)}"
            )
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int | float) and not number >= 0:
                raise InvalidOption(f"zoo '{name}': {setting}={value!r} must not be below 0")
    if settings.get("drop_path") is not None and not settings["drop_path"] < 1:
        raise InvalidOption(f"zoo '{name}': drop_path={settings['drop_path']!r} must be below 1")
