"""What can go wrong while a search runs, through real Ray and the real command line.

The table in docs/clusters.md names the test of each fault; those of worker processes that die, of
evaluations that raise or give NaN, and of lost machines are in test_cluster.py and test_joined.py.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from searching import Toy, evaluate, finish

from mixnas import cluster
from mixnas.asktell import read_trials
from mixnas.cluster import Crew

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets left to the collector, old APIs
]

TESTS = Path(__file__).parent
CLIENT = 20001
"""Where a served cluster listens for Ray's client (as in joined.py)."""
GIB = 1024**3


class Awkward:
    """An evaluator that for some architectures never answers, or wants more memory than it may."""

    def __init__(self, hangs: str, stops: str, swells: str) -> None:
        self.hangs, self.stops, self.swells = hangs, stops, swells

    def __call__(self, arch):
        if arch.id == self.hangs:
            ctypes.PyDLL(None).sleep(10_000)  # inside C, and never letting go of the interpreter
        if arch.id == self.stops:
            os.kill(os.getpid(), signal.SIGSTOP)  # as a process that waits for a dead disk
        if arch.id == self.swells:
            swell()
        return evaluate(arch)


def swell():
    """Want four gigabytes where one more is allowed."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    allowed = psutil.Process().memory_info().vms + GIB
    resource.setrlimit(resource.RLIMIT_AS, (allowed, before[1]))
    try:
        bytearray(4 * GIB)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_hangs_or_wants_too_much_memory_fails_alone_with_its_reason(tmp_path, capfd):
    toy = Toy()
    preview = toy.search(tmp_path / "preview", trials=12, population=6)
    first = [preview.ask().arch.id for _ in range(6)]
    search = toy.search(tmp_path / "log", trials=12, population=6)
    make = partial(Awkward, hangs=first[1], stops=first[3], swells=first[4])
    began = time.monotonic()
    cluster.evaluate(search, make, Crew(2, limit=1.0), batch=1)
    assert time.monotonic() - began < 200  # nobody waited the ten thousand seconds
    assert search.finished
    assert search.complete == 12
    failed = {trial.number: trial.reason for trial in search.trials if trial.state == "failed"}
    late = "no answer within 1 s"
    assert failed == {1: late, 3: late, 4: "MemoryError:"}
    assert read_trials(tmp_path / "log") == search.trials
    assert states(search, sorted(failed)) == {TrialState.FAIL}
    assert capfd.readouterr().err == ""


def states(search, numbers):
    """Return how trials stand in Optuna's study."""
    told = {tuple(t.params.values()): t.state for t in search._sampler._study.trials if t.params}
    return {told[search.trials[number].genes] for number in numbers}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    if os.geteuid() or subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("needs to be allowed to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def served(folder, spill=""):
    """Serve a cluster of one machine; yield its address.

    Where ``spill`` names a folder, its object store is small, and overflows into there.
    """
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        (folder / "cluster").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(TESTS / "joined.py"), str(folder), "serve", str(spill)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        ) as process,
    ):
        try:
            told = next((line for line in process.stdout if line.startswith("{")), None)
            assert told, (folder / "cluster").read_text()[-2000:]
            yield json.loads(told)["address"]
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for each in [process, *family]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def driver(address, log, seconds, carried=0):
    script = [sys.executable, str(TESTS / "driving.py")]
    line = [*script, address, str(log), "40", str(seconds), str(carried)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def await_tells(log, number, process):
    """Wait until a log holds so many outcomes."""
    while not (log.exists() and log.read_bytes().count(b'"tell"') >= number):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def test_a_killed_driver_of_a_joined_cluster_is_repeated_and_loses_nothing(tmp_path):
    log = tmp_path / "log"
    with served(tmp_path) as address:
        with driver(address, log, 0.3) as first:
            await_tells(log, 12, first)
            first.send_signal(signal.SIGSTOP)  # else it might end while the second one starts
            with driver(address, log, 0) as second:  # two drivers on one run
                _, said = second.communicate()
            assert second.returncode == 2
            assert said.startswith("mixnas: search log")
            assert "is in use by another process" in said
            assert said.count("\n") == 1
            first.kill()
        before = read_trials(log)
        with log.open("ab") as torn:
            torn.write(b'{"tell":3,"lo')
        with driver(address, log, 0) as again:
            _, said = again.communicate()
        assert again.returncode == 0, said
    trials = read_trials(log)
    assert trials == finish(Toy().search(tmp_path / "alone", trials=40)).trials
    assert 12 <= sum(trial.state == "complete" for trial in before) < 40
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    tells = [line["tell"] for line in lines if "tell" in line]
    assert sorted(tells) == list(range(len(trials)))


@pytest.mark.drill
def test_a_lost_connection_of_rays_client_is_one_line_and_the_search_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("grpc")
    monkeypatch.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "2")  # seconds; by default thirty
    log = tmp_path / "log"
    with served(tmp_path) as address:
        with driver(f"ray://127.0.0.1:{CLIENT}", log, 0.5) as first:
            await_tells(log, 4, first)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if any("client.server" in word for word in process.cmdline()):
                        process.kill()
            _, said = first.communicate()
        assert first.returncode == 2, said
        # Ray's own threads may end with a word before it.
        (line,) = (line for line in said.splitlines() if line.startswith("mixnas: "))
        assert line.startswith(f"mixnas: the Ray cluster at ray://127.0.0.1:{CLIENT} was lost")
        assert said.endswith(f"{line}\n")
        with driver(address, log, 0) as again:
            _, said = again.communicate()
        assert again.returncode == 0, said
    assert read_trials(log) == finish(Toy().search(tmp_path / "alone", trials=40)).trials


