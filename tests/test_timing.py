"""The stopwatch: a true figure or none, on a machine whose truth is known."""

import contextlib
import gc
import multiprocessing
import os
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import quantile_test
from torch import nn

from mixnas.errors import InvalidOption, TooNoisy
from mixnas.network import Part, parts, walk
from mixnas.timing import machine
from mixnas.timing.conditions import Conditions
from mixnas.timing.disturbance import Load, Watch, busy_seconds, waited
from mixnas.timing.energy import EnergyMeter
from mixnas.timing.figures import spread
from mixnas.timing.memory import peak_memory
from mixnas.timing.pinning import pinned
from mixnas.timing.reference import SHAPE
from mixnas.timing.runtimes import RUNTIMES_HERE
from mixnas.timing.stopwatch import Stopwatch

ONE = Conditions("cpu", "eager", 1, 1, "fp32")
REFERENCE = 3.0
"""Milliseconds of the reference network on the machine below, undisturbed."""


class Work(nn.Module):
    """Takes a known time on the machine below."""

    def __init__(self, milliseconds, jitter=0.02):
        super().__init__()
        self.milliseconds = milliseconds
        self.jitter = jitter


class Kernel(Watch):
    """Writes what Linux would tell just before it is read."""

    def __init__(self, computer):
        super().__init__(
            [0], computer.proc, clock=lambda: computer.now, spent=lambda: computer.spent
        )
        self.computer = computer

    def waiting(self):
        self.computer.tell()
        return super().waiting()

    def load(self):
        self.computer.tell()
        return super().load()


class Machine:
    """A computer whose clock stands but for its work.

    Args:
        proc: where its kernel writes.
        disturbed: gives at a second of the clock by which share work takes longer because its
            threads wait, and how many processors others use.
        speed: gives at a second how fast the processor is.
        tells: whether its kernel tells of others.
    """

    def __init__(self, proc, disturbed=lambda _: (0.0, 0.0), speed=lambda _: 1.0, tells=True):
        self.proc, self.disturbed, self.speed, self.tells = proc, disturbed, speed, tells
        self.now = self.spent = self.waiting = 0
        self.others = 0.0
        self.rng = random.Random(0)
        self.order = []
        self.watch = Kernel(self)

    def place(self, module, shape, conditions):
        milliseconds = getattr(module, "milliseconds", REFERENCE)
        jitter = getattr(module, "jitter", 0.02)

        def call():
            self.order.append(milliseconds)
            self.work(milliseconds * 1e6 * self.rng.lognormvariate(0, jitter))

        return call

    def work(self, nanoseconds):
        waits, others = self.disturbed(self.now / 1e9)
        took = nanoseconds / self.speed(self.now / 1e9)
        self.now += round(took * (1 + waits))
        self.spent += round(took)
        self.waiting += round(took * waits)
        self.others += took * (1 + waits) * others / 1e9

    def tell(self):
        if self.tells:
            busy = round(100 * (self.spent / 1e9 + self.others))
            (self.proc / "stat").write_text(f"cpu  {busy} 0\ncpu0 {busy} 0 0 9 9 0 0 0 0 0\n")
            (self.proc / "self/task/7").mkdir(parents=True, exist_ok=True)
            (self.proc / "self/task/7/schedstat").write_text(f"1 {self.waiting} 1\n")

    def stopwatch(self, **options):
        return Stopwatch(ONE, self, watch=self.watch, **options)


def bursts(share, waits, others):
    """Return a disturbance in so much of every two seconds."""
    return lambda second: (waits, others) if second % 2 < 2 * share else (0.0, 0.0)


