"""`mixnas sweep --retrain`: winners trained for good, the beaten stopped, through a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas
import psutil
import pytest
import torch
from safetensors.torch import load_file

from mixnas.jobs.halving import Figure, race
from mixnas.jobs.retrain import retrain
from mixnas.run import Run

pytestmark = [pytest.mark.drill, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

WORDS = [
    "sweep", "--budget", "7MFLOPs", "--seed", "0,1", "--space", "micro", "--epochs", "1",
    "--trials", "4", "--workers", "1", "--sampler", "random", "--retrain", "3", "--name", "study",
]  # fmt: skip
NAMES = ("micro-7MFLOPs-seed0", "micro-7MFLOPs-seed1")


def command(*words):
    return [sys.executable, "-c", "from mixnas.cli import main; main()", *words]


def call(folder, *words):
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, check=False, timeout=500
    )


def rows(sweep, name):
    path = sweep / name / "retrain" / "metrics.csv"
    return len(pandas.read_csv(path)) if path.is_file() else 0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep that was killed as soon as one retraining had reached the rung, and went on."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep = folder / "runs" / "study"
    with subprocess.Popen(
        command(*WORDS), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not rows(sweep, NAMES[0]):
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    for child in family:
        if child.is_running():
            child.kill()
    status = call(folder, "sweep", "--status", "--json")
    finished = call(folder, "sweep", "study")
    assert finished.returncode == 0, finished.stderr
    return folder, sweep, json.loads(status.stdout), finished


def test_one_reaches_the_end_and_the_other_says_where_it_was_stopped(study):
    _, sweep, status, finished = study
    assert status["state"] == "stopped"
    assert {row["retrained"] for row in status["rows"]} == {None}
    table = pandas.read_csv(sweep / "sweep.csv").set_index("search")
    assert len(set(table["id"])) == 2
    curves = {n: pandas.read_csv(sweep / n / "retrain" / "metrics.csv") for n in NAMES}
    first = {
        name: {1: Figure(curve["val_accuracy"][0], curve["val_loss"][0])}
        for name, curve in curves.items()
    }
    (winner,), stopped = race(NAMES, (1,), first).alive, race(NAMES, (1,), first).stopped
    (beaten,) = stopped
    summary = json.loads((sweep / winner / "retrain" / "summary.json").read_text())
    assert table.loc[winner, "retrained"] == pytest.approx(summary["top1"])
    assert (len(curves[winner]), len(curves[beaten])) == (3, 1)
    assert not (sweep / beaten / "retrain" / "metrics.json").exists()  # test images were not read
    assert table.loc[beaten, "stopped_at"] == 1
    assert table.loc[beaten, "against"] == pytest.approx(stopped[beaten].against.accuracy)
    assert "stopped after epoch 1 of 3" in table.loc[beaten, "retraining"]
    assert "stopped after epoch 1 of 3" in finished.stderr
    page = (sweep / "report.html").read_text()
    assert "stopped after epoch 1 of 3" in page
    assert f"{summary['top1']:.1%}" in page
    assert f"{summary['top1']:.1%}" in finished.stdout


def test_a_repeat_changes_nothing_and_pauses_leave_no_trace(study):
    folder, sweep, _, _ = study
    before = {path: path.read_bytes() for path in sweep.rglob("retrain/*") if path.is_file()}
    table = (sweep / "sweep.csv").read_bytes()
    again = call(folder, *WORDS)
    assert again.returncode == 0, again.stderr
    assert {p: p.read_bytes() for p in sweep.rglob("retrain/*") if p.is_file()} == before
    assert (sweep / "sweep.csv").read_bytes() == table
    (winner,) = [name for name in NAMES if (sweep / name / "retrain/model.safetensors").is_file()]
    whole = retrain(Run.open(sweep / winner), epochs=3, name="whole", device="cpu")
    one, other = (load_file(sweep / winner / n / "model.safetensors") for n in ("retrain", "whole"))
    assert whole.path.parent == sweep / winner
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_its_retrainings_are_runs_like_any_other(study):
    folder, sweep, _, _ = study
    for name in NAMES:
        shown = json.loads(call(folder, "show", f"runs/study/{name}/retrain", "--json").stdout)
        done = (sweep / name / "retrain" / "summary.json").is_file()
        assert shown["state"] == ("finished" if done else "training")
        assert "--epochs 3" in shown["command"]
    told = json.loads(call(folder, "show", "study", "--json").stdout)
    assert [row["retrained_in"] for row in told["rows"]] == [f"{name}/retrain" for name in NAMES]
