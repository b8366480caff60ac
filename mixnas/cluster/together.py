"""Several processes that train one network together, on any machines of a cluster: Ray Train.

Each process calls the same function, in which it finds itself joined with the others by torch's
own process group, as torchrun would have it (`mixnas.train.world.World.join`). If one is lost, all
are begun again, a few times, and go on from the checkpoint that the function keeps: so its files
must lie where every machine sees them.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import ray
from ray import cloudpickle, train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mixnas.cluster.crew import Crew, Note
from mixnas.cluster.local import connected, why
from mixnas.errors import MixnasError, WorkerLost

AGAIN = 3
"""How often all are begun again when one is lost."""
LOOK = 0.5
"""Seconds between two looks at what the first process tells."""


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
    failures: int = AGAIN,
    note: Note | None = None,
) -> None:
    """Call a function in several processes that train one network together.

    Args:
        function: trains; called in every process, with a listener whose words reach this one if
            the process is the first.
        crew: how many processes, and what each may use.
        listener: hears what the first process tells.
        failures: how often all are begun again when one is lost.
        note: told of the cluster that was joined.

    Raises:
        MixnasError: what the function raised: a user's mistake, told once.
        WorkerLost: if processes are lost more often than that.
        EvaluationFailed: if Ray can be neither started nor joined.
    """
    with connected(crew, note=note) as folder:
        post: Any = ray.remote(num_cpus=0)(_Post).remote()
        takes = {"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})}
        poll = _Poll(post, listener)
        trainer = TorchTrainer(
            _train,
            train_loop_config={"function": cloudpickle.dumps(function), "post": post},
            scaling_config=ScalingConfig(
                num_workers=crew.workers or 1,
                use_gpu=crew.gpus > 0,
                resources_per_worker=takes,
            ),
            run_config=RunConfig(
                name="together",
                storage_path=str(folder / "train"),
                failure_config=FailureConfig(max_failures=failures),
            ),
        )
        try:
            with poll:
                trainer.fit()
        except Exception as error:  # Ray Train has a class for each way, and wraps them
            mistake = ray.get(post.mistake.remote())
            if mistake is not None:
                raise cloudpickle.loads(mistake) from None
            raise WorkerLost(
                f"the training's processes were lost {failures + 1} times ({why(error)}); "
                "everything up to the last checkpoint is kept: repeat the same command"
            ) from error


class _Post:
    """Where the first process leaves what it tells, and any process its mistake."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._mistake: bytes | None = None

    def tell(self, name: str, values: tuple[Any, ...], figures: dict[str, Any]) -> None:
        self._lines.append((name, values, figures))

    def take(self) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, mistake: bytes) -> None:
        self._mistake = self._mistake or mistake

    def mistake(self) -> bytes | None:
        return self._mistake


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

    def plan(self, plan: Any) -> None:
        """Keep the plan to itself: who began this has told it."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        self._post.tell.remote("stage", (name, total, done), {})

    def advance(self, by: int, **figures: float | str) -> None:
        self._post.tell.remote("advance", (by,), figures)

    def note(self, text: str) -> None:
        self._post.tell.remote("note", (text,), {})

    def end(self) -> None:
        self._post.tell.remote("end", (), {})


class _Mute(_Teller):
    """A listener in any other process."""

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
    # From our own driver through Ray's store; never from a file.
    function = cloudpickle.loads(config["function"])
    try:
        function(_Teller(post) if first else _Mute(post))
    except WorkerLost:
        raise
    except MixnasError as error:
        ray.get(post.fail.remote(cloudpickle.dumps(error)))
        raise
