"""Racing: an evaluation ends as soon as a rival has certainly beaten the candidate.

Candidate and rival answer the same images, in the same order, and the differences of their losses
are tested at a few looks. A group-sequential test (Jennison and Turnbull, Group Sequential
Methods, 2000): the error rate is spent over the looks in equal parts, so that by the union bound
the whole stays within it however the looks depend on each other. What is tested is the mean over
all the images, of which those seen are a random part, drawn without replacement; so the standard
error shrinks to nothing as the images run out (Cochran, Sampling Techniques, 1977, equation 2.20).
Networks of one supernet err alike. Of some the mean over all the images is known, and what they
say of the images seen corrects for these being harder or easier than all (Cochran's regression
estimator, chapter 7): a few such witnesses take most of the noise out of a difference.
The losses of good networks are near nought but for a few images, and what these few say is far from
equal noise on all. The standard error is one that allows for it: HC3 (MacKinnon and White, Journal
of Econometrics 29, 1985, which Long and Ervin, The American Statistician 54, 2000, found to keep
its rate with few observations), with the degrees of freedom of Bell and McCaffrey (Survey
Methodology 28, 2002), which are few where few images carry the estimate.
Racing itself: Maron and Moore, Hoeffding Races, NIPS 1993. Losses have no bound, so its bound
cannot hold here; a t-test is used, and how well it keeps the rate is measured
(``benchmarks/racing.py``).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixnas.arch import Architecture
from mixnas.errors import InvalidOption
from mixnas.evaluate import Answers, Score, SupernetEvaluator, answers

Numbers: TypeAlias = NDArray[np.float64]

RATE = 0.01
"""How often a candidate that is no worse may be stopped, over all its looks."""

LEAST = 64
"""Images before the first look, at least."""

FEWEST = 200
"""Images below which nothing is raced: judging rivals once more would cost what a race saves."""

BATCH = 256
"""Images that are classified together, at most."""

KEPT = 256
"""Architectures whose answers a worker keeps, to set candidates against them."""
NETWORKS = 20
"""Of these, how many may keep their network too, to answer further images."""
IMAGES_EACH = 8
"""Images that must have been seen for each witness that corrects a difference."""
LEFT = 1e-3
"""Part of its own error that an image keeps in a fit, at least: less is all rounding."""
DIGITS = 9
"""Decimals of an estimate: more would tell how many threads had added it up."""


@dataclass(frozen=True, slots=True)
class Rival:
    """What a candidate is set against.

    Attributes:
        arch: the rival.
        score: its own, on all the images.
        witnesses: others that were judged on all the images, to correct the difference by.
    """

    arch: Architecture
    score: Score
    witnesses: tuple["Rival", ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a candidate's mean loss over all the images lies above its rival's.

    Attributes:
        value: the estimate, in nats.
        error: its standard error.
        freedom: degrees of freedom of that, no whole number.
    """

    value: float
    error: float
    freedom: float


@dataclass(frozen=True)
class Race:
    """The sequential test: is the candidate's mean loss over all the images above the rival's?

    Attributes:
        images: how many there are in all.
        rate: the probability of a wrong stop, for one candidate over all its looks, as far as a
            t-test keeps it.

    Raises:
        InvalidOption: if the rate is no probability between 0 and 0.5.
    """

    images: int
    rate: float = RATE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 0.5:
            raise InvalidOption(f"racing's error rate {self.rate}: must lie between 0 and 0.5")

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """The numbers of images after which to look, each half as many again as the one before.

        None where there are fewer than `FEWEST` images.
        """
        found, seen = [], float(max(LEAST, self.images / 32))
        if self.images < FEWEST:
            return ()
        while seen <= 0.85 * self.images:  # beyond that too little is left to save
            found.append(round(seen))
            seen *= 1.5
        return tuple(found)

    def difference(self, apart: Tensor, beside: Tensor | None = None) -> Difference:
        """Estimate the mean over all the images by those seen.

        Args:
            apart: loss of the candidate less that of the rival, ``(images seen,)``.
            beside: losses of witnesses on the same images, less the mean of each over all the
                images, ``(images seen, witnesses)``.
        """
        seen = len(apart)
        columns = np.ones((seen, 1))
        if beside is not None:
            columns = np.hstack([columns, beside.numpy()])
        found, variance, freedom = _intercept(columns, apart.numpy())
        return Difference(found, math.sqrt(variance * (1 - seen / self.images)), freedom)

    def beaten(self, found: Difference) -> bool:
        """Say at a look whether the rival has won."""
        return found.value > _quantile(self.rate / len(self.looks), found.freedom) * found.error

    def estimate(self, mine: Answers, theirs: Answers, rival: Rival, found: Difference) -> Score:
        """Return the score of a beaten candidate: the rival's, moved by their difference.

        Its `loss_error` is that of the estimate: the rival's own and that of the difference,
        taken as independent.

        Args:
            mine: the candidate's answers on the images seen.
            theirs: the rival's on the same.
            rival: knows its score on all the images.
            found: the difference of their losses.
        """
        better = float(mine.right.double().mean() - theirs.right.double().mean())
        return Score(
            accuracy=round(min(1.0, max(0.0, rival.score.accuracy + better)), DIGITS),
            loss=round(rival.score.loss + found.value, DIGITS),
            images=len(mine.losses),
            loss_error=round(math.hypot(rival.score.loss_error, found.error), DIGITS),
            beaten_by=rival.arch.id,
        )


class Witness(Protocol):
    """Whoever answers image after image, in an order that is the same for all."""

    def first(self, images: int) -> Answers:
        """Return the answers on so many images, from the first."""


