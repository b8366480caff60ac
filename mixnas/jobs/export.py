"""``mixnas export``: a trained network in the forms that others run, each proved before it is kept.

Every form is written beside its place, read back in its own runtime, compared with the network on
real images, timed beside eager PyTorch, and only then put where it belongs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixnas import report
from mixnas.errors import InvalidOption, did_you_mean
from mixnas.exports import FORMS
from mixnas.exports.proof import keep
from mixnas.exports.quantised import PLACE as INT8_PLACE
from mixnas.exports.quantised import quantise
from mixnas.exports.timing import timed
from mixnas.folding import fuse
from mixnas.jobs import retrained
from mixnas.jobs.exporting import Exportable, exportable
from mixnas.jobs.settings import Listener, Silent, at_least, pixels
from mixnas.remote import rooted
from mixnas.run import Run, provenance

EXPORT = "export"
BATCH = 64
CALIBRATION = {"batches": 8, "batch": 32}
"""Training images by which int8's ranges are found."""
INT8 = "int8"


def export(
    subject: str | Path | Run,
    to: str | Iterable[str] = "onnx",
    *,
    image: int | None = None,
    images: int = 1000,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    fold: bool = True,
    int8: bool = False,
    name: str = retrained.NAME,
    runs: str | Path = "runs",
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Export a trained network, and prove each export before it is kept.

    Args:
        subject: a search (its retraining, else its winner with the weights that it inherits), a
            retraining, a file with an architecture, or ``zoo:NAME``.
        to: ``onnx``, ``pt2``, ``timm``, ``hf``, or several of them.
        image: side of the images in pixels; by default what it was trained at, or published.
        images: how many test images it is proved on, at most.
        data: where they are; by default what it was trained on, else digits.
        weights: a file of weights, for an architecture or a published network.
        fold: whether batch norms are folded where that is exact; kept, the network can be trained
            further.
        int8: whether ONNX Runtime's static quantisation makes an int8 graph as well.
        name: the retraining's folder inside a search's.
        runs: the folder of all runs.
        listener: is told how the job gets on.

    Returns:
        run, folder, exports (the record by form: file, bytes, difference, agreement, images,
        milliseconds, ...), report (its page), next (the command that follows).

    Raises:
        ExportMismatch: if a form does not compute what the network does; it is not kept.
        MixnasError: for whatever else a user can mend.
    """
    forms = tuple(dict.fromkeys([to] if isinstance(to, str) else to))
    for form in forms:
        if form not in FORMS:
            raise InvalidOption(f"--to: no form '{form}'; {did_you_mean(form, FORMS)}")
    if int8 and "onnx" not in forms:
        raise InvalidOption("--int8 is made from the ONNX export; give --to onnx too")
    at_least("images", images, 1)
    pixels("image", image)
    listener = listener or Silent()
    found = exportable(
        subject,
        rooted(runs),
        name=name,
        weights=None if weights is None else Path(weights),
        data=None if data is None else str(data),
        image=image,
    )
    if found.note:
        listener.note(found.note)
    with Run.open(found.run.path, lock=True) as run:
        _all(found, run, forms, int8, fold, images, listener)
        return _told(run)


def _all(
    found: Exportable,
    run: Run,
    forms: Iterable[str],
    int8: bool,
    fold: bool,
    images: int,
    listener: Listener,
) -> None:
    forms = list(forms)
    folder = run.path / EXPORT
    folder.mkdir(exist_ok=True)
    network = fuse(found.network) if fold else found.network
    model = found.model.folded() if fold else found.model
    batches = list(found.data.batches("test", batch=BATCH, limit=images))
    listener.stage("forms", len(forms) + int8)
    for name in forms:
        form = FORMS[name]
        exported, proof = keep(form, folder, network, model, found.facts, found.network, batches)
        times = timed(exported.network, network, model.image)
        place = folder / form.place
        facts = {"file": form.place, "bytes": _bytes(place), **proof.to_dict()}
        _record(run, name, {**facts, "milliseconds": times, "fused": fold, "image": model.image})
        if name == "onnx":
            _forget(run, INT8, folder / INT8_PLACE)  # it was made of the graph before
        listener.advance(1, form=name, difference=proof.difference)
    if int8:
        calibration = found.data.calibration(**CALIBRATION, seed=0)
        done = quantise(folder / FORMS["onnx"].place, calibration, batches)
        times = timed(done.exported.network, network, model.image)
        facts = {"file": INT8_PLACE, "bytes": done.bytes_after, **done.to_dict()}
        _record(run, INT8, {**facts, "milliseconds": times, "fused": fold, "image": model.image})
        listener.advance(1, form=INT8, accuracy=done.accuracy_after)
    listener.end()
    report.exported(run)


def _record(run: Run, name: str, facts: Mapping[str, Any]) -> None:
    """Add a form to the record, in place of what an earlier export said of it."""
    made = provenance()
    before = retrained.exports(run)
    entry = {**facts, "made": made["made"], "device": made["device"], "versions": made["versions"]}
    run.write(retrained.EXPORTS, {**before, name: entry})


def _forget(run: Run, name: str, place: Path) -> None:
    """Take a form out of the record, and its file away."""
    before = retrained.exports(run)
    if name in before:
        run.write(retrained.EXPORTS, {form: f for form, f in before.items() if form != name})
    place.unlink(missing_ok=True)


def _bytes(place: Path) -> int:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _told(run: Run) -> dict[str, Any]:
    """Return what there is now."""
    return {
        "run": run.name,
        "folder": str(run.path / EXPORT),
        "exports": retrained.exports(run),
        "report": str(run.file("export/report.html")),
        "next": retrained.after(run),
    }
