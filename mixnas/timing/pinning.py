"""A process made fit to be timed: its threads counted and pinned, no collector in between."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mixnas.timing.conditions import Conditions
from mixnas.timing.machine import one_of_each_core, usable

TASKS = Path("/proc/self/task")


@contextmanager
def pinned(conditions: Conditions) -> Iterator[None]:
    """Compute on as many threads as asked for, on as many physical cores; undo all of it after.

    Torch's own threads are set on every device. On the CPU, where this process may use more
    physical cores than that and the system can pin (Linux), all threads that the process has are
    bound together to the first processor of each of the first cores; threads that begin within
    inherit that. Python's garbage collector stands still.
    """
    threads = torch.get_num_threads()
    collects = gc.isenabled()
    torch.set_num_threads(conditions.threads)
    before = _bind(_chosen(conditions))
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        _unbind(before)
        torch.set_num_threads(threads)


def _chosen(conditions: Conditions) -> set[int]:
    """Return the processors to compute on; empty where nothing is to be pinned."""
    if conditions.place.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        return set()
    allowed = usable()
    cores = one_of_each_core(allowed)
    return set(cores[: conditions.threads]) if 0 < conditions.threads <= len(cores) else set()


def _bind(chosen: set[int]) -> dict[int, set[int]]:
    """Bind all threads of this process; return where each was allowed before."""
    before: dict[int, set[int]] = {}
    if not chosen:
        return before
    for thread in _threads():
        try:
            before[thread] = os.sched_getaffinity(thread)
            os.sched_setaffinity(thread, chosen)
        except OSError:  # it has ended, or the system forbids it
            continue
    return before


def _unbind(before: dict[int, set[int]]) -> None:
    """Give every thread back what it had; threads that began within get what the caller had."""
    if not before:
        return
    own = before.get(os.getpid(), set.union(*before.values()))
    for thread in _threads():
        try:
            os.sched_setaffinity(thread, before.get(thread, own))
        except OSError:
            continue


def _threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir(TASKS)]
    except OSError:
        return [0]
