"""What a comparison will take, and its stages: entrants, trainings, timing, standings."""

import hashlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas
import torch

from mixnas import cluster, report
from mixnas.arch import Architecture
from mixnas.cluster import Crew
from mixnas.errors import (
    DataError,
    EvaluationFailed,
    MixnasError,
    OutOfMemory,
    RunConflict,
    StorageFull,
    TooNoisy,
    WorkerLost,
)
from mixnas.evaluate import Failure
from mixnas.jobs.entrants import Entrant, Maker, create, described
from mixnas.jobs.measuring import stopwatch
from mixnas.jobs.problem import Problem
from mixnas.jobs.settings import Listener, duration
from mixnas.jobs.standings import sentence, sound, standings
from mixnas.jobs.trainings import train, trainer
from mixnas.run import Run
from mixnas.timing.conditions import Conditions
from mixnas.train.recipe import AloneRecipe

ENTRANTS, RESULTS, PACE, TIMES = "entrants.json", "trainings", "pace.json", "latency.json"
STANDING, TRAINED, SUMMARY = "compare.csv", "trainings.csv", "summary.json"
OVERHEAD, TIMING = 30.0, 3.0
"""Seconds for starting workers and drawing; for timing one network."""

PASSING = (DataError, EvaluationFailed, OutOfMemory, RunConflict, StorageFull, WorkerLost)
"""What says nothing of a network that was to take part, and may be mended before the next call."""

