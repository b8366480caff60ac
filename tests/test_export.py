"""ONNX, .pt2 and int8: read back in their own runtimes, equal to their source."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixnas import exports, mixers
from mixnas.arch import Architecture, Block, Stage, Stem
from mixnas.data import Preprocessing
from mixnas.errors import ExportMismatch, InvalidCheckpoint, InvalidOption
from mixnas.exports.onnx_model import ONNX, Session
from mixnas.exports.program import PT2
from mixnas.exports.proof import keep, prove
from mixnas.exports.quantised import PLACE, quantise
from mixnas.exports.timing import timed
from mixnas.exports.weights import WEIGHTS
from mixnas.folding import fuse
from mixnas.mixers import fourier
from mixnas.model import Model
from mixnas.testing import randomise

pytestmark = pytest.mark.timeout(240)  # one export takes seconds, on a busy machine many
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LABELS = tuple("abcdefg")
SIDE = 33


def images(count, side=SIDE, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def batches(*sizes):
    generator = torch.Generator().manual_seed(2)
    return [
        (images(size, seed=seed), torch.randint(len(LABELS), (size,), generator=generator))
        for seed, size in enumerate(sizes)
    ]


def described(arch, side=SIDE, labels=LABELS):
    return Model({"arch": arch.to_dict()}, labels, Preprocessing(side, (0.5,), (0.25,)), fused=True)


def with_mixer(space, name, seed=0):
    """A random architecture of a space in which a mixer stands."""
    rng = random.Random(seed)
    while True:
        arch = space.sample(rng)
        if name in {block.mixer for stage in arch.stages for block in stage.blocks}:
            return arch


@pytest.fixture(scope="module")
def made(micro, tmp_path_factory):
    """One network with a Fourier filter and attention, as a folder of exports."""
    folder = tmp_path_factory.mktemp("export")
    arch = with_mixer(micro, "aff")
    torch.manual_seed(0)
    model = described(arch)
    source = Model(model.source, LABELS, model.preprocessing).build()
    for layer in source.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 1.5)
    network, facts = fuse(source), {"flops": 12_345, "run": "a run"}
    proofs = {
        form.name: keep(form, folder, network, model, facts, source, batches(1, 5))[1]
        for form in (ONNX, PT2)
    }
    return folder, model, source, proofs


# Fourier transforms by real matrices


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 7), (7, 7), (8, 9), (14, 14), (57, 3)])
def test_transforms_by_products_are_torchs(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    spectrum = fourier.analysed(x)
    want = torch.fft.rfft2(x, norm="ortho")
    assert torch.allclose(spectrum[..., 0, :, :], want.real, atol=1e-12)
    assert torch.allclose(spectrum[..., 1, :, :], want.imag, atol=1e-12)
    assert torch.allclose(fourier.synthesised(spectrum, size[1]), x, atol=1e-12)
    # Masked spectra have no symmetry: what irfft2 ignores must be ignored alike.
    free = torch.randn_like(spectrum)
    complex_free = torch.complex(free[..., 0, :, :], free[..., 1, :, :])
    want = torch.fft.irfft2(complex_free, s=size, norm="ortho")
    assert torch.allclose(fourier.synthesised(free, size[1]), want, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "prelu"}, {"grouping": "contiguous", "activation": "silu"},
     {"groups": 2, "expansion": 2, "threshold": 0.0}],
)  # fmt: skip
@pytest.mark.parametrize("size", [(4, 5), (13, 12)])
def test_aff_without_complex_numbers_is_aff(options, size):
    mixer = randomise(mixers.create("aff", 16, **options)).double().eval()
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    with torch.no_grad():
        grouped = mixer.grouped(x)
        assert torch.allclose(
            mixer.by_real_parts(grouped), mixer.by_transform(grouped), atol=1e-11, rtol=1e-11
        )


# Equality with the source


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_in_onnx_and_pt2(name, tmp_path):
    torch.manual_seed(0)
    network = fuse(randomise(mixers.create(name, 32)).eval())
    x = torch.randn(2, 32, 9, 8)
    program = torch.export.export(
        network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    graph = torch.onnx.export(
        network, (x,), dynamo=True, opset_version=18, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )  # fmt: skip
    session = Session(graph.model_proto.SerializeToString())
    for count in (1, 5):
        x = torch.randn(count, 32, 9, 8)
        with torch.no_grad():
            want = network(x)
            limit = 1e-5 * max(1.0, float(want.abs().max()))
            assert (session(x) - want).abs().max() < limit
            assert (program.module()(x) - want).abs().max() < limit


def test_both_forms_are_proved(made):
    _, _, _, proofs = made
    for proof in proofs.values():
        assert proof.difference < 1e-4
        assert proof.agreement == 1
        assert proof.images == 6


@pytest.mark.parametrize("place", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_opened_is_what_was_described(made, place, count):
    folder, model, source, _ = made
    opened = exports.open_model(folder / place)
    assert opened.model == model
    with torch.no_grad():
        want = source(images(count))
        got = opened.network(images(count))
    assert got.shape == (count, len(LABELS))
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 97])
def test_an_architecture_of_the_default_space(default, side, tmp_path):
    """At a small and an odd side; benchmarks/exports.py does thirty at full size."""
    arch = with_mixer(default, "aff", seed=side)
    torch.manual_seed(side)
    model = described(arch, side)
    source = Model(model.source, LABELS, model.preprocessing).build()
    ONNX.write(tmp_path / "model.onnx", fuse(source), model, {})
    opened = ONNX.load(tmp_path / "model.onnx")
    for count in (1, 5):
        with torch.no_grad():
            difference = opened.network(images(count, side)) - source(images(count, side))
        assert difference.abs().max() < 1e-4


# What stands in the files


def test_onnx_says_what_it_is(made):
    folder, model, _, _ = made
    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version >= 18
    told = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert told["labels"] == list(LABELS)
    assert (told["mean"], told["std"]) == ([0.5], [0.25])
    assert told["architecture"] == {"arch": model.source["arch"]}
    assert (told["flops"], told["run"]) == (12_345, "a run")
    axes = graph.graph.input[0].type.tensor_type.shape.dim
    assert axes[0].dim_param
    assert [axis.dim_value for axis in axes[1:]] == [3, SIDE, SIDE]
    assert graph.graph.input[0].name == "images"
    assert graph.graph.output[0].name == "logits"
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_no_file_tells_of_this_machine(made):
    folder, *_ = made
    here = str(Path(exports.__file__).parent.parent).encode()
    for place in ("model.onnx", "model.pt2"):
        data = (folder / place).read_bytes()
        assert here not in data
        assert b"site-packages" not in data


def test_exporting_says_nothing(micro, tmp_path, capfd, caplog):
    model = described(with_mixer(micro, "xnorm"))
    ONNX.write(tmp_path / "model.onnx", model.build(), model, {})
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_weights_beside_their_description_open_too(made, tmp_path):
    _, model, source, _ = made
    WEIGHTS.write(tmp_path, fuse(source), model, {})
    for path in (tmp_path, tmp_path / "model.safetensors"):
        opened = exports.open_model(path)
        assert opened.model == model
        with torch.no_grad():
            assert (opened.network(images(2)) - source(images(2))).abs().max() < 1e-5


# Proof


class Off(nn.Module):
    """A network's logits, changed."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x):
        return self.change(self.network(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y + 1e-2, "differ"),
        (lambda y: y * float("nan"), "differ"),
        (lambda y: y[:, :-1], "gives logits"),
    ],
)
def test_a_wrong_export_is_no_export(made, change, says):
    _, model, source, _ = made
    with pytest.raises(ExportMismatch, match=says) as caught:
        prove("onnx", exports.Exported(model, Off(source, change)), source, batches(4))
    assert "\n" not in str(caught.value)