@pytest.mark.drill
def test_a_lost_head_is_one_line_and_the_search_goes_on(tmp_path):
    log = tmp_path / "log"
    with served(tmp_path) as address, driver(address, log, 0.5) as first:
        await_tells(log, 4, first)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "gcs_server" in process.name():
                    process.kill()
        _, said = first.communicate()
        assert first.returncode == 2, said
        assert said.startswith(f"mixnas: the Ray cluster at {address} was lost: its head")
        assert said.count("\n") == 1
    kept = read_trials(log)
    assert sum(trial.state == "complete" for trial in kept) >= 4
    with served(tmp_path) as address, driver(address, log, 0) as again:
        _, said = again.communicate()
        assert again.returncode == 0, said
    assert read_trials(log) == finish(Toy().search(tmp_path / "alone", trials=40)).trials


@pytest.mark.drill
def test_a_full_object_store_is_one_line_and_the_same_search_goes_on(tmp_path, small_disk):
    log = tmp_path / "log"
    with served(tmp_path, small_disk) as address:
        with driver(address, log, 0, carried=200) as full:  # megabytes; there is room for 144
            _, said = full.communicate()
        assert full.returncode == 2, said
        assert said.startswith(f"mixnas: Ray's object store of the cluster at {address} is full")
        assert said.count("\n") == 1
        assert not any(trial.score for trial in read_trials(log))
        with driver(address, log, 0, carried=20) as again:
            _, said = again.communicate()
        assert again.returncode == 0, said
    assert read_trials(log) == finish(Toy().search(tmp_path / "alone", trials=40)).trials


WORDS = ["search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "1", "--trials", "60"]


def command(disk, *, workers=1):
    words = [*WORDS, "--workers", str(workers), "--name", "run", "--runs", str(disk), "--quiet"]
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", *words]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


@pytest.mark.drill
def test_a_disk_that_fills_and_a_second_driver_and_a_torn_line(small_disk):
    """The driver is held still meanwhile; a log takes a page's rest before its disk is full."""
    log = small_disk / "run" / "log.jsonl"
    with command(small_disk) as first:
        await_tells(log, 1, first)
        first.send_signal(signal.SIGSTOP)
        with command(small_disk) as second:
            _, said = second.communicate()
        assert (second.returncode, said.count("\n")) == (2, 1)
        assert "in use by another process" in said
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                continue
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate()
    assert (first.returncode, said.count("\n")) == (2, 1), said
    assert "cannot be written (No space left on device)" in said
    assert "repeat the same command" in said
    whole = log.read_bytes()
    assert whole.endswith(b"\n")
    filler.unlink()
    log.write_bytes(whole + b'{"tell":1,"lo')
    with command(small_disk, workers=2) as again:
        _, said = again.communicate()
    assert again.returncode == 0, said
    assert log.read_bytes().startswith(whole)
    trials = read_trials(log)
    assert sum(trial.state == "complete" for trial in trials) == 60
    tells = [json.loads(line).get("tell") for line in log.read_text().splitlines()]
    assert sorted(tell for tell in tells if tell is not None) == list(range(len(trials)))
