"""Where the time goes: sums that add up, pictures of what was measured, pages without trust."""

import io
import json
import random
from functools import cache

import pytest
from finished_run import begun, finished
from PIL import Image
from rich.console import Console
from scipy.stats import spearmanr
from test_report import NASTY, Page

from mixnas import report, screen
from mixnas.arch import Architecture, Block, Stage, Stem
from mixnas.cost import count
from mixnas.cost.limit import Limit
from mixnas.cost.measured import Measured, parts_of
from mixnas.cost.memory import PeakMemory
from mixnas.cost.predictor import Predictor
from mixnas.errors import InvalidOption, InvalidSpace, RunConflict, TableMissing
from mixnas.jobs.explain import explanation, subject_of
from mixnas.network import build, parts, walk
from mixnas.run import Run

SIZES = {"image": 64, "classes": 10, "in_chans": 3}
HERE = {"device": "cpu", "runtime": "eager", "precision": "fp32", "batch": 1, "threads": 2}
PRICES = {"aff": 7.0, "hilo": 3.0, "local": 9.0, "mlp": 0.5}
"""Nanoseconds that a multiply-add takes on a made-up device; 1 where nothing is said."""


def operation(part):
    return part.spec[0] if part.kind == "mixer" else part.kind


@cache
def flops(part):
    return max(1, count.flops(part))


def device(space, price, networks=(), quantity="latency", **conditions):
    """The table of a device on which each operation's multiply-adds have one price."""
    figures = {part: flops(part) * price(part) / 1e6 for part in parts_of(space)}
    wholes = {arch: 1.2 * summed(arch, figures) for arch in networks}
    return Measured(quantity, HERE | SIZES | conditions, figures, wholes)


def summed(arch, figures):
    return sum(figures[part] for segment in walk(arch) for part in parts(segment, **SIZES))


