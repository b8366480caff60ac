"""How good a classifier is on images that it has never seen."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.errors import DataError, TrainingDiverged

BINS = 15
"""Bins of confidence of the calibration error, as in Guo et al. 2017, section 4."""
TOP = 5
"""Ranks that the second accuracy looks at."""


@torch.no_grad()
def logits(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, classes: int = 0
) -> tuple[Tensor, Tensor]:
    """Return what a network answers to each image, in the order of the batches.

    Args:
        network: put into evaluation mode; it gets the images on its own device.
        batches: images ``(B, 3, S, S)`` and labels ``(B,)``.
        classes: of the answer to no image at all (one process's share of very few).

    Returns:
        Logits, float32 ``(N, classes)``, and labels, int64 ``(N,)``, on the CPU.
    """
    network.eval()
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    answered, truth = [torch.empty(0, classes)], [torch.empty(0, dtype=torch.int64)]
    for images, labels in batches:
        answered.append(network(images.to(device)).float().cpu())
        truth.append(labels.cpu())
    return torch.cat(answered[1:] or answered), torch.cat(truth)


def metrics(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Judge a classifier by what it answered.

    Args:
        logits: ``(N, classes)``.
        labels: the true classes, ``(N,)``.
        names: of the classes, in the order of the logits.

    Returns:
        Plain data: images; top1 and top5, shares of the images whose class is the likeliest or
        among the five likeliest (top5 is None where there are at most five); loss, the mean
        cross-entropy in nats; standard_error of top1 that the number of images implies;
        calibration_error; labels (the names); recall, each class's share of its images that were
        right (None of a class without images); confusion, counts by true class (rows) and by the
        class answered (columns).

    Raises:
        DataError: if there are no images, or a label or the names do not fit the logits.
        TrainingDiverged: if a logit is not finite.
    """
    _check(logits, labels, names)
    values = logits.double()
    images, classes = values.shape
    right = values.argmax(1) == labels
    top1 = float(right.double().mean())
    counts = _confusion(labels, values.argmax(1), classes)
    return {
        "images": images,
        "top1": top1,
        "top5": _among(values, labels) if classes > TOP else None,
        "loss": float(F.cross_entropy(values, labels)),
        "standard_error": math.sqrt(top1 * (1 - top1) / images),
        "calibration_error": calibration_error(values.softmax(1).amax(1), right),
        "labels": list(names),
        "recall": [row[i] / sum(row) if sum(row) else None for i, row in enumerate(counts)],
        "confusion": counts,
    }


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Return how far confidence is from accuracy: the expected calibration error.

    Over equal bins of confidence, ((m - 1) / M, m / M], the mean of abs(accuracy - confidence)
    weighted with the images in each (Guo et al., On Calibration of Modern Neural Networks, 2017,
    equation 3).

    Args:
        confidence: probability of the class answered, 0 to 1, shape ``(N,)``.
        right: whether that was the true class, bool ``(N,)``.
        bins: how many.
    """
    confidence = confidence.double()
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    place = torch.bucketize(confidence, edges)  # right edges belong to the bin below
    surplus = torch.zeros(bins, dtype=torch.float64)
    surplus.index_add_(0, place, right.double() - confidence)
    return float(surplus.abs().sum() / len(confidence))


def _among(values: Tensor, labels: Tensor) -> float:
    likeliest = values.topk(TOP, dim=1).indices
    return float((likeliest == labels[:, None]).any(1).double().mean())


def _confusion(labels: Tensor, answered: Tensor, classes: int) -> list[list[int]]:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels.numpy(), answered.numpy(), labels=range(classes)).tolist()


def _check(logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    images, classes = logits.shape
    if not images or len(labels) != images:
        raise DataError(
            f"{images} answers to {len(labels)} labelled images; give a split with images"
        )
    if len(names) != classes:
        raise DataError(
            f"a network of {classes} classes on data of {len(names)}; give the data that the "
            "network was trained on"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        strange = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(
            f"label {int(strange)} among the images; {classes} classes end at "
            f"{classes - 1}: mend the data set"
        )
    if not bool(logits.isfinite().all()):
        broken = int((~logits.isfinite()).any(1).sum())
        raise TrainingDiverged(
            f"the network's answers to {broken} of {images} images are not finite; train it again "
            "with a lower rate"
        )
