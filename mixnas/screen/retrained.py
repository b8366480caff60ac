"""What a retraining, its exports and its predictions have to say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mixnas.jobs.settings import duration
from mixnas.report import EXPORTED_HEADS, exported_cells, quantised_rows, retrained_rows
from mixnas.screen.parts import grid, heading
from mixnas.terminal import rows


def retrained(show: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.show` returned for a retraining, or its bare summary."""
    if show.get("state", "finished") != "finished":
        return unfinished(show)
    facts = dict(retrained_rows(show)) | {"time spent": duration(show["seconds"])}
    exported = show.get("exports")
    return Group(
        heading(f"{show['run']}: {show['label']}, trained and judged on test images read once"),
        rows({**facts, **show.get("files", {})}),
        *((exports(exported),) if exported else ()),
        *_next(show),
    )


def unfinished(show: Mapping[str, Any]) -> RenderableType:
    """Render how far a run has come, and what goes on with it."""
    facts = {"state": f"not finished: {show['state']}", "progress": show["progress"]}
    facts |= {"budget": ", ".join(show["budget"]), "folder": show["folder"]}
    facts["go on with"] = show["command"]
    return Group(heading(show["run"]), rows({label: text for label, text in facts.items() if text}))


def retraining_rows(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the little that a search's page says of a retraining in its folder."""
    if one["top1"] is not None:
        error, images = one["standard_error"], one["images"]
        yield "test top-1", f"{one['top1']:.2%} +- {error:.2%} of {images:,} images, read once"
        yield "trained", f"{one['epochs']:g} epochs of recipe {one['recipe']}"
        return
    yield "state", f"not finished: {one['state']}"
    if one["progress"]:
        yield "progress", one["progress"]
    yield "go on with", one["command"]


def exports(found: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Render the record of exports: each form, its proof, its times."""
    table = grid(*EXPORTED_HEADS, words=2)
    for form, facts in found.items():
        table.add_row(*map(Text, exported_cells(form, facts, quartiles=False)))
    return Group(table, rows(dict(quantised_rows(found))))


def exported(show: Mapping[str, Any]) -> RenderableType:
    """Render what `mixnas.jobs.export` returned, or `show` of a folder that holds exports."""
    files = show.get("files") or ({"report": show["report"]} if "report" in show else {})
    return Group(
        heading(f"Exports in {show['folder']}: each read back and compared with the network"),
        exports(show["exports"]),
        rows(files),
        *_next(show),
    )


def predicted(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.predict` answered: an image a line, errors left out."""
    answered = [one for one in found if "classes" in one]
    most = max((len(one["classes"]) for one in answered), default=0)
    table = grid("image", *["likeliest", *map(str, range(2, most + 1))][:most], words=1)
    for one in answered:
        guesses = (f"{guess['label']} {guess['probability']:.1%}" for guess in one["classes"])
        table.add_row(*map(Text, (one["image"], *guesses)))
    return table


def _next(show: Mapping[str, Any]) -> Iterator[RenderableType]:
    if "load" in show:
        yield Text("\nLoad it in Python:\n")
        yield Text(show["load"], no_wrap=True, overflow="ignore")
    if "again" in show:
        yield Text(f"\nSee it again: {show['again']}")
    before = "" if "again" in show else "\n"
    if "next" in show:
        yield Text(f"{before}Next: {show['next']}")