@pytest.mark.parametrize("milliseconds", [0.05, 3.0, 80.0])
def test_a_quiet_machine_gives_true_figures(tmp_path, milliseconds):
    timing = Machine(tmp_path).stopwatch().time(Work(milliseconds), SHAPE)
    assert timing.median == pytest.approx(milliseconds, rel=0.03)
    assert timing.lower < timing.median < timing.upper
    assert timing.raw == timing.median
    assert timing.reference == pytest.approx(REFERENCE, rel=0.03)
    assert timing.retimed == 0
    assert timing.runs >= 12
    assert 0 < timing.spread < 0.05
    assert timing.to_dict()["median"] == timing.median


@settings(max_examples=10, deadline=None)
@given(st.floats(0.6, 1.6), st.floats(0.03, 100))
def test_a_figure_is_of_the_typical_speed(tmp_path_factory, speed, milliseconds):
    computer = Machine(tmp_path_factory.mktemp("proc"), speed=lambda _: speed)
    timing = computer.stopwatch(typical=REFERENCE).time(Work(milliseconds), SHAPE)
    assert timing.median == pytest.approx(milliseconds, rel=0.05)
    assert timing.raw == pytest.approx(milliseconds / speed, rel=0.05)


def test_calibration_makes_this_moment_typical(tmp_path):
    computer = Machine(tmp_path, speed=lambda second: 1.0 if second < 2 else 0.8)
    watch = computer.stopwatch()
    assert watch.typical is None
    assert watch.calibrate() == watch.typical == pytest.approx(REFERENCE, rel=0.03)
    computer.now = 3_000_000_000
    assert watch.time(Work(5.0), SHAPE).median == pytest.approx(5.0, rel=0.04)


@settings(max_examples=15, deadline=None)
@given(
    share=st.floats(0, 1),
    waits=st.floats(0, 3),
    others=st.floats(0, 2),
    milliseconds=st.sampled_from([0.06, 2.0, 40.0]),
)
def test_a_figure_is_true_or_there_is_none(tmp_path_factory, share, waits, others, milliseconds):
    computer = Machine(tmp_path_factory.mktemp("proc"), bursts(share, waits, others))
    watch = computer.stopwatch(typical=REFERENCE, patience=3.0)
    try:
        timing = watch.time(Work(milliseconds), SHAPE)
    except TooNoisy:
        assert share * (waits + others) > 0.005
    else:
        assert timing.median == pytest.approx(milliseconds, rel=0.1)


def test_disturbed_runs_are_taken_again(tmp_path):
    computer = Machine(tmp_path, bursts(0.5, 0.8, 1.0))
    timing = computer.stopwatch().time(Work(4.0), SHAPE)
    assert timing.median == pytest.approx(4.0, rel=0.05)
    assert timing.retimed > 0


@pytest.mark.parametrize(
    ("options", "typical", "jitter", "reason"),
    [
        ({"disturbed": bursts(1, 0.5, 0)}, None, 0.02, r"100% .*threads of this process waited"),
        ({"disturbed": bursts(1, 0, 1.4)}, None, 0.02, r"other processes computed .* 1\.4 proc"),
        ({"speed": lambda s: 0.3 + s % 0.6}, None, 0.02, r"the reference network's speed"),
        ({}, None, 0.8, r"runs differ so much that their median is known to"),
        ({"speed": lambda _: 0.3}, 3.0, 0.02, r"takes 3\.3 times as long"),
    ],
)
def test_a_refusal_says_why(tmp_path, options, typical, jitter, reason):
    watch = Machine(tmp_path, **options).stopwatch(patience=4.0, typical=typical)
    with pytest.raises(TooNoisy, match=reason) as refused:
        watch.interleave([Work(20.0, jitter)], SHAPE, rounds=60)
    assert "\n" not in str(refused.value)
    assert "stop what else runs" in str(refused.value)


def test_patience_is_kept(tmp_path):
    computer = Machine(tmp_path, bursts(1, 0.5, 1))
    with pytest.raises(TooNoisy, match="after 4 s"):
        computer.stopwatch(patience=4.0).time(Work(4.0), SHAPE)
    assert 4e9 < computer.now < 5e9


