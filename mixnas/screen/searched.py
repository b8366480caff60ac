"""What a search or a comparison found, and the list of runs."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mixnas.arch import Architecture
from mixnas.cost.limit import describe as amount
from mixnas.jobs.settings import duration
from mixnas.report import (
    STAGE_EFFECT_HEADS,
    STAGE_HEADS,
    compared_cells,
    compared_conditions,
    compared_heads,
    compared_notes,
    front_cells,
    front_heads,
    fronts_rows,
    further,
    learnt,
    point_cells,
    point_heads,
    raced,
    stage_effect_rows,
    stage_rows,
    winner_rows,
)
from mixnas.screen.audit import audited
from mixnas.screen.measured import measured
from mixnas.screen.parts import grid, heading
from mixnas.screen.retrained import exported, exports, retrained, retraining_rows, unfinished
from mixnas.screen.swept import swept
from mixnas.terminal import rows

CAVEAT = (
    "A supernet's accuracy ranks architectures; it is not a trained network's accuracy: "
    "train the winner from scratch before you quote one."
)

HOW_LISTED = "accuracy: by the supernet's weights; retrained: on the test images, read once"


def found(show: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.show` returned for a run."""
    if show["job"] == "sweep":
        return swept(show)
    if show["job"] == "retrain":
        return retrained(show)
    if show["state"] != "finished":
        return unfinished(show)
    if show["job"] == "export":
        return exported(show)
    if show["job"] == "measure":
        return measured(show)
    if show["job"] in ("audit", "compare"):
        return audited(show) if show["job"] == "audit" else compared(show)
    return Group(
        heading(f"{show['run']}: the winner"),
        rows(dict(winner_rows(show))),
        _stages(Architecture.from_dict(show["architecture"])),
        *_fronts(show),
        *_attribution(show),
        heading("The run"),
        rows(dict(_run(show))),
        *_comparisons(show),
        *_audits(show),
        *_retrainings(show),
        "",
        _next(show),
    )


