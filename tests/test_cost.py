"""Limits as people write them; tables that add up, are saved and refuse other conditions."""

import json
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixnas.cost.count import count_flops, count_params, flops, params
from mixnas.cost.limit import UNITS, Limit, describe, parse_all
from mixnas.cost.table import CostTable
from mixnas.errors import InvalidBudget, TableMissing
from mixnas.network import Part, build
from mixnas.space import SearchSpace

READ = [
    ("1.5GFLOPs", "flops", 0, 1_500_000_000),
    ("1.2-1.5GFLOPs", "flops", 1_200_000_000, 1_500_000_000),
    ("900MFLOPs-1.5GFLOPs", "flops", 900_000_000, 1_500_000_000),
    ("1.2GFLOPs-1.5GMACs", "flops", 1_200_000_000, 1_500_000_000),
    (" 300 mflops ", "flops", 0, 300_000_000),
    ("2e3KMACs", "flops", 0, 2_000_000),
    ("1e-3TFLOPs", "flops", 0, 1_000_000_000),
    ("0.1 – 1e3 MMACs", "flops", 100_000, 1_000_000_000),  # noqa: RUF001
    ("20ms", "latency", 0, 20_000_000),
    ("1.5us", "latency", 0, 1500),
    ("15µs", "latency", 0, 15_000),
    (".5s", "latency", 0, 500_000_000),
    ("10Mparams", "params", 0, 10_000_000),
    ("1bParams", "params", 0, 1_000_000_000),
    ("7params", "params", 0, 7),
    ("1.0000000019GFLOPs", "flops", 0, 1_000_000_001),
    ("1.0000000011-2GFLOPs", "flops", 1_000_000_002, 2_000_000_000),
]


@pytest.mark.parametrize(("text", "cost", "low", "high"), READ)
def test_budgets_are_read(text, cost, low, high):
    assert Limit.parse(text) == Limit(cost, low, high)


@pytest.mark.parametrize("cost", UNITS)
def test_every_unit_is_read(cost):
    for unit, factor in UNITS[cost].items():
        assert Limit.parse(f"3{unit}") == Limit(cost, 0, 3 * factor)
        assert Limit.parse(f"3{unit.upper()}") == Limit(cost, 0, 3 * factor)


REFUSED = [
    ("", "not an amount"),
    ("fast", "not an amount"),
    ("GFLOPs", "not an amount"),
    ("1.5", "no unit"),
    ("1.2-1.5", "no unit"),
    ("1.5GFLOP", "did you mean 'GFLOPs'"),
    ("1.5 gflop", "did you mean 'GFLOPs'"),
    ("20mss", "no unit 'mss'"),
    ("3parsecs", "known: "),
    ("0GFLOPs", "above 0"),
    ("-1GFLOPs", "above 0"),
    ("0-1GFLOPs", "above 0"),
    ("nanGFLOPs", "finite"),
    ("infGFLOPs", "finite"),
    ("-inf ms", "finite"),
    ("1e999999999GFLOPs", "finite"),
    ("1e-999999999GFLOPs", "too small"),
    ("0.5FLOPs", "too small"),
    ("1e17TFLOPs", "beyond"),
    ("1.5-1.2GFLOPs", "lower end first"),
    ("1GFLOPs-20ms", "two budgets"),
    ("1.5GFLOPs,2GFLOPs", "not an amount"),
    ("1,5GFLOPs", "not an amount"),
    ("1..5GFLOPs", "not an amount"),
    ("1.2-1.3-1.5GFLOPs", "not an amount"),
    ("٣GFLOPs", "not an amount"),
    ("1.5\nGFLOPs\n;", "not an amount"),
    ("x" * 5000, "not an amount"),
    (1.5, "not an amount"),
    (None, "not an amount"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_other_budgets_are_refused_on_one_line(text, reason):
    with pytest.raises(InvalidBudget) as caught:
        Limit.parse(text)
    message = str(caught.value)
    assert reason in message
    assert message.startswith("budget ")
    assert "\n" not in message
    assert len(message) < 300


@given(st.text(max_size=20))
def test_any_text_is_a_limit_or_one_line(text):
    message, limit = "one line", Limit("flops", 0, 0)
    try:
        limit = Limit.parse(text)
    except InvalidBudget as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert 0 <= limit.low <= limit.high


@given(st.sampled_from(sorted(UNITS)), st.integers(1, 10**17), st.integers(0, 10**17))
def test_a_limit_prints_as_it_is_read(cost, high, low):
    limit = Limit(cost, min(low, high), high)
    assert Limit.parse(str(limit)) == limit


def test_limits_print_in_the_users_units():
    for text in ("1.5GFLOPs", "1.2-1.5GFLOPs", "20ms", "10Mparams", "12us", "1Bparams", "0.001us"):
        assert str(Limit.parse(text)) == text.replace("0.001us", "1ns")
    assert str(Limit.parse("2GMACs")) == "2GFLOPs"


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 100))
def test_excess_is_the_distance_outside(a, b, value):
    limit = Limit("flops", min(a, b), max(a, b))
    inside = limit.low <= value <= limit.high
    assert (limit.excess(value) <= 0) == inside
    if not inside:
        assert limit.excess(value) == min(abs(value - limit.low), abs(value - limit.high))


