"""`COURSES`: recipes named after the papers that published them, and one for small data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixnas.errors import InvalidOption, did_you_mean
from mixnas.train.recipe import AloneRecipe


@dataclass(frozen=True)
class Course:
    """A recipe with its length: how long, how many images at once, and the rest.

    Attributes:
        name: what the user calls it.
        summary: one line for people.
        paper: where it was published.
        epochs: passes over the training images.
        batch: images in a step, over all processes, for which the rate is meant.
        values: the recipe, as if an epoch had one step.
    """

    name: str
    summary: str
    paper: str
    epochs: int
    batch: int
    values: AloneRecipe

    def recipe(
        self,
        *,
        per_epoch: int,
        epochs: int | None = None,
        batch: int | None = None,
        rate: float | None = None,
    ) -> AloneRecipe:
        """Fit the recipe to a data set.

        The warm-up keeps its share of the steps, and the rate grows with the batch in proportion
        (Goyal et al., 2017).

        Args:
            per_epoch: steps in an epoch, at that batch.
            epochs: passes over the training images, the published ones by default.
            batch: images in a step, the published ones by default.
            rate: peak learning rate at that batch; it is then not scaled.

        Raises:
            InvalidOption: if a number is out of range.
        """
        epochs = self.epochs if epochs is None else epochs
        batch = self.batch if batch is None else batch
        if epochs < 1 or batch < 1:
            raise InvalidOption(f"{epochs} epochs of batches of {batch}: give at least 1 of both")
        if rate is None:
            rate = self.values.rate * batch / self.batch
        return replace(self.values, steps=epochs * per_epoch, batch=batch, rate=rate)


def course(name: str) -> Course:
    """Return the course of a name.

    Raises:
        InvalidOption: if there is none; the closest is named.
    """
    if name not in COURSES:
        raise InvalidOption(f"no recipe '{name}'; {did_you_mean(name, COURSES)}")
    return COURSES[name]


_IMAGENET: Mapping[str, Any] = {
    "randaugment": "rand-m9-mstd0.5-inc1",  # the jitter of colours that goes with it is unused
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "erasing": 0.25,
    "interpolation": "bicubic",
}

_MIXED: Mapping[str, Any] = {"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "switch": 0.5}

_COURSES = (
    Course(
        name="quick",
        summary="for small images and little time: AdamW, a weak shift, averaged weights",
        paper="none: chosen on the embedded digits",
        epochs=30,
        batch=64,
        values=AloneRecipe(steps=30, ema=0.99, augmentation={"shift": True}),
    ),
    Course(
        name="deit",
        summary="strong augmentation, mixing and repeated images, for vision transformers",
        paper="Touvron et al., 2021, table 9",
        epochs=300,
        batch=1024,
        # The published code also keeps an average of the weights, by which it does not judge.
        values=AloneRecipe(
            steps=300,
            batch=1024,
            rate=1e-3,
            decay=0.05,
            warmup=5 / 300,
            start=1e-6 / 1e-3,
            least=1e-5 / 1e-3,
            clip=None,
            drop_path=0.1,
            augmentation={**_IMAGENET, "repeats": 3},
            **_MIXED,
        ),
    ),
    Course(
        name="litv2",
        summary="DeiT's without repeated images, with a longer warm-up and clipped gradients",
        paper="Pan et al., 2022, and the repository ziplab/LITv2",
        epochs=300,
        batch=1024,
        # Stochastic depth is LITv2-S's; its authors slow the sampling offsets down, we do not.
        values=AloneRecipe(
            steps=300,
            batch=1024,
            rate=1e-3,
            decay=0.05,
            warmup=20 / 300,
            start=1e-6 / 1e-3,
            least=1e-5 / 1e-3,
            clip=5.0,
            drop_path=0.2,
            augmentation=_IMAGENET,
            **_MIXED,
        ),
    ),
    Course(
        name="shvit",
        summary="DeiT's at a large batch and rate, gradients clipped unit by unit",
        paper="Yun and Ro, 2024, and the repository ysj9909/SHViT",
        epochs=300,
        batch=2048,
        # Decay is SHViT-S4's; S1 to S3 have 0.025, 0.032 and 0.035.
        values=AloneRecipe(
            steps=300,
            batch=2048,
            rate=4e-3,
            decay=0.03,
            warmup=5 / 300,
            start=1e-6 / 4e-3,
            least=1e-5 / 4e-3,
            clip=0.02,
            clip_mode="agc",
            augmentation={**_IMAGENET, "repeats": 3},
            **_MIXED,
        ),
    ),
)

COURSES: Mapping[str, Course] = {entry.name: entry for entry in _COURSES}
"""Every course by its name."""
