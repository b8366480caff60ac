"""No export is kept before it was read back and computed what its source computes."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixnas import storage
from mixnas.errors import ExportMismatch, InvalidCheckpoint, InvalidOption
from mixnas.exports.forms import Exported, Form
from mixnas.model import Model

LIMIT = 1e-4
"""Difference of logits allowed, as a share of the largest logit."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images ``(B, 3, S, S)`` with their labels."""


@dataclass(frozen=True)
class Proof:
    """What a comparison with the source found.

    Attributes:
        difference: largest difference of two logits.
        scale: largest logit of the source.
        agreement: share of the images of which both name the same class.
        images: compared.
    """

    difference: float
    scale: float
    agreement: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def prove(form: str, exported: Exported, source: nn.Module, batches: Batches) -> Proof:
    """Compare an export with its source on images.

    Args:
        form: named in the error.
        exported: as read back, in its own runtime.
        source: the network as it was trained, in evaluation mode.
        batches: real images; labels are not looked at.

    Raises:
        ExportMismatch: if logits differ by more than `LIMIT` times the largest logit, or if the
            class named differs on an image where the source's two best are further apart than
            any difference.
        InvalidOption: if there are no images.
    """
    pairs = [_logits(exported, source, images) for images, _ in batches]
    if not pairs:
        raise InvalidOption(f"{form}: no images to prove the export with; give at least one")
    mine, theirs = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    if mine.shape != theirs.shape:
        raise ExportMismatch(
            f"{form}: gives logits {tuple(theirs.shape)}, its source {tuple(mine.shape)}; not kept"
        )
    difference, scale = float((mine - theirs).abs().max()), float(mine.abs().max())
    agrees = mine.argmax(1) == theirs.argmax(1)
    proof = Proof(difference, scale, float(agrees.double().mean()), len(mine))
    if not difference <= LIMIT * scale:  # nor if it is no number
        raise ExportMismatch(
            f"{form}: logits differ from the source's by {difference:.2g} on {len(mine)} images "
            f"(allowed: {LIMIT:g} of the largest, {scale:.3g}); not kept"
        )
    if bool((~agrees & (_margins(mine) > difference)).any()):
        raise ExportMismatch(
            f"{form}: names another class than its source on {int((~agrees).sum())} of "
            f"{len(mine)} images, beyond rounding; not kept"
        )
    return proof


def keep(
    form: Form,
    folder: Path,
    network: nn.Module,
    model: Model,
    facts: Mapping[str, Any],
    source: nn.Module,
    batches: Batches,
) -> tuple[Exported, Proof]:
    """Write an export, read it back, prove it, and only then put it in its place.

    Args:
        form: to write.
        folder: of the exports; made where it is not there.
        network: as `Form.write` takes it.
        model: the network's description.
        facts: as `Form.write` takes them.
        source: to compare with, before any folding.
        batches: real images.

    Raises:
        ExportMismatch: if it cannot be written or does not compute the same: what stood in its
            place before is left.
        StorageFull: if the disk is full; likewise.
    """
    workshop = folder / f".{form.name}.{os.getpid()}.tmp"
    made, place = workshop / form.place, folder / form.place
    with storage.guarded(place):
        workshop.mkdir(parents=True)
        try:
            form.write(made, network, model, facts)
            exported = _read_back(form, made)
            proof = prove(form.name, exported, source, batches)
            if place.is_dir():
                place.rename(workshop / "before")  # goes with the workshop
            made.rename(place)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return exported, proof


def _read_back(form: Form, path: Path) -> Exported:
    """Load what was just written; a runtime too old for it says so here."""
    try:
        return form.load(path)
    except InvalidCheckpoint as error:
        raise ExportMismatch(
            f"{form.name}: what was written cannot be read back; not kept ({error})"
        ) from None


@torch.no_grad()
def _logits(exported: Exported, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of both, the source's first, in float64 on the CPU."""
    device = next(source.parameters()).device
    mine = source(images.to(device)).double().cpu()
    return mine, exported.network(images.cpu()).double().cpu()


def _margins(logits: Tensor) -> Tensor:
    """Return how far the best logit of each image is above the second best."""
    if logits.shape[1] < 2:
        return torch.zeros(len(logits), dtype=logits.dtype)
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
