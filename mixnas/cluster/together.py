"""Several processes that train one network together, on any machines of a cluster: Ray Train.

Each process calls the same function, in which it finds itself joined with the others by torch's
own process group, as torchrun would have it (`mixnas.train.world.World.join`). If one is lost, all
are begun again, a few times, and go on from the checkpoint that the first one keeps: so its files
must lie where every machine sees them. Ray Train's own checkpoints are not used.

The process that called holds the run; of the others only the first writes into it. One that lives
on, cut off, while all are begun again can at most put an older checkpoint of the same training in
the place of a newer one, whole: what comes of it is the same.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, Protocol

import ray
import torch
from ray import ObjectRef, cloudpickle, train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mixnas.cluster.crew import Crew
from mixnas.cluster.local import connected, plainly, why
from mixnas.errors import MixnasError, WorkerLost

AGAIN = 3
"""How often all are begun again when one is lost."""
PATIENCE = 10
"""How many minutes in all may pass without room for every process."""
SILENCE = timedelta(minutes=10)
"""How long a process waits for another before it gives up."""
LOOK = 0.5
"""Seconds between two looks at what the first process tells."""
FAREWELL = 20.0
"""Seconds that the first process has to keep its state, if all is to stop."""
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are meant from where the user stands
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
}
"""What Ray Train takes no argument for."""


class Told(Protocol):
    """Who hears what the first process tells: a listener."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Hear that a stage begins."""

    def advance(self, by: int, **figures: float | str) -> None:
        """Hear that it got on."""

    def note(self, text: str) -> None:
        """Hear one line."""

    def end(self) -> None:
        """Hear that it has ended."""


def together(
    function: Callable[[Told], None],
    crew: Crew,
    listener: Told,
    *,
    failures: int | None = None,
) -> None:
    """Call a function in several processes that train one network together.

    Args:
        function: trains; called in every process, from the folder where this one stands, with a
            listener whose words reach this one if the process is the first. That listener's
            `advance` raises KeyboardInterrupt when all is to stop.
        crew: how many processes, and what each may use; without a number, one.
        listener: hears what the first process tells.
        failures: how often all are begun again when one is lost; by default `AGAIN` times.

    Raises:
        MixnasError: what the function raised: a user's mistake, told once.
        WorkerLost: if processes are lost more often than that, or there is no room for them.
        InvalidOption: if no machine has what one process takes, or lacks this mixnas.
        EvaluationFailed: if Ray can be neither started nor joined, or is lost.
        StorageFull: if Ray's object store cannot hold what all of them need.
        KeyboardInterrupt: if this process was interrupted; the first one keeps its state before.
    """
    failures = AGAIN if failures is None else failures
    carried = cloudpickle.dumps(function)
    with (
        connected(crew, carried=len(carried), note=listener.note) as folder,
        plainly(crew),
    ):
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        post: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Post).remote()
        fit = _Fit(_trainer(ray.put(carried), crew, post, folder, failures))
        try:
            with _Poll(post, listener):
                fit.wait(post)
        except KeyboardInterrupt:
            with suppress(RayError):
                ray.get(post.stop.remote())
                _until_kept(post)
            raise
        _judge(fit.error, post, crew, failures)


