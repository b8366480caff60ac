"""The recipes for real clusters, as far as this machine allows."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from mixnas.cli import app

FOLDER = Path(__file__).parent.parent / "docs" / "cluster"


def options(line):
    """Return the options that a command line of mixnas gives, refusing those that it lacks."""
    words = shlex.split(line)
    assert words[0] == "mixnas"
    command = typer.main.get_command(app).commands[words[1]]
    context = command.make_context("mixnas", words[2:], resilient_parsing=False)
    return {name: value for name, value in context.params.items() if value is not None}


def test_the_rayjob_runs_a_command_that_there_is():
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    given = options(spec["entrypoint"])
    assert given["address"] == "auto"
    assert given["runs"].startswith("s3://")
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]["template"]["spec"]
    mounts = {m["mountPath"] for c in head["containers"] for m in c["volumeMounts"]}
    assert str(Path(given["file"]).parent) in mounts
    images = {
        container["image"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for container in group["template"]["spec"]["containers"]
    }
    assert len(images) == 1  # the same mixnas on all machines


def test_the_cluster_file_is_what_ray_up_takes():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    text = (FOLDER / "ray-cluster.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "'mixnas" in line)
    assert options(line.lstrip("# ").strip("'"))["address"] == "auto"


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    refused = subprocess.run(
        ["bash", FOLDER / "slurm.sh"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "usage: sbatch" in refused.stderr


SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
[ "$1" = hostname ] && exec echo 127.0.0.1
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && printf 'first\\nsecond\\n'
exit 0
"""


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_slurm_script_searches_with_stand_ins_for_slurm(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    mixnas = tmp_path / "mixnas"
    mixnas.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from mixnas.cli import main; main()" "$@"\n'
    )
    mixnas.chmod(0o755)
    here = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "1", "--trials", "8"]
    done = subprocess.run(
        ["bash", FOLDER / "slurm.sh", *words, "--name", "run"],
        cwd=tmp_path,
        env={**os.environ, "PATH": here, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "77",
             "SLURM_CPUS_PER_TASK": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "joined a cluster of 2 nodes, 2 CPUs" in done.stderr
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["trials"]["complete"] == 8
