"""``mixnas replay``: a run rebuilt from its logs alone, and every difference from its files."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas

from mixnas import report
from mixnas.errors import RunConflict
from mixnas.jobs import front, front_answers
from mixnas.jobs.replayed import Replayed, asked_again, over_budget, replayed
from mixnas.jobs.reuse import plain
from mixnas.jobs.runs import job
from mixnas.jobs.settings import Listener, Silent
from mixnas.jobs.show import open_run
from mixnas.run import Run

FOLDER = "replay"
TRIALS = "trials.csv"
TOLERANCE = 1e-9
"""Relative difference of two figures that another machine's rounding explains."""
UNLOGGED = {"summary.json": ("seconds",)}
"""What a file holds that no log does."""
FOLLOWING = (
    "front.json",
    front.FILE,
    *(f"summary.json, {part}" for part in ("front", "supernet", "trials", "racing")),
)
"""What is made of the trials and of the fronts' answers, and differs where these do."""
NEVER = (
    "best.safetensors and supernet.safetensors: weights are in no log",
    "figures and report.html: drawn again in replay/, not compared",
)


def replay(
    run: str | Path | Run, *, runs: str | Path = "runs", listener: Listener | None = None
) -> dict[str, Any]:
    """Rebuild trials, front, winner and report from a run's logs, and compare with its files.

    Nothing is computed by a network: no data, no weights and no GPU are needed. The sampler is
    asked again, told what the logs tell: it must ask the same, in the same order.

    Args:
        run: a search: its name, or its folder.
        runs: the folder of runs.
        listener: is told how it gets on.

    Returns:
        run, same (whether there is no difference), differences (each on a line), following
        (further ones in what is made of the trials and the fronts' answers, where these differ),
        unreplayed (what could not be compared, and why), trials, complete, asks (how many were
        the same), front (points), winner (id, None if the run has none yet) and files (what was
        rebuilt).

    Raises:
        RunConflict: if there is no such run, no log, or one that mixnas did not write.
    """
    listener = listener or Silent()
    known = run if isinstance(run, Run) else open_run(run, Path(runs))
    if job(known) != "search":
        raise RunConflict(f"run '{known.name}' is no search and has no log; give a search")
    with Run.open(known.path, lock=True) as kept:
        found = replayed(kept)
        products = {name: plain(data) for name, data in found.products()}
        differing = [line for turn in found.turns for line in over_budget(turn)]
        differing += found.unanswered()
        differing += _trials(kept, found.rows())
        compared = [line for name in products for line in _compared(kept, name, products[name])]
        following = [line for line in compared if _follows(line)] if _causes(differing) else []
        differing += [line for line in compared if line not in following]
        same, asked, unasked = asked_again(found, listener)
        files = _write(kept, found, products)
        return {
            "run": kept.name,
            "same": not (differing or asked),
            "differences": [*differing, *asked],
            "following": following,
            "unreplayed": [*_lacking(found, products), *unasked, *NEVER],
            "trials": len(found.trials),
            "complete": sum(trial.state == "complete" for trial in found.trials),
            "asks": same,
            "front": len(products["front.json"]),
            "winner": None if found.winner is None else found.winner["id"],
            "files": files,
        }


def _lacking(found: Replayed, products: Mapping[str, Any]) -> Iterator[str]:
    """Say what the logs do not reach."""
    if found.facts is None:
        before = "the finalists are in no log (the run is of before they were logged)"
        reason = before if found.run.done("finalists") else "the run has no winner yet"
        yield f"winner and summary: {reason}"
    elif found.winner is None:
        yield "winner and summary: the run has no finalists yet"
    elif front.FILE not in products:
        yield f"{front.FILE}: the front's answers are in no log"


def _causes(differing: Sequence[str]) -> bool:
    """Say whether trials or the fronts' answers differ, so that more must."""
    return any(line.startswith((f"{TRIALS}, ", f"{front_answers.LOG}: ")) for line in differing)


def _follows(line: str) -> bool:
    """Say whether a difference of one field is in what is made of trials and answers."""
    return line.startswith(tuple(f"{place}, " for place in FOLLOWING))


def _trials(run: Run, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the differences between ``trials.csv`` and the trials, cell by cell."""
    if not run.file(TRIALS).is_file():
        if run.done("finalists"):
            yield f"{TRIALS}: is not there"
        return
    text = run.file(TRIALS).read_text(encoding="utf-8")
    reader = csv.DictReader(StringIO(text))
    was = [(reader.line_num, row) for row in reader]
    if was and not text.endswith("\n"):
        yield f"{TRIALS}, line {was.pop()[0]}: is torn"
    now = list(csv.DictReader(StringIO(pandas.DataFrame(list(rows)).to_csv(index=False))))
    if len(was) != len(now):
        yield f"{TRIALS}: {len(was)} rows, {len(now)} trials in the log"
    for (line, old), new in zip(was, now, strict=False):
        for name in dict.fromkeys([*old, *new]):
            if (old.get(name) or "") != (new.get(name) or ""):
                told = f"{old.get(name) or 'nothing'} there, {new.get(name) or 'nothing'}"
                yield f"{TRIALS}, line {line}, {name}: {told} by the log"


def _compared(run: Run, name: str, data: Any) -> Iterator[str]:
    """Yield the differences between one of the run's files and what the logs make of it."""
    if not run.file(name).is_file():
        if run.done("finalists"):
            yield f"{name}: is not there"
        return
    try:
        was = run.read(name)
    except RunConflict:
        yield f"{name}: cannot be read"
        return
    out = UNLOGGED.get(name, ())
    if isinstance(was, Mapping):
        was = {key: value for key, value in was.items() if key not in out}
        data = {key: value for key, value in data.items() if key not in out}
    yield from differing(name, was, data)


_ABSENT = object()


def differing(where: str, was: Any, now: Any) -> Iterator[str]:
    """Yield every difference between plain data, with its place; rounding is none."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            place = f"{where}, {key}"
            yield from differing(place, was.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(was, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip_longest(was, now, fillvalue=_ABSENT)):
            yield from differing(f"{where}, {index}", old, new)
    elif not _alike(was, now):
        yield f"{where}: {_shown(was)} there, {_shown(now)} by the log"


def _alike(was: Any, now: Any) -> bool:
    figures = [isinstance(one, int | float) and not isinstance(one, bool) for one in (was, now)]
    if all(figures):
        both = math.isnan(was) and math.isnan(now)
        return both or math.isclose(was, now, rel_tol=TOLERANCE, abs_tol=1e-15)
    return bool(was == now) and type(was) is type(now)


def _shown(value: Any) -> str:
    text = "nothing" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write(run: Run, found: Replayed, products: Mapping[str, Any]) -> dict[str, str]:
    """Write what was rebuilt, and the report of it, into a folder of its own."""
    rebuilt = Run(run.file(FOLDER), run.made)
    rebuilt.write(TRIALS, pandas.DataFrame(found.rows()))
    names = [TRIALS, *products]
    for name, data in products.items():
        if name != "summary.json":
            rebuilt.write(name, data)
    if "summary.json" in products:
        spent = {stage: facts.get("seconds", 0.0) for stage, facts in run.stages.items()}
        seconds = {"seconds": {**spent, "total": sum(spent.values())}}
        rebuilt.write("summary.json", products["summary.json"] | seconds)
        report.figures(rebuilt)
        report.html(rebuilt)
        names.append(report.PAGE)
    return {name: str(rebuilt.file(name)) for name in names}
