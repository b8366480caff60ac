"""``mixnas replay``: a run rebuilt from its logs alone, and every difference from its files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from mixnas import report
from mixnas.errors import RunConflict
from mixnas.jobs import attribution, front, front_answers, reuse, verdicts
from mixnas.jobs.finalists import TRIALS
from mixnas.jobs.replay_records import (
    attributed,
    compared,
    ends,
    records,
    same_version,
    tabled,
    weights,
)
from mixnas.jobs.replayed import Counted, Replayed, asked_again, over_budget, replayed
from mixnas.jobs.reuse import plain
from mixnas.jobs.runs import job
from mixnas.jobs.settings import Listener, Silent
from mixnas.jobs.show import open_run
from mixnas.remote import rooted
from mixnas.run import STAGES, Run

FOLDER = "replay"
SUMMARY = "summary.json"
UNLOGGED = {SUMMARY: ("seconds",)}
"""What a file holds that no log does."""
FOLLOWING = (
    "front.json",
    front.FILE,
    attribution.FILE,
    attribution.TABLE,
    *(f"{SUMMARY}, {part}" for part in ("front", "supernet", "trials", "racing")),
)
"""What is made of the trials and of the fronts' answers, and differs where these do."""
LOST = "is not there: lost, or the run was made before it was kept"
NEVER = (
    "best.safetensors: its weights are in no log; supernet.safetensors: compared with the SHA-256 "
    "in supernet.json alone",
    "supernet.csv, seconds in stages.json and summary.json, and what plan.json measured: in no log",
    "supernet.json beyond limits, parameters, steps and source, run.json beyond what the logs' "
    "headers and facts have (so not epochs, time, batch, device and versions): in no log",
    "figures and report.html: drawn again in replay/ (without attribution), not compared",
    "folders of other commands, such as audit, compare and picks: not looked at",
)
"""What no replay compares, in words."""


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
        unreplayed (what could not be compared, and why), trials, complete, beaten (stopped by a
        race), asks (how many were the same), front (points), winner (id, None if the run has none
        yet) and files (what was rebuilt).

    Raises:
        RunConflict: if there is no such run, no log, or one that mixnas did not write.
    """
    listener = listener or Silent()
    known = run if isinstance(run, Run) else open_run(run, rooted(runs))
    if job(known) != "search":
        raise RunConflict(f"run '{known.name}' is no search and has no log; give a search")
    with Run.open(known.path, lock=True) as kept:
        found, spent = replayed(kept), _spent(kept)
        products = {name: plain(data) for name, data in found.products()}
        counted = None if any(found.lost()) else found.counted(listener)
        made = found.rows()
        states = [row["state"] for row in made]
        rows, wanted = _as_written(kept, made, products)
        strange, unsaid = _attributed(found, counted)
        differing = [*_kept(found), *tabled(kept, TRIALS, rows, {"images"}, "trials")]
        more = [*_compared(kept, wanted), *strange]
        following = [line for line in more if _follows(line)] if _causes(differing) else []
        differing += [line for line in more if line not in following]
        same, asked = asked_again(found, counted, listener) if counted else (0, [])
        files = _write(kept, found, products, spent)
        return {
            "run": kept.name,
            "same": not (differing or asked),
            "differences": [*differing, *asked],
            "following": following,
            "unreplayed": [*_lacking(found, products), *unsaid, *NEVER],
            "trials": len(found.trials),
            "complete": states.count("complete"),
            "beaten": states.count("beaten"),
            "asks": same,
            "front": len(products["front.json"]),
            "winner": None if found.winner is None else found.winner["id"],
            "files": files,
        }


def _lacking(found: Replayed, products: Mapping[str, Any]) -> Iterator[str]:
    """Say what the logs do not reach."""
    if found.facts is None:
        lost = f"{verdicts.LOG} {LOST}"
        reason = lost if found.run.done("finalists") else "the run has no winner yet"
        yield f"winner, summary and attribution: {reason}"
    elif found.winner is None:
        yield "winner and summary: the run has no finalists yet"
    elif front.FILE not in products:
        yield f"{front.FILE}: the front's answers are in no log"
    if found.facts is not None and not found.run.file(reuse.RECORD).is_file():
        yield f"{reuse.RECORD}: {LOST}; the supernet's weights are not compared"
    if _before_beaten(found.run):
        yield (
            f"{SUMMARY}, trials: made before those that a race stopped were told apart; they "
            "count as complete, as they did"
        )


def _kept(found: Replayed) -> list[str]:
    """Return the differences in what a run keeps beside what is made of its logs."""
    return [
        *(line for turn in found.turns for line in over_budget(turn)),
        *found.unanswered(),
        *found.lost(),
        *ends(found),
        *records(found),
        *weights(found.run),
    ]


def _compared(run: Run, products: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between a run's files and what its logs make of them."""
    for name, data in products.items():
        yield from compared(run, name, data, UNLOGGED.get(name, ()))


