"""Which mixer helps where: what a search's evaluated trials say beside its winner.

Three views, which need not agree. **Effects**: an additive regression of the loss on the choices,
at equal cost, each tested against its place having none (`mixnas.jobs.effects`). **Elite**: how
often the best tenth of the trials chose a mixer, beside its base rate among all that is feasible.
**Importance**: how much of the loss's variance each gene accounts for, by Optuna. All of it is by
the supernet's weights.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from mixnas import report
from mixnas.asktell import Trial
from mixnas.asktell.importance import importances
from mixnas.jobs.effects import LEVEL, Design, Effect, Place, effects
from mixnas.jobs.paired import holm
from mixnas.jobs.problem import Problem
from mixnas.ranking import proportion
from mixnas.run import Run
from mixnas.space import SearchSpace

FILE, TABLE = "attribution.json", "attribution.csv"
FORMAT = 1

LEAST = 40
"""Complete trials below which nothing is attributed."""
ELITE = 10
"""The elite is the best trial in so many, but at least `ELITE` trials."""
SURE = 0.05
"""Chance below which an effect is told apart from none, after Holm's correction.

Stages, blocks and pairs are a table each, corrected by itself.
"""
DRAWS = 1000
DEGENERATE = 1e-9
"""Width of a bootstrap's interval below which all of its draws were the same."""
ALL = "all"

Shares = Mapping[str, float]


def attribute(problem: Problem, run: Run, trials: Sequence[Trial]) -> None:
    """Write ``attribution.json``, ``attribution.csv`` and the figure of a finished search.

    Raises:
        StorageFull: if the disk is full.
    """
    bases = base_rates(problem.space, problem.feasible.rates().genes)
    found = attributed(trials, problem.space, bases)
    run.write(FILE, found)
    run.write(TABLE, pandas.DataFrame(found["blocks"] + found["stages"], columns=list(COLUMNS)))
    if found["blocks"]:
        run.write(report.ATTRIBUTION, report.attribution_png(found))


def base_rates(
    space: SearchSpace, genes: Mapping[str, Mapping[Any, float]]
) -> dict[tuple[int, str], Shares]:
    """Return the share of each mixer at each block, and over a stage's blocks (``"all"``).

    Args:
        space: what was searched.
        genes: share of feasible architectures by gene and value, as `Feasible.rates` tells them.
    """
    found: dict[tuple[int, str], Shares] = {}
    for stride in space.strides:
        here = [
            genes.get(f"s{stride}.b{number}.mixer", {}) for number in range(space.blocks(stride))
        ]
        for number, shares in enumerate(here):
            found[stride, str(number)] = _normal(shares)
        mixers = {mixer for shares in here for mixer in shares}
        total = {mixer: sum(shares.get(mixer, 0.0) for shares in here) for mixer in mixers}
        found[stride, ALL] = _normal(total)
    return found


def _normal(shares: Mapping[str, float]) -> Shares:
    total = sum(shares.values())
    return {mixer: share / total for mixer, share in shares.items()} if total else {}


def attributed(
    trials: Sequence[Trial],
    space: SearchSpace,
    bases: Mapping[tuple[int, str], Shares],
) -> dict[str, Any]:
    """Return what trials say of mixers, as plain data.

    Args:
        trials: of one search; complete ones count, with the estimates of those that a race stopped.
        space: what was searched.
        bases: as `base_rates` tells them.
    """
    complete = [trial for trial in trials if trial.score]
    empty = {"format": FORMAT, "trials": len(complete), "level": LEVEL}
    if len(complete) < LEAST or len({trial.loss for trial in complete}) < 2:
        few = f"{len(complete)} evaluated architectures are too few to say which mixer helps where"
        found = {"blocks": [], "stages": [], "pairs": [], "importance": {}, "elite": 0}
        return {**empty, "sentence": f"{few} ({LEAST} are needed).", **found}
    design = Design.of(complete)
    elite = [trial.number for trial in _elite(complete)]
    chosen = [one for t, one in zip(complete, design.mixers, strict=True) if t.number in elite]
    rows = {
        kind: list(_rows(found, space, chosen, bases))
        for kind, found in (("blocks", by_block(design)), ("stages", by_stage(design)))
    }
    return {
        **empty,
        "sentence": sentence(rows["stages"]),
        "elite": len(elite),
        **rows,
        "pairs": list(_pairs(design)),
        "importance": importances(complete, space),
    }


def by_block(design: Design) -> dict[tuple[int, str, str], Effect]:
    """Return each mixer's effect at each block."""
    names, counts = design.columns(lambda place, mixer: (place[0], str(place[1]), mixer))
    return _effects(design, names, counts)


def by_stage(design: Design) -> dict[tuple[int, str, str], Effect]:
    """Return each mixer's effect in a stage, for each of its blocks that has it."""
    names, counts = design.columns(lambda place, mixer: (place[0], ALL, mixer))
    return _effects(design, names, counts)


def _effects(
    design: Design, names: Sequence[Any], counts: Any
) -> dict[tuple[int, str, str], Effect]:
    found = effects(design, names, counts, [name[:2] for name in names])
    return {name: found[name] for name in names if name in found}


