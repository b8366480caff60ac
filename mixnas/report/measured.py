"""A measured table: how well it foretells whole networks, as rows, one figure and one page."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import describe as amount
from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import flat, image, made_with, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CALIBRATION = "figures/calibration.png"
MEASURED_PAGE = "report.html"

SMALLEST = 10**6
"""Of the smallest unit of a cost in a millisecond, and in a millijoule."""

UNITS = {"latency": "milliseconds", "energy": "millijoules"}

MARKS = {"conv4": ("o", "#3b6fb6"), "conv8": ("s", "#d1772b"), "conv16": ("^", "#3a9a5b")}
OTHER = ("D", "#a04a93")
"""Each stem's marker and colour, and those of every other stem."""

ENOUGH = 5
"""Networks below which no correlation is worth printing."""

FIRST = ("processor", "device", "runtime", "precision", "batch", "threads", "image", "classes")
"""Conditions that are told first, in this order."""

PART_HEADS = ("part", "input", "takes")
"""What `_part_cells` tells."""

HOW_TO_READ_MEASURED = (
    "Every part of the space was measured alone, and some networks as wholes. A prediction is the "
    "sum of a network's parts, corrected by what the whole networks taught. The picture shows "
    "networks that the correction for them was not taught by: each was held out in its turn.",
    "The band is the prediction's interval. The search holds a limit against its upper end, so "
    "that a network that is said to keep the limit keeps it on the device.",
    "Figures hold for this device, runtime, precision, batch and number of threads, and for no "
    "others.",
)

IN_TURN = (
    "All were taken in turn with a fixed reference network, whose time tells when the machine "
    "itself changes its speed."
)
"""What is true of times that our own stopwatch took."""


def figure_of(quantity: str, value: float) -> str:
    """Return milliseconds or millijoules for people, in three digits."""
    return amount(quantity, round(value * SMALLEST))


