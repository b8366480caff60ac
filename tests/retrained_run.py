"""Writes retrain folders as `mixnas retrain` leaves them, with figures that are made up."""

import math
from pathlib import Path

import pandas
import torch
from safetensors.torch import save

from mixnas import data
from mixnas.jobs.retrain_settings import RetrainSettings
from mixnas.metrics import metrics
from mixnas.model import Model
from mixnas.run import Run
from mixnas.space import SearchSpace

LABELS = [str(number) for number in range(10)]
EPOCHS = 20
STEPS = 16 * EPOCHS


def source():
    from random import Random

    return {"arch": SearchSpace.load("micro").sample(Random(0)).to_dict()}


def begun_training(root: Path, name: str = "retrain", of: str | None = None, **changes) -> Run:
    """A retraining that has settings and nothing else."""
    settings = RetrainSettings(subject=of or "best.json", data="digits").to_dict() | {
        "job": "retrain",
        "source": source(),
        "of": of,
        "found": {"data": "0123", "labels": LABELS, "recipe": {"steps": STEPS, "rate": 1e-3}},
    }
    run = Run.create(root, name, settings | changes, device="cpu")
    run.close()
    return run


def curve(epochs: int = EPOCHS) -> pandas.DataFrame:
    """A training's curve; validated every second epoch."""
    losses = [2.3 * math.exp(-epoch / 8) for epoch in range(1, epochs + 1)]
    judged = [epoch % 2 == 0 for epoch in range(1, epochs + 1)]
    return pandas.DataFrame(
        {
            "epoch": range(1, epochs + 1),
            "step": [16 * epoch for epoch in range(1, epochs + 1)],
            "lr": [1e-3 * (1 - epoch / (EPOCHS + 1)) for epoch in range(1, epochs + 1)],
            "loss": losses,
            "val_loss": [0.8 * v if j else None for v, j in zip(losses, judged, strict=True)],
            "val_accuracy": [
                1 - v / 2.4 if j else None for v, j in zip(losses, judged, strict=True)
            ],
            "seconds": [1.5 * epoch for epoch in range(1, epochs + 1)],
            "images_per_second": [700.0] * epochs,
        }
    )


def judged(images: int = 360, labels=LABELS, seed: int = 0):
    """A made-up network's answers to made-up images, judged."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(len(labels), (images,), generator=generator)
    values = torch.randn(images, len(labels), generator=generator)
    values[torch.arange(images), truth] += 3.0
    return metrics(values, truth, labels)


def trained(root: Path, name: str = "retrain", of: str | None = None, **changes) -> Run:
    """A retraining with everything that a finished one writes, but figures and report."""
    run = begun_training(root, name, of, **changes)
    run.write("metrics.csv", curve())
    prepared = data.load("digits", image=32).preprocessing
    model = Model(run.settings["source"], tuple(LABELS), prepared)
    run.write("model.json", model.to_dict())
    torch.manual_seed(0)
    run.write("model.safetensors", save(dict(model.build().state_dict())))
    found = judged()
    run.write("metrics.json", found)
    kept = ("top1", "top5", "standard_error", "calibration_error", "loss", "images")
    asked = ("of", "data", "recipe", "init", "teacher")
    run.write(
        "summary.json",
        {
            "format": 1,
            "job": "retrain",
            "run": name,
            "label": f"{of}'s winner" if of else "architecture 0123",
            **{key: run.settings[key] for key in asked},
            "epochs": float(EPOCHS),
            "steps": STEPS,
            "batch": 64,
            "resolution": 32,
            "val_accuracy": 0.96,
            "flops": 3_210_000,
            "params": 123_456,
            "flops_image": 32,
            **{key: found[key] for key in kept},
            "seconds": 30.0,
            "processes": 1,
            "device": "cpu",
            "inherited": 0.875 if of else None,
        },
    )
    return run


def exports(run: Run) -> dict:
    """The record of four forms and an int8 one; the files are a few bytes each."""
    places = {"onnx": "model.onnx", "pt2": "model.pt2", "timm": "timm", "hf": "hf"}
    found = {}
    for form, place in places.items():
        path = run.file(f"export/{place}")
        path = path / "model.safetensors" if form in ("timm", "hf") else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made up")
        found[form] = facts(place, difference=3e-6, agreement=1.0, images=360)
    found["int8"] = facts("model.int8.onnx", accuracy_before=0.975, accuracy_after=0.9625)
    run.write("export/exports.json", found)
    return found


def facts(file: str, **more) -> dict:
    times = {"lower": 1.25, "median": 1.5, "upper": 2.0}
    eager = {"lower": 2.5, "median": 3.0, "upper": 3.25}
    return {
        "file": file,
        "bytes": 512_000,
        "milliseconds": {b: {"exported": times, "eager": eager} for b in ("1", "32")},
        "fused": True,
        "made": "2026-11-22T03:00:00+00:00",
        "versions": {"torch": "2.15.0", "onnx": "1.23.0"},
        **more,
    }
