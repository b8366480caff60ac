"""Measured tables: the file keeps what was measured, and what cannot be is refused by its line."""

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixnas.arch import Architecture
from mixnas.cost import count, tablefile
from mixnas.cost.graph import Graph
from mixnas.cost.measured import Measured, file_name, items, parts_of, template
from mixnas.cost.tablerows import KINDS, UNITS, Sizes
from mixnas.errors import InvalidTable
from mixnas.network import Part, parts, walk
from mixnas.space import SearchSpace

MICRO = SearchSpace.load("micro")
PARTS = parts_of(MICRO)
NETWORKS = [MICRO.sample(random.Random(seed)) for seed in range(12)]
SIZES = {"image": MICRO.image, "classes": MICRO.classes, "in_chans": 3}


@pytest.fixture(scope="module")
def flops():
    """Count each part once for all tests of this file."""
    return {part: count.flops(part) for part in PARTS}.__getitem__


@pytest.fixture(scope="module")
def table(flops):
    """What a CPU of 10 G multiply-adds a second and 20 us a call would show."""
    figures = {part: round(0.02 + flops(part) / 1e7, 6) for part in PARTS}
    whole = {
        arch: round(1.1 * sum(figures[part] for part in Sizes(64, 10, 3).parts(arch)), 6)
        for arch in NETWORKS
    }
    return Measured("latency", {"device": "board", "threads": 2, **SIZES}, figures, whole)


