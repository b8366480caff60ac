"""A job's status in a file: what it does, how far it is, since when; for others to look at.

The job writes it each second or so and at every stage; a thread keeps it fresh while one step
takes long. Nothing is ever read back from it: what a run has done is told by its own files.
"""

import json
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixnas.errors import MixnasError, StorageFull
from mixnas.jobs.runs import finished
from mixnas.jobs.settings import Listener
from mixnas.run import Run
from mixnas.storage import write

FILE = "status.json"
FORMAT = 1
EVERY = 1.0
"""Seconds between two writes of the file, at least."""
BEAT = 5.0
"""Seconds between two writes at most, while the job lives."""
SILENT = 60.0
"""Seconds without a write after which a job is taken for dead."""
NOTES = 20
"""How many of the last notes are kept."""


@dataclass
class Status:
    """How far a job has come.

    Attributes:
        process: number of the process that does it.
        host: the machine that it runs on.
        began: when the job began, in seconds since 1970.
        updated: when this was written.
        stage: what it does now; empty between stages.
        total: of what the stage counts.
        done: of these.
        first: how many were done when the stage began.
        since: when the stage began.
        figures: the stage's latest.
        notes: the last lines worth saying, and how many there were in all before them.
        ended: empty while it works; then ``finished``, ``interrupted``, or what went wrong.
    """

    process: int
    host: str
    began: float
    updated: float
    stage: str = ""
    total: int = 0
    done: int = 0
    first: int = 0
    since: float = 0.0
    figures: dict[str, float | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    noted: int = 0
    ended: str = ""

    @property
    def rate(self) -> float:
        """What the stage counts, a second."""
        spent = self.updated - self.since
        return (self.done - self.first) / spent if spent > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the stage ends, at its pace so far; None where there is none yet."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def alive(self, now: float) -> bool:
        """Tell whether the job still works, as far as can be told from here."""
        if self.ended:
            return False
        if self.host == socket.gethostname():
            return _runs(self.process)
        return now - self.updated < SILENT

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is its inverse."""
        return {"format": FORMAT, **asdict(self), "rate": self.rate, "left": self.left}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Status":
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return cls(**{each.name: data[each.name] for each in fields(cls)})


class Recording:
    """A listener that hands everything on, and keeps the status of a job in a file.

    Nothing is written before the first stage or note: a job that finds all done leaves no trace.
    What it cannot write it leaves: a status is worth no job.

    Args:
        listener: who is told besides.
        path: the file.
        clock: seconds since 1970.
    """

    def __init__(
        self, listener: Listener, path: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._listener, self._path, self._clock = listener, path, clock
        self._lock = threading.Lock()
        self._notes: deque[str] = deque(maxlen=NOTES)
        self._written = 0.0
        now = clock()
        self._status = Status(os.getpid(), socket.gethostname(), now, now)
        self._begun = False

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Hand the plan on."""
        self._listener.plan(plan)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Note that a stage begins."""
        self._listener.stage(name, total, done)
        self._begun = True
        with self._lock:
            now, status = self._clock(), self._status
            status.stage, status.total, status.done, status.first = name, total, done, done
            status.since, status.figures = now, {}
        self.keep()

    def advance(self, by: int, **figures: float | str) -> None:
        """Note that the stage got on."""
        self._listener.advance(by, **figures)
        with self._lock:
            self._status.done += by
            self._status.figures = {name: _finite(value) for name, value in figures.items()}
        if self._clock() - self._written >= EVERY:
            self.keep()

    def note(self, text: str) -> None:
        """Note a line."""
        self._listener.note(text)
        self._begun = True
        with self._lock:
            self._notes.append(text)
            self._status.notes, self._status.noted = list(self._notes), self._status.noted + 1
        self.keep()

    def end(self) -> None:
        """Note that the stage has ended."""
        self._listener.end()
        with self._lock:
            self._status.stage = ""
        self.keep()

    def over(self, how: str) -> None:
        """Note that the job has ended."""
        with self._lock:
            self._status.ended = how
        self.keep()

    def keep(self) -> None:
        """Write the file, if there is anything to tell."""
        if not self._begun:
            return
        with self._lock, suppress(StorageFull, OSError, MixnasError):
            self._written = self._status.updated = self._clock()
            write(self._path, json.dumps(self._status.to_dict(), indent=1).encode())


@contextmanager
def recorded(listener: Listener, run: Run) -> Iterator[Listener]:
    """Keep the status of what is done within in a run's folder, to its end, good or bad."""
    recording = Recording(listener, run.file(FILE))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            recording.keep()

    thread = threading.Thread(target=beat, daemon=True, name="mixnas-status")
    thread.start()
    how = "failed; its own process tells why"
    try:
        yield recording
        how = "finished"
    except KeyboardInterrupt:
        how = "interrupted"
        raise
    except MixnasError as error:
        how = f"failed: {error}"
        raise
    finally:
        stop.set()
        thread.join()
        recording.over(how)


def read(run: Run) -> Status | None:
    """Return a run's status; None where it has none, or one that cannot be read."""
    try:
        return Status.from_dict(json.loads(run.file(FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def follow(
    run: Run,
    listener: Listener,
    *,
    every: float = EVERY,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> str:
    """Tell a listener how a job gets on that another process does, until it has ended.

    Where no job has told of itself yet, it waits for one to begin, and says so once.

    Args:
        run: its run.
        listener: is told.
        every: seconds between two looks.
        sleep: waits.
        clock: seconds since 1970.

    Returns:
        How it ended: ``finished``, ``interrupted``, what went wrong, ``dead`` if its process has
        gone without a word, or nothing if the run is done and no job has told of itself there.
    """
    shown = _first(run, listener, every, sleep)
    if shown is None:
        return ""
    _tell(listener, None, shown)
    while shown.alive(clock()):
        sleep(every)
        status = read(run) or shown
        _tell(listener, shown, status)
        shown = status
    listener.end()
    return shown.ended or "dead"


def _first(
    run: Run, listener: Listener, every: float, sleep: Callable[[float], None]
) -> Status | None:
    """Wait for a run's status; None if the run is done without one."""
    waits = False
    while (status := read(run)) is None:
        if finished(run):
            return None
        if not waits:
            waits = True
            listener.note(
                f"no job tells of itself in {run.path} yet; waiting until one does, or until the "
                "run is done (Ctrl-C leaves)"
            )
        sleep(every)
    return status


def _tell(listener: Listener, before: Status | None, now: Status) -> None:
    """Tell a listener what has changed between two looks."""
    old = before if before and before.began == now.began else None
    fresh = now.noted - (old.noted if old else 0)
    for text in now.notes[-fresh:] if fresh else []:
        listener.note(text)
    if not now.stage:
        if old and old.stage:
            listener.end()
        return
    if old is None or (old.stage, old.since) != (now.stage, now.since):
        listener.stage(now.stage, now.total, now.first)
        old = None
    step = now.done - (old.done if old else now.first)
    if step or old is None:
        listener.advance(step, **now.figures)


def _finite(value: float | str) -> float | str:
    """Return what any reader of JSON can take: it has no infinity and no NaN."""
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def _runs(process: int) -> bool:
    """Tell whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
