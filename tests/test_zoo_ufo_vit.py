"""UFO-ViT: the recalled counts, and the equations of its mixer and its blocks computed again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mixnas import mixers, zoo
from mixnas.cost.count import count_flops, count_params
from mixnas.elastic import extract_weights
from mixnas.errors import InvalidCheckpoint, InvalidOption, InvalidSpace
from mixnas.folding import fuse
from mixnas.testing import images, randomise

MICRO = {"dim": 32, "depth": 2, "embed": 16, "heads": 2, "num_classes": 7, "image": 64}
"""A small network of the system, for everything that size does not change."""

RECONSTRUCTED = {
    "ufo_vit_t": (10_217_640, 1.911),
    "ufo_vit_s": (20_787_848, 3.731),
    "ufo_vit_m": (37_478_120, 7.009),
    "ufo_vit_b": (63_985_656, 11.979),
}
"""Parameters, and multiply-adds in thousand millions."""


def micro(**options):
    return zoo.create("ufo_vit_s", **{**MICRO, **options})


def array(tensor):
    return tensor.detach().numpy()


# The mixer's options.


def numpy_heads(q, k, v, gammas, heads, axis, eps):
    """Return the heads' outputs side by side, from the paper's equation, head by head."""
    outputs = []
    for i in range(heads):
        qi, ki, vi = (np.split(t, heads, axis=1)[i] for t in (q, k, v))
        kv = ki.T @ vi
        kv = gammas[1][i] * kv / np.sqrt((kv**2).sum(axis, keepdims=True) + eps)
        rows = np.sqrt((qi**2).sum(1, keepdims=True) + eps)
        outputs.append(gammas[0][i] * qi / rows @ kv)
    return np.concatenate(outputs, 1)


def numpy_xnorm(mixer, queries, context, heads, axis=0):
    """Mix numpy tokens by the weights of a mixer, whatever its options."""
    layers = [mixer.query_key, mixer.value] if mixer.full else [mixer.query_key_value]
    weight = [array(group) for layer in layers for group in layer.weight]
    zeros = [np.zeros(1)] * 3
    bias = [array(group) for layer in layers if layer.bias is not None for group in layer.bias]
    sources = (queries, context, context)
    q, k, v = (t @ w.T + b for t, w, b in zip(sources, weight, bias or zeros, strict=True))
    gamma = array(mixer.gamma.value)
    gammas = gamma if gamma.ndim == 2 else (gamma, gamma)
    mixed = numpy_heads(q, k, v, gammas, heads, axis, mixer.eps) @ array(mixer.project.weight)[0].T
    return mixed if mixer.project.bias is None else mixed + array(mixer.project.bias)[0]


OPTIONS = [
    {"value": "full"},
    {"value": "full", "axis": "value", "gammas": 2},
    {"gammas": 2},
    {"qkv_bias": False},
    {"qkv_bias": False, "project_bias": False, "value": "full", "eps": 0.0},
    {"gamma_init": "normal"},
]


@pytest.mark.parametrize("size", [(7, 9), (4, 4)])
@pytest.mark.parametrize("options", OPTIONS)
def test_mixer_options_compute_their_equations(options, size):
    mixer = mixers.create("xnorm", 32, num_heads=4, bottleneck=0.5, **options)
    randomise(mixer).double()
    x = images(2, 32, size, torch.float64)
    axis = 1 if options.get("axis") == "value" else 0
    for sample, y in zip(x, mixer(x), strict=True):
        t = sample.numpy().reshape(32, -1).T
        expected = numpy_xnorm(mixer, t, t, 4, axis)
        assert np.abs(array(y).reshape(32, -1).T - expected).max() < 1e-10
        few = mixer.attend(sample.flatten(1).T[None, :2], sample.flatten(1).T[None])
        assert np.abs(array(few)[0] - numpy_xnorm(mixer, t[:2], t, 4, axis)).max() < 1e-10


@pytest.mark.parametrize("options", OPTIONS)
def test_narrow_mixer_equals_extracted(options):
    choices = {"head_width": (4, 8), "bottleneck": (0.25, 0.5)}
    wide = randomise(mixers.get("xnorm")(64, **choices, **options)).double()
    x = images(2, 32, (5, 6), torch.float64)
    for knobs in ({"head_width": 4, "bottleneck": 0.5}, {"head_width": 8, "bottleneck": 0.25}):
        alone = mixers.create("xnorm", 32, **knobs, **options).double()
        extract_weights(wide, alone, lambda knobs=knobs: wide(x, **knobs))
        with torch.no_grad():
            assert (alone(x) - wide(x, **knobs)).abs().max() < 1e-12


def test_counts_of_full_values():
    c, e, h, n = 64, 32, 4, 35
    mixer = mixers.create("xnorm", c, num_heads=h, bottleneck=0.5, value="full")
    assert count_params(mixer) == 2 * c * e + 2 * e + 2 * c * c + 2 * c + h
    assert count_flops(mixer, (c, 5, 7)) == 2 * n * c * e + 2 * n * c * c + 2 * n * c * e // h


def test_initial_gammas():
    assert (mixers.create("xnorm", 32, gamma_init=0.5).gamma.value == 0.5).all()
    torch.manual_seed(0)
    drawn = mixers.create("xnorm", 4096, head_width=2, gamma_init="normal").gamma.value
    assert abs(drawn.std() - 1) < 0.1
    assert drawn.min() < -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "wide"}, r"value='wide' is not one of \('bottleneck', 'full'\)"),
        ({"gammas": 3}, r"gammas=3 is not one of \(1, 2\)"),
        ({"axis": "queries"}, "axis='queries' is not one of"),
        ({"value": "full", "head_width": 12}, "a width that its 3 heads divide"),
    ],
)
def test_impossible_mixers_are_named(options, message):
    with pytest.raises(InvalidSpace, match=message):
        mixers.create("xnorm", 32, **options)


# The network.


@pytest.mark.parametrize("name", RECONSTRUCTED)
def test_counts_are_the_reconstruction_and_near_the_recalled(name):
    params, flops = RECONSTRUCTED[name]
    _, variant = zoo.get(name)
    with torch.device("meta"):
        network = zoo.create(name)
        counted = count_flops(network, variant.image)
    assert count_params(network) == params
    assert abs(params / variant.params - 1) < 0.025
    assert round(counted / 1e9, 3) == flops
    assert abs(counted / variant.flops - 1) < 0.01
    assert "recalled" in variant.note


def test_without_a_bottleneck_it_is_as_large_as_xcit():
    sizes = {"ufo_vit_t": 12.1, "ufo_vit_s": 26.3, "ufo_vit_m": 47.7, "ufo_vit_b": 84.5}
    for name, size in sizes.items():
        with torch.device("meta"):
            network = zoo.create(name, embed=zoo.options(name)["dim"])
        assert round(count_params(network) / 1e6, 1) == size


class Reference:
    """The network from its equations, in plain functions of its weights."""

    def __init__(self, network):
        self.network = network

    def norm(self, layer, x):
        variance = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt() * layer.weight + layer.bias

    def batch_norm(self, norm, x):
        x = (x.movedim(1, -1) - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
        return (x * norm.weight + norm.bias).movedim(-1, 1)

    def stem(self, x):
        for layer in self.network.stem:
            if not isinstance(layer, nn.GELU):
                y = F.conv2d(x, layer.conv.weight, stride=2, padding=1)
                x = F.gelu(self.batch_norm(layer.norm, y))
                last = self.batch_norm(layer.norm, y)
        return last

    def local(self, layers, x):
        if len(layers) == 4 and isinstance(layers[0], nn.Conv2d):
            x = F.gelu(self.depthwise(layers[0], x))
            return self.depthwise(layers[3], self.batch_norm(layers[2], x))
        for layer in (layers[0], layers[2]):
            x = F.gelu(self.batch_norm(layer.norm, self.depthwise(layer.conv, x)))
        return x

    def depthwise(self, conv, x):
        return F.conv2d(x, conv.weight, conv.bias, padding=1, groups=x.shape[1])

    def mlp(self, mlp, x):
        x = F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias)
        return x @ mlp.fc2.weight.T + mlp.fc2.bias

    def mix(self, mixer, queries, context):
        pairs = zip(queries.numpy(), context.numpy(), strict=True)
        return torch.from_numpy(np.stack([numpy_xnorm(mixer, q, c, 2) for q, c in pairs]))

    def scaled(self, end, x):
        return x if isinstance(end.scale, nn.Identity) else x * end.scale.gamma

    def block(self, block, x, height, width):
        t = self.norm(block.mixer_norm, x)
        x = x + self.scaled(block.mixer_end, self.mix(block.mixer, t, t))
        t = self.norm(block.local_norm, x).mT.unflatten(2, (height, width))
        x = x + self.scaled(block.local_end, self.local(block.local, t).flatten(2).mT)
        t = self.mlp(block.mlp, self.norm(block.mlp_norm, x))
        return x + self.scaled(block.mlp_end, t)

    def class_block(self, block, token, x):
        t = self.norm(block.mixer_norm, torch.cat([token, x], 1))
        token = token + self.scaled(block.mixer_end, self.mix(block.mixer, t[:, :1], t))
        t = self.mlp(block.mlp, self.norm(block.mlp_norm, token))
        return token + self.scaled(block.mlp_end, t)

    def __call__(self, x):
        x = self.stem(x)
        height, width = x.shape[2:]
        x = x.flatten(2).mT + self.network.positions
        for block in self.network.blocks:
            x = self.block(block, x, height, width)
        token = self.network.class_token.expand(len(x), 1, -1)
        for block in self.network.class_blocks:
            token = self.class_block(block, token, x)
        head = self.network.head
        return self.norm(self.network.norm, token[:, 0]) @ head.weight.T + head.bias


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"local": "stacked", "layer_scale": None, "class_depth": 1},
        {"value": "full", "gammas": 2, "qkv_bias": False, "project_bias": False},
    ],
)
def test_computes_its_equations(options):
    network = randomise(micro(image=(48, 80), **options)).double().eval()
    x = torch.randn(2, 3, 48, 80, dtype=torch.float64)
    with torch.no_grad():
        expected = Reference(network)(x)
        assert expected.std() > 0.1
        assert (network(x) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 2),
        ({"local": "stacked", "layer_scale": None, "stem": "patch", "patch": 8}, 0),
        ({"class_depth": 0, "value": "full", "gammas": 2, "drop_path": 0.1}, 2),
    ],
)
def test_folds_and_learns(options, left):
    network = randomise(micro(**options)).double().eval()
    x = torch.randn(2, 3, 48, 80, dtype=torch.float64)
    y = network(x)
    assert y.shape == (2, 7)
    y.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    with torch.no_grad():
        folded = fuse(network)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left
        assert (folded(x) - y).abs().max() < 1e-10 * y.abs().max()
        y = network.float()(x.float())
        assert (fuse(network)(x.float()) - y).abs().max() < 1e-5 * y.abs().max()


def test_trains():
    network = micro(drop_path=0.5).train()
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_exports_at_any_batch():
    network = randomise(micro(depth=1, class_depth=1)).eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=batch)
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        y = network(x)
        assert (program.module()(x) - y).abs().max() < 1e-5 * y.abs().max()


def test_positions_follow_the_image():
    """A table that is linear in space is so at every size."""
    network = micro(image=(64, 32)).eval()
    ramp = torch.arange(4.0)
    with torch.no_grad():
        network.positions.copy_(ramp.repeat_interleave(2)[None, :, None].expand(1, 8, 32))
        for block in network.blocks:
            for end in (block.mixer_end, block.local_end, block.mlp_end):
                end.scale.gamma.zero_()
        network.stem = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 32, 1))
        nn.init.zeros_(network.stem[1].weight)
        nn.init.zeros_(network.stem[1].bias)
        network.norm = nn.Identity()
        patches = network.forward_features(torch.zeros(1, 3, 128, 32))[:, 1:]
    table = patches.view(8, 2, 32)
    assert torch.allclose(table[:, :1], table[:, 1:], atol=1e-5)
    assert (table.diff(dim=0) > 0).all()
    assert torch.allclose(table[2:6, 0, 0], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.05)


@pytest.mark.parametrize("size", [(64, 70), (8, 64), (65, 64)])
def test_images_are_whole_patches(size):
    with pytest.raises(InvalidOption, match="not whole patches of 16; use multiples of 16"):
        micro(image=size)
    with pytest.raises(InvalidOption, match=f"an image of {size[0]}x{size[1]}"):
        micro().eval()(torch.randn(1, 3, *size))


def test_starts_as_xcit():
    torch.manual_seed(0)
    network = micro(dim=128, layer_scale=1e-5)
    for weight in (network.positions, network.head.weight, network.blocks[0].mlp.fc1.weight):
        assert abs(weight.std() - 0.02) < 0.003
    mixer = network.class_blocks[1].mixer
    assert abs(mixer.query_key_value.weight.std() - 0.02) < 0.003
    assert not mixer.query_key_value.bias.any()
    assert (network.blocks[1].local_end.scale.gamma == 1e-5).all()
    assert network.stem[0].conv.weight.abs().max() <= 27**-0.5


def test_own_weights_come_back_and_others_are_refused(tmp_path):
    network = randomise(micro()).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    again = micro(checkpoint=tmp_path / "weights.safetensors").eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), network(x))
    save_file({"blocks.0.ufo.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidCheckpoint, match="no published weights of UFO-ViT are known"):
        micro(checkpoint=tmp_path / "other.safetensors")


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 3), st.sampled_from(sorted(RECONSTRUCTED)))
def test_any_width_builds(width, name):
    options, published = zoo.options(name, width), zoo.options(name)
    assert options["embed"] // options["heads"] == published["embed"] // published["heads"]
    assert abs(options["dim"] - published["dim"] * width) <= 4
    with torch.device("meta"):
        assert zoo.create(name, width=width, depth=1).head.in_features == options["dim"]


def test_full_values_can_be_widened():
    system, variant = zoo.get("ufo_vit_s")
    options = system.widen({**variant.options, "value": "full"}, 0.4)
    assert options["dim"] % options["heads"] == 0
    with torch.device("meta"):
        system.network(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "linear"}, "no stem 'linear'; known: conv, patch"),
        ({"local": "xcti"}, "did you mean 'xcit'"),
        ({"gammas": 3}, "no gammas '3'; known: 1, 2"),
        ({"gamma_init": "uniform"}, "must be a number or 'normal'"),
        ({"embed": 17}, "embed=17 must be a multiple of heads=2"),
        ({"dim": 36}, "dim=36 must be a multiple of 8"),
        ({"patch": 12}, "power of two"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(InvalidOption, match=message):
        micro(**options)
