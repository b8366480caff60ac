"""A sweep's retrainings: which there are, how their races stand, and what comes next.

All of it is read from the folders: winners from the searches', figures from the retrainings' own
curves. The winners of one budget, of whatever seed and space, race with each other and with nobody
else. An architecture that several searches found is trained once, in the first one's folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixnas.errors import RunConflict
from mixnas.jobs import retrained
from mixnas.jobs.halving import WORST, Figure, Standing, Stop, race, rungs
from mixnas.jobs.retrain_settings import RetrainSettings
from mixnas.jobs.sweep_settings import SweepSettings, named
from mixnas.run import SETTINGS, Run

FOLDER = retrained.NAME
"""Of a retraining, in the folder of the search that found its network."""
DIVERGED = "diverged"
"""The stage that a retraining is marked with that broke off; it is not tried again."""
COMPARED = tuple(sorted(RetrainSettings("").to_dict().keys() - {"subject", "data"}))
"""Settings by which a retraining is the sweep's, or another's."""
COLUMNS = (
    "retrained", "retrained_error", "retraining", "stopped_at", "val_accuracy", "against",
    "retrained_in",
)  # fmt: skip
"""What a sweep's table tells of retrainings; shares of images from 0 to 1, epochs."""


@dataclass
class Races:
    """The retrainings of a sweep.

    Attributes:
        sweep: its run.
        epochs: of a whole retraining.
        seed: of each retraining.
        rungs: epochs after which retrainings of one budget are compared.
        holders: of each finished search, the search in whose folder its winner is retrained.
        budgets: of each budget whose searches are all done, who races: holders, each once.
        figures: what each holder's retraining has reached, by epoch.
    """

    sweep: Run
    epochs: int
    seed: int
    rungs: tuple[int, ...]
    holders: Mapping[str, str]
    budgets: Mapping[tuple[str, ...], tuple[str, ...]]
    figures: dict[str, dict[int, Figure]]

    @classmethod
    def of(cls, sweep: Run, asked: SweepSettings) -> "Races":
        """Read how a sweep's retrainings stand.

        Raises:
            RunConflict: if a search's or a retraining's file is damaged.
        """
        epochs, seed = asked.retrain or 0, asked.seeds[0]
        found = {named(settings): settings.budget for settings in asked.searches()}
        winners = {name: won for name in found if (won := _winner(sweep, name)) is not None}
        wanted = RetrainSettings("", epochs=epochs, seed=seed)
        holders = _holders(sweep, winners, wanted)
        groups = {budget: _having(found, budget) for budget in dict.fromkeys(found.values())}
        budgets = {
            budget: tuple(dict.fromkeys(holders[name] for name in names))
            for budget, names in groups.items()
            if all(name in winners for name in names)
        }
        ends = rungs(epochs, asked.scheduling)
        races = cls(sweep, epochs, seed, ends, holders, budgets, {})
        for holder in dict.fromkeys(holders.values()):
            races.look(holder)
        return races

    def look(self, holder: str) -> None:
        """Read what a retraining has reached by now.

        Raises:
            RunConflict: if its curve is damaged.
        """
        run = self.retraining(holder)
        self.figures[holder] = {} if run is None else _reached(run, self.rungs)

    def retraining(self, holder: str) -> Run | None:
        """Return the run of a holder's retraining, if the sweep has begun it."""
        return _begun(self.sweep, holder, self.task(holder))

    def check(self) -> None:
        """Refuse a retraining by hand that stands where the sweep's own shall.

        Raises:
            RunConflict: names its folder.
        """
        for holder in self.figures:
            folder = self.sweep.path / holder / FOLDER
            if (folder / SETTINGS).is_file() and self.retraining(holder) is None:
                raise RunConflict(
                    f"{folder} is a retraining of its own, not the sweep's (epochs={self.epochs}, "
                    f"seed={self.seed}, the recipe quick, the search's data): it takes part in no "
                    "race; rename that folder, then repeat the same command"
                )

    def task(self, holder: str) -> RetrainSettings:
        """Return what the sweep asks of a holder's retraining."""
        return RetrainSettings(str(self.sweep.path / holder), epochs=self.epochs, seed=self.seed)

    def next(self) -> tuple[str, int] | None:
        """Return who trains next and to which epoch, or None if all is done.

        Those furthest back come first, in the order of the table: so the test images are read when
        every rung is decided.
        """
        wanted: dict[str, int] = {}
        for standing in self._standings():
            target = self.epochs if standing.rung is None else standing.rung
            for name in standing.alive:
                if not self._has_reached(name, target):
                    wanted[name] = min(target, wanted.get(name, target))
        if not wanted:
            return None
        places = {name: place for place, name in enumerate(self.figures)}
        return min(wanted.items(), key=lambda each: (each[1], places[each[0]]))

    def told(self, search: str) -> dict[str, Any]:
        """Return what the table tells of a search's retraining: see `COLUMNS`.

        Raises:
            RunConflict: if a file of the retraining is damaged.
        """
        told: dict[str, Any] = dict.fromkeys(COLUMNS)
        holder = self.holders.get(search)
        if holder is None:
            return told
        run = self.retraining(holder)
        told["retrained_in"] = f"{holder}/{FOLDER}"
        if run is None:
            return {**told, "retraining": "waiting"}
        facts = retrained.described(run)
        told |= {"retrained": facts["top1"], "retrained_error": facts["standard_error"]}
        if facts["state"] == "finished":
            return {**told, "retraining": "finished"}
        if run.done(DIVERGED):
            return {**told, "retraining": DIVERGED}
        stop = self.stops().get(holder)
        if stop is None:
            return {**told, "retraining": facts["progress"] or facts["state"]}
        return {
            **told,
            "retraining": self.said(stop),
            "stopped_at": stop.epoch,
            "val_accuracy": stop.figure.accuracy,
            "against": stop.against.accuracy,
        }

    def stops(self) -> dict[str, Stop]:
        """Return where retrainings were stopped: those that no budget's race keeps.

        One that races under several budgets was stopped where the last of them did.
        """
        standings = list(self._standings())
        alive = {name for each in standings for name in each.alive}
        stops: dict[str, Stop] = {}
        for each in standings:
            for name, stop in each.stopped.items():
                known = stops.get(name)
                if name not in alive and (known is None or known.epoch < stop.epoch):
                    stops[name] = stop
        return stops

    def said(self, stop: Stop) -> str:
        """Say where a retraining was stopped, and against which figure."""
        figure, against = f"{stop.figure.accuracy:.1%}", f"{stop.against.accuracy:.1%}"
        if figure == against:
            figure += f" (loss {stop.figure.loss:.4f})"
            against += f" (loss {stop.against.loss:.4f})"
        return (
            f"stopped after epoch {stop.epoch} of {self.epochs}: {figure} of the validation "
            f"images, the last that went on {against}"
        )

    def _standings(self) -> Iterator[Standing]:
        for names in self.budgets.values():
            yield race(names, self.rungs, self.figures)

    def _has_reached(self, holder: str, epoch: int) -> bool:
        if epoch < self.epochs:
            return epoch in self.figures[holder]
        run = self.retraining(holder)
        return run is not None and (retrained.finished(run) or run.done(DIVERGED))


