"""Stochastic depth, gradient checkpointing, and the features that dense tasks read."""

import random
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from mixnas import zoo
from mixnas.arch import Architecture
from mixnas.errors import InvalidOption, NotInSpace
from mixnas.features import Intermediates
from mixnas.folding import fuse
from mixnas.network import Network, build
from mixnas.testing import randomise

SMALL = {
    "affnet_et": {"widths": (16, 16, 16, 24, 32), "depths": (1, 2), "blocks": (1, 2, 1)},
    "litv2_s": {"dim": 32, "heads": (1, 2, 4, 8), "depths": (1, 1, 2, 1)},
    "shvit_s1": {"dims": (16, 24, 32), "depths": (1, 1, 2), "partials": (4, 6, 8)},
    "fvit_b16": {"dim": 48, "depth": 3, "heads": 4},
    "ufo_vit_t": {"dim": 48, "depth": 3, "embed": 24, "heads": 2, "class_depth": 1},
}
"""A small network of each system."""

ISOTROPIC = ("fvit_b16", "ufo_vit_t")

REDUCTIONS = {
    "affnet_et": [2, 4, 8, 16, 32],
    "litv2_s": [4, 8, 16, 32],
    "shvit_s1": [16, 32, 64],
    "fvit_b16": [16, 16, 16],
    "ufo_vit_t": [16, 16, 16],
}


def published(name: str, **settings: object) -> Intermediates:
    torch.manual_seed(0)
    size = {"groups": 8} if name.startswith("affnet") else {}
    network = zoo.create(name, num_classes=5, image=224, **{**SMALL[name], **size, **settings})
    assert isinstance(network, Intermediates)
    randomise(network)
    return network.eval()


def searched(micro, seed: int = 0) -> tuple[Architecture, Network]:
    torch.manual_seed(0)
    rng = random.Random(seed)
    arch = next(arch for arch in iter(lambda: micro.sample(rng), None) if len(arch.stages) > 1)
    network = build(arch, 5)
    randomise(network)
    return arch, network.eval()


