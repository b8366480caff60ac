"""A comparison as one figure and one page: accuracy over FLOPs and over latency."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import Limit, column, in_column, kind_of
from mixnas.cost.limit import describe as amount
from mixnas.report.costs import axis, cell, further, head
from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import image, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARED = "figures/compare.png"
COMPARED_PAGE = "report.html"

MARKS = {
    "winner": ("*", "crimson"),
    "system": ("s", "tab:blue"),
    "mixer": ("o", "tab:orange"),
    "control": ("X", "tab:grey"),
    "random": ("^", "tab:green"),
    "timm": ("D", "tab:purple"),
    "equal": ("v", "tab:red"),
}
"""Each kind's marker and colour."""

GAP = 0.045
"""Least distance of two labels, as a share of a panel's height."""

COMPARED_HEADS = (
    "network",
    "kind",
    "accuracy",
    "less the winner's",
    "verdict",
    "FLOPs",
    "parameters",
)
"""What `compared_cells` tells of every entrant; further costs follow."""

HOW_TO_READ = (
    "All are trained from scratch by one recipe, on the same images in the same order, with the "
    "same seeds, and judged on images that chose nothing. The test images are not read. The "
    "recipe is short, one for all and tuned for none: it says who learns best under it, and no "
    "figure here is a network's best. Where training images are small, a network of large patches "
    "sees few tokens of them.",
    "Accuracy is the mean over the seeds +- their standard deviation. The difference to the "
    "winner's is paired seed by seed, and a seed is the unit; in brackets its own 95 % interval, "
    "of a randomised block design whose noise is pooled over all networks. An entrant is ahead or "
    "behind if so great a difference had a chance of less than 5 % after Holm's correction for "
    "all comparisons, else level: a tie. Taken for granted: all networks are equally noisy from "
    "seed to seed, and the images are these: others would move all differences a little more. "
    "With one seed the interval is a bootstrap over the images, uncorrected, and chance in "
    "training is not seen.",
    "FLOPs are multiply-adds of one image, with parameters and latency at the deployed image and "
    "classes, whatever the training images' size. Latency is timed whole and in turn, one image, "
    "unfused; medians.",
)


def compared_figure(run: Run) -> Path:
    """Draw a comparison: accuracy over the FLOPs and over the latency of every entrant.

    Raises:
        RunConflict: if the comparison is not finished.
        StorageFull: if the disk is full.
    """
    return run.write(COMPARED, png(draw(run.read("summary.json"))))


def draw(summary: Mapping[str, Any]) -> "Figure":
    """Return the figure of a comparison's summary."""
    rows = [row for row in summary["rows"] if row["accuracy"] is not None]
    limits = [Limit.parse(text) for text in summary["budget"]]
    costs = ["flops", *(further(summary["rows"]) or ["latency"])]
    figure, panels = canvas(len(costs), max(4.6, 0.27 * len(rows)))
    figure.set_figwidth(7.5 * len(costs))
    for axes, cost in zip(panels, costs, strict=True):
        name = column(cost)
        drawn = [row for row in rows if row.get(name) is not None]
        label, unit = _unit(cost, [row[name] for row in drawn])
        points = [(row, row[name] / unit) for row in drawn]
        _scatter(axes, points)
        for limit in limits:
            if limit.cost == cost:
                high = in_column(cost, limit.high) / unit
                axes.axvline(high, color="grey", ls="--", lw=1, label="budget")
        axes.set_xlabel(literal(label))
        axes.set_ylabel("accuracy, per cent")
        _name(axes, points)
    handles = {t: h for h, t in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    if handles:
        panels[0].legend(handles.values(), handles.keys(), fontsize="small", loc="best")
    return figure


def _unit(cost: str, values: Sequence[float]) -> tuple[str, float]:
    """Return an axis's label, and by what its values are divided."""
    if cost == "latency":
        return "milliseconds (whole, one image)", 1.0
    if kind_of(cost) != "flops":
        return axis(cost)
    name, unit = ("GFLOPs", 1e9) if max(values, default=1e9) >= 1e8 else ("MFLOPs", 1e6)
    return f"{name} (multiply-adds, as deployed)", unit


def _scatter(axes: "Axes", points: Sequence[tuple[Mapping[str, Any], float]]) -> None:
    for row, x in points:
        marker, colour = MARKS[row["kind"]]
        error = row["spread"] if row["spread"] is not None else row["standard_error"]
        axes.errorbar(
            x,
            100 * row["accuracy"],
            yerr=100 * error,
            fmt=marker,
            color=colour,
            ms=14 if row["kind"] == "winner" else 6,
            elinewidth=1,
            capsize=2,
            zorder=3 if row["kind"] == "winner" else 2,
            label=row["kind"],
        )
    values = [x for _, x in points]
    if values and max(values) > 8 * min(values) > 0:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: "Axes", points: Sequence[tuple[Mapping[str, Any], float]]) -> None:
    """Write the labels in a column beside the panel, a thin line to each point."""
    axes.set_ylim(axes.get_ylim())  # from here on the places hold
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point[0]["accuracy"])
    heights = [(100 * row["accuracy"] - low) / (high - low) for row, _ in ordered]
    for (row, x), height in zip(ordered, apart(heights, GAP), strict=True):
        axes.annotate(
            literal(row["label"]),
            xy=(x, 100 * row["accuracy"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=MARKS[row["kind"]][1],
            fontweight="bold" if row["kind"] == "winner" else "normal",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "lightgrey"},
            annotation_clip=False,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights moved as little as they need to lie a gap apart, between 0 and 1.

    Args:
        heights: in increasing order.
        gap: least distance; less where there is no room for it.
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap if placed else 0.0))
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def compared_html(run: Run) -> Path:
    """Write the comparison's page: one file that needs no other, the figure included.

    Raises:
        RunConflict: if the comparison is not finished.
        StorageFull: if the disk is full.
    """
    summary = run.read("summary.json")
    return run.write(
        COMPARED_PAGE, page(f"mixnas: {summary['of']} compared", _sections(run, summary))
    )


