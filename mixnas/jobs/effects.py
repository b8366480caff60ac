"""What a choice does to the loss, all else and the cost being equal: additive regressions.

The loss of the evaluated architectures is regressed on their choices by ridge regression (Hoerl
and Kennard, Technometrics 12, 1970), its penalty chosen by leave-one-out error. The logarithm of
the first cost and its square are covariates and are not shrunk: they are projected out of both
sides first (Frisch and Waugh, Econometrica 1, 1933), so that what is dear is not sold as good.
Intervals come from a bootstrap over trials. Shrinkage draws effects towards nought: where few
trials made a choice, its effect is told too small rather than too great.
"""

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
        low: lower end of the bootstrap's interval.
        high: upper end.
        chance: of so great an effect where there is none, by the bootstrap's standard error.
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
    fitted = within @ _ridge(columns, design, penalty)[: len(names)]
    rng, rows = np.random.default_rng(seed), len(design.losses)
    drawn = np.empty((draws, len(names)))
    for draw in range(draws):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(float)
        drawn[draw] = within @ _ridge(columns, design, penalty, weights)[: len(names)]
    return _told(names, counts, fitted, drawn)


def _told(
    names: Sequence[Name], counts: Numbers, fitted: Numbers, drawn: Numbers
) -> dict[Name, Effect]:
    from scipy.stats import norm

    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    errors = drawn.std(0)
    made = (counts > 0).sum(0)
    found = {}
    for place, name in enumerate(names):
        if made[place] < LEAST or errors[place] == 0:
            continue
        chance = 2 * float(norm.sf(abs(fitted[place]) / errors[place]))
        low, high = float(ends[0, place]), float(ends[1, place])
        found[name] = Effect(float(fitted[place]), low, high, chance, int(made[place]))
    return found


def _against_mean(counts: Numbers, groups: Sequence[object]) -> Numbers:
    """Return the matrix that takes from each effect the mean of its group's, of those told."""
    enough = (counts > 0).sum(0) >= LEAST
    matrix = np.eye(len(groups))
    for place, group in enumerate(groups):
        mates = [p for p, other in enumerate(groups) if other == group and enough[p]]
        if mates:
            matrix[place, mates] -= 1 / len(mates)
    return matrix


def _ridge(
    columns: Numbers, design: Design, penalty: float, weights: Numbers | None = None
) -> Numbers:
    """Return the coefficients of the shrunk columns, the covariates of cost projected out."""
    roots: Numbers = np.ones(len(columns)) if weights is None else np.sqrt(weights)
    held = design.costs * roots[:, None]
    both = np.column_stack([columns, design.losses]) * roots[:, None]
    rest = both - held @ np.linalg.lstsq(held, both, rcond=None)[0]
    left, right = rest[:, :-1], rest[:, -1]
    gram = left.T @ left + penalty * np.eye(left.shape[1])
    return np.asarray(np.linalg.solve(gram, left.T @ right), dtype=np.float64)


def _penalty(columns: Numbers, design: Design) -> float:
    from sklearn.linear_model import RidgeCV

    both = np.column_stack([columns, design.losses])
    both -= design.costs @ np.linalg.lstsq(design.costs, both, rcond=None)[0]
    model = RidgeCV(PENALTIES, fit_intercept=False).fit(both[:, :-1], both[:, -1])
    return float(model.alpha_)
