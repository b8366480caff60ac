"""A `Search` with N workers: Ray Tune runs it, each of its trials carrying a batch of candidates.

Tune asks our searcher for a batch when a worker is free, a worker evaluates it and reports, and
the driver tells the outcomes to the search. Workers live as long as the search: they keep the
evaluator in memory, and while a generation waits for its last outcomes they linger inside their
Tune trial, because Tune would stop an actor that is idle for a moment.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import Searcher

from mixnas.arch import Architecture
from mixnas.asktell import Candidate, Search, Trial
from mixnas.cluster.local import ATTEMPTS, connected, died, why
from mixnas.errors import EvaluationFailed, MixnasError
from mixnas.evaluate import Failure, Score
from mixnas.racing import Rival

LINGER = 0.03
"""Seconds that an idle worker sleeps before it reports again."""
STILLBORN = 6
"""How many worker processes may die before the first answer of any."""


def evaluate(
    search: Search,
    make_evaluator: Callable[[], Callable[..., Score]],
    *,
    workers: int = 1,
    batch: int = 5,
    threads: int = 1,
    gpus: float = 0.0,
    progress: Callable[[Trial], None] | None = None,
    timeout: float | None = None,
    address: str | None = None,
) -> int:
    """Run a search to its end with N workers; it can be stopped and gone on with at any moment.

    A candidate whose evaluation raises is a failed trial with that reason. A worker that dies
    gives its candidates back; one that was in three dying workers' hands is a failed trial.

    Args:
        search: what asks and is told, here in this process.
        make_evaluator: builds the evaluator, once in each worker; called with an architecture,
            and with its rival where the search is a race.
        workers: how many evaluate at once.
        batch: candidates handed out together; fewer where a generation is small.
        threads: torch threads of each worker.
        gpus: share of a GPU for each worker.
        progress: called with each trial as it is told.
        timeout: seconds after which a batch without an answer ends the search.
        address: a running Ray cluster to join; by default a private one is started and ended.

    Returns:
        How many images the workers judged once more, for rivals that others had judged.

    Raises:
        EvaluationFailed: if the evaluator cannot be built, a batch takes too long, or too many
            trials fail.
        StorageFull: if the log cannot be written.
    """
    if search.finished:
        return 0
    desk = Desk(search, workers, batch, progress, timeout)
    with connected(workers, gpus, address) as folder:
        trainable = tune.with_resources(
            tune.with_parameters(_Worker, make=cloudpickle.dumps(make_evaluator), threads=threads),
            {"cpu": 1, "gpu": gpus},
        )
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Batches(desk),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder / "tune"),
                stop=_Enough(desk),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    if desk.error:
        raise desk.error
    return desk.rejudged


@dataclass
class Desk:
    """The driver's side: hands batches out, takes outcomes in, keeps the books of both.

    Attributes:
        error: what ends the search early.
        rejudged: images that workers judged once more, for rivals that others had judged.
    """

    search: Search
    workers: int
    batch: int
    progress: Callable[[Trial], None] | None = None
    timeout: float | None = None
    error: MixnasError | None = None
    rejudged: int = 0
    _given: dict[str, tuple[float, list[Candidate]]] = field(default_factory=dict)
    _live: set[str] = field(default_factory=set)
    _ready: list[Candidate] = field(default_factory=list)
    _again: deque[Candidate] = field(default_factory=deque)
    _attempts: dict[int, int] = field(default_factory=dict)
    _stillborn: int | None = 0  # None from the first answer on

    def __post_init__(self) -> None:
        share = -(-min(self.search.population, self.search.goal) // self.workers)
        self.batch = max(1, min(self.batch, share))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given into its scratch folder; nothing reads it

    @property
    def over(self) -> bool:
        """Whether there is nothing left to hand out, ever."""
        return self.error is not None or self.search.finished

    def next(self, worker: str) -> list[Candidate]:
        """Hand a batch to a Tune trial; empty if there is none now, or enough are at work."""
        if len(self._live) >= self.workers or not self.waiting():
            return []
        batch, self._ready = self._ready, []
        self._live.add(worker)
        self._given[worker] = (time.monotonic(), batch)
        return batch

    def waiting(self) -> bool:
        """Fetch the next batch from the search, unless one lies ready; tell whether there is."""
        if self._again and not self._ready:
            self._ready.append(self._again.popleft())  # alone, to find out which one kills
        elif not self._ready:
            self._ready.extend(self._ask())
        return bool(self._ready)

    def deliver(self, worker: str, result: dict[str, Any]) -> None:
        """Tell the search what a worker reports."""
        self._stillborn = None
        if broken := result.get("broken"):
            self.error = EvaluationFailed(f"the evaluator could not be built: {broken}")
            return
        self.rejudged += int(result.get("again", 0))
        outcomes = json.loads(result.get("outcomes", "{}"))
        if outcomes:
            self._given.pop(worker, None)
        for number, values in outcomes.items():
            failed = "failed" in values
            self._tell(int(number), Failure(values["failed"]) if failed else Score(**values))

    def lost(self, worker: str) -> None:
        """Take back the candidates of a worker that died."""
        self._live.discard(worker)
        lost = self._given.pop(worker, (0.0, []))[1]
        if self._stillborn is not None:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                self.error = EvaluationFailed(
                    f"{STILLBORN} worker processes died before their first answer; try fewer "
                    "--workers if memory is short, and see that workers can import mixnas"
                )
        for candidate in lost:
            attempt = self._attempts[candidate.number] = self._attempts.get(candidate.number, 0) + 1
            if attempt < ATTEMPTS:
                self._again.append(candidate)
            else:
                self._tell(candidate.number, Failure(died(attempt)))

    def done(self, worker: str) -> None:
        """Note that a Tune trial has ended; its worker is free for another."""
        self._live.discard(worker)

    def check_time(self) -> None:
        """End the search if a batch is overdue."""
        for since, batch in self._given.values():
            if self.timeout is not None and time.monotonic() - since > self.timeout:
                numbers = ", ".join(str(candidate.number) for candidate in batch)
                self.error = EvaluationFailed(
                    f"no answer from a worker for {self.timeout:g} s (trials {numbers}); "
                    "repeat the same command to go on from there"
                )

    def _ask(self) -> Iterator[Candidate]:
        with self._guard():
            for _ in range(0 if self.over else self.batch):
                candidate = self.search.ask()
                if candidate is None:
                    return
                yield candidate

    def _tell(self, number: int, outcome: Score | Failure) -> None:
        with self._guard():
            if self.error is None:
                trial = self.search.tell(number, outcome)
                if self.progress:
                    self.progress(trial)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Keep an error of ours from being lost in Tune's loop: it is raised when that ends."""
        try:
            yield
        except MixnasError as error:
            self.error = error


