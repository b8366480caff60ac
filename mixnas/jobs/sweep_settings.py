"""What a sweep is asked for: `SweepSettings`, from options or from a TOML file."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from mixnas.cost.limit import MEASURED, Limit, parse_all
from mixnas.errors import InvalidBudget, InvalidOption, did_you_mean
from mixnas.jobs.halving import ASHA, SCHEDULERS
from mixnas.jobs.settings import MOST_SEED, Settings, among, at_least, within

JOB = "sweep"
SUPERNET = "supernet"
"""Job of a run that trains a supernet for a sweep; and how its name begins."""
MOST = 1000
"""Searches of one sweep, at most."""
LONGEST = 120
"""Bytes of a default name at most."""
SWEPT = ("budget", "seed", "space", "on")
"""What a sweep varies."""
AFTER = ("retrain", "scheduler")
"""What a sweep does with its searches' winners."""


@dataclass(frozen=True)
class SweepSettings:
    """The searches of a sweep: every budget with every space and every seed.

    Attributes:
        budgets: the limits of each search, which hold together.
        seeds: of the searches; the first one is also that of splits and supernets.
        spaces: shipped names or TOML files.
        common: what all searches have alike; its own budget, seed and space are not looked at.
        retrain: epochs for which the winners are retrained; None for no retraining.
        scheduler: ``asha`` (the beaten are stopped early) or ``none``; None for the default.
    """

    budgets: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...] = (0,)
    spaces: tuple[str, ...] = ("default",)
    common: Settings = field(default_factory=partial(Settings, budget=()))
    retrain: int | None = None
    scheduler: str | None = None

    @property
    def scheduling(self) -> str:
        """How retrainings are stopped early: ``asha`` by default."""
        return self.scheduler or ASHA

    def check(self) -> None:
        """Refuse what no sweep can do.

        Raises:
            InvalidOption, InvalidBudget: in one line, with the cure.
        """
        if not self.budgets:
            raise InvalidBudget("no budget given; give some, such as --budget 1GFLOPs,1.5GFLOPs")
        for name, values in (("seed", self.seeds), ("space", self.spaces)):
            if not values:
                raise InvalidOption(f"no {name} given; give one at least")
            _once(name, values)
        for seed in self.seeds:
            within("seed", seed, 0, MOST_SEED)
        _once("budget", [" and ".join(map(str, parse_all(each))) for each in self.budgets])
        number = len(self.budgets) * len(self.seeds) * len(self.spaces)
        if number > MOST:
            raise InvalidOption(f"a sweep of {number} searches: give {MOST} at most")
        self._check_retraining()
        for settings in self.searches():
            settings.check()
        _once("space", [Path(space).stem for space in self.spaces])

    def _check_retraining(self) -> None:
        if self.retrain is not None:
            at_least("retrain", self.retrain, 1)
        if self.scheduler is None:
            return
        among("scheduler", str(self.scheduler), SCHEDULERS)
        if self.retrain is None:
            raise InvalidOption(
                f"scheduler {self.scheduler}: there is nothing to schedule; give the epochs of the "
                "retrainings too, such as --retrain 30, or leave it out"
            )

    def searches(self) -> list[Settings]:
        """Return the settings of each search: budgets change fastest, then seeds, then spaces."""
        budgets = [tuple(map(str, parse_all(each))) for each in self.budgets]
        return [
            replace(self.common, space=space, seed=seed, budget=budget, supernet_seed=self.seeds[0])
            for space, seed, budget in product(self.spaces, self.seeds, budgets)
        ]

    def name(self) -> str:
        """Return the default name of the sweep's folder."""
        budgets = ",".join("+".join(map(str, parse_all(each))) for each in self.budgets)
        seeds = ",".join(map(str, self.seeds))
        spaces = ",".join(Path(space).stem for space in self.spaces)
        data = Path(self.common.data).name or self.common.data
        name = f"sweep-{data}-{spaces}-{budgets}-seed{seeds}".replace("/", "-").replace(" ", "-")
        if len(name.encode()) <= LONGEST:
            return name
        return f"sweep-{data[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Return what the sweep's ``run.json`` keeps."""
        common = self.common.to_dict()
        for name in ("budget", "seed", "space"):
            common.pop(name)
        return {
            "job": JOB,
            "budgets": [[str(limit) for limit in parse_all(each)] for each in self.budgets],
            "seeds": list(self.seeds),
            "spaces": list(self.spaces),
            **common,
            **self._after(),
        }

    def _after(self) -> dict[str, Any]:
        """Return what is kept of retrainings: nothing where there are none, as of old."""
        if self.retrain is None:
            return {}
        return {"retrain": self.retrain, "scheduler": self.scheduling}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "SweepSettings":
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError: if it is something else.
        """
        common = Settings.from_dict({"budget": (), "seed": 0, "space": "default", **kept})
        budgets = tuple(tuple(each) for each in kept["budgets"])
        after = {key: kept.get(key) for key in AFTER}
        return cls(budgets, tuple(kept["seeds"]), tuple(kept["spaces"]), common, **after)

    @classmethod
    def load(cls, path: str | Path) -> "SweepSettings":
        """Read a sweep's TOML file: see ``mixnas sweep --help``.

        Raises:
            InvalidOption: if it cannot be read, or holds what a sweep does not know; names the key.
        """
        data = _toml(Path(path))
        known = {each.name for each in fields(Settings)} - {"supernet_seed"} | {"on", *AFTER}
        for key in data:
            if key not in known:
                raise InvalidOption(
                    f"sweep {path}: no key '{key}'; {did_you_mean(key, known)}; who works, where "
                    "and on what folder is said by options"
                )
        try:
            places = _checked("on", data.get("on", ()))
            swept = crossed(_budgets(data.get("budget", ())), places)
            seeds = tuple(_list(data.get("seed", 0)))
            spaces = tuple(_checked("space", data.get("space", "default")))
            rest = {key: _checked(key, data[key]) for key in data if key not in SWEPT + AFTER}
            after = {key: data[key] for key in AFTER if key in data}
            if "mixers" in rest:
                rest["mixers"] = tuple(rest["mixers"])
            return cls(swept, seeds, spaces, Settings(budget=(), **rest), **after)
        except TypeError as error:
            raise InvalidOption(f"sweep {path}: {error}; see mixnas sweep --help") from None


def named(settings: Settings) -> str:
    """Return the name of a search's folder in the sweep's."""
    budget = "-".join(settings.budget).replace("/", "-")
    return f"{Path(settings.space).stem}-{budget}-seed{settings.seed}"


def crossed(
    budgets: Iterable[Sequence[str]], places: Sequence[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """Put each budget's measured limits on each of some devices.

    Args:
        budgets: the limits of each search.
        places: ``cpu``, ``cuda``, ``table:FILE``; none leaves the budgets as they are.

    Raises:
        InvalidOption: if no limit is measured, so that a device means nothing.
        InvalidBudget: if one cannot be read.
    """
    asked = [tuple(each) for each in budgets]
    if not places:
        return tuple(asked)
    open_ones = [text for each in asked for text in each if _unplaced(text)]
    if not open_ones:
        raise InvalidOption(
            f"on {', '.join(places)}: no budget is measured (20ms, 5mJ) without saying where; "
            "leave --on out, or give such a budget"
        )
    placed = (
        tuple(f"{text}@{place}" if _unplaced(text) else text for text in each)
        for each, place in product(asked, places)
    )
    return tuple(dict.fromkeys(placed))


def _unplaced(text: str) -> bool:
    limit = Limit.parse(text)
    return limit.kind in MEASURED and not limit.where


def _once(name: str, values: Sequence[Any]) -> None:
    """Refuse what is given twice: the same search would be made twice."""
    for value in values:
        if values.count(value) > 1:
            raise InvalidOption(f"{name} {value}: given twice; give each once")


def _checked(key: str, value: Any) -> Any:
    """Return a value of a file's key, if it is of the kind that the key takes.

    Raises:
        TypeError: if it is not.
    """
    if key in ("data", "sampler", "device", "time") and not isinstance(value, str):
        raise TypeError(f"{key} {value!r}: text in quotation marks is needed")
    if key == "racing" and not isinstance(value, bool):
        raise TypeError(f"{key} {value!r}: true or false is needed")
    if key == "mixers" and value == []:
        raise TypeError("mixers []: name one at least, or leave it out for all")
    if key in ("mixers", "space", "on"):
        if not all(isinstance(each, str) for each in _list(value)):
            raise TypeError(f"{key} {value!r}: a name, or a list of names, is needed")
        return _list(value)
    return value


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidOption(
            f"sweep {path}: neither a sweep's name nor a file that can be read ({error.strerror}); "
            "give a TOML file, the name of a sweep (mixnas runs lists them), or --budget A,B"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidOption(f"sweep {path}: not TOML ({error})") from None


def _budgets(value: Any) -> list[tuple[str, ...]]:
    """Read a budget, a list of them, or a list of lists of those that hold together."""
    return [
        (each,) if isinstance(each, str) else tuple(map(_text, _list(each)))
        for each in _list(value)
    ]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"budget {value!r}: text such as '1.5GFLOPs' is needed")
    return value
