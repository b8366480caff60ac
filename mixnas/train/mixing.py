"""Mixup and cutmix by timm, each step by a seed of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from mixnas.errors import InvalidOption
from mixnas.train.recipe import AloneRecipe


class Mixing:
    """Mixes each image of a batch with its mirror in the batch's order, and their labels alike.

    Args:
        recipe: says what is mixed, and the labels' smoothing.
        classes: of the labels.
    """

    def __init__(self, recipe: AloneRecipe, classes: int) -> None:
        self.classes = classes
        self.mix = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixed,
            switch_prob=recipe.switch,
            label_smoothing=recipe.smoothing,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        """Mix images ``(B, C, H, W)``; return them and their targets ``(B, classes)``.

        Raises:
            InvalidOption: if the number of images is odd.
        """
        if len(images) % 2:
            raise InvalidOption(
                f"mixup and cutmix mix pairs, and a process's batch has {len(images)} images; "
                "give an even --batch for each process"
            )
        copied = images.clone(memory_format=torch.preserve_format)  # timm's mixes in place
        with _numbers(seed):
            mixed, targets = self.mix(copied, labels)
        return mixed, targets


@contextmanager
def _numbers(seed: str) -> Iterator[None]:
    """Seed numpy's own generator, from which timm draws, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(Random(seed).getrandbits(32))
    try:
        yield
    finally:
        np.random.set_state(before)