def _causes(differing: Sequence[str]) -> bool:
    """Say whether trials or the fronts' answers differ, so that more must."""
    return any(line.startswith((f"{TRIALS}, ", f"{front_answers.LOG}: ")) for line in differing)


def _follows(line: str) -> bool:
    """Say whether a difference of one field is in what is made of trials and answers."""
    return line.startswith(tuple(f"{place}, " for place in FOLLOWING))


def _before_beaten(run: Run) -> bool:
    """Say whether a run is of before its summary told how many trials a race had stopped."""
    try:
        told = run.read(SUMMARY)["trials"]
        return "complete" in told and "beaten" not in told
    except (RunConflict, LookupError, TypeError):
        return False


def _as_written(
    run: Run, rows: Sequence[Mapping[str, Any]], products: Mapping[str, Any]
) -> tuple[pandas.DataFrame, Mapping[str, Any]]:
    """Return trials and products as they were written: of a run of before, beaten is complete."""
    table = pandas.DataFrame(list(rows))
    if not _before_beaten(run) or SUMMARY not in products:
        return table, products
    counts = dict(products[SUMMARY]["trials"])
    counts["complete"] += counts.pop("beaten")
    told = {**products[SUMMARY], "trials": counts}
    return table.replace({"state": {"beaten": "complete"}}), {**products, SUMMARY: told}


def _attributed(found: Replayed, counted: Counted | None) -> tuple[list[str], list[str]]:
    """Compare the attribution; return its differences, and what cannot be said of it and why.

    Its statistics may have been others in another version of mixnas.
    """
    if found.winner is None or counted is None:
        return [], []
    strangers = [trial for trial in found.trials if trial.arch not in counted.space]
    if strangers:
        told = "an architecture that the space does not hold"
        return [f"{TRIALS}, trial {one.number} by the log: {told}" for one in strangers], []
    lines = list(attributed(found, counted))
    gone = [line for line in lines if line.endswith(("is not there", "cannot be read"))]
    rest = [line for line in lines if line not in gone]
    if not rest or same_version(found.run):
        return lines, []
    files = " and ".join(dict.fromkeys(re.split("[,:]", line)[0] for line in rest))
    told = f"{files}: {len(rest)} figures differ, but another version of mixnas made the run, whose"
    return gone, [f"{told} statistics may have been others"]


def _spent(run: Run) -> dict[str, float]:
    """Return the seconds that each stage took.

    Raises:
        RunConflict: if the file of the stages is damaged.
    """
    spent = {stage: facts.get("seconds", 0.0) for stage, facts in run.stages.items()}
    if not all(type(value) in (int, float) for value in spent.values()):
        raise run.broken(STAGES)
    return spent


def _write(
    run: Run, found: Replayed, products: Mapping[str, Any], spent: Mapping[str, float]
) -> dict[str, str]:
    """Write what was rebuilt, and the report of it, into a folder of its own."""
    rebuilt = Run(run.file(FOLDER), run.made)
    rebuilt.write(TRIALS, pandas.DataFrame(found.rows()))
    names = [TRIALS, *products]
    for name, data in products.items():
        if name != "summary.json":
            rebuilt.write(name, data)
    if "summary.json" in products:
        seconds = {"seconds": {**spent, "total": sum(spent.values())}}
        rebuilt.write("summary.json", products["summary.json"] | seconds)
        report.figures(rebuilt)
        report.html(rebuilt)
        names.append(report.PAGE)
    return {name: str(rebuilt.file(name)) for name in names}
