"""What a search hands out and what it knows: `Candidate`, `Trial`, best and front."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mixnas.arch import Architecture
from mixnas.asktell.log import parse
from mixnas.evaluate import Failure, Score
from mixnas.racing import Rival

Genes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture to be evaluated, under the number to tell its outcome with.

    Attributes:
        number: that of its trial.
        arch: what is evaluated.
        rival: what it is set against in a race; None to judge every image.
    """

    number: int
    arch: Architecture
    rival: Rival | None = None


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
    def contends(self) -> bool:
        """Whether it is complete and every image was judged: only such a one may be chosen."""
        return self.score is not None and self.score.beaten_by is None

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
    """Return the complete trial of least loss; accuracy, then the earlier number, break ties.

    One that was beaten in a race is passed over: its loss is an estimate.
    """
    return min((trial for trial in trials if trial.contends), key=_rank, default=None)


WITNESSES = 12
"""How many of the first trials go with a rival, to correct for the images that were seen."""


def rival(trials: Sequence[Trial], cost: int) -> Rival | None:
    """Return the best trial whose first cost is not above this one: who beats it, dominates.

    The first trials are its witnesses, the same ones for every candidate, so that whoever
    evaluates need not judge ever new ones.
    """
    found = best(trial for trial in trials if trial.cost <= cost)
    if found is None or found.score is None:
        return None
    others = (trial for trial in trials if trial.contends and trial is not found)
    witnesses = (Rival(trial.arch, trial.score) for trial in others if trial.score)
    return Rival(found.arch, found.score, tuple(islice(witnesses, WITNESSES)))


def images(trials: Iterable[Trial]) -> dict[str, int]:
    """Return what racing did: images judged and saved, trials stopped, and complete ones."""
    scores = [trial.score for trial in trials if trial.score]
    whole = max((score.images for score in scores), default=0)
    judged = sum(score.images for score in scores)
    stopped = sum(score.beaten_by is not None for score in scores)
    return {
        "judged": judged,
        "saved": whole * len(scores) - judged,
        "stopped": stopped,
        "complete": len(scores),
    }


def front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the complete trials that no other beats in both loss and first cost, cheapest first.

    Of trials equal in both, the earliest stays. One that was beaten in a race never enters.
    """
    chosen: list[Trial] = []
    contending = [trial for trial in trials if trial.contends]
    for trial in sorted(contending, key=lambda trial: (trial.cost, trial.loss, trial.number)):
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
    line = {
        "tell": number,
        "accuracy": outcome.accuracy,
        "loss": outcome.loss,
        "images": outcome.images,
        "loss_error": outcome.loss_error,
    }
    return line if outcome.beaten_by is None else line | {"beaten_by": outcome.beaten_by}


def outcome(line: Mapping[str, Any]) -> Score | Failure:
    """Read what `tell_line` wrote."""
    if "failed" in line:
        return Failure(line["failed"])
    figures = (line["accuracy"], line["loss"], line["images"], line["loss_error"])
    return Score(*figures, line.get("beaten_by"))


def _rank(trial: Trial) -> tuple[float, float, int]:
    return trial.loss, -trial.score.accuracy if trial.score else 0.0, trial.number
