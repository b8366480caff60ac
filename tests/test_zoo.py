"""What holds for every published network: counts, gradients, folding, widening, checkpoints."""

import argparse
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixnas import mixers, zoo
from mixnas.cost.count import count_flops, count_params, operators, without_memory
from mixnas.errors import InvalidCheckpoint, InvalidOption, MixnasError, UnknownNetwork
from mixnas.folding import fuse
from mixnas.jobs.zoo import zoo as job
from mixnas.mixers import Mixer

PARAMETERS = {
    "affnet_et": 1_436_264,
    "affnet_t": 2_654_232,
    "affnet": 5_568_696,
    "fvit_b16": 79_773_952,
    "fvit_b32": 81_211_648,
    "vit_b16": 86_859_496,
    "vit_b32": 88_297_192,
    "litv2_s": 27_844_000,
    "litv2_m": 48_830_368,
    "litv2_b": 86_520_704,
    "shvit_s1": 6_330_808,
    "shvit_s2": 11_483_072,
    "shvit_s3": 14_245_273,
    "shvit_s4": 16_588_484,
}
"""Counted on the authors' code (FViT, which has none: reconstructed from its printed counts)."""

FOLDED = {
    "shvit_s1": 6_308_660,
    "shvit_s2": 11_453_508,
    "shvit_s3": 14_210_010,
    "shvit_s4": 16_546_248,
}
"""The same with the authors' own folding."""

MEGA = {
    "affnet_et": 374.8,
    "affnet_t": 818.0,
    "affnet": 1493.5,
    "fvit_b16": 45_269,
    "fvit_b32": 11_631,
    "vit_b16": 49_348,
    "vit_b32": 12_656,
    "litv2_s": 3735.6,
    "litv2_m": 7484.1,
    "litv2_b": 13_200.0,
    "shvit_s1": 241.4,
    "shvit_s2": 365.5,
    "shvit_s3": 600.7,
    "shvit_s4": 986.4,
    "ufo_vit_t": 1911,
    "ufo_vit_s": 3731,
    "ufo_vit_m": 7009,
    "ufo_vit_b": 11_979,
}
"""Million multiply-adds in each system's own convention, see `own_convention`."""

QUICK = ("affnet_et", "fvit_b32", "litv2_s", "shvit_s1", "ufo_vit_s", "vit_b32")
"""One of each kind; the others take as long again and are marked slow."""

every_name = pytest.mark.parametrize("name", zoo.names())
mostly_slow = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in zoo.names()]
)

ODD = {"fvit": (96, 64), "ufo_vit": (80, 48)}
"""Oblong sizes; those of other systems need be no multiple of anything."""


def system_of(name):
    return next(file for file, system in zoo.systems().items() if name in system.variants)


def odd(name):
    return ODD.get(system_of(name), (75, 53))


def meta(name, **options):
    with torch.device("meta"):
        return zoo.create(name, **options)


def small(name, image=64, **options):
    return zoo.create(name, **{"width": 0.25, "num_classes": 7, "image": image, **options})


