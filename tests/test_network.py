"""The network: extraction, one class for supernet and stand-alone, shapes, gradients, export."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mixnas.arch import STEM_STRIDES, Block
from mixnas.elastic import Elastic, Linear
from mixnas.errors import InvalidOption, NotInSpace
from mixnas.network import Network, build, parts, walk
from mixnas.sharing import Sharing
from mixnas.space import SearchSpace


def images(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


SHARINGS = [
    Sharing(),
    Sharing(scale="shared"),
    Sharing(norms="mixer", scale="switchable"),
    Sharing(feed_forward="mixer", norms="mixer"),
]


def worst_difference(
    space: SearchSpace, randomise, count: int, side: int, sharing: Sharing = SHARINGS[0]
) -> float:
    """Return the greatest difference between the supernet's path and the extracted network."""
    torch.manual_seed(0)
    network = randomise(Network(space, 10, sharing=sharing).double()).eval()
    rng = random.Random(0)
    batch = images(2, 3, side, side)
    worst = 0.0
    with torch.no_grad():
        for _ in range(count):
            arch = space.sample(rng)
            difference = (network(batch, arch) - network.extract(arch)(batch)).abs().max()
            worst = max(worst, difference.item())
    return worst


def test_extraction_law_on_micro(micro, randomise_norms):
    assert worst_difference(micro, randomise_norms, 30, 64) < 1e-10


@pytest.mark.parametrize("sharing", SHARINGS[1:], ids=str)
def test_extraction_law_whatever_mixers_share(micro, randomise_norms, sharing):
    assert worst_difference(micro, randomise_norms, 6, 32, sharing) < 1e-10


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_a_network_alone_has_the_same_weights_whatever_its_supernet_shared(micro, rng, sharing):
    arch = micro.sample(rng)
    plain = build(arch, 10).state_dict()
    alone = Network(micro, 10, sharing=sharing).extract(arch).state_dict()
    assert {k: v.shape for k, v in alone.items()} == {k: v.shape for k, v in plain.items()}
    assert list(Network(micro.only(arch), 10, sharing=sharing).state_dict()) == list(plain)


def test_what_is_told_apart_is_not_shared(micro):
    """Each kind of part has one tensor a mixer, or one for all, as it was asked for."""
    block = "stages.8.0"
    mixers = micro.genes["s8.b0.mixer"]
    kinds = {
        "local.norm.weight": Sharing(norms="mixer"),
        "mlp.norm.weight": Sharing(norms="mixer"),
        "mlp.scale.weight": Sharing(scale="switchable"),
        "mlp.expand.weight": Sharing(feed_forward="mixer"),
    }
    for name, sharing in kinds.items():
        plain = Network(micro, 10).state_dict()
        apart = Network(micro, 10, sharing=sharing).state_dict()
        assert f"{block}.{name}" in plain
        assert f"{block}.{name}" not in apart
        own = [key for key in apart if key.startswith(block) and _without(key, mixers) == name]
        assert len(own) == len(mixers)
    shared = Network(micro, 10, sharing=Sharing(scale="shared")).state_dict()
    assert f"{block}.scale.weight" in shared
    assert not [key for key in shared if key.startswith(f"{block}.mix") and ".scale." in key]


def _without(key: str, mixers) -> str:
    return ".".join(part for part in key.split(".")[3:] if part not in mixers)


def test_an_unknown_sharing_is_refused():
    with pytest.raises(InvalidOption, match="norms 'mixers' is not offered; did you mean 'mixer'"):
        Sharing(norms="mixers")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_extraction_law_on_default(default, randomise_norms):
    assert worst_difference(default, randomise_norms, 20, 64) < 1e-10


