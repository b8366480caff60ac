"""A sweep as one figure and one page: every winner, and one front over all searches."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import column
from mixnas.report.costs import axis, cell, further, head, percent
from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import image, made_with, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RETRAINED = (
    "A retrained network was trained for good from scratch, and its accuracy is that on the test "
    "images, which nothing else has read. Where retrainings were stopped early, it was by their "
    "accuracy on validation images, among the winners of one budget; the test images were not read "
    "for those. Networks that were stopped are not shown to be worse than the rest by the same "
    "margin at the end."
)
SWEPT, SWEPT_PAGE = "figures/sweep.png", "report.html"

HOW_TO_READ = (
    "Each point is a search's winner, with the standard error of its accuracy on images that chose "
    "nothing, by the weights that it inherits from the sweep's supernet: that ranks networks and "
    "is not what they reach when they are trained. Searches of one budget differ in their seed "
    "only: their spread is the search's own luck.",
    "The front holds the architectures of all searches that no other beats in loss and FLOPs, on "
    "the images that rank. Searches in several spaces stand on several supernets, whose losses "
    "are not quite alike.",
)


def retrained(row: Mapping[str, Any]) -> str:
    """Say what became of the retraining of a search's winner: a row of a sweep's table."""
    if row["retrained"] is not None:
        return f"{row['retrained']:.1%} +- {row['retrained_error']:.1%}"
    return row["retraining"] or "-"


def swept(run: Run, rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Draw a sweep's figure and write its page.

    Args:
        run: the sweep.
        rows: a row for each search.
        points: the front over all of them.

    Raises:
        StorageFull: if the disk is full.
    """
    run.write(SWEPT, png(draw(rows, points)))
    run.write(SWEPT_PAGE, html(run, rows, points))


def draw(rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> "Figure":
    """Return the figure: winners over each cost, and the front over FLOPs."""
    done = [row for row in rows if row["accuracy"] is not None]
    costs = ["flops", *further(done)]
    figure, panels = canvas(len(costs) + 1, 4.4)
    for axes, cost in zip(panels, costs, strict=False):
        _winners(axes, done, cost)
    label, unit = axis("flops", max((point["flops"] for point in points), default=None))
    axes = panels[-1]
    axes.step(
        [point["flops"] / unit for point in points],
        [point["loss"] for point in points],
        where="post", marker="o", ms=4, color="tab:blue",
    )  # fmt: skip
    axes.set_xlabel(literal(label))
    axes.set_ylabel("loss on the ranking images")
    axes.set_title("the front over all searches", fontsize="medium")
    return figure


def _winners(axes: "Axes", rows: Sequence[Mapping[str, Any]], cost: str) -> None:
    """Draw the winners' accuracy over a cost, a colour a space and budget."""
    name = column(cost)
    drawn = [row for row in rows if row.get(name) is not None]
    label, unit = axis(cost, max((row[name] for row in drawn), default=None))
    groups = dict.fromkeys((row["space"], row["budget"]) for row in drawn)
    for number, (space, budget) in enumerate(groups):
        own = [row for row in drawn if (row["space"], row["budget"]) == (space, budget)]
        axes.errorbar(
            [row[name] / unit for row in own],
            [100 * row["accuracy"] for row in own],
            [100 * row["standard_error"] for row in own],
            fmt="o", ms=5, capsize=2, color=f"C{number % 10}", label=literal(f"{space}, {budget}"),
        )  # fmt: skip
    axes.set_xlabel(literal(label))
    axes.set_ylabel("accuracy, per cent")
    axes.set_title("the searches' winners", fontsize="medium")
    if groups:
        axes.legend(fontsize="small")


def html(run: Run, rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> str:
    """Return the page; whatever was given is escaped."""
    costs = further(rows)
    after = any("retraining" in row for row in rows)
    heads = ["search", "budget", "seed", "state", "accuracy"]
    heads += ["retrained, test images"] * after + ["FLOPs", "parameters"]
    cells = [
        [
            *(str(row[key]) for key in ("search", "budget", "seed", "state")),
            _accuracy(row),
            *([retrained(row)] if after else []),
            cell("flops", row["flops"]),
            cell("params", row["params"]),
            *(cell(cost, row.get(column(cost))) for cost in costs),
            row["winner"] or row["progress"] or "",
        ]
        for row in rows
    ]
    front = [
        [point["id"], point["search"], cell("flops", point["flops"]), f"{point['loss']:.4f}",
         percent(point["accuracy"])]
        for point in points
    ]  # fmt: skip
    return page(
        f"mixnas: {run.name}",
        (
            f"<h1>{escape(run.name)}</h1>",
            image(run, SWEPT, "the searches' winners, and the front"),
            "<h2>The searches</h2>",
            table([*heads, *map(head, costs), "winner"], cells),
            "<h2>The front over all of them</h2>",
            table(["architecture", "found by", "FLOPs", "loss", "accuracy"], front),
            *(f"<p>{escape(text)}</p>" for text in (*HOW_TO_READ, *[RETRAINED] * after)),
            "<h2>Made with</h2>",
            pairs(made_with(run)),
        ),
    )


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None:
        return "-"
    return f"{row['accuracy']:.1%} +- {row['standard_error']:.1%}"
