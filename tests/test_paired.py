"""Paired comparisons over seeds: against scipy's t test, by simulation, and by definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixnas.jobs.paired import LEVEL, holm, noise, paired


def table(values: np.ndarray) -> dict[str, dict[int, float]]:
    names = ["winner", *(f"other-{n}" for n in range(1, len(values)))]
    return {name: dict(enumerate(map(float, row))) for name, row in zip(names, values, strict=True)}


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_of_two_networks_it_is_the_paired_t_test(seeds, number):
    values = np.random.default_rng(number).normal(0.8, 0.02, size=(2, seeds))
    found = paired(table(values), "winner")["other-1"]
    judge = stats.ttest_rel(values[1], values[0])
    assert found.chance == pytest.approx(judge.pvalue, rel=1e-6)
    low, high = judge.confidence_interval(LEVEL)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)
    assert found.difference == pytest.approx((values[1] - values[0]).mean())


def test_the_noise_is_that_of_a_two_way_layout_without_what_seeds_share():
    rng = np.random.default_rng(1)
    values = 0.8 + rng.normal(0, 0.1, size=(1, 4)) + rng.normal(0, 0.1, size=(6, 1))
    variance, freedom = noise(table(values + rng.normal(0, 0.01, size=(6, 4))), "winner")
    assert freedom == 15
    assert 0.4e-4 < variance < 2.5e-4  # neither the networks' nor the seeds' 1e-2
    assert noise(table(values), "winner")[0] == pytest.approx(0, abs=1e-20)


def test_equal_networks_are_told_apart_in_five_of_a_hundred_comparisons_at_most():
    rng = np.random.default_rng(2)
    wrong = covered = 0
    for _ in range(600):
        values = 0.8 + rng.normal(0, 0.02, size=(1, 3)) + rng.normal(0, 0.01, size=(12, 3))
        found = paired(table(values), "winner").values()
        wrong += any(each.verdict != "level" for each in found)
        covered += sum(each.low <= 0 <= each.high for each in found)
    assert wrong / 600 < 0.075  # 5 % and three standard errors
    assert 0.93 < covered / (600 * 11) < 0.97


def test_a_great_difference_is_seen_with_three_seeds_and_its_sign_is_right():
    rng = np.random.default_rng(3)
    values = rng.normal(0.8, 0.005, size=(10, 3))
    values[1] += 0.05
    values[2] -= 0.05
    found = paired(table(values), "winner")
    assert found["other-1"].verdict == "ahead"
    assert found["other-2"].verdict == "behind"
    assert 0.03 < found["other-1"].difference < 0.07


def test_a_network_that_lacks_a_seed_is_judged_by_the_others_and_tells_nothing_of_the_noise():
    values = table(np.random.default_rng(4).normal(0.8, 0.01, size=(4, 3)))
    before = noise(values, "winner")
    values["late"] = {1: 0.1}
    assert noise(values, "winner") == before
    found = paired(values, "winner")["late"]
    assert found.difference == pytest.approx(0.1 - values["winner"][1])
    wide = paired(values, "winner")["other-1"]
    assert (found.high - found.low) == pytest.approx(np.sqrt(3) * (wide.high - wide.low))


@pytest.mark.parametrize(
    "values",
    [{}, {"winner": {0: 0.5}}, {"winner": {0: 0.5}, "a": {0: 0.6}}, {"a": {0: 0.6, 1: 0.7}}],
    ids=str,
)
def test_where_nothing_tells_the_noise_nothing_is_said(values):
    assert paired(values, "winner") == {}


def test_trainings_that_ended_alike_differ_surely_or_not_at_all():
    values = {"winner": {0: 0.5, 1: 0.5}, "same": {0: 0.5, 1: 0.5}, "more": {0: 0.75, 1: 0.75}}
    found = paired(values, "winner")
    assert found["same"].verdict == "level"
    assert found["more"].verdict == "ahead"


def test_a_whole_number_of_images_is_never_free_of_noise():
    values = {"winner": {0: 0.5, 1: 0.5}, "more": {0: 0.51, 1: 0.51}}
    assert paired(values, "winner", images=100)["more"].verdict == "level"
    assert paired(values, "winner", images=100_000)["more"].verdict == "ahead"


def test_a_rival_that_lacks_a_seed_is_compared_by_the_seeds_that_both_have():
    values = {"winner": {0: 0.8, 1: 0.81, 2: 0.79}, "rival": {0: 0.7, 2: 0.68}}
    two = {key: {s: each[s] for s in (0, 2)} for key, each in values.items()}
    assert paired(values, "winner") == paired(two, "winner")
    assert set(paired(values, "winner")) == {"rival"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(chances):
    """Reject the smallest while it is at most level / (how many are left), then stop."""
    corrected = holm(chances)
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected: set[int] = set()
        for index in sorted(range(len(chances)), key=lambda i: chances[i]):
            if (len(chances) - len(rejected)) * chances[index] > level:
                break
            rejected.add(index)
        assert {i for i, value in enumerate(corrected) if value <= level} == rejected
    assert all(after >= before for after, before in zip(corrected, chances, strict=True))
