"""Tasks for N workers, one by one, in the order in which they finish.

For what takes minutes or hours, such as one training: each task is a Ray task of its own, given
out when a worker is free. What a task tells while it is under way, it writes where its caller
looks for it (a run's folder); nothing but its result comes back.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray import ObjectRef, cloudpickle
from ray.exceptions import RayError, RayTaskError

from mixnas.cluster.local import ATTEMPTS, connected, died, why
from mixnas.errors import InvalidOption
from mixnas.evaluate import Failure


def each(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int = 1,
    threads: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
) -> Generator[tuple[int, Any], None, None]:
    """Call a function on every task in N worker processes, and yield what each call returned.

    The function reaches the workers through Ray's store, with all that is bound to it (by
    `functools.partial`, say): once, however many tasks there are; every call gets its own copy.
    Closing the iterator ends whatever is under way, and so does an interrupt; several iterators
    at once are closed the last opened first.

    Args:
        function: takes a task and returns plain data.
        tasks: plain data, as JSON could hold it.
        workers: how many calls at once.
        threads: torch threads of each worker.
        gpus: share of a GPU for each worker.
        address: a running Ray cluster to join; by default a private one is started and ended.

    Yields:
        A task's index and what the function returned, in the order in which they finish; or a
        `Failure` with a one-line reason, if the function raised, or worker processes died over
        the task three times.

    Raises:
        InvalidOption: if there are no workers, or not the GPUs asked for.
        EvaluationFailed: if Ray can be neither started nor joined.
    """
    if workers < 1:
        raise InvalidOption(f"workers={workers} is not allowed; give at least 1")
    if address is None and gpus > torch.cuda.device_count():
        raise InvalidOption(
            f"gpus={gpus:g} for each worker, but there are {torch.cuda.device_count()} here; "
            "give less"
        )
    if not tasks:
        return
    with connected(workers, gpus, address):
        call = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
        counter = _Counter(call, ray.put(cloudpickle.dumps(function)), tasks, workers, threads)
        try:
            yield from counter.serve()
        finally:
            counter.close()


@dataclass
class _Counter:
    """Where tasks are given out and results taken in.

    Attributes:
        call: the Ray function that performs a task.
        function: what it shall call, pickled, in Ray's store.
        tasks: the tasks.
        workers: how many at once.
        threads: torch threads of each.
    """

    call: Any
    function: ObjectRef
    tasks: Sequence[Any]
    workers: int
    threads: int
    _waiting: deque[int] = field(init=False)
    _given: dict[ObjectRef, int] = field(default_factory=dict)
    _deaths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = deque(range(len(self.tasks)))

    def serve(self) -> Iterator[tuple[int, Any]]:
        """Yield indices and outcomes until there are no more; no worker idles meanwhile."""
        self._give()
        while self._given:
            (answer,), _ = ray.wait(list(self._given), num_returns=1)
            index = self._given.pop(answer)
            outcome = self._outcome(index, answer)
            self._give()
            if outcome is not None:
                yield index, outcome[0]

    def close(self) -> None:
        """End what is under way."""
        for answer in self._given:
            with suppress(RayError):
                ray.cancel(answer, force=True)

    def _give(self) -> None:
        while self._waiting and len(self._given) < self.workers:
            index = self._waiting.popleft()
            task = self.tasks[index]
            self._given[self.call.remote(self.function, task, self.threads)] = index

    def _outcome(self, index: int, answer: ObjectRef) -> tuple[Any] | None:
        """Return what became of a task; nothing if it is to be tried again."""
        try:
            result, reason = ray.get(answer)
        except RayTaskError as error:  # could not be sent one way or the other
            return (Failure(why(error.cause or error)),)
        except RayError:
            self._deaths[index] = self._deaths.get(index, 0) + 1
            if self._deaths[index] == ATTEMPTS:
                return (Failure(died(ATTEMPTS)),)
            self._waiting.append(index)
            return None
        return (result if reason is None else Failure(reason),)


def _call(function: bytes, task: Any, threads: int) -> tuple[Any, str | None]:
    """Perform a task in a worker: return its result, or why there is none."""
    torch.set_num_threads(threads)
    try:
        # From our own driver through Ray's store; never from a file.
        return cloudpickle.loads(function)(task), None
    except Exception as error:
        return None, why(error)
