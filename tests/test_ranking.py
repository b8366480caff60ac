"""Rank statistics: against scipy, brute force over pairs and subsets, and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixnas.ranking import (
    Ranking,
    against_mean,
    bias,
    bootstrap,
    ceiling,
    explained,
    kendall,
    places,
    proportion,
    regret,
    regret_by_chance,
    spearman,
)
from mixnas.ranking.intervals import rho_ends

WHOLE = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=12)


def pairwise_tau(first, second) -> float:
    """Kendall's tau-b by its definition, pair by pair."""
    signs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j]))
        for i, j in combinations(range(len(first)), 2)
    ]
    untied = [sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)]
    if not all(untied):
        return math.nan
    return sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1])


@given(WHOLE)
def test_tau_is_that_of_its_definition_and_rho_that_of_ranks(pairs):
    first, second = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    assert kendall(first, second) == pytest.approx(pairwise_tau(first, second), nan_ok=True)
    if np.ptp(first) and np.ptp(second):
        rho = np.corrcoef(places(first), places(second))[0, 1]
        assert spearman(first, second) == pytest.approx(rho)
    else:
        assert math.isnan(spearman(first, second))


@pytest.mark.parametrize("length", [20, 128, 129, 300])
def test_short_and_long_lists_are_scipys(length):
    first, second = np.random.default_rng(length).integers(0, 40, (2, length)).astype(float)
    assert kendall(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)


def test_a_monotone_ranking_is_perfect_and_its_reverse_the_worst():
    truth = np.random.default_rng(0).normal(size=20)
    assert kendall(np.exp(truth), truth) == pytest.approx(1)
    assert kendall(-truth, truth) == pytest.approx(-1)