def _sections(run: Run, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>mixnas: {escape(summary['of'])} compared</h1>"
    yield f"<p><strong>{escape(summary['sentence'])}</strong></p>"
    yield image(run, COMPARED, "accuracy over FLOPs and over latency")
    rows = summary["rows"]
    cells = (compared_cells(row, further(rows)) for row in rows)
    yield table(compared_heads(rows), cells, figures=True)
    yield pairs(compared_notes(summary))
    yield "<h2>How to read this</h2>" + "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ)
    yield "<h2>Conditions</h2>" + pairs(compared_conditions(summary))


def compared_heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is told of entrants: what each has, and the further costs that some have."""
    return [*COMPARED_HEADS, *map(head, further(rows))]


def compared_cells(row: Mapping[str, Any], costs: Iterable[str] = ()) -> list[str]:
    """Return an entrant's cells.

    Args:
        row: of the comparison's summary.
        costs: those beside FLOPs and parameters.
    """
    return [
        row["label"],
        row["kind"],
        _accuracy(row),
        _difference(row),
        row["verdict"] or "-",
        amount("flops", row["flops"]),
        amount("params", row["params"]),
        *(cell(cost, row.get(column(cost))) for cost in costs),
    ]


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None:
        return "failed"
    spread = "" if row["spread"] is None else f" +- {100 * row['spread']:.1f}"
    return f"{100 * row['accuracy']:.1f}{spread} %"


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    middle, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def compared_notes(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what must be said beside entrants, and why others do not take part."""
    for row in summary["rows"]:
        if row["note"]:
            yield row["label"], row["note"]
    for key, reason in summary["absent"].items():
        yield f"without {key}", reason


def compared_conditions(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield under what the table holds: label and text."""
    side, trained = summary["image"], summary["resolution"]
    yield "data", f"{summary['data']}: {summary['labels']} classes at {trained}x{trained} pixels"
    yield "judged on", f"{summary['images']:,} images that chose nothing"
    yield (
        "trained",
        f"{summary['epochs']} epochs, {summary['steps']:,} steps, {summary['seeds']} seeds",
    )
    yield "recipe", ", ".join(_used(summary["recipe"]))
    yield "costs", f"at {side}x{side} pixels and {summary['classes']} classes"
    yield "budget", " and ".join(summary["budget"])
    told = ", ".join(f"{name} {value}" for name, value in summary["conditions"].items())
    yield "timed on", told or "not timed: the machine was too busy"


def _used(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a recipe sets; what is off or left to its default is left out."""
    for name, value in recipe.items():
        if isinstance(value, str) and value != "none":
            yield f"{name} {value}"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{name} {value:g}"
