"""A search as its logs tell it: rounds, trials, finalists, winner, fronts; and the asks again.

What is read is ``run.json`` (what was asked) and the append-only logs: ``log*.jsonl`` (asks and
tells), ``finalists.jsonl`` (`mixnas.jobs.verdicts`), ``front.jsonl`` (`mixnas.jobs.front_answers`),
and for the asks of a search under a measured limit the file with the limit's predictor. No data,
no weights, no device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mixnas.asktell import POPULATION, Search, Trial, read_trials
from mixnas.asktell.log import parse
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import MEASURED, Limit, parse_all
from mixnas.cost.predictor import Predictor
from mixnas.errors import EvaluationFailed, RunConflict
from mixnas.evaluate import Failure
from mixnas.jobs import front, front_answers, verdicts
from mixnas.jobs.devices import file_of
from mixnas.jobs.finalists import ROUNDS, further_trials
from mixnas.jobs.found import Facts, closing, named, point, row, summary
from mixnas.jobs.problem import Table, cost_tables
from mixnas.jobs.settings import Listener, Settings
from mixnas.jobs.stages import log_of, stage_of
from mixnas.jobs.whole import excess, tightened
from mixnas.racing import RATE
from mixnas.run import SETTINGS, Run, differences
from mixnas.space import SearchSpace

FIELDS = ("id", "costs", "generation", "origin", "genes")
"""Of a trial, what an ask decides."""


@dataclass(frozen=True)
class Turn:
    """A round of the search, by its log.

    Attributes:
        number: 0 for the first.
        limits: that its architectures had to keep.
        trials: numbered as in the log.
        log: the file.
    """

    number: int
    limits: tuple[Limit, ...]
    trials: list[Trial]
    log: Path

    @property
    def stage(self) -> str:
        """The name under which it is marked as done."""
        return stage_of(self.number)


@dataclass(frozen=True)
class Counted:
    """Costs counted anew, so that a difference in the counting shows.

    Attributes:
        space: narrowed to the choices that some feasible architecture uses.
        tables: cost by name.
    """

    space: SearchSpace
    tables: Mapping[str, Table]


@dataclass(frozen=True)
class Replayed:
    """What the logs of a run tell.

    Attributes:
        run: whose logs.
        settings: what was asked.
        limits: its budget.
        full: the space before the limits narrowed it.
        turns: the rounds.
        trials: of all rounds, each architecture once, numbered onward.
        facts: of the search; None for a run from before they were logged.
        finalists: what is known of each.
        winner: the finalist that is named, None if there is none.
        last: the limits as they were tightened at the end.
    """

    run: Run
    settings: Settings
    limits: tuple[Limit, ...]
    full: SearchSpace
    turns: tuple[Turn, ...]
    trials: list[Trial]
    facts: Facts | None
    finalists: list[dict[str, Any]]
    winner: dict[str, Any] | None
    last: tuple[Limit, ...]

    @property
    def measured(self) -> set[str]:
        """The limited costs that are measured."""
        return {limit.cost for limit in self.limits if limit.kind in MEASURED}

    def lost(self) -> Iterator[str]:
        """Yield the predictors that are not there, without which nothing can be asked again."""
        for cost in sorted(self.measured):
            if not self.run.file(file_of(cost)).is_file():
                yield f"{file_of(cost)}: is not there, so no ask can be repeated"

    def counted(self, listener: Listener) -> Counted:
        """Count the costs anew.

        Raises:
            RunConflict: if the file with a predictor is missing or damaged.
        """
        tables: dict[str, Table] = cost_tables(self.full, self.limits, listener)
        for cost in sorted(self.measured):
            try:
                tables[cost] = Predictor.from_dict(self.run.read(file_of(cost))["predictor"])
            except (LookupError, TypeError, ValueError, AttributeError):
                raise self.run.broken(file_of(cost)) from None
        return Counted(self.full.keep(Feasible(self.full, self.limits, tables).useful()), tables)

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of ``trials.csv``."""
        return [row(trial) for trial in self.trials]

    def unanswered(self) -> Iterator[str]:
        """Yield what the log of the fronts' answers lacks of a run whose fronts were judged."""
        if self.facts is None or not self.run.file(front.FILE).is_file():
            return
        log = self.run.file(front_answers.LOG)
        if not log.is_file():
            yield f"{log.name}: is not there"
            return
        try:
            record = front_answers.read(self.run)
        except RunConflict as error:
            yield f"{log.name}: cannot be read ({error})"
            return
        for trial in front.silent(self.trials, record, self._ground(self.facts)):
            yield f"{log.name}: no answers of trial {trial.number} ({trial.arch.id})"
        if not log.read_bytes().endswith(b"\n"):
            yield f"{log.name}: its last line is torn"

    def products(self) -> Iterator[tuple[str, Any]]:
        """Yield the plain data of the run's files, by name, as far as the logs reach."""
        fronts = self._fronts()
        if fronts is not None:
            yield front.FILE, fronts
            points = front.front_rows(self.trials, fronts)
        else:
            points = [point(trial) for trial in front.over(self.trials, self._first)]
        yield "front.json", points
        if self.facts is None or self.winner is None:
            return
        yield "finalists.json", self.finalists
        yield "best.json", named(self.trials, self.winner).to_dict()
        told = summary(self.facts, self.trials, self.winner, points, {})
        found = self.finalists
        yield (
            "summary.json",
            told | closing(self.limits, self.measured, found, self.winner, self.last),
        )

    @property
    def _first(self) -> str:
        return self.limits[0].cost

    def _fronts(self) -> dict[str, Any] | None:
        """Return what was found when the fronts were judged afresh, None if that is not logged."""
        if self.facts is None:
            return None
        try:
            record = front_answers.read(self.run)
        except RunConflict:  # which `unanswered` tells
            return None
        ground = self._ground(self.facts)
        judged = self.run.file(front.FILE).is_file()  # then what is told of the others counts
        enough = front.tellable if judged else front.answered
        if not enough(self.trials, record, ground):
            return None
        return front.tell_fronts(self.trials, record, self.finalists, ground)

    def _ground(self, facts: Facts) -> front.Ground:
        return front.Ground(self.limits, facts.labels, facts.image, facts.classes)


