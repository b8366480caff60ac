"""Runs on an S3 server that runs here: what is uploaded comes back on an empty disk."""

import json
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