def _attribution(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield which mixer helps where; the whole table is in the run's folder."""
    if found := show.get("attribution"):
        yield heading("Which mixer helps where")
        yield Text(found["sentence"])
        table = grid(*STAGE_EFFECT_HEADS, words=2)
        for cells in stage_effect_rows(found):
            table.add_row(*map(Text, cells))
        if found["stages"]:
            yield table


def compared(summary: Mapping[str, Any]) -> RenderableType:
    """Render the summary of a comparison."""
    costs = further(summary["rows"])
    table = grid(*compared_heads(summary["rows"]), words=2)
    for row in summary["rows"]:
        style = "bold" if row["kind"] == "winner" else ""
        table.add_row(*map(Text, compared_cells(row, costs)), style=style)
    return Group(
        heading(f"{summary['of']}: the winner beside others, all trained from scratch alike"),
        table,
        rows(dict(compared_notes(summary))),
        rows(dict(compared_conditions(summary))),
        heading(summary["sentence"]),
        rows(summary["files"]),
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the table of a comparison's summary in Markdown."""
    heads, costs = compared_heads(summary["rows"]), further(summary["rows"])
    lines = [heads, ["---"] * 2 + ["--:"] * (len(heads) - 2)]
    lines += [compared_cells(row, costs) for row in summary["rows"]]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _comparisons(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what the run's comparisons found."""
    for one in show["comparisons"]:
        yield heading(f"Compared ({one['folder']})")
        yield Text(one["sentence"])


def runs(found: Sequence[Mapping[str, Any]], folder: str | Path = "runs") -> RenderableType:
    """Render what `mixnas.jobs.runs` returned of a folder."""
    if not found:
        where = [] if Path(folder) == Path("runs") else ["--runs", str(folder)]
        begin = shlex.join(["mixnas", "search", "--budget", "1.5GFLOPs", *where])
        lacking = "runs" if Path(folder).is_dir() else f"folder {folder}"
        return Text(f"no {lacking} yet; begin with: {begin}")
    heads = ("run", "budget", "data", "state", "accuracy", "retrained", "FLOPs", "made")
    table = grid(*heads, words=4)
    for run in found:
        cells = (
            run["run"],
            ", ".join(run["budget"]) or "-",
            str(run["data"] or "-"),
            "measured table" if (run["job"], run["damage"]) == ("measure", None) else run["state"],
            "-" if run["accuracy"] is None else f"{run['accuracy']:.1%}",
            _retrained(run["retrained"]),
            "-" if run["flops"] is None else amount("flops", run["flops"]),
            "-" if run["age"] is None else f"{duration(run['age'])} ago",
        )
        table.add_row(*map(Text, cells))
    damage = (Text(run["damage"]) for run in found if run["damage"])
    return Group(table, Text(HOW_LISTED), *damage)


def _retrained(one: Mapping[str, Any] | None) -> str:
    """Return the accuracy on the test images, or how far a retraining is."""
    if one is None:
        return "-"
    return one["state"] if one["top1"] is None else f"{one['top1']:.1%}"


def _audits(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield how far the run's own ranking may be trusted, if audits have asked."""
    for one in show.get("audits", ()):
        size = "" if one["trained"] == one["ranked"] else f", trained at {one['trained']} px"
        yield heading(f"Audited ({one['folder']}{size})")
        yield Text(f"{one['sentence']} {one['misplaced']}")
        yield rows({"page": one["page"]} if "page" in one else {})


def _retrainings(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield how the winner's retrainings are, and what was exported of them."""
    if show["exports"]:
        yield heading("Exported with the weights that the winner inherits")
        yield exports(show["exports"])
    for one in show["retrainings"]:
        yield heading(f"Retrained ({one['folder']})")
        yield rows(dict(retraining_rows(one)))
        if one["exports"]:
            yield exports(one["exports"])


def _fronts(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the front, or each front with what was found when it was judged afresh."""
    winner = show["winner"]["number"]
    if "fronts" not in show:
        yield heading("The front: the least loss at each cost")
        yield _front(show["front"], winner)
        return
    least = show["fronts"]["told_apart"]
    for front in show["fronts"]["fronts"]:
        heads = front_heads(front)
        yield heading(f"The front: the least loss at each cost, over {heads[1]}")
        table = grid(*map(escape, heads), words=0)
        for cells in front_cells(front, winner, least):
            table.add_row(*cells)
        yield table
    yield rows(dict(fronts_rows(show["fronts"])))


def _front(points: Sequence[Mapping[str, Any]], winner: int) -> Table:
    """Return a front, cheapest first; the winner has a star."""
    costs = further(points)
    table = grid(*point_heads(points), words=0)
    for point in points:
        table.add_row(*point_cells(point, winner, costs))
    return table


def _stages(arch: Architecture) -> Table:
    table = grid(*STAGE_HEADS, words=len(STAGE_HEADS))
    for row in stage_rows(arch):
        table.add_row(*map(Text, row))
    return table


def _run(show: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    trials = show["trials"]
    beaten = trials.get("beaten", 0)  # runs of before count them among the complete
    stopped = f", {beaten} of them stopped early" if beaten else ""
    failed = f", {trials['failed']} failed" if trials["failed"] else ""
    told = f"{trials['complete'] + beaten} of {trials['asked']} architectures"
    yield "evaluated", told + stopped + failed
    if random := show["supernet"].get("random"):
        yield "learnt", learnt(random)
    if racing := show.get("racing"):
        yield "racing", raced(racing, show.get("rejudged", 0))
    spent = (f"{stage} {duration(time)}" for stage, time in show["seconds"].items() if time)
    yield "time spent", ", ".join(spent)
    yield from show["files"].items()


def _next(show: Mapping[str, Any]) -> RenderableType:
    """Return the last lines: how to load the winner, what to type, and the caveat."""
    return Group(
        Text("Load the winner in Python:\n"),
        Text(show["load"], no_wrap=True, overflow="ignore"),
        Text(f"\nSee it again: {show['again']}"),
        Text(f"Next: {show['next']}"),
        Text(CAVEAT, style="bold"),
    )
