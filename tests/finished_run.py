"""Writes run folders as the search leaves them, with figures that are made up but consistent."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pandas
from safetensors.torch import save

from mixnas.jobs.settings import Settings
from mixnas.network import build
from mixnas.run import Run
from mixnas.space import SearchSpace

SETTINGS = Settings(budget=("3MFLOPs", "40ms"), data="digits", space="micro", trials=24, seed=3)


def begun(root: Path, name: str = "sample", settings: Settings = SETTINGS) -> Run:
    """A run that has settings and nothing else."""
    space = SearchSpace.load(settings.space)
    found = {"data": "0123", "labels": [str(i) for i in range(10)]}
    run = Run.create(
        root, name, settings.to_dict() | {"found": found, "inlined": space.to_dict()}, device="cpu"
    )
    run.close()
    return run


def finished(root: Path, name: str = "sample", settings: Settings = SETTINGS) -> Run:
    """A run with everything that a finished search writes, but figures and report."""
    run = begun(root, name, settings)
    rows, archs = trials(settings)
    complete = [row for row in rows if row["state"] == "complete"]
    front = []
    for row in sorted(complete, key=lambda row: (row["flops"], row["loss"])):
        if not front or row["loss"] < front[-1]["loss"]:
            front.append(row | {"arch": archs[row["number"]].to_dict()})
    best = min(complete, key=lambda row: row["loss"])
    arch = archs[best["number"]]
    run.write("trials.csv", pandas.DataFrame(rows))
    run.write("front.json", front)
    run.write("supernet.csv", curve())
    run.write("best.json", arch.to_json() + "\n")
    run.write("best.safetensors", save(dict(build(arch, num_classes=10).state_dict())))
    error = math.sqrt(0.25 / 180)
    run.mark("training", seconds=61.5)
    run.mark("search", seconds=45.25)
    run.mark("finalists", seconds=12.0)
    run.write(
        "summary.json",
        {
            "format": 1,
            "run": name,
            "budget": list(settings.budget),
            "data": settings.data,
            "space": settings.space,
            "image": 64,
            "classes": 10,
            "winner": {
                "number": best["number"],
                "id": arch.id,
                "accuracy": 0.875,
                "standard_error": error,
                "loss": 0.4,
                "images": 180,
                "rank_accuracy": 0.9,
                "rank_loss": 0.38,
                "flops": best["flops"],
                "params": best["params"],
                "latency_ms": {"lower": 19.5, "median": 20.0, "upper": 21.0, "reference": 9.0},
                "flops_as_trained": best["flops"] // 4,
                "resolution": 32,
                "labels": 10,
                "description": "made up",
                "arch": arch.to_dict(),
            },
            "front": front,
            "supernet": {
                "params": 123456,
                "steps": 100,
                "random": {
                    "architectures": 20,
                    "accuracy": {"min": 0.1, "median": 0.5, "max": 0.9},
                    "loss": {"min": 0.2, "median": 0.3, "max": 0.4},
                    "standard_error": error,
                    "loss_error": 0.01,
                    "loss_deviation": 0.05,
                },
            },
            "trials": {"asked": 24, "complete": 22, "failed": 2},
            "seconds": {"training": 61.5, "search": 45.25, "finalists": 12.0, "total": 118.75},
            "feasible": {"lower": 1000, "upper": 1100},
        },
    )
    return run


def trials(settings: Settings):
    """The rows of trials.csv and their architectures."""
    rng = Random(settings.seed)
    space = SearchSpace.load(settings.space)
    rows, archs = [], []
    for number in range(settings.trials):
        arch = space.sample(rng)
        failed = number in (5, 11)
        flops = rng.randrange(500_000, 3_000_000)
        loss = None if failed else 2.0 - flops / 2e6 + rng.random() / 4
        archs.append(arch)
        rows.append(
            {
                "number": number,
                "id": arch.id,
                "state": "failed" if failed else "complete",
                "origin": "first" if number < 10 else "sampler",
                "accuracy": None if failed else round(1 - loss / 3, 4),
                "loss": loss,
                "images": None if failed else 180,
                "flops": flops,
                "params": rng.randrange(10_000, 140_000),
                "latency_ms": 10 + 20 * rng.random(),
                "stem": arch.stem.kind,
                "depth": sum(len(stage.blocks) for stage in arch.stages),
                "reason": "loss is not finite" if failed else None,
            }
        )
    return rows, archs


def curve(steps: int = 100):
    """A supernet's training curve."""
    losses = [2.3 * math.exp(-step / 40) for step in range(1, steps + 1)]
    return pandas.DataFrame(
        {
            "step": range(1, steps + 1),
            "epoch": [step / 10 for step in range(1, steps + 1)],
            "lr": [1e-3] * steps,
            "loss_dearest": [loss * 0.9 for loss in losses],
            "loss_cheapest": [loss * 1.2 for loss in losses],
            "loss_random": losses,
            "accuracy": [1 - loss / 2.4 for loss in losses],
            "seconds": [0.6 * step for step in range(1, steps + 1)],
        }
    )


def with_budget(*budget: str) -> Settings:
    """The sample's settings under another budget."""
    return replace(SETTINGS, budget=budget)
