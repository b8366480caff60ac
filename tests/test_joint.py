"""Two limits at once, against brute force on the spaces of test_feasible."""

from collections import Counter
from random import Random
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_feasible import SPACES, brute, distance, every, genotype, spaces, tables, uniform

from mixnas.asktell import Search
from mixnas.cost.count import flops, params
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit, parse_all
from mixnas.cost.rates import _nearly, counted
from mixnas.cost.table import CostTable
from mixnas.cost.within import extreme_within
from mixnas.errors import BudgetUnreachable
from mixnas.space import SearchSpace

QUANTILES = [
    ((0, 0.4), (0, 0.5)),
    ((0.2, 0.7), (0, 0.6)),
    ((0.1, 0.9), (0.3, 0.8)),
    ((0, 0.8), (0, 1)),
]


def wide(part):
    """A cost of billions without any structure, so that a bin holds many sums."""
    return crc32(repr(part).encode()) % 4000 * 1_000_003


def other(part):
    """Another one, which falls where `wide` rises."""
    return (4000 - wide(part) // 1_000_003) * 10_007 + crc32(repr((part, 1)).encode()) % 9_000_000


wide.cost, other.cost = "flops", "params"


def wide_tables(space):
    sizes = {"image": space.image, "classes": space.classes}
    return {"flops": CostTable(wide, **sizes), "params": CostTable(other, **sizes)}


VALUES = {}


def window(space, make, cost, low, high):
    """Return the limit between two quantiles of a space's costs."""
    key = space.name, make, cost
    if key not in VALUES:
        VALUES[key] = sorted(map(make(space)[cost], every(space)))
    values = VALUES[key]
    least, most = (values[int(part * (len(values) - 1))] for part in (low, high))
    return Limit(cost, least if low else 0, most)


def pairs_of(space, make):
    """Yield two limits, and the architectures within both, where there are some."""
    for first, second in QUANTILES:
        limits = window(space, make, "flops", *first), window(space, make, "params", *second)
        costs = make(space)
        found = [a for a in every(space) if all(x.excess(costs[x.cost](a)) <= 0 for x in limits)]
        if found:
            yield limits, found


def shares(space, population):
    """Return how many of a population make each choice."""
    counts = Counter(item for arch in population for item in genotype(space, arch).items())
    return {item: number / len(population) for item, number in counts.items()}


@pytest.mark.parametrize("make", [tables, wide_tables])
@pytest.mark.parametrize("space", SPACES)
def test_the_count_of_two_limits_equals_brute_force(space, make):
    tried = 0
    for limits, population in pairs_of(space, make):
        feasible = Feasible(space, limits, make(space))
        assert feasible.exact
        assert feasible.count() == len(population)
        assert feasible.bounds() == (len(population), len(population))
        assert feasible.tried(100) > 0
        tried += feasible._joint is not None
    assert tried >= 2


@pytest.mark.parametrize("space", SPACES)
def test_binned_counts_enclose_brute_force(space):
    for limits, population in pairs_of(space, wide_tables):
        feasible = Feasible(space, limits, wide_tables(space))
        joint = feasible._joint
        if joint is None:
            continue
        low, high = joint.bounds
        assert low <= len(population) <= high
        # The source of the draws, less what they reject, is the count again.
        estimate = feasible._drawing.total(feasible._whole) * feasible.tried(2000)
        assert abs(estimate / len(population) - 1) < 0.25


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", [tables, wide_tables])
@pytest.mark.parametrize("space", SPACES)
def test_draws_within_two_limits_are_uniform(space, make):
    limits, population = next(iter(pairs_of(space, make)))
    feasible, rng = Feasible(space, limits, make(space)), Random(11)
    assert uniform((feasible.sample(rng) for _ in range(50_000)), population) > 1e-3
    assert 0.2 < feasible.acceptance <= 1


@pytest.mark.parametrize("space", SPACES)
def test_draws_under_given_genes_are_uniform_among_those_that_agree(space):
    """Also those that one cost's bins gave up: most of their draws miss the other limit."""
    limits, population = list(pairs_of(space, wide_tables))[-2]
    feasible, rng = Feasible(space, limits, wide_tables(space)), Random(12)
    for seed in range(3):
        choices = Random(seed)
        fixed = {k: choices.choice(v) for k, v in space.genes.items() if k.endswith(".mixer")}
        agreeing = [
            arch
            for arch in population
            if all(fixed.get(key, value) == value for key, value in genotype(space, arch).items())
        ]
        if agreeing:
            drawn = [feasible.sample(rng, fixed) for _ in range(40 * len(agreeing))]
            assert uniform(drawn, agreeing) > 1e-3
        else:
            with pytest.raises(BudgetUnreachable, match="mixer="):
                feasible.sample(rng, fixed)


@pytest.mark.parametrize("space", SPACES)
def test_draws_near_the_edge_of_what_both_limits_leave(space):
    costs = wide_tables(space)
    for limits, population in pairs_of(space, wide_tables):
        feasible, rng = Feasible(space, limits, costs), Random(13)
        lead = costs[feasible._main.limit.cost]
        values = [lead(arch) for arch in population]
        low, high = min(values), max(values)
        margin = 0.1 * (high - low) + 0.02 * high  # a tenth, and some bins
        for _ in range(20):
            assert lead(feasible.sample(rng, share=(0.9, 1.0))) >= high - margin
            assert lead(feasible.sample(rng, share=(0.0, 0.1))) <= low + margin
            middle = (low + high) // 2
            if any(middle <= value for value in values):
                assert middle <= lead(feasible.sample(rng, low=middle)) <= high


@pytest.mark.parametrize("make", [tables, wide_tables])
@pytest.mark.parametrize("space", SPACES)
def test_useful_choices_are_those_of_brute_force(space, make):
    for limits, population in pairs_of(space, make):
        feasible = Feasible(space, limits, make(space))
        seen = {}
        for key, value in shares(space, population):
            seen.setdefault(key, set()).add(value)
        kept = feasible.useful()
        assert {key: set(values) for key, values in kept.items()} == seen
        assert Feasible(space.keep(kept), limits, make(space)).count() == len(population)
        if joint := feasible._joint:
            plane, cells = joint.fine  # bins may keep an edge too many, and never drop one
            assert not (joint.useful & ~(plane.through(cells) > 0)).any()


@pytest.mark.parametrize("make", [tables, wide_tables])
@pytest.mark.parametrize("space", SPACES)
def test_the_rates_are_those_of_brute_force(space, make):
    for limits, population in pairs_of(space, make):
        for held in (limits, limits[:1], ()):
            feasible = Feasible(space, held, make(space))
            among = every(space) if not held else population
            if len(held) == 1:
                excess = held[0].excess
                among = [a for a in every(space) if excess(make(space)[held[0].cost](a)) <= 0]
            rates, truth = feasible.rates(), shares(space, among)
            assert rates.how == "exact"
            found = {
                (k, v): share for k, values in rates.genes.items() for v, share in values.items()
            }
            assert {item for item, share in found.items() if share} == set(truth)
            assert all(abs(found[item] - share) < 1e-9 for item, share in truth.items())
            blocks = Counter(b.mixer for a in among for stage in a.stages for b in stage.blocks)
            assert rates.blocks == pytest.approx(blocks.total() / len(among))
            for mixer, share in rates.mixers.items():
                assert share == pytest.approx(blocks[mixer] / blocks.total())
            assert sum(rates.stems.values()) == pytest.approx(1)


@pytest.mark.parametrize("space", SPACES)
def test_rates_from_bins_are_near(space):
    """Where sums are too many to be exact, each edge's share comes from the nearest bins."""
    for limits, population in pairs_of(space, wide_tables):
        feasible = Feasible(space, limits, wide_tables(space))
        second = feasible._joint.second if feasible._joint else None
        among = _nearly(feasible._main, second, feasible._allowed)
        genes = {}
        for index, edge in enumerate(feasible._graph.edges):
            for item in edge.genes:
                genes[item] = genes.get(item, 0) + among[index]
        truth = shares(space, population)
        for item, share in genes.items():
            noise = 3 / len(population) ** 0.5  # some stand within a bin of the edge
            assert abs(share - truth.get(item, 0)) < 0.02 + noise


def test_rates_under_a_third_limit_are_drawn():
    space = SPACES[0]
    costs = {**tables(space), "latency": CostTable(wide, image=64, classes=10)}
    values = sorted(map(costs["latency"], every(space)))
    limits = (
        window(space, tables, "flops", 0, 0.8),
        window(space, tables, "params", 0, 0.8),
        Limit("latency", 0, values[7 * len(values) // 10]),
    )
    population = [a for a in every(space) if all(x.excess(costs[x.cost](a)) <= 0 for x in limits)]
    feasible = Feasible(space, limits, costs)
    rates, truth = feasible.rates(), shares(space, population)
    assert (rates.how, rates.draws) == ("draws", 2000)
    low, high = feasible.bounds()
    assert low <= len(population) <= high
    assert abs(feasible.count() / len(population) - 1) < 0.25
    for key, values in rates.genes.items():
        for value, share in values.items():
            assert abs(share - truth.get((key, value), 0)) < 0.06  # five standard errors


def test_rates_are_plain_values():
    space = SPACES[0]
    given_out = Feasible(space, (), {}).rates().to_dict()
    assert given_out["widths"].keys() == {"8", "16", "32"}
    assert given_out["depths"]["32"].keys() == {"0", "1"}
    # Every stem enters at stride 16 or finer, and there is a block at least.
    assert sum(given_out["depths"]["16"].values()) == pytest.approx(1)
    assert sum(given_out["genes"]["s16.b0.mixer"].values()) == pytest.approx(1)
    assert sum(given_out["mixers"].values()) == pytest.approx(1)


@pytest.mark.parametrize("make", [tables, wide_tables])
@pytest.mark.parametrize("space", SPACES)
def test_the_extremes_are_those_of_brute_force(space, make):
    costs = make(space)
    for limits, population in pairs_of(space, make):
        feasible = Feasible(space, limits, costs)
        values = [costs[feasible._main.limit.cost](arch) for arch in population]
        assert feasible.window() == (min(values), max(values))
        assert feasible.least() in feasible
        assert feasible.greatest() in feasible
        if feasible._joint:  # where sums are too many: the best drawn lies within both, and near
            for greatest, end in ((False, min(values)), (True, max(values))):
                path = feasible._joint._drawn(feasible._within, greatest=greatest)
                assert feasible._within(path)
                assert abs(feasible._main.cost_of(path) - end) <= 0.05 * max(values)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("greatest", [False, True])
def test_the_extreme_within_a_limit_is_bracketed(space, greatest):
    costs = wide_tables(space)
    for limits, _ in pairs_of(space, wide_tables):
        held = Feasible(space, limits[:1], costs)._main
        everything = np.ones(len(held.graph.edges), bool)
        second = held.graph.measure(costs["params"].segment)
        inside = [a for a in every(space) if limits[0].excess(costs["flops"](a)) <= 0]
        true = (max if greatest else min)(map(costs["params"], inside))
        bound, reached = (
            extreme_within(held, second, everything, greatest=greatest, rounding=rounding)
            for rounding in ("down", "up")
        )
        assert (second[bound].sum() - true) * (1 if greatest else -1) >= 0
        if reached is not None:
            assert held.keeps(reached)
            assert (true - second[reached].sum()) * (1 if greatest else -1) >= 0


@pytest.mark.parametrize("space", SPACES)
def test_the_nearest_changes_the_fewest_genes(space):
    rng = Random(14)
    for limits, population in pairs_of(space, wide_tables):
        feasible = Feasible(space, limits, wide_tables(space))
        for _ in range(6):
            arch = space.sample(rng)
            found = feasible.nearest(arch, rng)
            assert found in feasible
            assert distance(space, arch, [found]) == distance(space, arch, population)


@pytest.mark.parametrize("space", SPACES)
def test_limits_that_exclude_each_other_name_what_can_be_reached(space):
    costs = wide_tables(space)
    cheap = window(space, wide_tables, "flops", 0, 0.002)
    within = [arch for arch in every(space) if cheap.excess(costs["flops"](arch)) <= 0]
    least = min(map(costs["params"], within))
    thin = Limit("params", 0, least - 1)
    assert any(thin.excess(costs["params"](arch)) <= 0 for arch in every(space))
    with pytest.raises(BudgetUnreachable) as caught:
        Feasible(space, (cheap, thin), costs)
    message = str(caught.value)
    assert "\n" not in message
    assert "meets both" in message
    assert message.count("the least is") == 2
    for mine, theirs in ((cheap, thin), (thin, cheap)):  # each amount that is named is enough
        said = message.split(f"within {mine} the least is ")[1].split(";")[0]
        raised = Limit.parse(said)
        assert raised.cost == theirs.cost
        assert Feasible(space, (mine, raised), costs).count() >= 1


def test_a_limit_that_cuts_nothing_off_costs_nothing():
    space, costs = SPACES[0], tables(SPACES[0])
    limit, idle = window(space, tables, "flops", 0.2, 0.6), Limit("params", 0, 10**12)
    one, two = Feasible(space, (limit,), costs), Feasible(space, (limit, idle), costs)
    assert two.exact
    assert one.count() == two.count()
    a, b = Random(15), Random(15)
    assert [one.sample(a) for _ in range(50)] == [two.sample(b) for _ in range(50)]


def test_a_seed_gives_its_draws_again():
    space = SPACES[2]
    limits, _ = next(iter(pairs_of(space, wide_tables)))
    one, two = (Feasible(space, limits, wide_tables(space)) for _ in range(2))
    two.nearest(space.sample(Random(0)))  # what was asked before does not matter
    two.sample(Random(1), share=(0.5, 1.0))
    a, b = Random(16), Random(16)
    mixers = {key: values[-1] for key, values in space.genes.items() if key.endswith(".mixer")}
    for fixed in ({}, mixers):
        try:
            first = [one.sample(a, fixed) for _ in range(20)]
        except BudgetUnreachable:
            continue
        assert first == [two.sample(b, fixed) for _ in range(20)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spaces(), *[st.integers(0, 3000)] * 2, *[st.integers(0, 12)] * 2, st.integers(0, 1000))
def test_laws_hold_on_any_space(space, a, b, c, d, seed):
    assume(space.size() <= 2000)
    (a, b), (c, d) = sorted((a, b)), sorted((1000 * c, 1000 * d))
    limits, rng = (Limit("flops", a, b), Limit("params", c, d)), Random(seed)
    population = brute(space, *limits)
    if not population:
        with pytest.raises(BudgetUnreachable) as caught:
            Feasible(space, limits, tables(space))
        assert "\n" not in str(caught.value)
        return
    feasible = Feasible(space, limits, tables(space))
    assert feasible.count() == len(population)
    assert feasible.sample(rng) in set(population)
    arch = space.sample(rng)
    assert distance(space, arch, [feasible.nearest(arch)]) == distance(space, arch, population)
    if joint := feasible._joint:
        low, high = joint.bounds
        assert low <= len(population) <= high
        assert counted(joint.first, joint.second, feasible._allowed).how == "exact"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_windows_narrower_than_a_bin_have_rates_by_draws_and_can_be_searched(tmp_path):
    space = SearchSpace.load("default")
    sizes = {"image": space.image, "classes": space.classes}
    costs = {"flops": CostTable(flops, **sizes), "params": CostTable(params, **sizes)}
    narrow = Feasible(space, parse_all(["1.499-1.5GFLOPs", "4-6Mparams"]), costs)
    rates = narrow.rates()
    assert rates.how == "draws"
    assert sum(rates.stems.values()) == pytest.approx(1)
    limits = parse_all(["1.2-1.2005GFLOPs", "5-5.005Mparams"])
    search = Search(
        space,
        Feasible(space, limits, costs),
        costs=costs,
        limits=limits,
        sampler="random",
        seed=3,
        trials=3,
        log=tmp_path / "log.jsonl",
    )
    archs = [search.ask().arch for _ in range(3)]
    assert all(limit.excess(costs[limit.cost](a)) <= 0 for a in archs for limit in limits)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_default_space_fits_its_promises():
    """At full size, FLOPs against a latency that falls where they rise: nothing lies beyond."""
    space = SearchSpace.load("default")
    sizes = {"image": space.image, "classes": space.classes}

    counting = CostTable(flops, **sizes)

    def latency(part):
        return 50_000 + 4 * 10**12 // (counting.part(part) + 4_000_000)

    latency.cost = "latency"
    costs = {"flops": counting, "latency": CostTable(latency, **sizes)}
    costs["params"] = CostTable(params, **sizes)
    limits = (Limit.parse("1.5GFLOPs"), Limit.parse("26ms"))
    feasible, rng = Feasible(space, limits, costs), Random(17)
    low, high = feasible.bounds()
    assert 0 < low <= feasible.count() <= high < space.size()
    assert feasible.rates().how == "bins"
    rates, drawn = feasible.rates(), []
    for number in range(1500):
        mixers = {k: rng.choice(v) for k, v in space.genes.items() if k.endswith(".mixer")}
        arch = feasible.sample(rng, mixers if number % 30 == 0 else {})
        assert all(x.excess(costs[x.cost](arch)) <= 0 for x in limits)
        drawn += [arch] * (number % 30 != 0)
    blocks = Counter(b.mixer for arch in drawn for stage in arch.stages for b in stage.blocks)
    for mixer, share in rates.mixers.items():
        assert abs(share - blocks[mixer] / blocks.total()) < 0.01
    three = Feasible(space, (*limits, Limit.parse("6Mparams")), costs)
    assert three.nearest(drawn[0]) in three
