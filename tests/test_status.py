"""A job's status: written as it works, read by others, and never in its way."""

import json
import os

import pytest

from mixnas.cli import main
from mixnas.errors import DataError
from mixnas.jobs import status as statuses
from mixnas.jobs.settings import Silent
from mixnas.jobs.status import FILE, Recording, Status, follow, read, recorded
from mixnas.run import Run


class Heard(Silent):
    """A listener that writes down what it hears."""

    def __init__(self):
        self.lines = []

    def stage(self, name, total, done=0):
        self.lines.append(("stage", name, total, done))

    def advance(self, by, **figures):
        self.lines.append(("advance", by, figures))

    def note(self, text):
        self.lines.append(("note", text))

    def end(self):
        self.lines.append(("end",))


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path, "one", {}) as run:
        yield run


def test_everything_is_handed_on_and_kept(run):
    heard, clock = Heard(), Clock()
    recording = Recording(heard, run.file(FILE), clock)
    recording.stage("search", 100, 20)
    for _ in range(5):
        clock.now += 2
        recording.advance(2, loss=0.5, best_loss=float("nan"))
    recording.note("trial 3 failed")
    assert heard.lines[0] == ("stage", "search", 100, 20)
    assert len(heard.lines) == 7
    status = read(run)
    assert (status.stage, status.done, status.total, status.first) == ("search", 30, 100, 20)
    assert status.rate == pytest.approx(1.0)
    assert status.left == pytest.approx(70.0)
    assert status.figures == {"loss": 0.5, "best_loss": "nan"}  # any reader of JSON can take it
    assert status.notes == ["trial 3 failed"]
    json.loads(run.file(FILE).read_text(), parse_constant=pytest.fail)
    recording.over("finished")
    assert read(run).ended == "finished"


def test_it_is_written_once_a_second_at_most_while_a_stage_gets_on(run, monkeypatch):
    clock, written = Clock(), []
    recording = Recording(Silent(), run.file(FILE), clock)
    recording.stage("search", 1000)
    monkeypatch.setattr(statuses, "write", lambda path, data: written.append(clock.now))
    for _ in range(1000):
        clock.now += 0.01
        recording.advance(1)
    assert 9 <= len(written) <= 10


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "finished"),
        (KeyboardInterrupt, "interrupted"),
        (DataError("no images"), "failed: no images"),
        (ZeroDivisionError, "failed; its own process tells why"),
    ],
)
def test_how_a_job_ended_is_kept(run, error, how):
    def work():
        with recorded(Silent(), run) as listener:
            listener.stage("training", 10)
            assert read(run).alive(0)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error if isinstance(error, type) else type(error)):
            work()
    status = read(run)
    assert status.ended == how
    assert not status.alive(status.updated)


def test_a_status_that_cannot_be_written_stops_no_job(tmp_path):
    with Run.create(tmp_path, "one", {}) as run:
        run.file(FILE).mkdir()  # nothing can be renamed over a folder
        with recorded(Silent(), run) as listener:
            listener.stage("training", 10)
            listener.advance(1)
        assert read(run) is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 9}', "\x00", "{"])
def test_what_is_no_status_is_none(run, content):
    run.file(FILE).write_text(content)
    assert read(run) is None


def test_followed_elsewhere_a_job_is_heard_as_it_is_here(run):
    clock = Clock()
    recording = Recording(Silent(), run.file(FILE), clock)
    steps = iter(
        [
            lambda: None,  # it has told nothing so far
            lambda: recording.stage("counting", 3),
            lambda: recording.stage("training", 10, 2),
            lambda: [recording.advance(1, loss=0.5), recording.advance(2, loss=0.4)],
            recording.keep,  # as its thread does
            lambda: None,
            lambda: [recording.note("skipped a step"), recording.end()],
            lambda: recording.stage("search", 5),
            lambda: recording.advance(5, loss=0.1),
            lambda: recording.over("finished"),
        ]
    )

    def sleep(_):
        clock.now += 5
        next(steps)()

    heard = Heard()
    assert follow(run, heard, sleep=sleep, clock=clock) == "finished"
    assert [line for line in heard.lines if line != ("advance", 0, {})] == [
        (
            "note",
            f"no job tells of itself in {run.path} yet; waiting until one does, or until the "
            "run is done (Ctrl-C leaves)",
        ),
        ("stage", "counting", 3, 0),
        ("stage", "training", 10, 2),
        ("advance", 1, {"loss": 0.5}),
        ("advance", 2, {"loss": 0.4}),
        ("note", "skipped a step"),
        ("end",),
        ("stage", "search", 5, 0),
        ("advance", 5, {"loss": 0.1}),
        ("end",),
    ]


def test_a_job_that_is_gone_without_a_word_is_dead(run):
    gone = 2**22 - 3  # no process has this number, as a rule
    here = Status(gone, os.uname().nodename, 0.0, 1000.0, stage="search", total=5)
    assert not here.alive(1000.0)
    elsewhere = Status(1, "another-machine", 0.0, 1000.0, stage="search", total=5)
    assert elsewhere.alive(1030.0)
    assert not elsewhere.alive(1100.0)
    run.write(FILE, elsewhere.to_dict())
    assert follow(run, Silent(), clock=lambda: 1100.0) == "dead"


def test_a_second_sitting_begins_anew(run):
    first = Recording(Silent(), run.file(FILE), Clock())
    first.stage("training", 10)
    first.advance(4)
    clock = Clock()
    clock.now = 2000.0
    second = Recording(Silent(), run.file(FILE), clock)

    def sleep(_):
        if clock.now == 2000.0:
            second.stage("training", 10, 4)
            clock.now = 2001.0
        else:
            second.over("interrupted")

    heard = Heard()
    assert follow(run, heard, sleep=sleep, clock=clock) == "interrupted"
    assert [line for line in heard.lines if line[0] == "stage"] == [
        ("stage", "training", 10, 0),
        ("stage", "training", 10, 4),
    ]


def test_a_run_that_is_done_without_a_word_is_not_waited_for(run):
    heard = Heard()

    def sleep(_):
        run.write("summary.json", {"format": 1})

    assert follow(run, heard, sleep=sleep) == ""
    assert [line[0] for line in heard.lines] == ["note"]
    assert follow(run, heard, sleep=pytest.fail) == ""
    assert len(heard.lines) == 1


def test_an_interrupt_leaves_what_is_followed(run, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "__kwdefaults__", {**follow.__kwdefaults__, "sleep": interrupted})
    with pytest.raises(SystemExit) as ended:
        main(["show", "--follow", str(run.path)])
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "waiting until one does" in err
    assert not out