def test_without_a_kernel_that_tells_the_reference_does(tmp_path):
    computer = Machine(tmp_path, bursts(0.3, 0.6, 1.0), tells=False)
    timing = computer.stopwatch(typical=REFERENCE).time(Work(4.0), SHAPE)
    assert timing.median == pytest.approx(4.0, rel=0.1)


def busy():
    while True:
        pass


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_beside_busy_processes_a_figure_is_true_or_there_is_none():
    """On this machine, whatever else runs on it."""
    watch = Stopwatch(Conditions.of("cpu"), patience=5.0)
    part = Part("mlp", (64, 4), (64, 28, 28))
    try:
        watch.calibrate()
        quiet = watch.time(part.build(), part.shape)
    except TooNoisy:
        pytest.skip("the machine is busy already")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=busy, daemon=True) for _ in range(os.cpu_count() or 2)]
    for process in others:
        process.start()
    try:
        for _ in range(5):
            try:
                found = watch.time(part.build(), part.shape)
            except TooNoisy:
                continue
            assert found.median == pytest.approx(quiet.median, rel=0.1)
    finally:
        for process in others:
            process.kill()
            process.join()


def test_networks_run_in_turn(tmp_path):
    computer = Machine(tmp_path)
    first, second = computer.stopwatch().interleave([Work(20.0), Work(50.0)], SHAPE, rounds=8)
    turns = [each for each in computer.order if each != REFERENCE][-16:]
    assert turns == [20.0, 50.0] * 8
    assert first.median == pytest.approx(20.0, rel=0.03)
    assert second.median == pytest.approx(50.0, rel=0.03)
    assert first.runs >= 8


@given(st.lists(st.floats(1, 100), min_size=6, max_size=60))
def test_the_interval_of_a_median_is_known_to_scipy(values):
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    wide = (interval.high - interval.low) / 2 / float(torch.tensor(values).quantile(0.5))
    assert spread(values) == pytest.approx(wide, rel=1e-5, abs=1e-9)


STAT = """cpu  300 30 60 5000 40 6 3 20 100 50
cpu0 100 10 20 2000 10 2 1 7 50 25
cpu1 200 20 40 3000 30 4 2 13 50 25
intr 7 0
"""


def test_stolen_time_is_busy_and_guests_count_once():
    assert busy_seconds(STAT, [0], 100) == 1.4
    assert busy_seconds(STAT, [0, 1], 100) == 4.19
    assert busy_seconds(STAT, [], 100) == 0


def test_others_are_what_this_process_is_not():
    before, after = Load(busy=10.0, own=4.0, wall=100.0), Load(busy=13.0, own=5.0, wall=102.0)
    assert after.others(before) == 1.0
    assert Load(10.0, 5.0, 101.0).others(before) == 0
    assert before.others(before) == 0


def test_threads_that_come_and_go_count_nothing():
    assert waited({"1": 5, "2": 100}, {"1": 25, "3": 1000}) == 20


def test_a_system_that_tells_nothing_is_no_error(tmp_path):
    assert Watch([0], tmp_path).load() is None
    assert Watch([0], tmp_path).waiting() == {}


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="no schedstat")
def test_the_kernel_tells_of_a_thread_that_waits():
    """Two threads that must share one processor wait for each other."""
    allowed = os.sched_getaffinity(0)
    threads = [threading.Thread(target=_multiply) for _ in range(2)]
    watch = Watch()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        for thread in threads:
            thread.start()
        while watch.waiting().keys() < {str(thread.native_id) for thread in threads}:
            time.sleep(0.001)
        before = watch.waiting()
        time.sleep(0.2)
        after = watch.waiting()
    finally:
        os.sched_setaffinity(0, allowed)
        for thread in threads:
            thread.join()
    assert waited(before, after) > 20_000_000


def _multiply():
    torch.set_num_threads(1)
    matrix = torch.randn(600, 600)
    ends = time.monotonic() + 0.6
    while time.monotonic() < ends:
        matrix @ matrix


