"""What a sweep's folder tells: of searches not begun, stopped, and with damaged files."""

import pytest

from mixnas.cli import main
from mixnas.errors import InvalidOption, RunConflict
from mixnas.jobs.sweep_settings import SweepSettings, named
from mixnas.jobs.swept import swept
from mixnas.remote import rooted
from mixnas.run import Run

POINT = {"id": "a", "loss": 1.0, "accuracy": 0.5, "flops": 10, "params": 3, "arch": {}}


@pytest.fixture
def study(tmp_path):
    """A stopped sweep of two searches, of which one has been done."""
    asked = SweepSettings((("8MFLOPs",), ("6MFLOPs",)), (7,), ("micro",))
    run = Run.create(tmp_path, "study", asked.to_dict())
    settings = asked.searches()[0]
    search = Run.create(run.path, named(settings), settings.to_dict())
    search.write("summary.json", {"winner": {**POINT, "standard_error": 0.1}})
    search.write("front.json", [POINT])
    search.mark("finalists")
    for one in (search, run):
        one.close()
    return run


def test_what_waits_is_told_with_what_it_was_asked_and_how_to_go_on(study, capsys):
    found = swept(study)
    assert [row["state"] for row in found["rows"]] == ["finished", "waiting"]
    assert [row["budget"] for row in found["rows"]] == ["8MFLOPs", "6MFLOPs"]
    assert [row["seed"] for row in found["rows"]] == [7, 7]
    assert found["again"].startswith("mixnas sweep study --runs ")
    with pytest.raises(SystemExit, match="0"):
        main(["sweep", "study", "--status", "--runs", str(study.path.parent)])
    assert "go on with" in capsys.readouterr().out
    study.mark("sweep")
    assert swept(study)["again"] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("micro-8MFLOPs-seed7/summary.json", "{}"),
        ("micro-8MFLOPs-seed7/summary.json", "[]"),
        ("micro-8MFLOPs-seed7/summary.json", '{"winner": 3}'),
        ("micro-8MFLOPs-seed7/front.json", "[{}]"),
        ("micro-8MFLOPs-seed7/front.json", "[3]"),
        ("micro-8MFLOPs-seed7/front.json", "null"),
        ("summary.json", "[]"),
        ("summary.json", "null"),
        ("summary.json", '{"rows": 3}'),
        ("summary.json", '{"rows": [{"state": "failed"}]}'),
    ],
)
def test_a_damaged_file_is_named_in_one_line(study, name, content):
    study.file(name).write_text(content)
    with pytest.raises(RunConflict, match=r"\.json is damaged") as caught:
        swept(study)
    assert str(study.file(name)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_command_is_called_so(study):
    with pytest.raises(RunConflict, match="was made by mixnas sweep, not by mixnas search"):
        Run.create(study.path.parent, "study", {"budget": ["8MFLOPs"]})


@pytest.mark.parametrize(("runs", "said"), [("", "it is empty"), ("s3://", "names no place")])
def test_runs_nowhere_are_refused(runs, said):
    with pytest.raises(InvalidOption, match=said):
        rooted(runs)


@pytest.mark.parametrize("command", ["search", "sweep"])
def test_a_cluster_that_is_not_there_is_told_before_anything_long(tmp_path, capsys, command):
    words = [command, "--budget", "8MFLOPs", "--space", "micro", "--address", "127.0.0.1:1"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--runs", str(tmp_path / "runs"), "--quiet"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("mixnas: no Ray cluster could be joined at 127.0.0.1:1: nobody listens")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["http://x:1", "ray://a/b:1", "nonsense", "host:"])
def test_an_address_that_is_none(capsys, address):
    with pytest.raises(SystemExit):
        main(["search", "--budget", "8MFLOPs", "--space", "micro", "--address", address])
    assert "give auto (a cluster on this machine)" in capsys.readouterr().err
