"""Ray, for real: a search's trials are the same for any number of workers; tasks; a clean end."""

import errno
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
import torch
from raced import Judge, raced
from searching import Toy, evaluate, finish, make_evaluator

from mixnas import cluster
from mixnas.asktell import read_trials
from mixnas.cluster import Crew, local
from mixnas.errors import EvaluationFailed, InvalidOption
from mixnas.evaluate import Failure

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
    before = set(psutil.Process().children(recursive=True))  # other tests' server of workers, say
    home = set(Path.home().iterdir())
    environment = dict(os.environ)
    level = logging.getLogger("ray").level
    handler = signal.getsignal(signal.SIGTERM)
    yield
    assert set(Path(tempfile.gettempdir()).glob("mixnas-*")) <= scratch
    assert {path for path in Path.home().iterdir() if "ray" in path.name} <= home
    left = set(psutil.Process().children(recursive=True)) - before
    assert [child.name() for child in left] == []
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


def test_a_scratch_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    foreign = tmp_path / "mixnas-theirs" / "lock"
    foreign.parent.mkdir()
    foreign.touch()
    opened = os.open

    def refuse(path, *arguments, **options):  # as the system would, were we not root
        if path == foreign:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(local, "SOCKET_ROOM", 1000)
    with cluster.scratch() as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.rglob("lock")) == [foreign]


def test_workers_do_not_change_the_trials(toy, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # joined, this would hang or fail
    alone = finish(toy.search(tmp_path / "alone", trials=75, population=20))
    search = toy.search(tmp_path / "log", trials=75, population=20)
    seen = []
    cluster.evaluate(search, make_evaluator, Crew(2), batch=5, progress=seen.append)
    assert search.finished
    assert search.trials == alone.trials == read_trials(tmp_path / "log")
    assert sorted(trial.number for trial in seen) == list(range(75))
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_a_race_is_the_same_for_any_number_of_workers(toy, tmp_path):
    alone = raced(toy.search(tmp_path / "alone", racing=0.01, population=20))
    search = toy.search(tmp_path / "log", racing=0.01, population=20)
    assert cluster.evaluate(search, Judge, Crew(2), batch=3) == {}  # it judges nothing again
    assert search.trials == alone.trials == read_trials(tmp_path / "log")
    assert sum(trial.score.beaten_by is not None for trial in search.trials) > 5


def test_bad_architectures_fail_alone(toy, tmp_path, capfd):
    preview = toy.search(tmp_path / "preview", trials=30, population=10)
    first = [preview.ask().arch.id for _ in range(10)]
    search = toy.search(tmp_path / "log", trials=30, population=10)
    make = partial(Sometimes, raises=first[1], kills=first[3], nan=first[6])
    cluster.evaluate(search, make, Crew(1), batch=5)
    assert search.complete == 30
    failed = {trial.number: trial.reason for trial in search.trials if trial.state == "failed"}
    assert failed == {
        1: "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        3: "the worker process died, 3 times (out of memory?)",
        6: "non-finite loss",
    }
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_an_evaluator_that_cannot_be_built(toy, tmp_path):
    search = toy.search(tmp_path / "log", trials=30)
    with pytest.raises(EvaluationFailed, match="could not be built: ValueError: no weights here"):
        cluster.evaluate(search, _no_weights, Crew(1))
    assert not any(trial.score for trial in search.trials)


def _no_weights():
    raise ValueError("no weights here")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_goes_on_and_ends_as_if_undisturbed(toy, tmp_path, how):
    log = tmp_path / "log"
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits deafness
sys.path.insert(0, {str(Path(__file__).parent)!r})
from functools import partial
from pathlib import Path
from searching import Toy, make_evaluator
from mixnas import cluster
cluster.evaluate(Toy().search(Path({str(log)!r}), trials=60),
                 partial(make_evaluator, 0.3), cluster.Crew(2), batch=3)
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and sum(t.state == "complete" for t in read_trials(log)) > 13):
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        try:
            process.wait(30)
        finally:
            process.kill()
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


