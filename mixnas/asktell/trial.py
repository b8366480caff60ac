"""What a search hands out and what it knows: `Candidate`, `Trial`, best and front."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

from mixnas.arch import Architecture
from mixnas.asktell.log import parse, reading
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


class Rivals:
    """Whom a candidate of some cost is set against, found in the logarithm of the trials' number.

    Kept are the trials that no cheaper one (or one as cheap) beats, cheapest first: a staircase
    whose loss falls as the cost rises.

    Args:
        trials: in the order of their numbers.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._costs: list[int] = []
        self._best: list[Trial] = []
        self._first: list[Trial] = []
        self.add(trials)

    def add(self, trials: Iterable[Trial]) -> None:
        """Let further trials in; those that cannot be chosen are passed over."""
        for trial in trials:
            if trial.contends:
                self._add(trial)

    def of(self, cost: int) -> Rival | None:
        """Return the best trial whose first cost is not above this one: who beats it, dominates.

        The first trials are its witnesses, the same ones for every candidate, so that whoever
        evaluates need not judge ever new ones.
        """
        place = bisect_right(self._costs, cost)
        if place == 0:
            return None
        found = self._best[place - 1]
        others = (trial for trial in self._first if trial is not found)
        witnesses = tuple(islice(map(_judged, others), WITNESSES))
        return replace(_judged(found), witnesses=witnesses)

    def _add(self, trial: Trial) -> None:
        if len(self._first) <= WITNESSES:
            self._first.append(trial)
        above = bisect_right(self._costs, trial.cost)
        if above and _rank(self._best[above - 1]) < _rank(trial):
            return
        begin = bisect_left(self._costs, trial.cost)
        end = begin
        while end < len(self._best) and _rank(trial) < _rank(self._best[end]):
            end += 1
        self._costs[begin:end], self._best[begin:end] = [trial.cost], [trial]


def _judged(trial: Trial) -> Rival:
    """Return a contending trial as a rival without witnesses."""
    assert trial.score is not None
    return Rival(trial.arch, trial.score)


def rival(trials: Iterable[Trial], cost: int) -> Rival | None:
    """Return the best trial whose first cost is not above this one, with its witnesses."""
    return Rivals(trials).of(cost)


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
        RunConflict: if a line cannot be read, or tells what has been told; it names the line.
    """
    trials: dict[int, Trial] = {}
    header, *lines = parse(log)[0] or [{}]
    for number, line in enumerate(lines, 2):
        with reading(log, number):
            if "ask" in line:
                _ask(trials, asked(line), header)
            else:
                _tell(trials, line["tell"], outcome(line))
    return list(trials.values())


def _ask(trials: dict[int, Trial], trial: Trial, header: Mapping[str, Any]) -> None:
    """Add a trial as it was asked."""
    if trial.number in trials:
        raise ValueError(f"a second ask of {trial.number}")
    if trial.costs.keys() != set(header.get("costs", trial.costs)):
        raise ValueError(f"costs {', '.join(trial.costs) or 'of nothing'}, not the header's")
    trials[trial.number] = trial


def _tell(trials: dict[int, Trial], number: int, outcome: Score | Failure) -> None:
    """Add a trial's outcome."""
    if number not in trials:
        raise ValueError(f"tell {number!r}: was never asked")
    if trials[number].state != "pending":
        raise ValueError(f"a second tell of {number}")
    trials[number] = trials[number].told(outcome)


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
    """Read what `ask_line` wrote.

    Raises:
        KeyError, TypeError, ValueError, InvalidSpace: if it is something else.
    """
    return Trial(
        _whole("ask", line["ask"]),
        Architecture.from_dict(line["arch"]),
        {name: _whole(f"costs.{name}", value) for name, value in line["costs"].items()},
        _whole("generation", line["generation"]),
        _text("origin", line["origin"]),
        tuple(_whole("genes", gene) for gene in line["genes"]),
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
    """Read what `tell_line` wrote.

    Raises:
        KeyError, TypeError, ValueError: if it is something else.
    """
    if "failed" in line:
        return Failure(_text("failed", line["failed"]))
    rival = line.get("beaten_by")
    return Score(
        _figure("accuracy", line["accuracy"], 0, 1),
        _figure("loss", line["loss"], -inf),
        _whole("images", line["images"]),
        _figure("loss_error", line["loss_error"]),
        None if rival is None else _text("beaten_by", rival),
    )


def _figure(name: str, value: Any, low: float = 0, high: float = inf) -> float:
    """Return what is a finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{name} {value!r}: a number is needed")
    if not low <= value <= high:
        raise ValueError(f"{name} {value!r}: outside {low} to {high}")
    return value


def _whole(name: str, value: Any) -> int:
    """Return what is a whole number, 0 or more."""
    if type(value) is not int or value < 0:
        raise TypeError(f"{name} {value!r}: a whole number is needed")
    return value


def _text(name: str, value: Any) -> str:
    """Return what is text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} {value!r}: text is needed")
    return value


def _rank(trial: Trial) -> tuple[float, float, int]:
    return trial.loss, -trial.score.accuracy if trial.score else 0.0, trial.number
