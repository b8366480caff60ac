"""An audit's rows: what the supernet and the trainings say of each network, and what it is."""

import statistics
from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

import numpy as np

from mixnas.arch import Architecture
from mixnas.cost.limit import column, in_column
from mixnas.jobs.audit_draws import Span
from mixnas.jobs.entrants import Entrant
from mixnas.ranking import Ranking, places

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
Rows = Sequence[Mapping[str, Any]]


def rows(
    entrants: Sequence[Entrant],
    scores: Mapping[str, Mapping[str, float]],
    results: Results,
    seeds: int,
    span: Span,
) -> list[dict[str, Any]]:
    """Return a row for each architecture, in their order; its figures are None if it failed.

    Args:
        entrants: who was trained.
        scores: by the supernet, by key.
        results: what each training returned, by key and seed.
        seeds: trainings of each.
        span: costs of what is feasible.
    """
    return [
        {
            "key": entrant.key,
            "group": entrant.key.partition("-")[0],
            "id": (arch := Architecture.from_dict(entrant.source["arch"])).id,
            "inside": entrant.costs[span.cost] >= span.edge,
            "load": entrant.costs[span.cost] / span.greatest,
            **{column(c): in_column(c, value) for c, value in entrant.costs.items()},
            "supernet_loss": scores[entrant.key]["loss"],
            "supernet_accuracy": scores[entrant.key]["accuracy"],
            **_alone(results.get(entrant.key, {}), seeds),
            **traits(arch),
        }
        for entrant in entrants
    ]


def _alone(results: Mapping[int, Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """Return loss and accuracy by seed, their means and their spread."""
    found = [results.get(seed, {}) for seed in range(seeds)]
    if not all("hits" in result for result in found):
        names = ("losses", "accuracies", "loss", "loss_spread", "accuracy", "accuracy_spread")
        return dict.fromkeys(names)
    told: dict[str, Any] = {}
    for name, plural in (("loss", "losses"), ("accuracy", "accuracies")):
        values = [result[name] for result in found]
        told[plural] = values
        told[name] = statistics.fmean(values)
        told[f"{name}_spread"] = statistics.stdev(values) if seeds > 1 else None
    return told


def traits(arch: Architecture) -> dict[str, Any]:
    """Return what an architecture is on each axis.

    stem: its kind; depth: its blocks; width: the mean of log2(width) over its stages, each less
    the stride's own doubling; ratio: the MLPs' mean; mixers: each one's share of the blocks.
    """
    blocks = [block for stage in arch.stages for block in stage.blocks]
    strides = [log2(arch.stem.stride) + place for place in range(len(arch.stages))]
    widths = [log2(stage.width) - s for stage, s in zip(arch.stages, strides, strict=True)]
    names = [block.mixer for block in blocks]
    return {
        "stem": arch.stem.kind,
        "depth": len(blocks),
        "width": statistics.fmean(widths),
        "ratio": statistics.fmean(block.ratio for block in blocks),
        "mixers": {name: names.count(name) / len(names) for name in sorted(set(names))},
    }


def ranked(found: Rows) -> Ranking:
    """Return rows that have every figure as a ranking; costs as a share of the budget."""
    return Ranking(
        np.array([row["supernet_loss"] for row in found]),
        np.array([row["losses"] for row in found]),
        np.array([row["accuracies"] for row in found]),
        np.array([row["load"] for row in found]),
    )


def placed(found: Rows) -> list[dict[str, Any]]:
    """Return the rows with their places, 1 the best, among all that have every figure."""
    whole = [row for row in found if row["losses"] is not None]
    if not whole:
        return [dict(row, supernet_place=None, place=None) for row in found]
    foretold = places(np.array([row["supernet_loss"] for row in whole]))
    true = places(np.array([row["loss"] for row in whole]))
    known = {
        row["key"]: (float(a), float(b)) for row, a, b in zip(whole, foretold, true, strict=True)
    }
    return [
        dict(
            row,
            supernet_place=known.get(row["key"], (None, None))[0],
            place=known.get(row["key"], (None, None))[1],
        )
        for row in found
    ]
