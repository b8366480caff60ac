"""Retrainings and exports in `mixnas show` and `mixnas runs`: how far, and what comes next."""

import io
import json
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
from finished_run import begun, finished
from retrained_run import begun_training, curve, exports, trained

from mixnas import report, screen
from mixnas.errors import RunConflict
from mixnas.jobs.retrain_settings import RetrainSettings
from mixnas.jobs.runs import runs
from mixnas.jobs.show import show
from mixnas.run import Run
from mixnas.terminal import console


def said(renderable):
    text = io.StringIO()
    console(text).print(renderable)
    return text.getvalue()


def test_a_finished_retraining_is_told_with_its_figures_and_how_to_load_it(tmp_path):
    run = trained(tmp_path, "alone")
    report.retrained(run)
    found = show("alone", tmp_path)
    summary = run.read("summary.json")
    assert {key: found[key] for key in summary} == summary
    assert (found["job"], found["state"], found["exports"]) == ("retrain", "finished", {})
    assert set(found["files"]) >= {"model.safetensors", "metrics.json", "report.html"}
    assert found["next"] == f"mixnas export alone --runs {tmp_path} --to onnx"
    json.dumps(found)
    out = said(screen.found(found))
    for expected in (
        f"{summary['top1']:.2%} +- {summary['standard_error']:.2%} of 360 images",
        "20 epochs of recipe quick",
        found["next"],
        f"mixnas show alone --runs {tmp_path}",
        "open_model",
    ):
        assert expected in out
    assert said(screen.retrained(summary))  # a bare summary will do


def test_a_trained_network_is_loaded_by_the_lines_that_are_printed(tmp_path):
    trained(tmp_path, "alone")
    lines = show("alone", tmp_path)["load"].replace("IMAGE", str(tmp_path / "x.png"))
    make = f"from PIL import Image\nImage.new('L', (20, 30)).save({str(tmp_path / 'x.png')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", make + lines],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in set("0123456789")


def test_an_unfinished_retraining_says_where_it_is_and_how_to_go_on(tmp_path):
    run = begun_training(tmp_path, "half", recipe="deit", rate=0.002, sync_norms=True)
    assert show("half", tmp_path)["state"] == "planned"
    run.write("metrics.csv", curve(0))
    assert show("half", tmp_path)["progress"] == ""
    run.write("metrics.csv", curve(7))
    found = show("half", tmp_path)
    assert (found["state"], found["progress"]) == (
        "training",
        "epoch 7 of 20, step 112 of 320 on record",
    )
    words = shlex.split(found["command"])
    assert words[:3] == ["mixnas", "retrain", "best.json"]
    asked = dict(pairwise(words))
    assert (asked["--recipe"], asked["--rate"], asked["--name"]) == ("deit", "0.002", "half")
    assert "--sync-norms" in words
    assert set(run.settings) >= {field.name for field in fields(RetrainSettings)}
    out = said(screen.found(found))
    assert "not finished: training" in out
    assert found["command"] in out


def test_weights_are_needed_to_be_finished(tmp_path):
    run = trained(tmp_path)
    run.file("model.safetensors").unlink()
    assert show("retrain", tmp_path)["state"] == "training"


def test_a_search_names_its_retraining_its_exports_and_what_comes_next(tmp_path):
    search = finished(tmp_path, "sample")
    found = show("sample", tmp_path)
    assert found["retrainings"] == []
    assert found["next"] == f"mixnas retrain sample --runs {tmp_path}"

    kept = begun_training(search.path, of="sample")
    kept.write("metrics.csv", curve(3))
    (one,) = show("sample", tmp_path)["retrainings"]
    assert (one["state"], one["top1"], one["exports"]) == ("training", None, {})
    found = show("sample", tmp_path)
    assert (
        found["next"] == one["command"] == f"mixnas retrain sample --data digits --name retrain "
        f"--runs {tmp_path}"
    )
    assert "epoch 3 of 20" in said(screen.found(found))

    kept = trained(search.path, of="sample")
    found = show("sample", tmp_path)
    assert found["next"] == f"mixnas export sample --runs {tmp_path} --to onnx"
    out = said(screen.found(found))
    assert f"{kept.read('summary.json')['top1']:.2%} +- " in out
    assert found["next"] in out

    record = exports(kept)
    found = show("sample", tmp_path)
    assert found["retrainings"][0]["exports"] == record
    path = kept.path / "export" / "model.onnx"
    assert found["next"] == f"mixnas predict {path} IMAGE"
    out = said(screen.found(found))
    for expected in (*record, "3.0e-06", "96.25% after", "model.int8.onnx"):
        assert expected in out
    assert "accuracy ranks architectures" in out  # the caveat of the supernet's figure stays
    json.dumps(found)