def replayed(run: Run) -> Replayed:
    """Read the logs of a run.

    Raises:
        RunConflict: if there is no log, or a file is not what mixnas wrote.
    """
    try:
        settings = Settings.from_dict(run.settings)
        full = SearchSpace.from_dict(run.settings["inlined"])
    except (KeyError, TypeError):
        raise RunConflict(f"run {run.path}: {SETTINGS} lacks what a search keeps there") from None
    if not parse(run.file(log_of(0)))[0]:
        if run.done(stage_of(0)):
            raise RunConflict(
                f"{run.file(log_of(0))}: lost or emptied, though the search is done; put the file "
                "back from a copy of the run"
            )
        raise RunConflict(f"run '{run.name}' has no log yet: its search has not begun")
    limits = parse_all(settings.budget)
    facts, finalists = verdicts.read(run) or (None, [])
    try:
        turns, trials, last = _turns(run, limits, finalists)
    except (LookupError, TypeError):  # a finalist without its round, or what it took
        raise RunConflict(
            f"{run.file(verdicts.LOG)}: not the log that mixnas wrote; put the file back from a "
            "copy of the run"
        ) from None
    verdicts.check(run, finalists, (trial.number for trial in trials))
    measured = {limit.cost for limit in limits if limit.kind in MEASURED}
    winner = min(
        finalists,
        key=lambda e: (excess(e, limits, measured), e["rank"]["loss"], e["number"]),
        default=None,
    )
    return Replayed(
        run, settings, limits, full, tuple(turns), trials, facts, finalists, winner, last
    )


