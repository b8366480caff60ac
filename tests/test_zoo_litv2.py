"""LITv2 against its equations on the authors' names and shapes, and against published counts."""

from math import floor, sqrt

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixnas import count_flops, count_params, fuse, zoo
from mixnas.errors import InvalidCheckpoint, InvalidOption
from mixnas.testing import MixerContract

NAMES = ("litv2_s", "litv2_m", "litv2_b")
TINY = {
    "dim": 16,
    "depths": (1, 1, 2, 1),
    "heads": (2, 2, 4, 4),
    "windows": (0, 3, 2, 1),
    "alpha": 0.5,
    "num_classes": 7,
}
OTHERS = {
    "published": {},
    "all low, biases none": {"alpha": 1.0, "windows": (2, 2, 2, 2), "qkv_bias": False},
    "all high, own scale": {"alpha": 0.0, "windows": (4, 3, 2, 2), "scale": 0.3},
    "patches of 2, no norm": {"patch": 2, "patch_norm": False, "mlp_ratio": 2.5},
    "two stages": {"depths": (1, 2), "heads": (2, 4), "windows": (2, 1), "alpha": 0.3},
}


def difference(a, b):
    return (a - b).abs().max().item()


def pictures(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def linear(prefix, into, out, bias=True):
    yield f"{prefix}.weight", (out, into)
    if bias:
        yield f"{prefix}.bias", (out,)


def norm(prefix, width):
    yield f"{prefix}.weight", (width,)
    yield f"{prefix}.bias", (width,)


def attention(prefix, dim, heads, window, alpha, bias):
    low = heads if window == 1 else int(heads * alpha)
    low, high = low * dim // heads, (heads - low) * dim // heads
    if low:
        yield from linear(f"{prefix}.l_q", dim, low, bias)
        yield from linear(f"{prefix}.l_kv", dim, 2 * low, bias)
        yield from linear(f"{prefix}.l_proj", low, low)
    if high:
        yield from linear(f"{prefix}.h_qkv", dim, 3 * high, bias)
        yield from linear(f"{prefix}.h_proj", high, high)


def mlp(prefix, dim, hidden):
    yield from linear(f"{prefix}.fc1", dim, hidden)
    yield f"{prefix}.dwconv.dwconv.weight", (hidden, 1, 3, 3)
    yield f"{prefix}.dwconv.dwconv.bias", (hidden,)
    yield from linear(f"{prefix}.fc2", hidden, dim)


def merge(prefix, dim):
    yield f"{prefix}.dconv.weight", (2 * dim, dim, 2, 2)
    yield f"{prefix}.dconv.bias", (2 * dim,)
    yield f"{prefix}.dconv.conv_offset.weight", (8, dim, 2, 2)
    yield f"{prefix}.dconv.conv_offset.bias", (8,)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.norm_layer.{leaf}", (2 * dim,)
    yield f"{prefix}.norm_layer.num_batches_tracked", ()


def authors_shapes(
    *,
    dim,
    depths,
    heads,
    windows,
    alpha,
    mlp_ratio=4.0,
    qkv_bias=True,
    patch=4,
    patch_norm=True,
    num_classes=1000,
    **_,
):
    """The authors' names with their shapes, in their order."""
    yield "patch_embed.proj.weight", (dim, 3, patch, patch)
    yield "patch_embed.proj.bias", (dim,)
    yield from norm("patch_embed.norm", dim) if patch_norm else ()
    for i, depth in enumerate(depths):
        for j in range(depth):
            prefix = f"layers.{i}.blocks.{j}"
            if windows[i]:
                yield from norm(f"{prefix}.norm1", dim)
                yield from attention(f"{prefix}.attn", dim, heads[i], windows[i], alpha, qkv_bias)
            yield from norm(f"{prefix}.norm2", dim)
            yield from mlp(f"{prefix}.mlp", dim, int(dim * mlp_ratio))
        if i + 1 < len(depths):
            yield from merge(f"layers.{i}.downsample", dim)
            dim *= 2
    yield from norm("norm", dim)
    yield from linear("head", dim, num_classes)


def authors_state(options, seed=3):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in authors_shapes(**options):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape, generator=generator) * (0.6 if fan == 1 else fan**-0.5)
    return state


