"""The predictor: on devices whose truth is known, its intervals hold what they say."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from scipy.stats import beta

from mixnas.cost.calibration import (
    LEAST,
    Design,
    calibrate,
    choose,
    conformal,
    fit,
    folds,
    split,
)
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.measured import Measured, parts_of
from mixnas.cost.predictor import Predictor
from mixnas.cost.tablerows import Sizes
from mixnas.cost.terms import MODELS, design
from mixnas.errors import InvalidOption, InvalidTable, TableMissing
from mixnas.network import walk
from mixnas.space import SearchSpace


def group(part):
    return part.spec[0] if part.kind == "mixer" else part.kind


def alone(space, seed=0):
    """What the parts of a space take alone on a device that is made up: 0.02 to 2 ms."""
    rng = random.Random(seed)
    return {part: 0.02 * 100 ** rng.random() for part in parts_of(space)}


def truth(part, figure, factors):
    """What a part takes in a network there."""
    return factors.get(group(part), 1.0) * figure


def population(space, number, seed, *, factors=None, constant=0.5, noise=0.05):
    """Return the parts' figures, and networks with what they take there, some noise included."""
    figures, rng = alone(space), random.Random(seed)
    sizes, took = Sizes(space.image, space.classes, 3), {}
    while len(took) < number:
        arch = space.sample(rng)
        whole = sum(truth(part, figures[part], factors or {}) for part in sizes.parts(arch))
        took[arch] = (constant + 1.1 * whole) * float(np.exp(noise * rng.gauss(0, 1)))
    return figures, took


def measured(space, number, seed=0, **device):
    figures, took = population(space, number, seed, **device)
    sizes = {"image": space.image, "classes": space.classes, "in_chans": 3}
    return Measured("latency", {"device": "made up", **sizes}, figures, took)


@pytest.fixture(scope="module")
def table():
    return measured(SearchSpace.load("micro"), 60)


@pytest.fixture(scope="module")
def predictor(table):
    return Predictor.fit(table)


def designed(table, models=tuple(MODELS)):
    taken = [Sizes(64, 10, 3).parts(arch) for arch in table.networks]
    found = {model: design(model, taken, table.parts) for model in models}
    return Design(
        {model: terms for model, (terms, _) in found.items()},
        {model: sums for model, (_, sums) in found.items()},
        np.array(list(table.networks.values())),
    )


# The sum over segments


@pytest.mark.parametrize("name", ["micro", "default"])
@pytest.mark.parametrize("model", MODELS)
def test_the_upper_end_adds_up_over_segments(name, model):
    space = SearchSpace.load(name)
    table = measured(space, 30)
    predictor = Predictor.fit(table)
    learnt = replace(
        predictor.calibration,
        model=model,
        coefficients=dict.fromkeys(designed_terms(table, model), 0.3),
    )
    predictor = Predictor(table, learnt, 0.9, 0)
    rng, sizes = random.Random(5), Sizes(space.image, space.classes, 3)
    for arch in (space.sample(rng) for _ in range(40)):
        found = predictor.predict(arch)
        assert predictor(arch) == sum(predictor.segment(segment) for segment in walk(arch))
        assert found.high == predictor(arch) / 10**6
        assert found.low < found.value < found.high
        exact = 10**6 * found.value * np.exp(predictor.calibration.width)
        assert exact * (1 - 1e-12) <= predictor(arch) < exact + len(walk(arch)) + 1
        terms, sums = design(model, [sizes.parts(arch)], table.parts)
        assert found.value == pytest.approx(float(0.3 * sums.sum()), rel=1e-12)
        assert set(terms) == set(learnt.coefficients)


def designed_terms(table, model):
    return design(model, [], table.parts)[0]


