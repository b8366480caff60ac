"""ONNX Runtime as a runtime of the stopwatch, and the parts of a space as files for a board."""

import csv
import random
from collections import Counter

import pytest
import torch
from torch import nn

from mixnas import mixers
from mixnas.cost.measured import Measured, parts_of
from mixnas.errors import ExportMismatch, InvalidOption, RunConflict
from mixnas.exports.onnx_model import Session
from mixnas.exports.placed import ONNX_RUNTIME, graph
from mixnas.jobs.measuring import draws
from mixnas.jobs.parts_folder import SETTINGS, TABLE, write_parts
from mixnas.jobs.settings import Silent
from mixnas.network import Part, build, parts, walk
from mixnas.testing import randomise
from mixnas.timing.conditions import Conditions
from mixnas.timing.runtimes import images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # one graph takes seconds
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def conditions(threads=1, batch=1):
    return Conditions.of("cpu", "onnxruntime", threads=threads, batch=batch)


def operators(written):
    return Counter(node.op_type for node in written.graph.node)


def mixer(name, dim=64, side=6):
    knobs = mixers.get(name).knobs
    first = tuple((knob, knobs[knob][0]) for knob in sorted(knobs) if knobs[knob])
    return Part("mixer", (name, dim, first), (dim, side, side))


def blocks(arch):
    return [block for stage in arch.stages for block in stage.blocks]


def mixed(arch):
    return [block.mixer for block in blocks(arch)]


def drawn(space, wanted):
    """A random architecture that is as wanted."""
    rng = random.Random(0)
    while not wanted(arch := space.sample(rng)):
        pass
    return arch


# What is placed computes what the module computes


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_is_placed(name, randomise_norms):
    part = mixer(name)
    module = randomise_norms(part.build()).eval()
    given = conditions(batch=3)
    (found,) = ONNX_RUNTIME.place(module, part.shape, given)()
    with torch.no_grad():
        wanted = module(images(part.shape, given))
    assert found.shape == (3, *part.shape)
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_a_call_computes_the_same_each_time_and_leaves_the_module(randomise_norms):
    module = randomise_norms(Part("local", (8,), (8, 7, 7)).build())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    call = ONNX_RUNTIME.place(module, (8, 7, 7), conditions())
    (first,), (second,) = call(), call()
    assert (first == second).all()
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_session_has_the_threads_that_were_asked_for():
    data = graph(nn.Conv2d(3, 4, 1), (3, 5, 5)).SerializeToString()
    for threads in (1, 3):
        options = Session(data, threads).session.get_session_options()
        assert options.intra_op_num_threads == threads
    assert Session(data).session.get_session_options().intra_op_num_threads == (
        torch.get_num_threads()
    )


@pytest.mark.parametrize("wanted", [{"hilo", "xnorm"}, {"aff", "additive"}])
def test_the_parts_graphs_do_the_whole_graphs_work(micro, wanted):
    """Operator by operator: nothing is folded in the whole that is not folded in its parts."""
    arch = drawn(micro, lambda arch: len(blocks(arch)) == 2 and {*mixed(arch)} == wanted)
    summed: Counter[str] = Counter()
    for segment in walk(arch):
        for part in parts(segment, image=micro.image, classes=micro.classes):
            summed += operators(graph(randomise(part.build()), part.shape))
    network = randomise(build(arch, micro.classes))
    whole = operators(graph(network, (3, micro.image, micro.image)))
    assert summed == whole
    assert whole["Conv"] > 0
    assert whole["BatchNormalization"] == 0


def test_conditions_of_another_runtime_are_refused():
    with pytest.raises(InvalidOption, match="--runtime onnxruntime") as raised:
        ONNX_RUNTIME.place(nn.Identity(), (3, 4, 4), Conditions.of("cpu", "eager"))
    assert "\n" not in str(raised.value)


class Odd(nn.Module):
    """Has no ONNX form."""

    def forward(self, x):
        return torch.special.bessel_j1(x)


def test_an_operator_without_a_form_is_named_with_the_cure():
    with pytest.raises(ExportMismatch, match=r"Odd on 3x4x4 .*bessel_j1.*--mixers") as raised:
        ONNX_RUNTIME.place(Odd(), (3, 4, 4), conditions())
    assert "\n" not in str(raised.value)


