"""On which device a limit holds, and how costs stand in a run's tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixnas.cost.limit import (
    COLUMNS,
    MEASURED,
    UNITS,
    Limit,
    column,
    cost_in,
    describe,
    from_column,
    in_column,
    parse_all,
)
from mixnas.errors import InvalidBudget

PLACES = [
    "cpu",
    "cuda",
    "cuda:1",
    "mps",
    "cpu:eager",
    "cpu:onnxruntime",
    "cuda:compile",
    "cuda:3:compile",
    "table:phone.csv",
    "table:/a folder/@home/table:1 (b).csv",
]


@pytest.mark.parametrize("where", PLACES)
def test_a_measured_limit_says_where_it_holds(where):
    limit = Limit.parse(f"20ms@{where}")
    assert limit == Limit(f"latency@{where}", 0, 20_000_000)
    assert (limit.kind, limit.where) == ("latency", where)
    assert str(limit) == f"20ms@{where}"
    assert Limit.parse(f" 5 - 20 mJ @ {where} ") == Limit(f"energy@{where}", 5 * 10**6, 20 * 10**6)


def test_devices_are_read_without_regard_to_case_and_paths_with():
    assert Limit.parse("20ms@CUDA:1:Compile").where == "cuda:1:compile"
    assert Limit.parse("20ms@table:Phone.CSV").where == "table:Phone.CSV"


def test_a_limit_without_a_place_has_none():
    for text, kind in (("20ms", "latency"), ("1GFLOPs", "flops"), ("200MB", "memory")):
        limit = Limit.parse(text)
        assert (limit.cost, limit.kind, limit.where) == (kind, kind, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1GFLOPs@cpu", "flops is computed, the same on every device; leave its '@' out"),
        ("200MB@cuda", "memory is computed"),
        ("10Mparams@table:a.csv", "params is computed"),
        ("20ms@", "measure at: nothing"),
        ("20ms@gpu", "measure at: gpu; write cpu, cuda"),
        ("20ms@cpu:1", ": cpu:1;"),
        ("20ms@cpu:onnx", ": cpu:onnx;"),
        ("20ms@cuda:compile:1", "no place"),
        ("20ms@table:", ": table:;"),
        ("20ms@phone.csv", "or table:FILE"),
        ("20ms@" + "x" * 500, ": xxx"),
        ("@cpu", "not an amount"),
        ("20@cpu", "no unit"),
        ("20ms@table:a\nb", "no place"),
    ],
)
def test_other_places_are_refused_on_one_line(text, reason):
    with pytest.raises(InvalidBudget) as caught:
        Limit.parse(text)
    message = str(caught.value)
    assert reason in message
    assert len(message.splitlines()) == 1
    assert len(message) < 300


def test_a_limit_for_each_device_and_one_for_each_cost():
    texts = ("20ms@cpu", "2ms@cuda", "8ms@table:phone.csv", "25ms", "1GFLOPs", "200MB", "3mJ@cpu")
    assert [str(limit) for limit in parse_all(texts)] == list(texts)
    with pytest.raises(InvalidBudget, match="both limit latency@cuda; give one budget"):
        parse_all(["20ms@cpu", "2ms@cuda", "1-3ms@CUDA"])


@pytest.mark.parametrize(
    ("text", "high", "printed"),
    [
        ("200MB", 200_000_000, "200MB"),
        ("200MiB", 209_715_200, "209.7152MB"),
        ("1KiB", 1024, "1.024KB"),
        ("1.5GB", 1_500_000_000, "1.5GB"),
        ("7B", 7, "7B"),
        ("2.5mJ", 2_500_000, "2.5mJ"),
        ("3uJ", 3000, "3uJ"),
        ("3µJ", 3000, "3uJ"),
        ("1J", 10**9, "1J"),
        ("9nJ", 9, "9nJ"),
    ],
)
def test_bytes_and_joules(text, high, printed):
    limit = Limit.parse(text)
    assert limit.high == high
    assert str(limit) == printed


COSTS = st.one_of(
    st.sampled_from(sorted(UNITS)),
    st.builds("{}@{}".format, st.sampled_from(MEASURED), st.sampled_from(PLACES)),
)


@given(COSTS, st.integers(1, 10**17), st.integers(0, 10**17))
def test_a_limit_prints_as_it_is_read(cost, high, low):
    limit = Limit(cost, min(low, high), high)
    assert Limit.parse(str(limit)) == limit


@given(COSTS, st.integers(0, 10**15))
def test_columns_hold_what_they_are_named_after(cost, value):
    assert cost_in(column(cost)) == cost
    assert from_column(cost, in_column(cost, value)) == value
    kind = Limit(cost, 0, value).kind
    assert describe(cost, value) == describe(kind, value)


def test_columns_have_the_units_of_people():
    assert [name for name, _ in COLUMNS.values()] == [
        "flops",
        "params",
        "latency_ms",
        "memory_mb",
        "energy_mj",
    ]
    assert column("latency@table:a.csv") == "latency_ms@table:a.csv"
    assert in_column("latency@cuda", 2_500_000) == 2.5
    assert in_column("memory", 209_715_200) == 209.7152
    assert type(in_column("flops", 3)) is int
    for other in ("number", "loss", "stem", "latency", "latency_ms@", "memory_mb_measured", "@cpu"):
        assert cost_in(other) is None
