"""AFFNet: the published counts, the authors' weights, and their equations computed again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixnas import mixers, zoo
from mixnas.cost.count import count_flops, count_params
from mixnas.elastic import extract_weights
from mixnas.errors import InvalidCheckpoint, InvalidOption, InvalidSpace
from mixnas.folding import fuse
from mixnas.testing import images, randomise
from mixnas.zoo.affnet import AFFNet, DeviationNorm, InvertedResidual

MICRO = {
    "widths": (8, 16, 16, 24, 32),
    "depths": (1, 2),
    "blocks": (1, 2, 1),
    "expansion": 2.0,
    "stem": 8,
    "head_limit": 48,
}
"""A small network of the system, for everything that size does not change."""

PUBLISHED = {
    "affnet_et": (1_436_264, 0.4),
    "affnet_t": (2_654_232, 0.8),
    "affnet": (5_568_696, 1.5),
}


def micro(**options):
    return zoo.create("affnet_et", **{"num_classes": 7, **MICRO, **options})


def lively(network, seed=0):
    """Draw weights that keep activations near 1, and norms and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.dim() > 1 and "bias" not in name:
                p.normal_(std=p[0, 0].numel() ** -0.5, generator=generator)
            elif "weight" in name:
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(std=0.2, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2, generator=generator)
                module.running_var.uniform_(2, 4, generator=generator)
    return network.double().eval()


# The authors' names and shapes, by the rule of their repository.


def convolution(name, out, channels, kernel=1, slopes=False):
    yield f"{name}.block.conv.weight", (out, channels, kernel, kernel)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.block.norm.{leaf}", (out,)
    yield f"{name}.block.norm.num_batches_tracked", ()
    if slopes:
        yield f"{name}.block.act.weight", (out,)


def residual(name, channels, out, ratio, slopes=False):
    hidden = int(channels * ratio + 4) // 8 * 8
    if ratio != 1:
        yield from convolution(f"{name}.block.exp_1x1", hidden, channels, 1, slopes)
    yield from convolution(f"{name}.block.conv_3x3", hidden, 1, 3, slopes)
    yield from convolution(f"{name}.block.red_1x1", out, hidden)


def official(options, classes, slopes=False):
    """Yield every name and shape of the authors' state dict."""
    widths, ratio = options["widths"], options["expansion"]
    stem = options.get("stem", 16)
    yield from convolution("conv_1", stem, 3, 3, slopes)
    last = stem
    for stage, depth in enumerate(options.get("depths", (1, 3))):
        for block in range(depth):
            name = f"layer_{stage + 1}.{block}"
            yield from residual(name, last, widths[stage], ratio, slopes)
            last = widths[stage]
    for stage, depth in enumerate(options.get("blocks", (2, 4, 3)), 2):
        name, width = f"layer_{stage + 1}", widths[stage]
        yield from residual(f"{name}.0", last, width, ratio, slopes)
        last, part = width, width // 8
        for block in range(depth):
            inner = f"{name}.1.global_rep.{block}"
            for norm in ("norm1", "norm2"):
                yield from ((f"{inner}.{norm}.{leaf}", (width,)) for leaf in ("weight", "bias"))
            yield from residual(f"{inner}.mlp", width, width, options.get("ratio", 2), slopes)
            for index in (1, 2):
                yield f"{inner}.filter.w{index}", (2, 8, part, part)
                yield f"{inner}.filter.b{index}", (2, 8, part)
            if slopes:
                yield from ((f"{inner}.filter.{act}.weight", (1,)) for act in ("act", "act2"))
        yield from ((f"{name}.1.global_rep.{depth}.{x}", (width,)) for x in ("weight", "bias"))
        yield from convolution(f"{name}.1.conv_proj", width, width)
        yield from convolution(f"{name}.1.fusion", width, 2 * width, 1, slopes)
    head = min(4 * last, options.get("head_limit", 960))
    yield from convolution("conv_1x1_exp", head, last, 1, slopes)
    yield from (("classifier.fc.weight", (classes, head)), ("classifier.fc.bias", (classes,)))


