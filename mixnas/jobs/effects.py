"""What a choice does to the loss, all else and the cost being equal: additive regressions.

The loss of the evaluated architectures is regressed on their choices by ridge regression (Hoerl
and Kennard, Technometrics 12, 1970), its penalty chosen by leave-one-out error. The logarithm of
the first cost and its square are covariates and are not shrunk: they are projected out of both
sides first (Frisch and Waugh, Econometrica 1, 1933), so that what is dear is not sold as good.
Whether there is an effect is asked place by place: of the losses, what the cost and all the other
choices explain is taken out, and the rest is dealt out anew among the trials (Freedman and Lane,
Journal of Business and Economic Statistics 1, 1983). Effects being linear in the losses, how far
they scatter over all the ways to deal is known in closed form (Hoeffding, Annals of Mathematical
Statistics 22, 1951), and nothing is drawn. A bootstrap over trials alone would not do: where
choices are about as many as trials, it scatters far too little. An interval takes the greater of
the two errors. Shrinkage draws effects towards nought: where few trials made a choice, its effect
is told too small rather than too great. What the additive model lacks, such as a width that matters
with one stem alone, may pass for an effect of a mixer that goes with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mixnas.asktell import Trial

Numbers: TypeAlias = NDArray[np.float64]
Place: TypeAlias = tuple[int, int]
"""A block: its stage's stride, and its number there."""
Name: TypeAlias = tuple[Any, ...]
"""A choice: where, and what."""

DRAWS = 400
LEVEL = 0.95
LEAST = 5
"""Trials that must have made a choice before its effect is told."""
LEAST_PAIRS = 10
PENALTIES = tuple(float(10**power) for power in np.arange(-1, 3.1, 0.5))


@dataclass(frozen=True)
class Effect:
    """What a choice does to the loss, in nats, against the mean of the choices at its place.

    Attributes:
        value: less than 0 if it helps.
        low: lower end of its interval.
        high: upper end.
        chance: of so great an effect if no mixer at its place had any.
        trials: how many made the choice.
    """

    value: float
    low: float
    high: float
    chance: float
    trials: int


@dataclass(frozen=True, eq=False)
class Design:
    """Evaluated architectures as numbers.

    Attributes:
        losses: in nats, ``(trials,)``.
        costs: the covariates that are not shrunk, ``(trials, 3)``: 1, the cost's logarithm,
            its square.
        surroundings: stem, widths, depths and ratios, ``(trials, .)``.
        mixers: the mixer of each block of each architecture, by place.
    """

    losses: Numbers
    costs: Numbers
    surroundings: Numbers
    mixers: tuple[Mapping[Place, str], ...]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Design":
        """Describe complete trials."""
        logs = np.log([max(trial.cost, 1) for trial in trials])
        spread = logs.std()
        scaled = (logs - logs.mean()) / (spread if spread > 0 else 1.0)
        facts = [_surroundings(trial) for trial in trials]
        names = sorted({name for fact in facts for name in fact})
        return cls(
            np.array([trial.loss for trial in trials]),
            np.stack([np.ones_like(scaled), scaled, scaled**2], 1),
            np.array([[fact.get(name, 0.0) for name in names] for fact in facts]),
            tuple(_mixers(trial) for trial in trials),
        )

    def columns(self, name: Callable[[Place, str], Name]) -> tuple[list[Name], Numbers]:
        """Count named choices of mixers: their names, and how often each trial made them.

        Args:
            name: of a place and its mixer; ``stride and mixer`` adds up the blocks of a stage.
        """
        found = [[name(place, mixer) for place, mixer in one.items()] for one in self.mixers]
        names = sorted({name for one in found for name in one}, key=str)
        return names, _counts(found, names)

    def pairs(self) -> tuple[list[Name], Numbers]:
        """Count the neighbours: (stride, mixer, mixer of the block after it)."""
        found = [
            [
                (stride, mixer, one[stride, block + 1])
                for (stride, block), mixer in one.items()
                if (stride, block + 1) in one
            ]
            for one in self.mixers
        ]
        names = sorted({name for one in found for name in one}, key=str)
        counts = _counts(found, names)
        enough = (counts > 0).sum(0) >= LEAST_PAIRS
        return [name for name, kept in zip(names, enough, strict=True) if kept], counts[:, enough]