class Equations:
    """The network again, from the papers' equations, on the authors' names."""

    def __init__(self, state, options):
        self.state = {k: t.double() for k, t in state.items()}
        self.options = {"patch": 4, "scale": None, **options}

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        """Over the last axis."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def softmax_of(self, q, k, v, head_width):
        """Attend with each head on its own: ``(N, C)``, ``(M, C)``, ``(M, C)``."""
        scale = self.options["scale"] or head_width**-0.5
        heads = zip(*(t.split(head_width, 1) for t in (q, k, v)), strict=True)
        return torch.cat([(a @ b.T * scale).softmax(1) @ c for a, b, c in heads], 1)

    def hilo(self, x, name, heads, window):
        """One sample, ``(H, W, C)``."""
        height, width, dim = x.shape
        head_width = dim // heads
        padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        out = []
        if f"{name}.h_proj.weight" in self.state:
            high = self.linear(padded, f"{name}.h_qkv")
            mixed = torch.empty(*padded.shape[:2], high.shape[-1] // 3, dtype=x.dtype)
            for i in range(0, padded.shape[0], window):
                for j in range(0, padded.shape[1], window):
                    cell = high[i : i + window, j : j + window]
                    q, k, v = cell.flatten(0, 1).chunk(3, 1)
                    y = self.softmax_of(q, k, v, head_width).reshape(*cell.shape[:2], -1)
                    mixed[i : i + window, j : j + window] = y
            out.append(self.linear(mixed, f"{name}.h_proj"))
        if f"{name}.l_proj.weight" in self.state:
            q = self.linear(padded, f"{name}.l_q").flatten(0, 1)
            cells = padded.unfold(0, window, window).unfold(1, window, window).mean((3, 4))
            k, v = self.linear(cells.flatten(0, 1), f"{name}.l_kv").chunk(2, 1)
            mixed = self.softmax_of(q, k, v, head_width).reshape(*padded.shape[:2], -1)
            out.append(self.linear(mixed, f"{name}.l_proj"))
        return torch.cat(out, -1)[:height, :width]

    def mlp(self, x, name):
        y = self.linear(x, f"{name}.fc1").movedim(-1, 0)
        weight, bias = (self.state[f"{name}.dwconv.dwconv.{leaf}"] for leaf in ("weight", "bias"))
        y = F.conv2d(y[None], weight, bias, padding=1, groups=len(weight))[0]
        return self.linear(F.gelu(y.movedim(0, -1)), f"{name}.fc2")

    def merge(self, x, name):
        """Each tap is read where its own offset sends it, bilinearly, zeros outside."""
        weight, bias = self.state[f"{name}.dconv.weight"], self.state[f"{name}.dconv.bias"]
        offset = F.conv2d(
            x.movedim(-1, 0)[None],
            self.state[f"{name}.dconv.conv_offset.weight"],
            self.state[f"{name}.dconv.conv_offset.bias"],
            stride=2,
        )[0]
        rows, columns = offset.shape[1:]
        y = bias.repeat(rows, columns, 1)
        for i in range(rows):
            for j in range(columns):
                for tap in range(4):
                    row, column = tap // 2, tap % 2
                    place = (
                        2 * i + row + offset[2 * tap, i, j].item(),
                        2 * j + column + offset[2 * tap + 1, i, j].item(),
                    )
                    y[i, j] += weight[:, :, row, column] @ bilinear(x, *place)
        mean, var, gain, shift = (
            self.state[f"{name}.norm_layer.{leaf}"]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.gelu((y - mean) / (var + 1e-5).sqrt() * gain + shift)

    def sample(self, image):
        patch = self.options["patch"]
        image = F.pad(image, (0, -image.shape[2] % patch, 0, -image.shape[1] % patch))
        weight, bias = (self.state[f"patch_embed.proj.{leaf}"] for leaf in ("weight", "bias"))
        cells = image.unfold(1, patch, patch).unfold(2, patch, patch)
        x = torch.einsum("chwij,ocij->hwo", cells, weight) + bias
        x = self.norm(x, "patch_embed.norm") if "patch_embed.norm.bias" in self.state else x
        for i, depth in enumerate(self.options["depths"]):
            heads, window = self.options["heads"][i], self.options["windows"][i]
            for j in range(depth):
                name = f"layers.{i}.blocks.{j}"
                if window:
                    x = x + self.hilo(self.norm(x, f"{name}.norm1"), f"{name}.attn", heads, window)
                x = x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp")
            if i + 1 < len(self.options["depths"]):
                x = self.merge(x, f"layers.{i}.downsample")
        return self.linear(self.norm(x, "norm").mean((0, 1)), "head")


def bilinear(x, row, column):
    """Read ``(H, W, C)`` between its points."""
    top, left = floor(row), floor(column)
    read = torch.zeros(x.shape[2], dtype=x.dtype)
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                read += (1 - abs(row - i)) * (1 - abs(column - j)) * x[i, j]
    return read


@pytest.mark.parametrize("size", [(64, 64), (33, 61)])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_follows_the_equations_with_the_authors_weights(other, size, tmp_path):
    options = {**TINY, **other}
    state = authors_state(options)
    torch.save({"model": state, "epoch": 299}, tmp_path / "authors.pth")
    network = zoo.create("litv2_s", checkpoint=tmp_path / "authors.pth", **options).double().eval()
    images = pictures(2, 3, *size)
    equations = Equations(state, options)
    expected = torch.stack([equations.sample(image) for image in images])
    assert expected.abs().max() > 0.5
    with torch.no_grad():
        assert difference(network(images), expected) < 1e-10
        assert difference(fuse(network)(images), expected) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_names_and_shapes_are_ours(name):
    with torch.device("meta"):
        ours = zoo.create(name).state_dict()
        theirs = {k: torch.empty(shape) for k, shape in authors_shapes(**zoo.options(name))}
    mapped = zoo.get(name)[0].translate(theirs)
    assert {k: t.shape for k, t in mapped.items()} == {k: t.shape for k, t in ours.items()}


def test_the_authors_weights_load_whole(tmp_path):
    state = authors_state(zoo.options("litv2_s"))
    save_file(state, tmp_path / "authors.safetensors")
    network = zoo.create("litv2_s", checkpoint=tmp_path / "authors.safetensors")
    ours = network.state_dict()
    mapped = zoo.get("litv2_s")[0].translate(state)
    assert all(torch.equal(ours[k], mapped[k]) for k in ours)
    save_file(ours, tmp_path / "own.safetensors")
    again = zoo.create("litv2_s", checkpoint=tmp_path / "own.safetensors").state_dict()
    assert all(torch.equal(ours[k], again[k]) for k in ours)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(authors_state(TINY), tmp_path / "tiny.pth")
    with pytest.raises(InvalidCheckpoint, match="not weights of litv2_s"):
        zoo.create("litv2_s", checkpoint=tmp_path / "tiny.pth")
    with pytest.raises(
        InvalidCheckpoint, match=r"head\..* give num_classes=, its number of classes"
    ):
        zoo.create("litv2_s", checkpoint=tmp_path / "tiny.pth", **{**TINY, "num_classes": 8})
    torch.save({"layers.2.blocks.0.attn.l_kv.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(InvalidCheckpoint, match="not weights of litv2_s"):
        zoo.create("litv2_s", checkpoint=tmp_path / "odd.pth", **TINY)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("litv2_s", 27_844_000), ("litv2_m", 48_830_368), ("litv2_b", 86_520_704)],
)
def test_parameters_are_exact(name, parameters):
    with torch.device("meta"):
        network = zoo.create(name)
    assert count_params(network) == parameters
    norms = (2 + 4 + 8) * zoo.options(name)["dim"]
    assert count_params(fuse(network)) == parameters - 2 * norms


def test_flops_are_within_one_per_cent_of_the_published():
    with torch.device("meta"):
        network = zoo.create("litv2_s")
    counted = count_flops(network)
    assert counted == 3_735_631_104
    assert abs(counted / zoo.get("litv2_s")[1].flops - 1) < 0.01


def test_a_new_network_starts_as_published():
    torch.manual_seed(0)
    network = zoo.create("litv2_s", depths=(1, 1, 1, 1)).eval()
    merge = network.stages[0].merge
    x = pictures(1, 96, 5, 8, dtype=torch.float32)
    plain = F.conv2d(x, merge.sample.weight, merge.sample.bias, stride=2)
    with torch.no_grad():
        assert difference(merge(x), F.gelu(plain / sqrt(1 + 1e-5))) < 1e-5  # offsets start at 0
    assert 0.99 / sqrt(4 * 96) < merge.sample.weight.abs().max() <= 1 / sqrt(4 * 96)
    block = network.stages[2].blocks[0]
    assert abs(block.mlp.local.weight.std() / sqrt(2 / 9) - 1) < 0.02
    matrices = [
        block.mixer.low_key_value.weight,
        block.mixer.high_query_key_value.weight,
        block.mlp.expand.weight,
        network.head.weight,
    ]
    assert all(abs(matrix.std() / 0.02 - 1) < 0.02 for matrix in matrices)
    biases = [p for n, p in network.named_parameters() if n.endswith("bias")]
    assert sum(bool(b.any()) for b in biases) == 1 + 3  # the patches' and the merges' alone


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = zoo.create("litv2_s", **{**TINY, "alpha": 0.9}).train()
    network(pictures(3, 3, 101, 67, dtype=torch.float32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    network = zoo.create("litv2_s", drop_path=0.2, **TINY)
    blocks = [block for stage in network.stages for block in stage.blocks]
    assert [round(b.drop_path.drop_prob, 6) for b in blocks] == [0, 0.05, 0.1, 0.15, 0.2]
    images = pictures(2, 3, 64, 64, dtype=torch.float32)
    plain = zoo.create("litv2_s", **TINY)
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network.eval()(images), plain.eval()(images))


def test_dropout_acts_in_training_only():
    network = zoo.create("litv2_s", **{**TINY, "dropout": 0.5}).eval()
    images = pictures(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(network(images), network(images))
        network.train()
        assert difference(network(images), network(images)) > 1e-4


def test_half_precision_samples_in_full():
    network = zoo.create("litv2_s", **TINY).eval()
    images = pictures(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images).float()
        whole = network.bfloat16()(images.bfloat16()).float()
    for y in (half, whole):
        assert (y - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_features_alone_and_other_heads():
    network = zoo.create("litv2_s", in_chans=1, **{**TINY, "num_classes": 0}).eval()
    images = pictures(1, 1, 29, 300, dtype=torch.float32)
    with torch.no_grad():
        assert network.forward_features(images).shape == (1, 128, 1, 9)
        assert network(images).shape == (1, 128)
        network.reset_classifier(3)
        assert network(images).shape == (1, 3)


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(NAMES), width=st.floats(0.05, 2))
def test_any_width_builds_and_heads_keep_theirs(name, width):
    with torch.device("meta"):
        network = zoo.create(name, width=width)
    options = zoo.options(name, width)
    assert abs(options["dim"] - max(8, width * zoo.options(name)["dim"])) <= 4
    for i in (2, 3):
        assert options["dim"] * 2**i == 32 * options["heads"][i]
        mixer = network.stages[i].blocks[0].mixer
        assert mixer.choices["head_width"] == (32,)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"heads": (3, 6, 11, 24)}, "num_heads=11 does not divide 384"),
        ({"alpha": 1.5}, "alpha=1.5 is not between 0 and 1"),
        ({"windows": (0, 0, 2)}, "windows has 3 entries, depths 4"),
        ({"windows": (0, 0, -2, 1)}, "must not be below 0"),
        ({"depths": ()}, "0 stages"),
        ({"window": 2}, "did you mean 'windows'"),
    ],
)
def test_impossible_settings_are_refused(setting, reason):
    with pytest.raises(InvalidOption, match=reason):
        zoo.create("litv2_s", **setting)


def test_a_picture_too_small_is_refused():
    network = zoo.create("litv2_s", **TINY).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 29, 29)).isfinite().all()
        with pytest.raises(InvalidOption, match=r"28 x 200 pixels .* give 29 pixels a side"):
            network(torch.zeros(1, 3, 28, 200))


@pytest.mark.parametrize("name", ["hilo"])
class TestHiLoWithItsOwnScale(MixerContract):
    """The options that LITv2's class gives to its mixer keep the mixer's laws."""

    choices = {"hilo": {"head_width": (8,), "window": (1, 2), "alpha": (0.5,)}}
    options = {"hilo": {"scale": 0.3, "qkv_bias": False}}
