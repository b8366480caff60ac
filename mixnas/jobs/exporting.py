"""What is exported: a network with its weights and description, and images to prove it on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from mixnas import zoo
from mixnas.cost.count import count_flops
from mixnas.data import Data, Preprocessing, load
from mixnas.errors import DataError, InvalidCheckpoint, InvalidOption, MixnasError, RunConflict
from mixnas.jobs import retrained
from mixnas.jobs.retrain_settings import words
from mixnas.jobs.settings import split_seed
from mixnas.jobs.show import open_run
from mixnas.jobs.subject import ZOO, Subject, resolve, searched
from mixnas.jobs.weights import INHERITED, read
from mixnas.model import Model, create, mismatch
from mixnas.run import SETTINGS, Run

CROP = 0.875
"""Share of the shorter side that networks trained on ImageNet see."""
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Exportable:
    """A network ready to be exported.

    Attributes:
        run: the folder that gets the exports.
        model: the network's description, its batch norms not folded.
        network: with its weights, in evaluation mode, float32, on the CPU.
        facts: plain data about it, for metadata and model cards.
        data: the images to prove it on, at the model's size.
        note: what must be said about the weights, or nothing.
    """

    run: Run
    model: Model
    network: nn.Module
    facts: Mapping[str, Any]
    data: Data
    note: str = ""


def exportable(
    text: str | Path | Run,
    runs: Path,
    *,
    name: str,
    weights: Path | None = None,
    data: str | None = None,
    image: int | None = None,
) -> Exportable:
    """Find out what is to be exported.

    Args:
        text: a search (its retraining, else its winner with the weights that it inherits), a
            retraining, a file with an architecture, or ``zoo:NAME``.
        runs: the folder of runs.
        name: the retraining's folder inside a search's.
        weights: a file, for an architecture or a published network; untrained without one.
        data: where the images are to prove it on; by default what it was trained on, else digits.
        image: side of the images in pixels; by default what it was trained at, or published.

    Raises:
        MixnasError: if there is no such thing, or it is not finished.
    """
    kept = _kept(text, runs, name)
    if kept is None:
        subject = resolve(text, runs)
        if subject.run is None:
            return _loose(subject, runs, weights, data, image)
        kept = subject.run
    if weights is not None:
        raise InvalidOption("--weights: a run has its own; give it with ARCH.json or zoo:NAME")
    if retrained.is_retraining(kept):
        return _trained(kept, data, image)
    return _inherited(searched(kept), kept, data, image)


def _kept(text: str | Path | Run, runs: Path, name: str) -> Run | None:
    """Return the run that was named: in a search's folder its retraining, if it is finished.

    Raises:
        RunConflict: if a retraining was named that is not finished.
    """
    if isinstance(text, str) and text.startswith(ZOO):
        return None
    if isinstance(text, Run):
        run = text
    elif (runs / text / SETTINGS).is_file() or (Path(text) / SETTINGS).is_file():
        run = open_run(text, runs)
    else:
        return None
    if not retrained.is_retraining(run) and (run.path / name / SETTINGS).is_file():
        run = Run.open(run.path / name)
    elif not retrained.is_retraining(run) and name != retrained.NAME:
        raise RunConflict(f"run '{run.name}' has no retraining '{name}'; mixnas show names them")
    if retrained.is_retraining(run) and not retrained.finished(run):
        raise RunConflict(
            f"retraining {run.path} is not finished ({retrained.state(run)}); go on with: "
            f"{words(run)}"
        )
    return run


def _trained(run: Run, data: str | None, image: int | None) -> Exportable:
    path = run.file("model.json")
    model = Model.from_dict(run.read("model.json"), str(path))
    network = model.load(run.file("model.safetensors"))
    found = run.read(retrained.SUMMARY)
    if image is not None and image != model.image:
        model, network = _resized(model, network, image)
        found = {key: value for key, value in found.items() if key not in MEASURED}
    same = data is None or data == found["data"]
    images = load(data or found["data"], seed=_split_seed(run) if same else 0, image=model.image)
    if same:
        _unchanged(run, images)
    facts = {key: found.get(key) for key in FACTS} | {"run": run.name}
    return Exportable(run, model, network, _counted(facts, model, network), images)


FACTS = (
    "label", "of", "data", "recipe", "epochs", "top1", "top5", "standard_error",
    "calibration_error", "images", "init", "teacher", "resolution",
)  # fmt: skip
"""Of a retraining's summary, what goes with an export."""

MEASURED = ("top1", "top5", "standard_error", "calibration_error", "images")
"""Of these, what was measured at the training's size and says nothing of another."""


