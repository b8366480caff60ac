"""The last stage of a search: the best are judged afresh and timed whole, and one is named.

Finalists are scored again with fresh batch-norm statistics on the images that rank, which
chooses the winner; how good it is is read off other images, so that luck is not sold as skill.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas
import torch
from safetensors.torch import save as save_tensors

from mixnas import report
from mixnas.arch import Architecture
from mixnas.asktell import Trial
from mixnas.asktell import trial as trials_module
from mixnas.cost import count
from mixnas.cost.latency import Stopwatch
from mixnas.cost.table import CostTable
from mixnas.evaluate import Score, SupernetEvaluator, score
from mixnas.jobs.problem import Plan, Problem
from mixnas.jobs.settings import Listener
from mixnas.jobs.stages import supernet
from mixnas.network import build
from mixnas.run import Run

FINALISTS = 8
PRODUCTS = ("trials.csv", "front.json", "best.json", "best.safetensors", "summary.json")
"""What the stage leaves; what is missing of it is made again."""


def name_winner(
    problem: Problem, plan: Plan, run: Run, trials: Sequence[Trial], listener: Listener
) -> None:
    """Judge the best again, time them whole, name the winner, write what was found."""
    if run.done("finalists") and all(run.file(name).exists() for name in PRODUCTS):
        return
    began = time.perf_counter()
    complete = sorted((t for t in trials if t.score), key=lambda t: (t.loss, t.number))
    chosen = complete[:FINALISTS]
    listener.stage("finalists", len(chosen) + 1)
    evaluator = problem.evaluator(supernet(problem, run), fresh=True)
    report_batches = list(problem.data.batches("report", batch=256))
    found = []
    for trial in chosen:
        found.append(_judge(trial, evaluator, report_batches, problem))
        listener.advance(1)
    _add_latency(found, chosen, problem)
    listener.advance(1)
    winner = min(found, key=lambda f: (_excess(f, problem), f["rank"]["loss"], f["number"]))
    if _excess(winner, problem):
        listener.note(
            "no finalist keeps the latency limit when it is timed whole; the nearest is named"
        )
    _write(problem, plan, run, trials, found, winner, evaluator)
    taken = {"finalists": time.perf_counter() - began}
    run.write("summary.json", _summary(problem, plan, run, trials, winner, taken))
    report.figures(run)
    report.html(run)
    run.mark("finalists", seconds=taken["finalists"])
    listener.end()


def _judge(
    trial: Trial,
    evaluator: SupernetEvaluator,
    report_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    problem: Problem,
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


def _add_latency(
    found: Sequence[dict[str, Any]], chosen: Sequence[Trial], problem: Problem
) -> None:
    """Time the finalists whole, in turn with a fixed network, while no worker runs."""
    watch = Stopwatch(str(problem.device))
    networks = [build(trial.arch, problem.space.classes).eval() for trial in chosen]
    spans = watch.interleave(networks, (3, problem.space.image, problem.space.image))
    for entry, quartiles in zip(found, spans, strict=True):
        entry["latency_ms"] = quartiles


def _excess(entry: Mapping[str, Any], problem: Problem) -> float:
    """Return by how many milliseconds a finalist misses the latency limit, 0 if it keeps it.

    By the lower quartile of its whole times: what a busy neighbour adds is not the network's.
    """
    for limit in problem.limits:
        if limit.cost == "latency":
            return max(0.0, entry["latency_ms"]["lower"] - limit.high / 1e6)
    return 0.0


def _write(
    problem: Problem,
    plan: Plan,
    run: Run,
    trials: Sequence[Trial],
    found: Sequence[Mapping[str, Any]],
    winner: Mapping[str, Any],
    evaluator: SupernetEvaluator,
) -> None:
    """Write trials, front, finalists and the winner with its weights."""
    best = next(trial.arch for trial in trials if trial.number == winner["number"])
    run.write("trials.csv", pandas.DataFrame([_row(trial) for trial in trials]))
    front = trials_module.front(trials)
    run.write("front.json", [_row(t) | {"arch": t.arch.to_dict()} for t in front])
    run.write("finalists.json", list(found))
    network = evaluator.prepared(best)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    run.write("best.safetensors", save_tensors(tensors))
    run.write("best.json", best.to_json() + "\n")


def _row(trial: Trial) -> dict[str, Any]:
    """Return one line of ``trials.csv``."""
    costs: dict[str, Any] = dict(trial.costs)
    if "latency" in costs:
        costs["latency_ms"] = costs.pop("latency") / 1e6
    result = trial.score
    return {
        "number": trial.number,
        "id": trial.arch.id,
        "state": trial.state,
        "origin": trial.origin,
        "accuracy": result.accuracy if result else None,
        "loss": result.loss if result else None,
        "loss_error": result.loss_error if result else None,
        "images": result.images if result else None,
        **costs,
        "stem": trial.arch.stem.kind,
        "depth": sum(len(stage.blocks) for stage in trial.arch.stages),
        "reason": trial.reason,
    }


def _summary(
    problem: Problem,
    plan: Plan,
    run: Run,
    trials: Sequence[Trial],
    winner: Mapping[str, Any],
    taken: Mapping[str, float],
) -> dict[str, Any]:
    """Return what ``mixnas show`` tells of a finished run."""
    best = Architecture.from_dict(run.read("best.json"))
    stages = {name: entry.get("seconds", 0.0) for name, entry in run.stages.items()} | dict(taken)
    states = [trial.state for trial in trials]
    return {
        "format": 1,
        "run": run.name,
        "budget": [str(limit) for limit in problem.limits],
        "data": problem.settings.data,
        "space": problem.space.name,
        "image": problem.space.image,
        "classes": problem.space.classes,
        "winner": _winner(problem, best, winner),
        "front": run.read("front.json"),
        "supernet": {"params": plan.params, "steps": plan.steps, "random": _random(trials)},
        "trials": {
            "asked": len(trials),
            "complete": states.count("complete"),
            "failed": states.count("failed"),
        },
        "seconds": {**stages, "total": sum(stages.values())},
        "feasible": {"lower": plan.lower, "upper": plan.upper},
    }


def _winner(problem: Problem, best: Architecture, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the winner's figures: as budgeted, and at the size at which it was trained."""
    side, labels = problem.data.image, len(problem.data.labels)
    trained = CostTable(count.flops, image=side, classes=labels)
    return {
        "number": entry["number"],
        "id": entry["id"],
        "accuracy": entry["report"]["accuracy"],
        "standard_error": entry["report"]["standard_error"],
        "loss": entry["report"]["loss"],
        "images": entry["report"]["images"],
        "rank_accuracy": entry["rank"]["accuracy"],
        "rank_loss": entry["rank"]["loss"],
        "flops": entry["flops"],
        "params": entry["params"],
        "latency_ms": entry["latency_ms"],
        "flops_as_trained": trained(best),
        "resolution": side,
        "labels": labels,
        "description": describe(best),
        "arch": best.to_dict(),
    }


def describe(arch: Architecture) -> str:
    """Return an architecture on one line: ``conv8 > 64: xnorm, hilo > 128: aff``."""
    stages = (
        f"{stage.width}: {', '.join(block.mixer for block in stage.blocks)}"
        for stage in arch.stages
    )
    return " > ".join([arch.stem.kind, *stages])


def _random(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return how random feasible architectures score: what the supernet has learnt.

    The first population is drawn at random, so its spread beside its standard error says
    whether the supernet can tell architectures apart.
    """
    scores = [t.score for t in trials if t.score and t.origin == "first"]
    if not scores:
        return {}
    accuracies = [s.accuracy for s in scores]
    losses = [s.loss for s in scores]
    return {
        "architectures": len(scores),
        "accuracy": _spread(accuracies),
        "loss": _spread(losses),
        "standard_error": max(s.standard_error for s in scores),
        "loss_error": statistics.median(s.loss_error for s in scores),
        "loss_deviation": statistics.pstdev(losses),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
