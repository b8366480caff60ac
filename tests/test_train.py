"""Training, of supernets and alone: fair draws, resumption bit by bit, a guard that tells why."""

import math
from collections import Counter
from itertools import islice

import pytest
import timm
import torch

from mixnas import data
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.errors import TrainingDiverged
from mixnas.network import Network, build
from mixnas.train.alone import AloneTrainer
from mixnas.train.draws import Draws
from mixnas.train.optimise import Descent
from mixnas.train.recipe import AloneRecipe, Recipe
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


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    """Against the schedule's formula, step by step, and the same for both recipes."""
    peak, steps, warmup = 0.4, 50, 10
    for recipe in (Recipe(steps, rate=peak, warmup=0.2), AloneRecipe(steps, rate=peak, warmup=0.2)):
        descent = Descent(torch.nn.Linear(3, 2), recipe)
        for step in range(steps):
            descent.turn(step)
            if step < warmup:
                wanted = peak / warmup * (1 + step * (warmup - 1) / warmup)
            else:
                wanted = peak * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
            assert descent.rate == pytest.approx(wanted), step


def test_biases_norms_and_scales_do_not_decay(micro, rng):
    """With a zero gradient AdamW moves only what decays."""
    network = build(micro.sample(rng), 10)
    descent = Descent(network, AloneRecipe(10, rate=0.1, warmup=0.0, decay=0.5))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    descent.move()
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(before[name].dim() > 1 for name in moved)
    assert {n for n, p in before.items() if p.dim() > 1 and p.any()} <= moved


def alone(steps=8, seed=0, **changes):
    """A timm network that draws at random while it trains: drop path and dropout."""
    torch.manual_seed(5)
    network = timm.create_model(
        "resnet10t", num_classes=10, drop_rate=0.3, drop_path_rate=0.3, stem_width=8
    )
    return AloneTrainer(network, AloneRecipe(steps=steps, batch=16, **changes), seed)


def test_any_network_learns_by_labels(micro, rng):
    torch.manual_seed(0)
    learner = AloneTrainer(build(micro.sample(rng), 10), AloneRecipe(steps=100, rate=3e-3))
    results = list(learner.run(data.load("digits").train(batch=32, seed=0)))
    assert learner.step == len(results) == 100
    losses = [result.losses["labels"] for result in results]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert sum(result.accuracy for result in results[-10:]) > 6
    assert results[3].row().keys() == {"step", "lr", "loss_labels", "accuracy"}


def test_its_first_step_is_adamw_on_smoothed_labels(digits):
    """Against a step written out: smoothed cross-entropy, the norm clipped, AdamW's first step."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    images, labels = next(digits.train(batch=32, seed=0))
    weight, bias = (p.detach().clone().double() for p in network.parameters())
    probabilities = (images.flatten(1).double() @ weight.T + bias).softmax(1)
    targets = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01
    error = (probabilities - targets) / 32
    loss = -(targets * probabilities.log()).sum(1).mean()
    slope = torch.cat([error.T @ images.flatten(1).double(), error.sum(0)[:, None]], dim=1)
    slope *= 0.01 / slope.norm()
    slope = slope / (slope.abs() + 1e-8)
    learner = AloneTrainer(network, AloneRecipe(10, rate=0.1, decay=0.5, warmup=0.1, clip=0.01))
    result = learner.train(images, labels)
    assert result.losses["labels"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(
        network[1].weight.double(), 0.95 * weight - 0.1 * slope[:, :-1], rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        network[1].bias.double(), bias - 0.1 * slope[:, -1], rtol=0, atol=1e-3
    )


def test_a_training_alone_cut_at_any_step_goes_on_bit_for_bit(tmp_path, digits):
    whole = alone()
    straight = [r.row() for r in whole.run(digits.train(batch=16, seed=3))]
    first = alone()
    begun = [r.row() for r in first.run(digits.train(batch=16, seed=3), until=3)]
    torch.save(first.state(), tmp_path / "state.pt")
    torch.rand(100)  # what else draws at random does not matter
    second = alone()
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = [r.row() for r in second.run(digits.train(batch=16, seed=3, start=3))]
    assert begun + rest == straight
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key]), key


def test_a_state_stays_what_it_was_and_can_be_restored_twice(digits):
    learner = alone()
    batch = next(digits.train(batch=16, seed=0))
    learner.train(*batch)
    state = learner.state()
    rows = []
    for _ in range(2):
        learner.restore(state)
        rows.append([learner.train(*batch).row() for _ in range(3)])
    assert rows[0] == rows[1]


def test_what_a_network_draws_at_random_depends_on_the_seed_alone(digits):
    batch = next(digits.train(batch=16, seed=0))
    losses = [alone(seed=seed).train(*batch).losses["labels"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    learner = alone()
    before = torch.get_rng_state()
    learner.train(*batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bad_batch_alone_leaves_weights_and_statistics(digits):
    learner = alone(patience=3)
    images, labels = next(digits.train(batch=16, seed=0))
    learner.train(images, labels)
    before = {key: value.clone() for key, value in learner.network.state_dict().items()}
    result = learner.train(images * math.nan, labels)
    assert result.skipped == "step 1: ResNet gave a loss of nan"
    assert all(torch.equal(before[k], v) for k, v in learner.network.state_dict().items())
    assert learner.step == 2
    learner.train(images * math.nan, labels)
    with pytest.raises(TrainingDiverged, match=r"nan, 3 steps in a row; lower the .* of 0\.002$"):
        learner.train(images * math.nan, labels)


def test_an_exploding_loss_or_gradient_alone_is_noticed(digits):
    batch = next(digits.train(batch=16, seed=0))
    learner = alone()
    with torch.no_grad():
        learner.network.fc.weight.mul_(1e6)
    assert "a loss of" in (learner.train(*batch).skipped or "")
    learner = alone()
    learner.network.conv1[0].weight.register_hook(lambda gradient: gradient * math.inf)
    before = [p.detach().clone() for p in learner.network.parameters()]
    assert "a gradient of" in (learner.train(*batch).skipped or "")
    assert all(map(torch.equal, before, learner.network.parameters()))


def test_every_head_of_a_network_with_several_learns(digits):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = torch.nn.ModuleList(torch.nn.Linear(3 * 16 * 16, 10) for _ in range(2))

        def forward(self, images):
            return tuple(head(images.flatten(1)) for head in self.heads)

    torch.manual_seed(0)
    learner = AloneTrainer(Two(), AloneRecipe(steps=1, warmup=0.0))
    before = [p.detach().clone() for p in learner.network.parameters()]
    learner.train(*next(digits.train(batch=16, seed=0)))
    assert not any(map(torch.equal, before, learner.network.parameters()))


def test_training_imports_neither_ray_nor_optuna():
    import subprocess
    import sys

    code = (
        "import sys, mixnas.train.supernet, mixnas.train.alone, mixnas.evaluate, mixnas.data;"
        "print([m for m in ('ray', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
