"""Fixtures that more than one file needs: few, and real."""

import atexit
import fcntl
import os
import random
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from mixnas.cli import main
from mixnas.elastic import Elastic
from mixnas.space import SearchSpace

torch.set_num_threads(1)  # small tensors: a second thread only waits, above all beside other jobs
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: as a rule two do

if "MIXNAS_TESTS" not in os.environ:  # the first process that reads this; its helpers inherit it
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # kept, to look into
    os.environ["MIXNAS_TESTS"] = tempfile.mkdtemp(prefix="mt-")  # short: Ray's sockets lie in it
    atexit.register(shutil.rmtree, os.environ["MIXNAS_TESTS"], ignore_errors=True)

SHARED = Path(os.environ["MIXNAS_TESTS"])
"""What the processes of one run of the tests share: locks, and a folder for what each leaves."""

HERE = SHARED / os.environ.get("PYTEST_XDIST_WORKER", "main")
HERE.mkdir(exist_ok=True)
os.environ["TMPDIR"] = tempfile.tempdir = str(HERE)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that all processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Let a test that is marked `alone` run while no other does."""
    with ExitStack() as room:
        with locked("gate", fcntl.LOCK_EX):  # else those who share the room could keep it for good
            alone = item.get_closest_marker("alone")
            room.enter_context(locked("room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@contextmanager
def locked(name, how):
    with (SHARED / name).open("w") as file:
        fcntl.flock(file, how)
        yield


@pytest.fixture(scope="session")
def micro() -> SearchSpace:
    return SearchSpace.load("micro")


@pytest.fixture(scope="session")
def default() -> SearchSpace:
    return SearchSpace.load("default")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture(scope="session")
def randomise_norms():
    """Return a function that fills every norm, scale and statistic at random.

    A fresh norm is ones and zeros, which would hide an error in its slicing.
    """

    def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, Elastic) and all(t.dim() == 1 for t in layer.stored()):
                for tensor in layer.stored():
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
        return module

    return randomise


@pytest.fixture
def cli(capsys):
    """Run the command line; return exit code, standard output, standard error."""

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call
