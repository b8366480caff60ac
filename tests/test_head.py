"""The watch over a cluster's head: it ends what waits when the head is silent, and only then."""

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from mixnas.cluster import head
from mixnas.errors import EvaluationFailed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(head, "EVERY", 0.02)
    monkeypatch.setattr(head, "PATIENCE", 0.3)


def listening(port=0):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen(64)
    return server, f"127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_head_ends_what_waits_in_one_line():
    server, address = listening()
    before = signal.getsignal(head.SIGNAL)
    began = time.monotonic()

    def wait():
        server.close()
        time.sleep(60)

    with (
        pytest.raises(EvaluationFailed, match="was lost: its head") as caught,
        head.watched("auto", address),
    ):
        wait()
    assert time.monotonic() - began < 30
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert signal.getsignal(head.SIGNAL) == before


def test_what_catches_every_error_does_not_catch_it():
    def stubborn():
        while True:
            with suppress(Exception):
                time.sleep(60)

    with pytest.raises(EvaluationFailed), head.watched("auto", "127.0.0.1:1"):
        stubborn()


DEAF = """
import signal, time
from mixnas.cluster import head
head.EVERY, head.PATIENCE, head.RELUCTANCE = 0.02, 0.3, 0.3
signal.pthread_sigmask(signal.SIG_BLOCK, [head.SIGNAL])  # as inside a call that never looks up
with head.watched("auto", "127.0.0.1:1"):
    time.sleep(60)
"""


def test_a_call_that_cannot_be_interrupted_ends_with_the_process_in_the_same_line():
    done = subprocess.run(
        [sys.executable, "-c", DEAF], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mixnas: the Ray cluster at auto was lost: its head, 127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_a_head_that_answers_again_in_time_is_not_missed():
    server, address = listening()
    with head.watched("auto", address):
        time.sleep(0.1)
        server.close()
        time.sleep(0.1)
        server, again = listening(int(address.rpartition(":")[2]))
        assert again == address
        time.sleep(0.6)
    server.close()
    time.sleep(0.5)  # and after the end nobody knocks, or is roused


def test_an_error_of_its_own_passes_and_other_threads_are_left_alone():
    with pytest.raises(ZeroDivisionError), head.watched("auto", "127.0.0.1:1"):
        raise ZeroDivisionError
    done = []

    def elsewhere():
        with head.watched("auto", "127.0.0.1:1"):
            time.sleep(0.5)
        done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done