Results = dict[str, dict[int, dict[str, Any]]]
"""What each training returned, or why it did not: by entrant's key and seed."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison will take.

    Attributes:
        run: the comparison's folder.
        entrants: who takes part.
        absent: who does not, and why.
        seeds: trainings of each.
        epochs: of each training.
        trainings: (key, seed) of the trainings that are still to be done.
        pace: seconds of one training step on one thread, measured, by key.
        steps: of each training.
        workers: processes that train.
        images: that judge.
        first: trainings that choose the equal-compute control, still to be done.
        to_come: entrants that are found only then; each has a training with every seed.
        equal: how the equal-compute control was reckoned (`mixnas.jobs.equal`), if it takes part.
    """

    run: Path
    entrants: tuple[Entrant, ...]
    absent: Mapping[str, str]
    seeds: int
    epochs: int
    trainings: tuple[tuple[str, int], ...]
    pace: Mapping[str, float]
    steps: int
    workers: int
    images: int
    first: int = 0
    to_come: int = 0
    equal: Mapping[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """How long it should take."""
        spans = sum(self.steps * self.pace.get(key, 0.0) for key, _ in self.trainings)
        further = self.first + self.to_come * self.seeds
        spans += further * self.steps * self.pace.get("winner", 0.0)
        return OVERHEAD + TIMING * (len(self.entrants) + self.to_come) + spans / self.workers

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        own = {
            "format": 1,
            "run": str(self.run),
            "entrants": [e.to_dict() for e in self.entrants],
            "absent": dict(self.absent),
            "trainings": [list(pair) for pair in self.trainings],
            "pace": dict(self.pace),
            "seconds": self.seconds,
        }
        names = ("seeds", "epochs", "steps", "workers", "images", "first", "to_come", "equal")
        return own | {name: getattr(self, name) for name in names}

    def rows(self) -> dict[str, str]:
        """Return the plan for people: label to text."""
        kinds: dict[str, list[str]] = {}
        for entrant in self.entrants:
            kinds.setdefault(entrant.kind, []).append(entrant.label)
        known = len(self.entrants) * self.seeds
        wanted = known + self.to_come * self.seeds
        done = known - len(self.trainings)
        before = f", {done} of them done before" if done else ""
        return {
            "run": str(self.run),
            **{kind: "; ".join(labels) for kind, labels in kinds.items()},
            **{f"without {key}": reason for key, reason in self.absent.items()},
            **({"equal": self._equal()} if self.first or self.to_come else {}),
            "trainings": f"{wanted} of {self.steps:,} steps ({self.epochs} epochs), {self.seeds} "
            f"seeds, {self.workers} workers{before}",
            "judged on": f"{self.images:,} images that chose nothing",
            "time": f"about {duration(self.seconds)}",
        }

    def _equal(self) -> str:
        """Say what choosing the equal-compute control takes, and for how much compute."""
        first = f"{self.first} random networks are trained first, the best of all takes part"
        if self.equal is None:
            return first
        spent = self.equal["training"] + self.equal["search"]
        return (
            f"{first}; {self.equal['networks']} at {self.equal['price']:.2g} multiply-adds each "
            f"cost what supernet and search did, {spent:.2g}"
        )


@dataclass(frozen=True)
class Contest:
    """A comparison's stages.

    Attributes:
        searched: the run whose winner is compared.
        problem: what that run searched.
        winner: what it found.
        epochs: of each training.
        name: the comparison's folder inside the run's.
        workers: processes that train.
        listener: is told how it gets on.
    """

    searched: Run
    problem: Problem
    winner: Architecture
    epochs: int
    name: str
    workers: int
    listener: Listener

    @property
    def recipe(self) -> AloneRecipe:
        """How every entrant is trained."""
        data = self.problem.data
        batch = min(self.problem.settings.batch, data.sizes["train"])
        return AloneRecipe(steps=self.epochs * data.steps_per_epoch(batch), batch=batch)

    @property
    def _images(self) -> int:
        return self.problem.data.sizes["report"]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides every result: other settings are another comparison."""
        return {
            "epochs": self.epochs,
            "winner": self.winner.id,
            "recipe": asdict(self.recipe),
            "device": self.problem.device.type,
            "found": {
                "data": self.problem.data.fingerprint,
                "resolution": self.problem.data.image,
            },
        }

    def plan(
        self,
        makers: Mapping[str, Maker],
        seeds: int,
        kept: Run | None,
        *,
        keep: bool,
        first: int = 0,
        to_come: int = 0,
        equal: Mapping[str, Any] | None = None,
    ) -> Comparison:
        """Find who takes part, what is still to be trained, and what it will take.

        Args:
            makers: who shall take part.
            seeds: trainings of each.
            kept: the comparison's folder, if it is there.
            keep: whether to write into it.
            first: trainings that are to be done before.
            to_come: entrants that are found by these.
            equal: how the equal-compute control was reckoned.
        """
        entrants, absent = self._gather(makers, kept, keep)
        done = _results(kept, entrants, seeds, self._images)
        pairs = ((e.key, seed) for seed in range(seeds) for e in entrants)
        lacking = tuple((key, seed) for key, seed in pairs if seed not in done.get(key, {}))
        return Comparison(
            run=self.searched.path / self.name,
            entrants=tuple(entrants),
            absent=absent,
            seeds=seeds,
            epochs=self.epochs,
            trainings=lacking,
            pace=self._pace(
                [
                    entrant
                    for entrant in entrants
                    if entrant.key in {key for key, _ in lacking}
                    or ((first or to_come) and entrant.key == "winner")
                ],
                kept,
                keep,
            ),
            steps=self.recipe.steps,
            workers=self.workers,
            images=self._images,
            first=first,
            to_come=to_come,
            equal=equal,
        )

    def _gather(
        self, makers: Mapping[str, Maker], kept: Run | None, keep: bool
    ) -> tuple[list[Entrant], dict[str, str]]:
        """Return who takes part, and who does not with the reason; each is found once."""
        known, absent = _known(kept)
        self.listener.stage("entrants", len(makers))
        for key, make in makers.items():
            if key not in known and key not in absent:
                try:
                    known[key] = make()
                except PASSING:
                    raise
                except MixnasError as error:
                    absent[key] = str(error)
                    self.listener.note(f"without {key}: {error}")
                if keep and kept:
                    listed = {k: entrant.to_dict() for k, entrant in known.items()}
                    kept.write(ENTRANTS, {"format": 1, "entrants": listed, "absent": absent})
            self.listener.advance(1)
        self.listener.end()
        missing = {key: absent[key] for key in makers if key in absent}
        return [known[key] for key in makers if key in known], missing

    def _task(self, entrant: Entrant, seed: int, state: Path) -> dict[str, Any]:
        """Return a training as plain data."""
        settings, data = self.problem.settings, self.problem.data
        return {
            "source": dict(entrant.source),
            "seed": seed,
            "data": [settings.data, settings.training_seed, data.image],
            "recipe": asdict(self.recipe),
            "device": self.problem.device.type,
            "state": str(state.absolute()),
        }

    def _pace(self, entrants: Sequence[Entrant], kept: Run | None, keep: bool) -> dict[str, float]:
        """Time a step of each on one thread, as a worker will do it; each once."""
        pace = _paces(kept)
        batch = self.recipe.batch
        batches = list(islice(self.problem.data.train(batch=batch, seed=0), 2))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.listener.stage("rehearsal", len(entrants))
        for entrant in entrants:
            if entrant.key not in pace:
                pace[entrant.key] = self._step_seconds(entrant, batches)
            self.listener.advance(1)
        self.listener.end()
        torch.set_num_threads(threads)
        if keep and kept:
            kept.write(PACE, pace)
        return pace

    def _step_seconds(self, entrant: Entrant, batches: Sequence[Any]) -> float:
        """Return the seconds of a second step; 0 if it fails, which its training will tell."""
        try:
            rehearsed = trainer(self._task(entrant, 0, Path()), self.problem.data, self.recipe)
            for images, labels in batches:
                began = time.perf_counter()
                rehearsed.train(images, labels)
            return time.perf_counter() - began
        except Exception:  # whatever it is, its training meets it too and is a row with the reason
            return 0.0

    def train(self, plan: Comparison, kept: Run) -> Results:
        """Do the trainings that are lacking; return all results."""
        byname = {entrant.key: entrant for entrant in plan.entrants}
        tasks = [
            self._task(byname[key], seed, kept.file(_file(key, seed, "state.pt")))
            for key, seed in plan.trainings
        ]
        failed: Results = {}
        wanted = len(plan.entrants) * plan.seeds
        self.listener.stage("trainings", wanted, wanted - len(tasks))
        with closing(cluster.each(train, tasks, Crew(self.workers, gpus=self._gpus()))) as outcomes:
            for index, outcome in outcomes:
                key, seed = plan.trainings[index]
                name = f"{byname[key].label}, seed {seed}"
                if isinstance(outcome, Failure):
                    outcome = {"reason": outcome.reason}
                    failed.setdefault(key, {})[seed] = outcome
                else:
                    made = {"of": digest(byname[key].source)}
                    kept.write(_file(key, seed, "json"), {**outcome, **made})
                    kept.file(_file(key, seed, "state.pt")).unlink(missing_ok=True)
                if "reason" in outcome:
                    self.listener.note(f"{name} failed: {outcome['reason']}")
                self.listener.advance(1, **_figures(outcome), entrant=name)
        self.listener.end()
        results = _results(kept, plan.entrants, plan.seeds, plan.images)
        return {key: results.get(key, {}) | failed.get(key, {}) for key in byname}

    def _gpus(self) -> float:
        """Return each worker's share of the GPUs that torch sees, none on the CPU."""
        if self.problem.device.type != "cuda":
            return 0.0
        return min(1.0, torch.cuda.device_count() / self.workers)

    def time(self, plan: Comparison, kept: Run, results: Results) -> dict[str, Any]:
        """Time whole and in turn, at the deployed image, while no worker runs, all that trained."""
        trained = {
            key for key, found in results.items() if any("hits" in r for r in found.values())
        }
        times = _timed(kept)
        timed = [entrant for entrant in plan.entrants if entrant.key in trained]
        if not trained <= set(times) or not kept.file(TIMES).is_file():
            self.listener.stage("timing", len(timed))
            space = self.problem.space
            conditions = Conditions.of(str(self.problem.device))
            sizes = {"classes": space.classes, "image": space.image}
            with torch.random.fork_rng(devices=[]):
                networks = [create(entrant.source, **sizes) for entrant in timed]
            try:
                spans = stopwatch(conditions).interleave(networks, (3, space.image, space.image))
                times = {e.key: span.to_dict() for e, span in zip(timed, spans, strict=True)}
                told = {"format": 1, "conditions": conditions.to_dict(), "latency": times}
                kept.write(TIMES, told)
            except TooNoisy as error:
                self.listener.note(f"no latency is told: {error}")
            self.listener.advance(len(timed))
            self.listener.end()
        return dict(times)

    def conclude(
        self, plan: Comparison, kept: Run, results: Results, times: Mapping[str, Any]
    ) -> None:
        """Write the tables, the summary, the picture and the page."""
        rows = standings(plan.entrants, results, times)
        kept.write(TRAINED, pandas.DataFrame(trainings(plan, results)))
        kept.write(STANDING, pandas.DataFrame(rows))
        problem = self.problem
        kept.write(
            SUMMARY,
            {
                "format": 1,
                "comparison": kept.name,
                "of": self.searched.name,
                "sentence": sentence(rows, len(problem.data.labels)),
                "data": problem.data.name,
                "budget": [str(limit) for limit in problem.limits],
                "image": problem.space.image,
                "classes": problem.space.classes,
                "resolution": problem.data.image,
                "labels": len(problem.data.labels),
                "images": plan.images,
                "seeds": plan.seeds,
                "epochs": plan.epochs,
                "steps": plan.steps,
                "recipe": asdict(self.recipe),
                "rows": rows,
                "absent": dict(plan.absent),
                **({} if plan.equal is None else {"equal": dict(plan.equal)}),
                "conditions": kept.read(TIMES)["conditions"] if times else {},
            },
        )
        report.compared_figure(kept)
        report.compared_html(kept)


def _file(key: str, seed: int, suffix: str) -> str:
    return f"{RESULTS}/{key}.seed{seed}.{suffix}"


def _figures(outcome: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": outcome["accuracy"]} if "accuracy" in outcome else {}


def settled(kept: Run | None, key: str) -> bool:
    """Say whether an entrant has been found, or it is known that there is none."""
    known, absent = _known(kept)
    return key in known or key in absent


def _known(kept: Run | None) -> tuple[dict[str, Entrant], dict[str, str]]:
    """Return the entrants that a comparison has found, and those that it cannot have."""
    if kept is None or not kept.file(ENTRANTS).is_file():
        return {}, {}
    data = kept.read(ENTRANTS)
    try:
        entrants = {key: Entrant(**e) for key, e in data["entrants"].items()}
        absent = dict(data["absent"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise kept.broken(ENTRANTS) from None
    if not all(map(described, entrants.values())):
        raise kept.broken(ENTRANTS)
    return entrants, absent


def left_out(kept: Run, makers: Container[str]) -> list[str]:
    """Return the keys of the networks that an earlier call compared, and this one does not."""
    known, _ = _known(kept)
    return [key for key in known if key not in makers and key not in ("winner", "equal")]


def _paces(kept: Run | None) -> dict[str, float]:
    """Return the seconds of a step that were measured before."""
    if kept is None or not kept.file(PACE).is_file():
        return {}
    pace = kept.read(PACE)
    if not isinstance(pace, dict) or not all(isinstance(v, int | float) for v in pace.values()):
        raise kept.broken(PACE)
    return pace


def _timed(kept: Run) -> dict[str, Any]:
    """Return the latencies that were measured before."""
    if not kept.file(TIMES).is_file():
        return {}
    times = kept.read(TIMES)
    try:
        spans = dict(times["latency"])
        figures = [span[key] for span in spans.values() for key in ("lower", "median", "upper")]
        if isinstance(times["conditions"], dict) and all(isinstance(f, float) for f in figures):
            return spans
    except (KeyError, TypeError, ValueError):
        pass
    raise kept.broken(TIMES)


def _results(kept: Run | None, entrants: Sequence[Entrant], seeds: int, images: int) -> Results:
    """Return what the trainings of these networks that are done returned."""
    found: Results = {}
    for entrant in entrants if kept else ():
        for seed in range(seeds):
            name = _file(entrant.key, seed, "json")
            if kept and kept.file(name).is_file():
                result = kept.read(name)
                if not sound(result, images):
                    raise kept.broken(name)
                if belongs(result, entrant):
                    found.setdefault(entrant.key, {})[seed] = result
    return found


def digest(source: Mapping[str, Any]) -> str:
    """Return what tells a network's description from others, in hexadecimal."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]


def belongs(record: Mapping[str, Any], entrant: Entrant) -> bool:
    """Say whether a record is of this network, not of one that had its key before draws were anew.

    One that does not say of which it is, from before records did, counts as its own.
    """
    own = digest(entrant.source)
    return bool(record.get("of", own) == own)


def trainings(plan: Comparison, results: Results) -> list[dict[str, Any]]:
    """Return one row for each training."""
    columns = ("accuracy", "loss", "images", "steps", "seconds", "reason")
    return [
        {"key": entrant.key, "kind": entrant.kind, "seed": seed}
        | {column: results[entrant.key].get(seed, {}).get(column) for column in columns}
        for entrant in plan.entrants
        for seed in range(plan.seeds)
    ]
