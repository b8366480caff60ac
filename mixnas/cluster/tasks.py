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

from mixnas.cluster.crew import Crew
from mixnas.cluster.desk import ATTEMPTS, died
from mixnas.cluster.local import connected, plainly, room, why
from mixnas.evaluate import Failure


def each(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    crew: Crew,
) -> Generator[tuple[int, Any], None, None]:
    """Call a function on every task in N worker processes, and yield what each call returned.

    The function reaches the workers through Ray's store, with all that is bound to it (by
    `functools.partial`, say): once, however many tasks there are; every call gets its own copy.
    Closing the iterator ends whatever is under way, and so does an interrupt; several iterators
    at once are closed the last opened first.

    Args:
        function: takes a task and returns plain data.
        tasks: plain data, as JSON could hold it.
        crew: how many calls at once, with what, and where.

    Yields:
        A task's index and what the function returned, in the order in which they finish; or a
        `Failure` with a one-line reason, if the function raised, or worker processes died over
        the task three times.

    Raises:
        InvalidOption: if there are not the GPUs asked for.
        EvaluationFailed: if Ray can be neither started nor joined.
        StorageFull: if Ray's object store cannot hold the function.
    """
    if not tasks:
        return
    with connected(crew), plainly(crew):
        call = ray.remote(num_cpus=crew.cpus, num_gpus=crew.gpus, max_retries=0)(_call)
        sent = ray.put(cloudpickle.dumps(function))
        counter = _Counter(call, sent, tasks, room(crew), crew.threads)
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
        room: how many at once.
        threads: torch threads of each worker.
    """

    call: Any
    function: ObjectRef
    tasks: Sequence[Any]
    room: Callable[[], int]
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
        while self._waiting and len(self._given) < self.room():
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
