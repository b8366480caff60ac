"""What an audit will take, and its stages: draws, scores by the supernet, trainings, findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from mixnas import report
from mixnas.arch import Architecture
from mixnas.errors import MixnasError
from mixnas.jobs.audit_draws import Span
from mixnas.jobs.audit_rows import placed, rows
from mixnas.jobs.audit_verdict import SHARES, findings
from mixnas.jobs.audited import JOB
from mixnas.jobs.contest import (
    SUMMARY,
    TRAINED,
    Comparison,
    Contest,
    Results,
    belongs,
    digest,
    trainings,
)
from mixnas.jobs.entrants import Entrant
from mixnas.jobs.problem import Plan, Problem
from mixnas.jobs.settings import duration
from mixnas.network import Network
from mixnas.ranking import ENOUGH
from mixnas.run import Run

SCORES, TABLE = "scores.json", "audit.csv"
FIGURES = ("loss", "accuracy", "images", "loss_error")
"""What is kept of a score."""
REHEARSED = 5
"""Networks of which a training step is timed; the others' follow from their cost."""
OVERHEAD = 30.0
"""Seconds for starting workers, drawing, and the figures."""


@dataclass(frozen=True)
class Audit:
    """What an audit will take.

    Attributes:
        trainings: who is trained, and what is still to be done.
        across: architectures over the whole span of costs.
        inside: architectures near its upper end.
        cost: whose span it is.
        ranked: side of the images on which the supernet ranks, in pixels.
        trained: side of the images on which the networks are trained alone.
        scoring: seconds that the supernet's scores should take.
    """

    trainings: Comparison
    across: int
    inside: int
    cost: str
    ranked: int
    trained: int
    scoring: float

    @property
    def seconds(self) -> float:
        """How long it should take."""
        plan = self.trainings
        spans = sum(plan.steps * plan.pace.get(key, 0.0) for key, _ in plan.trainings)
        return OVERHEAD + self.scoring + spans / plan.workers

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        own = {name: getattr(self, name) for name in ("across", "inside", "cost", "scoring")}
        sides = {"ranked": self.ranked, "trained": self.trained}
        return {**self.trainings.to_dict(), **own, **sides, "seconds": self.seconds}

    def rows(self) -> dict[str, str]:
        """Return the plan for people: label to text."""
        plan = self.trainings
        wanted = len(plan.entrants) * plan.seeds
        done = wanted - len(plan.trainings)
        before = f", {done} of them done before" if done else ""
        transfer = "" if self.trained == self.ranked else f", trained alone at {self.trained} px"
        return {
            "run": str(plan.run),
            "architectures": f"{self.across} with costs ({self.cost}) spread over the budget, "
            f"{self.inside} within 10 % of the dearest feasible cost, and the winner",
            **{f"without {key}": reason for key, reason in plan.absent.items()},
            "ranked": f"by the supernet at {self.ranked} px{transfer}",
            "trainings": f"{wanted} of {plan.steps:,} steps ({plan.epochs} epochs), {plan.seeds} "
            f"seeds, {plan.workers} workers{before}",
            "judged on": f"{plan.images:,} images that chose nothing",
            "time": f"about {duration(self.seconds)}",
        }