def test_it_is_a_table_for_the_search(micro, predictor):
    rng = random.Random(1)
    values = sorted(predictor(micro.sample(rng)) for _ in range(200))
    limit = Limit("latency", 0, values[60])
    feasible = Feasible(micro, [limit], {"latency": predictor})
    for _ in range(50):
        arch = feasible.sample(rng)
        assert predictor.predict(arch).high * 1e6 <= limit.high + 0.01
    assert predictor(feasible.least()) <= values[0]


@pytest.mark.parametrize("number", [0, 3, 10, 60])
def test_a_part_made_slower_never_makes_a_prediction_smaller(micro, number):
    table = measured(micro, number, factors={"mlp": 1.5, "hilo": 0.6})
    predictor = Predictor.fit(table)
    rng = random.Random(2)
    archs = [micro.sample(rng) for _ in range(30)]
    before = [predictor.predict(arch).value for arch in archs]
    for part in rng.sample(list(table.parts), 15):
        slower = replace(table, parts={**table.parts, part: 3 * table.parts[part]})
        again = Predictor(slower, predictor.calibration, 0.9, 0)
        for arch, value in zip(archs, before, strict=True):
            there = part in Sizes(64, 10, 3).parts(arch)
            now = again.predict(arch).value
            assert now > value if there else now == value


# What networks teach


def test_an_affine_device_is_learnt(micro):
    predictor = Predictor.fit(measured(micro, 60, noise=0.0, constant=0.7))
    assert predictor.calibration.model == "parts"
    assert predictor.calibration.coefficients == pytest.approx(
        {"network": 0.7, "parts": 1.1}, rel=1e-6
    )
    assert predictor.quality["error"] < 1e-6
    assert predictor.quality["up"] < 1e-6


def test_factors_of_mixers_are_learnt_where_they_matter(micro):
    factors = {"hilo": 2.5, "aff": 0.3, "xnorm": 2.0, "additive": 0.4}
    plain = measured(micro, 120, noise=0.02)
    strange = measured(micro, 120, noise=0.02, factors=factors)
    assert choose(designed(plain)) == "parts"
    assert choose(designed(strange)) == "mixers"
    learnt = fit(designed(strange), "mixers")
    for mixer, factor in factors.items():
        assert learnt[f"parts: {mixer}"] == pytest.approx(1.1 * factor, rel=0.15)
    _, new = population(micro, 200, 9, noise=0.0, factors=factors)
    predictor = Predictor.fit(strange)
    errors = [abs(predictor.predict(arch).value / took - 1) for arch, took in new.items()]
    assert np.median(errors) < 0.04


def test_least_squares_as_another_solver_has_them(table):
    whole = designed(table)
    left = whole.sums["parts"] / whole.figures[:, None]
    judge = lsq_linear(left, np.ones(len(left)), bounds=(0, np.inf), tol=1e-14)
    common = judge.x[whole.terms["parts"].index("parts")]
    pulled = fit(whole, "parts")
    assert pulled["parts"] == pytest.approx(common, rel=1e-4)
    loose = fit(whole, "mixers")
    assert all(0 <= value < 3 * common for value in loose.values())


def test_a_term_that_no_network_has_keeps_the_common_factor(table):
    whole = designed(table)
    where = whole.terms["mixers"].index("parts: aff")
    without = np.flatnonzero(whole.sums["mixers"][:, where] == 0)
    some = whole.of(without)
    assert len(some) > 5
    found = fit(some, "mixers")
    assert found["parts: aff"] == pytest.approx(fit(some, "parts")["parts"], rel=0.02)


# The interval


def test_the_rank_of_the_interval_is_that_of_its_share():
    for number, level in ((40, 0.9), (100, 0.9), (100, 0.5), (60, 0.95)):
        errors = np.random.default_rng(number).permutation(np.arange(1.0, number + 1))
        width, confidence = conformal(errors, level)
        rank = int(width)
        assert confidence == pytest.approx(beta.sf(level, rank, number + 1 - rank))
        assert confidence >= 0.9
        assert rank == 1 or beta.sf(level, rank - 1, number + 2 - rank) < 0.9
    width, confidence = conformal(np.arange(1.0, 14), 0.9)
    assert width == 13
    assert confidence == pytest.approx(1 - 0.9**13)


