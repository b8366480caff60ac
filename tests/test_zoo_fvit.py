"""FViT and ViT: ViT against timm's own, FViT against its equations in numpy."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mixnas import zoo
from mixnas.cost.count import count_flops, count_params, operators
from mixnas.errors import InvalidCheckpoint, InvalidOption, MixnasError

TINY = {"dim": 64, "depth": 2, "heads": 4, "num_classes": 7, "image": 64}
BASES = {"vit_b16": "vit_base_patch16_384", "vit_b32": "vit_base_patch32_384"}


def shaken(network):
    """Move every weight away from its initial value, so that none hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def theirs(**options):
    given = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 7}
    kind = timm.models.vision_transformer.VisionTransformer
    return shaken(kind(**{**given, "img_size": 64, "dynamic_img_size": True, **options}))


def weights(network, path):
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


def difference(one, other, x):
    with torch.no_grad():
        return (one(x) - other(x)).abs().max()


@pytest.mark.parametrize(
    ("name", "settings", "exact"),
    [
        ("fvit_b16", {}, 79_773_952),
        ("fvit_b32", {}, 81_211_648),
        ("fvit_b16", {"score": "full"}, 79_993_864),
        ("fvit_b32", {"score": "full"}, 81_431_560),
        ("vit_b16", {}, 86_859_496),
        ("vit_b32", {}, 88_297_192),
    ],
)
def test_parameters(name, settings, exact):
    with torch.device("meta"):
        assert count_params(zoo.create(name, **settings)) == exact


@pytest.mark.parametrize(
    ("name", "settings", "giga"),
    [
        ("fvit_b16", {}, 45.274),
        ("fvit_b32", {}, 11.632),
        ("fvit_b16", {"score": "full"}, 45.391),
        ("fvit_b32", {"score": "full"}, 11.662),
        ("vit_b16", {}, 49.348),
        ("vit_b32", {}, 12.656),
    ],
)
def test_multiply_adds_of_linear_layers_and_convolutions(name, settings, giga):
    with torch.device("meta"):
        network = zoo.create(name, **settings)
    by = operators(network, 384)
    tokens = network.positions.shape[1]
    counted = by["linear"] + by["conv"]
    if name.startswith("fvit"):  # the score of the keys is a layer too; here it is a product
        channels = 768
        counted += 12 * tokens * channels * (12 if settings else 1)
        assert by["matmul"] == 12 * tokens * channels * (14 if settings else 3)
    assert round(counted / 1e9, 3) == giga


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BASES)
def test_the_baselines_equal_timm(name, tmp_path):
    torch.manual_seed(0)
    source = shaken(timm.create_model(BASES[name]))
    network = zoo.create(name, checkpoint=weights(source, tmp_path / "vit.safetensors")).eval()
    x = torch.randn(1, 3, 384, 384, dtype=torch.float64)  # single precision rounds by processor
    assert difference(network.double(), source.double(), x) < 1e-9