def test_the_ceiling_is_the_mean_over_all_pairs_of_seeds():
    truths = np.random.default_rng(1).normal(size=(15, 3))
    taus = [pairwise_tau(truths[:, a], truths[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert ceiling(truths) == pytest.approx(np.mean(taus))
    assert math.isnan(ceiling(truths[:, :1]))


@pytest.mark.parametrize(("noise", "seeds"), [(0.3, 2), (1.0, 2), (1.0, 5), (2.0, 1)])
def test_what_a_perfect_ranking_reaches_is_foretold_from_the_ceiling(noise, seeds):
    """Normal worth and noise, 4,000 networks: the truth itself is held against the mean."""
    rng = np.random.default_rng(2)
    worth = rng.normal(size=4000)
    truths = worth[:, None] + noise * rng.normal(size=(4000, max(seeds, 2)))
    reached = kendall(worth, truths[:, :seeds].mean(1))
    assert against_mean(ceiling(truths[:, :2]), seeds) == pytest.approx(reached, abs=0.02)


def test_no_ceiling_no_reach():
    assert against_mean(-0.2, 2) == 0
    assert math.isnan(against_mean(math.nan, 1))


@given(
    st.lists(st.integers(0, 20), min_size=5, max_size=8),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_regret_is_that_of_a_search_by_hand(losses, top, random):
    truth = np.array(losses, dtype=float)
    predicted = np.array(random.sample(range(len(truth)), len(truth)), dtype=float)
    chosen = sorted(range(len(truth)), key=lambda i: predicted[i])[:top]
    assert regret(predicted, truth, top) == min(truth[i] for i in chosen) - min(truth)
    by_hand = np.mean([min(part) for part in combinations(losses, top)]) - min(losses)
    assert regret_by_chance(truth, top) == pytest.approx(by_hand)


def test_a_top_of_more_than_all_has_no_regret():
    truth = np.array([3.0, 1.0, 2.0])
    assert regret_by_chance(truth, 5) == regret(truth, truth, 5) == 0


def a_ranking(networks=40, seeds=2, supernet=1.0, noise=0.5, seed=0) -> Ranking:
    """Normal worth; the supernet's own noise and each training's."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=networks)
    predicted = worth + supernet * rng.normal(size=networks)
    truths = worth[:, None] + noise * rng.normal(size=(networks, seeds))
    return Ranking(predicted, truths, -truths, rng.normal(size=networks))


def test_figures_are_those_of_scipy_on_the_means():
    ranking = a_ranking()
    found = ranking.figures()
    truth = ranking.truths.mean(1)
    assert found["tau"] == pytest.approx(stats.kendalltau(ranking.predicted, truth).statistic)
    assert found["rho"] == pytest.approx(stats.spearmanr(ranking.predicted, truth).statistic)
    assert found["tau_accuracy"] == pytest.approx(found["tau"])  # here accuracy is minus loss
    assert found["share"] == pytest.approx(found["tau"] / found["ceiling"])
    assert found["ceiling"] < found["best"] < 1
    assert found["tau_cost"] == pytest.approx(stats.kendalltau(-ranking.costs, truth).statistic)


def test_one_seed_has_no_ceiling_and_no_share():
    found = a_ranking(seeds=1).estimates(draws=50)
    assert found["tau"] is not None
    assert [found[name] for name in ("ceiling", "best", "share", "strict")] == [None] * 4
    assert a_ranking(seeds=1).over_seeds(draws=50) is None


def test_too_few_networks_are_refused_and_networks_all_alike_have_no_tau():
    with pytest.raises(ValueError, match="3 networks; at least 4"):
        a_ranking(networks=3).estimates()
    alike = Ranking(np.ones(6), np.ones((6, 2)), np.ones((6, 2)), np.arange(6.0))
    assert alike.estimates(draws=20)["tau"] is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_intervals_hold_the_true_tau_as_often_as_they_say():
    """150 samples of 24 networks: a 95 % interval holds tau of the population in 88 to 99 %."""
    population = a_ranking(networks=4000, seed=99).figures()["tau"]
    held = 0
    for seed in range(150):
        ranking = a_ranking(networks=24, seed=seed)
        drawn = bootstrap(
            lambda chosen, r=ranking: {"tau": kendall(r.predicted[chosen], r.truth[chosen])},
            24,
            draws=200,
        )["tau"]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= population <= high
    assert 0.88 <= held / 150 <= 0.99


def test_an_interval_is_the_same_again_and_narrows_with_networks():
    few, many = (a_ranking(networks=n).estimates(draws=200) for n in (12, 200))
    assert few == a_ranking(networks=12).estimates(draws=200)
    widths = [each["tau"].high - each["tau"].low for each in (few, many)]
    assert widths[1] < widths[0] / 2
    for each in few.values():
        assert each is None or each.low <= each.high


@pytest.mark.parametrize("networks", [4, 8, 9, 24])
def test_a_perfect_ranking_of_few_networks_is_not_told_as_certain(networks):
    """The judge: how often tau of independent rankings reaches the interval's lower end."""
    truth = np.arange(networks, dtype=float)
    found = Ranking(truth, np.stack([truth, truth], 1), -np.stack([truth, truth], 1), -truth)
    told = found.estimates(draws=50)
    tau, rho = told["tau"], told["rho"]
    variance = 2 * (2 * networks + 5) / (9 * networks * (networks - 1))
    assert (tau.value, tau.high) == (pytest.approx(1), 1)
    assert tau.low == pytest.approx(1 - 1.95996 * math.sqrt(variance), abs=1e-4)
    assert rho.low < rho.value == pytest.approx(1)
    assert told["ceiling"].low == tau.low
    assert told["best"].low <= told["best"].value
    assert found.over_seeds(draws=50).low == tau.low
    for name in ("share", "strict"):
        assert (told[name] is None) == (tau.low <= 0)
        assert told[name] is None or told[name].low < 1
    rng = np.random.default_rng(0)
    chance = np.std([kendall(truth, rng.permutation(truth)) for _ in range(4000)])
    assert math.sqrt(variance) == pytest.approx(chance, rel=0.05)


def test_rhos_interval_is_fishers_with_bonett_and_wrights_variance():
    low, high = rho_ends(0.5, 9)
    for end, sign in ((low, -1), (high, 1)):
        z = math.atanh(0.5) + sign * stats.norm.ppf(0.975) * math.sqrt(1.125 / 6)
        assert end == pytest.approx(math.tanh(z))
    assert rho_ends(1.0, 3) == (-1, 1)
    assert rho_ends(1.0, 8)[0] < 0.95


@given(st.integers(4, 9), st.randoms(use_true_random=False))
def test_a_share_of_a_ceiling_that_may_be_nought_is_not_told(networks, random):
    rng = np.random.default_rng(random.randrange(10**6))
    truths = rng.normal(size=(networks, 2))
    told = Ranking(rng.normal(size=networks), truths, truths, truths[:, 0]).estimates(draws=20)
    ceiling = told["ceiling"]
    if ceiling.low <= 0:
        assert told["share"] is told["strict"] is None
    for each in told.values():
        assert each is None or each.low <= each.value <= each.high
        assert each is None or each.high - each.low > 0.01


def test_noisy_seeds_drawn_anew_widen_the_interval_downward():
    ranking = a_ranking(networks=30, noise=2.0, supernet=0.1)
    fixed, anew = ranking.estimates(draws=300)["tau"], ranking.over_seeds(draws=300)
    assert anew.value == fixed.value
    assert anew.low < fixed.low


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (3, 7), (24, 24)])
def test_a_proportion_has_wilsons_interval(hits, number):
    found, z = proportion(hits, number), stats.norm.ppf(0.975)
    share = hits / number
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = (
        z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    )
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)


# What is misplaced


def overrating(networks=48, places_by=0.0, seed=0):
    """A supernet that puts half of the networks, those with a trait, too far up the list."""
    rng = np.random.default_rng(seed)
    trait = (np.arange(networks) % 2).astype(float)
    truth = rng.permutation(networks).astype(float)
    return truth - places_by * trait + rng.normal(0, 2, networks), truth, trait


def test_an_overrated_trait_is_found_and_counted_in_places():
    predicted, truth, trait = overrating(places_by=10)
    found, without = bias(predicted, truth, trait), bias(predicted, truth, 1 - trait)
    gap = places(truth) - places(predicted)
    assert found.places.value == pytest.approx(gap[trait == 1].mean())
    assert found.places.value == pytest.approx(found.true - found.predicted)
    assert found.places.value == pytest.approx(-without.places.value)  # two halves of one list
    assert found.chance < 0.01
    assert found.places.low > 0 > without.places.high
    assert explained(predicted, truth, np.stack([trait, 1 - trait], 1))[1] < 0.01


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_trait_is_found_where_there_is_none():
    """Of 200 permutation tests under chance alone 5 % are below 0.05: here at most 11 %."""
    chances = []
    for seed in range(100):
        predicted, truth, trait = overrating(networks=20, seed=seed)
        chances.append(bias(predicted, truth, trait).chance)
        chances.append(explained(predicted, truth, trait[:, None])[1])
    assert 0.01 < np.mean(np.array(chances) < 0.05) < 0.11
    assert min(chances) > 0


def test_what_is_explained_is_r_squared_of_a_regression():
    rng = np.random.default_rng(3)
    predicted, truth, _ = overrating()
    traits = rng.normal(size=(48, 3))
    gap = places(truth) - places(predicted)
    design = np.column_stack([np.ones(48), traits])
    rest = gap - design @ np.linalg.lstsq(design, gap, rcond=None)[0]
    value, _ = explained(predicted, truth, np.column_stack([traits, traits.sum(1)]))
    assert value == pytest.approx(1 - rest @ rest / (gap @ gap))


def test_a_perfect_ranking_misplaces_nothing():
    truth = np.arange(10.0)
    told = bias(truth, truth, np.arange(10) % 2.0).places
    assert told.value == 0
    assert told.high == -told.low == pytest.approx(1.95996 / math.sqrt(5), abs=1e-4)
    assert explained(truth, truth, np.arange(10.0)[:, None]) == (0.0, 1.0)