def _unchanged(run: Run, data: Data) -> None:
    """Refuse test images that may have been trained on: the data is not what it was.

    Raises:
        DataError: says how to go on.
    """
    was = run.settings["found"]["data"]
    if data.fingerprint != was:
        raise DataError(
            f"data {run.settings['data']!r} is not what {run.path} was trained on (fingerprint "
            f"{data.fingerprint}, not {was}); put the same images back, or give others by --data"
        )


def _split_seed(run: Run) -> int:
    """Return the seed by which the data was split: the search's, inside a search's folder."""
    if run.settings.get("of") is None:
        return 0
    searched = Run.open(run.path.parent).settings
    return split_seed(searched) if searched.get("data") == run.settings.get("data") else 0


def _inherited(subject: Subject, run: Run, data: str | None, image: int | None) -> Exportable:
    settings = run.settings
    spec = data or settings["data"]
    seed = split_seed(settings) if spec == settings["data"] else 0
    images = load(spec, seed=seed, image=image or settings.get("resolution"))
    labels = tuple(settings["found"]["labels"])
    if len(images.labels) != len(labels):
        raise InvalidOption(
            f"--data {spec}: {len(images.labels)} classes, run '{run.name}' has {len(labels)}"
        )
    model = Model(subject.source, labels, images.preprocessing)
    network = model.load(run.file(INHERITED))
    if spec == settings["data"]:
        _unchanged(run, images)
    facts = {"run": run.name, "label": subject.label, "data": settings["data"]}
    facts["weights"] = "inherited from the supernet"
    note = (
        f"{subject.label} has the weights that it inherits from the supernet; train it first: "
        f"mixnas retrain {run.name}"
    )
    return Exportable(run, model, network, _counted(facts, model, network), images, note)


def _loose(
    subject: Subject, runs: Path, weights: Path | None, data: str | None, image: int | None
) -> Exportable:
    """Take a network that no run trained: with weights from a file, or untrained."""
    name = subject.source.get("zoo")
    side = image or (zoo.get(name)[1].image if name else 224)
    images = load(data or "digits", image=side)
    own = _weights(subject, weights, side)
    labels = images.labels if len(images.labels) == own[1] else tuple(map(str, range(own[1])))
    preprocessing = Preprocessing(side, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, crop=CROP)
    model = Model(subject.source, labels, preprocessing)
    settings = {
        "job": "export",
        "subject": f"{ZOO}{name}" if name else subject.name,
        "source": dict(subject.source),
        "label": subject.label,
        "weights": None if weights is None else str(weights),
        "image": side,
    }
    run = Run.create(runs, f"{subject.name}-export", settings)
    run.close()
    facts = {"run": run.name, "label": subject.label, "weights": str(weights or UNTRAINED)}
    note = "" if weights else f"{subject.label} is untrained: give --weights FILE for a trained one"
    return Exportable(run, model, own[0], _counted(facts, model, own[0]), images, note)


def _weights(subject: Subject, path: Path | None, side: int) -> tuple[nn.Module, int]:
    """Build the network with a file's weights, or untrained; return it and its classes."""
    name = subject.source.get("zoo")
    state = {} if path is None else read(path)
    head = state.get("head.weight")  # (classes, features), in ours after an axis of groups
    classes = 1000 if head is None else head.shape[-2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"checkpoint": path} if name and path else {}
        network = create(subject.source, classes=classes, image=side, **settings).eval()
    if path is not None and not name:
        if fault := mismatch(state, network.state_dict()):
            raise InvalidCheckpoint(f"{path}: not weights of {subject.label} ({fault})")
        network.load_state_dict(state)
    return network, classes


def _resized(model: Model, network: nn.Module, image: int) -> tuple[Model, nn.Module]:
    """Take the same weights to images of another size, where the network can.

    Raises:
        InvalidOption: if its weights depend on the size.
    """
    other = replace(model, preprocessing=replace(model.preprocessing, image=image))
    try:
        return other, other.filled(network.state_dict(), "model.safetensors")
    except MixnasError as error:
        raise InvalidOption(
            f"--image {image}: {model.name} was trained at {model.image} pixels and cannot be "
            f"taken to others ({error})"
        ) from None


def _counted(facts: Mapping[str, Any], model: Model, network: nn.Module) -> dict[str, Any]:
    """Add the costs at the exported size."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {
        **{key: value for key, value in facts.items() if value is not None},
        "flops": count_flops(network, model.image),
        "flops_image": model.image,
        "params": params,
    }