def covers(whole, number, level, repeats, model):
    """Calibrate on random draws of networks; return the share of the others that is covered."""
    shares = []
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(whole))
        found = calibrate(whole.of(order[:number]), level, seed, model=model)
        errors = np.abs(found.errors(whole.of(order[number:])))
        shares.append(float((errors <= found.width).mean()))
    return np.array(shares)


def test_the_interval_covers_what_it_says(micro):
    """Of 300 calibrations, as many as `CONFIDENCE` cover their level, to what luck may do."""
    whole = designed(measured(micro, 1500, constant=1.5, noise=0.08), ("parts",))
    shares = covers(whole, 60, 0.9, 300, "parts")
    assert shares.mean() >= 0.9
    assert (shares >= 0.9).mean() >= 0.87  # 0.92 by theory; three standard errors are 0.047
    assert covers(whole, 150, 0.7, 200, "parts").mean() < 0.85  # and is no wider than need be


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_interval_covers_whatever_the_choice_of_terms(micro):
    strange = {"hilo": 2.0, "aff": 0.4, "mlp": 1.3}
    whole = designed(measured(micro, 1200, factors=strange, noise=0.05))
    shares = covers(whole, 60, 0.9, 80, "")
    assert shares.mean() >= 0.9
    assert (shares >= 0.9).mean() >= 0.82


def test_no_interval_from_few_networks(micro):
    for number in (0, 1, 2, 5, LEAST - 1):
        predictor = Predictor.fit(measured(micro, number))
        arch = micro.sample(random.Random(3))
        found = predictor.predict(arch)
        assert not predictor.calibrated
        assert found.low == found.value == found.high
        assert predictor(arch) == pytest.approx(1e6 * found.value, abs=len(walk(arch)) + 1)
        assert predictor.quality["confidence"] == 0
    few = Predictor.fit(measured(micro, LEAST))
    assert few.calibrated
    assert 0 < few.quality["confidence"] < 0.9
    bare = Predictor.fit(replace(measured(micro, 5), networks={}))
    sizes = Sizes(64, 10, 3)
    assert bare.predict(arch).value == pytest.approx(
        sum(bare.measured.parts[part] for part in sizes.parts(arch))
    )


def test_splits_and_folds_leave_nothing_out():
    for number in (20, 33, 60):
        fitted, held = split(number, 0)
        assert sorted([*fitted, *held]) == list(range(number))
        assert len(fitted) == round(number / 3)
        assert not np.array_equal(fitted, split(number, 1)[0])
        for others, these in folds(number):
            assert sorted([*others, *these]) == list(range(number))
        assert Counter(int(i) for _, these in folds(number) for i in these) == Counter(
            range(number)
        )


def test_quality_is_of_networks_not_seen(predictor, table):
    quality, points = predictor.quality, predictor.held_out()
    assert [one.arch for one in points] == list(table.networks)
    errors = [abs(one.predicted.value / one.measured - 1) for one in points]
    assert quality["error"] == pytest.approx(np.median(errors))
    assert quality["coverage"] == pytest.approx(np.mean([one.covered for one in points]))
    assert quality["networks"] == 60
    assert 0.02 < quality["error"] < 0.06  # 0.034 is the median of such noise
    assert quality["spearman"] > 0.9
    # Figures of a network change nothing of its own prediction.
    arch = points[7].arch
    other = replace(table, networks={**table.networks, arch: 100 * table.networks[arch]})
    again = next(one for one in Predictor.fit(other).held_out() if one.arch == arch)
    assert again.predicted == points[7].predicted


# What a search teaches


