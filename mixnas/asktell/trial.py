"""What a search hands out and what it knows: `Candidate`, `Trial`, best and front."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mixnas.arch import Architecture
from mixnas.asktell.log import parse
from mixnas.evaluate import Failure, Score

Genes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture to be evaluated, under the number to tell its outcome with."""

    number: int
    arch: Architecture


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation: asked, and told or still pending.

    Attributes:
        number: its place in the search, from 0.
        arch: what is evaluated.
        costs: cost by name, in the tables' units (multiply-adds, parameters, nanoseconds).
        generation: the generation it was asked in.
        origin: ``first`` population, the ``sampler`` as it stands, its draw after ``repair``,
            a ``mutant`` or a ``fresh`` draw in place of a repeated one.
        genes: the sampler's view: an index into each open gene's choices.
        state: ``pending``, ``complete`` or ``failed``.
        score: of a complete trial.
        reason: of a failed one.
    """

    number: int
    arch: Architecture
    costs: Mapping[str, int]
    generation: int = 0
    origin: str = "first"
    genes: Genes = field(default=(), repr=False)
    state: Literal["pending", "complete", "failed"] = "pending"
    score: Score | None = None
    reason: str | None = None

    @property
    def loss(self) -> float:
        """The loss of a complete trial, infinity for any other."""
        return self.score.loss if self.score else float("inf")

    @property
    def cost(self) -> int:
        """The first cost, the one that the front weighs against the loss; 0 without costs."""
        return next(iter(self.costs.values()), 0)

    def told(self, outcome: Score | Failure) -> "Trial":
        """Return the trial with its outcome."""
        if isinstance(outcome, Score):
            return replace(self, state="complete", score=outcome)
        return replace(self, state="failed", reason=outcome.reason)


def best(trials: Iterable[Trial]) -> Trial | None:
    """Return the complete trial of least loss; accuracy, then the earlier number, break ties."""
    complete = [trial for trial in trials if trial.score]
    return min(complete, key=_rank, default=None)


def front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the complete trials that no other beats in both loss and first cost, cheapest first.

    Of trials equal in both, the earliest stays.
    """
    chosen: list[Trial] = []
    complete = [trial for trial in trials if trial.score]
    for trial in sorted(complete, key=lambda trial: (trial.cost, trial.loss, trial.number)):
        if not chosen or trial.loss < chosen[-1].loss:
            chosen.append(trial)
    return chosen


def read_trials(log: Path) -> list[Trial]:
    """Read a search's trials from its log alone, without joining in the search.

    Raises:
        RunConflict: if a line cannot be read.
    """
    trials: dict[int, Trial] = {}
    for line in parse(log)[0][1:]:
        if "ask" in line:
            trials[line["ask"]] = asked(line)
        else:
            trials[line["tell"]] = trials[line["tell"]].told(outcome(line))
    return list(trials.values())


def ask_line(trial: Trial) -> dict[str, Any]:
    """Return the log's line for a trial as it is asked."""
    return {
        "ask": trial.number,
        "generation": trial.generation,
        "origin": trial.origin,
        "costs": dict(trial.costs),
        "arch": trial.arch.to_dict(),
        "genes": list(trial.genes),
    }


def asked(line: Mapping[str, Any]) -> Trial:
    """Read what `ask_line` wrote."""
    return Trial(
        line["ask"],
        Architecture.from_dict(line["arch"]),
        line["costs"],
        line["generation"],
        line["origin"],
        tuple(line["genes"]),
    )


def tell_line(number: int, outcome: Score | Failure) -> dict[str, Any]:
    """Return the log's line for an outcome."""
    if isinstance(outcome, Failure):
        return {"tell": number, "failed": outcome.reason}
    return {
        "tell": number,
        "accuracy": outcome.accuracy,
        "loss": outcome.loss,
        "images": outcome.images,
        "loss_error": outcome.loss_error,
    }


def outcome(line: Mapping[str, Any]) -> Score | Failure:
    """Read what `tell_line` wrote."""
    if "failed" in line:
        return Failure(line["failed"])
    return Score(line["accuracy"], line["loss"], line["images"], line["loss_error"])


def _rank(trial: Trial) -> tuple[float, float, int]:
    return trial.loss, -trial.score.accuracy if trial.score else 0.0, trial.number
