"""A `Search` with N workers: Ray Tune runs it, each of its trials carrying a batch of candidates.

Tune asks our searcher for a batch when a worker is free, a worker evaluates it and reports, and
the driver tells the outcomes to the search. Workers live as long as the search: they keep the
evaluator in memory, and while a generation waits for its last outcomes they linger inside their
Tune trial, because Tune would stop an actor that is idle for a moment.
"""

import gc
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from mixnas.arch import Architecture
from mixnas.asktell import Candidate, Search, Trial
from mixnas.errors import EvaluationFailed, MixnasError, RunConflict
from mixnas.evaluate import Evaluator, Failure, Score
from mixnas.storage import Held

LINGER = 0.03
"""Seconds that an idle worker sleeps before it reports again."""
ATTEMPTS = 3
"""How often a candidate is given to a worker, when workers die over it."""
STILLBORN = 6
"""How many worker processes may die before the first answer of any."""
STORE = 256 * 1024**2
"""Bytes of Ray's object store: it carries the evaluator to the workers, and nothing else."""
SOCKET_ROOM = 35
"""Longest scratch path: Ray's socket names add 70 characters, and the kernel allows 107."""


def evaluate(
    search: Search,
    make_evaluator: Callable[[], Evaluator],
    *,
    workers: int = 1,
    batch: int = 5,
    threads: int = 1,
    gpus: float = 0.0,
    progress: Callable[[Trial], None] | None = None,
    timeout: float | None = None,
    address: str | None = None,
) -> None:
    """Run a search to its end with N workers; it can be stopped and gone on with at any moment.

    A candidate whose evaluation raises is a failed trial with that reason. A worker that dies
    gives its candidates back; one that was in three dying workers' hands is a failed trial.

    Args:
        search: what asks and is told, here in this process.
        make_evaluator: builds the evaluator, once in each worker.
        workers: how many evaluate at once.
        batch: candidates handed out together; fewer where a generation is small.
        threads: torch threads of each worker.
        gpus: share of a GPU for each worker.
        progress: called with each trial as it is told.
        timeout: seconds after which a batch without an answer ends the search.
        address: a running Ray cluster to join; by default a private one is started and ended.

    Raises:
        EvaluationFailed: if the evaluator cannot be built, a batch takes too long, or too many
            trials fail.
        StorageFull: if the log cannot be written.
    """
    if search.finished:
        return
    desk = Desk(search, workers, batch, progress, timeout)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        stack.enter_context(_calm(private=address is None))
        if not ray.is_initialized():
            stack.enter_context(_cluster(workers, gpus, folder, address))
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


@dataclass
class Desk:
    """The driver's side: hands batches out, takes outcomes in, keeps the books of both.

    Attributes:
        error: what ends the search early.
    """

    search: Search
    workers: int
    batch: int
    progress: Callable[[Trial], None] | None = None
    timeout: float | None = None
    error: MixnasError | None = None
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
                reason = f"the worker process died, {attempt} times (out of memory?)"
                self._tell(candidate.number, Failure(reason))

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
        return {"batch": json.dumps([[c.number, c.arch.to_dict()] for c in batch])}

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
            self._evaluate: Evaluator = cloudpickle.loads(make)()
        except Exception as error:  # reported by `step`, for Tune would only retry
            self._broken = _reason(error)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)

    def step(self) -> dict[str, Any]:
        if self._broken:
            return {"broken": self._broken}
        if not self._batch:
            time.sleep(LINGER)
            return {"outcomes": "{}"}
        batch, self._batch = json.loads(self._batch), ""
        return {"outcomes": json.dumps({number: self._outcome(arch) for number, arch in batch})}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._batch = new_config["batch"]
        return True

    def _outcome(self, arch: dict[str, Any]) -> dict[str, Any]:
        try:
            score = self._evaluate(Architecture.from_dict(arch))
        except Exception as error:
            return {"failed": _reason(error)}
        return asdict(score)


def _name(trial: Any) -> str:
    return f"batch-{trial.trial_id}"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


@contextmanager
def _cluster(workers: int, gpus: float, folder: Path, address: str | None) -> Iterator[None]:
    """Start a private Ray, or join one; leave it, with all its processes, at the end."""
    before = signal.getsignal(signal.SIGTERM)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    private: dict[str, Any] = {
        "num_cpus": workers,
        "num_gpus": None if gpus else 0,
        "include_dashboard": False,
        "object_store_memory": STORE,
        "_temp_dir": str(folder),
    }
    try:
        if address:
            ray.init(address=address, **quietly)
        else:
            ray.init(address="local", **private, **quietly)
        yield
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # Ray forgets the processes that it has ended, and Python would say so
        with suppress(ValueError):  # Ray takes SIGTERM for itself; in a thread nobody can
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _calm(private: bool) -> Iterator[None]:
    """Set what Ray reads from the environment only, and its loggers; put all back afterwards."""
    before = dict(os.environ)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_ENVIRONMENT)
    if private:
        os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        os.environ["RAY_AUTH_TOKEN"] = _token()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables however quiet it shall be
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # workers start side by side
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@cache
def _token() -> str:
    """A password for our private clusters, else Ray leaves one in the home folder.

    One for the whole process: Ray reads it once and keeps it for later clusters too.
    """
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


@contextmanager
def scratch() -> Iterator[Path]:
    """A short private folder for Ray's sockets and logs; those of killed runs are removed too."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) + len("/mixnas-12345678") > SOCKET_ROOM:
        root = Path("/tmp")
    for old in root.glob("mixnas-*/lock"):
        with suppress(RunConflict, OSError):
            left = Held(old, "scratch folder")
            shutil.rmtree(old.parent, ignore_errors=True)
            left.close()
    path = Path(tempfile.mkdtemp(prefix="mixnas-", dir=root))
    lock = Held(path / "lock", "scratch folder")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()
