"""`mixnas measure` and a search that holds what was measured, on a device that is computed."""

import json
from pathlib import Path

import pandas
import pytest
from finished_run import finished
from synthetic_device import Device, takes

import mixnas
from mixnas.arch import Architecture
from mixnas.cost.measured import Measured, parts_of
from mixnas.cost.predictor import Predictor
from mixnas.errors import InvalidOption, MixnasError, RunConflict, TooNoisy
from mixnas.jobs import explaining, measuring, whole
from mixnas.jobs.runs import runs
from mixnas.jobs.settings import Silent
from mixnas.jobs.show import show
from mixnas.jobs.swept import swept
from mixnas.network import build
from mixnas.run import Run
from mixnas.space import SearchSpace

SMALL = {"space": "micro", "image": 32, "networks": 40, "device": "cpu", "threads": 1}
SPACE = measuring.sized(SearchSpace.load("micro"), 32, None)
PARTS = len(parts_of(SPACE))


class Heard(Silent):
    def __init__(self):
        self.notes, self.plans = [], []

    def note(self, text):
        self.notes.append(text)

    def plan(self, plan):
        self.plans.append(dict(plan))


@pytest.fixture
def device(monkeypatch):
    found = Device()
    for module in (measuring, whole, explaining):
        monkeypatch.setattr(module, "stopwatch", found)
    return found


def test_a_space_is_measured_whole_and_predicted(device, tmp_path):
    heard = Heard()
    run = mixnas.measure(**SMALL, runs=tmp_path, listener=heard)
    assert device.figures == PARTS + 40
    table = Measured.load(run.file("table.csv"))
    assert table.missing(SPACE) == []
    assert len(table.networks) == 40
    assert table.conditions["threads"] == 1
    assert {"torch", "processor", "runtime", "precision", "batch"} <= set(table.conditions)
    predictor = Predictor.from_dict(run.read("predictor.json"))
    for arch in measuring.Bench(SPACE, None, networks=50).architectures()[40:]:
        truth = takes(build(arch, SPACE.classes).eval(), (3, 32, 32))
        assert predictor.predict(arch).value == pytest.approx(truth, rel=0.02)
    summary = run.read("summary.json")
    assert len(summary["points"]) == 40
    assert run.file("report.html").stat().st_size > 10_000
    assert heard.plans[0]["run"] == str(run.path)


def test_what_is_measured_is_not_measured_again(device, tmp_path):
    first = mixnas.measure(**SMALL, runs=tmp_path)
    before = first.file("table.csv").read_bytes()
    device.figures = 0
    again = mixnas.measure(**SMALL, runs=tmp_path)
    assert device.figures == 0
    assert again.file("table.csv").read_bytes() == before


@pytest.mark.parametrize("at", [2, PARTS + 5])
def test_an_interrupted_measuring_goes_on(device, tmp_path, at):
    device.stops = at
    with pytest.raises(KeyboardInterrupt):
        mixnas.measure(**SMALL, runs=tmp_path)
    run = mixnas.measure(**SMALL, runs=tmp_path)
    # Two figures of a plan are kept with the first writing, the one that was interrupted is not.
    assert device.figures <= PARTS + 40 + 3
    assert Measured.load(run.file("table.csv")).missing(SPACE) == []


def test_a_refused_figure_is_measured_later(device, tmp_path):
    device.refuses = {5, 6, 30}
    heard = Heard()
    run = mixnas.measure(**SMALL, runs=tmp_path, listener=heard)
    assert device.figures == PARTS + 40 + 3
    assert len([note for note in heard.notes if "busy machine" in note]) == 3
    assert Measured.load(run.file("table.csv")).missing(SPACE) == []


def test_a_busy_machine_ends_it_and_keeps_what_was_measured(device, tmp_path):
    device.refuses = set(range(10, 10_000))
    with pytest.raises(TooNoisy):
        mixnas.measure(**SMALL, runs=tmp_path)
    (path,) = tmp_path.glob("*/table.csv")
    assert len(Measured.load(path).parts) >= 7
    device.refuses = set()
    assert Run.open(path.parent).settings["job"] == "measure"
    mixnas.measure(**SMALL, runs=tmp_path)
    assert Measured.load(path).missing(SPACE) == []


def test_other_conditions_are_refused_and_named(device, tmp_path):
    mixnas.measure(**SMALL, runs=tmp_path, name="mine")
    with pytest.raises(RunConflict, match=r"conditions.batch: was 1, now 4"):
        mixnas.measure(**SMALL, batch=4, runs=tmp_path, name="mine")
    other = mixnas.measure(**SMALL, batch=4, runs=tmp_path)
    assert other.name != "mine"


