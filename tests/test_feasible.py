"""The dynamic programme against brute force: on spaces small enough to list every architecture."""

from itertools import pairwise, product
from random import Random
from zlib import crc32

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mixnas.cost.count import params
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable
from mixnas.errors import BudgetUnreachable, InvalidOption, NotInSpace
from mixnas.space import SearchSpace


def scattered(part):
    """A cost without any structure, of a different size for each kind of part."""
    scale = {"stem": 50, "local": 3, "mixer": 400, "mlp": 200, "merge": 70, "head": 20}[part.kind]
    return crc32(repr(part).encode()) % scale


scattered.cost = "flops"


def lumpy(part):
    """A cost of few values, so that many architectures cost the same."""
    return crc32(repr(part).encode()) % 4 * 1000


lumpy.cost = "params"


def tables(space):
    sizes = {"image": space.image, "classes": space.classes}
    return {"flops": CostTable(scattered, **sizes), "params": CostTable(lumpy, **sizes)}


def make(stems, stages, blocks, name="small"):
    """Build a space: (stride, depths, widths) for each stage, the same blocks everywhere."""
    genes = {"stem": stems}
    for stride, depths, widths in stages:
        genes |= {f"s{stride}.depth": depths, f"s{stride}.width": widths}
        for i in range(depths[-1]):
            at = f"s{stride}.b{i}"
            genes[f"{at}.mixer"] = tuple(blocks["mixers"])
            for mixer, knobs in blocks["mixers"].items():
                genes |= {f"{at}.{mixer}.{knob}": values for knob, values in knobs.items()}
            genes[f"{at}.ratio"] = blocks["ratio"]
    return SearchSpace(name, 64, 10, genes)


SPACES = [
    make(
        ("conv8", "conv16", "patch16"),
        [(8, (1,), (16, 24)), (16, (1, 2), (32, 40)), (32, (0, 1), (48,))],
        {"mixers": {"additive": {}, "aff": {}}, "ratio": (1.0, 2.0)},
        "two stages",
    ),
    make(
        ("conv16",),
        [(16, (1, 3), (32, 48, 64))],
        {"mixers": {"hilo": {"alpha": (0.5, 0.9)}, "single_head": {}}, "ratio": (2.0,)},
        "one stage",
    ),
    make(
        ("conv4", "conv8", "patch16"),
        [(4, (1,), (8,)), (8, (1,), (16, 32)), (16, (1,), (64,)), (32, (1,), (96, 128))],
        {"mixers": {"aff": {}, "xnorm": {"bottleneck": (0.5, 1.0)}}, "ratio": (1.0,)},
        "four stages",
    ),
]


LISTED = {}


def every(space):
    """Return all architectures of a space; those of `SPACES` are listed once."""
    if space.name == "small":
        return list(listing(space))
    if space.name not in LISTED:
        LISTED[space.name] = list(listing(space))
    return LISTED[space.name]


def listing(space):
    """List a space by replaying `pick` with every sequence of answers."""
    stack = [()]
    while stack:
        prefix = stack.pop()
        answers = iter(prefix)
        branches = []

        def choose(_, choices, answers=answers, branches=branches):
            index = next(answers, None)
            if index is None:
                branches.append(len(choices))
                index = 0
            return choices[index]

        arch = space.pick(choose)
        yield arch
        for place, options in enumerate(branches):
            zeros = (0,) * place
            stack += [(*prefix, *zeros, index) for index in range(1, options)]


def middle(space, cost, low, high):
    """Return the limit between two quantiles of a space's costs."""
    values = sorted(map(tables(space)[cost], every(space)))
    return Limit(cost, values[int(low * (len(values) - 1))], values[int(high * (len(values) - 1))])


def windows(space):
    edges = [(0, 0.4), (0.3, 0.6), (0.49, 0.52), (0.7, 1), (0, 0), (0, 1)]
    found = [middle(space, cost, *edge) for cost in ("flops", "params") for edge in edges]
    return found + [Limit("flops", 0, limit.high) for limit in found if limit.cost == "flops"]


def brute(space, *limits):
    costs = tables(space)
    return [a for a in every(space) if all(x.excess(costs[x.cost](a)) <= 0 for x in limits)]


@pytest.mark.parametrize("space", SPACES)
def test_listing_is_complete(space):
    listed = every(space)
    assert len(listed) == len(set(listed)) == space.size()


@pytest.mark.parametrize("space", SPACES)
def test_count_equals_brute_force(space):
    assert Feasible(space, (), {}).count() == space.size()
    for limit in windows(space):
        feasible = Feasible(space, (limit,), tables(space))
        found = len(brute(space, limit))
        assert feasible.exact
        assert feasible.count() == found
        assert feasible.bounds() == (found, found)


