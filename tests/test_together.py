"""Several processes train one network together: as one would, through Ray, whatever dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import parts
import pytest
import torch
from safetensors.torch import load_file

from mixnas.cluster import Crew
from mixnas.cluster.together import together
from mixnas.errors import InvalidOption, WorkerLost

ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


class TestRay:
    pytestmark = ray

    def test_what_the_first_says_is_heard(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        heard = parts.Heard()
        together(parts.told, Crew(2), heard)
        assert heard.words == [
            ("stage", "training", 2, 0),
            ("advance", 1, ("mean", 0.5)),
            ("advance", 1, ("mean", 0.5)),
            ("note", f"2 in {tmp_path.name}"),
            ("end",),
        ]

    def test_a_mistake_comes_back_as_itself(self):
        with pytest.raises(InvalidOption, match=r"^rate 40: must be above 0 and at most 10$"):
            together(parts.mistaken, Crew(2), parts.Heard())

    def test_who_dies_again_and_again_is_told_in_one_line(self):
        with pytest.raises(WorkerLost, match="lost 2 times") as caught:
            together(parts.dies, Crew(1), parts.Heard(), failures=1)
        assert "\n" not in str(caught.value)


def call(folder, *words):
    return subprocess.run(
        [sys.executable, "-c", "from mixnas.cli import main; main()", *words],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


SEARCH = ["search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "2", "--trials", "8"]


class TestSupernet:
    pytestmark = ray

    def test_one_that_dies_is_replaced_and_all_go_on_from_the_checkpoint(self, tmp_path):
        words = [*SEARCH, "--trainers", "2", "--workers", "2", "--name", "one"]
        whole = call(tmp_path, *words)
        assert whole.returncode == 0, whole.stderr
        weights = load_file(tmp_path / "runs" / "one" / "supernet.safetensors")
        begun = tmp_path / "other" / "run"
        begun.mkdir(parents=True)
        for name in ("run.json", "plan.json"):
            (begun / name).write_bytes((tmp_path / "runs" / "one" / name).read_bytes())
        heard = parts.Heard()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        try:
            together(parts.Kills(str(begun)), Crew(2), heard)
        finally:
            del os.environ["PYTHONPATH"]
        assert (begun.parent / "died").exists()
        goes_on = [word[1] for word in heard.words if word[0] == "note"]
        assert any("training goes on at step" in line for line in goes_on)
        again = load_file(begun / "supernet.safetensors")
        assert all(torch.equal(weights[key], again[key]) for key in weights)

    def test_a_batch_is_divided_evenly_or_not_at_all(self, tmp_path):
        refused = call(tmp_path, *SEARCH, "--trainers", "3")
        assert refused.returncode == 2
        assert "trainers=3 is not allowed: each takes an equal part" in refused.stderr
        assert not (tmp_path / "runs").exists()


class TestRetraining:
    pytestmark = ray

    def test_on_a_cluster_it_is_what_torchrun_makes(self, tmp_path):
        from ray.cluster_utils import Cluster

        words = ["retrain", "zoo:shvit_s1", "--width", "0.25", "--epochs", "1", "--gpus", "2"]
        words += ["--device", "cpu"]
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            there = call(tmp_path, *words, "--name", "there", "--address", cluster.address)
        finally:
            cluster.shutdown()
        assert there.returncode == 0, there.stderr
        here = call(tmp_path, *words, "--name", "here")
        assert here.returncode == 0, here.stderr
        one, other = (
            json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
            for name in ("there", "here")
        )
        assert one == other
        assert [p.name for p in (tmp_path / "runs").iterdir() if p.name.startswith(".")] == []

    def test_what_must_be_said_is_asked_for(self, tmp_path):
        words = ["retrain", "zoo:shvit_s1", "--address", "auto"]
        for more, said in ([], "--gpus N"), (["--gpus", "2"], "--device cuda or --device cpu"):
            refused = call(tmp_path, *words, *more)
            assert refused.returncode == 2
            assert said in refused.stderr
