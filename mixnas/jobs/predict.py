"""``mixnas predict``: what a trained or exported classifier says of images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixnas import data as datasets
from mixnas.data.folders import ENDINGS
from mixnas.data.pictures import one_line
from mixnas.errors import DataError, InvalidCheckpoint, InvalidOption, RunConflict
from mixnas.exports import Exported, open_model
from mixnas.jobs import retrained
from mixnas.jobs.runs import command, job
from mixnas.jobs.settings import Listener, Silent, at_least, split_seed
from mixnas.jobs.show import open_run
from mixnas.jobs.subject import searched
from mixnas.model import Model
from mixnas.remote import rooted
from mixnas.run import SETTINGS, Run

BATCH = 32
"""Images that are classified at once."""


def predict(
    model: str | Path | Run,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    runs: str | Path = "runs",
    listener: Listener | None = None,
) -> list[dict[str, Any]]:
    """Classify images, each prepared as the classifier's training images were.

    Args:
        model: a search or a retraining (its name, folder, or the run), or what `mixnas export`
            wrote: an ``.onnx`` or ``.pt2`` file, the folder ``timm`` or ``hf``, or the
            ``.safetensors`` in it. A search answers by its retraining, if it is finished, else by
            the weights that its winner inherits.
        images: files, and folders whose images at any depth are taken in order of their names.
        top: classes that are named for each image; fewer where there are fewer.
        runs: the folder of all runs.
        listener: is told what must be said of the model.

    Returns:
        For each image, in order: image (its path), and classes, the likeliest first, each with
        label and probability (0 to 1); or error (one line) in place of classes, where an image
        cannot be read.

    Raises:
        RunConflict: if there is no such run, or it has no weights yet.
        InvalidCheckpoint: if the model is broken, or none of mixnas.
        InvalidOption: if no image is given, or `top` is no whole number of at least 1.
        DataError: if an untrained winner's data cannot be opened.
    """
    at_least("top", top, 1)
    listed = [images] if isinstance(images, str | Path) else images
    given = [Path(image) for image in listed]
    if not given:
        raise InvalidOption("no image given; name at least one file, or a folder of images")
    classifier, note = opened(model, rooted(runs))
    if note:
        (listener or Silent()).note(note)
    found = [answer for path in given for answer in _listed(path)]
    for start in range(0, len(found), BATCH):
        _classify(classifier, found[start : start + BATCH], top)
    return found


def opened(model: str | Path | Run, runs: Path) -> tuple[Exported, str]:
    """Open a classifier, whatever names it; return it with what must be said of it, if anything.

    Raises:
        RunConflict: if there is no such run, or it has no weights yet.
        InvalidCheckpoint: if the model is broken, or none of mixnas.
    """
    if isinstance(model, Run):
        return _of_run(model)
    path = Path(model)
    if (runs / path / SETTINGS).is_file() or (path / SETTINGS).is_file():
        return _of_run(open_run(path, runs))
    if path.exists() or path.suffix:
        return open_model(path), ""
    try:
        return _of_run(open_run(path, runs))
    except RunConflict as error:
        raise RunConflict(f"{error}; or give a file or folder that mixnas export wrote") from None


def _of_run(run: Run) -> tuple[Exported, str]:
    if job(run) == retrained.EXPORT_JOB:
        return _first_export(run), ""
    if retrained.is_retraining(run):
        if not retrained.finished(run):
            raise RunConflict(
                f"retraining '{run.name}' is not finished, it has no weights yet; go on with: "
                f"{command(run)}"
            )
        return open_model(run.path), ""
    for kept in retrained.retrainings(run):
        if retrained.finished(kept):
            return open_model(kept.path), ""
    return _winner(run), (
        f"{run.name} has no finished retraining: its winner answers by the weights that it "
        f"inherits from the supernet; train it for good by: mixnas retrain {run.name}"
    )


def _first_export(run: Run) -> Exported:
    """Open the first of the forms that a folder of exports holds."""
    for facts in retrained.exports(run).values():
        return open_model(run.file(f"export/{facts['file']}"))
    raise RunConflict(f"run '{run.name}' holds no export yet; go on with: {command(run)}")


def _winner(run: Run) -> Exported:
    """Build a search's winner with the weights that it inherits, and its data's preprocessing."""
    source = searched(run).source
    asked = run.settings
    try:
        spec, seed, side = asked["data"], split_seed(asked), asked.get("resolution")
        labels = tuple(str(label) for label in asked["found"]["labels"])
    except (LookupError, TypeError):
        raise run.broken(SETTINGS) from None
    data = datasets.load(spec, seed=seed, image=side)
    model = Model(source, labels, data.preprocessing)
    return Exported(model, model.load(run.file("best.safetensors")))


def _listed(path: Path) -> Iterator[dict[str, Any]]:
    """Yield an answer without classes for a file, or for each image in a folder."""
    if not path.is_dir():
        yield {"image": str(path)}
        return
    inside = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in ENDINGS and not _hidden(file.relative_to(path))
    )
    if not inside:
        yield {"image": str(path), "error": f"folder {str(path)!r} holds no images"}
    yield from ({"image": str(file)} for file in inside)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@torch.no_grad()
def _classify(classifier: Exported, answers: list[dict[str, Any]], top: int) -> None:
    """Fill in the classes of some answers; an image that cannot be read gets its error."""
    prepared: list[tuple[dict[str, Any], Tensor]] = []
    for answer in answers:
        if "error" in answer:
            continue
        try:
            prepared.append((answer, _prepared(Path(answer["image"]), classifier.model)))
        except DataError as error:
            answer["error"] = str(error)
    if not prepared:
        return
    values = classifier.network(torch.stack([image for _, image in prepared])).double()
    _check(values, classifier.model)
    ranked = values.softmax(1).topk(min(top, values.shape[1]), dim=1)
    for (answer, _), chances, places in zip(prepared, *ranked, strict=True):
        answer["classes"] = [
            {"label": classifier.model.labels[place], "probability": chance}
            for chance, place in zip(chances.tolist(), places.tolist(), strict=True)
        ]


def _prepared(path: Path, model: Model) -> Tensor:
    """Read an image as the network sees it.

    Raises:
        DataError: if it cannot be read; it is named.
    """
    try:
        with Image.open(path) as picture:
            return model.preprocessing(picture)
    except FileNotFoundError:
        raise DataError(f"image {str(path)!r}: no such file") from None
    except Exception as error:  # decoders raise anything on a broken file
        raise DataError(
            f"image {str(path)!r} cannot be decoded ({one_line(error)}); replace it"
        ) from error


def _check(values: Tensor, model: Model) -> None:
    if values.shape[1] != len(model.labels):
        raise InvalidCheckpoint(
            f"{model.name}: {values.shape[1]} outputs for {len(model.labels)} labels; export it "
            "again"
        )
    if not bool(values.isfinite().all()):
        raise InvalidCheckpoint(
            f"{model.name}: its answers are not finite; its weights are broken: export or train "
            "it again"
        )
