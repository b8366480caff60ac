"""Two hosts: a search on a Ray cluster over a network, one of whose machines vanishes.

The hosts are network namespaces, joined by a cable (a veth pair); each has an address, a loopback
and a folder for Ray of its own, and they share nothing that Ray is told of but the cable.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mixnas.asktell import read_trials

pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

HEALTH = {  # a machine that is silent for three seconds is lost: by default it takes a minute
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
PYTHON = [sys.executable, "-c"]
RAY = [*PYTHON, "from ray.scripts.scripts import main; main()"]
MIXNAS = [*PYTHON, "from mixnas.cli import main; main()"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A machine with one end of the cable: a network namespace."""

    name: str
    address: str
    disk: Path
    shared: Path  # where its own disk is mounted; the same path on each host
    token: str

    def run(self, *words: str) -> subprocess.Popen:
        """Run a command on it."""
        mounted = 'mount --bind "$0" "$1" && shift && exec "$@"'
        line = ["ip", "netns", "exec", self.name, "sh", "-c", mounted, self.disk, self.shared]
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **HEALTH}
        return subprocess.Popen(
            [*line, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **environment,
                "OMP_NUM_THREADS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )

    def start(self, *words: str) -> None:
        """Start Ray on it."""
        with self.run(
            *RAY, "start", f"--node-ip-address={self.address}", "--num-cpus=1", *words
        ) as ray:
            # Not to the end of the pipe: Ray's own processes keep it open.
            assert ray.wait(120) == 0, os.read(ray.stderr.fileno(), 4000)

    def processes(self) -> list[psutil.Process]:
        """Return what runs on it."""
        told = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        found = []
        for pid in told.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def workers(self) -> list[psutil.Process]:
        """Return the workers of a search on it."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if any(word.startswith("ray::_Worker") for word in process.cmdline()):
                    found.append(process)
        return found

    @contextmanager
    def still(self) -> Iterator[None]:
        """Hold its workers still for a while."""
        held = self.workers()
        for process in held:
            process.suspend()
        try:
            yield
        finally:
            for process in held:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def end(self) -> None:
        """End whatever runs on it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts with a cable between them; remove them with all that runs there."""
    mark, token = secrets.token_hex(2), secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="mxh-", dir="/tmp"))  # Ray's socket names are long
    made = []
    try:
        for number in (1, 2):
            disk, shared = folder / str(number), folder / "ray"
            disk.mkdir()
            shared.mkdir(exist_ok=True)
            host = Host(f"mx{mark}{number}", f"10.77.0.{number}", disk, shared, token)
            ip("netns", "add", host.name)
            made.append(host)
        one, two = made
        ends = ["cable", "netns", one.name, "type", "veth", "peer", "cable", "netns", two.name]
        ip("link", "add", *ends)
        for host in made:
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            ip("-n", host.name, "link", "set", "cable", "up")
        yield one, two
    finally:
        for host in made:
            host.end()
            subprocess.run(["ip", "netns", "del", host.name], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_hosts():
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and ip: hosts are network namespaces")
    try:
        with hosts() as made:
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr!r}")


WORDS = ["search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "1", "--trials", "150"]


def test_two_hosts_search_together_and_one_that_vanishes_takes_no_trial_with_it(
    two_hosts, tmp_path
):
    head, other = two_hosts
    head.start("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={head.shared}")
    other.start(f"--address={head.address}:6379")
    log = tmp_path / "runs" / "run" / "log.jsonl"
    place = ["--name", "run", "--runs", str(log.parent.parent), "--address", f"{head.address}:6379"]
    with head.run(*MIXNAS, *WORDS, *place) as driver:
        await_work(other, head, log, driver)  # of one, while the other is held still
        await_work(head, other, log, driver)
        before = tells(log)
        ip("-n", other.name, "link", "set", "cable", "down")  # as if its power had failed
        other.end()
        out, err = driver.communicate()
    assert driver.returncode == 0, err
    assert before < 150
    assert "joined a cluster of 2 nodes, 2 CPUs" in out + err
    trials = read_trials(log)
    assert sum(trial.state == "complete" for trial in trials) == 150
    told = [json.loads(line).get("tell") for line in log.read_text().splitlines()]
    assert sorted(tell for tell in told if tell is not None) == list(range(len(trials)))


def await_work(host: Host, held: Host, log: Path, driver: subprocess.Popen) -> None:
    """Wait until a host has evaluated something while the other one is held still."""
    while True:
        assert driver.poll() is None, driver.communicate()
        if not (host.workers() and held.workers()):
            time.sleep(0.02)
            continue
        with held.still():
            time.sleep(0.3)  # what was on its way has arrived
            before, until = tells(log), time.monotonic() + 3
            while time.monotonic() < until:
                if tells(log) > before:
                    return
                time.sleep(0.02)


def tells(log: Path) -> int:
    """Return how many outcomes a log holds."""
    return log.read_bytes().count(b'"tell"') if log.exists() else 0