@dataclass(frozen=True)
class Auditing(Contest):
    """An audit's stages: a contest of drawn architectures, none of which is to win.

    Attributes:
        original: what the run searched, at the size of images at which the supernet ranks.
        network: the trained supernet.
    """

    original: Problem
    network: Network

    @property
    def settings(self) -> dict[str, Any]:
        """What decides every result: other settings are another audit."""
        return {"job": JOB, **super().settings}

    def audit(self, plan: Comparison) -> Audit:
        """Return what the whole will take."""
        groups = [entrant.key.partition("-")[0] for entrant in plan.entrants]
        each = Plan.of(self.searched).evaluation_seconds
        return Audit(
            trainings=plan,
            across=groups.count("across"),
            inside=groups.count("inside"),
            cost=Span(self.original).cost,
            ranked=self.original.data.image,
            trained=self.problem.data.image,
            scoring=each * len(plan.entrants),
        )

    def _pace(self, entrants: Sequence[Entrant], kept: Run | None, keep: bool) -> dict[str, float]:
        """Time a step of a few, from the cheapest to the dearest; the others' lie between."""
        if not entrants:
            return {}
        ordered = sorted(entrants, key=lambda entrant: entrant.costs["flops"])
        places = np.linspace(0, len(ordered) - 1, REHEARSED).round().astype(int)
        chosen = [ordered[place] for place in sorted(set(places.tolist()))]
        pace = super()._pace(chosen, kept, keep)
        known = [entrant for entrant in ordered if entrant.key in pace]
        spans = np.interp(
            [entrant.costs["flops"] for entrant in ordered],
            [entrant.costs["flops"] for entrant in known],
            [pace[entrant.key] for entrant in known],
        )
        told = {e.key: float(span) for e, span in zip(ordered, spans, strict=True)}
        return told | pace

    def score(self, plan: Comparison, kept: Run) -> dict[str, dict[str, float]]:
        """Score every architecture by the supernet, as the search does; each once.

        Raises:
            RunConflict: if earlier scores are damaged.
        """
        scores = _scores(kept)
        lacking = [
            entrant
            for entrant in plan.entrants
            if entrant.key not in scores or not belongs(scores[entrant.key], entrant)
        ]
        if not lacking:
            return scores
        evaluator = self.original.evaluator(self.network)
        self.listener.stage("scores", len(plan.entrants), len(plan.entrants) - len(lacking))
        for entrant in lacking:
            found = evaluator(Architecture.from_dict(entrant.source["arch"]))
            told = {figure: getattr(found, figure) for figure in FIGURES}
            scores[entrant.key] = told | {"of": digest(entrant.source)}
            kept.write(SCORES, scores)
            self.listener.advance(1, loss=found.loss, accuracy=found.accuracy)
        self.listener.end()
        return scores

    def find(
        self,
        plan: Comparison,
        kept: Run,
        scores: Mapping[str, Mapping[str, float]],
        results: Results,
    ) -> None:
        """Write the tables, the summary, the picture and the page."""
        span = Span(self.original)
        found = placed(rows(plan.entrants, scores, results, plan.seeds, span))
        kept.write(TABLE, pandas.DataFrame([_flat(row, plan.seeds) for row in found]))
        kept.write(TRAINED, pandas.DataFrame(trainings(plan, results)).drop(columns="kind"))
        problem = self.problem
        told = {
            "format": 1,
            "job": JOB,
            "audit": kept.name,
            "of": self.searched.name,
            **findings(found, plan.seeds),
            "rule": "tau's 95 % interval above 0, and tau at least "
            f"{SHARES['overall']:g} of its ceiling across the budget, {SHARES['inside']:g} of it "
            f"inside; nothing is said of fewer than {ENOUGH} networks",
            "data": problem.data.name,
            "labels": len(problem.data.labels),
            "budget": [str(limit) for limit in problem.limits],
            "cost": span.cost,
            "image": problem.space.image,
            "classes": problem.space.classes,
            "ranked": self.original.data.image,
            "trained": problem.data.image,
            "rank_images": next(iter(scores.values()))["images"],
            "images": plan.images,
            "seeds": plan.seeds,
            "epochs": plan.epochs,
            "steps": plan.steps,
            "recipe": self.settings["recipe"],
            "rows": found,
            "absent": dict(plan.absent),
            "failed": _failed(plan, results),
        }
        kept.write(SUMMARY, told)
        report.audited_figure(kept)
        report.audited_html(kept)
        self._named()

    def _named(self) -> None:
        """Make the run's page again, if it has one: it names the audits."""
        if self.searched.file(report.PAGE).is_file():
            try:
                report.html(self.searched)
            except (MixnasError, KeyError) as error:
                self.listener.note(f"the run's {report.PAGE} does not name the audit: {error}")


def _scores(kept: Run) -> dict[str, dict[str, float]]:
    if not kept.file(SCORES).is_file():
        return {}
    scores = kept.read(SCORES)
    try:
        if all(isinstance(each[k], int | float) for each in scores.values() for k in FIGURES):
            return dict(scores)
    except (KeyError, TypeError, AttributeError):
        pass
    raise kept.broken(SCORES)


def _flat(row: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return a row of the table: what it holds by seed and by mixer in columns of their own."""
    plain = {k: v for k, v in row.items() if k not in ("losses", "accuracies", "mixers")}
    for name in ("losses", "accuracies"):
        one = {"losses": "loss", "accuracies": "accuracy"}[name]
        plain |= {f"{one}_seed{s}": row[name][s] if row[name] else None for s in range(seeds)}
    return plain | {f"share_{mixer}": share for mixer, share in row["mixers"].items()}


def _failed(plan: Comparison, results: Results) -> dict[str, str]:
    """Return why networks have no figures, by key."""
    return {
        entrant.key: str(result["reason"])
        for entrant in plan.entrants
        for result in results[entrant.key].values()
        if "hits" not in result
    }
