"""Processes that train one supernet together, through Ray Train: accidents change no weight."""

import _thread
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import psutil
import pytest
from training import STEPS, Heard, begun, retrained, trained

from mixnas.cluster import Crew
from mixnas.errors import DataError, InvalidOption, WorkerLost
from mixnas.jobs import across as sharing
from mixnas.jobs.stages import check_shared
from mixnas.run import Run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore"),  # Ray's own: sockets left to the collector, old APIs
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What two processes learn that nothing happens to, and what was heard of it."""
    root, heard = tmp_path_factory.mktemp("undisturbed"), Heard()
    return trained(root, "plain", Crew(2), heard), heard, root


def test_two_processes_train_and_tell_it_once(undisturbed):
    _, heard, root = undisturbed
    assert heard.of("stage") == [("training", STEPS, 0)]
    assert heard.of("advance") == [(1,)] * STEPS
    assert heard.of("end") == [()]
    assert heard.of("note") == heard.of("plan") == []
    run = Run.open(root / "run", lock=True)  # nobody holds it any more
    run.close()
    assert run.stages["training"]["processes"] == 2
    assert not run.file("supernet.state.pt").exists()
    assert len(run.read("supernet.csv")) == STEPS
    assert not run.file(sharing.MARK).exists()


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.drill)])
def test_a_process_that_is_killed_changes_no_weight(tmp_path, undisturbed, rank):
    heard = Heard()
    assert trained(tmp_path, f"kill {rank}", Crew(2), heard) == undisturbed[0]
    first, second = heard.of("stage")
    assert first == ("training", STEPS, 0)
    assert second[2] >= 11
    assert heard.of("note") == [
        ("a process was lost; all begin again at the last checkpoint (1)",),
        (f"training goes on at step {second[2]} of {STEPS}",),
    ]


@pytest.mark.drill
def test_too_many_losses_are_one_line_and_the_checkpoint_stays(tmp_path, undisturbed):
    heard = Heard()
    with pytest.raises(WorkerLost) as lost:
        trained(tmp_path, "always", Crew(2), heard, failures=1)
    assert "lost 2 times" in str(lost.value)
    assert "repeat the same command" in str(lost.value)
    assert "\n" not in str(lost.value)
    assert trained(tmp_path, "plain", Crew(2)) == undisturbed[0]


@pytest.mark.drill
def test_a_retraining_whose_first_process_is_killed_changes_no_weight(tmp_path):
    undisturbed = retrained(tmp_path / "undisturbed", "plain", Crew(2), Heard())
    heard = Heard()
    assert retrained(tmp_path / "killed", "kill 0", Crew(2), heard) == undisturbed
    assert [stage[0] for stage in heard.of("stage")] == ["training", "training", "test"]
    assert heard.of("stage")[1][2] >= 11


@pytest.mark.drill
def test_a_mistake_arrives_once_as_itself(tmp_path):
    heard = Heard()
    with pytest.raises(DataError, match=r"^photos/cat\.png: cannot be decoded$"):
        trained(tmp_path, "mistake", Crew(2), heard)
    assert len(heard.of("stage")) == 1


@pytest.mark.drill
def test_what_a_programmer_did_wrong_is_told_with_the_machine(tmp_path):
    with pytest.raises(WorkerLost, match="ZeroDivisionError: of a programmer") as lost:
        trained(tmp_path, "bug", Crew(2), failures=0)
    assert "lost once (machine " in str(lost.value)


@pytest.mark.drill
def test_an_interrupt_keeps_the_state_first(tmp_path, undisturbed, monkeypatch):
    class Impatient(Heard):
        def advance(self, by, **figures):
            super().advance(by, **figures)
            if len(self.of("advance")) == 5:
                _thread.interrupt_main()

    heard = Impatient()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background
    try:  # ignores it
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, "crawl", Crew(2), heard)
    finally:
        signal.signal(signal.SIGINT, before)
    run = Run.open(tmp_path / "run")
    assert run.file("supernet.state.pt").exists()
    assert not run.done("training")
    again = Heard()
    assert trained(tmp_path, "plain", Crew(2), again) == undisturbed[0]
    assert again.of("stage")[0][2] >= 5


def test_a_folder_of_the_same_name_is_not_the_run(tmp_path):
    (tmp_path / sharing.MARK).write_text("another")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidOption, match="does not see it; give --runs a folder that all"):
            sharing._check_seen(folder, "mark")
    sharing._check_seen(tmp_path, "another")


def test_from_elsewhere_nothing_is_trained_together():
    with pytest.raises(InvalidOption, match="start on a machine of the cluster"):
        sharing.trainers(2, False, None, "ray://10.0.0.5:10001")
    assert sharing.trainers(2, True, None, "auto") == Crew(2, 1.0, 1.0, "auto")


def test_images_that_do_not_divide_are_refused(tmp_path):
    problem, _, run = begun(tmp_path)
    run.close()
    check_shared(problem, None)
    check_shared(problem, Crew(4))
    with pytest.raises(InvalidOption, match="--trainers 3: the 32 images of a step do not divide"):
        check_shared(problem, Crew(3))


def test_what_ray_train_needs_comes_with_ray_tune():
    """So that no extra of ours has to bring it."""
    asked = [line.split(";") for line in requires("ray") if "extra ==" in line]
    needs = {
        extra: {(line[0], line[1].split(" and ")[0] if " and " in line[1] else "")
                for line in asked if f'extra == "{extra}"' in line[1]}
        for extra in ("train", "tune")
    }  # fmt: skip
    assert needs["train"]
    assert needs["train"] <= needs["tune"]


def joined(folder, what):
    """Train on a cluster of several nodes, in a process of its own; return what it told."""
    script = Path(__file__).with_name("training.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])},
    ) as process:
        family = {psutil.Process(process.pid)}
        try:
            lines = []
            for line in process.stdout:
                family |= set(psutil.Process(process.pid).children(recursive=True))
                lines.append(line)
                if line.startswith("{"):
                    break
            process.stdin.close()
            process.wait(60)
        finally:
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
    try:
        return json.loads(lines[-1])
    except (ValueError, IndexError):
        pytest.fail((folder / "stderr").read_text()[-2000:])


@pytest.mark.drill
def test_a_machine_that_is_lost_changes_no_weight(tmp_path, undisturbed):
    found = joined(tmp_path, "node")
    assert found["error"] == ""
    assert found["weights"] == undisturbed[0]
    assert len(set(found["nodes"])) == 2
    assert (tmp_path / "killed").read_text() not in found["nodes"]
    assert found["stages"][-1][2] >= 11
    assert found["notes"] == [
        "joined a cluster of 4 nodes, 3 CPUs; 2 workers with 1 CPU each",
        "a process was lost; all begin again at the last checkpoint (1)",
        f"training goes on at step {found['stages'][-1][2]} of {STEPS}",
    ]
    assert found["lock"]


@pytest.mark.drill
def test_a_machine_that_does_not_see_the_folder_is_named(tmp_path):
    found = joined(tmp_path, "unseen")
    assert "which shall train, does not see it" in found["error"]
    assert found["stages"] == []