def weights(options, classes=7, slopes=False, seed=0):
    """Draw a state dict of the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in official(options, classes, slopes):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            x = torch.tensor(3)
        elif name.endswith("running_var"):
            x = 2 + x.abs()
        elif "norm" in name and name.endswith("weight"):
            x = 1 + 0.2 * x
        elif name.endswith(".weight") and len(shape) > 1:
            x = x * (2 / x[0].numel()) ** 0.5
        state[name] = x if x.dim() == 0 or len(shape) > 1 else x * 0.5
    return state


# The network again, from the authors' names and the paper's equations.


class Reference:
    def __init__(self, state, norm, activation):
        self.state, self.norm = state, norm
        self.act = {"silu": F.silu, "relu": F.relu}[activation]

    def affine(self, name, y):
        weight, bias = (self.state[f"{name}.{leaf}"] for leaf in ("weight", "bias"))
        return y * weight[:, None, None] + bias[:, None, None]

    def conv(self, name, y, stride=1, groups=1, act=None):
        weight = self.state[f"{name}.block.conv.weight"]
        y = F.conv2d(y, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, variance = (
            self.state[f"{name}.block.norm.running_{leaf}"][:, None, None]
            for leaf in ("mean", "var")
        )
        y = self.affine(f"{name}.block.norm", (y - mean) / (variance + 1e-5).sqrt())
        return y if act is None else act(y)

    def mobile(self, name, y, stride=1):
        z = self.conv(f"{name}.block.exp_1x1", y, act=self.act)
        z = self.conv(f"{name}.block.conv_3x3", z, stride, z.shape[1], self.act)
        z = self.conv(f"{name}.block.red_1x1", z)
        return y + z if z.shape == y.shape and stride == 1 else z

    def normed(self, name, y):
        if self.norm == "layer_norm_2d":
            mean = y.mean((1, 2, 3), keepdim=True)
            y = (y - mean) / (y.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        else:
            deviation = y.std(1, correction=0, keepdim=True)
            y = (y - y.mean(1, keepdim=True)) / (deviation + 1e-5)
        return self.affine(name, y)

    def linear(self, re, im, weight, bias):
        product = "bgihw,gio->bgohw"
        real = torch.einsum(product, re, weight[0]) - torch.einsum(product, im, weight[1])
        imag = torch.einsum(product, im, weight[0]) + torch.einsum(product, re, weight[1])
        return real + bias[0][..., None, None], imag + bias[1][..., None, None]

    def filtered(self, name, y):
        w1, b1, w2, b2 = (self.state[f"{name}.{leaf}"] for leaf in ("w1", "b1", "w2", "b2"))
        spectrum = torch.fft.rfft2(y, norm="ortho")
        z = spectrum.unflatten(1, (8, -1))
        re, im = self.linear(z.real, z.imag, w1, b1)
        re, im = self.linear(self.act(re), self.act(im), w2, b2)
        mask = torch.complex(F.softshrink(re, 0.01), F.softshrink(im, 0.01)).flatten(1, 2)
        return torch.fft.irfft2(mask * spectrum, s=y.shape[2:], norm="ortho") + y

    def block(self, name, y):
        z = self.mobile(f"{name}.mlp", self.normed(f"{name}.norm1", y))
        return y + self.filtered(f"{name}.filter", self.normed(f"{name}.norm2", z))

    def __call__(self, x, depths, blocks):
        x = self.conv("conv_1", x, 2, act=self.act)
        for stage, depth in enumerate(depths, 1):
            for block in range(depth):
                x = self.mobile(f"layer_{stage}.{block}", x, 2 if (stage, block) == (2, 0) else 1)
        for stage, depth in enumerate(blocks, 3):
            x, name = self.mobile(f"layer_{stage}.0", x, 2), f"layer_{stage}.1"
            y = x
            for block in range(depth):
                y = self.block(f"{name}.global_rep.{block}", y)
            y = self.conv(f"{name}.conv_proj", self.normed(f"{name}.global_rep.{depth}", y))
            x = self.conv(f"{name}.fusion", torch.cat([x, y], 1), act=self.act)
        x = self.conv("conv_1x1_exp", x, act=self.act).mean((2, 3))
        return x @ self.state["classifier.fc.weight"].T + self.state["classifier.fc.bias"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_as_published(name):
    params, flops = PUBLISHED[name]
    _, variant = zoo.get(name)
    with torch.device("meta"):
        network = zoo.create(name)
    assert count_params(network) == params
    assert int(params / 1e5) / 10 == variant.params / 1e6  # published truncated
    assert round(variant.flops / 1e9, 1) == flops
    assert round(count_flops(zoo.create(name), variant.image) / 1e9, 1) == flops


@pytest.mark.parametrize("name", PUBLISHED)
def test_authors_names_and_shapes_are_ours(name):
    options = zoo.options(name)
    system, _ = zoo.get(name)
    theirs = {key: torch.empty(shape, device="meta") for key, shape in official(options, 1000)}
    with torch.device("meta"):
        ours = zoo.create(name).state_dict()
    translated = system.translate(theirs)
    assert {k: v.shape for k, v in translated.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (97, 40)])
@pytest.mark.parametrize(
    ("activation", "norm"), [("silu", "layer_norm_2d"), ("relu", "layer_norm")]
)
def test_authors_weights_compute_their_equations(tmp_path, size, activation, norm):
    state = weights(MICRO)
    torch.save({"model_state_dict": state}, tmp_path / "weights.pt")
    network = micro(
        activation=activation, norm=norm, image=size, checkpoint=tmp_path / "weights.pt"
    )
    system, _ = zoo.get("affnet_et")
    network.double().load_state_dict(system.translate(state))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = Reference(state, norm, activation)(x, MICRO["depths"], MICRO["blocks"])
        assert expected.std() > 0.05
        assert (network.eval()(x) - expected).abs().max() < 1e-10
        single = network.float()(x.float()).double()
    assert (single - expected).norm() < 1e-5 * expected.norm()


def test_learnt_slopes_are_translated(tmp_path):
    state = weights(MICRO, slopes=True)
    torch.save(state, tmp_path / "weights.pt")
    network = micro(activation="prelu", checkpoint=tmp_path / "weights.pt")
    mask = network.stages[2][1].blocks[0].mixer
    name = "layer_3.1.global_rep.0.filter"
    expected = torch.cat([state[f"{name}.act.weight"], state[f"{name}.act2.weight"]])
    assert torch.equal(mask.slopes.value, expected.float())
    theirs = state["conv_1.block.act.weight"].float()
    assert torch.equal(network.stem[1].weight, theirs)


def test_a_classifier_of_another_size_is_refused(tmp_path):
    torch.save(weights(MICRO, classes=5), tmp_path / "weights.pt")
    with pytest.raises(InvalidCheckpoint, match=r"head\.weight is \(5, 48\) there"):
        micro(checkpoint=tmp_path / "weights.pt")


SETTINGS = [
    {},
    {"activation": "prelu"},
    {"activation": "relu", "norm": "layer_norm", "fusion": (True, False, True)},
    {"norm": "batch_norm", "pool": "abs", "double_skip": True},
    {"norm": "identity", "mask_activation": "relu", "groups": 4, "mask_expansion": 2},
    {"expansion": 1, "ratio": 1, "output_stride": 16, "dropout": 0.1, "drop_path": 0.1},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_folds_and_learns(options):
    network = lively(micro(**options))
    x = torch.randn(2, 3, 33, 71, dtype=torch.float64)
    y = network(x)
    assert y.shape == (2, 7)
    y.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    with torch.no_grad():
        folded = fuse(network)
        outside = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(outside) == (11 if options.get("norm") == "batch_norm" else 0)
        assert (folded(x) - y).abs().max() < 1e-10 * max(1, y.abs().max())
        y = network.float()(x.float())
        assert (fuse(network)(x.float()) - y).abs().max() < 1e-5 * max(1, y.abs().max())


def test_trains():
    network = micro(drop_path=0.5, dropout=0.5).train()
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_exports_at_any_batch():
    network = micro(blocks=(1, 1, 1)).eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(network, (torch.randn(2, 3, 65, 40),), dynamic_shapes=batch)
    x = torch.randn(5, 3, 65, 40)
    with torch.no_grad():
        y = network(x)
        assert (program.module()(x) - y).abs().max() < 1e-5 * y.abs().max()


@pytest.mark.parametrize(("stride", "size"), [(32, (3, 4)), (16, (5, 7)), (8, (10, 13))])
def test_output_stride_keeps_maps_larger(stride, size):
    features = micro(output_stride=stride).eval().forward_features(torch.randn(1, 3, 77, 100))
    assert features.shape == (1, 48, *size)


def test_output_stride_dilates_what_follows():
    stages = micro(output_stride=8).stages
    assert [stages[i][0].depthwise[0].conv.dilation for i in (2, 3, 4)] == [(1, 1), (1, 1), (2, 2)]
    assert not stages[4][0].residual


@pytest.mark.parametrize("pool", ["mean", "abs", "rms"])
def test_pools(pool):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    means = {"mean": x.mean((2, 3)), "abs": x.abs().mean((2, 3))}
    expected = means.get(pool, x.square().mean((2, 3)) ** -0.5)
    assert torch.allclose(micro(pool=pool).eval().pool(x), expected)


def test_deviation_norm_adds_eps_to_the_deviation():
    norm = randomise(DeviationNorm(6, eps=0.5)).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    a, weight, bias = x.numpy(), *(p.detach().numpy()[:, None, None] for p in norm.parameters())
    expected = (a - a.mean(1, keepdims=True)) / (a.std(1, keepdims=True) + 0.5) * weight + bias
    assert np.abs(norm(x).detach().numpy() - expected).max() < 1e-12
    flat = torch.ones(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    norm(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_starts_as_published():
    torch.manual_seed(0)
    network = zoo.create("affnet_et", num_classes=100)
    bound = (6 / (100 + 576)) ** 0.5
    assert 0.99 * bound < network.head.weight.abs().max() <= bound
    assert not network.head.bias.any()
    for table in network.stages[4][1].blocks[0].mixer.children():
        assert abs(table.value.std() - 0.02) < 0.002
    kernel = network.stages[4][0].project[0].conv.weight
    assert 0.99 < kernel.abs().max() * kernel[0].numel() ** 0.5 <= 1


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 3), st.sampled_from(sorted(PUBLISHED)))
def test_any_width_builds(width, name):
    options = zoo.options(name, width)
    assert all(w % 8 == 0 for w in (*options["widths"], options["stem"]))
    published = zoo.options(name)["widths"]
    for new, old in zip(options["widths"], published, strict=True):
        assert abs(new - old * width) <= 4 or new == 8
    with torch.device("meta"):
        network = zoo.create(name, width=width)
    assert network.head.in_features == min(4 * options["widths"][-1], options["head_limit"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swich"}, "no activation 'swich'"),
        ({"norm": "layernorm"}, "did you mean 'layer_norm'"),
        ({"pool": "max"}, "known: abs, mean, rms"),
        ({"output_stride": 4}, "no output_stride '4'"),
        ({"widths": (8, 16, 20, 24, 32)}, "multiples of groups=8"),
        ({"widths": (8, 16)}, "must be 5 values"),
        ({"blocks": (1, 0, 1)}, "must all be at least 1"),
        ({"expansion": 1, "stem": 12}, "takes multiples of 8 channels, not 12"),
        ({"window": 2}, "no setting 'window'"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(InvalidOption, match=message):
        micro(**options)


def test_hidden_width_is_a_multiple_of_eight():
    block = InvertedResidual(104, 104, ratio=1.1, activation="silu")
    assert block.expand[0].conv.out_channels == 112


# The mixer's options.


@pytest.mark.parametrize("size", [(5, 6), (13, 11)])
def test_grouping_is_a_permutation_of_the_channels(size):
    ours = randomise(mixers.create("aff", 32, activation="silu")).double()
    theirs = mixers.create("aff", 32, activation="silu", grouping="contiguous").double()
    theirs.load_state_dict(ours.state_dict())
    order = torch.arange(32).view(4, 8).T.flatten()
    x = images(2, 32, size, torch.float64)
    with torch.no_grad():
        assert (ours(x)[:, order] - theirs(x[:, order])).abs().max() < 1e-12
        assert theirs(x).stride(1) == 1


@pytest.mark.parametrize("size", [(5, 6), (13, 11)])
def test_mask_options_against_numpy(size):
    options = {"groups": 4, "expansion": 3, "threshold": 0.2, "grouping": "contiguous"}
    mixer = randomise(mixers.create("aff", 12, activation="prelu", **options)).double()
    x = images(1, 12, size, torch.float64)
    tables = (mixer.weight_in, mixer.bias_in, mixer.weight_out, mixer.bias_out)
    w1, b1, w2, b2 = (
        t.value.detach().numpy()[0] + 1j * t.value.detach().numpy()[1] for t in tables
    )
    slopes = mixer.slopes.value.detach().numpy()
    spectrum = np.fft.rfft2(x.numpy()[0], norm="ortho").reshape(4, 3, size[0], -1)
    z = np.einsum("goi,gihw->gohw", w1, spectrum) + b1[..., None, None]
    z = sum(
        np.where(part > 0, part, part * slope) * unit
        for part, slope, unit in ((z.real, slopes[0], 1), (z.imag, slopes[1], 1j))
    )
    z = np.einsum("goi,gihw->gohw", w2, z) + b2[..., None, None]
    mask = sum(
        np.sign(part) * np.maximum(np.abs(part) - 0.2, 0) * unit
        for part, unit in ((z.real, 1), (z.imag, 1j))
    )
    masked = (mask * spectrum).reshape(12, size[0], -1)
    rows = np.fft.ifft(masked, axis=1, norm="ortho")
    expected = np.fft.irfft(rows, n=size[1], axis=2, norm="ortho") + x.numpy()[0]
    assert np.abs(mixer(x).detach().numpy()[0] - expected).max() < 1e-10
    assert count_params(mixer) == 4 * 3 * 12**2 // 4 + 2 * 4 * 12 + 2


@pytest.mark.parametrize(
    "options", [{"grouping": "contiguous"}, {"groups": 4, "expansion": 2, "activation": "prelu"}]
)
def test_narrow_filter_equals_extracted(options):
    wide = randomise(mixers.create("aff", 32, **options)).double()
    alone = mixers.create("aff", 16, **options).double()
    x = images(2, 16, (5, 6), torch.float64)
    extract_weights(wide, alone, lambda: wide(x))
    with torch.no_grad():
        assert (alone(x) - wide(x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (60, {}, "not a multiple of 8"),
        (60, {"groups": 7}, "not a multiple of 7"),
        (64, {"activation": "mish"}, "no activation 'mish'"),
        (64, {"grouping": "random"}, "no grouping 'random'"),
    ],
)
def test_impossible_filters_are_named(dim, options, message):
    with pytest.raises(InvalidSpace, match=message):
        mixers.create("aff", dim, **options)
    with pytest.raises(InvalidSpace, match=message):
        mixers.get("aff")(dim, **options)


def test_is_an_affnet():
    assert isinstance(micro(num_classes=0), AFFNet)
    assert micro(num_classes=0).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 48)
