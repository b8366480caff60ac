"""What a command prints when it is done: tables for people, from a job's plain data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixnas.arch import Architecture
from mixnas.cost.limit import describe as amount
from mixnas.report import (
    COMPARED_HEADS,
    STAGE_HEADS,
    compared_cells,
    compared_conditions,
    compared_notes,
    learnt,
    point_cells,
    stage_rows,
    winner_rows,
)
from mixnas.terminal import duration, rows

CAVEAT = (
    "A supernet's accuracy ranks architectures; it is not a trained network's accuracy: "
    "train the winner from scratch before you quote one."
)
MOST_DROPPED = 12
"""Choices without use that are named; the rest are counted (`--json` names all)."""


def found(show: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.show` returned for a run."""
    if show["state"] != "finished":
        return _unfinished(show)
    return Group(
        _heading(f"{show['run']}: the winner"),
        rows(dict(winner_rows(show))),
        _stages(Architecture.from_dict(show["architecture"])),
        _heading("The front: the least loss at each cost"),
        _front(show["front"], show["winner"]["number"]),
        _heading("The run"),
        rows(dict(_run(show))),
        *_comparisons(show),
        "",
        _next(show),
    )


def compared(summary: Mapping[str, Any]) -> RenderableType:
    """Render the summary of a comparison."""
    table = _table(*COMPARED_HEADS, words=2)
    for row in summary["rows"]:
        style = "bold" if row["kind"] == "winner" else ""
        table.add_row(*map(Text, compared_cells(row)), style=style)
    return Group(
        _heading(f"{summary['of']}: the winner beside others, all trained from scratch alike"),
        table,
        rows(dict(compared_notes(summary))),
        rows(dict(compared_conditions(summary))),
        _heading(summary["sentence"]),
        rows(summary["files"]),
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the table of a comparison's summary in Markdown."""
    lines = [COMPARED_HEADS, ["---"] * 2 + ["--:"] * (len(COMPARED_HEADS) - 2)]
    lines += [compared_cells(row) for row in summary["rows"]]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _comparisons(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what the run's comparisons found."""
    for one in show["comparisons"]:
        yield _heading(f"Compared ({one['folder']})")
        yield Text(one["sentence"])


def runs(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.runs` returned."""
    if not found:
        return Text("no runs yet; begin with: mixnas search --budget 1.5GFLOPs")
    table = _table("run", "budget", "data", "state", "accuracy", "FLOPs", "made", words=4)
    for run in found:
        cells = (
            run["run"],
            ", ".join(run["budget"]),
            str(run["data"]),
            run["state"],
            "-" if run["accuracy"] is None else f"{run['accuracy']:.1%}",
            "-" if run["flops"] is None else amount("flops", run["flops"]),
            f"{duration(run['age'])} ago",
        )
        table.add_row(*map(Text, cells))
    return table


def mixers(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.mixers` returned."""
    table = _table("mixer", "what it is", "knobs", "norm", words=4)
    for mixer in known:
        knobs = "\n".join(f"{knob}: {_list(values)}" for knob, values in mixer["knobs"].items())
        table.add_row(*map(Text, (mixer["name"], mixer["summary"], knobs or "none", mixer["norm"])))
    return table


def spaces(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.spaces` returned."""
    return Group(*(part for space in known for part in _space(space)))


def zoo(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.zoo` returned: the list, or one network that was counted."""
    if len(known) == 1 and "counted" in known[0]:
        return _zoo_network(known[0])
    table = _table("network", "system", "mixer", "image", "parameters", "FLOPs", "top-1", words=3)
    notes: dict[str, list[str]] = {}
    for network in known:
        published = network["published"]
        cells = (network["name"], network["system"], network["mixer"])
        table.add_row(*map(Text, cells), str(published["image"]), *_figures(published))
        notes.setdefault(published["note"], []).append(network["name"])
    said = [Text(f"{', '.join(names)}: {note}") for note, names in notes.items() if note]
    return Group(
        "As published, FLOPs in the authors' own convention:",
        table,
        *said,
        "\nBuild one and count it: mixnas zoo NAME",
    )


def count(number: int) -> str:
    """Return a count for people: ``12,345`` or ``3.1e+19``."""
    return f"{number:,}" if number < 10**6 else f"{number:.3e}"


def _space(space: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _heading(f"{space['name']}  ({space['file']})")
    least, most = space["cheapest"], space["dearest"]
    facts = {
        "deployed at": f"{space['image']}x{space['image']} pixels, {space['classes']} classes",
        "architectures": count(space["architectures"]),
        "FLOPs": f"{amount('flops', least['flops'])} to {amount('flops', most['flops'])}",
        "parameters": f"{amount('params', least['params'])} to {amount('params', most['params'])}",
        "stems": _list(space["stems"]),
    }
    yield rows({**facts, **dict(_fitting(space))})
    table = _table("stride", "width", "depth", "MLP ratio", "mixers", words=5)
    for stage in space["stages"]:
        ratios = [f"{ratio:g}" for ratio in stage["ratio"]]
        lists = (stage["width"], stage["depth"], ratios, stage["mixers"])
        table.add_row(str(stage["stride"]), *(Text(_list(values)) for values in lists))
    yield table


def _fitting(space: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows about a budget, if one was given."""
    if "fitting" not in space:
        return
    fit = space["fitting"]
    if "reason" in space:
        yield "none fits", space["reason"]
        return
    exact = fit["lower"] == fit["upper"]
    text = count(fit["count"]) if exact else f"about {count(fit['count'])}"
    between = "" if exact else f"; between {count(fit['lower'])} and {count(fit['upper'])}"
    yield (
        f"fit {' and '.join(space['budget'])}",
        f"{text}, {_share(space['share'])} of all{between}",
    )
    for stem, share in space["stem_shares"].items():
        yield f"  stem {stem}", f"{_share(share)} of those that fit"
    dropped = space["dropped"]
    more = f"; and {len(dropped) - MOST_DROPPED} more" * (len(dropped) > MOST_DROPPED)
    yield "have no use", "; ".join(dropped[:MOST_DROPPED]) + more or "none: every choice fits some"


def _zoo_network(network: Mapping[str, Any]) -> RenderableType:
    """Render one published network: as published, as counted, and with norms folded."""
    published, counted, folded = (network[key] for key in ("published", "counted", "folded"))
    parameters, flops, accuracy = _figures(published)
    facts = {
        "published by": network["paper"],
        "published": f"{parameters}, {flops}, {accuracy} top-1, at {published['image']} pixels",
        "note": published["note"],
        "counted": f"{network['image']} pixels, {network['classes']} classes, "
        f"{network['width']:g} times the published width",
    }
    table = _table("", "counted", "norms folded", words=1)
    table.add_row("parameters", f"{counted['params']:,}", f"{folded['params']:,}")
    table.add_row("FLOPs", f"{counted['flops']:,}", f"{folded['flops']:,}")
    for operator, number in counted["operators"].items():
        after = folded["operators"].get(operator, 0)
        table.add_row(Text(f"  {operator}"), f"{number:,}", f"{after:,}")
    return Group(
        _heading(f"{network['name']}: {network['system']}, mixer {network['mixer']}"),
        rows({label: text for label, text in facts.items() if text}),
        table,
        Text(network["choices"].partition("\nArgs:")[0].strip()),
    )


def _figures(published: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return published parameters, FLOPs and accuracy as they were printed."""
    accuracy = published["accuracy"]
    return (
        amount("params", round(published["params"])),
        amount("flops", round(published["flops"])),
        "-" if accuracy is None else f"{accuracy:g}%",
    )


def _front(points: Sequence[Mapping[str, Any]], winner: int) -> Table:
    """Return a front, cheapest first; the winner has a star."""
    timed = any(point.get("latency_ms") is not None for point in points)
    heads = ("trial", "accuracy", "loss", "FLOPs", "parameters", *["latency"] * timed)
    table = _table(*heads, words=0)
    for point in points:
        table.add_row(*point_cells(point, winner, timed=timed))
    return table


def _stages(arch: Architecture) -> Table:
    table = _table(*STAGE_HEADS, words=len(STAGE_HEADS))
    for row in stage_rows(arch):
        table.add_row(*map(Text, row))
    return table


def _run(show: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    trials = show["trials"]
    failed = f", {trials['failed']} failed" if trials["failed"] else ""
    yield "evaluated", f"{trials['complete']} of {trials['asked']} architectures{failed}"
    if random := show["supernet"].get("random"):
        yield "learnt", learnt(random)
    spent = (f"{stage} {duration(time)}" for stage, time in show["seconds"].items() if time)
    yield "time spent", ", ".join(spent)
    yield from show["files"].items()


def _next(show: Mapping[str, Any]) -> RenderableType:
    """Return the last lines: how to load the winner, what to type, and the caveat."""
    return Group(
        Text("Load the winner in Python:\n"),
        Text(show["load"], no_wrap=True, overflow="ignore"),
        Text(f"\nSee it again: {show['again']}"),
        Text(CAVEAT, style="bold"),
    )


def _unfinished(show: Mapping[str, Any]) -> RenderableType:
    facts = {"state": f"not finished: {show['state']}", "progress": show["progress"]}
    facts |= {"budget": ", ".join(show["budget"]), "folder": show["folder"]}
    facts["go on with"] = show["command"]
    return Group(
        _heading(show["run"]), rows({label: text for label, text in facts.items() if text})
    )


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*columns: str, words: int) -> Table:
    """Return a table whose first columns hold words, set left, and the others figures."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", overflow="fold")
    return table


def _share(share: float) -> str:
    """Return a share in per cent, small ones with their order of magnitude."""
    return f"{share:.1%}" if share >= 0.001 or not share else f"{100 * share:.1e}%"


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
