"""What judges an architecture: by the supernet's weights, or from a table of recorded scores."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixnas.arch import Architecture
from mixnas.elastic import BatchNorm
from mixnas.errors import TableMissing
from mixnas.network import Network


@dataclass(frozen=True, slots=True)
class Score:
    """How good an architecture is on the ranking images.

    Attributes:
        accuracy: share of images classified rightly, 0 to 1.
        loss: mean cross-entropy in nats.
        images: how many images were judged.
        loss_error: standard error of the loss, from its spread over the images.
        beaten_by: id of the architecture that had certainly beaten it after so many images;
            accuracy and loss are estimates then. None if every image was judged.
    """

    accuracy: float
    loss: float
    images: int
    loss_error: float = 0.0
    beaten_by: str | None = None

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy that this number of images implies."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an architecture could not be judged."""

    reason: str


Evaluator = Callable[[Architecture], Score]


@dataclass(frozen=True)
class TableEvaluator:
    """Recorded scores by architecture id: the search without a network.

    Raises:
        TableMissing: when called, if the table lacks the architecture.
    """

    scores: Mapping[str, Score]

    def __call__(self, arch: Architecture) -> Score:
        """Return the recorded score."""
        if arch.id not in self.scores:
            raise TableMissing(
                f"score table: no architecture {arch.id} among its {len(self.scores)}; "
                "evaluate it first or search the table's own architectures"
            )
        return self.scores[arch.id]


@dataclass(frozen=True)
class SupernetEvaluator:
    """Scores an architecture by the weights that it inherits from a supernet.

    The stand-alone network is extracted, its batch-norm statistics are estimated anew (the
    shared ones mix all architectures), and it classifies the same images as every other.

    Attributes:
        network: the trained supernet, in evaluation mode.
        calibration: batches of training images ``(B, C, H, W)`` for the statistics.
        batches: batches of ranking images and labels.
    """

    network: Network
    calibration: Sequence[Tensor]
    batches: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, arch: Architecture) -> Score:
        """Return accuracy and loss on the ranking images.

        Raises:
            NotInSpace: if the supernet does not hold the architecture.
        """
        return score(self.prepared(arch), self.batches)

    def prepared(self, arch: Architecture) -> Network:
        """Return the extracted network with its own batch-norm statistics."""
        network = self.network.extract(arch).eval()
        recalibrate(network, self.calibration)
        return network


@torch.no_grad()
def recalibrate(network: torch.nn.Module, batches: Sequence[Tensor]) -> None:
    """Estimate every batch norm's mean and variance over some batches of equal size.

    The variance is that of all images together: the mean of the batches' variances plus the
    variance of their means (as in fvcore's precise batch norm). The network is left in
    evaluation mode.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not norms or not batches:
        return
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in norms]
    for images in batches:
        network(images)
        for norm, moments in zip(norms, seen, strict=True):
            mean, variance = norm.statistics()
            moments.append((mean.clone(), variance.clone()))
    for norm, momentum, moments in zip(norms, usual, seen, strict=True):
        means, variances = (torch.stack(list(values)) for values in zip(*moments, strict=True))
        mean, variance = norm.statistics()
        mean.copy_(means.mean(0))
        variance.copy_(variances.mean(0) + means.var(0, correction=0))
        norm.momentum = momentum
    network.eval()


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network answered, image by image, in the order of the batches.

    Attributes:
        right: whether each image was classified rightly, bool ``(images,)``.
        losses: the cross-entropy of each in nats, float64 ``(images,)``.
    """

    right: Tensor
    losses: Tensor

    def score(self) -> Score:
        """Return their means."""
        images = len(self.losses)
        error = float(self.losses.std(correction=0)) / math.sqrt(images)
        return Score(float(self.right.double().mean()), float(self.losses.mean()), images, error)


@torch.no_grad()
def answers(network: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Answers:
    """Classify batches of images ``(B, C, H, W)`` and compare each with its label ``(B,)``.

    The network is left in evaluation mode, and gets the images on its own device; the answers
    are on the CPU.
    """
    network.eval()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    right: list[Tensor] = []
    losses: list[Tensor] = []
    for images, labels in batches:
        logits, truth = network(images.to(device)).float(), labels.to(device)
        right.append((logits.argmax(1) == truth).cpu())
        losses.append(F.cross_entropy(logits, truth, reduction="none").cpu())
    return Answers(torch.cat(right), torch.cat(losses).double())


def score(network: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Return accuracy and loss on batches of images ``(B, C, H, W)`` and labels ``(B,)``."""
    return answers(network, batches).score()
