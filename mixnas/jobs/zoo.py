"""`mixnas zoo`: the published networks, as published and as counted here."""

import inspect
from typing import Any

from torch import nn

from mixnas import zoo as networks
from mixnas.cost.count import count_params, operators, without_memory
from mixnas.folding import fuse
from mixnas.jobs.settings import at_least

SMALLEST = 32
"""Least side of an image in pixels: one position at the systems' usual last stride."""


def zoo(
    name: str | None = None,
    *,
    image: int | None = None,
    classes: int | None = None,
    width: float | None = None,
) -> list[dict[str, Any]]:
    """Describe the published networks, or build one and count it.

    Args:
        name: one of `mixnas.zoo.names()`; all of them, uncounted, by default.
        image: side of its images in pixels, the published one by default.
        classes: of its head, 1000 by default.
        width: a factor on its widths, 1 by default.

    Returns:
        For each: name, system, mixer, paper, and published: image, params, flops (multiply-adds
        in its authors' convention), accuracy (top-1 on ImageNet-1k in per cent, or None), note.
        Of one asked for also: image, classes, width, settings, counted and folded (with batch
        norms folded for inference), each of params, flops and operators (multiply-adds by
        operator), and choices: what was taken where the paper leaves it open.

    Raises:
        UnknownNetwork: if there is none of that name.
        InvalidOption: if its image, classes or width cannot be.
    """
    if name is None:
        return [_published(each) for each in networks.names()]
    image = networks.get(name)[1].image if image is None else image
    classes, width = 1000 if classes is None else classes, 1.0 if width is None else width
    at_least("image", image, SMALLEST)
    at_least("classes", classes, 1)
    return [{**_published(name), **_counted(name, image, classes, width)}]


def _published(name: str) -> dict[str, Any]:
    system, variant = networks.get(name)
    return {
        "name": name,
        "system": system.title,
        "mixer": variant.options.get("mixer", system.mixer),
        "paper": system.paper,
        "published": {
            "image": variant.image,
            "params": variant.params,
            "flops": variant.flops,
            "accuracy": variant.accuracy,
            "note": variant.note,
        },
    }


def _counted(name: str, image: int, classes: int, width: float) -> dict[str, Any]:
    def create() -> nn.Module:
        return networks.create(name, num_classes=classes, image=image, width=width)

    def count(network: nn.Module) -> dict[str, Any]:
        by = operators(network, image)
        return {"params": count_params(network), "flops": sum(by.values()), "operators": by}

    return {
        "image": image,
        "classes": classes,
        "width": width,
        "settings": networks.options(name, width),
        "counted": without_memory(create, count),
        "folded": without_memory(lambda: fuse(create()), count),
        "choices": inspect.getdoc(networks.get(name)[0].network) or "",
    }