@pytest.fixture(scope="module")
def archs(micro):
    rng = random.Random(5)
    return [micro.sample(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def table(micro, archs):
    return device(micro, lambda part: PRICES.get(operation(part), 1.0), archs)


@pytest.fixture(scope="module")
def explained(table, archs):
    return [(arch, explanation(arch, table)) for arch in archs[:6]]


@pytest.fixture(scope="module")
def told(table, archs):
    """An explanation with everything in it, of an architecture with aff."""
    arch = next(a for a in archs if "aff" in a.to_json())
    whole = {"median": table.networks[arch], "lower": 0.1, "upper": 9.0, "runs": 30}
    memory = PeakMemory(**SIZES)
    found = explanation(
        arch, table, Predictor.fit(table), whole=whole, memory=memory, memory_measured=1_234_000
    )
    return json.loads(json.dumps({"of": "sample's winner", **found}))


def test_parts_add_up_to_the_network(table, explained):
    for arch, found in explained:
        network = build(arch, SIZES["classes"])
        assert found["sum"] == pytest.approx(summed(arch, table.parts))
        assert found["flops"] == count.count_flops(network, image=SIZES["image"])
        assert found["params"] == sum(p.numel() for p in network.parameters())
        assert found["predicted"] is found["measured"] is found["difference"] is None


def test_every_grouping_shares_out_the_whole(explained):
    for _, found in explained:
        for name in ("rows", "stages", "kinds", "operations"):
            rows = found[name]
            for key in ("share", "flops_share"):
                assert sum(row[key] for row in rows) == pytest.approx(1), (name, key)
            priced = sum(row["flops_share"] * row["per_flop"] for row in rows if row["per_flop"])
            free = sum(row["share"] for row in rows if row["per_flop"] is None)
            assert priced + free == pytest.approx(1), name
            assert sum(row.get("parts", 1) for row in rows) == len(found["rows"])
        mixed = sum(row["amount"] for row in found["mixers"])
        kinds = {row["name"]: row["amount"] for row in found["kinds"]}
        assert mixed == pytest.approx(kinds["mixer"])


def test_rows_stand_where_the_network_has_them(explained):
    for arch, found in explained:
        rows = found["rows"]
        blocks = [
            (f"stage {number}", arch.stem.stride << number - 1, index, block.mixer)
            for number, stage in enumerate(arch.stages, 1)
            for index, block in enumerate(stage.blocks, 1)
        ]
        drawn = [row for row in rows if row["kind"] == "mixer"]
        keys = ("stage", "stride", "block", "operation")
        assert [tuple(row[key] for key in keys) for row in drawn] == blocks
        merges = [row["stage"] for row in rows if row["kind"] == "merge"]
        assert merges == [f"stage {n}" for n in range(2, len(arch.stages) + 1)]


def test_prices_of_a_device_are_found(explained):
    for _, found in explained:
        rows = {row["name"]: row for row in found["operations"]}
        mean = rows["stem"]["per_flop"]  # what a price of 1 is worth
        for name, row in rows.items():
            assert row["per_flop"] / mean == pytest.approx(PRICES.get(name, 1.0)), name
            assert row["rate"] == pytest.approx(1e9 / PRICES.get(name, 1.0)), name


def test_where_every_flop_costs_the_same_no_price_differs(micro, archs):
    found = explanation(archs[0], device(micro, lambda part: 1.0))
    assert [row["per_flop"] for row in found["rows"]] == pytest.approx([1.0] * len(found["rows"]))
    assert all(row["share"] == pytest.approx(row["flops_share"]) for row in found["stages"])


def test_the_sentence_names_the_greatest_stage_and_the_prices(told):
    most = max(told["stages"], key=lambda row: row["amount"])
    text = told["sentence"]
    assert most["name"] in text
    assert f"{most['share']:.0%} of the time with {most['flops_share']:.0%} of the FLOPs" in text
    prices = {row["name"]: row["per_flop"] for row in told["operations"]}
    assert f"a FLOP in aff costs {prices['aff']:.2g} times the mean" in text
    assert f"in the MLP {prices['mlp']:.2g}" in text


def test_a_batch_multiplies_the_rate_and_not_the_price(micro, archs):
    one = explanation(archs[0], device(micro, lambda part: 1.0))
    eight = explanation(archs[0], device(micro, lambda part: 1.0, batch=8))
    for a, b in zip(one["rows"], eight["rows"], strict=True):
        assert b["rate"] == pytest.approx(8 * a["rate"])
        assert b["per_flop"] == a["per_flop"]


def test_the_prediction_beside_what_was_measured(told, table):
    arch = Architecture.from_dict(told["arch"])
    prediction = Predictor.fit(table).predict(arch)
    assert told["predicted"]["value"] == pytest.approx(prediction.value)
    assert told["measured"] == {"lower": 0.1, "median": table.networks[arch], "upper": 9.0}
    assert told["difference"] == pytest.approx(prediction.value / table.networks[arch] - 1)
    assert abs(told["difference"]) < 0.01  # the device is 1.2 times the sum, which can be learnt


def test_memory_is_the_tables_own(told):
    arch = Architecture.from_dict(told["arch"])
    memory = told["memory"]
    assert memory["total"] == PeakMemory(**SIZES)(arch)
    assert memory["total"] == memory["weights"] + memory["activations"]
    assert "measured 1.23 MB" in dict(report.explained_rows(told))["peak memory"]
    assert len(memory["segments"]) == len(walk(arch))
    assert {"name": memory["at"], "bytes": memory["activations"]} in memory["segments"]


def test_a_part_without_a_figure_is_named(table, archs):
    lacking = {part: v for part, v in table.parts.items() if operation(part) != "mlp"}
    poor = Measured(table.quantity, table.conditions, lacking, {})
    with pytest.raises(TableMissing, match=r"lacks \d+ of the \d+ parts .* mlp at \d+x\d+x\d+; "):
        explanation(archs[0], poor)


def test_what_can_be_explained(tmp_path):
    run = finished(tmp_path)
    winner = Architecture.from_dict(run.read("best.json"))
    for subject in (run, run.name, run.path, run.file("best.json")):
        found, arch = subject_of(subject, tmp_path)
        assert arch == winner
        assert winner.id in found.label
    with pytest.raises(InvalidOption, match="a published network"):
        subject_of("zoo:shvit_s1", tmp_path)
    with pytest.raises(RunConflict, match="no winner yet"):
        subject_of(begun(tmp_path, "other"), tmp_path)
    broken = tmp_path / "arch.json"
    broken.write_text("{}")
    with pytest.raises(InvalidSpace, match=r"arch\.json"):
        subject_of(broken, tmp_path)


def test_a_mixer_without_flops_has_no_price(micro):
    block = Block.of("identity", 1)
    arch = Architecture(Stem("conv16"), (Stage(32, (block,)),))
    figures = {part: 1.0 for segment in walk(arch) for part in parts(segment, **SIZES)}
    found = explanation(arch, Measured("latency", HERE | SIZES, figures, {}))
    assert next(row for row in found["mixers"])["per_flop"] is None
    assert "identity" not in found["sentence"]
    report.explained_figure(found)
    assert "identity" in printed(screen.explained(found))


def test_energy_is_told_in_millijoules(micro, archs):
    found = explanation(archs[0], device(micro, lambda part: 1.0, quantity="energy"))
    assert found["unit"] == "mJ"
    assert all(row["rate"] is None for row in found["rows"])
    assert "of the energy with" in found["sentence"]
    shown = printed(screen.explained(found))
    assert "mJ" in shown or "uJ" in shown
    assert " ms" not in shown
    assert report.explained_figure(found).axes[0].get_xlabel().endswith("left energy, right FLOPs")


def test_the_bars_are_the_shares(told):
    left, right = report.explained_figure(told).axes
    heights = {"share": 0.0, "flops_share": 0.0}
    bars = [bar for bar in left.patches if bar.get_width() < 1]
    for bar in bars:
        middle = bar.get_x() + bar.get_width() / 2
        heights["share" if middle < round(middle) else "flops_share"] += bar.get_height()
    assert heights == pytest.approx({"share": 100, "flops_share": 100})
    named = [label.get_text() for label in right.get_yticklabels()]
    ends = [bar.get_x() + bar.get_width() for bar in right.patches]
    prices = {row["name"]: row["per_flop"] for row in told["operations"]}
    assert dict(zip(named, ends, strict=True))["aff"] == pytest.approx(prices["aff"])
    assert ends == sorted(ends)


def picture(path):
    drawn = Image.open(path)
    drawn.load()
    assert drawn.format == "PNG"
    assert drawn.width >= 800
    assert len(set(drawn.convert("L").resize((64, 64)).tobytes())) > 5  # not blank
    return path.read_bytes()


def test_the_page_of_an_explanation_stands_alone(tmp_path, told):
    run = begun(tmp_path)
    run.write("deep/explain.json", told)
    page = report.explained(run, "deep/explain")
    assert page == run.file("deep/explain.html")
    first = picture(run.file("deep/explain.png"))
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert not read.open
    assert not {"script", "link", "iframe"} & set(read.tags)
    assert len(read.images) == 1
    words = " ".join(read.text)
    for expected in (told["sentence"], told["id"], "sample's winner", "peak memory", "threads"):
        assert expected in words
    assert read.text.count("MLP") >= 1
    report.explained(run, "deep/explain")
    assert run.file("deep/explain.png").read_bytes() == first


def test_nothing_of_the_users_becomes_markup(tmp_path, told):
    run = begun(tmp_path, NASTY.replace("/", "|"))
    nasty = json.loads(json.dumps(told).replace("aff", "NASTY"))
    nasty = json.loads(json.dumps(nasty).replace("NASTY", json.dumps(NASTY)[1:-1]))
    nasty["of"] = nasty["conditions"]["processor"] = NASTY
    run.write("explain.json", nasty)
    text = report.explained(run).read_text(encoding="utf-8")
    assert "<script" not in text
    assert NASTY in "".join(Page(text).text)
    assert NASTY in printed(screen.explained(nasty))


@pytest.mark.parametrize("damage", [{}, [], {"rows": 3}, "nothing"])
def test_damaged_facts_are_named(tmp_path, damage):
    run = begun(tmp_path)
    run.write("explain.json", damage if damage != "nothing" else "{")
    with pytest.raises(RunConflict, match=r"explain\.json is damaged"):
        report.explained(run)
    with pytest.raises(RunConflict, match=r"has no other\.json"):
        report.explained(run, "other")


def printed(what):
    file = io.StringIO()
    Console(file=file, width=160).print(what)
    return file.getvalue()


def test_the_screen_says_it_mixer_by_mixer(told):
    shown = printed(screen.explained(told | {"files": {"page": "/tmp/x/explain.html"}}))
    assert told["sentence"] in shown
    for row in told["operations"]:
        assert report.sum_cells(told, row)[0] in shown
    for row in told["rows"]:
        assert f"{row['share']:.1%}" in shown
    assert "/tmp/x/explain.html" in shown
    assert shown.count("hilo") == printed(screen.explained(told)).count("hilo")


POINTS = [
    {
        "id": f"{n:012x}",
        "stem": ("conv4", "conv8", "patch16")[n % 3],
        "predicted": 10.0 + n,
        "low": 0.9 * (10 + n),
        "high": 1.1 * (10 + n),
        "measured": (10 + n) * (1.2 if n % 10 == 0 else 1 + 0.01 * (n % 5 - 2)),
    }
    for n in range(40)
]


def summary(points=POINTS, **others):
    part = {"kind": "mixer", "spec": ["hilo", 32, [["window", 2]]], "shape": [32, 8, 8]}
    return {
        "format": 1,
        "run": "latency-micro",
        "space": "micro",
        "image": 64,
        "classes": 10,
        "quantity": "latency",
        "conditions": HERE | SIZES | {"processor": "a processor", "torch": "2.15.0"},
        "parts": 64,
        "networks": len(points),
        "reference_ms": 0.4321,
        "calibrated": bool(points),
        "quality": {"level": 0.9, "error": 0.02, "terms": ["constant", "sum"]},
        "points": list(points),
        "fastest": [part | {"value": 0.001}],
        "slowest": [part | {"value": 1.5}, part | {"kind": "local", "spec": [32], "value": 1.0}],
        "seconds": {"measuring": 75.0},
        **others,
    }


def test_errors_are_those_of_the_points():
    found = report.judged(POINTS)
    predicted = [point["predicted"] for point in POINTS]
    measured = [point["measured"] for point in POINTS]
    assert found["coverage"] == pytest.approx(36 / 40)
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    assert found["error"] == pytest.approx((errors[19] + errors[20]) / 2)
    assert found["ninetieth"] >= errors[35]
    assert found["spearman"] == pytest.approx(spearmanr(predicted, measured)[0])
    assert set(report.judged([]).values()) == {None}
    assert report.judged(POINTS[:3])["spearman"] is None
    assert report.judged([POINTS[0]] * 9)["spearman"] is None


def test_calibration_shows_every_network_and_the_band():
    left, right = report.calibration_figure(POINTS, {"level": 0.9}).axes
    marks = [
        c for c in left.collections if len(c.get_offsets()) and c.get_label() != "90% interval"
    ]
    drawn = sorted(tuple(map(float, xy)) for c in marks for xy in c.get_offsets())
    given = sorted((p["predicted"], p["measured"]) for p in POINTS)
    assert [value for point in drawn for value in point] == pytest.approx(
        [value for point in given for value in point]
    )
    (band,) = right.patches
    assert band.get_y() == pytest.approx(-10)
    assert band.get_height() == pytest.approx(20)
    assert left.get_title().endswith("90% within their intervals")
    labels = left.get_legend_handles_labels()[1]
    assert {"conv4", "conv8", "patch16", "90% interval"} <= set(labels)


@pytest.mark.parametrize(
    "points",
    [
        [],
        POINTS[:1],
        [POINTS[3]] * 4,
        [p | {"low": p["predicted"], "high": p["predicted"]} for p in POINTS],
        [p | {"predicted": 1e-4, "measured": 2e3} for p in POINTS],
        [p | {"stem": NASTY} for p in POINTS],
    ],
    ids=["none", "one", "equal", "uncalibrated", "far", "nasty"],
)
@pytest.mark.parametrize("quantity", ["latency", "energy"])
def test_any_points_can_be_drawn_and_told(tmp_path, points, quantity):
    run = Run.create(tmp_path, "m", {"job": "measure"})
    given = summary(points, quantity=quantity)
    run.write("summary.json", given)
    picture(report.calibration(run))
    text = report.measured_html(run).read_text(encoding="utf-8")
    assert "<script" not in text
    assert not Page(text).open
    unit = "milliseconds" if quantity == "latency" else "millijoules"
    shown = printed(screen.measured(given))
    assert unit in shown
    assert unit in text
    calibrated = bool(points) and any(p["low"] < p["high"] for p in points)
    assert ("coverage" in shown) == calibrated
    assert ("too few" in shown) != calibrated


def test_the_page_of_a_table_stands_alone(tmp_path):
    run = Run.create(tmp_path, "m", {"job": "measure"})
    run.write("summary.json", summary())
    report.calibration(run)
    read = Page(report.measured_html(run).read_text(encoding="utf-8"))
    assert not read.open
    assert len(read.images) == 1
    words = " ".join(read.text)
    for expected in ("mixer hilo, 32, window 2", "1.5 ms", "a processor", "2.15.0", "64 parts"):
        assert expected in words, expected


def test_the_screen_tells_a_table_and_how_to_use_it():
    shown = printed(screen.measured(summary(files={"table.csv": "runs/latency-micro/table.csv"})))
    for expected in ("a processor", "64 parts", "40 networks", "90.0% of 40", "runs/latency-micro"):
        assert expected in shown, expected
    command = shown.split("Next: ")[1].replace("\n", " ").split()
    limit = Limit.parse(command[command.index("--budget") + 1])
    assert limit.where == "table:runs/latency-micro"
    kept = sum(point["measured"] <= 1.01 * limit.high / 1e6 for point in POINTS)
    assert 15 <= kept <= 25
    given = printed(screen.measured(summary(next="mixnas search --budget 20ms@cpu")))
    assert "Next: mixnas search --budget 20ms@cpu" in given


def test_the_interval_told_is_the_predictors_own():
    quality = {"level": 0.9, "down": 0.05, "up": 0.06}
    shown = printed(screen.measured(summary(quality=quality)))
    assert "-5.0% to +6.0% of a prediction for 90% of networks" in shown
    bare = [p | {"low": p["predicted"], "high": p["predicted"]} for p in POINTS]
    shown = printed(screen.measured(summary(bare, quality=quality)))  # its folds were too small
    assert "-5.0% to +6.0%" in shown
    assert "coverage" not in shown


def test_a_foreign_table_need_not_say_much():
    foreign = summary([], conditions=dict(SIZES), reference_ms=None, seconds={"measuring": 0.0})
    shown = printed(screen.measured(foreign))
    assert "a device that the table does not name" in shown
    assert "time spent" not in shown
    assert Limit.parse(shown.split("--budget ")[1].strip()).where == "table:latency-micro"


@pytest.mark.parametrize("damage", [{}, [], {"points": [{}]}])
def test_a_damaged_summary_is_named(tmp_path, damage):
    run = Run.create(tmp_path, "m", {"job": "measure"})
    run.write("summary.json", damage)
    for make in (report.calibration, report.measured_html):
        with pytest.raises(RunConflict, match=r"summary\.json is damaged"):
            make(run)