def test_two_limits_on_one_cost_contradict():
    assert len(parse_all(["1.5GFLOPs", "20ms", "10Mparams"])) == 3
    assert parse_all([]) == ()
    with pytest.raises(InvalidBudget, match="both limit flops"):
        parse_all(["1.5GFLOPs", "20ms", "100MMACs"])


def test_values_for_people():
    assert describe("flops", 1_416_000_000) == "1.42 GFLOPs"
    assert describe("latency", 20_000_000) == "20 ms"
    assert describe("params", 999_999) == "1 Mparams"
    assert describe("flops", 75_206_016, "up") == "75.3 MFLOPs"
    assert describe("flops", 75_206_016, "down") == "75.2 MFLOPs"
    assert describe("flops", 0) == "0 FLOPs"
    assert describe("params", 7) == "7 params"


@given(st.sampled_from(sorted(UNITS)), st.integers(1, 10**15))
def test_a_printed_bound_holds(cost, value):
    up = Limit.parse(describe(cost, value, "up"))
    down = Limit.parse(describe(cost, value, "down"))
    assert down.high <= value <= up.high
    assert Fraction(up.high - down.high, value) <= Fraction(1, 50)


def micro_table(measure=params, **other):
    space = SearchSpace.load("micro")
    return space, CostTable(measure, **{"image": space.image, "classes": space.classes} | other)


@pytest.mark.slow
def test_costs_add_up_to_an_independent_count():
    space, table = micro_table(flops)
    sizes = CostTable(params, image=space.image, classes=space.classes)
    rng = Random(0)
    for _ in range(12):
        arch = space.sample(rng)
        whole = build(arch, space.classes)
        assert table(arch) == count_flops(whole, (3, space.image, space.image))
        assert sizes(arch) == count_params(whole)


def test_each_part_is_measured_once():
    measured = []

    def cost(part):
        measured.append(part)
        return 1

    space, table = micro_table(cost)
    rng = Random(0)
    archs = [space.sample(rng) for _ in range(50)]
    first = [table(arch) for arch in archs]
    assert len(measured) == len(set(measured)) == len(table)
    assert [table(arch) for arch in archs] == first
    assert len(measured) == len(table)


def test_a_table_is_saved_and_loaded(tmp_path):
    space, table = micro_table()
    rng = Random(1)
    archs = [space.sample(rng) for _ in range(20)]
    costs = [table(arch) for arch in archs]
    table.save(tmp_path / "params.json")

    def never(part):
        raise AssertionError(part)

    never.cost = "params"
    _, again = micro_table(never)
    again.load(tmp_path / "params.json")
    assert [again(arch) for arch in archs] == costs
    assert [path.name for path in tmp_path.iterdir()] == ["params.json"]


def test_a_table_of_other_conditions_is_refused(tmp_path):
    path = tmp_path / "table.json"
    _, table = micro_table()
    table.part(Part("local", (16,), (16, 8, 8)))
    table.save(path)
    for other, reason in (
        ({"image": 128}, "image 64, not 128"),
        ({"classes": 7}, "classes 10, not 7"),
        ({"measure": flops}, "cost 'params', not 'flops'"),
    ):
        with pytest.raises(TableMissing, match=reason):
            micro_table(**other)[1].load(path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2, "conditions": {}, "parts": []}'],
)
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(TableMissing, match="not a cost table"):
        micro_table()[1].load(path)


def test_broken_entries_and_absent_files_are_refused(tmp_path):
    path = tmp_path / "table.json"
    _, table = micro_table()
    with pytest.raises(TableMissing, match="no cost table there"):
        table.load(path)
    table.part(Part("local", (16,), (16, 8, 8)))
    table.save(path)
    data = json.loads(path.read_text())
    data["parts"][0][3] = 1.5
    path.write_text(json.dumps(data))
    with pytest.raises(TableMissing):
        table.load(path)