@pytest.mark.parametrize("space", SPACES)
def test_binned_counts_enclose_brute_force(space):
    for limit in windows(space):
        programme = Feasible(space, (limit,), tables(space))._main
        low, high = programme.bounds()
        assert low <= len(brute(space, limit)) <= high
        assert low <= programme.estimate() <= high


def uniform(drawn, population):
    """Return the probability of a spread as wide as this under uniform draws."""
    counts = dict.fromkeys(population, 0)
    for arch in drawn:
        counts[arch] += 1
    return chisquare(list(counts.values())).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("window", [(0, 0.4), (0.3, 0.6), (0, 1)])
def test_draws_are_uniform(space, window):
    limit = middle(space, "flops", *window)
    feasible, rng = Feasible(space, (limit,), tables(space)), Random(1)
    assert uniform((feasible.sample(rng) for _ in range(20_000)), brute(space, limit)) > 1e-3


def test_draws_from_coarse_bins_are_uniform():
    """With costs in the billions a bin holds many sums, so that the edges must be rejected."""

    def large(part):
        return scattered(part) * 10_000_019

    large.cost = "flops"
    space = SPACES[0]
    table = CostTable(large, image=64, classes=10)
    values = sorted(map(table, every(space)))
    limit = Limit("flops", values[len(values) // 3], values[len(values) // 2])
    feasible, rng = Feasible(space, (limit,), {"flops": table}), Random(2)
    population = [arch for arch in every(space) if limit.excess(table(arch)) <= 0]
    given = {"stem": "patch16"}
    agreeing = [arch for arch in population if arch.stem.kind == "patch16"]
    assert (
        uniform((feasible.sample(rng, given) for _ in range(60 * len(agreeing))), agreeing) > 1e-3
    )
    assert 0.5 < feasible.acceptance <= 1


@pytest.mark.parametrize("space", SPACES)
def test_draws_under_given_genes_are_uniform_among_those_that_agree(space):
    limit = middle(space, "flops", 0.2, 0.7)
    feasible, rng = Feasible(space, (limit,), tables(space)), Random(3)
    population = brute(space, limit)
    for seed in range(3):
        genes = Random(seed)
        given = {
            k: genes.choice(v) for k, v in space.genes.items() if k.endswith(("mixer", "stem"))
        }
        agreeing = [
            arch
            for arch in population
            if all(given.get(key, value) == value for key, value in genotype(space, arch).items())
        ]
        if agreeing:
            drawn = [feasible.sample(rng, given) for _ in range(100 * len(agreeing))]
            assert uniform(drawn, agreeing) > 1e-3
        else:
            with pytest.raises(BudgetUnreachable, match="with stem="):
                feasible.sample(rng, given)


def test_a_seed_gives_its_draws_again():
    space = SPACES[0]
    limit = middle(space, "flops", 0.2, 0.5)
    first, second = (Feasible(space, (limit,), tables(space)) for _ in range(2))
    a, b = Random(4), Random(4)
    assert [first.sample(a) for _ in range(50)] == [second.sample(b) for _ in range(50)]


@pytest.mark.parametrize("space", SPACES)
def test_draws_near_an_edge(space):
    limit = middle(space, "flops", 0.1, 0.9)
    feasible, table, rng = (
        Feasible(space, (limit,), tables(space)),
        tables(space)["flops"],
        Random(5),
    )
    low, high = feasible.window()
    margin = (high - low) * 0.1
    for _ in range(50):
        assert high - margin - 1 <= table(feasible.sample(rng, share=(0.9, 1.0))) <= high
        assert low <= table(feasible.sample(rng, share=(0.0, 0.1))) <= low + margin + 1
        assert low <= table(feasible.sample(rng, low=low, high=low + 50)) <= low + 50


@pytest.mark.parametrize("space", SPACES)
def test_the_extremes_are_those_of_brute_force(space):
    for limit in windows(space):
        table = tables(space)[limit.cost]
        feasible = Feasible(space, (limit,), tables(space))
        costs = [table(arch) for arch in brute(space, limit)]
        assert table(feasible.least()) == min(costs)
        assert table(feasible.greatest()) == max(costs)
        assert feasible.window() == (min(costs), max(costs))


@pytest.mark.parametrize("space", SPACES)
def test_an_extreme_drawn_from_bins_lies_within(space):
    """Where sums are too many to be exact, the extremes come from the bins at the edge."""
    for limit in windows(space):
        programme = Feasible(space, (limit,), tables(space))._main
        for greatest in (False, True):
            path = programme._drawn(lambda _: True, programme.everything, greatest=greatest)
            assert limit.excess(programme.cost_of(path)) <= 0


def distance(space, arch, population):
    """Return the fewest genes used by both that differ, over a population."""
    own = space.genotype(arch)
    return min(_differing(own, genotype(space, other)) for other in population)


GENOTYPES = {}


def genotype(space, arch):
    if space.name == "small":
        return space.genotype(arch)
    key = space.name, arch.id
    if key not in GENOTYPES:
        GENOTYPES[key] = space.genotype(arch)
    return GENOTYPES[key]


def _differing(a, b):
    return sum(a[key] != b[key] for key in a.keys() & b.keys())


@pytest.mark.parametrize("space", SPACES)
def test_the_nearest_changes_the_fewest_genes(space):
    rng = Random(6)
    for limit in windows(space):
        feasible = Feasible(space, (limit,), tables(space))
        population = brute(space, limit)
        for _ in range(6):
            arch = space.sample(rng)
            found = feasible.nearest(arch, rng)
            assert found in feasible
            assert distance(space, arch, [found]) == distance(space, arch, population)
            assert (found == arch) == (arch in feasible)


@pytest.mark.parametrize("space", SPACES)
def test_membership_and_excess(space):
    limit = middle(space, "flops", 0.3, 0.6)
    feasible, within = Feasible(space, (limit,), tables(space)), set(brute(space, limit))
    for arch in every(space):
        assert (arch in feasible) == (arch in within)
        assert (max(feasible.excess(arch)) <= 0) == (arch in within)
    stranger = next(arch for other in SPACES if other is not space for arch in every(other))
    assert stranger not in feasible


@pytest.mark.parametrize("space", SPACES)
def test_useful_choices_are_those_of_brute_force(space):
    for limit in windows(space):
        feasible = Feasible(space, (limit,), tables(space))
        seen = {}
        for arch in brute(space, limit):
            for key, value in genotype(space, arch).items():
                seen.setdefault(key, set()).add(value)
        kept = feasible.useful()
        assert all(values <= set(kept[key]) for key, values in seen.items())
        if not limit.low:
            assert {key: set(values) for key, values in kept.items()} == seen
        narrowed = Feasible(space.keep(kept), (limit,), tables(space))
        assert narrowed.count() == feasible.count()


def test_several_limits_hold_together():
    space = SPACES[0]
    limits = (middle(space, "flops", 0.1, 0.6), middle(space, "params", 0.2, 0.7))
    feasible, rng = Feasible(space, limits, tables(space)), Random(7)
    population = brute(space, *limits)
    drawn = [feasible.sample(rng) for _ in range(20 * len(population))]
    assert uniform(drawn, population) > 1e-3
    assert feasible.exact
    assert feasible.count() == len(population)
    assert feasible.least() in feasible
    assert feasible.greatest() in feasible
    for _ in range(20):
        arch = space.sample(rng)
        found = feasible.nearest(arch, rng)
        assert found in feasible
        assert distance(space, arch, [found]) == distance(space, arch, population)


def test_limits_that_exclude_each_other_end_with_an_error():
    space = SPACES[0]
    costs = tables(space)
    pairs = {(costs["flops"](arch), costs["params"](arch)) for arch in every(space)}
    flops = sorted({a for a, _ in pairs})
    a = flops[len(flops) // 2]
    missing = next(b for b in sorted({b for _, b in pairs}) if (a, b) not in pairs)
    limits = (Limit("flops", a, a), Limit("params", missing, missing))
    with pytest.raises(BudgetUnreachable, match="widen the budget") as caught:
        Feasible(space, limits, costs).sample(Random(8))
    assert "\n" not in str(caught.value)


def test_an_unreachable_budget_names_the_nearest_cost():
    space = SPACES[0]
    table = CostTable(params, image=64, classes=10)
    values = sorted(set(map(table, every(space))))
    low, high = values[0], values[-1]

    def reason(limit):
        with pytest.raises(BudgetUnreachable) as caught:
            Feasible(space, (limit,), {"params": table})
        return str(caught.value)

    message = reason(Limit("params", 0, low - 1))
    assert "the cheapest architecture of 'two stages' needs " in message
    needed = message.split("needs ")[1].split(";")[0]
    assert Feasible(space, (Limit.parse(needed),), {"params": table}).count() >= 1
    assert "the dearest architecture of 'two stages' needs only" in reason(
        Limit("params", high + 1, 10**9)
    )
    below, above = max(pairwise(values), key=lambda pair: pair[1] - pair[0])
    message = reason(Limit("params", below + 1, above - 1))
    assert "the nearest need " in message
    assert " and " in message


def test_a_limit_without_its_table_is_refused():
    with pytest.raises(InvalidOption, match="no table of latency"):
        Feasible(SPACES[0], (Limit("latency", 0, 9),), tables(SPACES[0]))


@pytest.mark.parametrize("given", [{"stem": "conv7"}, {"s16.b0.mixxer": "aff"}])
def test_a_gene_that_is_not_offered_is_refused(given):
    with pytest.raises(NotInSpace, match="not offered"):
        Feasible(SPACES[0], (), {}).sample(Random(0), given)


def test_what_is_given_but_not_used_forbids_nothing():
    space = SPACES[0]
    feasible = Feasible(space, (), {})
    arch = feasible.sample(Random(9), {"stem": "patch16", "s8.b0.mixer": "aff", "s32.depth": 0})
    assert arch.stem.kind == "patch16"
    assert len(arch.stages) == 1


@st.composite
def spaces(draw):
    """A space of up to some thousand architectures."""

    def some(values, least=1):
        chosen = draw(st.lists(st.sampled_from(values), min_size=least, max_size=2, unique=True))
        return tuple(sorted(chosen))

    strides = draw(st.sampled_from([(8,), (16,), (8, 16), (16, 32)]))
    offered = [
        kind for kind in ("conv8", "conv16", "patch16") if int(kind.strip("convpath")) in strides
    ]
    stages = [(stride, some([1, 2]), some([16, 32, 48])) for stride in strides]
    if len(strides) > 1 and "conv8" not in offered:
        stages[-1] = (strides[-1], (0, *stages[-1][1]), stages[-1][2])
    knobs = draw(st.sampled_from([{}, {"alpha": (0.5, 0.9)}]))
    blocks = {"mixers": {"hilo": knobs, "aff": {}}, "ratio": some([1.0, 2.0])}
    return make(some(offered), stages, blocks)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spaces(), st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 1000))
def test_laws_hold_on_any_space(space, a, b, seed):
    assume(space.size() <= 3000)
    low, high = sorted((a, b))
    limit, rng = Limit("flops", low, high), Random(seed)
    population = brute(space, limit)
    if not population:
        with pytest.raises(BudgetUnreachable):
            Feasible(space, (limit,), tables(space))
        return
    feasible = Feasible(space, (limit,), tables(space))
    table = tables(space)["flops"]
    assert feasible.count() == len(population)
    assert feasible.window() == (min(map(table, population)), max(map(table, population)))
    assert feasible.sample(rng) in set(population)
    arch = space.sample(rng)
    assert distance(space, arch, [feasible.nearest(arch)]) == distance(space, arch, population)
    low_bound, high_bound = feasible._main.bounds()
    assert low_bound <= len(population) <= high_bound


def test_the_default_space_fits_its_promises():
    """At full size: what is drawn, least, greatest and nearest lies within, quickly."""
    space = SearchSpace.load("default")
    table = CostTable(params, image=space.image, classes=space.classes)
    rng = Random(10)
    whole = Feasible(space, (), {})
    assert whole.count() == space.size() >= 10**12
    for text in ("10Mparams", "8-8.1Mparams"):
        limit = Limit.parse(text)
        feasible = Feasible(space, (limit,), {"params": table})
        low, high = feasible.bounds()
        assert 0 < low <= feasible.count() <= high < space.size()
        for _ in range(5):
            mixers = {k: rng.choice(v) for k, v in space.genes.items() if k.endswith(".mixer")}
            found = [
                feasible.sample(rng),
                feasible.sample(rng, mixers),
                feasible.nearest(whole.sample(rng)),
            ]
            assert all(limit.excess(table(arch)) <= 0 for arch in found)
        least, greatest = table(feasible.least()), table(feasible.greatest())
        assert limit.low <= least < greatest <= limit.high
        assert limit.high - greatest < limit.high // 1000


def test_product_of_spaces_is_listed():
    """The judge itself: `every` against a product written by hand."""
    space = SPACES[1]
    mixers = [("hilo", (("alpha", 0.5),)), ("hilo", (("alpha", 0.9),)), ("single_head", ())]
    expected = {
        (width, blocks)
        for width in (32, 48, 64)
        for depth in (1, 3)
        for blocks in product(mixers, repeat=depth)
    }
    listed = {
        (a.stages[0].width, tuple((b.mixer, b.knobs) for b in a.stages[0].blocks))
        for a in every(space)
    }
    assert listed == expected
