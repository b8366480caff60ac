"""The last stage of a search: the best are judged afresh and measured whole, and one is named.

Finalists are scored again with fresh batch-norm statistics on the images that rank, which
chooses the winner; how good it is is read off other images, so that luck is not sold as skill.
Where none keeps a measured limit, the search goes on within a tighter one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas
import torch
from safetensors.torch import save as save_tensors

from mixnas import report
from mixnas.arch import Architecture
from mixnas.asktell import Trial
from mixnas.cluster import Crew
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit, column
from mixnas.errors import BudgetUnreachable
from mixnas.evaluate import Score, SupernetEvaluator, score
from mixnas.jobs import front as fronts
from mixnas.jobs import verdicts
from mixnas.jobs.attribution import attribute
from mixnas.jobs.found import Facts, closing, named, row, summary
from mixnas.jobs.problem import Plan, Problem
from mixnas.jobs.settings import Listener
from mixnas.jobs.stages import Round, search_supernet, supernet
from mixnas.jobs.whole import excess, tightened, whole
from mixnas.run import Run

FINALISTS = 8
ROUNDS = 4
"""How often finalists are measured at most, within ever tighter limits."""

MORE = 4
"""A further round evaluates one in so many of the first round's trials."""

FINALISTS_FILE = "finalists.json"
TRIALS = "trials.csv"
PRODUCTS = (
    TRIALS,
    "front.json",
    fronts.FILE,
    "best.json",
    "best.safetensors",
    "summary.json",
)
"""What the stage leaves; what is missing of it is made again."""


def name_winner(
    problem: Problem,
    plan: Plan,
    run: Run,
    trials: Sequence[Trial],
    crew: Crew,
    listener: Listener,
) -> None:
    """Judge the best again, measure them whole, name the winner, write what was found."""
    if run.done("finalists") and all(run.file(name).exists() for name in PRODUCTS):
        return
    began = time.perf_counter()
    contest = _Contest(problem, run, crew, listener)
    facts = Facts.of(problem, plan, run)
    verdicts.begin(run, facts, contest.found)
    limits = problem.limits
    for number in range(ROUNDS):
        if number:
            trials = [*trials, *contest.further(number, limits, trials)]
        if not contest.judge(number, trials, limits) or contest.kept(number):
            break
        limits = tightened(problem.limits, contest.until(number), problem.devices)
    winner = contest.winner()
    if not contest.kept():
        listener.note(_missed(winner, problem))
    judged = fronts.judged_fronts(
        problem, run, trials, contest.found, contest.evaluator, contest.report, listener
    )
    _write(run, trials, contest.found, winner, contest.evaluator, judged)
    taken = {"finalists": time.perf_counter() - began}
    close = closing(problem.limits, problem.devices, contest.found, winner, limits)
    seconds = {name: entry.get("seconds", 0.0) for name, entry in run.stages.items()} | taken
    told = summary(facts, trials, winner, run.read("front.json"), seconds)
    run.write("summary.json", told | close)
    attribute(problem, run, trials)
    report.figures(run)
    report.html(run)
    run.mark("finalists", seconds=taken["finalists"])
    listener.end()