def cells(text):
    """Return the line of the header, and all lines as lists of cells."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return first, lines


def changed(text, row, column, value):
    """Return a table with one cell of a row (0 is the first below the header) changed."""
    first, lines = cells(text)
    header = lines[first].split(",")
    found = next(csv.reader([lines[first + 1 + row]]))
    found[header.index(column)] = value
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(found)
    lines[first + 1 + row] = out.getvalue()
    return "\n".join(lines) + "\n", first + 2 + row


# What is kept

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
figures = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
words = st.from_regex(r"[A-Za-z0-9_]+", fullmatch=True)


@given(
    st.sampled_from(sorted(UNITS)),
    st.dictionaries(words.filter(lambda key: key not in tablefile.RESERVED), plain, max_size=5),
    st.dictionaries(st.sampled_from(PARTS), figures, max_size=20),
    st.dictionaries(st.sampled_from(NETWORKS), figures, max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_a_table_is_what_its_file_says(quantity, conditions, part_figures, network_figures):
    measured = Measured(quantity, {**conditions, **SIZES}, part_figures, network_figures)
    text = measured.to_csv()
    again = Measured.from_csv(text, "table.csv", flops=None)
    assert again == measured
    assert again.to_csv() == text
    assert list(again.parts) == list(measured.parts)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("# image: 64", "# image: 64,,,,,"),
        lambda text: text.replace("# device: board", '"# device: board",,,'),
        lambda text: text + "\n,,,,,\n\n",
        lambda text: text.replace("milliseconds", " Milliseconds "),
        lambda text: text.replace("# device", "# a sentence that says nothing\n# device"),
        lambda text: text + cells(text)[1][-1] + "\n",
    ],
    ids=["mark", "crlf", "padded", "quoted", "empty", "capital", "remark", "twice the same"],
)
def test_traces_of_spreadsheets_are_read_through(table, spoilt):
    assert Measured.from_csv(spoilt(table.to_csv()), "table.csv", flops=None) == table


def test_further_columns_are_passed_over(table):
    first, lines = cells(table.to_csv())
    lines = [f"{line},x{i}" if i >= first else line for i, line in enumerate(lines)]
    assert Measured.from_csv("\n".join(lines), "table.csv", flops=None) == table


def test_parts_of_a_space_are_those_of_its_architectures(micro, default):
    for space in (micro, default):
        sizes = {"image": space.image, "classes": space.classes}
        known = parts_of(space)
        assert len(set(known)) == len(known)
        rng = random.Random(0)
        seen = {
            part
            for _ in range(300)
            for segment in walk(space.sample(rng))
            for part in parts(segment, **sizes)
        }
        assert seen <= set(known)
        edges = {edge.segment for edge in Graph(space).edges if edge.segment}
        assert set(known) == {p for segment in edges for p in parts(segment, **sizes)}


# What is refused, and where

HILO = next(i for i, part in enumerate(PARTS) if part.kind == "mixer" and part.spec[0] == "hilo")


@pytest.mark.parametrize(
    ("row", "column", "value", "says"),
    [
        (3, "milliseconds", "", "is empty"),
        (3, "milliseconds", "0", "0 is not above 0"),
        (3, "milliseconds", "0.000", "is not above 0"),
        (3, "milliseconds", "-1.5", "-1.5 is not above 0"),
        (3, "milliseconds", "1e999", "not above 0 and finite"),
        (3, "milliseconds", "nan", "'nan' is not a number"),
        (3, "milliseconds", "inf", "'inf' is not a number"),
        (3, "milliseconds", "3.2us", "unit of its own"),
        (3, "milliseconds", "3.2 ms", "unit of its own"),
        (3, "milliseconds", "1,5", "is not a number"),
        (3, "milliseconds", "0x10", "is not a number|unit of its own"),
        (3, "milliseconds", "1_000", "is not a number"),
        (3, "milliseconds", "fast", "is not a number"),
        (3, "kind", "mlpp", "did you mean 'mlp'"),
        (3, "kind", "", "no kind ''"),
        (3, "channels", "3.5", "channels '3.5'"),
        (3, "height", "0", "height '0'"),
        (3, "height", "-7", "height '-7'"),
        (3, "width", "", "width ''"),
        (HILO, "spec", '["hilow",16,[]]', "did you mean 'hilo'"),
        (HILO, "spec", '["hilo",16,[]]', "its knobs are alpha, head_width, window"),
        (HILO, "spec", '["hilo",99,[["alpha",0.5],["head_width",16],["window",2]]]', "99 channels"),
        (HILO, "spec", '["hilo",16,[["alpha",0.5],["head_width",5],["window",2]]]', "head_width=5"),
        (HILO, "spec", "hilo", "spec of kind 'mixer' is wrong"),
        (HILO, "spec", "{}", "it is not a list"),
        (HILO, "spec", "[" * 5000, "spec of kind 'mixer' is wrong"),
        (HILO, "spec", "[]", "spec of kind 'mixer' is wrong"),
        (HILO, "spec", '[["hilo"],16,[]]', "spec of kind 'mixer' is wrong"),
        (0, "spec", '["conv5",32,3]', "did you mean 'conv16'|conv8"),
        (0, "spec", '["conv8",true,3]', "no width True"),
        (0, "spec", '["conv8",16,4]', "its input is 3x64x64"),
        (len(PARTS) - 1, "spec", "[64,1000]", "the table says 10"),
        (len(PARTS), "spec", "{}", "not an architecture"),
        (len(PARTS), "height", "32", "its input must be 3x64x64"),
    ],
)
def test_a_wrong_cell_is_named_by_its_line(table, row, column, value, says):
    text, line = changed(table.to_csv(), row, column, value)
    with pytest.raises(InvalidTable, match=says) as caught:
        Measured.from_csv(text, "phone.csv", flops=None)
    message = str(caught.value)
    assert message.startswith(f"phone.csv, line {line}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",milliseconds", ",seconds", "no column 'milliseconds' .there: seconds."),
        (",milliseconds", ",ms", "figures must be in milliseconds"),
        (",milliseconds", ",latency_us", "figures must be in milliseconds"),
        (",milliseconds", ",millijoules", "figures must be in milliseconds"),
        (",milliseconds", "", "no column 'milliseconds' .there: none"),
        (",milliseconds", ",milliseconds,milliseconds", "two columns 'milliseconds'"),
        ("kind,spec", "kind,module", "no column 'spec'"),
        (",", ";", "not separated by commas"),
        ("# image: 64", "# image: 192px", "image '192px'"),
        ("# image: 64", "# image: true", "image True"),
        ("# image: 64\n", "", "image missing; write a line '# image: 224'"),
        ("# classes: 10\n", "", "classes missing"),
        ("# classes: 10", "# classes: 0", "classes 0"),
        ("# format: 1", "# format: 2", "format 2; this mixnas reads 1"),
        ("# quantity: latency", "# quantity: latencies", "did you mean 'latency'"),
        ('"[""hilo""', '["hilo"', "cells under"),
        ('"[""hilo""', '"["hilo""', "not CSV"),
    ],
)
def test_a_file_that_says_something_else_is_refused(table, old, new, says):
    with pytest.raises(InvalidTable, match=says) as caught:
        Measured.from_csv(table.to_csv().replace(old, new), "phone.csv", flops=None)
    assert str(caught.value).startswith("phone.csv")
    assert "\n" not in str(caught.value)


def test_two_figures_for_one_part_are_refused_with_both_lines(table):
    text = table.to_csv()
    first, lines = cells(text)
    again, _ = changed(text, 4, "milliseconds", "7.5")
    with pytest.raises(InvalidTable, match=rf"line {len(lines) + 1}: 7.5, but line {first + 6} "):
        Measured.from_csv(text + again.splitlines()[first + 5], "phone.csv", flops=None)


@pytest.mark.parametrize("text", ["", "\n\n", "# image: 64\n# classes: 10\n", "\x00", "a\x00,b\n"])
def test_no_table_at_all(text):
    with pytest.raises(InvalidTable):
        Measured.from_csv(text, "phone.csv")


def test_files_that_are_no_tables(tmp_path, monkeypatch):
    with pytest.raises(InvalidTable, match=r"none\.csv: cannot be read .No such file"):
        Measured.load(tmp_path / "none.csv")
    with pytest.raises(InvalidTable, match="cannot be read"):
        Measured.load(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"# image: 64\n# device: caf\xe9\n")
    with pytest.raises(InvalidTable, match=r"latin\.csv, line 2: not UTF-8"):
        Measured.load(tmp_path / "latin.csv")
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it would take an hour to read
    with pytest.raises(InvalidTable, match="over 16 MiB"):
        Measured.load(tmp_path / "huge.csv")
    monkeypatch.setattr(tablefile, "MOST", 10)
    with pytest.raises(InvalidTable, match="line 12: over 10 rows"):
        Measured.from_csv("a\n" * 20, "rows.csv")


def test_the_example_of_the_documents_is_a_table():
    text = (Path(__file__).parent.parent / "docs" / "latency-tables.md").read_text("utf-8")
    example = text.split("```")[1].strip()
    assert "[...]" in example.splitlines()[-1]  # a network, of which only the ends are shown
    found = Measured.from_csv("\n".join(example.splitlines()[:-1]), "example.csv")
    assert found.conditions["device"] == "Pixel 9"
    assert {part.kind for part in found.parts} == set(KINDS)
    default = set(parts_of(SearchSpace.load("default")))
    assert set(found.parts) <= default


# Absurd figures


def test_a_sound_table_is_not_absurd(table, flops):
    assert Measured.from_csv(table.to_csv(), "board.csv", flops=flops) == table


@given(st.sets(st.sampled_from(PARTS), min_size=1), st.integers(0, 999))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_that_is_not_finished_is_not_absurd(table, flops, some, seed):
    noise = random.Random(seed)
    took = {part: table.parts[part] * noise.uniform(0.5, 2) for part in PARTS if part in some}
    text = replace(table, parts=took).to_csv()
    Measured.from_csv(text, "board.csv", flops=flops)


@pytest.mark.parametrize("speed", [2e8, 1e11, 3e13])
@pytest.mark.parametrize("launch", [0.0, 0.005, 0.5])
def test_slow_and_fast_devices_are_not_absurd(table, flops, speed, launch):
    noise = random.Random(0)
    took = {
        part: (launch + 1000 * max(flops(part), 1) / speed) * noise.uniform(0.5, 2)
        for part in table.parts
    }
    text = replace(table, parts=took, networks={}).to_csv()
    Measured.from_csv(text, "board.csv", flops=flops)


@pytest.mark.parametrize("times", [1000.0, 0.001])
def test_any_row_in_another_unit_is_named(table, flops, times):
    text = table.to_csv()
    for row, part in enumerate(table.parts):
        wrong, line = changed(text, row, "milliseconds", repr(table.parts[part] * times))
        with pytest.raises(InvalidTable, match=f"line {line}: .* than rows of its like imply"):
            Measured.from_csv(wrong, "phone.csv", flops=flops)


@pytest.mark.parametrize("times", [1e6, 1e-9])
def test_a_whole_column_that_no_device_can_have(table, flops, times):
    took = {part: times * value for part, value in table.parts.items()}
    text = replace(table, parts=took, networks={}).to_csv()
    with pytest.raises(InvalidTable, match=r"line \d+: .*which no device does"):
        Measured.from_csv(text, "phone.csv", flops=flops)


@pytest.mark.parametrize("times", [1000.0, 0.001])
def test_networks_in_another_unit_than_their_parts(table, flops, times):
    took = {arch: times * value for arch, value in table.networks.items()}
    text = replace(table, networks=took).to_csv()
    with pytest.raises(InvalidTable, match=rf"line {len(cells(text)[1]) - 11}: .*parts take"):
        Measured.from_csv(text, "phone.csv", flops=flops)


# What serves a space


def test_missing_parts_are_counted_and_named(table, micro):
    assert table.missing(micro) == []
    table.check(micro, "phone.csv")
    some = {p: v for p, v in table.parts.items() if p.kind != "mixer" or p.spec[0] != "aff"}
    lacking = replace(table, parts=some, networks={})
    number = len(table.parts) - len(some)
    assert len(lacking.missing(micro)) == number
    with pytest.raises(InvalidTable, match=rf"{number} of the {len(PARTS)} parts .*mixer-aff"):
        lacking.check(micro, "phone.csv")
    narrow = micro.only_mixers(("additive", "hilo", "single_head", "xnorm"))
    lacking.check(narrow, "phone.csv")


def test_a_network_whose_parts_are_missing_is_named(table, micro):
    narrow = micro.only_mixers(("hilo",))
    wanted = set(parts_of(narrow))
    some = {part: value for part, value in table.parts.items() if part in wanted}
    with pytest.raises(InvalidTable, match=r"lacks a part of its network [0-9a-f]{12}, "):
        replace(table, parts=some).check(narrow, "phone.csv")


@pytest.mark.parametrize("other", [{"image": 96}, {"classes": 1000}])
def test_a_table_for_other_images_is_refused(table, micro, other):
    ((key, value),) = other.items()
    with pytest.raises(
        InvalidTable, match=f"for {key} {getattr(micro, key)}, space 'micro' deploys {value}"
    ):
        table.check(replace(micro, **other), "phone.csv")


# The template


def test_a_template_filled_in_is_a_table(table, micro, flops):
    text = template(micro, NETWORKS)
    with pytest.raises(InvalidTable, match="milliseconds is empty; fill it in"):
        Measured.from_csv(text, "phone.csv")
    first, lines = cells(text)
    rows = list(csv.reader(lines[first:]))
    assert rows[0][-2:] == ["milliseconds", "file"]
    known = {**table.parts, **table.networks}
    for row, (item, file) in zip(rows[1:], items(micro, NETWORKS), strict=True):
        assert row[-1] == file
        row[-2] = str(known[item])
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    filled = "\n".join(lines[:first]) + "\n" + out.getvalue()
    found = Measured.from_csv(filled, "phone.csv", flops=flops)
    assert (found.parts, found.networks) == (table.parts, table.networks)
    found.check(micro, "phone.csv")


def test_files_of_a_template_are_told_apart(default):
    networks = [default.sample(random.Random(seed)) for seed in range(5)]
    names = [file for _, file in items(default, networks)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and " " not in name for name in names)
    mixer = Part("mixer", ("hilo", 128, (("alpha", 0.5),)), (128, 14, 14))
    assert file_name(7, mixer) == "parts/0007-mixer-hilo-128x14x14.onnx"
    assert file_name(205, networks[0]) == f"networks/0205-{networks[0].id}.onnx"


def test_specs_are_json_of_parts(table):
    first, lines = cells(table.to_csv())
    for row, part in zip(csv.reader(lines[first + 1 :]), table.parts, strict=False):
        assert json.loads(row[1])[0] == part.spec[0]
    last = next(csv.reader(lines[-1:]))
    assert Architecture.from_json(last[1]) == NETWORKS[-1]
