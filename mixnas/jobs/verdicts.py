"""What the last stage of a search found, in an append-only log of its own.

``finalists.jsonl`` has a header with the search's `Facts`, then one line for each round of
finalists: how they were scored and what they took when they were measured whole. With the logs of
asks and tells it is all that `mixnas replay` needs. A round judged again after a kill has two
lines, and the later one counts, as it does in ``finalists.json``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mixnas.asktell.log import Line, Log, parse
from mixnas.errors import RunConflict
from mixnas.jobs.found import Facts
from mixnas.run import Run

LOG = "finalists.jsonl"
FORMAT = 1


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
        return Facts.from_dict(lines[0]["facts"]), _finalists(lines[1:])
    except (LookupError, TypeError):
        raise RunConflict(
            f"{run.file(LOG)}: not the log that mixnas wrote; put the file back from a copy of "
            "the run"
        ) from None


def _line(number: int, finalists: Sequence[Mapping[str, Any]]) -> Line:
    return {"round": number, "finalists": list(finalists)}


def _finalists(lines: Sequence[Line]) -> list[dict[str, Any]]:
    rounds = {int(line["round"]): line["finalists"] for line in lines}
    return [dict(entry) for number in sorted(rounds) for entry in rounds[number]]
