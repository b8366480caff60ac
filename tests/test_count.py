"""FLOPs by hand arithmetic, by the anchors of the five systems, and the operators refused."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixnas import mixers
from mixnas.cost.count import (
    count_flops,
    count_params,
    flops,
    operators,
    params,
    without_memory,
)
from mixnas.elastic import Conv
from mixnas.errors import UncountedOp
from mixnas.network import Part, build, parts, walk


class Apply(nn.Module):
    """A module that applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class PlainAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        t = F.scaled_dot_product_attention(q, k, v)
        return self.out(t.transpose(1, 2).flatten(2))


def test_attention_is_counted_whole():
    n, c = 196, 192
    counted = count_flops(PlainAttention(c, 3), (c, 14, 14))
    assert counted == 4 * n * c**2 + 2 * n**2 * c == 43_653_120


def test_what_fvcore_knows_keeps_its_count():
    n = 8 * 8
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.GroupNorm(1, 16),
        nn.ConvTranspose2d(16, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 7),
    )
    by_hand = 27 * 16 * n + 2 * 16 * n + 9 * 16 * n + 5 * 16 * n + 16 * 4 * 4 * n + 4 * 4 * n + 28
    counted = count_flops(module, (3, 16, 16))
    assert counted == by_hand
    assert type(counted) is int


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 9), (13, 15), (1, 1)])
def test_a_real_transform_costs_its_rule_each_way(height, width):
    one_way = round(1.25 * height * width * math.log2(height * width))
    both = Apply(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:], norm="ortho"))
    assert count_flops(both, (6, height, width)) == 2 * 6 * one_way
    assert count_flops(Apply(torch.fft.rfft2), (6, height, width)) == 6 * one_way


def test_other_transforms():
    twice = round(2.5 * 8 * 8 * 6)
    assert count_flops(Apply(torch.fft.fft2), (3, 8, 8)) == 3 * twice
    assert count_flops(Apply(lambda x: torch.fft.ifft2(torch.fft.fft2(x))), (3, 8, 8)) == 6 * twice
    along = Apply(lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=2), n=8, dim=2))
    assert count_flops(along, (3, 8, 8)) == 2 * 3 * 8 * round(1.25 * 8 * 3)
    assert count_flops(Apply(lambda x: torch.fft.fft(x, n=16)), (3, 8, 8)) == 24 * 2.5 * 16 * 4
    padded = Apply(lambda x: torch.fft.rfft2(x, s=(16, 16)))
    assert count_flops(padded, (3, 8, 8)) == 3 * 1.25 * 256 * 8


def test_a_complex_product_is_four():
    def product(x):
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return z @ z.transpose(-1, -2)

    assert count_flops(Apply(product), (2, 5, 6)) == 4 * 2 * 5 * 3 * 5


def test_a_broadcast_matrix_product_is_counted_from_its_output():
    weight = torch.zeros(4, 5)
    assert count_flops(Apply(lambda x: torch.matmul(weight, x)), (7, 5, 3)) == 7 * 4 * 5 * 3
    assert count_flops(Apply(lambda x: x @ torch.zeros(3)), (7, 5, 3)) == 7 * 5 * 3


def test_zeros_that_please_a_kernel_are_not_counted():
    def attend(x):
        q, k, v = x[..., :2], x[..., 2:4], x
        return F.scaled_dot_product_attention(F.pad(q, (0, 6)), F.pad(k, (0, 6)), v, scale=0.5)

    assert count_flops(Apply(attend), (3, 10, 8)) == 3 * 10 * 10 * (2 + 8)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return 2 * x


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), "einsum"),
        (lambda x: x.cumsum(1), "aten::cumsum"),
        (lambda x: torch.linalg.svdvals(x), "svd"),
        (Twice.apply, "Twice"),
    ],
)
def test_an_operator_without_a_rule_is_an_error(function, operator):
    with pytest.raises(UncountedOp, match=operator) as caught:
        count_flops(nn.Sequential(nn.ReLU(), Apply(function)), (3, 8, 8))
    message = str(caught.value)
    assert "Sequential.1" in message
    assert "write" in message
    assert "\n" not in message


def test_control_flow_of_a_script_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @torch.jit.script
        def branch(x: torch.Tensor) -> torch.Tensor:
            if bool(x.sum() > 0):
                x = torch.matmul(x, x)
            return x

    with pytest.raises(UncountedOp):
        count_flops(Apply(branch), (3, 8, 8))


