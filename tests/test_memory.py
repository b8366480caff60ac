"""Analytic peak memory: by segment as by the whole network, and as the allocator counts it."""

from random import Random

import pytest
import torch
from torch import nn

from mixnas.arch import Architecture, Block, Stage, Stem
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.memory import PeakMemory, peak
from mixnas.elastic import Conv
from mixnas.network import build, walk
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions
from mixnas.timing.memory import peak_memory


def table_of(space, **other):
    return PeakMemory(image=space.image, classes=space.classes, **other)


def network_of(arch, space, dtype=torch.float32):
    network = build(arch, space.classes).eval()
    return network.to(dtype, memory_format=torch.channels_last)


def weights_of(network):
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def scratch_of(network, images):
    """Return the most that a convolution takes: reordered weights, or its unfolded input."""
    found = [0]

    def note(module, given, made):
        columns = module.weight[0].numel() * made.shape[2] * made.shape[3]
        found.append(max(2 * module.weight.nbytes, columns * made.element_size()))

    for module in network.modules():
        if isinstance(module, Conv):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(images)
    return max(found)


SHIPPED = [("micro", 30), pytest.param("default", 12, marks=pytest.mark.slow)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "number"), SHIPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_tell_what_the_whole_network_takes(name, number, dtype):
    space = SearchSpace.load(name)
    table, rng = table_of(space, dtype=dtype), Random(1)
    for _ in range(number):
        arch = space.sample(rng)
        network = network_of(arch, space, dtype)
        images = torch.zeros(1, 3, space.image, space.image, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        assert sum(map(table.weights, walk(arch))) == weights_of(network)
        assert max(map(table.peak, walk(arch))) == peak(lambda: network(images), images)  # noqa: B023
        assert table(arch) == weights_of(network) + max(map(table.peak, walk(arch)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "number"), SHIPPED)
def test_the_allocator_counts_the_same_but_for_scratch(name, number):
    """What kernels take and give back within an operator is not seen, and bounded."""
    space = SearchSpace.load(name)
    table, rng = table_of(space), Random(2)
    conditions = Conditions.of("cpu", threads=1)
    for _ in range(number):
        arch = space.sample(rng)
        network = network_of(arch, space)
        scratch = scratch_of(network, torch.zeros(1, 3, space.image, space.image))
        measured = peak_memory(network, (3, space.image, space.image), conditions)
        assert 0.95 * table(arch) <= measured <= table(arch) + scratch
        assert name == "micro" or measured <= 1.25 * table(arch)


def test_views_cost_nothing_and_what_is_dropped_is_free():
    image = torch.zeros(1, 4, 8, 8)

    class Chain(nn.Module):
        def forward(self, x):
            x = x + 1  # the image, and this
            x = x.flatten(2).transpose(1, 2)
            x = x * 2  # the image, the sum, and this
            return x.mean()

    assert peak(lambda: Chain()(image), image) == 3 * image.nbytes
    kept = []
    held = peak(lambda: kept.append(image * 2) or image.exp(), image)
    assert held == 3 * image.nbytes  # what is kept lives on; the call before is not looked at


def test_half_precision_halves_all_but_the_fourier_mixers_island():
    def memory(mixer, dtype):
        block = Block.of(mixer, 1.0, **({"partial": 0.25} if mixer == "single_head" else {}))
        arch = Architecture(Stem("conv8"), (Stage(32, (block,)),))
        table = PeakMemory(image=224, classes=10, dtype=dtype)
        peaks = [table.peak(segment) for segment in walk(arch) if segment[0] == "block"]
        return peaks[0]

    plain = memory("single_head", torch.float32), memory("single_head", torch.bfloat16)
    fourier = memory("aff", torch.float32), memory("aff", torch.bfloat16)
    assert plain[0] == pytest.approx(2 * plain[1], rel=0.01)
    assert fourier[1] > 0.6 * fourier[0]


def test_a_batch_multiplies_activations_alone():
    space = SearchSpace.load("micro")
    one, four, rng = table_of(space), table_of(space, batch=4), Random(3)
    for segment in walk(space.sample(rng)):
        assert one.weights(segment) == four.weights(segment)
        assert four.peak(segment) == pytest.approx(4 * one.peak(segment), rel=0.1)


def test_nothing_random_is_consumed():
    space = SearchSpace.load("micro")
    state = torch.get_rng_state()
    table_of(space)(space.sample(Random(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_search_space_is_cut_to_a_memory_budget():
    space = SearchSpace.load("micro")
    table, rng = table_of(space), Random(5)
    limit = Limit.parse("250KB")
    feasible = Feasible(space, (limit,), {"memory": table})
    assert 0 < feasible.count() < space.size()
    found = [feasible.sample(rng) for _ in range(10)]
    assert all(table(arch) <= limit.high for arch in [*found, feasible.least()])
    assert "conv8" in feasible.useful()["stem"]
