"""The run folder: whole files only, one writer, and the same settings or none."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas
import pytest

from mixnas.errors import InvalidOption, RunConflict, StorageFull
from mixnas.jobs.runs import runs as listed
from mixnas.jobs.show import open_run
from mixnas.remote import rooted
from mixnas.run import Run, agree, opened, runs

SETTINGS = {"space": {"image": 224, "mixers": ("aff", "hilo")}, "seed": 0, "budget": ["1.5GFLOPs"]}


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path, "one", SETTINGS) as run:
        yield run


def test_values_come_back(run):
    run.write("best.json", {"format": 1, "stem": {"kind": "conv4"}})
    run.write("trials.csv", pandas.DataFrame({"number": [0, 1], "loss": [0.5, 0.25]}))
    run.write("report.html", "<p>grün</p>")
    figure = run.write("figures/front.png", b"\x89PNG")
    assert run.read("best.json") == {"format": 1, "stem": {"kind": "conv4"}}
    assert run.read("trials.csv")["loss"].tolist() == [0.5, 0.25]
    assert run.read("report.html") == "<p>grün</p>"
    assert figure.read_bytes() == b"\x89PNG"


def test_what_a_run_remembers(run, tmp_path):
    made = Run.open(tmp_path / "one").made
    assert made["format"] == 1
    assert made["settings"]["space"]["mixers"] == ["aff", "hilo"]
    assert datetime.fromisoformat(made["made"]).tzinfo is not None
    assert {"python", "torch", "optuna", "ray"} <= made["versions"].keys()
    assert made["git"] is None or len(made["git"]) == 40
    assert "cores" in made["device"]


def test_equal_settings_resume(run, tmp_path):
    run.mark("supernet", seconds=12.5)
    run.close()
    with Run.create(tmp_path, "one", dict(reversed(SETTINGS.items()))) as again:
        assert again.made == run.made
        assert again.done("supernet")
        assert not again.done("search")
        assert again.stages["supernet"]["seconds"] == 12.5


def test_other_settings_are_named(run, tmp_path):
    run.close()
    other = {"space": {"image": 160, "mixers": ["aff", "hilo"]}, "seed": 0, "workers": 2}
    with pytest.raises(RunConflict) as caught:
        Run.create(tmp_path, "one", other)
    text = str(caught.value)
    assert "space.image: was 224, now 160" in text
    assert 'budget: was ["1.5GFLOPs"], now not set' in text
    assert "workers: was not set, now 2" in text
    assert "seed" not in text
    assert "another --name" in text
    assert "\n" not in text


def test_one_writer_many_readers(run, tmp_path):
    with pytest.raises(RunConflict, match="in use"):
        Run.create(tmp_path, "one", SETTINGS)
    with pytest.raises(RunConflict, match="in use"):
        Run.open(tmp_path / "one", lock=True)
    assert Run.open(tmp_path / "one").settings == run.settings
    run.close()
    Run.open(tmp_path / "one", lock=True).close()


def test_two_processes(run, tmp_path):
    code = f"from mixnas.run import Run; Run.open({str(run.path)!r}, lock=True)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RunConflict" in other.stderr
    assert "in use" in other.stderr


def test_a_killed_writer_leaves_no_lock_and_no_litter(tmp_path):
    code = f"""
import os, signal
from mixnas.run import Run
run = Run.create({str(tmp_path)!r}, "one", {SETTINGS!r})
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # as by chance: in mid-write
run.write("figures/best.json", dict(a=1))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.tmp"))
    with Run.create(tmp_path, "one", SETTINGS) as run:
        assert not list(tmp_path.rglob("*.tmp"))
        assert not run.file("figures/best.json").exists()


def test_what_is_half_written_in_a_run_within_is_left_to_that_one(run, tmp_path):
    for half in ("one/.best.json.7.tmp", "one/figures/deep/.front.png.7.tmp"):
        (tmp_path / half).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / half).write_bytes(b"")
    begun = tmp_path / "one" / "audit"  # so far it has no more than its lock
    begun.mkdir()
    (begun / ".lock").touch()
    with Run.create(run.path, "retrain", {}) as inner:
        inner.write("deep/one.json", {})
        kept = {inner.path / ".checkpoint.pt.7.tmp", inner.path / "deep" / ".one.json.7.tmp"}
        kept.add(begun / ".run.json.7.tmp")
        for half in kept:
            half.write_bytes(b"")
        run.close()
        Run.create(tmp_path, "one", SETTINGS).close()
        assert set(tmp_path.rglob("*.tmp")) == kept
        Run.open(run.path, lock=True).close()
        assert set(tmp_path.rglob("*.tmp")) == kept
    Run.open(inner.path, lock=True).close()
    assert set(tmp_path.rglob("*.tmp")) == {begun / ".run.json.7.tmp"}