def test_counting_leaves_no_trace():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).double()
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count_flops(module, (3, 8, 8))
    assert not caught
    assert [child.training for child in module.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


ANCHORS = [  # dim 256, batch 1, one layer: counted on the authors' code
    ("hilo", {"num_heads": 8, "window": 2, "alpha": 0.9}, 248_832, (36.064, 195.887, 1609.646)),
    ("hilo", {"num_heads": 8, "window": 2, "alpha": 0.5}, 230_400, (37.983, 181.436, 1197.801)),
    ("aff", {}, 33_792, (7.340, 27.525, 106.430)),  # H Wf C^2; fvcore rounds an einsum
    ("single_head", {"partial": 0.25}, 72_512, (17.323, 106.172, 1014.759)),
    ("additive", {"num_heads": 8}, 201_488, (39.438, 157.753, 631.013)),
    ("xnorm", {"num_heads": 8, "bottleneck": 1.0}, 263_176, (54.591, 218.366, 873.464)),
    ("xnorm", {"num_heads": 8, "bottleneck": 0.5}, 131_720, (26.493, 105.972, 423.887)),
]


@pytest.mark.parametrize(("name", "knobs", "parameters", "millions"), ANCHORS)
def test_mixers_cost_what_their_systems_say(name, knobs, parameters, millions):
    mixer = mixers.create(name, 256, **knobs)
    assert count_params(mixer) == parameters
    for side, expected in zip((14, 28, 56), millions, strict=True):
        transform = 2 * 256 * round(1.25 * side**2 * math.log2(side**2)) if name == "aff" else 0
        counted = count_flops(mixer, (256, side, side)) - transform
        assert abs(counted - expected * 1e6) <= 500.5


def test_operators_add_up_and_bear_plain_names():
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Flatten(2),
        Apply(lambda x: x @ x.transpose(1, 2)),
        Apply(lambda x: F.scaled_dot_product_attention(x, x, x)),
        Apply(lambda x: torch.addmm(torch.zeros(16), x[0], torch.zeros(16, 16))),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )
    by = operators(module, 8)
    assert by == {
        "conv": 27 * 16 * 64,
        "matmul": 16 * 64 * 16,
        "scaled_dot_product_attention": 2 * 16**3,
        "linear": 16**3 + 16 * 16 * 5,
        "batch_norm": 2 * 16 * 64,
        "layer_norm": 5 * 16 * 16,
    }
    assert list(by.values()) == sorted(by.values(), reverse=True)
    assert sum(by.values()) == count_flops(module, 8)


def test_operators_of_an_architecture(micro, rng):
    arch = micro.sample(rng)
    assert sum(operators(arch, 64, classes=10).values()) == count_flops(arch, 64, classes=10)
    assert operators(arch, 64, classes=10) == operators(build(arch, 10), 64)


PLAIN = {
    "conv": lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "depth-wise": lambda: nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False),
    "elastic": lambda: Conv(3, 8, 16, 16, padding=0),
    "norms": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(1, 8)),
    "pooled": lambda: nn.Sequential(nn.Conv2d(3, 8, 2), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_meta_device_counts_convolutions(kind):
    with torch.device("meta"):
        module = PLAIN[kind]()
    assert operators(module, 33) == operators(PLAIN[kind](), 33)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_what_the_meta_device_cannot_do_is_counted_in_memory():
    built = []

    def create():
        built.append(nn.Sequential(nn.Conv2d(3, 4, 1), Apply(torch.fft.rfft2)))
        return built[-1]

    assert without_memory(create, lambda m: count_flops(m, 8)) == count_flops(create(), 8)
    assert built[0][0].weight.is_meta
    assert not built[1][0].weight.is_meta


def test_an_unknown_operator_is_refused_without_memory_too():
    with pytest.raises(UncountedOp, match="aten::cumsum"):
        without_memory(lambda: Apply(lambda x: x.cumsum(1)), lambda m: count_flops(m, 8))


def test_every_part_of_micro_counts_alike_with_and_without_memory(micro, rng):
    for part in {
        part for segment in walk(micro.sample(rng)) for part in parts(segment, image=64, classes=10)
    }:
        assert flops(part) == count_flops(part.build(), part.shape), part


@pytest.mark.parametrize("name", mixers.names())
def test_a_part_without_memory_counts_as_a_real_one(name):
    knobs = tuple(sorted((knob, values[0]) for knob, values in mixers.get(name).knobs.items()))
    part = Part("mixer", (name, 64, knobs), (64, 7, 9))
    real = part.build()
    assert flops(part) == count_flops(real, part.shape)
    assert params(part) == count_params(real)