def lively(network, seed=0):
    """Draw weights that keep activations near 1, and norms and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                fan = math.prod(parameter.shape[1:]) if parameter.dim() != 3 else parameter.shape[2]
                parameter.normal_(std=fan**-0.5, generator=generator)
            else:
                parameter.normal_(std=0.2, generator=generator)
        for path, layer in network.named_modules():
            weight = getattr(layer, "weight", None)
            if path.endswith(".offset"):  # LITv2 samples there: beyond the map it would see nothing
                weight.mul_(0.05)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(std=0.2, generator=generator)
                layer.running_var.uniform_(3, 5, generator=generator)
    return network


def images(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# Published and counted


def test_the_five_systems_are_all_there():
    assert set(zoo.systems()) >= {"affnet", "fvit", "litv2", "shvit", "ufo_vit"}
    assert set(zoo.names()) >= {*PARAMETERS, *MEGA}


def test_the_packages_are_there_without_being_imported():
    code = "import mixnas; print('shvit_s4' in mixnas.zoo.names(), 'aff' in mixnas.mixers.names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_authors_code(name):
    assert count_params(meta(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", FOLDED)
def test_folded_parameters_are_those_of_the_authors_folding(name):
    assert count_params(fuse(meta(name))) == FOLDED[name]


@pytest.mark.parametrize("name", ["ufo_vit_t", "ufo_vit_s", "ufo_vit_m", "ufo_vit_b"])
def test_parameters_are_near_the_recalled(name):
    recalled = zoo.get(name)[1].params
    assert abs(count_params(meta(name)) / recalled - 1) < 0.025


def own_convention(name):
    """Count a network as its authors did."""
    image = zoo.get(name)[1].image
    folded = system_of(name) == "shvit"
    by = without_memory(
        lambda: fuse(zoo.create(name)) if folded else zoo.create(name),
        lambda network: operators(network, image),
    )
    if system_of(name) == "fvit":
        return by["linear"] + by["conv"]
    return sum(count for operator, count in by.items() if not operator.startswith("fft"))


@pytest.mark.timeout(300)
@mostly_slow
def test_multiply_adds_are_the_published(name):
    """Within one per cent, or equal in the digits that were printed (0.4, 0.8 and 1.5 GFLOPs)."""
    counted, published = own_convention(name), zoo.get(name)[1].flops
    assert abs(counted / 1e6 / MEGA[name] - 1) < 2e-4
    near = abs(counted / published - 1) < 0.01
    assert near or (system_of(name) == "affnet" and round(counted / 1e9, 1) == published / 1e9)


@pytest.mark.slow
def test_litv2_b_costs_what_is_published_at_384_pixels():
    """39.7 G; the authors' counter and fvcore with the deformable convolutions both say so."""
    counted = without_memory(lambda: zoo.create("litv2_b"), lambda n: count_flops(n, 384))
    assert abs(counted / 39.7284e9 - 1) < 1e-4


@every_name
def test_is_built_of_the_registrys_mixer(name):
    system, variant = zoo.get(name)
    kind = mixers.get(variant.options.get("mixer", system.mixer))
    assert any(type(layer) is kind for layer in meta(name).modules())


# Forward and backward


def learns(network, x, *, every_norm=True):
    """Return the parameters without a gradient; by right a few biases before a softmax."""
    network.zero_grad()
    y = network(x)
    assert y.isfinite().all()
    (y * images(*y.shape, dtype=y.dtype)).sum().backward()
    exempt = {
        f"{path}.{declared}"
        for path, layer in network.named_modules()
        if isinstance(layer, Mixer)
        for declared in layer.shift_invariant
    }
    return [
        parameter
        for parameter, tensor in network.named_parameters()
        if tensor.grad is None
        or not tensor.grad.isfinite().all()
        or (parameter not in exempt and every_norm and tensor.grad.abs().max() < 1e-12)
    ]


@mostly_slow
def test_every_parameter_learns_at_a_small_and_at_an_odd_size(name):
    for size in ((64, 64), odd(name)):
        network = lively(small(name, image=size)).double().eval()
        x = images(2, 3, *size)
        assert network(x).shape == (2, 7)
        assert learns(network, x) == []
    assert learns(network.train(), x, every_norm=False) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@every_name
def test_every_parameter_learns_at_the_published_size(name):
    side = zoo.get(name)[1].image
    network = lively(zoo.create(name)).train()
    batch = 1 if system_of(name) == "fvit" else 2  # SHViT's batch norm of the means needs two
    x = images(batch, 3, side, side, dtype=torch.float32)
    assert learns(network, x, every_norm=False) == []


@mostly_slow
def test_samples_do_not_mix_and_layout_does_not_matter(name):
    network = lively(small(name)).double().eval()
    x = images(3, 3, 64, 64)
    with torch.no_grad():
        y = network(x)
        alone = torch.cat([network(sample) for sample in x.split(1)])
        channels_last = network(x.to(memory_format=torch.channels_last))
    assert (y - alone).abs().max() < 1e-10
    assert (y - channels_last).abs().max() < 1e-10


