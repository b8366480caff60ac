"""Cosines of gradients: against a calculation written out, and leaving the network alone."""

import random

import pytest
import torch
from torch.nn import functional as F

from mixnas import data
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.network import Network
from mixnas.train.cosines import cosines, groups


@pytest.fixture(scope="module")
def batches():
    stream = data.load("digits", image=16).train(batch=16, seed=0)
    return [next(stream) for _ in range(4)]


@pytest.fixture
def network(micro, randomise_norms):
    torch.manual_seed(0)
    return randomise_norms(Network(micro, 10)).train()


@pytest.mark.parametrize("gene", ["mixer", "width", "ratio", "depth", "stem"])
def test_a_group_differs_in_one_gene_and_what_it_brings_along(micro, gene):
    found = list(groups(micro, gene, count=4, rng=random.Random(1)))
    assert len(found) == 4
    for group in found:
        assert group.key.split(".")[-1] == gene
        genes = {value: micro.genotype(arch) for value, arch in group.archs.items()}
        assert {value: own[group.key] for value, own in genes.items()} == {v: v for v in genes}
        assert set(genes) == set(micro.genes[group.key])
        for key in set.intersection(*(set(own) for own in genes.values())) - {group.key}:
            assert len({own[key] for own in genes.values()}) == 1, key


def test_groups_may_be_kept_within_a_budget(micro):
    table = CostTable(count.flops, image=micro.image, classes=micro.classes)
    feasible = Feasible(micro, parse_all(["3MFLOPs"]), {"flops": table})
    found = list(groups(micro, "width", count=5, rng=random.Random(0), within=feasible))
    assert found
    assert all(arch in feasible for group in found for arch in group.archs.values())
    assert not list(groups(micro, "no such gene", count=1, rng=random.Random(0), within=feasible))


def flat(network, arch, batch, names):
    """Return the gradient of some parameters as one vector, by a backward pass of its own."""
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(batch[0], arch), batch[1]).backward()
    named = dict(network.named_parameters())
    found = torch.cat([named[name].grad.double().flatten() for name in names])
    network.zero_grad(set_to_none=True)
    return found


def test_cosines_are_those_of_the_shared_parameters(network, micro, batches):
    """One group whose mixers vary; all but the varied block's mixers is shared by each pair."""
    (group,) = groups(micro, "mixer", count=1, rng=random.Random(0))
    found = cosines(network, "mixer", [group], iter(batches))
    assert found.values == tuple(sorted(group.archs))
    assert found.groups == 1
    stride, block = group.key.split(".")[:2]
    own = f"stages.{stride[1:]}.{block[1:]}.mix."
    network.zero_grad(set_to_none=True)
    F.cross_entropy(
        network(batches[0][0], next(iter(group.archs.values()))), batches[0][1]
    ).backward()
    used = [n for n, p in network.named_parameters() if p.grad is not None and own not in n]
    for i, one in enumerate(found.values):
        for j, other in enumerate(found.values):
            g = flat(network, group.archs[one], batches[0], used)
            h = flat(network, group.archs[other], batches[0], used)
            k = flat(network, group.archs[other], batches[1], used)
            if i != j:
                assert found.same[i][j] == pytest.approx(
                    float(F.cosine_similarity(g, h, 0)), abs=1e-6
                )
                assert found.apart[i][j] == pytest.approx(
                    float(F.cosine_similarity(g, k, 0)), abs=1e-6
                )
            else:
                assert found.same[i][i] == pytest.approx(1)
    assert {"stem", "head", "local beside", "mlp beside"} <= set(found.parts)
    assert "mix beside" not in found.parts, "the varied mixers share nothing"


def test_measuring_leaves_the_network_as_it_was(network, micro, batches):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for mode in (True, False):
        network.train(mode)
        found = list(groups(micro, "width", count=2, rng=random.Random(0)))
        measured = cosines(network, "width", found, iter(batches))
        assert network.training is mode
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    matrix = torch.tensor(measured.same, dtype=torch.float64)
    torch.testing.assert_close(matrix, matrix.T, equal_nan=True)
    known = matrix[~matrix.isnan()]
    assert bool((known.abs() <= 1 + 1e-9).all())
