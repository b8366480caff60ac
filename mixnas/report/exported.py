"""What was exported, as one page: each form's proof and its time beside eager PyTorch."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from mixnas.report.costs import latency
from mixnas.report.page import page, pairs, table
from mixnas.run import Run

EXPORTS, EXPORTED_PAGE = "export/exports.json", "export/report.html"
BATCHES = ("1", "32")
"""Images at once for which the forms are timed."""

EXPORTED_HEADS = (
    "form",
    "file",
    "size",
    "largest difference",
    "same class",
    *(f"{batch} at once{beside}" for batch in BATCHES for beside in ("", ", eager")),
)
"""What `exported_cells` tells."""

HOW_TO_READ_EXPORTED = (
    "Each form was read back in its own runtime and asked about the test images beside the network "
    "that it was made from: the largest difference of two logits, and the share of the images "
    "that got the same class. A form that computes something else is not kept.",
    "Times are medians in milliseconds with their quartiles, for a batch of so many images, taken "
    "in turn with eager PyTorch on the same machine.",
    "int8 weights and activations compute something else on purpose: look at the accuracy before "
    "and after.",
)


def exported(run: Run) -> Path:
    """Write the page of a run's exports.

    Raises:
        RunConflict: if nothing was exported, or the record of it is damaged.
        StorageFull: if the disk is full.
    """
    found = run.read(EXPORTS)
    with run.reading(EXPORTS):
        text = page(f"mixnas: {run.name} exported", _sections(run, found))
    return run.write(EXPORTED_PAGE, text)


def exported_cells(form: str, facts: Mapping[str, Any], *, quartiles: bool = True) -> list[str]:
    """Return a form's cells, its times with their quartiles or as bare medians."""
    timed = (
        _time(facts.get("milliseconds", {}).get(batch, {}).get(which), quartiles)
        for batch in BATCHES
        for which in ("exported", "eager")
    )
    difference, agreement = facts.get("difference"), facts.get("agreement")
    return [
        form,
        _file(facts),
        size(facts["bytes"]),
        "-" if difference is None else f"{difference:.1e}",
        "-" if agreement is None else f"{agreement:.2%} of {facts['images']:,}",
        *timed,
    ]


def _file(facts: Mapping[str, Any]) -> str:
    """Return the file's name, and at what size it takes images."""
    side = f", {facts['image']} px" if "image" in facts else ""
    return facts["file"] + side + (", norms kept" if facts.get("fused") is False else "")


def _time(taken: Mapping[str, float] | None, quartiles: bool) -> str:
    return latency(taken if quartiles or taken is None else taken["median"])


def quantised_rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what int8 did to the accuracy: label and text; nothing where there is none."""
    for form, facts in found.items():
        if "accuracy_after" in facts:
            before, after = facts["accuracy_before"], facts["accuracy_after"]
            yield form, f"accuracy {before:.2%} before, {after:.2%} after"


def size(amount: int) -> str:
    """Return bytes for people: ``3.4 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount >= factor:
            return f"{amount / factor:.1f} {unit}"
    return f"{amount} B"


def _sections(run: Run, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"<h1>mixnas: {escape(run.settings.get('of') or run.name)} exported</h1>"
    cells = (exported_cells(form, facts) for form, facts in found.items())
    yield table(EXPORTED_HEADS, cells, figures=True)
    yield pairs(quantised_rows(found))
    yield "<h2>How to read this</h2>"
    yield "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ_EXPORTED)
    yield "<h2>Made with</h2>" + pairs(_made(found))


def _made(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for form, facts in found.items():
        versions = facts.get("versions", {})
        told = ", ".join(f"{name} {number}" for name, number in versions.items())
        norms = ", batch norms folded" if facts.get("fused") else ""
        yield form, f"{facts.get('made', '-')}{norms}: {told}"