@mostly_slow
def test_same_seed_same_weights(name):
    first, second = (torch.manual_seed(5) and small(name).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# Folding


@mostly_slow
def test_folding_leaves_the_outputs(name):
    network = lively(small(name)).eval()
    x = images(2, 3, 64, 64)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        network = network.to(dtype)
        with torch.no_grad():
            y = network(x.to(dtype))
            difference = (fuse(network)(x.to(dtype)) - y).abs().max()
        assert difference < limit, float(y.abs().max())


@pytest.mark.parametrize("name", QUICK)
def test_folding_leaves_no_batch_norm_that_could_go(name):
    network = fuse(meta(name, width=0.25, image=64))
    kept = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # UFO-ViT's local interaction has its norm before a padded convolution: zeros are not shifted.
    assert len(kept) == (zoo.get(name)[1].options["depth"] if name == "ufo_vit_s" else 0)


# Widths, classes, channels


def head_widths(network):
    return {
        layer.choices["head_width"]
        for layer in network.modules()
        if isinstance(layer, Mixer) and "head_width" in layer.choices
    }


@every_name
def test_widening_keeps_the_width_of_heads(name):
    sizes = {factor: meta(name, width=factor) for factor in (0.5, 1.0, 1.5)}
    counts = [count_params(network) for network in sizes.values()]
    assert counts == sorted(set(counts))
    assert 0.2 < counts[0] / counts[1] < 0.6
    assert len({frozenset(head_widths(network)) for network in sizes.values()}) == 1


@every_name
@pytest.mark.parametrize("factor", [0.05, 0.3, 0.77, 1.21])
def test_any_factor_builds_a_network(name, factor):
    assert count_params(meta(name, width=factor)) > 0


@every_name
def test_a_width_of_one_is_as_published(name):
    assert zoo.options(name) == dict(zoo.get(name)[1].options)


@mostly_slow
def test_features_classes_and_channels(name):
    network = small(name, num_classes=0, in_chans=1).eval()
    x = images(2, 1, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        features = network(x)
        assert features.shape == (2, network.num_features)
        assert network.num_classes == 0
        network.reset_classifier(5)
        assert network.num_classes == 5
        assert network(x).shape == (2, 5)
        assert network.get_classifier().out_features == 5
        held = network.forward_head(network.forward_features(x), pre_logits=True)
    assert torch.equal(held, features)


@mostly_slow
def test_a_new_classifier_has_the_networks_type(name):
    network = small(name).double()
    network.reset_classifier(3)
    assert network(images(2, 3, 64, 64)).dtype is torch.float64


# What a user can get wrong


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("shvti_s4", {}, UnknownNetwork, "no network 'shvti_s4'; did you mean 'shvit_s4'"),
        ("shvit_s4", {"wdth": 2}, InvalidOption, "zoo 'shvit_s4': no setting 'wdth'"),
        ("shvit_s4", {"width": 0}, InvalidOption, "width=0 must be above 0"),
        ("shvit_s4", {"width": math.nan}, InvalidOption, "width=nan must be above 0"),
        ("shvit_s4", {"width": math.inf}, InvalidOption, "width=inf must be above 0"),
        ("shvit_s4", {"width": 100}, InvalidOption, "at most 16; 1 is as published"),
        ("shvit_s4", {"width": "1"}, InvalidOption, "width='1' must be above 0"),
        ("shvit_s4", {"num_classes": -1}, InvalidOption, "num_classes -1: a whole number"),
        ("shvit_s4", {"num_classes": None}, InvalidOption, "num_classes None: a whole number"),
        ("shvit_s4", {"in_chans": 0}, InvalidOption, "in_chans 0: a whole number of at least 1"),
        ("shvit_s4", {"image": (224,)}, InvalidOption, "one side, or height and width"),
        ("shvit_s4", {"image": "224"}, InvalidOption, "image side 1 '224': a whole number"),
        ("shvit_s4", {"dims": 5}, InvalidOption, "dims=5 makes no network .*as published"),
        ("fvit_b32", {"dim": "x"}, InvalidOption, "dim='x' makes no network .*dim=768"),
        ("fvit_b32", {"drop_path": 2}, InvalidOption, "drop_path=2 must be below 1"),
        ("affnet_et", {"stem": -3}, InvalidOption, "stem=-3 must not be below 0"),
    ],
)
def test_a_mistake_is_one_line(name, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        zoo.create(name, **options)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


NAME = "shvit_s1"


@pytest.fixture
def source():
    return lively(small(NAME))


def equal(network, source):
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        return torch.equal(network.eval()(x), source.eval()(x))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "args": argparse.Namespace(rate=1e-3)},
        lambda state: {"model": {"module": state}},
        lambda state: {"model": {f"module.{key}": tensor for key, tensor in state.items()}},
    ],
    ids=["bare", "model", "namespace", "nested", "parallel"],
)
def test_a_checkpoint_is_unwrapped(source, wrapped, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(wrapped(source.state_dict()), path)
    assert equal(small(NAME, checkpoint=path), source)


@mostly_slow
def test_every_network_reads_its_own_names(name, tmp_path):
    source = lively(small(name))
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, path)
    assert equal(small(name, checkpoint=path), source)


