"""Blocks of runs, each between runs of the reference and beside what the kernel tells of it."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixnas.timing.conditions import Conditions
from mixnas.timing.disturbance import Watch, waited
from mixnas.timing.runtimes import Call

BLOCK = 12e6
"""Nanoseconds that a block's runs fill; a slower network runs once a block."""
SLOT = 6e6
"""Nanoseconds that the reference runs between two blocks."""
MOST = 200
"""Runs in a block at most."""
WINDOW = 300_000_000
"""Nanoseconds over which the use of the machine by others is told: the kernel counts in ticks."""
AGREE = 0.05
"""A warm-up ends when the medians of two successive blocks differ by this share at most."""
WARMING = 12
"""Blocks that a warm-up has at most."""


@dataclass
class Block:
    """Runs without a pause between them.

    Attributes:
        spans: nanoseconds of each run.
        reference: nanoseconds of the reference network just before and after, the mean of both
            medians.
        waited: nanoseconds that this process's threads waited for a processor, summed.
        told: whether its window has ended.
        others: processors that others used on average in its window; ``None`` if it has not
            ended, or the kernel does not tell.
    """

    spans: list[int]
    reference: float
    waited: int
    told: bool = False
    others: float | None = None


class Recorder:
    """Takes blocks.

    Args:
        reference: computes the reference network once.
        conditions: the device to wait for.
        watch: tells who else uses the machine.
    """

    def __init__(self, reference: Call, conditions: Conditions, watch: Watch) -> None:
        self._wait = _waiter(conditions.place)
        self._watch = watch
        self._reference = reference
        self._beside = self.warm(reference)
        self._runs = filling(SLOT, self._beside)
        self._last = self._slot()
        self._open: list[Block] = []
        self._load = watch.load()
        self._ends = watch.clock() + WINDOW

    def warm(self, call: Call) -> float:
        """Run until two successive blocks agree; return the nanoseconds of the shortest run.

        A machine that is disturbed may never agree: the warm-up ends all the same, and what
        follows tells of the disturbance.
        """
        self.spans(call, 1)
        before = statistics.median(self.spans(call, 1))
        for _ in range(WARMING):
            spans = self.spans(call, filling(BLOCK, before))
            now = statistics.median(spans)
            if abs(now - before) <= AGREE * before:
                break
            before = now
        return min(spans)

    def block(self, call: Call, runs: int) -> Block:
        """Take one block; who else computed meanwhile is filled in when its window ends."""
        threads = self._watch.waiting()
        spans = self.spans(call, runs)
        delay = waited(threads, self._watch.waiting())
        before, self._last = self._last, self._slot()
        block = Block(spans, (before + self._last) / 2, delay)
        self._open.append(block)
        if self._watch.clock() >= self._ends:
            self._tell()
        return block

    def lasting(self, run: float) -> float:
        """Return the nanoseconds of an undisturbed block, with the reference's part of it.

        Args:
            run: nanoseconds of the shortest run.
        """
        return filling(BLOCK, run) * run + self._runs * self._beside

    def spans(self, call: Call, runs: int) -> list[int]:
        """Return the nanoseconds of runs, the device's queue empty before and after each."""
        clock, wait, found = self._watch.clock, self._wait, []
        wait()
        for _ in range(runs):
            began = clock()
            call()
            wait()
            found.append(clock() - began)
        return found

    def _slot(self) -> float:
        return statistics.median(self.spans(self._reference, self._runs))

    def _tell(self) -> None:
        """End a window: say of its blocks how much others computed."""
        now, before = self._watch.load(), self._load
        for block in self._open:
            block.told = True
            block.others = None if now is None or before is None else now.others(before)
        self._open, self._load = [], now
        self._ends = self._watch.clock() + WINDOW


def filling(nanoseconds: float, run: float) -> int:
    """Return how many runs fill a time, between 1 and `MOST`."""
    return min(max(round(nanoseconds / max(run, 1.0)), 1), MOST)


def _waiter(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has computed all that it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None
