"""What a supernet's recipe may ask for: other draws, other lessons, projected gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.nn import functional as F

from mixnas import data
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.errors import InvalidOption
from mixnas.network import Network
from mixnas.sharing import Sharing
from mixnas.space import SearchSpace
from mixnas.train.conflict import Projection
from mixnas.train.distil import Lesson, adaptive, divergence
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe, suited
from mixnas.train.supernet import SupernetTrainer, weights


@pytest.fixture(scope="module")
def table(micro):
    return CostTable(count.flops, image=micro.image, classes=micro.classes)


@pytest.fixture(scope="module")
def feasible(micro, table):
    return Feasible(micro, parse_all(["8MFLOPs"]), {"flops": table})


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image=16)


def trainer(space, feasible, sharing=None, steps=3, **changes):
    torch.manual_seed(0)
    recipe = Recipe(steps=steps, batch=16, **changes)
    network = Network(space, 10, sharing=sharing or Sharing())
    return SupernetTrainer(network, Draws.by(recipe, space, feasible, seed=0), recipe)


OPTIONS = [
    {"spread": "stratified", "lesson": "alpha"},
    {"spread": "focused", "fairness": "uniform", "attention": "best", "candidates": 2},
    {"fairness": "none", "attention": "worst", "lesson": "labels"},
    {"fairness": "stages"},
    {"projection": "dearest", "dearest_first": 0.5},
    {"projection": "others", "sharing": Sharing(norms="mixer", scale="switchable")},
    {"sharing": Sharing(feed_forward="mixer", scale="shared")},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whatever_is_asked_for_a_cut_training_goes_on_bit_for_bit(
    tmp_path, micro, feasible, digits, options
):
    options = {"draws": 1, **options}
    whole = trainer(micro, feasible, **options)
    straight = [r.row() for r in whole.run(digits.train(batch=16, seed=3))]
    first = trainer(micro, feasible, **options)
    begun = [r.row() for r in first.run(digits.train(batch=16, seed=3), until=2)]
    torch.save(first.state(), tmp_path / "state.pt")
    second = trainer(micro, feasible, **options)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = [r.row() for r in second.run(digits.train(batch=16, seed=3, start=2))]
    assert [str(row) for row in begun + rest] == [str(row) for row in straight]
    assert all(torch.equal(v, weights(second)[k]) for k, v in weights(whole).items())


def test_the_defaults_are_the_sandwich_and_distillation_as_ever(micro, feasible, digits):
    """Against a step written out: four draws, one sum of gradients."""
    learner = trainer(micro, feasible)
    network = copy.deepcopy(learner.network)
    images, labels = next(digits.train(batch=16, seed=0))
    archs = [draw.arch for draw in learner.draws.at(0)]
    first = network(images, archs[0])
    F.cross_entropy(first, labels, label_smoothing=0.1).backward()
    for arch in archs[1:]:
        F.cross_entropy(network(images, arch), first.detach().softmax(1)).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    learner.train(images, labels)
    for (name, mine), theirs in zip(
        learner.network.named_parameters(), network.parameters(), strict=True
    ):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@given(first=some.integers(1, 2000), second=some.integers(1, 2000))
def test_the_wider_a_supernet_the_lower_its_rate_between_two_ends(first, second):
    narrow, wide = (suited(width, 1, 64).rate for width in sorted((first, second)))
    assert 4e-3 >= narrow >= wide >= 2e-3


def test_narrow_supernets_are_trained_otherwise_than_the_default_one():
    widest = {name: SearchSpace.load(name).widest for name in ("tabular", "small", "default")}
    assert widest == {"tabular": 48, "small": 64, "default": 384}
    recipes = {name: suited(width, 10, 32) for name, width in widest.items()}
    assert recipes["default"] == Recipe(10, batch=32)
    narrow = Recipe(10, batch=32, rate=4e-3, lesson="alpha")
    assert recipes["tabular"] == recipes["small"] == narrow
    assert suited(96, 10, 32) == Recipe(10, batch=32, rate=2e-3 * 128 / 96)


def test_what_is_not_offered_is_refused():
    with pytest.raises(InvalidOption, match="spread 'stratify': not offered; did you mean 'strat"):
        Recipe(10, spread="stratify")
    with pytest.raises(InvalidOption, match="candidates 0"):
        Recipe(10, candidates=0)
    with pytest.raises(InvalidOption, match="dearest_first 2"):
        Recipe(10, dearest_first=2)


def costs_by_place(space, feasible, table, spread):
    draws = Draws(space, feasible, seed=0, random=4, edge=0.1, spread=spread)
    steps = [[d.arch for d in draws.at(step) if d.role == "random"] for step in range(40)]
    assert all(arch in feasible for archs in steps for arch in archs)
    return torch.tensor([[float(table(arch)) for arch in archs] for archs in steps])


def test_stratified_draws_take_each_part_of_the_costs_in_turn(micro, feasible, table):
    plain, stratified, focused = (
        costs_by_place(micro, feasible, table, spread)
        for spread in ("uniform", "stratified", "focused")
    )
    means = stratified.mean(0)
    assert bool((means.diff() > 0.1 * (means[-1] - means[0])).all())
    assert stratified.mean(1).std() < 0.7 * plain.mean(1).std(), "steadier than by chance"
    assert focused.mean() > 1.1 * stratified.mean()


@pytest.mark.parametrize("spread", ["stratified", "focused"])
def test_where_costs_are_prescribed_mixers_stay_strictly_fair(micro, table, spread):
    free = Feasible(micro, parse_all(["1GFLOPs"]), {"flops": table})
    schedule = Draws(micro, free, seed=0, random=2, edge=0.1, spread=spread, candidates=2)
    offered = len(micro.genes["s8.b0.mixer"])
    drawn = [d for step in range(offered) for d in schedule.at(step) if d.role == "random"]
    for index, draw in enumerate(drawn):
        wanted = schedule._given("random", index)
        for arch in (draw.arch, *draw.others):
            genes = micro.genotype(arch)
            fair = {key: genes[key] for key in schedule.fair if key in genes}
            assert fair == {key: wanted[key] for key in fair}


def test_stems_can_be_drawn_as_often_as_they_have_stages():
    space = SearchSpace.load("tabular")
    feasible = Feasible(
        space, parse_all(["1GFLOPs"]), {"flops": CostTable(count.flops, image=16, classes=10)}
    )
    draws = Draws(space, feasible, seed=0, random=3, edge=0.1, fairness="stages")
    archs = [draw.arch for step in range(40) for draw in draws.at(step) if draw.role == "random"]
    stems = [arch.stem.kind for arch in archs]
    for begin in range(0, len(stems), 3):
        assert sorted(stems[begin : begin + 3]) == ["conv4", "conv4", "conv8"]
    last = [arch.stages[-1].blocks[0].mixer for arch in archs]
    for begin in range(0, len(last) - 4, 5):  # mixers stay strictly fair
        assert len(set(last[begin : begin + 5])) == 5


def test_fairness_can_be_left_to_chance(micro, feasible):
    draws = Draws(micro, feasible, seed=0, random=2, edge=0.1, fairness="uniform")
    offered = micro.genes["s16.b0.mixer"]
    drawn = [draws._given("random", index)["s16.b0.mixer"] for index in range(500)]
    counts = torch.tensor([float(drawn.count(mixer)) for mixer in offered])
    assert float(((counts - 100) ** 2 / 100).sum()) < 18.5  # chi-square, 4 degrees, p = 0.001
    rounds = [drawn[i : i + len(offered)] for i in range(0, 500, len(offered))]
    assert any(len(set(each)) < len(offered) for each in rounds)
    none = Draws(micro, feasible, seed=0, random=2, edge=0.1, fairness="none")
    assert none._given("random", 3) == {}
    assert all(draw.arch in feasible for draw in none.at(0))


def test_the_dearest_may_be_trained_first(micro, feasible, digits):
    learner = trainer(micro, feasible, steps=4, dearest_first=0.5)
    rows = [result.losses.keys() for result in learner.run(digits.train(batch=16, seed=0))]
    assert rows[:2] == [{"dearest"}] * 2
    assert rows[2:] == [{"dearest", "cheapest", "random"}] * 2


@pytest.mark.parametrize(("attention", "choose"), [("best", min), ("worst", max)])
def test_attention_chooses_by_the_loss_on_the_batch(micro, feasible, digits, attention, choose):
    learner = trainer(micro, feasible, attention=attention)
    images, labels = next(digits.train(batch=16, seed=0))
    offered = next(draw for draw in learner.draws.at(0) if draw.role == "random")
    assert len(offered.others) == 2
    before = {key: value.clone() for key, value in learner.network.state_dict().items()}
    chosen = learner._attended(offered, images, labels).arch
    for key, value in learner.network.state_dict().items():
        assert torch.equal(before[key], value), f"choosing changed {key}"
    twin = copy.deepcopy(learner.network)
    losses = {
        arch: F.cross_entropy(twin(images, arch), labels).item()
        for arch in (offered.arch, *offered.others)
    }
    assert losses[chosen] == choose(losses.values())


def logits_and_teacher(seed, classes=7, images=5, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = spread * torch.randn(2, images, classes, generator=generator, dtype=torch.float64)
    return drawn[0].requires_grad_(), drawn[1].softmax(1)


@settings(max_examples=25, deadline=None)
@given(some.integers(0, 10**6), some.sampled_from([-1.0, -0.5, 0.5, 1.0, 2.0]))
def test_the_divergence_and_its_gradient_are_what_the_formula_says(seed, alpha):
    """Without clipping, against automatic differentiation of the definition, in float64."""
    logits, teacher = logits_and_teacher(seed)
    student = logits.softmax(1)
    ratio = teacher / student
    if alpha == 1.0:
        wanted = (teacher * ratio.log()).sum(1)
    else:
        wanted = (student * (ratio**alpha - 1)).sum(1) / (alpha * (alpha - 1))
    (slope,) = torch.autograd.grad(wanted.sum(), logits)
    value, surrogate = divergence(logits, teacher, alpha, most=float("inf"))
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), logits)[0], slope)


def test_ratios_are_clipped_and_the_greater_divergence_is_taken():
    teacher = torch.tensor([[0.999, 0.001], [0.6, 0.4]], dtype=torch.float64)
    sure = torch.tensor([[-4.0, 4.0], [5.0, -5.0]], dtype=torch.float64).requires_grad_()
    values = torch.stack([divergence(sure, teacher, alpha)[0] for alpha in (-1.0, 1.0)])
    student = sure.detach().softmax(1)
    clipped = (student * ((student / teacher).clamp(max=5.0) - 1)).sum(1) / 2
    torch.testing.assert_close(values[0], clipped)
    torch.testing.assert_close(values[1], (teacher * (teacher / student).log()).sum(1))
    loss = adaptive(sure, teacher)
    torch.testing.assert_close(loss.detach(), values.amax(0).mean())
    (slope,) = torch.autograd.grad(loss, sure)
    parts = [divergence(sure, teacher, alpha)[1] for alpha in (-1.0, 1.0)]
    slopes = [torch.autograd.grad(part.sum() / 2, sure)[0] for part in parts]
    greater = values.argmax(0)
    for image in range(2):
        torch.testing.assert_close(slope[image], slopes[greater[image]][image])


def test_soft_lessons_have_the_gradient_of_kl_and_others_that_of_labels():
    logits, teacher = logits_and_teacher(3)
    labels = torch.tensor([0, 1, 2, 3, 4])
    lesson = Lesson(Recipe(1))
    (soft,) = torch.autograd.grad(lesson(logits, labels, teacher), logits)
    divergence = F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
    torch.testing.assert_close(soft, torch.autograd.grad(divergence, logits)[0])
    smooth = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    wanted = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Lesson(Recipe(1, lesson="labels"))(logits, labels, teacher), wanted)
    torch.testing.assert_close(Lesson(Recipe(1, lesson="alpha"))(logits, labels, None), wanted)


class One(torch.nn.Module):
    """A single tensor, whose gradients are set by hand."""

    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))


def projected(kind, dearest, *others):
    module = One(len(dearest))
    projection = Projection(module, kind)
    for role, gradient in [("dearest", dearest), *(("random", each) for each in others)]:
        module.weight.grad = torch.tensor(gradient, dtype=torch.float64)
        projection.take(role)
    projection.finish()
    return module.weight.grad


vectors = some.lists(some.floats(-10, 10), min_size=3, max_size=3)


@settings(max_examples=50, deadline=None)
@given(vectors, vectors, vectors)
def test_what_gives_way_no_longer_pulls_against_the_other(dearest, one, other):
    d, a, b = (torch.tensor(each, dtype=torch.float64) for each in (dearest, one, other))
    rest = a + b
    left = projected("dearest", dearest, one, other) - rest
    assert left @ rest >= -1e-9 * (1 + d.norm() * rest.norm())
    if d @ rest >= 0:
        torch.testing.assert_close(left, d)
    else:  # nothing but its part along the other is gone
        gone = d - left
        assert abs(gone @ rest) == pytest.approx(float(gone.norm() * rest.norm()), rel=1e-6)
    alone = projected("others", dearest, one) - d
    assert alone @ d >= -1e-9 * (1 + d.norm() * a.norm())
    agreeing = torch.tensor([abs(x) for x in dearest], dtype=torch.float64)
    summed = projected("others", agreeing.tolist(), agreeing.tolist())
    torch.testing.assert_close(summed, 2 * agreeing)


def test_projection_by_hand_and_within_the_corner():
    assert projected("dearest", [1.0, 1.0], [-1.0, 0.0]).tolist() == [-1.0, 1.0]
    assert projected("others", [1.0, 1.0], [-2.0, 1.0]).tolist() == [-0.5, 2.5]
    # The second draw does not use the last entry: its gradient there stays nought.
    assert projected("others", [1.0, 1.0, 5.0], [-2.0, 1.0, 0.0]).tolist() == [-0.5, 2.5, 5.0]


@pytest.mark.parametrize("kind", ["dearest", "others"])
def test_projection_gives_gradients_to_what_was_drawn_and_to_nothing_else(
    micro, feasible, digits, kind
):
    batch = next(digits.train(batch=16, seed=0))
    plain, learner = trainer(micro, feasible), trainer(micro, feasible, projection=kind)
    for each in (plain, learner):
        assert each.train(*batch).skipped is None
    differ = 0
    pairs = zip(plain.network.named_parameters(), learner.network.parameters(), strict=True)
    for (name, one), other in pairs:
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            outside = one.grad.abs().sum(0 if one.dim() < 2 else tuple(range(1, one.dim()))) == 0
            assert other.grad[outside].abs().sum() == 0, name
            differ += not torch.allclose(one.grad, other.grad)
    assert differ