def run(
    race: Race, mine: Witness, theirs: Witness, rival: Rival, others: Sequence[Witness] = ()
) -> Score:
    """Look again and again; return the estimate of a beaten candidate, or the score of any other.

    Args:
        race: the test.
        mine: answers for the candidate; asked for no image that is not needed.
        theirs: answers for the rival.
        rival: knows its score on all the images.
        others: answer for the rival's witnesses, in their order.
    """
    beside = [(theirs, rival), *zip(others, rival.witnesses, strict=True)]
    for seen in race.looks:
        own, other = mine.first(seen), theirs.first(seen)
        columns = [
            witness.first(seen).losses - known.score.loss
            for witness, known in beside[: seen // IMAGES_EACH - 1]
        ]
        found = race.difference(own.losses - other.losses, torch.stack(columns, 1))
        if race.beaten(found):
            return race.estimate(own, other, rival, found)
    return mine.first(race.images).score()


class Answering:
    """A network that classifies images in portions, and none of them twice.

    Args:
        make: builds the network, when it is needed.
        portions: images ``(B, C, H, W)`` and labels ``(B,)``.

    Attributes:
        asked: how many images it has classified.
    """

    def __init__(
        self, make: Callable[[], torch.nn.Module], portions: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self.asked = 0
        self._make = make
        self._network: torch.nn.Module | None = None
        self._portions = portions
        self._parts: list[Answers] = []

    def first(self, images: int) -> Answers:
        """Return the answers on so many images, the end of a portion."""
        while self.asked < images:
            self._network = self._network or self._make()
            part = answers(self._network, [self._portions[len(self._parts)]])
            self._parts.append(part)
            self.asked += len(part.losses)
            if len(self._parts) == len(self._portions):
                self.release()
        right = torch.cat([part.right for part in self._parts])
        losses = torch.cat([part.losses for part in self._parts])
        return Answers(right[:images], losses[:images])

    def release(self) -> None:
        """Give up the network; its answers stay, and it is built again for more."""
        self._network = None


@dataclass(eq=False)
class RacingEvaluator:
    """Scores an architecture by a supernet's weights, against a rival if there is one.

    The images are always classified in the same portions, cut at the looks, so a score does not
    depend on who asks. A rival that was not scored here is looked at again, as far as needed.

    Attributes:
        evaluator: has the supernet and the images.
        rate: as in `Race`.
        again: images classified once more for rivals that another process had scored.
    """

    evaluator: SupernetEvaluator
    rate: float = RATE
    again: int = 0
    _known: OrderedDict[str, Answering] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.race = Race(sum(len(labels) for _, labels in self.evaluator.batches), self.rate)
        self._portions = portions(self.evaluator.batches, self.race.looks)

    def __call__(self, arch: Architecture, rival: Rival | None = None) -> Score:
        """Return the score on all the images, or the estimate of one that is beaten before.

        Raises:
            NotInSpace: if the supernet does not hold the architecture.
        """
        mine = self.answering(arch)
        if rival is None:
            score = mine.first(self.race.images).score()
        else:
            known = [self._recalled(one.arch) for one in (rival, *rival.witnesses)]
            before = sum(each.asked for each in known)
            score = run(self.race, mine, known[0], rival, known[1:])
            self.again += sum(each.asked for each in known) - before
        if score.beaten_by is None:
            self._keep(arch, mine)  # it may become a rival itself
        return score

    def answering(self, arch: Architecture) -> Answering:
        """Return what answers for an architecture, no image of which has been asked."""
        return Answering(partial(self.evaluator.prepared, arch), self._portions)

    def _recalled(self, arch: Architecture) -> Answering:
        """Return what answered for an architecture before, as far as it did."""
        return self._keep(arch, self._known.get(arch.id) or self.answering(arch))

    def _keep(self, arch: Architecture, answering: Answering) -> Answering:
        self._known[arch.id] = answering
        self._known.move_to_end(arch.id)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        for one in islice(reversed(self._known.values()), NETWORKS, None):
            one.release()
        return answering


def portions(
    batches: Sequence[tuple[Tensor, Tensor]], cuts: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Cut batches ``(B, C, H, W)`` and labels anew: at the cuts, and none above `BATCH` images."""
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    found: list[tuple[Tensor, Tensor]] = []
    begin = 0
    for end in (*cuts, len(labels)):
        found += zip(images[begin:end].split(BATCH), labels[begin:end].split(BATCH), strict=True)
        begin = end
    return found


def _intercept(columns: Numbers, values: Numbers) -> tuple[float, float, float]:
    """Fit values ``(n,)`` by least squares; return the first coefficient, its variance and freedom.

    HC3: the variance is the sum of the squares of how far the coefficient moves as one observation
    after the other is left out. Its freedom is Satterthwaite's, as of equal noise: of a quadratic
    form M, trace(M)^2 / trace(M^2) (Imbens and Kolesar, Review of Economics and Statistics 98,
    2016, section II.B).

    Args:
        columns: what is fitted, ``(n, k)``; dependent ones count once.
        values: what is to be fitted.
    """
    left, scale, right = np.linalg.svd(columns, full_matrices=False)
    kept = scale > scale[0] * len(columns) * np.finfo(np.float64).eps
    left = left[:, kept]
    weights = left @ (right[kept, 0] / scale[kept])
    hats = (left * left).sum(1)
    moves = weights / np.maximum(1 - hats, LEFT)
    rest = values - left @ (left.T @ values)
    squares = moves * moves
    crossed = left.T @ (left * squares[:, None])
    trace = squares @ (1 - hats)
    spread = squares * squares @ (1 - 2 * hats) + np.sum(crossed * crossed)
    variance = float(squares @ (rest * rest))
    return float(weights @ values), variance, float(trace * trace / spread)


def _quantile(rate: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, rate))
