"""The fixed network that stands beside every timing, so that days and machines compare."""

import itertools

from torch import nn

Shape = tuple[int, int, int]
"""An input without its batch: channels, height, width."""

SHAPE: Shape = (3, 224, 224)
"""What the reference computes on."""


def reference() -> nn.Module:
    """Return four strided convolutions: 0.18 billion multiply-adds for an image of `SHAPE`.

    A processor's clock, and what its neighbours take of it, change within minutes; a figure is
    kept as its ratio to this network's time, taken in turn with it under the same conditions.
    Only its time matters, so its weights are whatever they are.
    """
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise((SHAPE[0], 32, 64, 128, 256)):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
