"""Runs at an address: what is there can always be gone on with, by one process at a time."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from mixnas import remote
from mixnas.errors import InvalidOption, RemoteFailed, RunConflict
from mixnas.remote import HEAD, MARKER, Keeping, Mirror, is_address, placed, rooted
from mixnas.run import Run


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "SETTLE", 0.0)
    monkeypatch.setattr(remote, "EVERY", 0.05)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    there = fsspec.filesystem("memory")
    there.store.clear()
    there.pseudo_dirs[:] = [""]
    yield
    there.store.clear()


def content(path="memory://runs/one"):
    there, where = fsspec.core.url_to_fs(path)
    begin = len(where) + 1
    return {name[begin:]: there.cat_file(name) for name in there.find(where)}


def another_machine(monkeypatch, tmp_path, name="elsewhere"):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def killed(monkeypatch, run):
    """End the work on a run as a kill does: nothing more is uploaded, nothing given back."""
    run._keeping._rest()
    run._keeping._hush()
    run._keeping = None
    run.close()
    monkeypatch.setattr(remote, "_lives", lambda process: False)


def aside(run):
    return list(run.path.parent.glob(f".{run.name}.before-*"))


def test_what_is_an_address():
    assert is_address("s3://bucket/runs")
    assert is_address("memory://runs")
    assert not is_address("runs")
    assert not is_address("/data/runs")
    assert not is_address("C:\\runs")


def test_a_run_is_there_when_it_is_closed_and_comes_back_on_an_empty_disk(monkeypatch, tmp_path):
    with Run.create("memory://runs", "one", {"seed": 3}) as run:
        run.write("supernet.safetensors", b"\0\1" * 1000)
        run.write("figures/front.png", b"png")
        run.mark("training", seconds=1.0)
    assert set(content()) == {
        HEAD, "run.json", "stages.json", "supernet.safetensors", "figures/front.png",
    }  # fmt: skip
    assert "lease" not in json.loads(content()[HEAD])
    another_machine(monkeypatch, tmp_path)
    with Run.create("memory://runs", "one", {"seed": 3}) as run:
        assert run.done("training")
        assert run.file("supernet.safetensors").read_bytes() == b"\0\1" * 1000
        run.write("log.jsonl", b'{"ask": 0}\n{"tell"')
    assert content()["log.jsonl"] == b'{"ask": 0}\n'  # whole lines only
    read = Run.open("memory://runs/one")
    assert read.settings == {"seed": 3}
    with pytest.raises(RunConflict, match="seed: was 3, now 4"):
        Run.create("memory://runs", "one", {"seed": 4})


def test_while_it_is_worked_on_it_is_uploaded_now_and_then():
    with Run.create("memory://runs", "one", {}) as run:
        run.write("one.json", {"a": 1})
        until = time.monotonic() + 10
        while "one.json" not in content() and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(content()["one.json"]) == {"a": 1}
        assert "lease" in json.loads(content()[HEAD])
        run.file("one.json").unlink()
        while "one.json" in content() and time.monotonic() < until:
            time.sleep(0.01)
        assert "one.json" not in content()


def test_what_says_that_a_stage_is_done_comes_last(monkeypatch):
    sent = []
    with Run.create("memory://runs", "one", {}) as run:
        mirror = Mirror.of(run.path)
        mirror._connect()
        original = mirror._files.pipe_file

        def pipe(path, data, **options):
            sent.append(path.rpartition("runs/one/")[2])
            return original(path, data, **options)

        monkeypatch.setattr(type(mirror._files), "pipe_file", lambda _, *a, **k: pipe(*a, **k))
        run.mark("training")
        run.write("zebra.bin", b"1")
    whole = [name for name in sent if name != HEAD]
    assert set(whole[whole.index("zebra.bin") :]) <= {"zebra.bin", "stages.json"}
    assert whole[-1] == "stages.json" or "stages.json" in whole[: whole.index("zebra.bin")]


def test_what_is_said_to_be_done_in_a_run_within_is_there(monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 60.0)
    read, sent = Mirror._read, []
    pipe = type(fsspec.filesystem("memory")).pipe_file

    def send(self, path, data, **options):
        sent.append(path)
        return pipe(self, path, data, **options)

    with Run.create("memory://runs", "one", {}) as run, Run.create(run.path, "b", {}) as inner:
        inner.write("a.bin", b"1")
        inner.mark("first")
        run.mark("begun")
        seen = []

        def go_on(mirror, name):
            seen.append(name)
            data = read(mirror, name)
            inner.write(f"{len(seen)}.json", [])  # the work goes on as the files are read
            inner.mark(f"{len(seen)}")
            run.mark(f"b has {len(seen)}")
            return data

        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "_read", go_on)
            patch.setattr(type(fsspec.filesystem("memory")), "pipe_file", send)
            run._keeping.mirror.push()
        there = content()
        marked = {name for name in json.loads(there["b/stages.json"]) if name.isdecimal()}
        assert marked <= {name[2:-5] for name in there if name.startswith("b/")}
        told = {name[6:] for name in json.loads(there["stages.json"]) if name.startswith("b has ")}
        assert told <= marked
        names = [path.rpartition("runs/one/")[2] for path in sent]
        assert names[-3:] == ["b/stages.json", "stages.json", HEAD]
        run._keeping.mirror.push()
        assert content()["b/stages.json"] == (inner.path / "stages.json").read_bytes()


def test_two_machines_do_not_work_on_one_run(monkeypatch, tmp_path):
    monkeypatch.setattr(remote.socket, "gethostname", lambda: "first")
    with Run.create("memory://runs", "one", {}):
        while "run.json" not in content():
            time.sleep(0.01)
        another_machine(monkeypatch, tmp_path)
        monkeypatch.setattr(remote.socket, "gethostname", lambda: "second")
        with pytest.raises(RunConflict, match=r"memory://runs/one is in use by process \d+ on f"):
            Run.create("memory://runs", "one", {})
        assert Run.open("memory://runs/one").settings == {}  # who only reads may
    with Run.create("memory://runs", "one", {}) as run:
        assert run.settings == {}


def test_a_lease_of_one_that_died_is_taken_over(monkeypatch, tmp_path):
    run = Run.create("memory://runs", "one", {})
    run.write("log.jsonl", b'{"ask": 0}\n')
    run._keeping.mirror.push()
    killed(monkeypatch, run)
    head = json.loads(content()[HEAD])
    head["lease"]["host"] = "elsewhere"
    where = fsspec.filesystem("memory")
    where.pipe_file("/runs/one/" + HEAD, json.dumps(head).encode())
    another_machine(monkeypatch, tmp_path)
    with pytest.raises(RunConflict, match="a lease lapses after 180 s of silence"):
        Run.create("memory://runs", "one", {})
    head["lease"]["at"] -= 200
    where.pipe_file("/runs/one/" + HEAD, json.dumps(head).encode())
    with Run.create("memory://runs", "one", {}) as run:
        assert run.file("log.jsonl").read_bytes() == b'{"ask": 0}\n'


@pytest.mark.parametrize("every", [0.05, 60.0])
def test_a_lease_is_renewed_while_an_upload_lasts(monkeypatch, every):
    monkeypatch.setattr(remote, "EVERY", every)
    monkeypatch.setattr(remote, "LAPSE", 0.2)
    files, renewed = type(fsspec.filesystem("memory")), []
    original = files.pipe_file

    def slow(self, path, data, **options):
        if path.endswith("large.bin"):
            began, until = json.loads(content()[HEAD]), time.monotonic() + 10
            while (now := json.loads(content()[HEAD])) == began and time.monotonic() < until:
                time.sleep(0.01)
            renewed.append((began, now))
        return original(self, path, data, **options)

    monkeypatch.setattr(files, "pipe_file", slow)
    with Run.create("memory://runs", "one", {}) as run:
        run.write("large.bin", b"1")
        until = time.monotonic() + 20
        while every < 1 and not renewed and time.monotonic() < until:
            time.sleep(0.01)
    began, now = renewed[0]
    assert now["lease"].pop("at") > began["lease"].pop("at")
    assert now == began  # of the same version: the upload has not ended
    assert "lease" not in json.loads(content()[HEAD])


def test_a_lease_that_was_taken_over_is_not_taken_back(monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 60.0)
    run = Run.create("memory://runs", "one", {})
    for other in ({"version": 7, "lease": {"owner": "another", "at": 0.0}}, {"version": 7}):
        run._keeping.mirror._put(other)
        run._keeping.mirror.renew()
        assert json.loads(content()[HEAD]) == {"format": 1, **other}
    with pytest.raises(RunConflict, match="was taken over by another machine meanwhile"):
        run.close()
    assert json.loads(content()[HEAD]) == {"format": 1, "version": 7}


def test_what_is_older_here_is_moved_aside_and_what_is_newer_goes_on(monkeypatch, tmp_path):
    with Run.create("memory://runs", "one", {}) as run:
        run.write("who.json", ["first"])
        here = run.path
    another_machine(monkeypatch, tmp_path)
    with Run.create("memory://runs", "one", {}) as run:
        run.write("who.json", ["second"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    with Run.create("memory://runs", "one", {}) as run:
        assert run.path == here
        assert run.read("who.json") == ["second"]
        assert list(here.parent.glob(".one.before-*")) == []  # the first is nothing of its own
    (here / "who.json").write_text('["first, alone"]')
    another_machine(monkeypatch, tmp_path)
    with Run.create("memory://runs", "one", {}) as run:
        run.write("who.json", ["third"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    with Run.create("memory://runs", "one", {}) as run:
        assert run.read("who.json") == ["third"]
        aside = list(here.parent.glob(".one.before-*/who.json"))
        assert [json.loads(path.read_text()) for path in aside] == [["first, alone"]]
    (here / "who.json").write_text('["not uploaded yet"]')
    with Run.create("memory://runs", "one", {}) as run:
        assert run.read("who.json") == ["not uploaded yet"]
    assert json.loads(content()["who.json"]) == ["not uploaded yet"]


def test_who_looks_at_a_run_before_its_first_upload_leaves_its_folder(monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 60.0)
    with Run.create("memory://runs", "one", {}) as run:
        monkeypatch.setattr(Keeping, "_active", {})  # as another process
        remote.fetch(run.path)
        with pytest.raises(RunConflict, match="in use by process"):
            Run.create("memory://runs", "one", {})
        run.write("late.json", [])
        assert aside(run) == []
        assert run.read("late.json") == []


@pytest.mark.parametrize("lock", [False, True])
def test_a_run_that_is_not_there_leaves_nothing_there(lock):
    with Run.create("memory://runs", "one", {}):
        pass
    before = content("memory://runs")
    with pytest.raises(RunConflict, match=r"no run 'ome' in .*did you mean 'one'"):
        Run.open("memory://runs/ome", lock=lock)
    assert content("memory://runs") == before


def test_two_who_read_a_run_at_once_bring_it_once(monkeypatch, tmp_path):
    with Run.create("memory://runs", "one", {}) as run:
        run.write("large.json", ["hours"])
    another_machine(monkeypatch, tmp_path)
    download, brought = Mirror._download, []

    def slow(mirror):
        time.sleep(0.2)
        brought.append(mirror.path)
        download(mirror)

    monkeypatch.setattr(Mirror, "_download", slow)
    with ThreadPoolExecutor(2) as readers:
        asked = [readers.submit(Run.open, "memory://runs/one") for _ in range(2)]
        assert all(run.result().read("large.json") == ["hours"] for run in asked)
    assert len(brought) == 1
    assert aside(asked[0].result()) == []


@pytest.mark.parametrize("within", [False, True])
def test_a_folder_that_is_worked_on_here_does_not_make_way(monkeypatch, within):
    with Run.create("memory://runs", "one", {}) as run:
        run.write("here.json", [])
    with Run.create(run.path, "inner", {}) if within else Run.create(run.path.parent, "one", {}):
        monkeypatch.setattr(Keeping, "_active", {})
        Mirror.of(run.path).known.unlink()
        remote.fetch(run.path)
        with pytest.raises(RunConflict, match="in use by another process"):
            Mirror.of(run.path).pull()
        assert aside(run) == []
        assert run.read("here.json") == []


def test_what_was_done_before_the_first_upload_goes_on_after_a_kill(monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 60.0)
    run = Run.create("memory://runs", "one", {})
    run.write("one.json", ["hours"])
    killed(monkeypatch, run)
    assert set(content()) == {HEAD}
    with Run.create("memory://runs", "one", {}) as run:
        assert run.read("one.json") == ["hours"]


@pytest.mark.parametrize("arrived", [False, True])
def test_an_upload_of_which_the_end_is_not_heard_is_gone_on_from(monkeypatch, tmp_path, arrived):
    monkeypatch.setattr(remote, "EVERY", 60.0)
    run = Run.create("memory://runs", "one", {})
    run.write("one.json", ["first"])
    lease = Mirror._lease

    def lost(mirror, version):
        if arrived:
            lease(mirror, version)
        raise ConnectionError("reset")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_lease", lost)
        with pytest.raises(RemoteFailed):
            run._keeping.mirror.push()
    run.write("one.json", ["hours"])
    killed(monkeypatch, run)
    with Run.create("memory://runs", "one", {}) as run:
        assert run.read("one.json") == ["hours"]
        run.write("one.json", ["days"])
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "_lease", lost)
            with pytest.raises(RemoteFailed):
                run._keeping.mirror.push()
        killed(monkeypatch, run)
    another_machine(monkeypatch, tmp_path)
    with Run.create("memory://runs", "one", {}) as run:
        run.write("one.json", ["elsewhere"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    with Run.create("memory://runs", "one", {}) as run:
        assert run.read("one.json") == ["elsewhere"]  # by one upload as well, and not mistaken


def test_runs_within_a_run_are_part_of_it(monkeypatch, tmp_path):
    with Run.create("memory://runs", "one", {}) as run:
        with Run.create(run.path, "audit", {"inner": True}) as inner:
            inner.write("audit.json", {})
        assert Run.open(run.path / "audit").settings == {"inner": True}
    assert {"audit/run.json", "audit/audit.json"} <= content().keys()
    another_machine(monkeypatch, tmp_path)
    assert Run.open(placed("memory://runs/one") / "audit").settings == {"inner": True}


def test_a_name_that_leads_out_is_not_fetched():
    with Run.create("memory://runs", "one", {}) as run:
        mirror = Mirror.of(run.path)
    mirror._there = lambda: ["../../evil"]
    mirror.path = mirror.path.with_name("two")
    mirror._connect()
    with pytest.raises(InvalidOption, match="leads out of the run's folder"):
        mirror._download()


def test_an_address_that_is_none_and_one_that_fails(monkeypatch):
    with pytest.raises(InvalidOption, match="no kind 'nowhere' is known; give a folder, or an"):
        rooted("nowhere://runs")
    run = Run.create("memory://runs", "one", {})
    broken = type(fsspec.filesystem("memory"))

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(broken, "pipe_file", refuse)
    run.write("late.json", {})
    with pytest.raises(RemoteFailed, match=r"cannot write there \(PermissionError: Access Denied"):
        run.close()
    assert (run.path / "late.json").is_file()
    monkeypatch.undo()


def test_a_marker_that_was_not_made_here_for_this_user_is_not_believed(monkeypatch, tmp_path):
    Run.create("memory://runs", "one", {}).close()
    root = rooted("memory://runs")
    assert Mirror.of(root / "one").address == "memory://runs/one"
    (tmp_path / MARKER).write_bytes((root / MARKER).read_bytes())
    assert Mirror.of(tmp_path / "runs" / "one") is None
    assert remote.given(tmp_path) == str(tmp_path)
    remote.glimpse(tmp_path)
    assert not (tmp_path / "one").exists()
    monkeypatch.setattr(os, "geteuid", lambda: (root / MARKER).stat().st_uid + 1)
    assert Mirror.of(root / "one") is None
    assert remote.given(root) == str(root)
    with pytest.raises(InvalidOption, match="belongs to another user; set XDG_CACHE_HOME to a"):
        rooted("memory://runs")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": 3}', "\0"])
def test_a_marker_that_says_nothing_is_none(tmp_path, text):
    (tmp_path / MARKER).write_text(text)
    assert Mirror.of(tmp_path / "one") is None


def test_a_password_in_an_address_is_not_shown(monkeypatch):
    folder = rooted("memory://me:secret@host/runs")
    assert "secret" not in str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # what is in it, the address too, is the user's alone
    assert remote._shown("ftp://me:secret@host/runs") == "ftp://host/runs"
    with pytest.raises(InvalidOption) as caught:
        rooted("nosuch://me:secret@host/runs")
    assert "secret" not in str(caught.value)
