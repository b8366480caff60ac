"""The network of timm that stands beside the winner: a well-known one of about its cost."""

import timm
from torch import nn

from mixnas.arch import Architecture
from mixnas.errors import BudgetUnreachable, InvalidOption, UncountedOp, did_you_mean
from mixnas.jobs.scaling import Scales

KNOWN = (
    "mobilenetv3_small_050",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "efficientnet_b1",
    "regnety_002",
    "regnety_004",
    "regnety_008",
    "regnety_016",
    "convnext_atto",
    "convnext_femto",
    "convnext_pico",
    "convnext_nano",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "resnet10t",
    "resnet18",
    "resnet26",
    "resnet34",
    "resnet50",
)
"""From which the nearest in cost is taken."""


def create(name: str, *, classes: int, image: int) -> nn.Module:
    """Build a network of timm, untrained: no weights are ever downloaded.

    Args:
        name: as timm knows it.
        classes: of the head.
        image: side of the images in pixels, on which tables of positions depend.
    """
    options = {"pretrained": False, "num_classes": classes, "in_chans": 3}
    try:
        return timm.create_model(name, img_size=image, **options)
    except TypeError:  # it has no table of positions
        return timm.create_model(name, **options)


def check(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        InvalidOption: naming the nearest.
    """
    if "." in name or not timm.is_model(name):  # what follows a dot names weights
        raise InvalidOption(f"timm: no network '{name}'; {did_you_mean(name, KNOWN)}")


def nearest(scales: Scales, winner: Architecture) -> str:
    """Return the known network whose leading cost is nearest to the winner's, within the limits.

    Raises:
        BudgetUnreachable: if none keeps the limits.
    """
    lead = scales.problem.limits[0].cost
    cost = scales.problem.tables[lead](winner)
    fitting: dict[str, int] = {}
    for name in KNOWN:
        try:
            costs = scales({"timm": name})
        except UncountedOp:  # another release of timm writes it with other operators
            continue
        if scales.within(costs):
            fitting[name] = abs(costs[lead] - cost)
    if not fitting:
        raise BudgetUnreachable(f"none of {len(KNOWN)} well-known networks keeps the limits")
    return min(fitting, key=lambda name: fitting[name])
