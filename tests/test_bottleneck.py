"""A limit on a sum and a maximum, against brute force on spaces that can be listed."""

from random import Random
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_feasible import SPACES, distance, every, spaces, tables, uniform

from mixnas.cost.bottleneck import levels
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.errors import BudgetUnreachable
from mixnas.network import walk


class Peaks:
    """Weights and peaks without any structure; few distinct peaks if told."""

    cost = "memory"

    def __init__(self, step=1):
        self.step = step

    def weights(self, segment):
        return crc32(repr(segment).encode()) % 300

    def peak(self, segment):
        return crc32(repr(("peak", segment)).encode()) % 900 // self.step * self.step

    def __call__(self, arch):
        segments = walk(arch)
        return sum(map(self.weights, segments)) + max(map(self.peak, segments))


MANY, FEW = Peaks(), Peaks(step=300)
WINDOWS = [(0, 0.4), (0.3, 0.6), (0.49, 0.52), (0.7, 1), (0, 0), (0, 1)]


def limits(space, table):
    """Return limits of one end and of two, between quantiles of a space's values."""
    values = sorted(map(table, every(space)))
    for low, high in WINDOWS:
        top = values[int(high * (len(values) - 1))]
        yield Limit("memory", values[int(low * (len(values) - 1))] if low else 0, top)


def within(space, limit, table):
    return [arch for arch in every(space) if limit.excess(table(arch)) <= 0]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("table", [MANY, FEW])
def test_counts_enclose_brute_force(space, table):
    for limit in limits(space, table):
        feasible = Feasible(space, (limit,), {"memory": table})
        found = len(within(space, limit, table))
        low, high = feasible.bounds()
        assert low <= found <= high
        if feasible.exact:
            assert feasible.count() == low == high == found
    assert feasible.exact or table is MANY  # with few peaks every level is one peak


@pytest.mark.parametrize("space", SPACES)
def test_what_is_found_lies_within_the_limit(space):
    rng = Random(2)
    for limit in limits(space, MANY):
        feasible = Feasible(space, (limit,), {"memory": MANY})
        population = within(space, limit, MANY)
        values = sorted(map(MANY, population))
        low, high = feasible.window()
        assert values[0] <= low <= high <= values[-1]
        assert low == values[0] or limit.low
        assert MANY(feasible.least()) == low
        assert MANY(feasible.greatest()) == high
        assert all(feasible.sample(rng) in feasible for _ in range(20))
        for arch in rng.sample(every(space), 10):
            near = feasible.nearest(arch, rng)
            assert near in feasible
            assert distance(space, arch, [near]) == distance(space, arch, population)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("table", [MANY, FEW])
def test_the_choices_that_are_useful_are_those_that_something_feasible_makes(space, table):
    for limit in limits(space, table):
        made = {}
        for arch in within(space, limit, table):
            for key, value in space.genotype(arch).items():
                made.setdefault(key, set()).add(value)
        kept = Feasible(space, (limit,), {"memory": table}).useful()
        kept = {key: set(values) for key, values in kept.items()}
        assert all(made[key] <= kept[key] for key in made)
        assert kept == made or limit.low


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("window", [(0, 0.3), (0.3, 0.6)])
@pytest.mark.parametrize("space", SPACES)
def test_draws_are_uniform(space, window):
    values = sorted(map(MANY, every(space)))
    low, high = (values[int(share * (len(values) - 1))] for share in window)
    limit, rng = Limit("memory", low if window[0] else 0, high), Random(3)
    feasible = Feasible(space, (limit,), {"memory": MANY})
    drawn = (feasible.sample(rng) for _ in range(20_000))
    assert uniform(drawn, within(space, limit, MANY)) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_draws_within_memory_and_a_sum_are_uniform():
    space = SPACES[0]
    costs = {**tables(space), "memory": MANY}
    limits = tuple(
        Limit(cost, 0, sorted(map(costs[cost], every(space)))[3 * space.size() // 5])
        for cost in ("flops", "memory", "params")
    )
    both = [a for a in every(space) if all(x.excess(costs[x.cost](a)) <= 0 for x in limits)]
    feasible, rng = Feasible(space, limits, costs), Random(4)
    low, high = feasible.bounds()
    assert low <= len(both) <= high
    assert uniform((feasible.sample(rng) for _ in range(20_000)), both) > 1e-3
    assert feasible.acceptance > 0.1
    given = {"s16.b0.mixer": "aff"}
    having = [a for a in both if space.genotype(a)["s16.b0.mixer"] == "aff"]
    assert uniform((feasible.sample(rng, given) for _ in range(10_000)), having) > 1e-3


@pytest.mark.parametrize("space", SPACES)
def test_an_unreachable_limit_names_the_exact_ends(space):
    values = sorted(map(MANY, every(space)))

    def reason(limit):
        with pytest.raises(BudgetUnreachable) as caught:
            Feasible(space, (limit,), {"memory": MANY})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    message = reason(Limit("memory", 0, values[0] - 1))
    assert f"the cheapest architecture of '{space.name}' needs " in message
    needed = Limit.parse(message.split("needs ")[1].split(";")[0])
    assert values[0] <= needed.high <= 1.01 * values[0]
    message = reason(Limit("memory", values[-1] + 1, 10**6))
    assert f"the dearest architecture of '{space.name}' needs only" in message
    exactly = Feasible(space, (Limit("memory", 0, values[0]),), {"memory": MANY})
    assert MANY(exactly.sample(Random(0))) == values[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spaces(), st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 400))
def test_laws_hold_on_any_space(space, a, b, step):
    assume(space.size() <= 2000)
    table, limit = Peaks(step), Limit("memory", min(a, b), max(a, b))
    population = within(space, limit, table)
    try:
        feasible = Feasible(space, (limit,), {"memory": table})
        found = feasible.sample(Random(step))
    except BudgetUnreachable:
        assert not population
        return
    low, high = feasible.bounds()
    assert low <= len(population) <= high
    assert found in set(population)


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_levels_hold_each_peak_within_their_width(values, number, rng):
    peaks = np.array(values)
    fitting = np.array([rng.random() < 0.7 for _ in values])
    fitting[rng.randrange(len(values))] = True
    level, floor, width = levels(peaks, fitting, number)
    assert len(floor) <= number
    above = peaks[fitting] - floor[level[fitting]]
    assert (above >= 0).all()
    assert above.max() == width
    assert width == 0 or len(set(peaks[fitting].tolist())) > number
    order = peaks[fitting].argsort()
    assert (np.diff(level[fitting][order]) >= 0).all()
