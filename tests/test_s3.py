"""Runs on an S3 server that runs here: what is uploaded comes back on an empty disk."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mixnas import remote
from mixnas.errors import RemoteFailed, RunConflict
from mixnas.remote import HEAD
from mixnas.run import Run

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the server's and the client's own
]


@pytest.fixture(scope="module")
def endpoint():
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    yield f"http://{host}:{port}"
    s3.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(remote, "SETTLE", 0.0)
    monkeypatch.setattr(remote, "EVERY", 0.2)
    files = s3fs.S3FileSystem()
    name = f"bucket-{time.time_ns()}"
    files.mkdir(name)
    return files, name


def test_a_run_is_kept_there_and_comes_back(bucket, monkeypatch, tmp_path):
    files, name = bucket
    address = f"s3://{name}/deep/runs"
    with Run.create(address, "one", {"seed": 1}) as run:
        run.write("supernet.safetensors", bytes(range(256)) * 40_000)
        run.mark("training")
        with pytest.raises(RunConflict, match="in use"):
            Run.create(address, "one", {"seed": 1})
    there = {path.rpartition("/one/")[2] for path in files.find(f"{name}/deep/runs/one")}
    assert there == {"run.json", "stages.json", "supernet.safetensors", HEAD}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with Run.create(address, "one", {"seed": 1}) as run:
        assert run.done("training")
        assert run.file("supernet.safetensors").read_bytes() == bytes(range(256)) * 40_000
        run.write("best.json", {})
    files.invalidate_cache()
    assert json.loads(files.cat_file(f"{name}/deep/runs/one/best.json")) == {}


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(RemoteFailed) as caught:
        Run.create("s3://no-such-bucket-here/runs", "one", {})
    assert "s3://no-such-bucket-here/runs/one: cannot" in str(caught.value)
    assert "\n" not in str(caught.value)


QUICK = "from mixnas import remote; remote.EVERY = 0.5; from mixnas.cli import main; main()"
SEARCH = ["search", "--budget", "8MFLOPs", "--space", "micro", "--epochs", "1", "--trials", "16"]


def begin(disk, *words):
    """Begin a command on a machine with a disk of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *words],
        env={**os.environ, "XDG_CACHE_HOME": str(disk)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(files, path):
    """Return the number of trials whose outcome lies there."""
    files.invalidate_cache()
    if not files.exists(path):
        return []
    lines = [json.loads(line) for line in files.cat_file(path).decode().splitlines()]
    return [line["tell"] for line in lines if "tell" in line]


@pytest.mark.drill
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_search_killed_goes_on_from_there_on_an_empty_disk(bucket, tmp_path):
    files, name = bucket
    words = [*SEARCH, "--runs", f"s3://{name}/runs", "--name", "one", "--workers", "1"]
    log = f"{name}/runs/one/log.jsonl"
    first = begin(tmp_path / "first", *words)
    while first.poll() is None and len(told(files, log)) < 3:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    there = told(files, log)
    assert 3 <= len(there) < 16
    other = begin(tmp_path / "empty", *words)
    _, said = other.communicate(timeout=300)
    assert other.returncode == 0, said
    assert sorted(told(files, log)) == list(range(16))
    assert told(files, log)[: len(there)] == there  # what was there has not been done again
    shown = begin(tmp_path / "third", "show", "one", "--runs", f"s3://{name}/runs", "--json")
    found, said = shown.communicate(timeout=60)
    assert shown.returncode == 0, said
    assert json.loads(found)["trials"]["complete"] == 16