def test_pinning_is_undone():
    threads, allowed = torch.get_num_threads(), machine.usable()
    seen = []

    def fail():
        with pinned(Conditions("cpu", "eager", 1, 1, "fp32")):
            seen.extend([torch.get_num_threads(), gc.isenabled(), len(machine.usable())])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    pins = bool(machine.one_of_each_core(allowed)) and hasattr(os, "sched_setaffinity")
    assert seen == [1, False, 1 if pins else len(allowed)]
    assert torch.get_num_threads() == threads
    assert machine.usable() == allowed
    assert gc.isenabled()


def test_more_threads_than_cores_are_not_pinned():
    allowed = machine.usable()
    with pinned(Conditions("cpu", "eager", 4096, 1, "fp32")):
        assert machine.usable() == allowed


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
    assert sorted(machine._cores(CPUINFO, {0, 1, 2, 3}).values()) == [0, 2, 3]
    assert sorted(machine._cores(CPUINFO, {1}).values()) == [1]
    assert machine._cores("processor\t: 0\nBogoMIPS\t: 50\n", {0}) == {}
    assert machine.physical_cores() >= 1


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:7:8"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InvalidOption, match="devices here: cpu"):
        Conditions.of(name)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"batch": -1}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(InvalidOption, match="at least 1"):
        Conditions.of("cpu", **wrong)


def test_a_runtime_of_others_must_be_given():
    with pytest.raises(InvalidOption, match=r"'onnxruntime'.*needs it given.*eager, compile"):
        Stopwatch(Conditions("cpu", "onnxruntime", 1, 1, "fp32"))


class Notes(nn.Module):
    """Notes how it is called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = set()

    def forward(self, x):
        assert x.is_contiguous(memory_format=torch.channels_last)
        inference = torch.is_inference_mode_enabled()
        self.seen.add((x.shape, x.dtype, self.scale.dtype, self.training, inference))
        return x


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_module_is_called_as_the_conditions_say(tmp_path, precision):
    conditions = Conditions("cpu", "eager", 1, 2, precision)
    module = Notes()
    stopwatch = Stopwatch(conditions, patience=0.0, watch=Watch([0], tmp_path))
    with contextlib.suppress(TooNoisy):  # another process may run beside the tests
        stopwatch.time(module, (3, 8, 8))
    dtype = conditions.dtype
    assert module.seen == {(torch.Size([2, 3, 8, 8]), dtype, dtype, False, True)}
    assert module.scale.requires_grad
    assert not module.scale.is_inference()


def one_of_each(space, rng):
    """Return a part of each kind, and of each mixer, at a small image."""
    found = {}
    for _ in range(40):
        for segment in walk(space.sample(rng)):
            for part in parts(segment, image=64, classes=10):
                name = part.spec[0] if part.kind in ("mixer", "stem") else ""
                found.setdefault((part.kind, name), part)
    return list(found.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_part_computes_in_half_precision(precision, default, rng):
    conditions = Conditions("cpu", "eager", 1, 2, precision)
    for part in one_of_each(default, rng):
        call = RUNTIMES_HERE["eager"].place(part.build(), part.shape, conditions)
        with torch.inference_mode():
            assert call().dtype == conditions.dtype


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_parts_of_one_class_are_each_compiled():
    """After eight of one class `torch.compile` would run the rest as eager."""
    from torch._dynamo.utils import counters

    conditions = Conditions("cpu", "compile", 1, 1, "fp32")
    counters.clear()
    for width in range(8, 28, 2):
        part = Part("mlp", (width, 2), (width, 4, 4))
        module = part.build()
        expected = module(RUNTIMES_HERE["eager"].place(nn.Identity(), part.shape, ONE)())
        call = RUNTIMES_HERE["compile"].place(module, part.shape, conditions)
        with torch.inference_mode():
            torch.testing.assert_close(call(), expected, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 10
    assert not counters["graph_break"]


class Breaks(nn.Module):
    def forward(self, x):
        print(float(x.sum()), end="")
        return x * 2


def test_what_cannot_be_compiled_is_refused():
    conditions = Conditions("cpu", "compile", 1, 1, "fp32")
    with pytest.raises(InvalidOption, match=r"'compile'.* on Breaks .*--runtime eager") as refused:
        RUNTIMES_HERE["compile"].place(Breaks(), (3, 8, 8), conditions)
    assert "\n" not in str(refused.value)


class Known(nn.Module):
    """Holds at its peak the input, two maps of its size, and one of four times its size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, x):
        first = x + 1
        second = first * 2
        third = second + first
        del first
        return third.repeat(1, 4, 1, 1).amax()