def test_a_graph_of_fixed_size_has_no_open_axis_and_computes_the_same(randomise_norms):
    part = mixer("single_head")
    module = randomise_norms(part.build()).eval()
    written = graph(module, part.shape, batch=2)
    for value in (*written.graph.input, *written.graph.output, *written.graph.value_info):
        assert all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    assert not operators(written)["Shape"]
    x = torch.randn(2, *part.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(Session(written.SerializeToString())(x), module(x), atol=1e-5)


# A folder for a board


class Heard(Silent):
    def __init__(self):
        self.stages, self.steps, self.notes = [], 0, []

    def stage(self, name, total, done=0):
        self.stages.append((name, total, done))

    def advance(self, by, **figures):
        self.steps += by

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def tiny(micro):
    """A space of one architecture, of few parts."""
    return micro.only(
        drawn(micro, lambda arch: arch.stem.kind == "patch16" and len(blocks(arch)) == 1)
    )


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("board") / "folder"
    heard = Heard()
    assert write_parts(place, tiny, 2, 0, heard) == place / TABLE
    return place, heard


def rows(folder):
    lines = (folder / TABLE).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_every_row_names_a_file_that_maps_its_shape(folder, tiny):
    place, heard = folder
    listed = rows(place)
    count = len(parts_of(tiny)) + 1  # the space has one architecture only
    assert len(listed) == heard.steps == count
    assert heard.stages == [("parts", count, 0)]
    assert len(heard.notes) == 1
    assert sorted(row["file"] for row in listed) == sorted(
        path.relative_to(place).as_posix() for path in place.rglob("*.onnx")
    )
    for row in listed:
        shape = [int(row[axis]) for axis in ("channels", "height", "width")]
        given, returned = Session((place / row["file"]).read_bytes()).shapes()
        assert given == [1, *shape]
        assert returned[0] == 1
        assert row["milliseconds"] == ""


def test_the_table_filled_in_comes_back(folder, tiny, tmp_path):
    place, _ = folder
    text = (place / TABLE).read_text(encoding="utf-8")
    for number, row in enumerate(rows(place)):
        text = text.replace(f",,{row['file']}", f",{0.5 + number / 8},{row['file']}")
    (tmp_path / "phone.csv").write_text(text, encoding="utf-8")
    measured = Measured.load(tmp_path / "phone.csv", flops=None)
    measured.check(tiny, "phone.csv")
    assert list(measured.parts) == parts_of(tiny)
    assert list(measured.networks) == draws(tiny, 2, 0)
    assert [*measured.parts.values()] == [0.5 + number / 8 for number in range(len(measured.parts))]


def test_a_second_call_writes_only_what_is_missing(folder, tiny):
    place, _ = folder
    files = sorted(place.rglob("*.onnx"))
    lost, half = files[-1], files[0].with_name(f".{files[0].name}.1.tmp")
    lost.unlink()
    half.write_bytes(b"half of it")
    (place / TABLE).write_text("filled in", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in files[:-1]}
    heard = Heard()
    write_parts(place, tiny, 2, 0, heard)
    assert heard.stages == [("parts", len(files), len(files) - 1)]
    assert heard.steps == 1
    assert {path: path.stat().st_mtime_ns for path in files[:-1]} == before
    onnx.checker.check_model(onnx.load(lost))
    assert not half.exists()
    assert (place / TABLE).read_text(encoding="utf-8") == "filled in"


def test_a_folder_of_another_space_or_of_others_is_refused(folder, tiny, tmp_path):
    place, _ = folder
    with pytest.raises(RunConflict, match="networks: was 2, now 3"):
        write_parts(place, tiny, 3)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(RunConflict, match=r"photo\.jpg"):
        write_parts(tmp_path, tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(InvalidOption, match="choose another folder"):
        write_parts(tmp_path / "photo.jpg", tiny)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_damaged_settings_are_one_line(tiny, tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(RunConflict, match="damaged") as raised:
        write_parts(tmp_path, tiny)
    assert "\n" not in str(raised.value)


def test_draws_are_each_once_and_by_the_seed(micro, tiny):
    first = draws(micro, 40, 0)
    assert len(set(first)) == len(first) == 40
    assert first == draws(micro, 40, 0) != draws(micro, 40, 1)
    assert first[:10] == draws(micro, 10, 0)
    assert len(draws(tiny, 5, 0)) == 1
