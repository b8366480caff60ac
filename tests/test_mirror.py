"""A search shown in an Optuna storage: live, each trial once, and never in the search's way."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from searched_run import problem
from searching import SPACE, Toy, evaluate, finish

from mixnas.asktell import Mirror, begin_study, check_storage, identity, mirror
from mixnas.cli import main
from mixnas.errors import InvalidOption
from mixnas.evaluate import Failure, Score
from mixnas.jobs.stages import begin_storage

TOLD = identity({"seed": 3})


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(params=["sqlite", "journal"])
def address(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return str(tmp_path / "study.journal")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "AGAIN", 0.05)
    monkeypatch.setattr(mirror, "PATIENCE", 3.0)


def shown(search, address, notes=None, name="toy"):
    """Have a search shown; returns what ends that."""
    note = (notes if notes is not None else []).append
    search.watch = (live := Mirror(address, name, TOLD, SPACE, search.trials, note)).show
    return closing(live)


def trials(address, name="toy"):
    if "://" in address:
        storage = RDBStorage(address)
    else:
        storage = JournalStorage(JournalFileBackend(address))
    try:
        return storage.get_all_trials(storage.get_study_id_from_name(name))
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def until(ready):
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_search_is_shown_as_it_goes(toy, tmp_path, address):
    begin_study(address, "toy", TOLD)
    search = toy.search(tmp_path / "log", trials=8, population=4)
    with shown(search, address):
        one, two, three = search.ask(), search.ask(), search.ask()
        until(lambda: [each.state.name for each in trials(address)] == ["RUNNING"] * 3)
        search.tell(two.number, Failure("it broke"))
        search.tell(one.number, evaluate(one.arch))
        search.tell(three.number, Score(0.5, 0.9, 40, 0.1, beaten_by="other"))
        states = ["COMPLETE", "FAIL", "PRUNED"]
        until(lambda: [each.state.name for each in trials(address)] == states)
        finish(search)
    first, second, third, *rest = trials(address)
    assert first.params == SPACE.genotype(one.arch)
    assert first.values == [evaluate(one.arch).loss, float(toy.table(one.arch))]
    assert first.user_attrs["id"] == one.arch.id
    assert first.user_attrs["flops"] == toy.table(one.arch)
    assert second.user_attrs["reason"] == "it broke"
    assert third.user_attrs["beaten_by"] == "other"
    assert {each.state.name for each in rest} == {"COMPLETE"}
    assert [each.number for each in trials(address)] == [each.number for each in search.trials]


def test_gone_on_with_each_trial_is_there_once(toy, tmp_path, address):
    log = tmp_path / "log"
    search = toy.search(log, trials=8, population=4)
    with shown(search, address):
        for _ in range(2):
            candidate = search.ask()
            search.tell(candidate.number, evaluate(candidate.arch))
        search.ask()  # under way when the process is killed
    unseen = search.ask()  # the log has them, the storage has not heard
    search.watch = None
    search.tell(unseen.number, evaluate(unseen.arch))
    search.close()
    again = toy.search(log, trials=8, population=4)
    with shown(again, address):
        finish(again)
    again.close()
    with shown(again, address):
        pass  # the same command once more
    found = trials(address)
    assert [each.user_attrs["trial"] for each in found] == list(range(8))
    assert Counter(each.state.name for each in found) == {"COMPLETE": 8}
    assert [each.user_attrs["id"] for each in found] == [each.arch.id for each in again.trials]


def test_a_storage_that_fails_is_told_of_once_and_ends_nothing(toy, tmp_path):
    file, notes = tmp_path / "study.db", []
    search = toy.search(tmp_path / "log", trials=8, population=4)
    begin_study(f"sqlite:///{file}", "toy", TOLD)
    with shown(search, f"sqlite:///{file}", notes):
        one = search.ask()
        until(lambda: len(trials(f"sqlite:///{file}")) == 1)
        with closing(sqlite3.connect(file)) as database:
            database.execute("ALTER TABLE trials RENAME TO gone")
        search.tell(one.number, evaluate(one.arch))
        finish(search)
    assert search.finished
    assert len(notes) == 1
    assert "no such table" in notes[0]
    assert "\n" not in notes[0]
    file.unlink()
    with shown(search, f"sqlite:///{file}", notes):
        pass
    assert len(trials(f"sqlite:///{file}")) == 8
    assert len(notes) == 1


def test_a_storage_that_comes_back_is_caught_up_with(toy, tmp_path):
    folder, notes = tmp_path / "later", []
    search = toy.search(tmp_path / "log", trials=8, population=4)
    with shown(search, str(folder / "journal"), notes):
        finish(search)
        time.sleep(0.2)
        folder.mkdir()
        until(lambda: (folder / "journal").is_file() and len(trials(str(folder / "journal"))) == 8)
    assert len(notes) == 1


def test_a_storage_that_never_answers_is_not_waited_for(toy, tmp_path, monkeypatch):
    stuck, notes = threading.Event(), []
    monkeypatch.setattr(mirror, "PATIENCE", 0.1)
    monkeypatch.setattr(mirror, "_opened", lambda address: stuck.wait(20))
    search = toy.search(tmp_path / "log", trials=4)
    with shown(search, "sqlite:///any.db", notes):
        finish(search)
    stuck.set()
    assert "no answer" in notes[0]


def test_a_study_of_another_search_is_refused(address):
    begin_study(address, "toy", TOLD)
    begin_study(address, "toy", TOLD)
    with pytest.raises(InvalidOption, match="study 'toy' is of another search; give another --sto"):
        begin_study(address, "toy", identity({"seed": 4}))
    begin_study(address, "other", identity({"seed": 4}))


def test_a_study_is_the_searchs_however_its_budget_is_written(tmp_path):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    for budget in ("8MFLOPs", "0.008GFLOPs"):
        begin_storage(replace(problem(tmp_path, budget), storage=address))
    with pytest.raises(InvalidOption, match="--name"):
        begin_storage(replace(problem(tmp_path, "9MFLOPs"), storage=address))


def test_a_study_made_by_hand_is_not_written_into(tmp_path):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=address, study_name="toy")
    with pytest.raises(InvalidOption, match="another search"):
        begin_study(address, "toy", TOLD)
    study._storage._backend.engine.dispose()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "it is empty"),
        ("nosuch://host/name", "NoSuchModuleError"),
        ("study.db", "write sqlite:///study.db"),
        ("://", "cannot be used"),
    ],
)
def test_what_is_no_address_is_one_line(address, said):
    with pytest.raises(InvalidOption) as caught:
        check_storage(address)
    assert said in str(caught.value)
    assert "sqlite:///" in str(caught.value)


@pytest.mark.parametrize("address", ["sqlite:////no/such/folder/study.db", "/no/such/folder/one"])
def test_what_cannot_be_opened_is_one_line(address):
    with pytest.raises(InvalidOption, match="cannot be used"):
        begin_study(address, "toy", TOLD)


@pytest.mark.parametrize("content", ["no journal\n", "\x89PNG\n\x00", '{"ask": 1}\n', "7"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(InvalidOption, match="cannot be used"):
        begin_study(str(file), "toy", TOLD)
    assert file.read_text() == content


def test_no_password_is_said():
    said = mirror.masked("cannot reach postgresql://me:p@ss:w/rd@host/db?sslpassword=abc&x=1 now")
    assert said == "cannot reach postgresql://me:***@host/db?sslpassword=***&x=1 now"
    with pytest.raises(InvalidOption) as caught:
        check_storage("nosuch://me:secret@host/name")
    assert "secret" not in str(caught.value)


WORDS = [
    "search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "1", "--trials", "24",
    "--workers", "1", "--name", "run", "--storage",
]  # fmt: skip


def command(*words):
    return [sys.executable, "-c", "from mixnas.cli import main; main()", *words]


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_real_search_is_shown_live_and_after_a_kill_each_trial_is_there_once(tmp_path):
    words = command(*WORDS, "sqlite:///study.db", "--quiet")
    address, log = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "runs" / "run" / "log.jsonl"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as job:
        end = time.monotonic() + 200
        while not (log.is_file() and trials(address, "run")) and time.monotonic() < end:
            assert job.poll() is None
            time.sleep(0.05)
        assert not (log.parent / "best.json").exists()
        for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
            process.send_signal(signal.SIGKILL)
    again = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
    )
    assert again.returncode == 0, again.stderr
    found = trials(address, "run")
    assert [each.user_attrs["trial"] for each in found] == list(range(len(found)))
    assert log.read_text().count('"tell"') == len(found) == 24
    assert {each.state.name for each in found} <= {"COMPLETE", "PRUNED"}
    settings = (log.parent / "run.json").read_text()
    assert "storage" not in settings
    assert "study.db" not in settings


@pytest.mark.parametrize(
    "address", ["nosuch://me:secret@host/name", "sqlite:////no/such/folder/study.db", "study.db"]
)
def test_a_bad_address_is_one_line_before_anything_long(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*WORDS, address, "--quiet"])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.count("\n") == 1
    assert said.startswith("mixnas: --storage ")
    assert "secret" not in said
    assert not list(tmp_path.iterdir())
