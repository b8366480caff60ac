"""Supernet training: fair draws, resumption bit by bit, a guard that names the culprit."""

import math
from collections import Counter
from itertools import islice

import pytest
import torch

from mixnas import data
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.errors import TrainingDiverged
from mixnas.network import Network
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe
from mixnas.train.supernet import SupernetTrainer, weights

BUDGET = "8MFLOPs"


@pytest.fixture(scope="module")
def table(micro):
    return CostTable(count.flops, image=micro.image, classes=micro.classes)


@pytest.fixture(scope="module")
def feasible(micro, table):
    return Feasible(micro, parse_all([BUDGET]), {"flops": table})


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image=16)


def draws(space, feasible, seed=0):
    return Draws(space, feasible, seed=seed, random=2, edge=0.1)


def trainer(space, feasible, steps=12, **changes):
    torch.manual_seed(0)
    return SupernetTrainer(
        Network(space, 10), draws(space, feasible), Recipe(steps=steps, batch=32, **changes)
    )


def test_draws_are_a_function_of_seed_and_step(micro, feasible):
    forward = [[d.arch for d in draws(micro, feasible).at(step)] for step in range(6)]
    backward = [[d.arch for d in draws(micro, feasible).at(step)] for step in reversed(range(6))]
    assert forward == backward[::-1]
    assert forward != [[d.arch for d in draws(micro, feasible, 1).at(s)] for s in range(6)]


def test_draws_stay_within_the_budget_and_the_sandwich_has_two_sides(micro, feasible, table):
    costs = {"dearest": [], "cheapest": [], "random": []}
    for step in range(30):
        for draw in draws(micro, feasible).at(step):
            assert draw.arch in feasible
            costs[draw.role].append(table(draw.arch))
    mean = {role: sum(values) / len(values) for role, values in costs.items()}
    assert mean["cheapest"] < 0.7 * mean["random"] < 0.7 * mean["dearest"]
    assert len(costs["random"]) == 60


def test_every_block_sees_every_mixer_equally_often_in_a_round(micro, table):
    """With a budget that forbids nothing, a round of draws is a permutation in every block."""
    free = Feasible(micro, parse_all(["1GFLOPs"]), {"flops": table})
    schedule = draws(micro, free)
    offered = len(micro.genes["s8.b0.mixer"])
    stems = Counter()
    for turn in range(4):
        seen = Counter()
        for index in range(turn * offered, (turn + 1) * offered):
            arch = schedule._draw("random", index)
            wanted = schedule._given("random", index)
            genes = micro.genotype(arch)
            seen[wanted["s16.b0.mixer"]] += 1
            stems[arch.stem.kind] += 1
            mixers = {key: value for key, value in genes.items() if key.endswith(".mixer")}
            assert mixers == {key: wanted[key] for key in mixers}
        assert set(seen.values()) == {1}
    assert max(stems.values()) - min(stems.values()) <= 1


def test_training_learns(micro, feasible):
    learner = trainer(micro, feasible, steps=80)
    batches = data.load("digits").train(batch=32, seed=0)
    losses = [r.losses["dearest"] for r in learner.run(batches)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_training_cut_at_any_step_goes_on_bit_for_bit(micro, feasible, digits):
    whole = trainer(micro, feasible)
    straight = [r.row() for r in whole.run(digits.train(batch=32, seed=3))]
    first = trainer(micro, feasible)
    begun = [r.row() for r in first.run(digits.train(batch=32, seed=3), until=5)]
    second = trainer(micro, feasible)
    second.restore(first.state())
    rest = [r.row() for r in second.run(digits.train(batch=32, seed=3, start=5))]
    assert begun + rest == straight
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(second)[key]), key


def test_the_state_is_plain_enough_to_be_read_safely(tmp_path, micro, feasible, digits):
    learner = trainer(micro, feasible)
    learner.train(*next(digits.train(batch=32, seed=0)))
    torch.save(learner.state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 1


def test_a_bad_batch_is_skipped_and_names_the_architecture(micro, feasible, digits):
    learner = trainer(micro, feasible)
    images, labels = next(digits.train(batch=32, seed=0))
    before = {k: v.clone() for k, v in learner.network.named_parameters()}
    result = learner.train(images * math.nan, labels)
    culprit = next(learner.draws.at(0)).arch
    assert result.skipped is not None
    assert culprit.id in result.skipped
    assert "a loss of nan" in result.skipped
    assert all(torch.equal(before[k], v) for k, v in learner.network.named_parameters())
    assert learner.step == 1


def test_what_goes_on_being_bad_stops_the_training(micro, feasible, digits):
    learner = trainer(micro, feasible, patience=3)
    images, labels = next(digits.train(batch=32, seed=0))
    with torch.no_grad():
        learner.network.head.weight.fill_(math.inf)
    for _ in range(2):
        assert learner.train(images, labels).skipped
    with pytest.raises(TrainingDiverged, match=r"architecture [0-9a-f]{12} gave .* 3 steps in a"):
        learner.train(images, labels)


def test_an_exploding_loss_is_noticed(micro, feasible, digits):
    learner = trainer(micro, feasible)
    with torch.no_grad():
        learner.network.head.weight.mul_(1e6)
    result = learner.train(*next(digits.train(batch=32, seed=0)))
    assert "a loss of" in (result.skipped or "")


def test_tensors_that_no_draw_used_are_neither_moved_nor_decayed(micro, feasible, digits):
    learner = trainer(micro, feasible, rate=0.1, warmup=0.0)
    before = {k: v.clone() for k, v in learner.network.named_parameters()}
    for batch in islice(digits.train(batch=32, seed=0), 1):
        learner.train(*batch)
    for name, parameter in learner.network.named_parameters():
        if parameter.grad is None:
            assert torch.equal(parameter, before[name]), name
    assert any(p.grad is None for p in learner.network.parameters())


def test_training_imports_neither_ray_nor_optuna():
    import subprocess
    import sys

    code = (
        "import sys, mixnas.train.supernet, mixnas.train.draws, mixnas.evaluate, mixnas.data;"
        "print([m for m in ('ray', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
