"""Ray clusters of several nodes, joined: all work, one is lost, and no trial is."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from searching import Toy, finish

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


def joined(folder, what):
    script = Path(__file__).with_name("joined.py")
    paths = [str(script.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(script), str(folder), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        ) as process,
    ):
        family = {psutil.Process(process.pid)}
        try:
            lines = []
            for line in process.stdout:
                family |= set(psutil.Process(process.pid).children(recursive=True))
                lines.append(line)
                if line.startswith("{"):
                    break
            process.stdin.close()
            process.wait(60)
        finally:
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
    try:
        return json.loads(lines[-1])
    except (ValueError, IndexError):
        pytest.fail((folder / "stderr").read_text()[-2000:])


def test_all_nodes_work_and_one_that_dies_takes_no_trial_with_it(tmp_path):
    found = joined(tmp_path, "kill")
    assert found["error"] == ""
    assert found["complete"] == 60
    assert set(found["worked"]) == set(found["nodes"])
    assert (tmp_path / "killed").read_text() in found["nodes"]
    assert set(Counter(found["told"]).values()) == {1}
    assert sorted(found["told"]) == found["numbers"]
    alone = finish(Toy().search(tmp_path / "alone", trials=60, population=10))
    assert found["losses"] == [trial.loss for trial in alone.trials]
    assert found["notes"] == ["joined a cluster of 4 nodes, 3 CPUs; 3 workers with 1 CPU each"]
    assert not found["connected"]


@pytest.mark.drill
def test_from_elsewhere_through_rays_client_it_is_the_same(tmp_path):
    pytest.importorskip("grpc")
    found = joined(tmp_path, "client")
    assert found["error"] == ""
    assert found["complete"] == 60
    assert set(found["worked"]) == set(found["nodes"])
    assert (tmp_path / "killed").read_text() in found["nodes"]
    assert sorted(found["told"]) == found["numbers"]
    alone = finish(Toy().search(tmp_path / "alone", trials=60, population=10))
    assert found["losses"] == [trial.loss for trial in alone.trials]
    assert not found["connected"]


def test_what_no_node_has_is_refused_in_one_line(tmp_path):
    found = joined(tmp_path, "gpu")
    assert (
        "no machine of the cluster (4 nodes, 3 CPUs) has the 1 CPU and 0.5 GPUs" in found["error"]
    )
    assert found["told"] == []