class _Batches(Searcher):
    """Tune's view of the desk: where its trials come from."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._desk.over:
            return str(Searcher.FINISHED)
        batch = self._desk.next(trial_id)
        if not batch:
            return str(Searcher.FINISHED) if self._desk.over else None
        # As one string: Tune would merge, flatten and print nested configurations.
        return {"batch": json.dumps([_written(candidate) for candidate in batch])}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            self._desk.lost(trial_id)
        else:
            self._desk.done(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the search's own log is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is rebuilt from its own log."""


class _Enough(tune.Stopper):
    """Tune's view of the desk: when a worker shall leave its trial, and when all shall."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._desk.deliver(trial_id, result)
        return self._desk.over or self._desk.waiting()

    def stop_all(self) -> bool:
        self._desk.check_time()
        return self._desk.error is not None


class _Worker(tune.Trainable):
    """One evaluator in a process of its own, given one batch after the other."""

    def setup(self, config: dict[str, Any], make: bytes, threads: int) -> None:
        self._broken: str | None = None
        self._batch = config["batch"]
        try:
            # From our own driver through Ray's store; never from a file.
            self._evaluate: Callable[..., Score] = cloudpickle.loads(make)()
        except Exception as error:  # reported by `step`, for Tune would only retry
            self._broken = why(error)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)

    def step(self) -> dict[str, Any]:
        if self._broken:
            return {"broken": self._broken}
        if not self._batch:
            time.sleep(LINGER)
            return {"outcomes": "{}"}
        batch, self._batch = json.loads(self._batch), ""
        before = self._rejudged()
        outcomes = {number: self._outcome(*arches) for number, *arches in batch}
        return {"outcomes": json.dumps(outcomes), "again": self._rejudged() - before}

    def _rejudged(self) -> int:
        return int(getattr(self._evaluate, "again", 0))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._batch = new_config["batch"]
        return True

    def _outcome(self, arch: dict[str, Any], rival: dict[str, Any] | None) -> dict[str, Any]:
        against = () if rival is None else (_rival(rival),)
        try:
            score = self._evaluate(Architecture.from_dict(arch), *against)
        except Exception as error:
            return {"failed": why(error)}
        return asdict(score)


def _written(candidate: Candidate) -> list[Any]:
    """Return a candidate as plain data: number, architecture, rival."""
    rival = candidate.rival
    against = None if rival is None else _known(rival)
    return [candidate.number, candidate.arch.to_dict(), against]


def _known(rival: Rival) -> dict[str, Any]:
    witnesses = [_known(one) for one in rival.witnesses]
    return {"arch": rival.arch.to_dict(), "score": asdict(rival.score), "witnesses": witnesses}


def _rival(written: dict[str, Any]) -> Rival:
    witnesses = tuple(_rival(one) for one in written["witnesses"])
    return Rival(Architecture.from_dict(written["arch"]), Score(**written["score"]), witnesses)


def _name(trial: Any) -> str:
    return f"batch-{trial.trial_id}"
