"""Ctrl-C and SIGTERM between two steps: what is half done is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether someone asked the process to stop, and by which signal."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def check(self) -> None:
        """Stop now, if asked to.

        Raises:
            KeyboardInterrupt: if the process was asked to stop.
        """
        if self.asked is not None:
            raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of acting on them; a second one acts at once.

    A step that is broken off in its middle leaves weights that belong to no step. Schedulers of
    clusters send SIGTERM before they take a machine away.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.asked is not None:
            raise KeyboardInterrupt
        stop.asked = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
