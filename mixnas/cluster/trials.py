"""A `Search` with N workers: Ray Tune runs it, each of its trials carrying a batch of candidates.

Tune asks our searcher for a batch when a worker is free, a worker evaluates it and reports, and
the driver tells the outcomes to the search. Workers live as long as the search: they keep the
evaluator in memory, and while a generation waits for its last outcomes they linger inside their
Tune trial, because Tune would stop an actor that is idle for a moment.
"""

import json
import pickle
import sys
import time
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from mixnas.arch import Architecture
from mixnas.asktell import Candidate, Trial
from mixnas.cluster import roll
from mixnas.cluster.client import driven_here
from mixnas.cluster.crew import Crew, Note
from mixnas.cluster.desk import Asked, Desk
from mixnas.cluster.local import connected, plainly, room, why
from mixnas.evaluate import Failure, Score
from mixnas.racing import Rival

LINGER = 0.03
"""Seconds that an idle worker sleeps before it reports again."""


def evaluate(
    search: Asked,
    make_evaluator: Callable[[], Callable[..., Score]],
    crew: Crew,
    *,
    batch: int = 5,
    progress: Callable[[Trial], None] | None = None,
    note: Note | None = None,
) -> dict[int, int]:
    """Run a search to its end with many workers; it can be stopped and gone on with at any moment.

    A candidate whose evaluation raises or takes too long is a failed trial with that reason. A
    worker that dies gives its candidates back; one that was in three dying workers' hands is a
    failed trial.

    Args:
        search: what asks and is told, here in this process: a search, or several as one.
        make_evaluator: builds the evaluator, once in each worker; called with an architecture,
            and with its rival where the search is a race. What it is made of reaches every node
            once: NumPy arrays in it are shared by the workers of a node, and read-only.
        crew: how many evaluate at once, with what, where, and how long one may take.
        batch: candidates handed out together; fewer where a generation is small.
        progress: called with each trial as it is told.
        note: told of the cluster that was joined.

    Returns:
        How many images workers judged once more, for rivals that others had judged, by the
        candidate's number; what is not there judged none.

    Raises:
        EvaluationFailed: if the evaluator cannot be built, too many trials fail, or Ray can be
            neither started nor joined.
        StorageFull: if the log cannot be written, or Ray's object store cannot hold what the
            workers share.
    """
    if search.finished:
        return {}
    made, shared = _sent(make_evaluator)
    carried = sum(part.nbytes for part in shared)
    with connected(crew, carried=carried, note=note) as folder, plainly(crew):
        desk = Desk(search, room(crew), batch, progress, crew.limit)
        trainable = tune.with_resources(
            tune.with_parameters(
                _Worker, made=made, shared=shared, threads=crew.threads, version=roll.version()
            ),
            crew.resources,
        )
        with driven_here(crew, folder):
            _tuner(trainable, desk, folder).fit()
    if desk.error:
        raise desk.error
    return desk.rejudged


def _tuner(trainable: Any, desk: Desk, folder: Path) -> tune.Tuner:
    """Return Tune's loop around a desk; it stages in a scratch folder what nobody reads."""
    return tune.Tuner(
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
            callbacks=[_Watch(desk)],
            verbose=0,
        ),
    )


def _sent(make: Callable[[], Callable[..., Score]]) -> tuple[bytes, list[np.ndarray]]:
    """Take apart what builds an evaluator: its pickle, and the arrays in it, which stay outside."""
    parts: list[pickle.PickleBuffer] = []
    made = cloudpickle.dumps(make, protocol=5, buffer_callback=parts.append)
    return made, [np.asarray(part.raw()) for part in parts]


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
        return {"batch": _packed([_written(candidate) for candidate in batch])}

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
        if reason := result.get("broken"):
            self._desk.broken(reason)
        else:
            told = json.loads(result.get("outcomes", "{}"))
            outcomes = {int(number): _outcome(values) for number, values in told.items()}
            again = {int(n): values["again"] for n, values in told.items() if "again" in values}
            self._desk.deliver(trial_id, outcomes, again)
        return self._desk.wanted()

    def stop_all(self) -> bool:
        return self._desk.error is not None


class _Watch(tune.Callback):
    """Tune's view of the desk: when a worker begins, and which one takes too long."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._trials: dict[str, Any] = {}
        self._ended: list[Any] = []

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials[trial.trial_id] = trial
        self._desk.started(trial.trial_id)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for worker in self._desk.overdue():
            ray.kill(self._trials[worker].temporary_state.ray_actor)
        for trial in self._ended:  # Tune keeps it to the end, and nobody asks it what it reported
            trial.run_metadata.metric_analysis = {}
            trial.run_metadata.metric_n_steps = {}
            trial.run_metadata.last_result = {}
        self._ended.clear()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended.append(self._trials.pop(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.pop(trial.trial_id, None)


class _Worker(tune.Trainable):
    """One evaluator in a process of its own, given one batch after the other."""

    def setup(
        self,
        config: dict[str, Any],
        made: bytes,
        shared: list[np.ndarray],
        threads: int,
        version: str,
    ) -> None:
        self._broken: str | None = None
        self._batch = config["batch"]
        here = roll.version()
        if version != here:  # of a machine that joined after the roll
            self._broken = (
                f"machine {gethostname()} has mixnas {here}, the driver {version}; install the "
                "same on all"
            )
            return
        try:
            # From our own driver through Ray's store; never from a file.
            self._evaluate: Callable[..., Score] = pickle.loads(made, buffers=shared)()
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
        batch, self._batch = _unpacked(self._batch), ""
        return {"outcomes": json.dumps({number: self._told(*arches) for number, *arches in batch})}

    def _told(self, *arches: Any) -> dict[str, Any]:
        """Return an outcome as plain data, with the images that were judged once more for it."""
        before = self._rejudged()
        outcome = self._judge(*arches)
        again = self._rejudged() - before
        return outcome | {"again": again} if again else outcome

    def _rejudged(self) -> int:
        return int(getattr(self._evaluate, "again", 0))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._batch = new_config["batch"]
        return True

    def _judge(self, arch: dict[str, Any], rival: dict[str, Any] | None) -> dict[str, Any]:
        against = () if rival is None else (_rival(rival),)
        try:
            score = self._evaluate(Architecture.from_dict(arch), *against)
        except Exception as error:
            return {"failed": why(error)}
        return asdict(score)


def _outcome(values: dict[str, Any]) -> Score | Failure:
    if "failed" in values:
        return Failure(values["failed"])
    return Score(**{name: value for name, value in values.items() if name != "again"})


def _packed(batch: list[Any]) -> str:
    """Return plain data as a short text: Tune keeps many copies of each batch to the end."""
    return b85encode(zlib.compress(json.dumps(batch).encode())).decode()


def _unpacked(text: str) -> list[Any]:
    return list(json.loads(zlib.decompress(b85decode(text))))


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
