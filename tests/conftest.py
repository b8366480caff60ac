"""Fixtures that more than one file needs: few, and real."""

import random

import pytest
import torch

from mixnas.cli import main
from mixnas.elastic import Elastic
from mixnas.space import SearchSpace

torch.set_num_threads(1)  # small tensors: a second thread only waits, above all beside other jobs


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
