"""SHViT against timm's, against its authors' names and shapes, and against its equations."""

import argparse

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixnas import count_flops, count_params, fuse, zoo
from mixnas.errors import InvalidCheckpoint, InvalidOption
from mixnas.testing import MixerContract
from mixnas.zoo import shvit

NAMES = ("shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4")
TINY = {
    "dims": (24, 30, 30),
    "depths": (1, 2, 1),
    "partials": (9, 11, 30),
    "attends": (True, True, False),
    "key_widths": (8, 5, 16),
    "merges": (True, False),
    "num_classes": 7,
}


def draw(network, seed=0):
    """Draw every norm and statistic: fresh ones shut the branches that they end."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if hasattr(norm, "running_var"):
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.running_mean.normal_(std=0.3, generator=generator)
            norm.num_batches_tracked.fill_(5)
        if getattr(norm, "weight", None) is not None and norm.weight.dim() == 1:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(std=0.3, generator=generator)
    return network.eval()


def pictures(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize(
    ("name", "whole", "folded"),
    [
        ("shvit_s1", 6_330_808, 6_308_660),
        ("shvit_s2", 11_483_072, 11_453_508),
        ("shvit_s3", 14_245_273, 14_210_010),
        ("shvit_s4", 16_588_484, 16_546_248),
    ],
)
def test_parameters_are_exact(name, whole, folded):
    with torch.device("meta"):
        network = zoo.create(name)
    assert count_params(network) == whole
    fused = fuse(network)
    assert count_params(fused) == folded
    assert not [m for m in fused.modules() if hasattr(m, "running_mean")]
    published = zoo.get(name)[1].params
    assert 0 <= folded - published < 0.1e6  # cut off after the first decimal


def test_flops_of_the_folded_network_are_the_published():
    with torch.device("meta"):
        network = fuse(zoo.create("shvit_s1"))
    assert count_flops(network) == 241_395_008
    assert abs(241_395_008 / zoo.get("shvit_s1")[1].flops - 1) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_timm(name, tmp_path):
    theirs = draw(timm.create_model(name))
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = zoo.create(name, checkpoint=tmp_path / "timm.safetensors").eval()
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        images = pictures(2, 3, 97, 70, dtype=dtype)
        with torch.no_grad():
            expected = theirs(images)
            assert expected.abs().max() > 0.5
            assert difference(ours(images), expected) < bound
            assert difference(fuse(ours)(images), expected) < bound
    folded = theirs.fuse() or theirs  # older releases fold in place and return nothing
    with torch.no_grad():
        assert difference(fuse(ours)(images), folded(images)) < 1e-10


def conv_norm(prefix, out, into, kernel=1):
    yield f"{prefix}.c.weight", (out, into, kernel, kernel)
    yield from norm(f"{prefix}.bn", out)


def norm(prefix, width):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{leaf}", (width,)
    yield f"{prefix}.num_batches_tracked", ()


def feed_forward(prefix, dim):
    yield from conv_norm(f"{prefix}.m.pw1", 2 * dim, dim)
    yield from conv_norm(f"{prefix}.m.pw2", dim, 2 * dim)


def local_and_feed(prefix, dim):
    yield from conv_norm(f"{prefix}.0.m", dim, 1, 3)
    yield from feed_forward(f"{prefix}.1", dim)


def merge(prefix, dim, out):
    hidden, narrow = 4 * dim, -(-dim // 8) * 8
    yield from local_and_feed(f"{prefix}.0", dim)
    yield from conv_norm(f"{prefix}.1.conv1", hidden, dim)
    yield from conv_norm(f"{prefix}.1.conv2", hidden, 1, 3)
    yield f"{prefix}.1.se.fc1.weight", (narrow, hidden, 1, 1)
    yield f"{prefix}.1.se.fc1.bias", (narrow,)
    yield f"{prefix}.1.se.fc2.weight", (hidden, narrow, 1, 1)
    yield f"{prefix}.1.se.fc2.bias", (hidden,)
    yield from conv_norm(f"{prefix}.1.conv3", out, hidden)
    yield from local_and_feed(f"{prefix}.2", out)


def block(prefix, dim, partial, key, attends):
    yield from conv_norm(f"{prefix}.conv.m", dim, 1, 3)
    if attends:
        yield from (
            (f"{prefix}.mixer.m.pre_norm.{leaf}", (partial,)) for leaf in ("weight", "bias")
        )
        yield from conv_norm(f"{prefix}.mixer.m.qkv", 2 * key + partial, partial)
        yield from conv_norm(f"{prefix}.mixer.m.proj.1", dim, dim)
    yield from feed_forward(f"{prefix}.ffn", dim)


def authors_shapes(
    *, dims, depths, partials, attends, key_widths, merges, distillation=False, num_classes=1000
):
    """The authors' names with their shapes, in their order."""
    widths = [3, dims[0] // 8, dims[0] // 4, dims[0] // 2, dims[0]]
    for i in range(4):
        yield from conv_norm(f"patch_embed.{2 * i}", widths[i + 1], widths[i], 3)
    for i, dim in enumerate(dims):
        merged = i > 0 and merges[i - 1]
        if merged:
            yield from merge(f"blocks{i + 1}", dims[i - 1], dim)
        for j in range(depths[i]):
            place = f"blocks{i + 1}.{j + 3 * merged}"
            yield from block(place, dim, partials[i], key_widths[i], attends[i])
    for head in ("head", "head_dist")[: 1 + distillation]:
        yield from norm(f"{head}.bn", dims[-1])
        yield f"{head}.l.weight", (num_classes, dims[-1])
        yield f"{head}.l.bias", (num_classes,)


def authors_state(shapes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape, generator=generator) * (0.5 if fan == 1 else fan**-0.5)
    return state


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_names_load(name, tmp_path):
    """Their state dict has timm's tensors in timm's order, so timm judges what they mean."""
    state = authors_state(authors_shapes(**zoo.options(name)))
    wrapped = {"model": state, "epoch": 299, "args": argparse.Namespace(model=name)}
    torch.save(wrapped, tmp_path / "authors.pth")
    ours = zoo.create(name, checkpoint=tmp_path / "authors.pth").double().eval()
    theirs = timm.create_model(name)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    images = pictures(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours(images), theirs.double().eval()(images)) < 1e-10
    assert sum(t.numel() for t in ours.state_dict().values()) == sum(
        t.numel() for t in state.values()
    )


def test_matrices_of_linear_layers_load_as_convolutions(tmp_path):
    state = authors_state(authors_shapes(**{**zoo.options("shvit_s1"), **TINY}))
    flat = {k: t.flatten(1) if t.dim() == 4 and t.shape[-1] == 1 else t for k, t in state.items()}
    assert shapes_differ(flat, state)
    torch.save(state, tmp_path / "maps.pth")
    torch.save(flat, tmp_path / "flat.pth")
    loaded = [
        zoo.create("shvit_s1", checkpoint=tmp_path / file, **TINY).state_dict()
        for file in ("maps.pth", "flat.pth")
    ]
    assert all(torch.equal(loaded[0][k], loaded[1][k]) for k in loaded[0])


def shapes_differ(a, b):
    return any(a[k].shape != b[k].shape for k in b)


def test_our_own_weights_load_again(tmp_path):
    network = draw(zoo.create("shvit_s1", distillation=True, **TINY))
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    again = zoo.create(
        "shvit_s1", distillation=True, checkpoint=tmp_path / "own.safetensors", **TINY
    )
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in network.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(authors_state(authors_shapes(**zoo.options("shvit_s2"))), tmp_path / "s2.pth")
    with pytest.raises(InvalidCheckpoint, match=r"not weights of shvit_s1: .* there, .* here"):
        zoo.create("shvit_s1", checkpoint=tmp_path / "s2.pth")
    state = authors_state(
        authors_shapes(**{**zoo.options("shvit_s1"), **TINY, "distillation": True})
    )
    torch.save(state, tmp_path / "distilled.pth")
    with pytest.raises(InvalidCheckpoint, match=r"unknown \(head_dist"):
        zoo.create("shvit_s1", checkpoint=tmp_path / "distilled.pth", **TINY)
    torch.save({"blocks1.0.mixer.m.qkv.c.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(InvalidCheckpoint, match="not weights of shvit_s1"):
        zoo.create("shvit_s1", checkpoint=tmp_path / "odd.pth")


class Equations:
    """The network again, from the paper's equations, on the authors' names."""

    def __init__(self, state, *, dims, depths, attends, partials, key_widths, merges, **_):
        self.state = {k: t.double() for k, t in state.items()}
        self.dims, self.depths, self.attends = dims, depths, attends
        self.partials, self.keys, self.merges = partials, key_widths, merges

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{leaf}"].reshape(1, -1, *[1] * (x.dim() - 2))
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.c.weight"]
        padding, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, stride, padding, groups=groups)
        return self.norm(x, f"{name}.bn")

    def feed(self, x, name):
        return x + self.conv(self.conv(x, f"{name}.m.pw1").relu(), f"{name}.m.pw2")

    def attention(self, x, name, partial, key):
        first, rest = x[:, :partial], x[:, partial:]
        mean = first.mean((1, 2, 3), keepdim=True)
        first = (first - mean) / (first.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        weight, bias = (self.state[f"{name}.pre_norm.{leaf}"] for leaf in ("weight", "bias"))
        first = first * weight[:, None, None] + bias[:, None, None]
        q, k, v = self.conv(first, f"{name}.qkv").flatten(2).split((key, key, partial), 1)
        weights = torch.einsum("bcn,bcm->bnm", q, k).div(key**0.5).softmax(-1)
        mixed = torch.einsum("bnm,bcm->bcn", weights, v).reshape(first.shape)
        return x + self.conv(torch.cat([mixed, rest], 1).relu(), f"{name}.proj.1")

    def merge(self, x, name):
        for side in ("0", "2"):
            x = x + self.conv(x, f"{name}.{side}.0.m")
            x = self.feed(x, f"{name}.{side}.1")
            if side == "0":
                y = self.conv(self.conv(x, f"{name}.1.conv1").relu(), f"{name}.1.conv2", 2).relu()
                x = self.conv(y * self.gate(y, f"{name}.1.se"), f"{name}.1.conv3")
        return x

    def gate(self, x, name):
        y = x.mean((2, 3))
        for layer, activate in (("fc1", torch.relu), ("fc2", torch.sigmoid)):
            weight, bias = (self.state[f"{name}.{layer}.{leaf}"] for leaf in ("weight", "bias"))
            y = activate(y @ weight.flatten(1).T + bias)
        return y[:, :, None, None]

    def heads(self, x):
        for i in range(4):
            x = self.conv(x, f"patch_embed.{2 * i}", 2)
            x = x.relu() if i < 3 else x
        for i in range(len(self.dims)):
            merged = i > 0 and self.merges[i - 1]
            x = self.merge(x, f"blocks{i + 1}") if merged else x
            for j in range(self.depths[i]):
                name = f"blocks{i + 1}.{j + 3 * merged}"
                x = x + self.conv(x, f"{name}.conv.m")
                if self.attends[i]:
                    x = self.attention(x, f"{name}.mixer.m", self.partials[i], self.keys[i])
                x = self.feed(x, f"{name}.ffn")
        x = x.mean((2, 3))
        heads = [h for h in ("head", "head_dist") if f"{h}.l.bias" in self.state]
        return [
            self.norm(x, f"{h}.bn") @ self.state[f"{h}.l.weight"].T + self.state[f"{h}.l.bias"]
            for h in heads
        ]


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (15, 300), (1, 1)])
@pytest.mark.parametrize("distillation", [False, True])
def test_settings_that_no_table_lists_follow_the_equations(size, distillation, tmp_path):
    options = {**TINY, "distillation": distillation}
    state = authors_state(authors_shapes(**options))
    torch.save(state, tmp_path / "authors.pth")
    network = zoo.create("shvit_s1", checkpoint=tmp_path / "authors.pth", **options)
    network.double().eval()
    images = pictures(2, 3, *size)
    expected = torch.stack(Equations(state, **options).heads(images)).mean(0)
    with torch.no_grad():
        assert difference(network(images), expected) < 1e-10
        assert difference(fuse(network)(images), expected) < 1e-10


def test_distillation_trains_two_heads_and_averages_them():
    network = draw(zoo.create("shvit_s1", distillation=True, **TINY)).double()
    images = pictures(3, 3, 32, 32)
    network.train()
    one, other = network(images)
    assert one.shape == other.shape == (3, 7)
    assert difference(one, other) > 0.1
    network.eval()
    with torch.no_grad():
        pooled = network.pool(network.forward_features(images))
        mean = (network.head(pooled) + network.head_dist(pooled)) / 2
        assert difference(network(images), mean) < 1e-12
        network.reset_classifier(4)
        assert network(images).shape == (3, 4)
        network.reset_classifier(0)
        assert network(images).shape == (3, 30)


def test_a_new_network_starts_as_published():
    torch.manual_seed(0)
    network = zoo.create("shvit_s1").eval()
    stage = network.stages[1]
    x = torch.randn(2, 224, 5, 5)
    assert torch.equal(stage.blocks(x), x)  # every branch ends in a norm of weight 0
    for conv in (m for m in network.modules() if isinstance(m, torch.nn.Conv2d)):
        bound = conv.weight[0].numel() ** -0.5
        assert 0.8 * bound < conv.weight.abs().max() <= bound
    mixer = stage.blocks[0].mix.branch
    for projection in (mixer.fused, mixer.project):
        bound = projection.weight.shape[-1] ** -0.5
        assert 0.98 * bound < projection.weight.abs().max() <= bound
        assert abs(projection.weight.std() / (bound / 3**0.5) - 1) < 0.02
    assert torch.equal(stage.merge[0].branch.norm.weight, torch.ones(128))
    head = network.get_classifier()
    assert abs(head.weight.std() / 0.02 - 1) < 0.02
    assert not head.bias.any()


def test_every_parameter_gets_a_gradient():
    network = draw(zoo.create("shvit_s1", num_classes=5)).train()
    network(pictures(2, 3, 75, 97, dtype=torch.float32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(NAMES), width=st.floats(0.03, 2))
def test_any_width_builds(name, width):
    with torch.device("meta"):
        network = zoo.create(name, width=width)
    wanted = [max(8, dim * width) for dim in zoo.options(name)["dims"]]
    stages = [stage.blocks[0].local.branch.conv.out_channels for stage in network.stages]
    assert all(abs(a - b) <= 4 for a, b in zip(stages, wanted, strict=True))
    assert network.stages[1].blocks[0].mix.branch.key_width == 16


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"dims": (128, 224, 4)}, "below 8 is too narrow"),
        ({"partials": (32, 0, 68)}, r"partials\[1\]=0 must lie in 1\.\.224"),
        ({"partials": (32, 48, 400)}, r"partials\[2\]=400 must lie in 1\.\.320"),
        ({"key_widths": (16, 16, 0)}, r"key_widths\[2\]=0"),
        ({"depths": (2, 4)}, "depths has 2 entries, dims 3"),
        ({"merges": (True,)}, "merges has 1 entries; 3 stages have 2 between"),
        ({"merges": (True, False)}, "without a merge"),
        ({"depth": (1, 1, 1)}, "did you mean 'depths'"),
    ],
)
def test_impossible_settings_are_refused(setting, reason):
    with pytest.raises(InvalidOption, match=reason):
        zoo.create("shvit_s1", **setting)


def test_one_stage_is_a_network_too():
    one = {"dims": (16,), "depths": (1,), "partials": (4,), "attends": (True,)}
    network = shvit.SHViT(**one, num_classes=3, in_chans=1).eval()
    assert network(torch.zeros(1, 1, 20, 33)).shape == (1, 3)
    assert network.forward_features(torch.zeros(1, 1, 20, 33)).shape == (1, 16, 2, 3)


@pytest.mark.parametrize("name", ["single_head"])
class TestSingleHeadWithAnotherKeyWidth(MixerContract):
    """The option that SHViT's class gives to its mixer keeps the mixer's laws."""

    options = {"single_head": {"key_width": 24}}