def test_a_damaged_table_says_what_to_do(device, tmp_path):
    run = mixnas.measure(**SMALL, runs=tmp_path)
    run.file("table.csv").write_text("nonsense")
    run.file("summary.json").unlink()
    with pytest.raises(RunConflict, match="is damaged; remove it and repeat"):
        mixnas.measure(**SMALL, runs=tmp_path)


def test_a_dry_run_keeps_nothing(device, tmp_path):
    plan = mixnas.measure(**SMALL, runs=tmp_path / "runs", dry_run=True)
    assert f"{PARTS} parts and 40 whole networks" in plan["to measure"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "tpu"}, "devices here: cpu"),
        ({"runtime": "tensorrt"}, "no runtime 'tensorrt'"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"threads": 0}, "threads 0: at least 1"),
        ({"batch": -1}, "batch -1: at least 1"),
        ({"networks": -1}, "networks -1"),
        ({"cost": "params"}, "no cost 'params'"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "in fp32 only"),
        ({"table": "a.csv", "template": "b"}, "--from and --template given together"),
        ({"cost": "energy"}, "tells no energy"),
    ],
)
def test_what_cannot_be_measured_is_refused(device, tmp_path, wrong, message):
    with pytest.raises(MixnasError, match=message):
        mixnas.measure(**{**SMALL, **wrong}, runs=tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/table.csv"))


def test_a_table_measured_elsewhere_is_taken_over(device, tmp_path):
    made = mixnas.measure(**SMALL, runs=tmp_path)
    phone = tmp_path / "phone.csv"
    phone.write_bytes(made.file("table.csv").read_bytes())
    device.figures = 0
    run = mixnas.measure(space="micro", image=32, table=phone, runs=tmp_path)
    assert device.figures == 0
    assert run.read("summary.json")["networks"] == 40
    with pytest.raises(MixnasError, match="image"):
        mixnas.measure(space="micro", image=64, table=phone, runs=tmp_path, name="other")
    lines = phone.read_text().splitlines()
    phone.write_text("\n".join(lines[: len(lines) // 2]))
    with pytest.raises(MixnasError, match="are missing"):
        mixnas.measure(space="micro", image=32, table=phone, runs=tmp_path, name="half")


def test_it_is_shown_and_listed(device, tmp_path):
    run = mixnas.measure(**SMALL, runs=tmp_path)
    shown = show(run, tmp_path)
    assert (shown["job"], shown["state"]) == ("measure", "finished")
    assert set(shown["files"]) >= {"table.csv", "predictor.json", "report.html"}
    assert "--batch 1" in shown["command"]
    assert "--networks=40" in shown["command"]
    assert runs(tmp_path)[0]["job"] == "measure"
    run.file("summary.json").unlink()
    unfinished = show(run, tmp_path)
    assert unfinished["state"] == "measuring"
    assert unfinished["progress"] == f"{PARTS + 40} figures on record"


def test_a_winner_is_explained(device, tmp_path):
    run = finished(tmp_path)
    found = mixnas.measure(explain=run, device="cpu", threads=1, runs=tmp_path)
    arch = Architecture.from_dict(run.read("best.json"))
    assert found["id"] == arch.id
    assert sum(row["amount"] for row in found["rows"]) == pytest.approx(found["sum"])
    space = SearchSpace.from_dict(run.settings["inlined"])
    truth = takes(build(arch, space.classes).eval(), (3, space.image, space.image))
    assert found["measured"]["median"] == pytest.approx(truth)
    assert found["memory"]["measured"] > found["memory"]["weights"]
    assert all(Path(path).is_file() for path in found["files"].values())
    with pytest.raises(MixnasError, match="published network"):
        mixnas.measure(explain="zoo:shvit_s1", runs=tmp_path)


SEARCH = {"space": "micro", "image": 32, "epochs": 1, "trials": 10, "workers": 1, "device": "cpu"}
ray = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(300)]


def searched(tmp_path, *budgets, **more):
    return mixnas.search(list(budgets), **{**SEARCH, **more}, runs=tmp_path, name="found")


def without(path, stage):
    """Return what a run's stages say, but for one."""
    said = json.loads(path.read_text())
    said.pop(stage)
    return said


def kept(run, column, limit):
    """Assert that no trial's upper end is beyond a limit; return the winner."""
    trials = pandas.read_csv(run.file("trials.csv"))
    assert (trials[column] <= limit).all()
    return run.read("summary.json")["winner"]


@pytest.fixture
def table(device, tmp_path):
    """Return a table whose device another machine could have been."""
    run = mixnas.measure(**SMALL, runs=tmp_path / "tables", name="tiny")
    path = tmp_path / "phone.csv"
    path.write_bytes(run.file("table.csv").read_bytes())
    return path


class TestSearch:
    pytestmark = ray

    def test_a_limit_is_kept_on_several_devices(self, device, table, tmp_path):
        run = searched(tmp_path, "1.2ms@cpu", f"1.4ms@table:{table}", "1.5Mparams")
        winner = kept(run, "latency_ms@cpu", 1.2)
        kept(run, f"latency_ms@table:{table}", 1.4)
        assert winner["latency_ms@cpu"]["median"] <= 1.2
        assert winner[f"latency_ms@table:{table}"] is None  # a phone is not here
        told = winner["predicted"][f"latency_ms@table:{table}"]
        assert told["low"] <= told["value"] <= told["high"] <= 1.4
        assert run.read("summary.json")["kept"]
        shown = mixnas.search(
            ["1.2ms@cpu", f"1.4ms@table:{table}", "1.5Mparams"],
            **SEARCH,
            runs=tmp_path,
            name="found",
        )
        assert shown.read("summary.json") == run.read("summary.json")

    def test_where_no_finalist_keeps_it_the_search_goes_on(self, device, tmp_path):
        device.slower = 1.4  # whole networks are slower than the calibration foretold
        run = searched(tmp_path, "1.4-1.6ms")
        summary = run.read("summary.json")
        assert summary["kept"]
        assert 1.4 <= summary["winner"]["latency_ms"]["median"] <= 1.6
        assert summary["tightened"]
        assert run.file("log.1.jsonl").is_file()
        numbers = pandas.read_csv(run.file("trials.csv"))["number"]
        assert numbers.is_unique
        arch = Architecture.from_json(run.file("best.json").read_text())
        truth = 1.4 * takes(build(arch, SPACE.classes).eval(), (3, 32, 32))
        assert truth <= 1.6
        run.file("summary.json").unlink()
        device.slower = 1.0  # what was measured once decides, however fast the device is now
        again = searched(tmp_path, "1.4-1.6ms").read("summary.json")
        assert again["winner"] == summary["winner"]
        assert again["tightened"] == summary["tightened"]

    def test_where_nothing_keeps_it_the_nearest_is_named(self, device, tmp_path):
        device.slower = 50.0
        run = searched(tmp_path, "1.4ms")
        summary = run.read("summary.json")
        assert not summary["kept"]
        found = json.loads(run.file("finalists.json").read_text())
        least = min(entry["latency_ms"]["median"] for entry in found)
        assert summary["winner"]["latency_ms"]["median"] == least

    def test_a_refusing_stopwatch_leaves_the_prediction(self, device, tmp_path, monkeypatch):
        def refuse(self, modules, shape, rounds=20):
            raise TooNoisy("busy machine: a test says so; repeat later")

        monkeypatch.setattr("synthetic_device.Watch.interleave", refuse)
        run = searched(tmp_path, "1.4ms")
        winner = run.read("summary.json")["winner"]
        assert winner["latency_ms"] is None
        assert winner["predicted"]["latency_ms"]["high"] <= 1.4

    def test_a_sweep_over_different_costs_shares_one_supernet(self, device, table, tmp_path):
        budgets = ["0.008GFLOPs", ["1.2ms@cpu", "9MFLOPs"], f"1.4ms@table:{table}"]
        common = {key: value for key, value in SEARCH.items() if key != "space"}
        words = {**common, "space": ["micro"], "runs": tmp_path / "runs", "name": "study"}
        run = mixnas.sweep(budgets, **words)
        rows = pandas.read_csv(run.file("sweep.csv"))
        assert list(rows["state"]) == ["finished"] * 3
        assert [row["search"] for row in swept(run)["rows"]] == list(rows["search"])
        assert rows["search"][0] == "micro-8MFLOPs-seed0"
        records = [json.loads(path.read_text()) for path in run.path.glob("*/supernet.json")]
        assert len({record["weights"] for record in records}) == 1
        assert len(records) == 4
        (measured,) = (found["run"] for found in runs(tmp_path / "runs") if found["run"] != "study")
        figures = device.figures
        (run.path / rows["search"][0] / "stages.json").write_text(
            json.dumps(without(run.path / rows["search"][0] / "stages.json", "finalists"))
        )
        (run.path / rows["search"][0] / "report.html").unlink()
        assert mixnas.sweep(budgets, **words).path == run.path  # one was cut off at its very end
        assert (run.path / rows["search"][0] / "report.html").is_file()
        assert device.figures == figures, measured

    def test_memory_is_limited_and_measured_beside(self, device, tmp_path):
        run = searched(tmp_path, "0.6MB", "8MFLOPs")
        winner = kept(run, "memory_mb", 0.6)
        assert 0.1 < winner["memory_mb_measured"] < 0.9


def test_a_table_that_is_not_there_is_one_line(device, tmp_path):
    with pytest.raises(MixnasError, match=r"none\.csv"):
        mixnas.search("8ms@table:none.csv", space="micro", runs=tmp_path)
    with pytest.raises(InvalidOption, match="devices here"):
        mixnas.search("8ms@cuda:7", space="micro", runs=tmp_path)
