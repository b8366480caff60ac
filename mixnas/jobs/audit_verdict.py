"""What an audit found: rows, figures by region and by axis, and one plain sentence.

The rule. A ranking may be trusted where the lower end of tau's 95 % interval is above 0 and tau is
at least `SHARES` of its ceiling; the ceiling is the tau of one training seed against another on the
same networks. Where the ceiling itself cannot be told from 0, or there are fewer than `ENOUGH`
networks, nothing can be said.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixnas.jobs.audit_axes import by_axis, misplaced
from mixnas.jobs.audit_draws import INSIDE
from mixnas.jobs.audit_rows import Rows, ranked
from mixnas.ranking import ENOUGH, LEAST, Estimate, proportion, regret
from mixnas.ranking import regret_by_chance as by_chance

SHARES = {"overall": 0.7, "inside": 0.5}
"""The share of its ceiling that a trusted tau has at least, across the budget and inside it."""
DRAWS = 2000
"""Bootstrap draws of how often the winner beats others."""
TOPS = (1, 5)
"""How many of the supernet's best are looked at for the regret."""


def findings(found: Rows, seeds: int) -> dict[str, Any]:
    """Return all that an audit says, as plain data.

    Args:
        found: what `rows` returned.
        seeds: trainings of each.

    Returns:
        overall and inside (figures with intervals, or None if there are too few networks),
        winner (how often it beats others), axes, values (of the axes), misplaced, trusted
        and sentence.
    """
    whole = [row for row in found if row["losses"] is not None]
    drawn = [row for row in whole if row["group"] != "winner"]
    across = [row for row in drawn if row["group"] == "across"]
    inside = [row for row in drawn if row["inside"]]
    told = {"overall": region(across), "inside": region(inside)}
    axes, values = by_axis(drawn)
    verdict = {name: trusted(figures, SHARES[name]) for name, figures in told.items()}
    return {
        **told,
        "winner": {"across": _beats(whole, across), "inside": _beats(whole, inside)},
        "axes": axes,
        "values": values,
        "misplaced": misplaced(values, len(drawn)),
        "trusted": verdict,
        "sentence": sentence(told, verdict, seeds),
    }


def region(found: Rows) -> dict[str, Any] | None:
    """Return the figures of some of the drawn networks; None if they are too few."""
    if len(found) < LEAST:
        return None
    ranking = ranked(found)
    figures = {name: _plain(each) for name, each in ranking.estimates().items()}
    accuracy = ranking.accuracies.mean(1)
    order = np.argsort(ranking.predicted, kind="stable")
    return {
        "networks": len(found),
        **figures,
        "tau_over_seeds": _plain(ranking.over_seeds()),
        **{f"regret_{top}": regret(ranking.predicted, ranking.truth, top) for top in TOPS},
        **{f"chance_{top}": by_chance(ranking.truth, top) for top in TOPS},
        **{
            f"accuracy_regret_{top}": float(accuracy.max() - accuracy[order[:top]].max())
            for top in TOPS
        },
        "spread": float(ranking.truth.std()),
        "noise": _noise(ranking.truths),
    }


def _noise(truths: NDArray[np.float64]) -> float | None:
    """Return the standard deviation of one network's loss from seed to seed, pooled."""
    return float(np.sqrt(truths.var(1, ddof=1).mean())) if truths.shape[1] > 1 else None


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else asdict(estimate)