def _turns(
    run: Run, limits: tuple[Limit, ...], finalists: Sequence[Mapping[str, Any]]
) -> tuple[list[Turn], list[Trial], tuple[Limit, ...]]:
    """Live the rounds again: each within the limits that the finalists before it tightened."""
    measured = {limit.cost for limit in limits if limit.kind in MEASURED}
    turns: list[Turn] = []
    trials: list[Trial] = []
    last = limits
    for number in range(ROUNDS):
        log = run.file(log_of(number))
        if parse(log)[0]:
            turns.append(Turn(number, last, read_trials(log), log))
            known = {trial.arch.id for trial in trials}
            fresh = [trial for trial in turns[-1].trials if trial.arch.id not in known]
            trials += [replace(t, number=len(trials) + place) for place, t in enumerate(fresh)]
        judged = [entry for entry in finalists if entry["round"] <= number]
        held = any(not excess(entry, limits, measured) for entry in judged)
        if held or not any(entry["round"] == number for entry in judged):
            break
        last = tightened(limits, judged, measured)
    return turns, trials, last


def over_budget(turn: Turn) -> Iterator[str]:
    """Yield the trials of a round whose logged costs break one of its limits."""
    for trial in turn.trials:
        for limit in turn.limits:
            value = trial.costs.get(limit.cost)
            where = f"{turn.log.name}, ask {trial.number}"
            if value is None:
                yield f"{where}: tells no {limit.cost}, which {limit} limits"
            elif limit.excess(value) > 0:
                yield f"{where}: {limit.cost} {value} is outside {limit}"


def asked_again(found: Replayed, counted: Counted, listener: Listener) -> tuple[int, list[str]]:
    """Ask the sampler again, told what the logs tell.

    Returns:
        How many asks are the same; of each log whose header is of another search, what differs
        there, of each other one the first ask that would differ, in words.
    """
    listener.stage("asks", sum(len(turn.trials) for turn in found.turns))
    same = 0
    differing: list[str] = []
    for turn in found.turns:
        number, difference = _ask(found, turn, counted, listener)
        same += number
        differing += filter(None, [difference])
    listener.end()
    return same, differing


def _ask(found: Replayed, turn: Turn, counted: Counted, listener: Listener) -> tuple[int, str]:
    """Ask a round again; return how many asks agree, and what does not, in words."""
    settings, space, tables = found.settings, counted.space, counted.tables
    with TemporaryDirectory() as folder:
        search = Search(
            space,
            Feasible(space, turn.limits, tables),
            costs={name: tables[name] for name in dict.fromkeys([turn.limits[0].cost, *tables])},
            limits=turn.limits,
            sampler=settings.sampler,
            seed=settings.seed + turn.number,
            population=settings.population or POPULATION,
            trials=further_trials(settings.trials) if turn.number else settings.trials,
            racing=RATE if settings.racing else None,
            log=Path(folder) / "log.jsonl",
        )
        try:
            (header,), _ = parse(Path(folder) / "log.jsonl")
            was = parse(turn.log)[0][0]
            if differing := differences(was, header):
                return 0, f"{turn.log.name}, header: {'; '.join(differing)}; no ask was repeated"
            return _compare(search, turn, listener)
        finally:
            search.close()


def _compare(search: Search, turn: Turn, listener: Listener) -> tuple[int, str]:
    """Return how many asks agree with a log, and the first that does not, in words."""
    known = {trial.number: trial for trial in turn.trials}
    same = 0
    try:
        while (candidate := search.ask()) is not None and candidate.number in known:
            was, now = known[candidate.number], search.trials[candidate.number]
            if differing := differences(_decided(was), _decided(now)):
                return same, f"{turn.log.name}, ask {was.number}: {'; '.join(differing)}"
            same += 1
            listener.advance(1)
            if was.state != "pending":
                search.tell(was.number, was.score or Failure(was.reason or ""))
    except EvaluationFailed:  # as it did then
        pass
    if same < len(known):
        return same, f"{turn.log.name}: {len(known)} asks in the log, the sampler makes {same}"
    return same, ""


def _decided(trial: Trial) -> dict[str, Any]:
    values = (trial.arch.id, dict(trial.costs), trial.generation, trial.origin, list(trial.genes))
    return dict(zip(FIELDS, values, strict=True))