def _heard_by(processes: list[psutil.Process]) -> set[str]:
    """Return the addresses on which processes listen."""
    sockets = [c for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"]
    return {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets}


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join([process.name(), *process.cmdline()]).lower()
    except psutil.NoSuchProcess:
        return False


def perform(task, greeting="hello"):
    """A task for `each`: does what it says."""
    while "until" in task and not Path(task["until"]).exists():
        time.sleep(0.01)
    if task.get("raises"):
        raise ValueError("no such\nnetwork")
    if task.get("kills"):
        with Path(task["kills"]).open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"greeting": greeting, "name": task["name"], "threads": torch.get_num_threads()}


def meet(task):
    """Wait until another process is at work too; return both processes' numbers."""
    folder = Path(task)
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return sorted(path.name for path in folder.iterdir()), torch.get_num_threads()


def test_tasks_come_back_as_they_finish_and_bad_ones_fail_alone(tmp_path, capfd):
    tasks = [
        {"name": "slow", "until": str(tmp_path / "last")},
        {"name": "quick"},
        {"name": "wrong", "raises": True},
        {"name": "deadly", "kills": str(tmp_path / "deaths")},
        {"name": "last"},
    ]
    results = []
    for index, result in cluster.each(partial(perform, greeting="hi"), tasks, Crew(2)):
        results.append((index, result))
        if index == 4:
            (tmp_path / "last").touch()
    order = [index for index, _ in results]
    assert order[0] == 1
    assert order.index(0) > order.index(4)
    assert sorted(order) == list(range(5))
    found = dict(results)
    assert [found[i]["name"] for i in (0, 1, 4)] == ["slow", "quick", "last"]
    assert all(found[i]["greeting"] == "hi" for i in (0, 1, 4))
    assert all(found[i]["threads"] == 1 for i in (0, 1, 4))
    assert found[2] == Failure("ValueError: no such network")
    assert found[3] == Failure("the worker process died, 3 times (out of memory?)")
    assert (tmp_path / "deaths").read_text() == "xxx"
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_workers_work_at_once_with_the_threads_they_are_given(tmp_path):
    answers = cluster.each(meet, [str(tmp_path)] * 2, Crew(2, cpus=2))
    (_, first), (_, second) = answers
    assert first == second
    assert len(first[0]) == 2
    assert str(os.getpid()) not in first[0]
    assert first[1] == 2


def test_tasks_closed_early_leave_nothing_and_a_search_can_follow(toy, tmp_path):
    tasks = [
        {"name": "quick"},
        *({"name": "long", "until": str(tmp_path / "never")} for _ in range(3)),
    ]
    others = set(psutil.Process().children(recursive=True))
    answers = cluster.each(perform, tasks, Crew(2))
    assert next(answers)[0] == 0
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert _heard_by(family) == {"127.0.0.1"}  # nobody else on the network can reach it
    answers.close()
    assert set(psutil.Process().children(recursive=True)) <= others
    assert list(cluster.each(perform, [], Crew(2))) == []
    search = toy.search(tmp_path / "log", trials=10, population=5)
    cluster.evaluate(search, make_evaluator, Crew(1), batch=5)
    assert search.finished


def test_tasks_end_at_an_interrupt(tmp_path):
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits deafness
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from mixnas import cluster
from test_cluster import perform
tasks = [{{"name": "quick"}}, *({{"name": "long", "until": "/never"}} for _ in range(3))]
for index, _ in cluster.each(perform, tasks, cluster.Crew(2)):
    Path({str(tmp_path / "ready")!r}).touch()
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) != 0
        finally:
            process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_tasks_need_workers_and_no_more_gpus_than_there_are():
    with pytest.raises(InvalidOption, match="workers=0 is not allowed"):
        Crew(0)
    with pytest.raises(InvalidOption, match="gpus=99 for each worker, but there are"):
        next(cluster.each(perform, [{"name": "one"}], Crew(1, gpus=99)))
