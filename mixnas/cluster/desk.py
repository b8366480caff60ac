"""`Desk`: the driver's side of a search with workers; it knows nothing of Ray.

It hands batches of candidates out, takes outcomes in, and keeps the books of both: who has what,
since when, and whose hands a candidate has been in before.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from mixnas.asktell import Candidate, Trial
from mixnas.errors import EvaluationFailed, MixnasError
from mixnas.evaluate import Failure, Score

ATTEMPTS = 3
"""How often something is given to a worker, when workers die over it."""
STILLBORN = 6
"""How many worker processes may die before the first answer of any."""
PATIENCE = 30.0
"""Seconds that a batch waits for the worker it was meant for, before an idle one takes it over."""


class Asked(Protocol):
    """What a desk serves: one search, or several as one."""

    @property
    def population(self) -> int:
        """How many candidates can be out at once."""

    @property
    def goal(self) -> int:
        """How many good evaluations are to be made."""

    @property
    def finished(self) -> bool:
        """Whether nothing is out and nothing more will be asked."""

    def ask(self) -> Candidate | None:
        """Hand out the next candidate; None when there is none now."""

    def tell(self, number: int, outcome: Score | Failure) -> Trial:
        """Record a candidate's outcome."""


@dataclass
class Batch:
    """Candidates in one worker's hands.

    Attributes:
        candidates: those without an outcome so far.
        handed: when they were handed out, in the clock's seconds.
        since: when the worker began with them; None while it has yet to start.
        overdue: whether they took too long, and the worker is being ended.
    """

    candidates: list[Candidate]
    handed: float = 0.0
    since: float | None = None
    overdue: bool = False


@dataclass
class Desk:
    """Where candidates are handed out to workers and their outcomes taken in.

    Attributes:
        search: what asks and is told.
        room: how many workers may be at work now.
        batch: candidates handed out together, at most.
        progress: called with each trial as it is told.
        limit: seconds that one evaluation may take; None for any.
        clock: seconds that only rise.
        error: what ends the search early.
        rejudged: images that workers judged once more, for rivals that others had judged, by
            candidate.
    """

    search: Asked
    room: Callable[[], int]
    batch: int
    progress: Callable[[Trial], None] | None = None
    limit: float | None = None
    clock: Callable[[], float] = time.monotonic
    error: MixnasError | None = None
    rejudged: dict[int, int] = field(default_factory=dict)
    _given: dict[str, Batch] = field(default_factory=dict)
    _live: set[str] = field(default_factory=set)
    _ready: list[Candidate] = field(default_factory=list)
    _again: deque[Candidate] = field(default_factory=deque)
    _attempts: dict[int, int] = field(default_factory=dict)
    _stillborn: int | None = 0  # None from the first answer on

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given into its scratch folder; nothing reads it

    @property
    def over(self) -> bool:
        """Whether there is nothing left to hand out, ever."""
        return self.error is not None or self.search.finished

    @property
    def live(self) -> int:
        """How many workers are at work, or lent to us and waiting for work."""
        return len(self._live)

    def next(self, worker: str) -> list[Candidate]:
        """Hand a batch to a worker; empty if there is none now, or enough are at work."""
        if self.over or len(self._live) >= self.room() or not self.waiting():
            return []
        batch, self._ready = self._ready, []
        self._live.add(worker)
        self._given[worker] = Batch(batch, self.clock())
        return batch

    def started(self, worker: str) -> None:
        """Note that a worker begins with what it was given: its time runs from now on."""
        if worker in self._given:
            self._given[worker].since = self.clock()

    def waiting(self) -> bool:
        """Fetch the next batch from the search, unless one lies ready; tell whether there is."""
        if self._again and not self._ready:
            self._ready.append(self._again.popleft())  # alone, to find out which one kills
        elif not self._ready:
            self._ready.extend(self._ask())
        return bool(self._ready)

    def wanted(self) -> bool:
        """Tell whether an idle worker shall come back: for work, or for what another never began.

        A cluster may lack the room for a worker that was counted on; its batch must not wait.
        """
        now = self.clock()
        late = (b.since is None and now - b.handed > PATIENCE for b in self._given.values())
        return self.over or self.waiting() or any(late)

    def deliver(
        self,
        worker: str,
        outcomes: Mapping[int, Score | Failure],
        again: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Tell the search what a worker reports.

        Args:
            worker: who.
            outcomes: by candidate.
            again: how many images it judged once more, by candidate.
        """
        self._stillborn = None
        self.rejudged |= again
        if outcomes:
            self._given.pop(worker, None)
        for number, outcome in outcomes.items():
            self._tell(number, outcome)

    def broken(self, reason: str) -> None:
        """Note that a worker could not build the evaluator: then no other can."""
        self._stillborn = None
        self.error = EvaluationFailed(f"the evaluator could not be built: {reason}")

    def lost(self, worker: str) -> None:
        """Take back the candidates of a worker that died, or was ended for taking too long."""
        self._live.discard(worker)
        batch = self._given.pop(worker, Batch([]))
        if batch.overdue:
            self._late(batch.candidates)
            return
        if self._stillborn is not None:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                self.error = EvaluationFailed(
                    f"{STILLBORN} worker processes died before their first answer; try fewer "
                    "--workers if memory is short, and see that workers can import mixnas"
                )
        for candidate in batch.candidates:
            attempt = self._attempts[candidate.number] = self._attempts.get(candidate.number, 0) + 1
            if attempt < ATTEMPTS:
                self._again.append(candidate)
            else:
                self._tell(candidate.number, Failure(died(attempt)))

    def done(self, worker: str) -> None:
        """Note that a worker has left; there is room for another."""
        self._live.discard(worker)

    def overdue(self) -> list[str]:
        """Return the workers that take too long, each once: they are to be ended."""
        if self.limit is None:
            return []
        now, late = self.clock(), []
        for worker, batch in self._given.items():
            allowed = self.limit * len(batch.candidates)
            if not batch.overdue and batch.since is not None and now - batch.since > allowed:
                batch.overdue = True
                late.append(worker)
        return late

    def _late(self, candidates: list[Candidate]) -> None:
        """Fail what alone took too long; of several, each gets the time alone."""
        if len(candidates) > 1:
            self._again.extend(candidates)
            return
        for candidate in candidates:
            self._tell(candidate.number, Failure(f"no answer within {self.limit:g} s"))

    def _ask(self) -> Iterator[Candidate]:
        with self._guard():
            for _ in range(0 if self.over else self._share()):
                candidate = self.search.ask()
                if candidate is None:
                    return
                yield candidate

    def _share(self) -> int:
        """Return how many candidates go out together, so that all workers have some."""
        workers = max(1, self.room())
        return max(1, min(self.batch, -(-min(self.search.population, self.search.goal) // workers)))

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


def died(attempts: int) -> str:
    """Say that workers died over something."""
    return f"the worker process died, {attempts} times (out of memory?)"
