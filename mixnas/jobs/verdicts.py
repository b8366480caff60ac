"""What the last stage of a search found, in an append-only log of its own.

``finalists.jsonl`` has a header with the search's `Facts`, then one line for each round of
finalists: how they were scored and what they took when they were measured whole. With the logs of
asks and tells it is all that `mixnas replay` needs. A round judged again after a kill has two
lines, and the later one counts, as it does in ``finalists.json``.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from mixnas.asktell.log import Line, Log, parse
from mixnas.errors import RunConflict
from mixnas.jobs.found import Facts
from mixnas.run import Run

LOG = "finalists.jsonl"
FORMAT = 1
WHOLE = ("image", "classes", "resolution", "labels", "params", "steps", "lower", "upper")
"""Of the facts, the whole numbers."""
FIGURES = ("accuracy", "loss", "loss_error", "images", "standard_error")
"""Of each finalist, by the images that rank and those that report."""


def begin(run: Run, facts: Facts, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the header, unless it is there.

    Args:
        run: of the search.
        facts: of the search.
        earlier: finalists that were judged before there was such a log.

    Raises:
        StorageFull: if the disk is full.
    """
    log = Log(run.file(LOG))
    try:
        if not log.lines:
            rounds = sorted({entry["round"] for entry in earlier})
            known = [_line(one, [e for e in earlier if e["round"] == one]) for one in rounds]
            log.append([{"format": FORMAT, "facts": facts.to_dict()}, *known])
    finally:
        log.close()


def record(run: Run, number: int, finalists: Sequence[Mapping[str, Any]]) -> None:
    """Append a round's finalists, all or none of them.

    Raises:
        StorageFull: if the disk is full.
    """
    log = Log(run.file(LOG))
    try:
        log.append([_line(number, finalists)])
    finally:
        log.close()


def read(run: Run) -> tuple[Facts, list[dict[str, Any]]] | None:
    """Return the facts and all finalists, round by round; None if a run has no such log.

    Raises:
        RunConflict: if a line is not what `begin` and `record` wrote.
    """
    lines, _ = parse(run.file(LOG))
    if not lines:
        return None
    try:
        if lines[0]["format"] != FORMAT:
            raise ValueError(f"format {lines[0]['format']!r}")
        return _facts(lines[0]["facts"]), _finalists(lines[1:])
    except (LookupError, TypeError, ValueError, AttributeError):
        raise RunConflict(
            f"{run.file(LOG)}: not the log that mixnas wrote; put the file back from a copy of "
            "the run"
        ) from None


def _facts(data: Mapping[str, Any]) -> Facts:
    """Read the facts, each of its type."""
    found = Facts.from_dict(data)
    for name in WHOLE:
        if type(data[name]) is not int:
            raise TypeError(f"{name} {data[name]!r}: a whole number is needed")
    return found


def check(run: Run, finalists: Sequence[Mapping[str, Any]], trials: Iterable[int]) -> None:
    """Refuse finalists that have not the figures that a search judges by.

    Args:
        run: whose log they are from.
        finalists: as `read` returned them.
        trials: the numbers of the trials, one of which is each finalist's.

    Raises:
        RunConflict: names what is wrong, and of which finalist.
    """
    known = list(trials)
    for entry in finalists:
        wrong = [part for part in ("rank", "report") if not _scored(entry.get(part))]
        wrong += [] if type(entry.get("number")) is int else ["number"]
        wrong += [name for name in ("flops", "params") if type(entry.get(name)) is not int]
        wrong += [] if isinstance(entry.get("predicted"), Mapping) else ["predicted"]
        if wrong:
            raise RunConflict(
                f"{run.file(LOG)}: finalist {entry.get('number')!r} has no usable "
                f"{wrong[0]}; put the file back from a copy of the run"
            )
        if entry["number"] not in known:
            raise RunConflict(
                f"{run.file(LOG)}: finalist {entry['number']!r} is no trial of the search's log: "
                "one of the two files is damaged, or of another run; put both back from a copy "
                "of the run"
            )


def _scored(part: Any) -> bool:
    """Say whether a finalist's score has its figures, finite ones."""
    figures: list[Any] = [part.get(name) for name in FIGURES] if isinstance(part, dict) else [None]
    return all(type(value) in (int, float) and isfinite(value) for value in figures)


def _line(number: int, finalists: Sequence[Mapping[str, Any]]) -> Line:
    return {"round": number, "finalists": list(finalists)}


def _finalists(lines: Sequence[Line]) -> list[dict[str, Any]]:
    rounds = {int(line["round"]): line["finalists"] for line in lines}
    return [dict(entry) for number in sorted(rounds) for entry in rounds[number]]