def _beats(whole: Rows, others: Rows) -> dict[str, Any] | None:
    """Return how often the winner's loss is below a drawn network's, with its interval.

    Both the networks and, with more than one seed, the winner's trainings might be others.
    """
    winner = next((row for row in whole if row["group"] == "winner"), None)
    if winner is None or not others:
        return None
    hits, number = sum(winner["loss"] < row["loss"] for row in others), len(others)
    found = proportion(hits, number)
    low, high = found.low, found.high
    noise = _noise(np.array([row["losses"] for row in (winner, *others)]))
    if noise is not None:  # the winner's own few trainings are in every comparison
        rng = np.random.default_rng(0)
        moved = winner["loss"] + rng.normal(0, noise / len(winner["losses"]) ** 0.5, (DRAWS, 1))
        losses = np.array([row["loss"] for row in others])
        shares = (moved < losses[rng.integers(0, number, (DRAWS, number))]).mean(1)
        low, high = min(low, np.quantile(shares, 0.025)), max(high, np.quantile(shares, 0.975))
    return {
        "beaten": hits,
        "of": number,
        "value": found.value,
        "low": float(low),
        "high": float(high),
    }


def trusted(figures: Mapping[str, Any] | None, share: float) -> str:
    """Apply the rule: ``yes``, ``no``, or ``unknown`` where nothing can be said."""
    if figures is None or figures["tau"] is None or figures["networks"] < ENOUGH:
        return "unknown"
    if figures["tau"]["low"] <= 0:
        return "no" if _known(figures["ceiling"]) else "unknown"
    if not _known(figures["ceiling"]):
        return "unknown"
    return "yes" if figures["tau"]["value"] >= share * figures["ceiling"]["value"] else "no"


def _known(ceiling: Mapping[str, float] | None) -> bool:
    return ceiling is not None and ceiling["low"] > 0


def sentence(told: Mapping[str, Any], verdict: Mapping[str, str], seeds: int) -> str:
    """Say plainly whether the ranking may be trusted, and where."""
    figures = "; ".join(
        part
        for part in (
            _figures("across the budget", told["overall"]),
            _figures(f"inside it (within {100 * INSIDE:.0f} % of the dearest)", told["inside"]),
        )
        if part
    )
    words = WORDS[verdict["overall"], verdict["inside"]]
    single = " One seed shows no ceiling; give more --seeds." if seeds < 2 else ""
    return f"The ranking {words}{': ' if figures else ''}{figures}.{_cheaper(told)}{single}"


def _cheaper(told: Mapping[str, Any]) -> str:
    """Say where the supernet ranks worse than cost does, which takes no training.

    Nothing is said of fewer than `ENOUGH` networks.
    """
    parts = []
    for name, where in (("overall", "across the budget"), ("inside", "inside it")):
        figures = told[name] or {}
        own, cheap = figures.get("tau"), figures.get("tau_cost")
        if figures.get("networks", 0) < ENOUGH:
            continue
        if own and cheap and cheap["value"] > own["value"]:
            parts.append(f"{where} (tau {cheap['value']:.2f})")
    return f" By cost alone, the dearer the better, it is truer {' and '.join(parts)}." * bool(
        parts
    )


WORDS = {
    ("yes", "yes"): "may be trusted",
    ("yes", "no"): "may be trusted across the budget, but not inside it",
    ("no", "yes"): "may be trusted inside the budget, but not across it",
    ("no", "no"): "may not be trusted",
    ("yes", "unknown"): "may be trusted across the budget; inside it nothing can be said",
    ("no", "unknown"): "may not be trusted across the budget; inside it nothing can be said",
    ("unknown", "yes"): "may be trusted inside the budget; across it nothing can be said",
    ("unknown", "no"): "may not be trusted inside the budget; across it nothing can be said",
    ("unknown", "unknown"): "cannot be judged",
}
"""The verdict across the budget and inside it, in words."""


def _figures(where: str, figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return f"{where} fewer than {LEAST} networks"
    if figures["tau"] is None:
        return f"{where} no tau can be told (networks alike, or a loss that is no number)"
    tau, top = figures["tau"], figures["ceiling"]
    text = f"tau {tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}] {where}"
    text += "" if top is None else f", ceiling {top['value']:.2f}"
    few = figures["networks"] < ENOUGH
    return f"{text} ({figures['networks']} networks; {ENOUGH} are needed)" if few else text
