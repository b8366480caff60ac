"""Who won a comparison, and by how much.

Every entrant answers the same images after trainings of the same seeds, so entrants are compared
in pairs, the seed being the unit (`mixnas.jobs.paired`); the images are then taken as they are.
With one seed there is nothing to tell its noise by: the interval is a bootstrap over the images.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.cost.limit import column, in_column
from mixnas.jobs.entrants import Entrant
from mixnas.jobs.paired import Paired, paired

DRAWS = 2000
"""Bootstrap draws of an interval."""
LEVEL = 0.95
"""Confidence of an interval."""

Results = Mapping[int, Mapping[str, Any]]
"""What trainings of one entrant returned, by seed."""

VERDICTS = ("ahead", "level", "behind")
"""Where an entrant stands relative to the winner."""


def standings(
    entrants: Sequence[Entrant],
    results: Mapping[str, Results],
    latency: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Return a row for each entrant, in their order.

    Args:
        entrants: who took part, the winner first.
        results: for each entrant's key what its trainings returned.
        latency: for each entrant's key quartiles in milliseconds.
    """
    winner = results.get("winner", {})
    accuracies = {key: _accuracies(found) for key, found in results.items()}
    images = next((one["images"] for one in _complete(winner).values()), math.inf)
    pairs = paired(accuracies, "winner", images)
    return [
        {
            "key": entrant.key,
            "kind": entrant.kind,
            "label": entrant.label,
            **_accuracy(_complete(results.get(entrant.key, {}))),
            **_against(entrant.key, results.get(entrant.key, {}), winner, pairs),
            "flops": entrant.costs["flops"],
            "params": entrant.costs["params"],
            **_limited(entrant.costs),
            "latency_ms": latency.get(entrant.key, {}).get("median"),
            "latency_lower": latency.get(entrant.key, {}).get("lower"),
            "latency_upper": latency.get(entrant.key, {}).get("upper"),
            "note": "; ".join(
                filter(None, (entrant.note, _failures(results.get(entrant.key, {}))))
            ),
        }
        for entrant in entrants
    ]


def _limited(costs: Mapping[str, int]) -> dict[str, float]:
    """Return what else is limited, by its column."""
    counted = ("flops", "params")
    return {column(c): in_column(c, value) for c, value in costs.items() if c not in counted}


def sound(result: object, images: int) -> bool:
    """Say whether this is what a training returns, judged on so many images."""
    if not isinstance(result, Mapping):
        return False
    if "hits" not in result:
        return isinstance(result.get("reason"), str)
    hits, figures = result["hits"], [result.get(key) for key in ("accuracy", "loss", "seconds")]
    return (
        isinstance(hits, str)
        and len(hits) == images == result.get("images")
        and set(hits) <= {"0", "1"}
        and all(isinstance(figure, int | float) and math.isfinite(figure) for figure in figures)
    )


def _complete(results: Results) -> Results:
    return {seed: result for seed, result in results.items() if "hits" in result}


def _failures(results: Results) -> str:
    """Say why trainings have no result, each reason once."""
    reasons: dict[str, list[int]] = {}
    for seed, result in sorted(results.items()):
        if "hits" not in result:
            reasons.setdefault(str(result["reason"]), []).append(seed)
    return "; ".join(
        f"seed {', '.join(map(str, seeds))} failed: {reason}" for reason, seeds in reasons.items()
    )


def _accuracy(results: Results) -> dict[str, Any]:
    """Return the mean over the seeds, its spread, and the error that the images imply."""
    if not results:
        return dict.fromkeys(
            ("accuracy", "spread", "least", "most", "standard_error", "loss", "seconds")
        ) | {"seeds": 0}
    values = [result["accuracy"] for result in results.values()]
    mean = statistics.fmean(values)
    images = next(iter(results.values()))["images"]
    return {
        "seeds": len(values),
        "accuracy": mean,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "least": min(values),
        "most": max(values),
        "standard_error": math.sqrt(mean * (1 - mean) / images),
        "loss": statistics.fmean(result["loss"] for result in results.values()),
        "seconds": statistics.fmean(result["seconds"] for result in results.values()),
    }


def _accuracies(results: Results) -> dict[int, float]:
    return {seed: result["accuracy"] for seed, result in _complete(results).items()}


def _against(
    key: str, results: Results, winner: Results, pairs: Mapping[str, Paired]
) -> dict[str, Any]:
    """Return an entrant's accuracy less the winner's, its interval, and what that means."""
    if found := pairs.get(key):
        return {**asdict(found), "verdict": found.verdict}
    results, winner = _complete(results), _complete(winner)
    seeds = sorted(set(results) & set(winner))
    if key == "winner" or not seeds:
        return dict.fromkeys(("difference", "low", "high", "chance", "verdict"))
    answers = [np.stack([_hits(side[seed]) for seed in seeds]) for side in (results, winner)]
    gap = answers[0] - answers[1]
    low, high = interval(gap)
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
    figures = {"difference": float(gap.mean()), "low": low, "high": high}
    return {**figures, "chance": None, "verdict": verdict}


def _hits(result: Mapping[str, Any]) -> NDArray[np.float64]:
    return np.frombuffer(result["hits"].encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def interval(gap: NDArray[np.float64], draws: int = DRAWS) -> tuple[float, float]:
    """Return the bootstrap interval of a mean over seeds and images, both drawn anew.

    Args:
        gap: differences, (seeds, images).
        draws: how many bootstrap draws.
    """
    rng = np.random.default_rng(0)
    seeds, images = gap.shape
    means = np.empty(draws)
    for number in range(draws):
        rows = gap[rng.integers(0, seeds, seeds)].mean(axis=0)
        means[number] = rows[rng.integers(0, images, images)].mean()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sentence(rows: Sequence[Mapping[str, Any]], classes: int) -> str:
    """Say plainly whether the winner wins, ties or loses, and against whom.

    Args:
        rows: of `standings`.
        classes: of the data; one over it is guessing.
    """
    winner, *others = rows
    if winner["accuracy"] is None:
        return f"The winner has no result: {winner['note']}."
    judged = [row for row in others if row["verdict"]]
    best = max([winner, *judged], key=lambda row: row["accuracy"])
    place = 1 + sum(row["accuracy"] > winner["accuracy"] for row in judged)
    parts = [
        f"The winner reaches {winner['accuracy']:.1%}, place {place} of {1 + len(judged)}"
        + ("" if best is winner else f" (first: {best['label']}, {best['accuracy']:.1%})")
    ]
    for verdict, words in zip(VERDICTS, ("it loses to", "ties with", "wins against"), strict=True):
        labels = [row["label"] for row in judged if row["verdict"] == verdict]
        parts.append(f"{words} {_named(labels)}")
    failed = [row["label"] for row in others if not row["verdict"]]
    seeds = "" if winner["seeds"] > 1 else " With one seed, chance in training is not seen."
    missing = f" Without a result: {_named(failed)}." if failed else ""
    guessing = [
        row["label"]
        for row in (winner, *judged)
        if row["accuracy"] <= 1 / classes + 2 * row["standard_error"]
    ]
    chance = f" No better than guessing: {_named(guessing)}." if guessing else ""
    return f"{parts[0]}: {', '.join(parts[1:])}.{chance}{missing}{seeds}"


def _named(labels: Sequence[str]) -> str:
    return f"{len(labels)} ({'; '.join(labels)})" if labels else "none"