def test_extraction_leaves_the_supernet_as_it_was(micro, rng):
    network = Network(micro, 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    small = network.extract(micro.sample(rng))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(module.training for module in network.modules())
    for parameter in small.parameters():
        parameter.data.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_the_architecture_is_an_argument_and_leaves_no_trace(micro, rng, randomise_norms):
    network = randomise_norms(Network(micro, 10).double()).eval()
    first, second = micro.sample(rng), micro.largest(rng)
    batch = images(1, 3, 64, 64)
    with torch.no_grad():
        alone = network(batch, first)
        network(batch, second)
        assert torch.equal(network(batch, first), alone)


def test_a_supernet_asks_for_an_architecture(micro):
    with pytest.raises(NotInSpace, match="give one"):
        Network(micro)(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("stem", STEM_STRIDES)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 16)])
def test_any_size_of_image(default, stem, size):
    space = default.keep({**default.genes, "stem": (stem,)})
    arch = space.smallest(random.Random(3))
    network = build(arch, 5).eval()
    features = network.forward_features(torch.zeros(1, 3, *size))
    stride = STEM_STRIDES[stem] << (len(arch.stages) - 1)
    assert features.shape[2:] == tuple(-(-side // stride) for side in size)
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5)


def test_timm_conventions(micro, rng):
    arch = micro.sample(rng)
    network = build(arch, 7)
    batch = torch.zeros(2, 3, 64, 64)
    assert network.num_classes == 7
    assert network.get_classifier().out_features == 7
    assert network.forward_head(network.forward_features(batch)).shape == (2, 7)
    pooled = network.forward_head(network.forward_features(batch), pre_logits=True)
    assert pooled.shape == (2, network.num_features)
    network.reset_classifier(4)
    assert network.num_classes == 4
    assert network(batch).shape == (2, 4)
    network.reset_classifier(0)
    assert network(batch).shape == (2, network.num_features)


def test_standalone_is_the_same_class_with_the_same_parameters(default, rng):
    for _ in range(5):
        arch = default.sample(rng)
        alone, built = Network(default.only(arch), 10), build(arch, 10)
        assert alone.state_dict().keys() == built.state_dict().keys()
        assert all(built.state_dict()[k].shape == v.shape for k, v in alone.state_dict().items())


def test_parts_have_the_parameters_of_the_whole(default, rng):
    for _ in range(5):
        arch = default.sample(rng)
        whole = sum(p.numel() for p in build(arch, 1000).parameters())
        taken = (part for s in walk(arch) for part in parts(s, image=224, classes=1000))
        assert sum(p.numel() for part in taken for p in part.build().parameters()) == whole


def test_parts_in_sequence_are_the_network(micro, rng, randomise_norms):
    """The parts, fed one with the other's output and the network's weights, give its logits."""
    arch = micro.sample(rng)
    network = randomise_norms(build(arch, 10).double()).eval()
    modules = [part.build() for s in walk(arch) for part in parts(s, image=64, classes=10)]
    tensors = _in_order_of_use(network, arch)
    for module in modules:
        for layer in (m for m in module.modules() if isinstance(m, Elastic)):
            for tensor in layer.stored():
                tensor.data = next(tensors)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        for module in modules:
            x = module.eval()(x)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def _in_order_of_use(network, arch):
    """Yield the tensors of the network's layers as the parts hold them."""
    stride = arch.stem.stride
    modules = [network.stems[arch.stem.kind]]
    for index, stage in enumerate(arch.stages):
        if index:
            stride *= 2
            modules.append(network.merges[str(stride)])
        for module, block in zip(network.stages[str(stride)], stage.blocks, strict=True):
            modules += [module.local, module.mix[block.mixer], module.mlp]
    modules += [network.norms[str(stride)], network.head]
    for module in modules:
        for layer in (m for m in module.modules() if isinstance(m, Elastic)):
            yield from layer.stored()


# Softmax over tokens does not feel what all tokens share, and a batch norm behind takes away what
# is added before it: these have no gradient by mathematics, not by mistake.
SHIFT_INVARIANT = ("score_bias.value",)


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_gradients_are_in_the_active_slice_and_nowhere_else(micro, rng, randomise_norms, sharing):
    torch.manual_seed(0)
    network = randomise_norms(Network(micro, 10, sharing=sharing).double()).train()
    for _ in range(6 if sharing == SHARINGS[0] else 2):
        arch = micro.sample(rng)
        network.zero_grad(set_to_none=True)
        used = _active(network, arch)
        labels = torch.arange(8) % 10
        F.cross_entropy(network(images(8, 3, 64, 64), arch), labels).backward()
        for name, parameter in network.named_parameters():
            if name not in used:
                assert parameter.grad is None, name
                continue
            inside = torch.zeros_like(parameter, dtype=torch.bool)
            inside[used[name]] = True
            assert parameter.grad[~inside].abs().sum() == 0, name
            if not name.endswith(SHIFT_INVARIANT):
                assert parameter.grad[inside].abs().sum() > 0, name


def _active(network: Network, arch) -> dict[str, tuple[slice, ...]]:
    """Return the corner that one forward pass takes of every parameter it uses."""
    corners: dict[str, tuple[slice, ...]] = {}

    def note(name, layer):
        def hook(module, args, kwargs, _):
            own = [n for n, _ in layer.named_parameters(recurse=False)]
            for leaf, tensor in zip(own, layer.narrow(*args, **kwargs), strict=False):
                corners[f"{name}.{leaf}"] = tuple(slice(0, size) for size in tensor.shape)

        return hook

    hooks = [
        layer.register_forward_hook(note(name, layer), with_kwargs=True)
        for name, layer in network.named_modules()
        if isinstance(layer, Elastic)
    ]
    network.eval()(images(1, 3, 64, 64), arch)
    network.train()
    for hook in hooks:
        hook.remove()
    return corners


def test_state_dict_of_an_extracted_network_round_trips(tmp_path: Path, micro, rng):
    from safetensors.torch import load_file, save_file

    arch = micro.sample(rng)
    small = Network(micro, 10).extract(arch).eval()
    save_file(
        {k: v.contiguous() for k, v in small.state_dict().items()}, tmp_path / "a.safetensors"
    )
    again = build(arch, 10).eval()
    again.load_state_dict(load_file(tmp_path / "a.safetensors"))
    batch = images(1, 3, 64, 64, dtype=torch.float32)
    assert torch.equal(again(batch), small(batch))


def test_a_linear_layer_slices_every_projection_of_a_fused_one():
    fused = Linear(8, 6, groups=3)
    x = torch.randn(2, 5)
    y = fused(x, 4).unflatten(-1, (3, 4))
    for index in range(3):
        expected = F.linear(x, fused.weight[index, :4, :5], fused.bias[index, :4])
        torch.testing.assert_close(y[:, index], expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_networks_export(default):
    rng = random.Random(5)
    arch = default.smallest(rng)
    network = build(arch, 10).eval()
    batch = images(2, 3, 64, 64, dtype=torch.float32)
    dynamic = {"images": {0: torch.export.Dim("batch", min=1, max=64)}, "arch": None}
    program = torch.export.export(network, (batch, None), dynamic_shapes=dynamic)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch, None), network(batch))
        more = images(5, 3, 64, 64, dtype=torch.float32)
        torch.testing.assert_close(program.module()(more, None), network(more))


def test_an_unknown_block_is_not_silently_skipped(micro, rng):
    network = Network(micro, 10)
    arch = micro.sample(rng)
    stage = arch.stages[0]
    alien = Block.of("attention", 1.0, head_width=16)
    other = type(arch)(arch.stem, (type(stage)(stage.width, (alien,)), *arch.stages[1:]))
    with pytest.raises(KeyError):
        network(torch.zeros(1, 3, 64, 64), other)


def test_a_networks_forward_pass_is_one_graph_to_the_compiler(micro):
    network = build(micro.sample(random.Random(3)), 10).eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(images), network(images))
