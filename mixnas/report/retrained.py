"""A retraining as two figures and one page: its curves, its confusion, what the test images say.

Everything is read off the run's files, so the report of an unfinished training can be made too:
it then holds what is there.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import describe as amount
from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import flat, image, made_with, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES, CONFUSION, RETRAINED_PAGE = "figures/curves.png", "figures/confusion.png", "report.html"
CURVE, JUDGED, SUMMARY = "metrics.csv", "metrics.json", "summary.json"

NAMED = 25
"""Classes at most that a confusion matrix names; more of them are numbered."""
COUNTED = 12
"""Classes at most whose counts are written into their cells."""
WEAKEST = 20
"""Classes that the page lists, those of least recall first."""
LAST = 10
"""Epochs that the page lists."""

EPOCH_HEADS = ("epoch", "rate", "training loss", "validation loss", "accuracy", "images/s")
CLASS_HEADS = ("class", "images", "recall")

HOW_TO_READ_RETRAINED = (
    "The test images were read once, after the last epoch, and nothing here was chosen by them. "
    "Accuracy over the epochs is on validation images, by which a search ranks and reports: it is "
    "there to follow the training.",
    "Beside an accuracy stands the standard error that its number of images implies: "
    "differences below about twice that may be chance.",
    "The calibration error is how far the network's confidence is from its accuracy, on average "
    "over 15 bins of confidence (Guo et al. 2017): 0 % is best.",
    "The training loss holds what the recipe adds (smoothing, mixing, distillation, augmentation) "
    "and may lie above the validation loss for that reason.",
    "FLOPs are multiply-adds of one image.",
)


def retrained(run: Run) -> list[Path]:
    """Draw a retraining's figures and write its page, as far as its files go.

    Raises:
        RunConflict: if a file of the run is damaged.
        StorageFull: if the disk is full.
    """
    drawn = {}
    if run.file(CURVE).is_file():
        with run.reading(CURVE):
            drawn[CURVES] = curves_figure(run.read(CURVE))
    if run.file(JUDGED).is_file():
        with run.reading(JUDGED):
            drawn[CONFUSION] = confusion_figure(run.read(JUDGED))
    paths = [run.write(name, png(figure)) for name, figure in drawn.items()]
    return [*paths, run.write(RETRAINED_PAGE, page(f"mixnas: {run.name}", _sections(run)))]


def curves_figure(curve: "pandas.DataFrame") -> "Figure":
    """Draw losses, validation accuracy and learning rate over the epochs."""
    figure, (losses, accuracy, rate) = canvas(3, 4.2)
    marker = "o" if len(curve) < 3 else None
    for column, label in (
        ("loss", "training, with all the recipe adds"),
        ("val_loss", "validation"),
    ):
        _line(losses, curve, column, label, marker)
    losses.set_ylabel("loss, nats")
    losses.legend(fontsize="small")
    _line(accuracy, curve, "val_accuracy", "validation", marker)
    accuracy.set_ylabel("accuracy on validation images")
    _line(rate, curve, "lr", "rate", marker)
    rate.set_ylabel("learning rate, end of epoch")
    for axes in (losses, accuracy, rate):
        axes.set_xlabel("epoch")
    return figure


def _line(
    axes: "Axes", curve: "pandas.DataFrame", column: str, label: str, marker: str | None
) -> None:
    """Draw a column over the epochs that have it."""
    seen = curve[["epoch", column]].dropna()
    if column == "val_accuracy" and not len(seen):
        axes.set_title("no image was kept aside", fontsize="medium")
    axes.plot(seen["epoch"], seen[column], label=label, marker=marker)


def confusion_figure(found: Mapping[str, Any]) -> "Figure":
    """Draw the confusion matrix: of each true class, the share that was answered so."""
    labels, counts = found["labels"], found["confusion"]
    classes = len(labels)
    figure, (axes,) = canvas(1, 5.5 if classes <= COUNTED else 8)
    figure.set_figwidth(6.5 if classes <= COUNTED else 9)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the true class's images")
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    if classes <= NAMED:
        names = [literal(_short(name)) for name in labels]
        axes.set_xticks(range(classes), names, rotation=90 if classes > COUNTED else 45)
        axes.set_yticks(range(classes), names)
    if classes <= COUNTED:
        _write_counts(axes, counts, shares)
    return figure


def _write_counts(
    axes: "Axes", counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> None:
    for row, (line, parts) in enumerate(zip(counts, shares, strict=True)):
        for column, (count, share) in enumerate(zip(line, parts, strict=True)):
            if count:
                colour = "white" if share > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=colour, fontsize=8
                )


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= 18 else f"{text[:17]}…"


def retrained_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about a finished retraining: label and text."""
    error = summary["standard_error"]
    yield "network", summary["label"]
    yield "test top-1", f"{summary['top1']:.2%} +- {error:.2%} of {summary['images']:,} images"
    if summary["top5"] is not None:
        yield "test top-5", f"{summary['top5']:.2%}"
    if summary.get("val_accuracy") is not None:
        yield "validation", f"{summary['val_accuracy']:.2%} after the last epoch"
    yield "test loss", f"{summary['loss']:.4f} nats"
    yield "calibration error", f"{summary['calibration_error']:.2%}"
    if summary["inherited"] is not None:
        yield "before", f"{summary['inherited']:.2%} by the supernet's weights, on other images"
    yield "trained", trained(summary)
    yield "began from", _beginning(summary)
    if summary["teacher"]:
        yield "teacher", str(summary["teacher"])
    side = summary["flops_image"]
    yield "FLOPs", f"{amount('flops', summary['flops'])} at {side}x{side} pixels"
    yield "parameters", amount("params", summary["params"])
    processes = summary["processes"]
    on = f"{processes} processes on {summary['device']}" if processes > 1 else summary["device"]
    yield "trained on", on


