"""The head of a joined cluster: whether it still answers."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mixnas.errors import EvaluationFailed

EVERY = 3.0
"""Seconds between two knocks at the head's door, and that one may take."""
PATIENCE = 30.0
"""Seconds of silence after which a head is lost; after 60, Ray itself would end this process."""
RELUCTANCE = 15.0
"""Seconds that the main thread gets to end by itself. Some of Ray's calls cannot be interrupted."""
SIGNAL = signal.SIGUSR2
"""What the watch rouses the main thread by."""


class _Lost(BaseException):
    """The head is lost: as little to be caught on the way as Ctrl-C."""


@contextmanager
def watched(address: str, head: str) -> Iterator[None]:
    """End what goes on in one line if the cluster's head is silent for long.

    A call of Ray's that cannot be interrupted would last until Ray ends this process; if it does
    not return soon, the process is ended here, after the same line, with exit code 2. Only in the
    main thread; in any other, Ray itself ends the process, in a line of its own.

    Args:
        address: of the cluster, as it was given.
        head: host and port at which the head listens.

    Raises:
        EvaluationFailed: if the head does not answer any more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def rouse(number: int, frame: FrameType | None) -> None:
        if not over.is_set():
            raise _Lost

    said = (
        f"the Ray cluster at {address} was lost: its head, {head}, has not answered for "
        f"{PATIENCE:.0f} s; everything done before is kept: see that it runs (ray status), "
        "then repeat the same command and it goes on"
    )
    before = signal.signal(SIGNAL, rouse)
    watch = threading.Thread(
        target=_watch, args=(head, over, said), daemon=True, name="mixnas-head"
    )
    watch.start()
    try:
        yield
    except _Lost:
        raise EvaluationFailed(said) from None
    finally:
        over.set()
        watch.join()
        signal.signal(SIGNAL, before)


def _watch(head: str, over: threading.Event, said: str) -> None:
    """Knock until it is over, or the head has been silent for too long: then end what goes on."""
    heard = time.monotonic()
    while not over.wait(EVERY):
        if answers(head):
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)  # whatever it waits for
            if not over.wait(RELUCTANCE):
                shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar hides it
                sys.stderr.write(f"{shown}mixnas: {said}\n")
                sys.stderr.flush()
                os._exit(2)
            return


def answers(head: str) -> bool:
    """Say whether somebody listens at a host and port."""
    host, _, port = head.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), EVERY):
        return True
    return False