def _counts(found: Sequence[Sequence[Name]], names: Sequence[Name]) -> Numbers:
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(found), len(names)))
    for row, one in enumerate(found):
        for name in one:
            counts[row, place[name]] += 1
    return counts


def _surroundings(trial: Trial) -> dict[str, float]:
    """Return what an architecture chose beside its mixers, each choice as a column."""
    facts = {f"stem {trial.arch.stem.kind}": 1.0}
    for index, stage in enumerate(trial.arch.stages):
        stride = trial.arch.stem.stride << index
        facts[f"{stride} width {stage.width}"] = 1.0
        facts[f"{stride} depth {len(stage.blocks)}"] = 1.0
        facts[f"{stride} ratio"] = float(np.mean([block.ratio for block in stage.blocks]))
    return facts


def _mixers(trial: Trial) -> dict[Place, str]:
    return {
        (trial.arch.stem.stride << index, number): block.mixer
        for index, stage in enumerate(trial.arch.stages)
        for number, block in enumerate(stage.blocks)
    }


def effects(
    design: Design,
    names: Sequence[Name],
    counts: Numbers,
    groups: Sequence[object],
    *,
    beside: Numbers | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[Name, Effect]:
    """Return the effect of each choice that enough trials made.

    Args:
        design: the trials.
        names: of the choices.
        counts: how often each trial made each choice, ``(trials, choices)``.
        groups: what each choice stands beside; effects are told against the mean of the group's.
        beside: further columns that the regression holds equal, ``(trials, .)``.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    others = design.surroundings if beside is None else np.hstack([design.surroundings, beside])
    columns = np.hstack([counts, others])
    penalty = _penalty(columns, design)
    within = _against_mean(counts, groups)
    linear = within @ _linear(columns, design, penalty)[: len(names)]
    dealt = _dealt(design, counts, groups, others, linear)
    rng, rows = np.random.default_rng(seed), len(design.losses)
    drawn = np.empty((draws, len(names)))
    for draw in range(draws):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(float)
        drawn[draw] = within @ _ridge(columns, design, penalty, weights)[: len(names)]
    return _told(names, counts, linear @ design.losses, dealt, drawn.std(0))


@dataclass(frozen=True, eq=False)
class _Dealt:
    """What the effects would be where their group has none, each array ``(choices,)``.

    Attributes:
        errors: standard error of each effect.
        own: effects of what all but the group leaves of the losses, in units of their own errors.
        freedom: degrees of freedom of the errors.
    """

    errors: Numbers
    own: Numbers
    freedom: Numbers


def _told(
    names: Sequence[Name], counts: Numbers, fitted: Numbers, dealt: _Dealt, drawn: Numbers
) -> dict[Name, Effect]:
    """Tell effects; the chance is the greater of that of an effect and that of its own part.

    So nothing passes for an effect that shrinkage has left to it of another's.
    """
    from scipy.stats import t

    made, errors = (counts > 0).sum(0), np.maximum(dealt.errors, drawn)
    found = {}
    for place, name in enumerate(names):
        value, error, freedom = (float(of[place]) for of in (fitted, errors, dealt.freedom))
        if made[place] < LEAST or error == 0:
            continue
        wide = error * float(t.ppf((1 + LEVEL) / 2, freedom))
        least = min(abs(value) / error, max(0.0, float(dealt.own[place]) * math.copysign(1, value)))
        chance = 2 * float(t.sf(least, freedom))
        found[name] = Effect(value, value - wide, value + wide, chance, int(made[place]))
    return found


def _dealt(
    design: Design, counts: Numbers, groups: Sequence[object], others: Numbers, linear: Numbers
) -> _Dealt:
    """Deal the rest of the losses out among the trials, in all ways at once.

    The sum of a_i r_p(i) over all permutations p of residuals r, both of mean 0, has the variance
    |a|^2 |r|^2 / (n - 1) (Hoeffding, 1951, theorem 2); residuals (I - S) losses are scaled by
    n / trace((I - S)^2), as they are too small (Hastie and Tibshirani, Generalized Additive
    Models, 1990, section 3.5).

    Args:
        design: the trials.
        counts: how often each trial made each choice, ``(trials, choices)``.
        groups: what each choice stands beside.
        others: further columns, ``(trials, .)``.
        linear: what turns losses into effects, ``(choices, trials)``.
    """
    rows = len(design.losses)
    errors, own, freedom = np.zeros(len(groups)), np.zeros(len(groups)), np.ones(len(groups))
    for group in dict.fromkeys(groups):
        here = np.array([other == group for other in groups])
        rest = _rest(np.hstack([counts[:, ~here], others]), design)
        residuals, left = rest @ design.losses, max(1.0, float(np.sum(rest * rest)))
        noise = float(residuals @ residuals) / left * rows / (rows - 1)
        errors[here] = np.sqrt((linear[here] ** 2).sum(1) * noise)
        scatter = np.sqrt(((linear[here] @ rest) ** 2).sum(1) * noise)
        own[here] = linear[here] @ residuals / np.where(scatter > 0, scatter, np.inf)
        freedom[here] = left
    return _Dealt(errors, own, freedom)


def _rest(columns: Numbers, design: Design) -> Numbers:
    """Return the matrix that takes from losses what costs and columns explain, I - S."""
    left, scale, _ = np.linalg.svd(_projected(columns, design.costs), full_matrices=False)
    share = scale**2 / (scale**2 + _penalty(columns, design))
    return _projected(np.eye(len(columns)), design.costs) - (left * share) @ left.T


def _against_mean(counts: Numbers, groups: Sequence[object]) -> Numbers:
    """Return the matrix that takes from each effect the mean of its group's, of those told."""
    enough = (counts > 0).sum(0) >= LEAST
    matrix = np.eye(len(groups))
    for place, group in enumerate(groups):
        mates = [p for p, other in enumerate(groups) if other == group and enough[p]]
        if mates:
            matrix[place, mates] -= 1 / len(mates)
    return matrix


def _projected(columns: Numbers, held: Numbers) -> Numbers:
    """Return columns less what those held explain of them."""
    explained: Numbers = held @ np.linalg.lstsq(held, columns, rcond=None)[0]
    return columns - explained


def _linear(columns: Numbers, design: Design, penalty: float) -> Numbers:
    """Return what turns losses into the coefficients of the shrunk columns, ``(., trials)``."""
    left = _projected(columns, design.costs)
    gram = left.T @ left + penalty * np.eye(left.shape[1])
    return np.asarray(np.linalg.solve(gram, left.T), dtype=np.float64)


def _ridge(columns: Numbers, design: Design, penalty: float, weights: Numbers) -> Numbers:
    """Return the coefficients of the shrunk columns, each trial counted by its weight."""
    roots = np.sqrt(weights)[:, None]
    held = _projected(np.column_stack([columns, design.losses]) * roots, design.costs * roots)
    left, right = held[:, :-1], held[:, -1]
    gram = left.T @ left + penalty * np.eye(left.shape[1])
    return np.asarray(np.linalg.solve(gram, left.T @ right), dtype=np.float64)


def _penalty(columns: Numbers, design: Design) -> float:
    from sklearn.linear_model import RidgeCV

    held = _projected(np.column_stack([columns, design.losses]), design.costs)
    model = RidgeCV(PENALTIES, fit_intercept=False).fit(held[:, :-1], held[:, -1])
    return float(model.alpha_)