def trained(summary: Mapping[str, Any]) -> str:
    """Say how a network was trained."""
    side = summary["resolution"]
    return (
        f"{summary['epochs']:g} epochs of recipe {summary['recipe']} on {summary['data']} at "
        f"{side}x{side} pixels, {summary['steps']:,} steps of {summary['batch']} images"
    )


def _beginning(summary: Mapping[str, Any]) -> str:
    if summary["init"] == "supernet":
        return f"the supernet's weights of {summary['of']}"
    began = "scratch" if summary["init"] == "scratch" else f"the weights of {summary['init']}"
    return f"{began}; found by {summary['of']}" if summary["of"] else began


def epoch_rows(curve: "pandas.DataFrame") -> Iterator[list[str]]:
    """Yield an epoch's cells."""
    for row in curve.to_dict("records"):
        yield [
            f"{row['epoch']:g}",
            f"{row['lr']:.3g}",
            *(_cell(row[column], ".4f") for column in ("loss", "val_loss")),
            _cell(row["val_accuracy"], ".2%"),
            _cell(row["images_per_second"], ",.0f"),
        ]


def _cell(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)  # an empty cell is not a number


def _sections(run: Run) -> Iterator[str]:
    yield f"<h1>mixnas: {escape(_title(run))} retrained</h1>"
    if run.file(SUMMARY).is_file():
        with run.reading(SUMMARY):
            yield "<h2>Result</h2>" + pairs(retrained_rows(run.read(SUMMARY)))
    else:
        yield "<p><strong>This training is not finished; the test images are unread.</strong></p>"
    if run.file(CURVE).is_file():
        yield "<h2>Training</h2>" + image(run, CURVES, "losses, accuracy and rate over the epochs")
        with run.reading(CURVE):
            yield table(EPOCH_HEADS, epoch_rows(run.read(CURVE).tail(LAST)), figures=True)
    if run.file(JUDGED).is_file():
        yield "<h2>Test images</h2>" + image(run, CONFUSION, "confusion of the classes")
        with run.reading(JUDGED):
            yield table(CLASS_HEADS, _weakest(run.read(JUDGED)), figures=True)
    yield "<h2>How to read this</h2>"
    yield "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ_RETRAINED)
    settings = {key: value for key, value in run.settings.items() if key != "source"}
    yield "<h2>Settings</h2>" + pairs(flat(settings))
    yield "<h2>Made with</h2>" + pairs(made_with(run))


def _title(run: Run) -> str:
    of = run.settings.get("of")
    return f"{of}, {run.name}" if of else run.name


def _weakest(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the classes of least recall; those without images are left out."""
    counted = zip(found["labels"], found["recall"], found["confusion"], strict=True)
    seen = [(name, recall, sum(row)) for name, recall, row in counted if recall is not None]
    for name, recall, images in sorted(seen, key=lambda row: row[1])[:WEAKEST]:
        yield [str(name), f"{images:,}", f"{recall:.1%}"]