def test_a_retraining_in_a_search_is_shown_by_its_path(tmp_path, monkeypatch):
    search = finished(tmp_path, "sample")
    run = trained(search.path, of="sample")
    second = trained(search.path, "second", of="sample")
    exports(run)
    found = show(run.path)
    assert found["again"] == f"mixnas show {run.path}"
    assert "onnx" in said(screen.exported(found))
    assert show(second.path)["next"] == f"mixnas export {second.path} --to onnx"
    assert [one["name"] for one in show(search)["retrainings"]] == ["retrain", "second"]
    monkeypatch.chdir(tmp_path.parent)
    assert show(run.path.relative_to(tmp_path.parent))["run"] == "retrain"


def test_runs_lists_searches_and_retrainings(tmp_path):
    search = finished(tmp_path, "sample")
    trained(search.path, of="sample")
    begun(tmp_path, "fresh")
    alone = trained(tmp_path, "alone")
    begun_training(tmp_path, "half").write("metrics.csv", curve(2))
    rows = {row["run"]: row for row in runs(tmp_path)}
    assert {name: row["job"] for name, row in rows.items()} == {
        "sample": "search",
        "fresh": "search",
        "alone": "retrain",
        "half": "retrain",
    }
    top1 = alone.read("summary.json")["top1"]
    told = {name: row["retrained"] and row["retrained"]["top1"] for name, row in rows.items()}
    assert told == {"sample": top1, "fresh": None, "alone": top1, "half": None}
    assert (rows["sample"]["accuracy"], rows["alone"]["accuracy"]) == (0.875, None)
    assert rows["alone"]["flops"] == 3_210_000
    assert (rows["alone"]["state"], rows["half"]["state"]) == ("finished", "training")
    out = said(screen.runs(runs(tmp_path)))
    assert out.count(f"{top1:.1%}") == 2
    assert "3.21 MFLOPs" in out


def test_exports_without_a_retraining_are_told_too(tmp_path):
    search = finished(tmp_path, "sample")
    exports(search)
    found = show("sample", tmp_path)
    assert found["next"] == f"mixnas retrain sample --runs {tmp_path}"
    assert "weights that the winner inherits" in said(screen.found(found))

    settings = {"job": "export", "subject": "zoo:shvit_s1", "source": {"zoo": "shvit_s1"}}
    with Run.create(tmp_path, "shvit_s1-export", settings) as loose:
        assert show(loose)["state"] == "planned"
        assert "mixnas export zoo:shvit_s1" in said(screen.found(show(loose)))
        exports(loose)
    found = show("shvit_s1-export", tmp_path)
    assert (found["job"], found["state"]) == ("export", "finished")
    out = said(screen.found(found))
    assert f"mixnas predict {loose.path / 'export' / 'model.onnx'} IMAGE" in out
    assert "model.int8.onnx" in out
    rows = {row["run"]: row for row in runs(tmp_path)}
    assert rows["shvit_s1-export"]["state"] == "finished"
    assert "None" not in said(screen.runs(list(rows.values())))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("summary.json", '{"top1'),
        ("summary.json", '{"top1": 0.9, "standard_error": 0.1, "images": 3, "label": "x"}'),
        ("export/exports.json", "[]"),
        ("export/exports.json", '{"onnx": {}}'),
        ("export/exports.json", '{"onnx": 3'),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, text):
    search = finished(tmp_path, "sample")
    run = trained(search.path, of="sample")
    run.write(name, text)
    for shown in (search.path, run.path):
        with pytest.raises(RunConflict, match=name) as raised:
            show(shown)
        assert "\n" not in str(raised.value)
    (row,) = runs(tmp_path)
    assert row["retrained"] == {"state": "damaged", "top1": None, "flops": None}
    assert "damaged" in said(screen.runs([row]))


def test_a_damaged_curve_is_one_line(tmp_path):
    run = begun_training(tmp_path, "half")
    for text in ("", "epoch,step\n1,0\n", "epoch\nx\n", "epoch,step\nx,y\n"):
        run.write("metrics.csv", text)
        with pytest.raises(RunConflict, match=r"metrics\.csv") as raised:
            show("half", tmp_path)
        assert "\n" not in str(raised.value)
    assert runs(tmp_path)[0]["state"] == "training"


def test_predictions_are_a_line_an_image_and_errors_are_left_to_the_command():
    guesses = [
        {"label": "[red]cat", "probability": 0.5},
        {"label": "dog", "probability": 0.25},
    ]
    out = said(
        screen.predicted(
            [{"image": "a[b].png", "classes": guesses}, {"image": "x.png", "error": "broken"}]
        )
    )
    assert "[red]cat 50.0%" in out
    assert "dog 25.0%" in out
    assert "a[b].png" in out
    assert "x.png" not in out
    assert said(screen.predicted([{"image": "x.png", "error": "broken"}]))
