"""The stopwatch: what it times, under which conditions, and what it refuses."""

import time

import pytest
import torch
from torch import nn

from mixnas.cost import latency
from mixnas.cost.latency import Stopwatch
from mixnas.cost.table import CostTable
from mixnas.errors import InvalidOption, TableMissing
from mixnas.network import Part


class Sleep(nn.Module):
    """Takes a known time, and notes how it is called."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.seen = []

    def forward(self, x):
        self.seen.append((x.shape, x.dtype, self.training, torch.is_inference_mode_enabled()))
        assert x.is_contiguous(memory_format=torch.channels_last)
        time.sleep(self.seconds)
        return x


def test_a_known_time_is_measured():
    module = Sleep(0.005)
    measured = Stopwatch(threads=1, batch=2).time_module(module, (3, 8, 8))
    assert 5_000_000 <= measured < 25_000_000
    assert type(measured) is int
    assert set(module.seen) == {(torch.Size([2, 3, 8, 8]), torch.float32, False, True)}


def test_the_number_of_runs_is_bounded():
    quick, slow = Sleep(0), Sleep(0.02)
    watch = Stopwatch(threads=1, warmup=2, repeats=30, seconds=0.06)
    watch.time_module(quick, (1, 2, 2))
    watch.time_module(slow, (1, 2, 2))
    assert 2 + latency.LEAST <= len(quick.seen) <= 32
    assert len(slow.seen) == 2 + latency.LEAST


def test_a_part_costs_whole_nanoseconds():
    table = CostTable(Stopwatch(threads=1, repeats=5), image=32, classes=10)
    small = table.part(Part("mlp", (16, 2), (16, 4, 4)))
    large = table.part(Part("mlp", (128, 4), (128, 56, 56)))
    assert type(small) is int
    assert 0 < small < large


def test_whole_networks_are_timed_in_turn():
    order = []

    class Named(Sleep):
        def forward(self, x):
            order.append(self.seconds)
            return super().forward(x)

    fast, slow = Named(0.001), Named(0.004)
    spans = Stopwatch(threads=1, warmup=1).interleave([fast, slow], (3, 16, 16), rounds=6)
    assert order == [0.001, 0.004] * 7
    for found, least in zip(spans, (1.0, 4.0), strict=True):
        assert least <= found["lower"] <= found["median"] <= found["upper"]
        assert found["reference"] > 0
    assert spans[0]["reference"] == spans[1]["reference"]


def test_torch_keeps_its_own_threads():
    before = torch.get_num_threads()
    Stopwatch(threads=before + 1).time_module(Sleep(0), (1, 2, 2))
    assert torch.get_num_threads() == before


def test_a_table_serves_its_conditions_only(tmp_path):
    path = tmp_path / "latency.json"
    CostTable(Stopwatch(threads=1), image=32, classes=10).save(path)
    CostTable(Stopwatch(threads=1), image=32, classes=10).load(path)
    with pytest.raises(TableMissing, match="threads 1, not 2"):
        CostTable(Stopwatch(threads=2), image=32, classes=10).load(path)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:7:8"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InvalidOption, match="devices here: cpu"):
        Stopwatch(name)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"batch": -1}, {"repeats": 0}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(InvalidOption, match="at least 1"):
        Stopwatch(**wrong)


CPUINFO = """processor\t: 0
physical id\t: 0
core id\t\t: 0

processor\t: 1
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 0
core id\t\t: 1

processor\t: 3
physical id\t: 1
core id\t\t: 1
"""


def test_physical_cores_are_not_threads():
    assert latency._cores(CPUINFO, None) == 3
    assert latency._cores(CPUINFO, {0, 1}) == 1
    assert latency._cores("processor\t: 0\nBogoMIPS\t: 50\n", None) == 0
    assert latency.physical_cores() >= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_waited_for():
    watch = Stopwatch("cuda")
    large = watch.time_module(nn.Linear(8192, 8192), (64, 64, 8192))
    small = watch.time_module(nn.Linear(64, 64), (1, 4, 64))
    assert large > 5 * small