def images(*size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def outputs(network: nn.Module, name: str, run: Callable[[], object]) -> Tensor:
    """Return what a hook sees a module give."""
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        run()
    handle.remove()
    (found,) = seen
    return found


# Stochastic depth


def rates(network: nn.Module) -> list[float]:
    return [float(m.drop_prob or 0) for m in network.modules() if isinstance(m, DropPath)]


def test_the_rate_of_dropping_rises_from_nothing_at_the_first_block(default):
    arch = default.largest(random.Random(0))
    blocks = [block for stage in arch.stages for block in stage.blocks]
    network = build(arch, 5, drop_path=0.3)
    places = range(len(blocks))
    wanted = [0.3 * i / (len(blocks) - 1) for i in places]
    branches = [1 if block.mixer == "identity" else 2 for block in blocks]
    found = rates(network)
    assert found == pytest.approx([wanted[i] for i in places if i for _ in range(branches[i])])
    assert rates(build(arch, 5)) == []


def test_dropping_adds_no_weights_and_stops_in_evaluation(micro):
    arch, network = searched(micro)
    dropping = build(arch, 5, drop_path=0.9)
    dropping.load_state_dict(network.state_dict())
    batch = images(32, 32)
    with torch.no_grad():
        assert torch.equal(dropping.eval()(batch), network(batch))
        torch.manual_seed(1)
        assert not torch.equal(dropping.train()(batch), dropping(batch))


def test_a_dropped_branch_passes_its_sample_on(micro):
    """At a rate near 1 the last block adds nothing but its depth-wise convolution."""
    arch, _ = searched(micro)
    network = build(arch, 5, drop_path=1 - 1e-9)
    block = network.get_submodule(network.feature_info[-1]["module"])
    x = torch.randn(2, arch.stages[-1].width, 4, 4)
    chosen = arch.stages[-1].blocks[-1]
    block.train()
    block.local.eval()
    assert torch.equal(block(x, chosen), block.local(x))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_an_impossible_rate_of_dropping_is_refused(micro, rate):
    with pytest.raises(InvalidOption, match="drop_path"):
        build(searched(micro)[0], 5, drop_path=rate)


# Gradient checkpointing


def learnt(network: nn.Module, size: int, checkpointing: bool) -> dict[str, Tensor]:
    """Return gradients and statistics after two forward passes and one backward pass each."""
    network.set_grad_checkpointing(checkpointing)
    network.train()
    torch.manual_seed(2)
    for _ in range(2):
        found = network(images(size, size))
        found.square().mean().backward()
    gradients = {f"{n}.grad": p.grad for n, p in network.named_parameters() if p.grad is not None}
    return {**network.state_dict(), **gradients}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert tensor.isfinite().all(), key
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("seed", range(4))
def test_checkpointing_learns_the_same_bit_for_bit(default, seed):
    arch = default.smallest(random.Random(seed))
    twins = []
    for _ in range(2):
        torch.manual_seed(0)
        twins.append(build(arch, 5, drop_path=0.5))
    assert_same(learnt(twins[0], 64, True), learnt(twins[1], 64, False))


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_learns_the_same_in_published_networks(name):
    dropping = {} if name.startswith("shvit") else {"drop_path": 0.5}
    twins = [published(name, **dropping) for _ in range(2)]
    assert_same(learnt(twins[0], 64, True), learnt(twins[1], 64, False))


@pytest.mark.parametrize("name", [*SMALL, "searched"])
def test_checkpointing_keeps_fewer_activations(name, micro):
    network = searched(micro)[1] if name == "searched" else published(name)
    kept = []
    for checkpointing in (False, True):
        network.set_grad_checkpointing(checkpointing)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(images(64, 64))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_nothing_is_computed_again_where_no_gradient_is_asked_for(micro):
    _, network = searched(micro)
    network.set_grad_checkpointing()
    with torch.no_grad():
        assert network(images(32, 32)).grad_fn is None


# Features


@pytest.mark.parametrize("size", [(224, 224), (97, 131)])
@pytest.mark.parametrize("seed", range(3))
def test_a_searched_network_has_one_feature_a_stage(default, seed, size):
    arch = default.smallest(random.Random(seed))
    network = build(arch, 5).eval()
    info = network.feature_info
    assert [each["num_chs"] for each in info] == [stage.width for stage in arch.stages]
    strides = [arch.stem.stride << i for i in range(len(arch.stages))]
    assert [each["reduction"] for each in info] == strides
    with torch.no_grad():
        last, maps = network.forward_intermediates(images(*size, count=1))
        assert torch.equal(last, network.forward_features(images(*size, count=1)))
    for each, found in zip(info, maps, strict=True):
        sides = (-(-side // each["reduction"]) for side in size)
        assert found.shape == (1, each["num_chs"], *sides)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("folded", [False, True])
def test_a_searched_feature_is_what_its_module_gives(micro, seed, folded):
    _, network = searched(micro, seed)
    network = fuse(network) if folded else network
    batch = images(64, 96)
    with torch.no_grad():
        maps = network.forward_intermediates(batch, intermediates_only=True)
    for each, found in zip(network.feature_info, maps, strict=True):
        seen = outputs(network, each["module"], lambda: network.forward_features(batch))
        assert torch.equal(found, seen)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("folded", [False, True])
def test_a_published_feature_is_what_its_module_gives(name, size, folded):
    network = fuse(published(name)) if folded else published(name)
    assert [each["reduction"] for each in network.feature_info] == REDUCTIONS[name]
    batch = images(*size)
    with torch.no_grad():
        last, maps = network.forward_intermediates(batch)
        assert torch.equal(last, network.forward_features(batch))
    for each, found in zip(network.feature_info, maps, strict=True):
        seen = outputs(network, each["module"], lambda: network.forward_features(batch))
        sides = [-(-side // each["reduction"]) for side in size]
        assert found.shape == (2, each["num_chs"], *sides)
        if name in ISOTROPIC:
            seen = seen[:, -sides[0] * sides[1] :].transpose(1, 2).unflatten(2, sides)
        assert torch.equal(found, seen)


@pytest.mark.parametrize("name", ["affnet_et", "shvit_s1"])
def test_pyramids_round_up_at_odd_sizes(name):
    network = published(name)
    with torch.no_grad():
        maps = network.forward_intermediates(images(97, 131), intermediates_only=True)
    for reduction, found in zip(REDUCTIONS[name], maps, strict=True):
        assert found.shape[2:] == tuple(-(-side // reduction) for side in (97, 131))


@pytest.mark.parametrize("name", [*SMALL, "searched"])
@pytest.mark.parametrize("norm", [False, True])
def test_timm_makes_a_backbone_of_it(name, norm, micro):
    network, twin = (
        searched(micro)[1] if name == "searched" else published(name) for _ in range(2)
    )
    count = len(network.feature_info)
    batch = images(96, 96)
    with torch.no_grad():
        wanted = twin.forward_intermediates(batch, norm=norm, intermediates_only=True)
        for indices in (count, tuple(range(count))[-2:], [0]):
            copy = searched(micro)[1] if name == "searched" else published(name)
            backbone = FeatureGetterNet(copy, out_indices=indices, norm=norm).eval()
            taken = range(count) if indices == count else indices
            info = [network.feature_info[i] for i in taken]
            assert backbone.feature_info.channels() == [each["num_chs"] for each in info]
            assert backbone.feature_info.reduction() == [each["reduction"] for each in info]
            found = backbone(batch)
            for index, each in zip(taken, found, strict=True):
                assert torch.equal(each, wanted[index])
        parameters = sum(p.numel() for p in backbone.parameters())
        assert parameters < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", [*SMALL, "searched"])
def test_indices_are_read_as_timm_reads_them(name, micro):
    network = searched(micro)[1] if name == "searched" else published(name)
    batch, count = images(96, 96), len(network.feature_info)
    with torch.no_grad():
        everything = network.forward_intermediates(batch, intermediates_only=True)
        for indices, wanted in ((2, everything[-2:]), ([-1, 0], [everything[0], everything[-1]])):
            found = network.forward_intermediates(batch, indices, intermediates_only=True)
            assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        for indices in (0, count + 1, [count], [-count - 1]):
            with pytest.raises(AssertionError, match="out of range"):
                network.forward_intermediates(batch, indices)
            with pytest.raises(AssertionError, match="out of range"):
                network.prune_intermediate_layers(indices)


@pytest.mark.parametrize("name", [*SMALL, "searched"])
def test_stopping_early_computes_no_more_than_was_asked_for(name, micro):
    network = searched(micro)[1] if name == "searched" else published(name)
    calls: list[str] = []
    for each in network.feature_info:
        module = network.get_submodule(each["module"])
        module.register_forward_hook(lambda *_, name=each["module"]: calls.append(name))
    with torch.no_grad():
        last, (only,) = network.forward_intermediates(images(96, 96), [0], stop_early=True)
    assert calls == [network.feature_info[0]["module"]]
    if name not in ISOTROPIC:
        assert torch.equal(last, only)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_tokens_and_norms_of_a_network_of_one_width(name):
    network = published(name)
    batch = images(96, 64)
    with torch.no_grad():
        rows = network.forward_intermediates(batch, output_fmt="NLC", intermediates_only=True)
        maps = network.forward_intermediates(batch, intermediates_only=True)
        last, normed = network.forward_intermediates(batch, norm=True)
    assert torch.equal(rows[0].transpose(1, 2), maps[0].flatten(2))
    assert torch.equal(normed[-1].flatten(2).transpose(1, 2), last[:, 1:])
    assert not torch.equal(normed[0], maps[0])


def test_an_unknown_format_is_refused(micro):
    with pytest.raises(InvalidOption, match="no format 'NHWC'"):
        searched(micro)[1].forward_intermediates(images(64, 64), output_fmt="NHWC")


def test_a_supernet_has_no_features_of_its_own(micro):
    network = Network(micro, 5)
    assert network.feature_info == []
    with pytest.raises(NotInSpace, match="give one"):
        network.forward_intermediates(images(64, 64))
