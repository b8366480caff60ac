"""A sweep as a user runs it: one supernet, one table, whatever kills it meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas
import psutil
import pytest

import mixnas
from mixnas.jobs.swept import swept
from mixnas.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

BUDGETS, SEEDS = ("6MFLOPs", "7MFLOPs", "8MFLOPs"), (0, 1)
WORDS = [
    "sweep", "--budget", ",".join(BUDGETS), "--seed", "0,1", "--space", "micro", "--epochs", "2",
    "--trials", "12", "--workers", "2", "--storage", "sqlite:///shown.db", "--name", "study",
]  # fmt: skip


def command(*words):
    return [sys.executable, "-c", "from mixnas.cli import main; main()", *words]


def call(folder, *words):
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, check=False, timeout=800
    )


def done(log: Path) -> int:
    return log.read_text().count('"tell"') if log.is_file() else 0


def trains(status: Path) -> bool:
    """Tell whether a sweep's supernet has begun to train."""
    if not status.is_file():
        return False
    told = json.loads(status.read_text())
    return told["stage"] == "training" and told["done"] > 2


def kill_when(folder, ready):
    """Begin the sweep, and kill it with all its workers as soon as it is ready for that."""
    with subprocess.Popen(
        command(*WORDS), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 400
        while not ready() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep that was killed while its supernet trained, and while it searched, and went on."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep = folder / "runs" / "study"
    kill_when(folder, lambda: trains(sweep / "status.json"))
    logs = [
        sweep / f"micro-{budget}-seed{seed}" / "log.jsonl" for seed in SEEDS for budget in BUDGETS
    ]
    kill_when(folder, lambda: sum(map(done, logs)) > 20)
    status = call(folder, "sweep", "--status")
    finished = call(folder, *WORDS)
    assert finished.returncode == 0, finished.stderr
    return folder, sweep, status, finished


def test_one_supernet_one_table_and_every_trial_once(study):
    _, sweep, _, finished = study
    table = pandas.read_csv(sweep / "sweep.csv")
    assert list(table["state"]) == ["finished"] * 6
    assert list(table["budget"]) == list(BUDGETS) * 2
    assert list(table["seed"]) == [0, 0, 0, 1, 1, 1]
    assert (table["flops"] <= [float(b.removesuffix("MFLOPs")) * 1e6 for b in BUDGETS] * 2).all()
    trained = [path.parent.name for path in sweep.glob("*/supernet.json")]
    assert len(trained) == 7
    records = [json.loads((sweep / name / "supernet.json").read_text()) for name in trained]
    assert len({record["weights"] for record in records}) == 1
    assert [r["source"] for r in records if r["source"] is None] == [None]
    for run in table["search"]:
        lines = (sweep / run / "log.jsonl").read_text().splitlines()[1:]
        told = [json.loads(line) for line in lines]
        numbers = [line["tell"] for line in told if "tell" in line]
        assert sorted(numbers) == list(range(12))
        archs = [json.dumps(line["arch"]) for line in told if "ask" in line]
        assert len(set(archs)) == 12
    assert "6 of 6 searches done" in finished.stdout


def test_the_storage_shows_each_search_in_a_study_of_its_own(study):
    folder, sweep, _, _ = study
    address = f"sqlite:///{folder / 'shown.db'}"
    names = [f"study/micro-{budget}-seed{seed}" for budget in BUDGETS for seed in SEEDS]
    assert sorted(optuna.get_all_study_names(address)) == sorted(names)
    for name in names:
        shown = optuna.load_study(study_name=name, storage=address).trials
        assert [trial.user_attrs["trial"] for trial in shown] == list(range(12))
        assert {trial.state.name for trial in shown} <= {"COMPLETE", "PRUNED"}
    assert "shown.db" not in (sweep / "run.json").read_text()


def test_the_front_is_over_all_and_the_page_is_whole(study):
    _, sweep, _, _ = study
    front = json.loads((sweep / "front.json").read_text())
    assert [p["flops"] for p in front] == sorted(p["flops"] for p in front)
    losses = [point["loss"] for point in front]
    assert losses == sorted(losses, reverse=True)
    every = [
        point for path in sweep.glob("micro-*/front.json") for point in json.loads(path.read_text())
    ]
    for point in every:
        assert any(f["flops"] <= point["flops"] and f["loss"] <= point["loss"] for f in front)
    assert (sweep / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    page = (sweep / "report.html").read_text()
    assert "micro-6MFLOPs-seed0" in page
    assert "<script" not in page


def test_status_tells_how_far_it_was_and_that_it_had_stopped(study):
    _, _, status, _ = study
    assert status.returncode == 0, status.stderr
    assert "stopped" in status.stdout
    assert "searching" in status.stdout


def test_again_it_changes_nothing_and_its_name_goes_on_with_it(study):
    folder, sweep, _, _ = study
    before = {path: path.read_bytes() for path in sweep.rglob("*.json*")}
    again = call(folder, "sweep", "study", "--storage", "sqlite:///late.db")
    assert again.returncode == 0, again.stderr
    shown = optuna.get_all_study_summaries(f"sqlite:///{folder / 'late.db'}")
    assert [study.n_trials for study in shown] == [12] * 6
    changed = [p for p, content in before.items() if p.read_bytes() != content]
    assert changed == [] or {path.name for path in changed} <= {"stages.json"}


def test_the_searches_are_runs_like_any_other(study):
    folder, sweep, _, _ = study
    shown = call(folder, "show", "runs/study/micro-7MFLOPs-seed1", "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["state"] == "finished"
    listed = json.loads(call(folder, "runs", "--json").stdout)
    assert [(row["run"], row["job"], row["state"]) for row in listed] == [
        ("study", "sweep", "finished")
    ]
    within = json.loads(call(folder, "runs", "--json", "--runs", "runs/study").stdout)
    assert {row["state"] for row in within} == {"finished"}
    assert len(within) == 7
    told = swept(Run.open(sweep))
    assert told["state"] == "finished"
    assert [row["id"] for row in told["rows"]] == list(pandas.read_csv(sweep / "sweep.csv")["id"])
    refused = call(folder, "retrain", "study")
    assert refused.returncode == 2
    assert "is a sweep and has many winners" in refused.stderr


def test_a_search_alone_with_the_same_seeds_finds_the_same(study):
    folder, sweep, _, _ = study
    words = ["search", "--budget", "7MFLOPs", "--space", "micro", "--epochs", "2", "--trials", "12"]
    words += ["--workers", "1", "--name", "alone", "--seed", "1", "--supernet-seed", "0"]
    alone = call(folder, *words, "--runs", "runs/study")
    assert alone.returncode == 0, alone.stderr
    one, other = (sweep / name / "log.jsonl" for name in ("alone", "micro-7MFLOPs-seed1"))

    def trials(log):
        lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        return sorted(json.dumps(line, sort_keys=True) for line in lines)

    assert trials(one) == trials(other)


def test_a_dry_run_and_the_python_twin(tmp_path, cli):
    words = [*WORDS[:-2], "--name", "dry", "--dry-run", "--runs", tmp_path]
    code, out, _ = cli(*words)
    assert code == 0
    assert "6 (0 of them done)" in out
    assert "8MFLOPs" in out
    assert not (tmp_path / "dry").exists()
    plan = mixnas.sweep(
        ["6MFLOPs", "8MFLOPs"], seed=(3,), space=["micro"], runs=tmp_path, trials=8, dry_run=True
    )
    assert plan["run"].endswith("sweep-digits-micro-6MFLOPs,8MFLOPs-seed3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "1"], "budget 1: no unit"),
        ([], "no budget given"),
        (["--budget", "1KFLOPs", "--space", "micro"], "the cheapest architecture"),
        (["--budget", "8MFLOPs", "--seed", "a"], "--seed 'a': a whole number is needed"),
        (["nothing.toml"], "sweep nothing.toml: neither a sweep's name nor a file"),
        (["nothing.toml", "--seed", "1"], "told by a file or by options"),
        (["--status"], "which sweep in"),
        (
            ["--status", "--retrain", "3", "--dry-run"],
            "--status and --retrain, --dry-run: --status",
        ),
        (["--budget", "8MFLOPs", "--storage", "study.db"], "write sqlite:///study.db"),
        (["--budget", "8MFLOPs,8000KFLOPs"], "given twice"),
        (["--budget", "8MFLOPs", "--retrain", "0"], "retrain 0: a whole number of at least 1"),
        (["--budget", "8MFLOPs", "--retrain", "2", "--scheduler", "foo"], "known: asha, none"),
        (["--budget", "8MFLOPs", "--scheduler", "asha"], "such as --retrain 30, or leave it out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, cli, words, said):
    code, out, err = cli("sweep", *words, "--runs", tmp_path, "--quiet")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
