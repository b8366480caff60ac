"""What is made of a finished run: another budget picked from it, or the run replayed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mixnas.arch import Architecture
from mixnas.cost.limit import cost_in, from_column
from mixnas.cost.limit import describe as amount
from mixnas.report import STAGE_HEADS, stage_rows
from mixnas.screen.parts import grid, heading
from mixnas.terminal import rows


def picked(found: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.pick` returned."""
    table = grid(*STAGE_HEADS, words=len(STAGE_HEADS))
    for row in stage_rows(Architecture.from_dict(found["architecture"])):
        table.add_row(*map(Text, row))
    return Group(
        heading(f"{found['run']}: the best found within {' and '.join(found['budget'])}"),
        rows(dict(_picked(found))),
        table,
        Text(f"Next: {found['next']}"),
        Text(
            "The accuracy is by the supernet's weights: train the network before you quote one.",
            style="bold",
        ),
    )


def _picked(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    low, high = found["interval"]
    candidates = found["candidates"]
    yield "architecture", found["id"]
    yield "found as", found["origin"]
    yield (
        "accuracy",
        f"{found['accuracy']:.1%} ({low:.1%} to {high:.1%}) by the supernet's weights, on "
        f"{found['images']} images that chose nothing",
    )
    for column, value in found["costs"].items():
        cost = cost_in(column)
        if cost is not None:
            told = found["predicted"].get(column)
            note = "" if told is None else ", upper end of what is predicted"
            yield column, amount(cost, from_column(cost, value)) + note
    yield "trained for", " and ".join(found["trained_for"])
    yield (
        "considered",
        f"{candidates['known']} trials within the budget, {candidates['evaluated']} more "
        f"evaluated now, {candidates['judged']} judged again",
    )
    yield "took", f"{found['seconds']:.1f} s"
    yield "kept in", found["files"]["architecture"]
    yield "with weights", found["files"]["weights"]


def replayed(found: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.replay` returned."""
    stopped = f", {found['beaten']} stopped early, as beaten" if found["beaten"] else ""
    facts = {
        "trials": f"{found['trials']} in the log, {found['complete']} complete{stopped}",
        "asks": f"{found['asks']} asked again and the same",
        "front": f"{found['front']} points",
        "winner": found["winner"] or "none yet",
        "rebuilt in": found["files"]["trials.csv"].rpartition("/")[0],
    }
    return Group(
        heading(f"{found['run']}, rebuilt from its logs: {_verdict(found)}"),
        rows(facts),
        *(Text(f"differs: {line}", style="bold") for line in found["differences"]),
        *map(Text, _following(found["following"])),
        *(Text(f"not replayed: {line}") for line in found["unreplayed"]),
    )


def _verdict(found: Mapping[str, Any]) -> str:
    number = len(found["differences"])
    if found["same"]:
        return "nothing differs"
    return "1 difference" if number == 1 else f"{number} differences"


def _following(lines: Sequence[str]) -> Iterator[str]:
    """Yield a line that counts the differences that follow from others, if there are any."""
    if lines:
        files = " and ".join(dict.fromkeys(line.partition(",")[0] for line in lines))
        yield f"what follows: {len(lines)} further figures of {files} differ (--json lists them)"
