"""Curves for TensorBoard, if one asks for them: event files, which nothing here serves or reads."""

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from mixnas.errors import InvalidOption
from mixnas.jobs.settings import Listener

FOLDER = "tensorboard"
DRAWN = {"training": ("loss", "accuracy"), "search": ("best_loss", "loss")}
"""Stages that are drawn, and which of their figures."""
EVERY = 5.0
"""Seconds between two flushes, at least."""


class Curves(Protocol):
    """Takes figures, step by step."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take a figure."""

    def close(self) -> None:
        """Write what is left."""


def curves(folder: Path, begin: int = 0) -> Curves:
    """Return a writer of event files in a folder.

    Args:
        folder: made if it is not there.
        begin: the step that comes next: what an earlier sitting drew from there on is hidden.

    Raises:
        InvalidOption: if the package that writes them is not installed.
    """
    check_curves()
    return _Events(folder, begin)


def check_curves() -> None:
    """Refuse curves where the package that writes them is not installed.

    Raises:
        InvalidOption: names it.
    """
    try:
        import tensorboardX.event_file_writer  # noqa: F401
    except ImportError:
        raise InvalidOption(
            "--tensorboard needs a package that is missing: pip install tensorboardX"
        ) from None


def viewing(folder: Path) -> str:
    """Return the line that tells how to look at a folder's curves, on this machine only."""
    command = shlex.join(["tensorboard", "--logdir", str(folder), "--host", "127.0.0.1"])
    return f"curves for TensorBoard; to look at them: {command}"


class _Events:
    """Writes an event file, in this thread; what cannot be written is left: it is worth no job."""

    def __init__(self, folder: Path, begin: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._writer = Event, None
        self._flushed = time.monotonic()
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # The file's own name tells seconds only: two sittings in one second are two files.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
            begun = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=begin, session_log=begun))

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write a figure."""
        from tensorboardX.summary import scalar

        summary = scalar(tag, float(scalar_value))
        self._write(self._event(wall_time=time.time(), step=global_step, summary=summary))

    def close(self) -> None:
        """Write what is left; nothing can be added any more."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(event)
            if time.monotonic() - self._flushed > EVERY:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError:
            self.close()


class Drawing:
    """A listener that hands everything on, and draws training and search for TensorBoard.

    Each stage has a folder of its own, so that one that goes on hides only its own later steps.

    Args:
        listener: who is told besides.
        folder: of the curves.
    """

    def __init__(self, listener: Listener, folder: Path) -> None:
        self._listener, self._folder = listener, folder
        self._stage, self._done = "", 0
        self._curves: Curves | None = None

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Hand the plan on."""
        self._listener.plan(plan)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Begin the curves of a stage."""
        self._listener.stage(name, total, done)
        self.close()
        self._stage, self._done = name, done
        if name in DRAWN:
            self._curves = curves(self._folder / name, done + 1)

    def advance(self, by: int, **figures: float | str) -> None:
        """Draw the figures of a step."""
        self._listener.advance(by, **figures)
        self._done += by
        if self._curves is None:
            return
        for name in DRAWN[self._stage]:
            value = figures.get(name)
            if isinstance(value, int | float):
                self._curves.add_scalar(f"{self._stage}/{name}", value, self._done)

    def note(self, text: str) -> None:
        """Hand a line on."""
        self._listener.note(text)

    def end(self) -> None:
        """End the curves of a stage."""
        self._listener.end()
        self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None


@contextmanager
def drawn(listener: Listener, folder: Path, *, wanted: bool) -> Iterator[Listener]:
    """Draw what is done within, if wanted, in the folder ``tensorboard`` of a run's folder."""
    if not wanted:
        yield listener
        return
    drawing = Drawing(listener, folder / FOLDER)
    try:
        yield drawing
    finally:
        drawing.close()
