"""Folding batch norms: of discovered networks, of single layers, and of what does not fold."""

import random

import pytest
import torch
from torch import nn

import mixnas
from mixnas.cost.count import operators
from mixnas.elastic import BatchNorm, Conv, Depthwise, Linear
from mixnas.folding import fold, fuse
from mixnas.network import Local, Merge, Network, build
from mixnas.space import SearchSpace
from mixnas.testing import randomise


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norms(network):
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def discovered(space: SearchSpace, count: int, randomise_norms):
    """Yield random architectures of a space as networks with norms that are not trivial."""
    rng = random.Random(0)
    for seed in range(count):
        torch.manual_seed(seed)
        yield randomise_norms(build(space.sample(rng), 10), seed).eval()


def check(network, side):
    """Outputs stay and batch norms go; the network that was given stays as it was."""
    x = images(2, 3, side, side)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        network = network.to(dtype)
        with torch.no_grad():
            folded = fuse(network)
            y = network(x.to(dtype))
            difference = (folded(x.to(dtype)) - y).abs().max()
        assert difference < limit * max(1.0, float(y.abs().max()))
    network.float()
    assert norms(network)
    assert norms(folded) == []
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_discovered_networks_of_micro(micro, randomise_norms):
    for network in discovered(micro, 12, randomise_norms):
        check(network, 32)


def test_discovered_networks_of_default(default, randomise_norms):
    for network in discovered(default, 4, randomise_norms):
        check(network, 64)


def test_folding_saves_what_norms_cost(micro, rng):
    with torch.device("meta"):
        network = build(micro.sample(rng), 10)
    by, folded = operators(network, 64), operators(fuse(network), 64)
    assert sum(by.values()) - sum(folded.values()) == by["batch_norm"] > 0
    assert "batch_norm" not in folded


def test_a_supernet_folds_for_every_architecture(micro, randomise_norms):
    torch.manual_seed(0)
    network = randomise_norms(Network(micro, 10)).double().eval()
    folded, rng, x = fuse(network), random.Random(1), images(2, 3, 32, 32)
    with torch.no_grad():
        for arch in (micro.sample(rng) for _ in range(8)):
            assert (folded(x, arch) - network(x, arch)).abs().max() < 1e-10


def test_the_copy_is_for_inference_and_the_original_is_left(micro, rng):
    network = build(micro.sample(rng), 10).train()
    folded = fuse(network)
    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in network.modules())
    shared = {id(tensor) for tensor in network.parameters()}
    assert not shared & {id(tensor) for tensor in folded.parameters()}
    assert all(tensor.requires_grad for tensor in folded.parameters())


def test_is_public():
    assert mixnas.fuse is fuse


@pytest.mark.parametrize("module", [Local(6), Merge(6, 8)], ids=["local", "merge"])
def test_a_part_becomes_one_convolution(module):
    randomise(module).double().eval()
    folded = fuse(module)
    assert isinstance(folded, Depthwise | Conv)
    x = images(2, 6, 9, 7)
    with torch.no_grad():
        assert (folded(x) - module(x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 7)),
        (nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 7)),
        (Conv(4, 6, 3), (2, 4, 5, 7)),
    ],
    ids=["grouped", "no bias", "elastic"],
)
def test_fold_is_the_layer_and_then_the_norm(layer, shape):
    pair = nn.Sequential(layer, BatchNorm(6))
    randomise(pair).double().eval()
    x = images(*shape)
    with torch.no_grad():
        expected = pair(x)
        assert (fold(pair[0], pair[1])(x) - expected).abs().max() < 1e-12


def test_fold_of_fused_projections():
    layer, norm = Linear(4, 3, groups=2), nn.BatchNorm1d(6)
    randomise(nn.Sequential(layer, norm)).double()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 1.5)
    norm.eval()
    x = images(5, 4)
    with torch.no_grad():
        expected = norm(layer(x))
        assert (fold(layer, norm)(x) - expected).abs().max() < 1e-12
    assert layer.weight.shape == (2, 3, 4)


def test_a_module_that_does_not_say_how_is_left():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    randomise(plain)
    folded = fuse(plain)
    assert len(norms(folded)) == 1
    x = images(2, 3, 8, 8).float()
    with torch.no_grad():
        assert torch.equal(folded(x), plain.eval()(x))


def test_norms_far_from_one_fold_as_well():
    pair = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double().eval()
    pair[1].running_var.copy_(torch.tensor([1e-8, 1e-3, 1.0, 1e6]))
    pair[1].running_mean.copy_(torch.tensor([1e3, -1.0, 0.0, 1e-3]))
    x = images(2, 3, 4, 4)
    with torch.no_grad():
        expected = pair(x)
        difference = (fold(pair[0], pair[1])(x) - expected).abs().max()
    assert difference < 1e-10 * expected.abs().max()
