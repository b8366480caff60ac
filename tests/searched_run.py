"""Runs as a search leaves them, made in seconds: untrained weights, and losses that are made up.

Space, tables, limits, sampler, logs and files are real; only the training is left out.
"""

from pathlib import Path

import pandas
from safetensors.torch import save as save_tensors
from searching import loss

from mixnas.arch import Architecture
from mixnas.asktell import Search, Trial
from mixnas.asktell import trial as trials_module
from mixnas.evaluate import Failure, Score
from mixnas.jobs import reuse, verdicts
from mixnas.jobs.attribution import attribute
from mixnas.jobs.found import Facts, closing, point, row, summary
from mixnas.jobs.problem import PLAN, Plan, Problem, prepare
from mixnas.jobs.settings import Settings, Silent
from mixnas.jobs.stages import costs, first_round
from mixnas.run import Run

IMAGES = 180

SPACE = """
name = "few"
image = 32
classes = 10
stems = ["conv16", "patch16"]
ratio = [1, 2]

[mixers]
additive = { head_width = [16] }
aff = {}

[[stages]]
stride = 16
width = [16, 32]
depth = [1, 2]

[[stages]]
stride = 32
width = [32]
depth = [0, 1]
"""
"""Small, for every part of it is counted anew in every test."""


def problem(root: Path, *budget: str, name: str = "run", **options) -> Problem:
    """A search of a small space on the digits, ready to begin."""
    file = root / "few.toml"
    file.write_text(SPACE)
    usual = {"space": str(file), "trials": 24, "epochs": 1}
    settings = Settings(**{"budget": budget, "device": "cpu", "racing": False, **usual, **options})
    return prepare(settings, root, name, Silent())


def trained(of: Problem) -> Run:
    """Its run with a plan, and a supernet that counts as trained."""
    run = of.open_run()
    network = of.network()
    params = sum(parameter.numel() for parameter in network.parameters())
    lower, upper = of.feasible.bounds()
    epochs = of.steps() / of.data.steps_per_epoch(64)
    plan = Plan(of.steps(), epochs, params, lower, upper, 0.1, 0.01, 10**8, 1)
    run.write(PLAN, plan.to_dict())
    data = save_tensors({key: value.contiguous() for key, value in network.state_dict().items()})
    reuse.keep(of, run, recipe=of.recipe(plan.steps), epochs=epochs, params=params, data=data)
    run.mark("training", seconds=1.0, drawn={})
    return run


def judged(arch: Architecture) -> Score:
    """A made-up score, of a loss that depends on the architecture alone."""
    return Score(1 - loss(arch) / 3, loss(arch), IMAGES, 0.05)


def searched(of: Problem, run: Run, *, stop: int | None = None) -> list[Trial]:
    """Search by made-up losses; every tenth fails; stop before a number if wanted."""
    first = first_round(of)
    search = Search(
        of.space,
        first.feasible,
        costs=costs(of),
        limits=first.limits,
        sampler=of.settings.sampler,
        seed=of.settings.seed,
        trials=first.trials,
        log=run.file(first.log),
    )
    while (candidate := search.ask()) is not None and candidate.number != stop:
        failed = candidate.number % 10 == 9
        outcome = Failure("loss is not finite") if failed else judged(candidate.arch)
        search.tell(candidate.number, outcome)
    trials = search.trials
    search.close()
    return trials


def concluded(of: Problem, run: Run, trials: list[Trial]) -> None:
    """Name a winner among three finalists, and write what a search writes."""
    facts = Facts.of(of, Plan.of(run), run)
    best = sorted((trial for trial in trials if trial.score), key=lambda trial: trial.loss)[:3]
    finalists = [
        {
            "number": trial.number,
            "id": trial.arch.id,
            "rank": _scores(trial.score),
            "report": _scores(trial.score),
            **trial.costs,
            "latency_ms": None,
            "predicted": {},
            "round": 0,
        }
        for trial in best
    ]
    verdicts.begin(run, facts)
    verdicts.record(run, 0, finalists)
    points = [point(trial) for trial in trials_module.front(trials)]
    run.write("trials.csv", pandas.DataFrame([row(trial) for trial in trials]))
    run.write("front.json", points)
    run.write("finalists.json", finalists)
    run.write("best.json", best[0].arch.to_json() + "\n")
    run.write("best.safetensors", b"made up")
    attribute(of, run, trials)
    told = summary(facts, trials, finalists[0], points, {"training": 1.0})
    run.write("summary.json", told | closing(of.limits, (), finalists, finalists[0], of.limits))
    run.mark("search", seconds=2.0)
    run.mark("finalists", seconds=3.0)


def _scores(score: Score) -> dict[str, float]:
    return {
        "accuracy": score.accuracy,
        "loss": score.loss,
        "loss_error": score.loss_error,
        "images": score.images,
        "standard_error": score.standard_error,
    }