def _having(found: Mapping[str, tuple[str, ...]], budget: tuple[str, ...]) -> list[str]:
    """Return the searches of a budget."""
    return [name for name, own in found.items() if own == budget]


def _winner(sweep: Run, name: str) -> str | None:
    """Return what a search found, if it has found it.

    Raises:
        RunConflict: if its summary is damaged.
    """
    folder = sweep.path / name
    if not (folder / SETTINGS).is_file():
        return None
    run = Run.open(folder)
    if not run.file(retrained.SUMMARY).is_file():
        return None
    with run.reading(retrained.SUMMARY):
        return str(run.read(retrained.SUMMARY)["winner"]["id"])


def _begun(sweep: Run, holder: str, wanted: RetrainSettings) -> Run | None:
    """Return the retraining in a search's folder, if there is one, and it is what is wanted."""
    folder = sweep.path / holder / FOLDER
    if not (folder / SETTINGS).is_file():
        return None
    run, asked = Run.open(folder), wanted.to_dict()
    ours = all(run.settings.get(key, asked[key]) == asked[key] for key in COMPARED)
    searched = Run.open(folder.parent)
    return run if ours and _data(run) == _data(searched) else None


def _data(run: Run) -> Any:
    """Return the fingerprint of a run's data, if it tells one."""
    found = run.settings.get("found")
    return found.get("data") if isinstance(found, dict) else None


def _holders(sweep: Run, winners: Mapping[str, str], wanted: RetrainSettings) -> dict[str, str]:
    """Return in whose folder each winner is retrained: where it has begun, else the first."""
    begun = {name: _begun(sweep, name, wanted) is not None for name in winners}
    holders: dict[str, str] = {}
    for name in sorted(winners, key=lambda name: not begun[name]):  # stable: else in table's order
        holders.setdefault(winners[name], name)
    return {name: holders[won] for name, won in winners.items()}


def _reached(run: Run, epochs: tuple[int, ...]) -> dict[int, Figure]:
    """Return what a retraining reached at some epochs, as far as it has come.

    Raises:
        RunConflict: if its curve is damaged.
    """
    figures = dict.fromkeys(epochs, WORST) if run.done(DIVERGED) else {}
    if not run.file(retrained.CURVE).is_file():
        return figures
    with run.reading(retrained.CURVE):
        curve = run.read(retrained.CURVE)[["epoch", "val_accuracy", "val_loss"]]
        for row in curve.to_dict("records"):
            if row["epoch"] in epochs:
                figure = Figure(float(row["val_accuracy"]), float(row["val_loss"]))
                figures[int(row["epoch"])] = figure
    return figures
