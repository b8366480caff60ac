"""What an audit has done before: whom it drew, how many, and with how many seeds."""

from collections.abc import Collection
from dataclasses import dataclass

from mixnas.arch import Architecture
from mixnas.jobs.audit_draws import GROUPS
from mixnas.jobs.audited import SUMMARY
from mixnas.jobs.contest import ENTRANTS, RESULTS
from mixnas.run import Run


@dataclass(frozen=True)
class Wanted:
    """How much an audit is to rest on.

    Attributes:
        across: architectures over the whole span of costs.
        inside: architectures near its upper end.
        seeds: trainings of each.
    """

    across: int
    inside: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.across} and {self.inside} architectures, {self.seeds} seeds"


def known(kept: Run | None) -> dict[str, str]:
    """Return the ids of the architectures that an audit has drawn, by key.

    Raises:
        RunConflict: if what was kept of them is damaged.
    """
    if kept is None or not kept.file(ENTRANTS).is_file():
        return {}
    try:
        entrants = kept.read(ENTRANTS)["entrants"]
        return {k: Architecture.from_dict(e["source"]["arch"]).id for k, e in entrants.items()}
    except (KeyError, TypeError, AttributeError):
        raise kept.broken(ENTRANTS) from None


def with_kept(asked: Wanted, kept: Run | None) -> Wanted:
    """Return what is asked, or what an audit rests on already where that is more.

    That is what its last findings say, and whoever is next in line and has all trainings: so a
    call that asks for less repeats the findings, and never shrinks them.

    Raises:
        RunConflict: if the findings are damaged.
    """
    if kept is None:
        return asked
    told, keys = _told(kept)
    seeds = max(asked.seeds, told)
    across, inside = (
        _further(kept, group, max(number, _drawn(keys, group)), seeds)
        for group, number in zip(GROUPS, (asked.across, asked.inside), strict=True)
    )
    return Wanted(across, inside, seeds)


def _told(kept: Run) -> tuple[int, list[str]]:
    """Return the seeds and the keys that an audit's findings rest on; none if there are none."""
    if not kept.file(SUMMARY).is_file():
        return 0, []
    summary = kept.read(SUMMARY)
    try:
        return int(summary["seeds"]), [str(row["key"]) for row in summary["rows"]]
    except (KeyError, TypeError, ValueError):
        raise kept.broken(SUMMARY) from None


def _drawn(keys: Collection[str], group: str) -> int:
    """Return the greatest number among a group's keys, ``across-12`` say."""
    ends = (key.removeprefix(f"{group}-") for key in keys if key.startswith(f"{group}-"))
    return max((int(end) for end in ends if end.isdecimal()), default=0)


def _further(kept: Run, group: str, number: int, seeds: int) -> int:
    """Return the number, or more where those that come next have been trained with every seed."""
    while all(
        kept.file(f"{RESULTS}/{group}-{number + 1}.seed{seed}.json").is_file()
        for seed in range(seeds)
    ):
        number += 1
    return number