class _Contest:
    """The finalists so far; those of an earlier call are taken over, round by round.

    So a run that was stopped goes on within the limits that its own measurements tightened.

    Attributes:
        found: what is known of each finalist.
        evaluator: scores architectures with fresh statistics.

    Raises:
        RunConflict: if what an earlier call found is damaged.
    """

    def __init__(self, problem: Problem, run: Run, crew: Crew, listener: Listener) -> None:
        self.problem, self.run = problem, run
        self.crew, self.listener = crew, listener
        self.evaluator = problem.evaluator(supernet(problem, run), fresh=True)
        self.report = list(problem.data.batches("report", batch=256))
        self.found = earlier(run)

    def until(self, number: int) -> list[dict[str, Any]]:
        """Return the finalists of the rounds up to and with one."""
        return [entry for entry in self.found if entry["round"] <= number]

    def kept(self, number: int = ROUNDS) -> list[dict[str, Any]]:
        """Return those of them that keep every measured limit."""
        return [entry for entry in self.until(number) if not self._excess(entry)]

    def _excess(self, entry: Mapping[str, Any]) -> float:
        return excess(entry, self.problem.limits, self.problem.devices)

    def winner(self) -> dict[str, Any]:
        """Return the best that keeps the limits, or else the nearest to them."""
        return min(self.found, key=lambda entry: (self._excess(entry), *_standing(entry)))

    def judge(self, number: int, trials: Sequence[Trial], limits: Sequence[Limit]) -> bool:
        """Judge a round: the best trials within its limits, none twice; say if there are any."""
        if any(entry["round"] == number for entry in self.found):
            return True
        known = {entry["id"] for entry in self.found}
        chosen = [
            trial
            for trial in sorted(trials, key=lambda trial: (trial.loss, trial.number))
            if trial.contends
            and trial.arch.id not in known
            and all(limit.excess(trial.costs[limit.cost]) <= 0 for limit in limits)
        ][:FINALISTS]
        if not chosen:
            return False
        self.listener.stage("finalists", len(chosen) + 1)
        found = []
        for trial in chosen:
            found.append(_judge(trial, self.evaluator, self.report))
            self.listener.advance(1)
        ranked = sorted(zip(chosen, found, strict=True), key=lambda pair: _standing(pair[1]))
        spans = whole([trial.arch for trial, _ in ranked], self.problem, self.listener)
        for (trial, entry), figures in zip(ranked, spans, strict=True):
            entry |= figures | {"predicted": _predicted(trial.arch, self.problem), "round": number}
        self.listener.advance(1)
        self.listener.end()
        verdicts.record(self.run, number, found)
        self.found += found
        self.run.write(FINALISTS_FILE, self.found)
        return True

    def further(
        self, number: int, limits: tuple[Limit, ...], trials: Sequence[Trial]
    ) -> list[Trial]:
        """Search on within tighter limits; return the trials that are new, numbered onward."""
        try:
            feasible = Feasible(self.problem.space, limits, self.problem.tables)
        except BudgetUnreachable:
            return []
        within = " and ".join(map(str, limits))
        self.listener.note(f"no finalist keeps the limits when measured; searching within {within}")
        asked = further_trials(self.problem.settings.trials)
        one = Round(number, limits, feasible, asked)
        known = {trial.arch.id for trial in trials}
        found = search_supernet(self.problem, self.run, self.crew, self.listener, one)
        fresh = [trial for trial in found if trial.arch.id not in known]
        return [replace(t, number=len(trials) + place) for place, t in enumerate(fresh)]


def further_trials(trials: int) -> int:
    """Return how many architectures a further round evaluates, after a first of so many."""
    return max(2 * FINALISTS, trials // MORE)


def _standing(entry: Mapping[str, Any]) -> tuple[float, int]:
    """Return what finalists are ordered by where all keep the limits: the winner's is least."""
    return entry["rank"]["loss"], entry["number"]


def earlier(run: Run) -> list[dict[str, Any]]:
    """Return the finalists that a run has judged already."""
    if not run.file(FINALISTS_FILE).is_file():
        return []
    found = run.read(FINALISTS_FILE)
    wanted = {"number", "id", "rank", "report", "predicted", "round"}
    if not isinstance(found, list) or not all(
        isinstance(entry, dict) and wanted <= entry.keys() for entry in found
    ):
        raise run.broken(FINALISTS_FILE)
    return found


def _predicted(arch: Architecture, problem: Problem) -> dict[str, dict[str, float]]:
    """Return what was predicted on each device, in milliseconds or millijoules."""
    return {
        column(cost): asdict(device.predictor.predict(arch))
        for cost, device in problem.devices.items()
    }


def _missed(winner: Mapping[str, Any], problem: Problem) -> str:
    beyond = excess(winner, problem.limits, problem.devices)
    return (
        "no network that was found keeps the limits when it is measured whole; the nearest is "
        f"named, {beyond:.1%} beyond"
    )


def _judge(
    trial: Trial,
    evaluator: SupernetEvaluator,
    report_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, Any]:
    network = evaluator.prepared(trial.arch)
    return {
        "number": trial.number,
        "id": trial.arch.id,
        "rank": _scores(score(network, evaluator.batches)),
        "report": _scores(score(network, report_batches)),
        **trial.costs,
    }


def _scores(result: Score) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "loss_error": result.loss_error,
        "images": result.images,
        "standard_error": result.standard_error,
    }


def _write(
    run: Run,
    trials: Sequence[Trial],
    found: Sequence[Mapping[str, Any]],
    winner: Mapping[str, Any],
    evaluator: SupernetEvaluator,
    judged: Mapping[str, Any],
) -> None:
    """Write trials, fronts, finalists and the winner with its weights."""
    best = named(trials, winner)
    run.write(TRIALS, pandas.DataFrame([row(trial) for trial in trials]))
    run.write("front.json", fronts.front_rows(trials, judged))
    run.write(fronts.FILE, judged)
    run.write(FINALISTS_FILE, list(found))
    network = evaluator.prepared(best)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    run.write("best.safetensors", save_tensors(tensors))
    run.write("best.json", best.to_json() + "\n")
