"""Calibrating on whole networks: which terms count, how much, and how far a prediction is off.

Coefficients are non-negative least squares of relative errors, pulled to one common factor where
networks tell little. The interval is split conformal (Papadopoulos et al. 2002; Lei et al. 2018,
algorithm 2): networks that the fit never saw tell how far off it is, whatever the distribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from mixnas.cost.terms import MODELS, Floats, scaled

Indexes = NDArray[np.int64]

LEAST = 20
"""Networks that an interval needs at least."""
FITTED = 1 / 3
"""The share of the networks that is fitted to; the others tell the error. A coefficient or two
need few networks, an interval needs many."""
CONFIDENCE = 0.9
"""Of so many calibrations in a hundred, the interval holds what it says."""
FOLDS = 10
SLIGHT = 0.001
"""A difference of errors that is not worth a term: a thousandth of what a network takes."""
PULL = 0.2
"""How strongly factors are pulled together: the noise of a figure (about 0.05) by how far the
factors of two kinds of parts may lie apart (about 0.25)."""


@dataclass(frozen=True)
class Design:
    """Networks as numbers.

    Attributes:
        terms: each model's terms.
        sums: each model's matrix ``(networks, terms)``.
        figures: what the networks take, ``(networks,)``.
    """

    terms: Mapping[str, tuple[str, ...]]
    sums: Mapping[str, Floats]
    figures: Floats

    def of(self, rows: Indexes) -> "Design":
        """Return some of the networks."""
        sums = {model: matrix[rows] for model, matrix in self.sums.items()}
        return replace(self, sums=sums, figures=self.figures[rows])

    def __len__(self) -> int:
        return len(self.figures)


@dataclass(frozen=True)
class Calibration:
    """What networks taught.

    Attributes:
        model: the terms that were chosen.
        coefficients: each term's, at least 0.
        width: half width of the interval, as a log of a ratio: from ``value / exp(width)`` to
            ``value * exp(width)``; None if there are too few networks for one.
        confidence: over the draw of the calibration networks, that the interval covers its level.
    """

    model: str
    coefficients: Mapping[str, float]
    width: float | None
    confidence: float

    def values(self, design: Design) -> Floats:
        """Predict networks."""
        factors = np.array([self.coefficients[term] for term in design.terms[self.model]])
        return np.asarray(design.sums[self.model] @ factors)

    def errors(self, design: Design) -> Floats:
        """Return the log of what networks take over what is predicted."""
        return np.log(design.figures / self.values(design))


def split(number: int, seed: int) -> tuple[Indexes, Indexes]:
    """Split networks at random into those to fit to and those that tell the error, both sorted."""
    order = np.random.default_rng(seed).permutation(number)
    fitted = round(FITTED * number)
    return np.sort(order[:fitted]), np.sort(order[fitted:])


def calibrate(
    design: Design, level: float, seed: int, *, taught: Design | None = None, model: str = ""
) -> Calibration:
    """Choose a model, fit it, and find the interval.

    With fewer than `LEAST` networks there is no interval, and the model is the plainest.

    Args:
        design: networks drawn at random.
        level: of the interval.
        seed: of the split.
        taught: networks that a search chose. They are fitted to, but never tell the error, since
            they are no random draw; but the interval is widened, if need be, to reach them.
        model: the model, if it was chosen before.
    """
    enough = len(design) >= LEAST
    rows, others = split(len(design), seed) if enough else (np.arange(len(design)), None)
    fitted = design.of(rows)
    model = model or (choose(fitted) if enough else next(iter(MODELS)))
    learnt = fitted if taught is None else _joined(fitted, taught)
    found = Calibration(model, fit(learnt, model), None, 0.0)
    if others is None:
        return found
    width, confidence = conformal(np.abs(found.errors(design.of(others))), level)
    if taught is not None:
        width = max(width, float(found.errors(taught).max(initial=0.0)))
    return replace(found, width=width, confidence=confidence)


def _joined(first: Design, second: Design) -> Design:
    sums = {model: np.vstack([first.sums[model], second.sums[model]]) for model in first.sums}
    return replace(first, sums=sums, figures=np.concatenate([first.figures, second.figures]))


def conformal(errors: Floats, level: float) -> tuple[float, float]:
    """Return the half width that covers a level of new networks, and the confidence of that.

    The k-th smallest of n errors covers a share of new ones that is distributed as
    ``Beta(k, n + 1 - k)`` over the draw of the n (Vovk 2012, proposition 2a: training-conditional
    validity). The least k is taken for which that share is at least the level with a probability
    of `CONFIDENCE`, which is more than the usual ``ceil((n + 1) * level)``: that one holds on
    average over calibrations, and half of them would cover less. Where n is too small for any k,
    it is the greatest error, and the confidence says what that is worth.
    """
    from scipy.stats import beta  # takes half a second

    number = len(errors)
    ranks = np.arange(1, number + 1)
    chances = beta.sf(level, ranks, number + 1 - ranks)
    rank = int(np.searchsorted(chances, CONFIDENCE)) if chances[-1] >= CONFIDENCE else number - 1
    return float(np.sort(errors)[rank]), float(chances[rank])


def choose(design: Design) -> str:
    """Choose a model by cross-validation: the plainest that is as good as the best.

    As good is a mean absolute error (of logarithms) that exceeds the best's by at most `SLIGHT`, or
    one standard error of their difference, network by network (Hastie et al. 2009, section 7.10).
    """
    errors = {}
    for model in design.terms:
        found = np.empty(len(design))
        for others, these in folds(len(design)):
            learnt = Calibration(model, fit(design.of(others), model), None, 0.0)
            found[these] = np.abs(learnt.errors(design.of(these)))
        errors[model] = found
    best = min(errors.values(), key=lambda found: float(found.mean()))
    for model, found in errors.items():
        behind = found - best
        if behind.mean() <= max(behind.std(ddof=1) / len(design) ** 0.5, SLIGHT):
            return model
    raise AssertionError("the best model is as good as itself")


def folds(number: int, count: int = FOLDS) -> Iterator[tuple[Indexes, Indexes]]:
    """Yield the indexes outside and inside of each fold; every index is inside of one."""
    indexes = np.arange(number)
    for fold in range(min(count, number)):
        inside = indexes % count == fold
        yield indexes[~inside], indexes[inside]


def fit(design: Design, model: str) -> dict[str, float]:
    """Fit a model's coefficients, all at least 0, to relative errors.

    Factors of parts' figures are pulled to the one that serves all parts best; a term that no
    network has keeps it. Without networks the factors are 1 and all else is 0.
    """
    common = _common(design) if len(design) else 1.0
    terms = design.terms[model]
    pulled = [index for index, term in enumerate(terms) if scaled(term)]
    if not len(design):
        return {term: common if index in pulled else 0.0 for index, term in enumerate(terms)}
    pull = np.zeros((len(pulled), len(terms)))
    pull[range(len(pulled)), pulled] = PULL
    left = np.vstack([design.sums[model] / design.figures[:, None], pull])
    right = np.concatenate([np.ones(len(design)), np.full(len(pulled), PULL * common)])
    return dict(zip(terms, _solved(left, right), strict=True))


def _common(design: Design) -> float:
    """Return the factor of the plainest model; without a constant where that cannot be told."""
    plain = next(iter(MODELS))
    terms, sums = design.terms[plain], design.sums[plain] / design.figures[:, None]
    ratio = 1 / float(np.median(sums[:, terms.index("parts")]))
    if len(design) <= len(terms) + 2:
        return ratio
    found = dict(zip(terms, _solved(sums, np.ones(len(design))), strict=True))
    return found["parts"] or ratio


def _solved(left: Floats, right: Floats) -> list[float]:
    """Solve least squares in non-negative numbers; columns are scaled alike first."""
    from scipy.optimize import nnls  # takes half a second

    size = np.linalg.norm(left, axis=0)
    size[size == 0] = inf
    return [float(value) for value in nnls(left / size, right)[0] / size]


def ranked(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)