@pytest.mark.parametrize(
    ("ours", "timms"),
    [
        ({}, {}),
        ({"patch": 32}, {"patch_size": 32}),
        ({"mlp_ratio": 2.5, "depth": 3}, {"mlp_ratio": 2.5, "depth": 3}),
        ({"heads": 2, "qkv_bias": False}, {"num_heads": 2, "qkv_bias": False}),
        ({"in_chans": 1, "num_classes": 3}, {"in_chans": 1, "num_classes": 3}),
        ({"image": (96, 64)}, {"img_size": (96, 64)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (160, 96)])
def test_settings_equal_timms_at_any_size(ours, timms, size, tmp_path):
    source = theirs(**timms).double()
    path = weights(source, tmp_path / "vit.safetensors")
    network = zoo.create("vit_b16", checkpoint=path, **{**TINY, **ours}).double().eval()
    network.load_state_dict(zoo.get("vit_b16")[0].translate(source.state_dict()))
    x = torch.randn(2, ours.get("in_chans", 3), *size, dtype=torch.float64)
    assert difference(network, source, x) < 1e-10


def test_drop_path_rises_to_the_last_block_and_rests_in_evaluation():
    plain = shaken(zoo.create("vit_b16", **{**TINY, "depth": 3}))
    dropping = zoo.create("vit_b16", **{**TINY, "depth": 3}, drop_path=0.4).eval()
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert difference(plain, dropping, x) == 0
    rates = [getattr(block.drop, "drop_prob", 0.0) for block in dropping.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


def softmax(scores):
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


def norm(x, layer):
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    return x * layer["weight"] + layer["bias"]


def fvit_in_numpy(state, image, patch, heads):
    """One image through every block, tokens as rows, one head at a time."""

    def layer(name):
        return {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(name)}

    kernel = state["patches.weight"]
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    cells = image.reshape(3, rows, patch, columns, patch).transpose(1, 3, 0, 2, 4)
    x = cells.reshape(rows * columns, -1) @ kernel.reshape(len(kernel), -1).T
    x = np.concatenate([state["class_token"][0], x + state["patches.bias"]]) + state["positions"][0]
    width = x.shape[1]
    d = width // heads
    depth = len([key for key in state if key.endswith("mlp_norm.weight")])
    for i in range(depth):
        own = layer(f"blocks.{i}")
        t = norm(x, layer(f"blocks.{i}.mixer_norm"))
        wq, wk = own["mixer.query_key.weight"]
        bq, bk = own["mixer.query_key.bias"]
        q, k = t @ wq.T + bq, t @ wk.T + bk
        wa, ba = own["mixer.query_score.weight"][0, 0], own["mixer.query_score.bias"][0, 0]
        wb, bb = own["mixer.key_score.value"][0], own["mixer.key_score_bias.value"][0]
        u = np.empty_like(q)
        for s in (slice(h * d, (h + 1) * d) for h in range(heads)):
            g = softmax((q[:, s] @ wa + ba) / np.sqrt(d)) @ q[:, s]
            p = g * k[:, s]
            u[:, s] = softmax((p @ wb + bb) / np.sqrt(d)) @ p * q[:, s]
        x = x + u @ own["mixer.transform.weight"][0].T + own["mixer.transform.bias"][0] + q
        t = norm(x, layer(f"blocks.{i}.mlp_norm"))
        t = t @ own["mlp.expand.weight"].T + own["mlp.expand.bias"]
        t = nn.functional.gelu(torch.from_numpy(t)).numpy()
        x = x + t @ own["mlp.reduce.weight"].T + own["mlp.reduce.bias"]
    return norm(x, layer("norm"))[0] @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_fvit_computes_its_equations(size):
    network = shaken(zoo.create("fvit_b16", **{**TINY, "image": size})).double()
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    expected = np.stack([fvit_in_numpy(state, image.numpy(), 16, 4) for image in x])
    with torch.no_grad():
        assert np.abs(network(x).numpy() - expected).max() < 1e-10


def test_starts_as_timm_does():
    torch.manual_seed(0)
    ours = zoo.create("vit_b16", depth=2)
    source = timm.create_model("vit_base_patch16_384", depth=2)
    start = zoo.get("vit_b16")[0].translate(source.state_dict())
    for key, tensor in ours.state_dict().items():
        spread, expected = float(tensor.std(correction=0)), float(start[key].std(correction=0))
        assert spread == pytest.approx(expected, rel=0.15, abs=2e-7), key
        assert float(tensor.mean()) == pytest.approx(float(start[key].mean()), abs=4e-3), key


def test_the_additive_mixer_starts_at_two_hundredths():
    network = zoo.create("fvit_b16", depth=1)
    for key, tensor in network.blocks[0].mixer.named_parameters():
        if "bias" in key:
            assert not tensor.any(), key
        else:
            assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.3), key


@pytest.mark.parametrize("name", ["fvit_b16", "vit_b16"])
def test_positions_of_another_size_are_resampled(name):
    network = shaken(zoo.create(name, **TINY))
    larger = torch.randn(1, 3, 96, 128)
    assert network(larger).shape == (1, 7)
    other = zoo.create(name, **{**TINY, "image": (96, 128)}).eval()
    own = network.state_dict()
    own["positions"] = network._table((6, 8))
    other.load_state_dict(own)
    assert difference(network, other, larger) < 1e-5


@pytest.mark.parametrize("image", [100, (96, 100), 8])
def test_sides_must_be_multiples_of_the_patch(image):
    with pytest.raises(InvalidOption, match="multiples of the patch, 16 pixels; take"):
        zoo.create("fvit_b16", **{**TINY, "image": image})


def test_images_must_have_such_sides_too():
    network = zoo.create("fvit_b16", **TINY)
    with pytest.raises(InvalidOption, match=r"image 50x64.*take 48x64"):
        network(torch.zeros(1, 3, 50, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "heads=5 must divide dim=64; take dim=64, heads=1"),
        ({"mixer": "hilo"}, "mixer 'hilo': FViT has 'additive'"),
        ({"score": "heads"}, "no score 'heads'"),
        ({"value": "v"}, "no value 'v'"),
        ({"dept": 2}, "no setting 'dept'; did you mean 'depth'"),
    ],
)
def test_impossible_settings_are_one_line(settings, message):
    with pytest.raises(MixnasError, match=message) as caught:
        zoo.create("fvit_b16", **{**TINY, **settings})
    assert "\n" not in str(caught.value)


def test_weights_of_another_image_ask_for_it(tmp_path):
    path = weights(theirs(img_size=96), tmp_path / "vit.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"positions is .*; give image="):
        zoo.create("vit_b16", checkpoint=path, **TINY)
    assert zoo.create("vit_b16", checkpoint=path, **{**TINY, "image": 96}).size == (6, 6)


def test_weights_of_attention_do_not_fit_the_additive_mixer(tmp_path):
    path = weights(theirs(), tmp_path / "vit.safetensors")
    with pytest.raises(InvalidCheckpoint, match="not weights of fvit_b16"):
        zoo.create("fvit_b16", checkpoint=path, **TINY)


@pytest.mark.parametrize(
    ("factor", "width", "heads"), [(0.5, 384, 6), (1.5, 1152, 18), (0.01, 64, 1)]
)
def test_widening_keeps_the_heads_width(factor, width, heads):
    with torch.device("meta"):
        network = zoo.create("fvit_b16", width=factor)
    assert network.num_features == width
    assert network.blocks[0].mixer.choices == {"head_width": (64,)}
    assert width // heads == 64


def test_counts_at_another_image_grow_with_its_patches():
    with torch.device("meta"):
        small, large = (zoo.create("fvit_b16", **{**TINY, "image": side}) for side in (64, 128))
    assert count_flops(large, 128) > 3.5 * count_flops(small, 64)
