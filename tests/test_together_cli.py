"""The command line's ways to train by several processes: `--trainers`, `retrain --address`."""

import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mixnas.run import Run
from mixnas.space import SearchSpace

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

HERE = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}


def mixnas(folder, *words):
    """Run a command; return its exit code and what it wrote to the standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "mixnas", *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return done.returncode, done.stderr


@contextmanager
def cluster(nodes):
    """Have a cluster of so many nodes beside its head; yield its address."""
    script = Path(__file__).with_name("nodes.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        family = []
        try:
            yield process.stdout.readline().strip()
            family = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            process.wait(60)
        finally:
            process.kill()
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue


SEARCH = (
    "--budget", "8MFLOPs", "--space", "micro", "--epochs", 1, "--trials", 4, "--workers", 2,
    "--device", "cpu", "--sampler", "random",
)  # fmt: skip


@pytest.mark.drill
def test_a_search_whose_supernet_two_processes_train(tmp_path):
    code, err = mixnas(tmp_path, "search", *SEARCH, "--trainers", 2, "--name", "two")
    assert code == 0, err
    assert "2 processes, 1 CPU each; times above are of one" in err
    run = Run.open(tmp_path / "runs" / "two")
    assert run.stages["training"]["processes"] == 2
    assert run.file("best.json").is_file()
    assert err.count("training:") >= 2  # its beginning and its end, told once each
    code, err = mixnas(tmp_path, "search", *SEARCH, "--trainers", 2, "--name", "two")
    assert code == 0, err


@pytest.mark.drill
def test_a_sweep_whose_supernet_two_processes_train(tmp_path):
    words = [word for word in SEARCH if word not in ("--budget", "8MFLOPs")]
    code, err = mixnas(
        tmp_path, "sweep", "--budget", "7MFLOPs,8MFLOPs", *words, "--trainers", 2, "--name", "s"
    )
    assert code == 0, err
    trunk = Run.open(tmp_path / "runs" / "s" / "supernet-micro")
    assert trunk.stages["training"]["processes"] == 2


@pytest.mark.drill
def test_a_retraining_on_a_cluster_is_that_of_as_many_processes_here(tmp_path):
    arch = tmp_path / "arch.json"
    arch.write_text(SearchSpace.load("micro").sample(random.Random(0)).to_json())
    words = ["retrain", "arch.json", "--epochs", 1, "--device", "cpu", "--gpus", 2]
    with cluster(2) as address:
        code, err = mixnas(tmp_path, *words, "--address", address, "--name", "there")
        assert code == 0, err
        assert "joined a cluster of 3 nodes" in err
        assert f"2 on cpu, of the cluster at {address}" in err
        code, err = mixnas(tmp_path, *words, "--address", address, "--name", "there")
        assert code == 0, err
    code, err = mixnas(tmp_path, *words, "--name", "here")
    assert code == 0, err
    there, here = (
        json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
        for name in ("there", "here")
    )
    assert there == here
    held = Run.open(tmp_path / "runs" / "there", lock=True)
    assert held.read("summary.json")["processes"] == 2
    held.close()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("search", *SEARCH, "--trainers", 3), "--trainers 3: the 64 images of a step do not"),
        (("search", *SEARCH, "--trainers", 0), "trainers"),
        (("search", *SEARCH, "--trainers", "two"), "--trainers 'two': a whole number is needed"),
        (
            ("search", *SEARCH, "--trainers", 2, "--address", "ray://127.0.0.1:10001"),
            "start on a machine of the cluster",
        ),
        (
            ("retrain", "zoo:shvit_s1", "--address", "ray://127.0.0.1:10001", "--device", "cpu"),
            "start on a machine of the cluster",
        ),
        (("retrain", "zoo:shvit_s1", "--address", "here"), "address 'here': give auto"),
        (("retrain", "zoo:shvit_s1", "--cpus-per-process", 2), "without --address"),
        (
            ("retrain", "zoo:shvit_s1", "--address", "auto", "--runs", "memory://runs"),
            "machines that train together share a",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, words, line, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*words)
    assert code == 2
    assert line in err.splitlines()[-1]
