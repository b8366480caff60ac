"""What a supernet misplaces, by axis: mixer, width, depth, MLP ratio, stem."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.jobs.audit_rows import Rows, ranked
from mixnas.jobs.paired import LEVEL, holm
from mixnas.ranking import LEAST, bias, explained


def by_axis(drawn: Rows) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what the supernet ranks wrongly: a row an axis, and a row a value of an axis.

    Chances are corrected by Holm's procedure, axes and values each as one family.
    """
    if len(drawn) < LEAST:
        return [], []
    ranking = ranked(drawn)
    weights = _weights(drawn)
    axes: list[dict[str, Any]] = []
    values: list[dict[str, Any]] = []
    for axis, offered in weights.items():
        share, chance = explained(
            ranking.predicted, ranking.truth, np.stack(list(offered.values()), axis=1)
        )
        axes.append({"axis": axis, "explained": share, "chance": chance})
        for value, weight in offered.items():
            one = bias(ranking.predicted, ranking.truth, weight)
            values.append({"axis": axis, "value": value, **asdict(one)})
    return _corrected(axes), _corrected(values)


def _corrected(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chances = holm([float(row["chance"]) for row in family])
    return [dict(row, corrected=c) for row, c in zip(family, chances, strict=True)]


def _weights(drawn: Rows) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return how much of each value of each axis a network has; axes of one value are left out."""
    mixers = sorted({name for row in drawn for name in row["mixers"]})
    stems = sorted({row["stem"] for row in drawn})
    found = {
        "mixer": {m: np.array([row["mixers"].get(m, 0.0) for row in drawn]) for m in mixers},
        **{axis: _halved(drawn, axis, *words) for axis, words in HALVES.items()},
        "stem": {s: np.array([float(row["stem"] == s) for row in drawn]) for s in stems},
    }
    return {axis: values for axis, values in found.items() if len(values) > 1}


HALVES = {
    "width": ("narrow", "wide"),
    "depth": ("shallow", "deep"),
    "ratio": ("small MLPs", "large MLPs"),
}
"""Axes of numbers, which are cut at their median: the half below, the half above."""


def _halved(drawn: Rows, axis: str, low: str, high: str) -> dict[str, NDArray[np.float64]]:
    values = np.array([row[axis] for row in drawn], dtype=float)
    above = (values > np.median(values)).astype(float)
    if not above.any():  # the median is the greatest: what lies at it is the upper half
        above = (values >= np.median(values)).astype(float)
    return {} if above.all() else {low: 1 - above, high: above}


def misplaced(values: Sequence[Mapping[str, Any]], networks: int) -> str:
    """Say which traits the supernet rates wrongly beyond chance, the worst first."""
    sure = [row for row in values if row["corrected"] < 1 - LEVEL]
    if not sure:
        return "No mixer, width, depth or stem is over- or underrated beyond chance."
    sure.sort(key=lambda row: -abs(row["places"]["value"]))
    parts = (
        f"{'over' if row['places']['value'] > 0 else 'under'}rates {row['value']} by "
        f"{abs(row['places']['value']):.1f} places"
        for row in sure
    )
    return f"Of {networks} networks, the supernet {', '.join(parts)}."