def _trainer(
    function: ObjectRef, crew: Crew, post: Any, folder: Path, failures: int
) -> TorchTrainer:
    """Set up Ray Train's own trainer."""
    takes = {"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})}
    config = {
        "function": function,
        "post": post,
        "folder": os.getcwd(),
        "threads": crew.threads,
    }
    limits = FailureConfig(max_failures=failures, controller_failure_limit=PATIENCE)
    return TorchTrainer(
        _train,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=int(SILENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=crew.workers or 1, use_gpu=crew.gpus > 0, resources_per_worker=takes
        ),
        run_config=RunConfig(
            name="together", storage_path=str(folder / "train"), failure_config=limits
        ),
    )


class _Fit:
    """Ray Train's run in a thread of its own: in the main one it would take Ctrl-C for itself."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self.error: Exception | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._run, daemon=True, name="mixnas-together")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # Ray Train has a class for each way, and wraps them
            self.error = error

    def wait(self, post: Any) -> None:
        """Wait until it has ended, or a mistake was told, which no second try mends."""
        while self._thread.is_alive():
            self._thread.join(LOOK)
            with suppress(RayError):
                if ray.get(post.mistake.remote()) is not None:
                    return


def _until_kept(post: Any) -> None:
    """Wait until the first process has kept its state, for a while."""
    over = threading.Event()
    for _ in range(int(FAREWELL / LOOK)):
        if ray.get(post.stopped.remote()) or over.wait(LOOK):
            return


def _judge(error: Exception | None, post: Any, crew: Crew, failures: int) -> None:
    """Raise what went wrong, if anything did, in our words."""
    with suppress(RayError):
        mistake, wrong = ray.get(post.mistake.remote()), ray.get(post.wrong.remote())
        if mistake is not None:
            raise cloudpickle.loads(mistake) from None
    if error is None:
        return
    cause = getattr(error, "controller_failure", None)
    if cause is not None:
        raise WorkerLost(
            f"{crew.workers or 1} processes with {crew.each()} each could not be started together "
            f"({why(cause)[:200]}); add machines, or give fewer; everything up to the last "
            "checkpoint is kept: repeat the same command"
        ) from error
    times = "once" if failures == 0 else f"{failures + 1} times"
    told = f" ({wrong})" if wrong else ""
    raise WorkerLost(
        f"processes that train together were lost {times}{told}; everything up to the last "
        "checkpoint is kept: see to the machines, then repeat the same command"
    ) from error


class _Post:
    """Where the first process leaves what it tells, and any process its mistake."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._mistake: bytes | None = None
        self._wrong = ""
        self._stopping = self._stopped = self._open = False
        self._begun = 0

    def begin(self) -> None:
        """Hear that the first process begins, or begins again."""
        if self._begun:
            if self._open:
                self.tell("end", (), {})
            lost = f"a process was lost; all begin again at the last checkpoint ({self._begun})"
            self.tell("note", (lost,), {})
        self._begun += 1

    def tell(self, name: str, values: tuple[Any, ...], figures: dict[str, Any]) -> bool:
        """Take a line; say whether all is to stop."""
        if name in ("stage", "end"):
            self._open = name == "stage"
        self._lines.append((name, values, figures))
        return self._stopping

    def take(self) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, mistake: bytes) -> None:
        self._mistake = self._mistake or mistake

    def mistake(self) -> bytes | None:
        return self._mistake

    def err(self, line: str) -> None:
        self._wrong = line

    def wrong(self) -> str:
        return self._wrong

    def stop(self) -> None:
        self._stopping = True

    def stop_kept(self) -> None:
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped


class _Poll:
    """Hands on, while it is entered, what the first process tells."""

    def __init__(self, post: Any, listener: Told) -> None:
        self._post, self._listener = post, listener
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="mixnas-told")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        over = False
        while not over:
            over = self._stop.wait(LOOK)
            with suppress(RayError):
                for name, values, figures in ray.get(self._post.take.remote()):
                    getattr(self._listener, name)(*values, **figures)


class _Teller:
    """A listener in the first process, whose words are left at the post."""

    def __init__(self, post: Any) -> None:
        self._post = post
        self._asked: list[Any] = []

    def plan(self, plan: Any) -> None:
        """Keep the plan to itself: who began this has told it."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        self._post.tell.remote("stage", (name, total, done), {})

    def advance(self, by: int, **figures: float | str) -> None:
        self._asked.append(self._post.tell.remote("advance", (by,), figures))
        answered, self._asked = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
        if any(ray.get(answered)):
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self._post.tell.remote("note", (text,), {})

    def end(self) -> None:
        self._post.tell.remote("end", (), {})


class _Mute:
    """A listener in any other process."""

    def plan(self, plan: Any) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, by: int, **figures: float | str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


def _train(config: dict[str, Any]) -> None:
    """Perform the function in one process."""
    post = config["post"]
    if ray.get(post.mistake.remote()) is not None:
        return  # begun again after a mistake, which no second try mends
    first = train.get_context().get_world_rank() == 0
    if first:
        ray.get(post.begin.remote())
    with suppress(OSError):  # a machine that lacks it may need nothing from there
        os.chdir(config["folder"])
    torch.set_num_threads(config["threads"])
    # From our own driver through Ray's store; never from a file.
    function = cloudpickle.loads(ray.get(config["function"]))
    try:
        function(_Teller(post) if first else _Mute())
    except KeyboardInterrupt:
        ray.get(post.stop_kept.remote())
    except WorkerLost:
        raise
    except MixnasError as error:
        ray.get(post.fail.remote(cloudpickle.dumps(error)))
        raise
    except Exception as error:
        ray.get(post.err.remote(f"machine {gethostname()}: {why(error)}"))
        raise