def _elite(complete: Sequence[Trial]) -> list[Trial]:
    contending = sorted((t for t in complete if t.contends), key=lambda t: (t.loss, t.number))
    return contending[: max(ELITE, math.ceil(len(complete) / ELITE))]


COLUMNS = (
    "stride", "block", "mixer", "trials", "effect", "low", "high", "chance", "told", "elite",
    "elite_low", "elite_high", "base",
)  # fmt: skip


def _rows(
    found: Mapping[tuple[int, str, str], Effect],
    space: SearchSpace,
    elite: Sequence[Mapping[Place, str]],
    bases: Mapping[tuple[int, str], Shares],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``attribution.csv``, in the order of places; see `COLUMNS`."""
    alone = {at for at in {name[:2] for name in found} if sum(n[:2] == at for n in found) < 2}
    compared = [name for name in found if name[:2] not in alone]
    chances = dict(zip(compared, holm([found[name].chance for name in compared]), strict=True))
    for name in sorted(compared, key=lambda name: (name[0], name[1].zfill(3), name[2])):
        (stride, block, mixer), effect = name, found[name]
        shares = _shares(elite, stride, block, mixer)
        yield {
            "stride": stride,
            "block": block,
            "mixer": mixer,
            "trials": effect.trials,
            "effect": effect.value,
            "low": effect.low,
            "high": effect.high,
            "chance": chances[name],
            "told": bool(chances[name] < SURE),
            **dict(zip(("elite", "elite_low", "elite_high"), shares, strict=True)),
            "base": bases.get((stride, block), {}).get(mixer),
        }


def _shares(
    elite: Sequence[Mapping[Place, str]], stride: int, block: str, mixer: str
) -> tuple[float | None, float | None, float | None]:
    """Return a mixer's share of the elite's blocks at a place, and its interval.

    Of one block: Wilson's. Of a stage: architectures are drawn anew, not blocks, since those of
    one architecture go together; where all draws agree, none of them with the mixer say, Wilson's
    again, each architecture counting once.
    """
    counts = np.array([_made(one, stride, block, mixer) for one in elite])
    made, blocks = counts.sum(0)
    if not blocks:
        return None, None, None
    share, units = float(made / blocks), int((counts[:, 1] > 0).sum())
    rng = np.random.default_rng(0)
    drawn = counts[rng.integers(0, len(counts), (DRAWS, len(counts)))].sum(1)
    drawn = drawn[drawn[:, 1] > 0]
    shares = drawn[:, 0] / drawn[:, 1]
    if block != ALL or np.ptp(shares) < DEGENERATE:
        wilson = proportion(round(share * units), units)
        return share, min(share, wilson.low), max(share, wilson.high)
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return share, float(low), float(high)


def _made(one: Mapping[Place, str], stride: int, block: str, mixer: str) -> tuple[int, int]:
    """Return how many of an architecture's blocks at a place have a mixer, and how many it has."""
    here = [m for (at, number), m in one.items() if at == stride and block in (ALL, str(number))]
    return sum(m == mixer for m in here), len(here)


def _pairs(design: Design) -> Iterator[dict[str, Any]]:
    """Yield what neighbours do beyond their own effects, the surest first; those told only."""
    names, counts = design.pairs()
    if not names:
        return
    _, blocks = design.columns(lambda place, mixer: (*place, mixer))
    found = effects(design, names, counts, [name[0] for name in names], beside=blocks)
    chances = holm([effect.chance for effect in found.values()])
    told = zip(found.items(), chances, strict=True)
    for (name, effect), chance in sorted(told, key=lambda pair: pair[1]):
        yield {
            **dict(zip(("stride", "first", "then"), name, strict=True)),
            "trials": effect.trials,
            "effect": effect.value,
            "low": effect.low,
            "high": effect.high,
            "chance": chance,
            "told": bool(chance < SURE),
        }


def sentence(stages: Iterable[Mapping[str, Any]]) -> str:
    """Say which mixers help or hurt at which stride, and where nothing is told apart."""
    by_stride: dict[int, list[Mapping[str, Any]]] = {}
    for row in stages:
        by_stride.setdefault(row["stride"], []).append(row)
    said, silent = [], []
    for stride, rows in by_stride.items():
        told = sorted((row for row in rows if row["told"]), key=lambda row: row["effect"])
        helping, hurting = (
            [row for row in told if (row["effect"] < 0) == helps] for helps in (True, False)
        )
        if helping:
            said.append(_said(helping[0], "helps"))
        if hurting:
            said.append(_said(hurting[-1], "hurts"))
        if not told:
            silent.append(str(stride))
    if silent:
        where = " and ".join([", ".join(silent[:-1]), silent[-1]] if silent[1:] else silent)
        said.append(f"nothing tells the mixers of stride {where} apart")
    if not said:
        return "No stage had a choice of mixers that enough architectures made."
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text.startswith("nothing") else f"{text}."


def _said(row: Mapping[str, Any], does: str) -> str:
    interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['mixer']} {does} at stride {row['stride']}: {row['effect']:+.3f} nats {interval}"