def test_full_disk_keeps_what_was_there(tmp_path):
    code = f"""
import resource, sys
from mixnas.errors import StorageFull
from mixnas.run import Run
run = Run.create({str(tmp_path)!r}, "one", {SETTINGS!r})
run.write("best.json", dict(a=1))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    run.write("best.json", dict(a="x" * 10_000))
except StorageFull as error:
    sys.exit(str(error))
"""
    full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert full.stderr.count("\n") == 1
    assert "best.json: cannot be written (File too large); everything written before is kept" in (
        full.stderr
    )
    run = Run.open(tmp_path / "one")
    assert run.read("best.json") == {"a": 1}
    assert not list(tmp_path.rglob("*.tmp"))


def test_full_disk_stops_a_search_whole(tmp_path):
    from searching import Toy, finish

    toy, log = Toy(), tmp_path / "log"
    undisturbed = finish(toy.search(tmp_path / "undisturbed"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageFull, match=r"log: cannot be written .* repeat the same command"):
            finish(toy.search(log))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.read_bytes().endswith(b"\n")
    assert finish(toy.search(log)).trials == undisturbed.trials


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", ".hidden", "a\nb", "x" * 300])
def test_names_stay_in_the_root(tmp_path, name):
    with pytest.raises(InvalidOption, match="one plain name"):
        Run.create(tmp_path / "root", name, {})
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../two/run.json", "figures/../../x"])
def test_files_stay_in_the_run(run, name):
    with pytest.raises(InvalidOption, match="inside the run's folder"):
        run.write(name, "x")


def test_a_strange_folder_is_left_alone(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.txt").write_text("mine")
    with pytest.raises(RunConflict, match=r"holds thesis.txt but no run.json"):
        Run.create(tmp_path, "one", {})
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path, "empty", {}).close()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 2, "settings": {}}'])
def test_unreadable_settings(tmp_path, text):
    Run.create(tmp_path, "good", {}).close()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(text)
    with pytest.raises(RunConflict, match=r"is damaged; put the file back|reads format 1"):
        Run.open(tmp_path / "one")
    assert [run.name for run in runs(tmp_path)] == ["good"]
    (told,) = opened(tmp_path)[1].items()
    assert told[0] == tmp_path / "one"
    assert str(tmp_path / "one") in str(told[1])
    assert "Error" not in str(told[1])


def test_missing_things_are_named(run, tmp_path):
    with pytest.raises(RunConflict, match=r"no run 'on' in .*; did you mean 'one'\?"):
        Run.open(tmp_path / "on")
    with pytest.raises(RunConflict, match=r"run 'one' has no best.json"):
        run.read("best.json")
    assert runs(tmp_path / "nowhere") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="cannot be made"):
        Run.create(tmp_path / "file", "one", {})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_one_line(monkeypatch, tmp_path, number):
    def refuse(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InvalidOption, match=r"run .*one: its file system has no locks") as caught:
        Run.create(tmp_path, "one", {})
    assert "--runs folder on a local disk" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda root: Run.create(root, "one", {}),
        lambda root: Run.open(root / "one"),
        lambda root: Run.open(root / "one", lock=True),
        lambda root: agree(root, "one", {}),
        lambda root: open_run("one", root),
        listed,
        rooted,
    ],
)
@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_folder_that_may_not_be_entered_is_one_line(monkeypatch, tmp_path, ask, below):
    closed, stat = tmp_path / "closed", Path.stat

    def refuse(path, **options):  # as the system would, were we not root
        if closed in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(InvalidOption, match=r"folder .*closed.* may not be entered") as caught:
        ask(closed / below)
    assert "\n" not in str(caught.value)


def test_needs_no_torch():
    code = "import sys, mixnas.run; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
