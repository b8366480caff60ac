"""What a sweep has found: one table of its searches, one front over all of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixnas.jobs.settings import duration
from mixnas.report import cell, further, percent
from mixnas.report.swept import retrained
from mixnas.screen.parts import grid, heading
from mixnas.terminal import describe, rows

STATES = {"search": "searching", "finalists": "naming its winner", "training": "waiting"}
"""What a search's state is called in a sweep's table."""


def swept(found: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.swept.swept` returned."""
    return Group(*_parts(found))


def _parts(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield heading(f"{found['run']}: {_state(found)}")
    for each in found["supernets"]:
        took = f", trained in {duration(each['seconds'])}" if each["trained"] else ", in training"
        yield Text(f"{each['run']}: for {' and '.join(each['budget'])}{took}")
    yield _table(found["rows"])
    if any("retraining" in row for row in found["rows"]):
        yield heading("Winners retrained: accuracy on the test images, or where it stopped")
        yield _retrainings(found["rows"])
    if found["front"]:
        yield heading("The front over all of them: the least loss at each FLOPs")
        yield _front(found["front"])
        yield Text(
            "The front's loss and accuracy are those on the ranking images, as evaluated in the "
            "search; a winner's accuracy above is that on the report images, which chose nothing. "
            "Both by the supernet's weights: not a trained network's."
        )
    again = {"go on with": found["again"]} if found["again"] else {}
    yield rows({"folder": found["folder"]} | found.get("files", {}) | again)


def _state(found: Mapping[str, Any]) -> str:
    """Say whether a sweep is done, at work, or stopped."""
    done = sum(row["state"] == "finished" for row in found["rows"])
    state = f"{found['state']}, {done} of {len(found['rows'])} searches done"
    status = found["status"]
    if not status or not status["stage"]:
        return state
    left = f", {duration(status['left'])} left" if status["left"] is not None else ""
    figures = f", {describe(status['figures'])}" if status["figures"] else ""
    return f"{state}; {status['stage']}: {status['done']} of {status['total']}{figures}{left}"


def _table(searches: Sequence[Mapping[str, Any]]) -> Table:
    costs = further(searches)
    table = grid(
        "search", "budget", "seed", "state", "accuracy", "FLOPs", "parameters", *costs, "winner",
        words=4,
    )  # fmt: skip
    table.columns[-1].justify = "left"
    for row in searches:
        state = STATES.get(row["state"], row["state"])
        told = f"{state}: {row['progress']}" if row["progress"] else state
        cells = (
            row["search"], row["budget"], row["seed"], told, _accuracy(row),
            cell("flops", row["flops"]), cell("params", row["params"]),
            *(cell(cost, row.get(_column(cost))) for cost in costs), row["winner"] or "",
        )  # fmt: skip
        table.add_row(*(Text("" if each is None else str(each)) for each in cells))
    return table


def _retrainings(searches: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("search", "budget", "architecture", "retrained", "folder", words=2)
    for row in searches:
        cells = (
            row["search"], row["budget"], row["id"] or "-", retrained(row),
            row["retrained_in"] or "-",
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    return table


def _column(cost: str) -> str:
    from mixnas.cost.limit import column

    return column(cost)


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None:
        return "-"
    return f"{row['accuracy']:.1%} +- {row['standard_error']:.1%}"


def _front(points: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("architecture", "found by", "FLOPs", "parameters", "loss", "accuracy", words=2)
    for point in points:
        table.add_row(
            Text(point["id"]),
            Text(point["search"]),
            cell("flops", point["flops"]),
            cell("params", point["params"]),
            f"{point['loss']:.4f}",
            percent(point["accuracy"]),
        )
    return table