def test_finalists_found_slower_raise_the_bound(micro, predictor):
    rng = random.Random(11)
    archs = [micro.sample(rng) for _ in range(4)]
    found = {arch: 1.25 * predictor.predict(arch).high for arch in archs}
    taught = predictor.refitted(found)
    for arch, took in found.items():
        assert taught.predict(arch).high >= took
        assert predictor.predict(arch).high < took
    assert taught.quality["taught"] == 4
    assert taught.calibration.model == predictor.calibration.model
    once = predictor.refitted(dict(list(found.items())[:1]))
    both = once.refitted(dict(list(found.items())[1:]))
    assert both.calibration == taught.calibration


def test_finalists_as_foretold_change_little(micro, predictor):
    rng = random.Random(12)
    archs = [micro.sample(rng) for _ in range(5)]
    taught = predictor.refitted({arch: predictor.predict(arch).value for arch in archs})
    for arch in archs:
        assert taught.predict(arch).value == pytest.approx(predictor.predict(arch).value, rel=0.02)
    nothing = predictor.refitted({})
    assert nothing.calibration.width == pytest.approx(predictor.calibration.width)
    assert nothing.calibration.coefficients == pytest.approx(predictor.calibration.coefficients)


def test_an_uncalibrated_sum_learns_from_finalists_too(micro):
    bare = Predictor.fit(replace(measured(micro, 5), networks={}))
    archs = [micro.sample(random.Random(seed)) for seed in range(3)]
    taught = bare.refitted({arch: 2 * bare.predict(arch).value for arch in archs})
    for arch in archs:
        assert taught.predict(arch).value == pytest.approx(2 * bare.predict(arch).value)


# Kept, and refused


def test_it_is_what_its_json_says(micro, predictor):
    taught = predictor.refitted({micro.sample(random.Random(4)): 9.0})
    text = json.dumps(taught.to_dict())
    again = Predictor.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.measured == taught.measured
    rng = random.Random(6)
    for arch in (micro.sample(rng) for _ in range(50)):
        assert again(arch) == taught(arch)
        assert again.predict(arch) == taught.predict(arch)
    assert again.refitted({}).calibration == taught.refitted({}).calibration


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data | {"format": 2},
        lambda data: data | {"parts": 3},
        lambda data: data | {"parts": [["mlp", [16, 2]]]},
        lambda data: data | {"calibration": {"model": "parts"}},
        lambda data: data | {"networks": [[{}, 1.0]]},
        lambda data: {key: value for key, value in data.items() if key != "level"},
        lambda data: data | {"conditions": {}},
        lambda data: data | {"calibration": data["calibration"] | {"model": "clouds"}},
        lambda data: data | {"calibration": data["calibration"] | {"coefficients": {}}},
        lambda data: data | {"calibration": data["calibration"] | {"width": "wide"}},
        lambda data: [data],
    ],
)
def test_damaged_predictors_are_refused(predictor, spoil):
    data = json.loads(json.dumps(predictor.to_dict()))
    with pytest.raises(InvalidTable, match="not a predictor"):
        Predictor.from_dict(spoil(data))


def test_parts_that_are_not_there(micro, table, predictor):
    some = {part: value for part, value in table.parts.items() if part.kind != "mlp"}
    with pytest.raises(TableMissing, match="no latency of mlp-"):
        Predictor.fit(replace(table, parts=some))
    bare = Predictor.fit(replace(table, parts=some, networks={}))
    with pytest.raises(TableMissing, match="no latency of mlp-"):
        bare(micro.sample(random.Random(0)))
    with pytest.raises(InvalidOption, match=r"level 1\.5"):
        Predictor.fit(table, level=1.5)


def test_seeds_draw_other_splits(table, predictor):
    assert Predictor.fit(table).calibration == predictor.calibration
    widths = {Predictor.fit(table, seed=seed).calibration.width for seed in range(4)}
    assert len(widths) > 1
    levels = (0.5, 0.7, 0.9)
    widths = [Predictor.fit(table, level=level).calibration.width for level in levels]
    assert all(a < b for a, b in pairwise(widths))