def test_another_class_beyond_rounding_is_a_mismatch(made):
    _, model, _, _ = made

    class Near(nn.Linear):
        """Logits 1.5e-5 apart, of which the export exchanges the best two."""

        def forward(self, x):
            return torch.tensor([[1.0, 1.0 - 1.5e-5, 0.0]]).expand(len(x), 3)

    source = Near(1, 1)
    swapped = Off(source, lambda y: torch.stack([y[:, 0] - 1e-5, y[:, 1] + 1e-5, y[:, 2]], 1))
    with pytest.raises(ExportMismatch, match="another class"):
        prove("onnx", exports.Exported(model, swapped), source, batches(4))
    rounding = Off(source, lambda y: torch.stack([y[:, 0] - 2e-5, y[:, 1] + 2e-5, y[:, 2]], 1))
    proof = prove("onnx", exports.Exported(model, rounding), source, batches(4))
    assert proof.agreement == 0


def test_proof_needs_images(made):
    _, model, source, _ = made
    with pytest.raises(InvalidOption, match="no images"):
        prove("onnx", exports.Exported(model, source), source, [])


def test_a_refused_export_leaves_what_was_there(made, tmp_path):
    _, model, source, _ = made
    (tmp_path / "model.pt2").write_bytes(b"before")
    with pytest.raises(ExportMismatch):
        keep(PT2, tmp_path, fuse(source), model, {}, Off(source, lambda y: y + 1), batches(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"before"


def test_operators_that_onnx_lacks_are_named(tmp_path, made):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x).mean((2, 3))

    _, model, _, _ = made
    with pytest.raises(ExportMismatch, match="bessel_j0") as caught:
        ONNX.write(tmp_path / "model.onnx", Odd().eval(), model, {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_fixes_the_batch_is_refused(tmp_path, made):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * len(x)

    _, model, _, _ = made
    for form in (ONNX, PT2):
        with pytest.raises(ExportMismatch, match=r"batch|number of images"):
            form.write(tmp_path / form.place, Fixed().eval(), model, {})


def test_a_network_in_training_is_refused(made, tmp_path):
    _, model, _, _ = made
    with pytest.raises(InvalidOption, match="training mode"):
        ONNX.write(tmp_path / "model.onnx", model.build().train(), model, {})


# Timing


def test_timing_has_both_at_each_batch(made):
    folder, _, source, _ = made
    found = timed(exports.open_model(folder / "model.onnx").network, source, SIDE, {1: 5, 2: 5})
    assert set(found) <= {"1", "2"}  # another process may run beside the tests
    for figures in found.values():
        for side in ("exported", "eager"):
            assert 0 < figures[side]["lower"] <= figures[side]["median"] <= figures[side]["upper"]


# int8


@pytest.mark.timeout(120)
def test_int8_is_smaller_close_and_opens(made, tmp_path):
    folder, model, source, _ = made
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    found = quantise(tmp_path / "model.onnx", [images(8, seed=9)], batches(16, 16))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.onnx", PLACE])
    assert found.bytes_after < found.bytes_before
    assert found.layers > found.floats
    assert found.images == 32
    opened = exports.open_model(tmp_path / PLACE)
    assert opened.model == model
    with torch.no_grad():
        want, got = source(images(16)), opened.network(images(16))
    assert torch.corrcoef(torch.stack([want.flatten(), got.flatten()]))[0, 1] > 0.98
    assert (want - got).abs().max() > 1e-6  # it is another graph
    filters = json.loads(opened.network.metadata["spectral_nodes"])
    nodes = {node.name: node for node in onnx.load(tmp_path / PLACE).graph.node}
    products = [n for n in filters if n in nodes and nodes[n].op_type == "MatMul"]
    assert products
    assert not any("Quantize" in part for name in products for part in nodes[name].input)


def test_int8_quarters_weights_of_any_size(tmp_path):
    """Large weights too are constants of their products: torch's exporter folds small ones only."""
    block = Block.of("identity", 4.0)
    model = described(Architecture(Stem("conv8"), (Stage(192, (block, block)),)), side=32)
    ONNX.write(tmp_path / "model.onnx", model.build(), model, {})
    found = quantise(tmp_path / "model.onnx", [images(4, 32)], [(images(4, 32), torch.zeros(4))])
    assert (found.layers, found.floats) == (10, 0)  # 3 of the stem, 3 a block, the classifier
    assert found.bytes_after < 0.4 * found.bytes_before


def test_int8_figures_are_of_these_images(made, tmp_path):
    """Accuracies against a count by hand."""
    folder, _, _, _ = made
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    judged = batches(5, 6)
    found = quantise(tmp_path / "model.onnx", [images(4)], judged)
    for place, accuracy in (("model.onnx", found.accuracy_before), (PLACE, found.accuracy_after)):
        network = exports.open_model(tmp_path / place).network
        hits = [int(network(x).argmax(1)[i] == y[i]) for x, y in judged for i in range(len(y))]
        assert accuracy == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(("calibration", "judged"), [([], [4]), ([4], [])])
def test_int8_needs_images_and_leaves_nothing(made, tmp_path, calibration, judged):
    folder, *_ = made
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(InvalidOption, match="no images"):
        quantise(tmp_path / "model.onnx", [images(n) for n in calibration], batches(*judged))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# Broken and foreign files


@pytest.mark.parametrize("place", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_file_cut_short_is_one_line(made, tmp_path, place, share):
    folder, *_ = made
    data = (folder / place).read_bytes()
    (tmp_path / place).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidCheckpoint) as caught:
        exports.open_model(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / place) in str(caught.value)


def test_an_onnx_of_others_is_refused(tmp_path):
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 3] x) => (float[N, 3] y)'
        " { y = Relu(x) }"
    )
    onnx.save(graph, tmp_path / "theirs.onnx")
    with pytest.raises(InvalidCheckpoint, match="not a model of mixnas"):
        exports.open_model(tmp_path / "theirs.onnx")


@pytest.mark.parametrize("name", ["nothing.onnx", "notes.txt", "folder"])
def test_what_is_no_model_is_one_line(tmp_path, name):
    if name == "notes.txt":
        (tmp_path / name).write_text("hello")
    if name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(InvalidCheckpoint):
        exports.open_model(tmp_path / name)
