"""A search through real Ray Tune: the same trials for any number of workers, and a clean end."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
from searching import Toy, evaluate, finish, make_evaluator

from mixnas import cluster
from mixnas.asktell import read_trials
from mixnas.errors import EvaluationFailed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets left to the collector, old APIs
]


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    scratch = set(Path(tempfile.gettempdir()).glob("mixnas-*"))
    home = set(Path.home().iterdir())
    environment = dict(os.environ)
    level = logging.getLogger("ray").level
    handler = signal.getsignal(signal.SIGTERM)
    yield
    assert set(Path(tempfile.gettempdir()).glob("mixnas-*")) <= scratch
    assert {path for path in Path.home().iterdir() if "ray" in path.name} <= home
    assert [child.name() for child in psutil.Process().children(recursive=True)] == []
    changed = {k for k in {*os.environ, *environment} if os.environ.get(k) != environment.get(k)}
    assert changed <= {"PYTEST_CURRENT_TEST"}
    assert logging.getLogger("ray").level == level
    assert signal.getsignal(signal.SIGTERM) == handler


class Sometimes:
    """An evaluator with three bad architectures: one raises, one kills its process, one is NaN."""

    def __init__(self, raises: str, kills: str, nan: str) -> None:
        self.raises, self.kills, self.nan = raises, kills, nan

    def __call__(self, arch):
        if arch.id == self.raises:
            raise RuntimeError("mat1 and mat2\nshapes cannot be multiplied")
        if arch.id == self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        score = evaluate(arch)
        return type(score)(score.accuracy, float("nan"), 1) if arch.id == self.nan else score


def test_workers_do_not_change_the_trials(toy, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # joined, this would hang or fail
    alone = finish(toy.search(tmp_path / "alone", trials=75, population=20))
    search = toy.search(tmp_path / "log", trials=75, population=20)
    seen = []
    cluster.evaluate(search, make_evaluator, workers=2, batch=5, progress=seen.append)
    assert search.finished
    assert search.trials == alone.trials == read_trials(tmp_path / "log")
    assert sorted(trial.number for trial in seen) == list(range(75))
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_bad_architectures_fail_alone(toy, tmp_path):
    preview = toy.search(tmp_path / "preview", trials=30, population=10)
    first = [preview.ask().arch.id for _ in range(10)]
    search = toy.search(tmp_path / "log", trials=30, population=10)
    make = partial(Sometimes, raises=first[1], kills=first[3], nan=first[6])
    cluster.evaluate(search, make, workers=1, batch=5)
    assert search.complete == 30
    failed = {trial.number: trial.reason for trial in search.trials if trial.state == "failed"}
    assert failed == {
        1: "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        3: "the worker process died, 3 times (out of memory?)",
        6: "non-finite loss",
    }


def test_an_evaluator_that_cannot_be_built(toy, tmp_path):
    search = toy.search(tmp_path / "log", trials=30)
    with pytest.raises(EvaluationFailed, match="could not be built: ValueError: no weights here"):
        cluster.evaluate(search, _no_weights, workers=1)
    assert not any(trial.score for trial in search.trials)


def _no_weights():
    raise ValueError("no weights here")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_goes_on_and_ends_as_if_undisturbed(toy, tmp_path, how):
    log = tmp_path / "log"
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from functools import partial
from pathlib import Path
from searching import Toy, make_evaluator
from mixnas import cluster
cluster.evaluate(Toy().search(Path({str(log)!r}), trials=60),
                 partial(make_evaluator, 0.3), workers=2, batch=3)
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and sum(t.state == "complete" for t in read_trials(log)) > 13):
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        process.wait(30)
    heavy = [child for child in family if not _is_agent(child)]
    _, alive = psutil.wait_procs(heavy, timeout=20)
    assert not alive
    search = toy.search(log, trials=60)
    assert 13 < search.complete < 60
    finish(search)
    assert search.trials == finish(toy.search(tmp_path / "alone", trials=60)).trials
    assert set(Counter(trial.arch.id for trial in search.trials).values()) == {1}
    for child in family:  # Ray's two agents take up to a minute to see that their driver is dead
        if child.is_running():
            child.kill()
    with cluster.scratch():
        pass  # sweeps away what the killed driver left


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join([process.name(), *process.cmdline()]).lower()
    except psutil.NoSuchProcess:
        return False