def test_peak_memory_is_what_lives_at_once():
    size = 3 * 64 * 64 * 4
    found = peak_memory(Known(), (3, 64, 64), ONE)
    assert found == pytest.approx(4000 + 7 * size, abs=256)
    doubled = peak_memory(Known(), (3, 64, 64), Conditions("cpu", "eager", 1, 2, "fp32"))
    assert doubled == pytest.approx(4000 + 14 * size, abs=256)
    half = peak_memory(Known(), (3, 64, 64), Conditions("cpu", "eager", 1, 1, "bf16"))
    assert half == pytest.approx(2000 + 7 * size / 2, abs=256)


def test_memory_that_no_one_tells_is_none():
    assert peak_memory(Known(), SHAPE, Conditions("cpu", "onnxruntime", 1, 1, "fp32")) is None


class Rapl:
    """A folder as Linux shows it, whose counters rise with each call."""

    def __init__(self, folder, start=0, span=262_143_328_850):
        self.zones = {
            "intel-rapl:0": ("package-0", 5_000, start),
            "intel-rapl:0:0": ("core", 3_000, start),
            "intel-rapl:0:1": ("dram", 1_000, start),
            "intel-rapl:1": ("package-1", 2_000, start),
            "intel-rapl:2": ("psys", 20_000, start),
        }
        self.folder, self.span = folder, span
        for zone, (name, _, _) in self.zones.items():
            (folder / zone).mkdir()
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{span}\n")
        self.runs = -1
        self()

    def __call__(self):
        self.runs += 1
        for zone, (_, rise, start) in self.zones.items():
            count = (start + self.runs * rise) % self.span
            (self.folder / zone / "energy_uj").write_text(f"{count}\n")


def test_packages_and_their_memory_are_summed_once(tmp_path):
    call = Rapl(tmp_path)
    meter = EnergyMeter.of("cpu", tmp_path)
    assert meter.measure(call, 0.05) == pytest.approx(8.0)
    assert call.runs > 1
    assert meter.measure(call, 0.0) == pytest.approx(8.0)


def test_a_counter_may_begin_again(tmp_path):
    call = Rapl(tmp_path, start=999_000, span=1_000_000)
    assert EnergyMeter.of("cpu", tmp_path).measure(call, 0.0) == pytest.approx(8.0)
    assert (tmp_path / "intel-rapl:0/energy_uj").read_text() == "4000\n"


def test_a_device_without_a_counter_is_refused(tmp_path):
    with pytest.raises(InvalidOption, match=r"device cpu tells no energy here .*intel-rapl"):
        EnergyMeter.of("cpu", tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_waited_for():
    conditions = Conditions.of("cuda")
    (large, small) = (Stopwatch(conditions).time(nn.Linear(n, n), s).median for n, s in GPU)
    assert large > 5 * small


GPU = [(8192, (64, 64, 8192)), (64, (1, 4, 64))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_memory():
    size = 3 * 64 * 64 * 4
    found = peak_memory(Known(), (3, 64, 64), Conditions.of("cuda"))
    assert found == pytest.approx(4000 + 7 * size, rel=0.05)
