"""`Model`: what a trained classifier is, but for its weights: how to build, feed and read it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from mixnas import zoo
from mixnas.arch import Architecture
from mixnas.data.preprocessing import Preprocessing
from mixnas.errors import InvalidCheckpoint, MixnasError
from mixnas.folding import fuse
from mixnas.network import build

FORMAT = 1

Source = Mapping[str, Any]
"""What a network is built from, as plain data: ``{"arch": ...}`` or ``{"zoo": name, ...}``."""


@dataclass(frozen=True)
class Model:
    """A classifier's description, from which its weights make the classifier.

    Attributes:
        source: ``{"arch": Architecture.to_dict()}``, or ``{"zoo": name}`` with the settings that
            `zoo.create` takes beside it (``width``, ``num_heads``, ...).
        labels: class names, in the order of the outputs.
        preprocessing: what an image goes through before the network sees it.
        fused: whether the weights are those of the network with its batch norms folded.
    """

    source: Source
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    fused: bool = False

    @property
    def image(self) -> int:
        """Side of the images that the network sees, in pixels."""
        return self.preprocessing.image

    @property
    def name(self) -> str:
        """The network's name: letters, digits and underscores (``mixnas_9224685899a5``)."""
        if "zoo" in self.source:
            return f"mixnas_{self.source['zoo']}"
        return f"mixnas_{Architecture.from_dict(self.source['arch']).id}"

    def build(self, **settings: Any) -> nn.Module:
        """Build the network, untrained, in evaluation mode.

        Args:
            settings: override those of the source; ``drop_path`` is one that every network takes.
        """
        network = create(self.source, classes=len(self.labels), image=self.image, **settings)
        return fuse(network) if self.fused else network.eval()

    def load(self, weights: Path) -> nn.Module:
        """Build the network with the weights of a safetensors file.

        Raises:
            InvalidCheckpoint: if the file cannot be read, or is of another network.
        """
        return self.filled(read_weights(weights), str(weights))

    def filled(self, state: Mapping[str, Tensor], where: str) -> nn.Module:
        """Build the network with weights by name.

        Args:
            state: every tensor of the network, no other.
            where: named in the error.

        Raises:
            InvalidCheckpoint: if the weights are of another network; the first that differs is
                named.
        """
        with torch.random.fork_rng(devices=[]):
            network = self.build()
        if fault := mismatch(state, network.state_dict()):
            raise InvalidCheckpoint(
                f"{where}: not weights of {self.name} with {len(self.labels)} classes ({fault}); "
                "give the file that belongs to this network"
            )
        network.load_state_dict(dict(state))
        return network

    def folded(self) -> "Model":
        """Return the description of the same network with its batch norms folded."""
        return replace(self, fused=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        return {
            "format": FORMAT,
            "source": dict(self.source),
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_dict(),
            "fused": self.fused,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "model") -> "Model":
        """Read what `to_dict` wrote.

        Raises:
            InvalidCheckpoint: if it is not such a description; `where` is named.
        """
        try:
            if data["format"] != FORMAT:
                raise InvalidCheckpoint(
                    f"{where}: a model of format {data['format']!r}; this mixnas reads {FORMAT}"
                )
            model = cls(
                source=dict(data["source"]),
                labels=tuple(str(label) for label in data["labels"]),
                preprocessing=Preprocessing.from_dict(data["preprocessing"]),
                fused=bool(data["fused"]),
            )
            _ = model.name
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidCheckpoint(
                f"{where}: not a model of mixnas ({type(error).__name__}: {error}); give one that "
                "mixnas retrain or mixnas export wrote"
            ) from None
        except InvalidCheckpoint:
            raise
        except MixnasError as error:
            raise InvalidCheckpoint(f"{where}: {error}") from None
        return model


def create(source: Source, *, classes: int, image: int, **settings: Any) -> nn.Module:
    """Build the network of a source, untrained.

    Args:
        source: as in `Model`.
        classes: of the head.
        image: side of the images in pixels, on which tables of positions depend.
        settings: override the source's own.

    Raises:
        UnknownNetwork: if the source names a published network that there is not.
        InvalidOption: if a setting is unknown or makes no sense.
        InvalidSpace: if the source's architecture makes no network.
    """
    if "arch" in source:
        return build(Architecture.from_dict(source["arch"]), classes, **settings)
    own = {key: value for key, value in source.items() if key != "zoo"}
    return zoo.create(source["zoo"], num_classes=classes, image=image, **{**own, **settings})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InvalidCheckpoint: if it is missing, cut short, or no such file.
    """
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(
            f"{path}: weights cannot be read ({type(error).__name__}: {error}); give a whole "
            "safetensors file"
        ) from None


def mismatch(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Say in what weights by name differ from those that a network has, if in anything."""
    for key in own:
        if key not in state:
            return f"'{key}' is missing"
        if state[key].shape != own[key].shape:
            return f"'{key}' is {list(state[key].shape)}, not {list(own[key].shape)}"
    strange = next((key for key in state if key not in own), None)
    return None if strange is None else f"'{strange}' is unknown"
