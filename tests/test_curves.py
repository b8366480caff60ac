"""Curves for TensorBoard, and Ray's dashboard: where they are, what they hold, what is refused."""

import importlib
import sys

import pytest
import tensorboardX.event_file_writer as events
from tensorboardX.proto.event_pb2 import Event

from mixnas.cli import main
from mixnas.cluster import Crew, local
from mixnas.errors import InvalidOption
from mixnas.jobs.curves import Drawing, curves, drawn, viewing
from mixnas.jobs.settings import Silent


def read(folder):
    """Return (tag, step, value) of each figure in a folder's event files, and their first steps."""
    found, begun = [], []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            begun += [event.step] if event.HasField("session_log") else []
    return found, begun


def test_training_and_search_are_drawn_by_step(tmp_path):
    with drawn(Silent(), tmp_path, wanted=True) as listener:
        listener.stage("counting", 3)
        listener.advance(3)
        listener.stage("training", 10, 4)
        listener.advance(1, loss=0.5, accuracy=0.25)
        listener.advance(2, loss=0.25, accuracy=0.5, text="fast")
        listener.end()
        listener.stage("search", 5)
        listener.advance(1, loss=0.75, best_loss=0.5)
    found, begun = read(tmp_path / "tensorboard" / "training")
    assert found == [
        ("training/loss", 5, 0.5),
        ("training/accuracy", 5, 0.25),
        ("training/loss", 7, 0.25),
        ("training/accuracy", 7, 0.5),
    ]
    assert begun == [5]  # what another sitting drew from there on is hidden
    found, _ = read(tmp_path / "tensorboard" / "search")
    assert found == [("search/best_loss", 1, 0.5), ("search/loss", 1, 0.75)]


def test_what_is_not_wanted_is_not_drawn(tmp_path):
    listener = Silent()
    with drawn(listener, tmp_path, wanted=False) as told:
        assert told is listener
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    drawing = Drawing(Silent(), tmp_path / "file")
    drawing.stage("training", 10)
    drawing.advance(1, loss=0.5)
    drawing.end()

    def full(self, event):
        raise OSError(28, "No space left on device")

    one = curves(tmp_path / "curves")
    monkeypatch.setattr(events.EventsWriter, "write_event", full)
    one.add_scalar("loss", 0.5, 1)
    one.add_scalar("loss", 0.5, 2)
    one.close()


def test_the_line_that_tells_how_to_look_can_be_typed(tmp_path):
    assert viewing(tmp_path / "my run").endswith(
        f"tensorboard --logdir '{tmp_path / 'my run'}' --host 127.0.0.1"
    )


def test_curves_without_their_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(InvalidOption, match="pip install tensorboardX"):
        curves(tmp_path)


WORDS = ["--budget", "8MFLOPs", "--space", "micro", "--quiet", "--dashboard"]


def refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", ["search", "sweep"])
def test_a_dashboard_without_its_packages_is_one_line(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray.dashboard.optional_deps", None)
    said = refused([command, *WORDS], capsys)
    assert "pip install 'mixnas[cluster]'" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["search", "sweep"])
def test_a_dashboard_of_a_joined_cluster_is_refused(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = refused([command, *WORDS, "--address", "auto"], capsys)
    assert "has its own dashboard" in said


def test_a_dashboard_listens_on_this_machine_and_its_token_is_in_no_note(tmp_path, monkeypatch):
    asked = local._private(Crew(dashboard=True), tmp_path, 0)
    assert (asked["include_dashboard"], asked["dashboard_host"]) == (True, "127.0.0.1")
    assert not local._private(Crew(), tmp_path, 0)["include_dashboard"]
    said = local._dashboard("127.0.0.1:8265", tmp_path, own=False)
    assert "http://127.0.0.1:8265" in said
    token = tmp_path / "token"
    assert str(token) in said
    assert token.read_text() == local._token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert local._token() not in said
    assert "RAY_AUTH_TOKEN" in local._dashboard("127.0.0.1:8265", tmp_path, own=True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_dashboard_answers_on_this_machine(monkeypatch):
    pytest.importorskip("ray.dashboard.optional_deps", exc_type=ImportError)
    requests = importlib.import_module("urllib.request")
    notes = []
    with local.connected(Crew(1, dashboard=True), note=notes.append):
        address = notes[0].partition("http://")[2].partition(" ")[0]
        assert address.startswith("127.0.0.1:")
        with requests.urlopen(f"http://{address}/", timeout=30) as answer:
            assert answer.status == 200