@mostly_slow
def test_features_only_leave_the_classifier_of_a_checkpoint_out(name, tmp_path):
    source = lively(small(name))
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    network = small(name, num_classes=0, checkpoint=path)
    source.reset_classifier(0)
    assert equal(network, source)


def refused(path, message, **options):
    with pytest.raises(InvalidCheckpoint, match=message) as caught:
        small(NAME, checkpoint=path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_checkpoint_that_is_not_there(tmp_path):
    refused(tmp_path / "none.pth", "no such file; give the path")
    refused(tmp_path, "no plain file")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_damaged_checkpoint(source, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"<html>not found</html>", b""):
        path.write_bytes(content)
        refused(path, "cannot be read|damaged|holds no tensors")


def test_a_checkpoint_of_objects_is_refused_unopened(source, tmp_path):
    path, trap = tmp_path / "weights.pth", tmp_path / "sprung"
    torch.save({"model": source.state_dict(), "best": Trap(trap)}, path)
    refused(path, "holds more than tensors .* is not opened.*the state dict alone, as safetensors")
    assert not trap.exists()


def test_a_checkpoint_that_holds_itself(tmp_path):
    path, content = tmp_path / "weights.pth", {"model": {}}
    content["model"]["model"] = content
    torch.save(content, path)
    refused(path, "holds no tensors")


def test_a_text_is_no_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    for text in ("hello world\n" * 10, "<!DOCTYPE html><html>", "{"):
        path.write_text(text)
        refused(path, "not a file of weights, or damaged")


def test_a_checkpoint_is_known_by_what_it_holds_not_by_its_name(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "weights.safetensors")
    save_file(source.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        assert equal(small(NAME, checkpoint=path), source)


def test_complex_weights_are_refused(source, tmp_path):
    path, state = tmp_path / "weights.pth", source.state_dict()
    key = next(iter(state))
    torch.save({**state, key: state[key].to(torch.complex64)}, path)
    refused(path, "is sparse or complex")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), "weights"])
def test_a_checkpoint_without_a_state_dict(content, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    refused(path, "no state dict|holds no tensors")


@mostly_slow
def test_weights_of_another_network_are_refused(name, source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({f"strange.{key}": tensor for key, tensor in source.state_dict().items()}, path)
    with pytest.raises(InvalidCheckpoint, match="not weights of") as caught:
        small(name, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_variant_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(small("shvit_s3").state_dict(), path)
    refused(path, "not weights of shvit_s1: ")


def test_weights_of_another_number_of_classes_say_so(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    refused(
        path, "head.* is .* there, .* here; give num_classes=, its number of classes", num_classes=9
    )


# mixnas zoo


def test_the_job_lists_what_is_published():
    listed = job()
    assert [network["name"] for network in listed] == zoo.names()
    found = {network["name"]: network for network in listed}
    assert found["vit_b16"]["mixer"] == "attention"
    assert found["shvit_s4"]["published"]["flops"] == 986e6
    assert json.loads(json.dumps(listed)) == listed


def test_the_job_counts_one_network():
    (found,) = job("shvit_s1", image=100, classes=10, width=0.5)
    network = zoo.create("shvit_s1", num_classes=10, width=0.5)
    assert found["counted"]["params"] == count_params(network)
    assert found["counted"]["flops"] == count_flops(network, 100)
    assert found["folded"]["params"] == count_params(fuse(network))
    norms = found["counted"]["operators"]["batch_norm"]
    assert found["folded"]["flops"] == found["counted"]["flops"] - norms
    for counted in (found["counted"], found["folded"]):
        assert sum(counted["operators"].values()) == counted["flops"]
    assert "batch_norm" not in found["folded"]["operators"]
    assert found["choices"]
    assert json.loads(json.dumps(found))["settings"]["dims"] == [64, 112, 160]


@pytest.mark.parametrize(
    "options", [{"image": 8}, {"classes": 0}, {"width": -1.0}, {"image": 100.5}], ids=str
)
def test_the_job_refuses_what_cannot_be(options):
    with pytest.raises(MixnasError) as caught:
        job("shvit_s1", **options)
    assert "\n" not in str(caught.value)