def conditions_rows(conditions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the figures depend on: label and text, what matters most first."""
    ordered = [name for name in FIRST if name in conditions]
    ordered += [name for name in conditions if name not in FIRST]
    yield from flat({name.replace("_", " "): conditions[name] for name in ordered})


def judged(points: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Say how good predictions of held-out networks are.

    Args:
        points: of each network predicted, low, high and measured.

    Returns:
        error (median absolute relative error), ninetieth (its 90th percentile), spearman (None
        of few networks) and coverage (share within their intervals), all None without points.
    """
    if not points:
        return dict.fromkeys(("error", "ninetieth", "spearman", "coverage"))
    import numpy

    from mixnas.cost.calibration import ranked

    predicted, low, high, measured = (
        numpy.array([point[key] for point in points], dtype=float)
        for key in ("predicted", "low", "high", "measured")
    )
    errors = abs(predicted / measured - 1)
    ordered = len(points) >= ENOUGH and min(len(set(predicted)), len(set(measured))) > 1
    return {
        "error": float(numpy.median(errors)),
        "ninetieth": float(numpy.quantile(errors, 0.9)),
        "spearman": ranked(list(predicted), list(measured)) if ordered else None,
        "coverage": float(numpy.mean((low <= measured) & (measured <= high))),
    }


def measured_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about a measured table: label and text."""
    quantity, points, quality = summary["quantity"], summary["points"], summary["quality"]
    yield "measured", f"{UNITS[quantity]} of {summary['parts']} parts, {_whole(summary)}"
    yield "of space", f"{summary['space']} at {summary['image']} px, {summary['classes']} classes"
    yield from _on(summary["conditions"])
    if summary.get("reference_ms"):
        yield "reference", f"{amount('latency', round(summary['reference_ms'] * SMALLEST))}"
    if not points:
        yield "calibrated", "not: too few networks were measured whole; sums of parts are used"
        return
    values = [point["measured"] for point in points]
    ends = (figure_of(quantity, value) for value in (min(values), max(values)))
    yield "networks take", " to ".join(ends)
    told = judged(points)
    ranks = f", rank correlation {told['spearman']:.3f}" if told["spearman"] is not None else ""
    yield "error", f"{told['error']:.1%} (median), {told['ninetieth']:.1%} (90th percentile){ranks}"
    yield from _reach(quality, points, told["coverage"])


def _reach(
    quality: Mapping[str, Any], points: Sequence[Mapping[str, Any]], coverage: float | None
) -> Iterator[tuple[str, str]]:
    """Yield how far the predictor's interval reaches, and what held-out intervals covered."""
    held_out = band(points)
    if quality.get("up"):
        interval = f"{-quality['down']:+.1%} to {quality['up']:+.1%}"
    elif held_out:
        interval = f"{held_out[0] - 1:+.1%} to {held_out[1] - 1:+.1%}"
    else:
        yield "interval", "none: too few networks were measured whole"
        return
    level = f" for {quality['level']:.0%} of networks" if "level" in quality else ""
    yield "interval", f"{interval} of a prediction{level}"
    if held_out and coverage is not None:
        yield "coverage", f"{coverage:.1%} of {len(points)} networks that were held out"


def _whole(summary: Mapping[str, Any]) -> str:
    count = summary["networks"]
    return f"{count} network{'' if count == 1 else 's'} as wholes"


def _on(conditions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the device and how it computes, of whatever a table says about them."""
    devices = (str(conditions[name]) for name in ("device", "processor") if name in conditions)
    yield "on", ", ".join(devices) or "a device that the table does not name"
    told = [str(conditions[name]) for name in ("runtime", "precision") if name in conditions]
    for name in ("batch", "threads"):
        told += [f"{name} {conditions[name]}"] if name in conditions else []
    if told:
        yield "by", ", ".join(told)


def band(points: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the typical interval as factors of a prediction, None where there is none."""
    if not points or all(point["low"] == point["high"] for point in points):
        return None
    low, high = (
        statistics.median(point[end] / point["predicted"] for point in points)
        for end in ("low", "high")
    )
    return low, high


def calibration_figure(
    points: Sequence[Mapping[str, Any]],
    quality: Mapping[str, Any],
    quantity: str = "latency",
) -> "Figure":
    """Draw networks' measured figures over the predicted ones, and the errors beside them.

    Args:
        points: of each network stem, predicted, low, high and measured, in milliseconds
            (millijoules).
        quality: the predictor's; ``level`` names the band.
        quantity: latency or energy.
    """
    figure, (left, right) = canvas(2, 4.8)
    figure.set_figwidth(12)
    ends = [point[key] for point in points for key in ("predicted", "measured")] or [1.0]
    span = [min(ends) / 1.15, max(ends) * 1.15]
    interval = band(points)
    level = f"{quality['level']:.0%} interval" if "level" in quality else "interval"
    if interval:
        low, high = interval
        lower, upper = [low * x for x in span], [high * x for x in span]
        left.fill_between(span, lower, upper, color="0.87", lw=0, label=level)
        right.axhspan(100 * (low - 1), 100 * (high - 1), color="0.87", lw=0)
    left.plot(span, span, color="0.4", lw=1, label="as predicted")
    right.axhline(0, color="0.4", lw=1)
    _networks(left, right, points)
    unit = UNITS[quantity]
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(*span)
        axes.set_xlabel(f"predicted {unit}")
        _plain(axes.xaxis, *span)
    left.set_yscale("log")
    left.set_ylim(*span)
    left.set_ylabel(f"measured {unit}, the network as a whole")
    _plain(left.yaxis, *span)
    right.set_ylabel("measured above predicted, per cent")
    left.legend(fontsize="small", loc="upper left")
    left.set_title(_title(points), fontsize="medium")
    return figure


def _networks(left: "Axes", right: "Axes", points: Sequence[Mapping[str, Any]]) -> None:
    """Draw a mark for each network, alike for those of one stem."""
    for stem in dict.fromkeys(sorted(str(point["stem"]) for point in points)):
        group = [point for point in points if point["stem"] == stem]
        marker, colour = MARKS.get(stem, OTHER)
        x = [point["predicted"] for point in group]
        y = [point["measured"] for point in group]
        errors = [100 * (b / a - 1) for a, b in zip(x, y, strict=True)]
        for axes, values, label in ((left, y, literal(stem)), (right, errors, "_")):
            axes.scatter(
                x, values, s=22, marker=marker, color=colour, alpha=0.8, zorder=3, label=label,
                edgecolors="white", linewidths=0.5,
            )  # fmt: skip


def _plain(axis: Any, low: float, high: float) -> None:
    """Mark a logarithmic axis with plain numbers, as many as can be read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    steps = (1, 2, 3, 5) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    ticks = [s * 10.0**e for e in range(-6, 10) for s in steps if low <= s * 10.0**e <= high]
    if len(ticks) < 2:
        ticks = [low * (high / low) ** (i / 4) for i in range(5)]
        ticks = sorted({float(f"{tick:.3g}") for tick in ticks})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.set_minor_locator(NullLocator())


def _title(points: Sequence[Mapping[str, Any]]) -> str:
    told = judged(points)
    if told["error"] is None:
        return "no networks measured whole"
    named = "1 held-out network" if len(points) == 1 else f"{len(points)} held-out networks"
    inside = f", {told['coverage']:.0%} within their intervals" if band(points) else ""
    return f"{named}, median error {told['error']:.1%}{inside}"


def calibration(run: Run) -> Path:
    """Draw how well a measured table foretells whole networks.

    Raises:
        RunConflict: if the measuring is not finished, or its record is damaged.
        StorageFull: if the disk is full.
    """
    summary = run.read("summary.json")
    with run.reading("summary.json"):
        drawn = calibration_figure(summary["points"], summary["quality"], summary["quantity"])
        return run.write(CALIBRATION, png(drawn))


def measured_html(run: Run) -> Path:
    """Write the page of a measured table: one file that needs no other, its figure included.

    Raises:
        RunConflict: if the measuring is not finished, or its record is damaged.
        StorageFull: if the disk is full.
    """
    summary = run.read("summary.json")
    with run.reading("summary.json"):
        text = page(f"mixnas: {run.name}", _sections(run, summary))
    return run.write(MEASURED_PAGE, text)


def _part_cells(part: Mapping[str, Any], quantity: str) -> list[str]:
    """Return a part's cells: what it is, its input, what it takes."""
    told = ", ".join(_words(part["spec"]))
    shape = "x".join(map(str, part["shape"]))
    return [f"{part['kind']} {told}", shape, figure_of(quantity, part["value"])]


def _words(settings: Sequence[Any]) -> Iterator[str]:
    """Yield a part's settings; a mixer's knobs stand in a list of pairs."""
    for setting in settings:
        if isinstance(setting, list | tuple):
            yield from (" ".join(map(str, pair)) for pair in setting)
        else:
            yield str(setting)


def _sections(run: Run, summary: Mapping[str, Any]) -> Iterator[str]:
    quantity = summary["quantity"]
    yield f"<h1>mixnas: {escape(run.name)}</h1>"
    yield pairs(measured_rows(summary))
    yield image(run, CALIBRATION, "measured over predicted, and the errors")
    for title, key in (
        ("The slowest parts", "slowest"),
        ("The fastest parts", "fastest"),
    ):
        if summary.get(key):
            cells = (_part_cells(part, quantity) for part in summary[key])
            yield f"<h2>{title}</h2>" + table(PART_HEADS, cells, figures=True)
    yield "<h2>How to read this</h2>"
    texts = [*HOW_TO_READ_MEASURED, *([IN_TURN] if summary.get("reference_ms") else [])]
    yield "".join(f"<p>{escape(text)}</p>" for text in texts)
    yield "<h2>The predictor</h2>" + pairs(flat(summary["quality"]))
    yield "<h2>Measured on</h2>" + pairs(conditions_rows(summary["conditions"]))
    yield "<h2>Made with</h2>" + pairs(made_with(run))
    yield "<h2>Seconds</h2>" + pairs((k, f"{v:.1f}") for k, v in summary["seconds"].items())
