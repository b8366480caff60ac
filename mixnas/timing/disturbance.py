"""Who else used the machine while something was timed, as Linux tells it under ``/proc``.

Where there is no ``/proc`` nothing is told, and only the reference network beside a timing and
the timing's own spread say that it was disturbed.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixnas.timing.machine import usable

PROC = Path("/proc")


@dataclass(frozen=True)
class Load:
    """How the machine was used since it started.

    Attributes:
        busy: seconds that the processors computed, for anyone; those that a hypervisor took away
            count as busy.
        own: seconds of them that this process computed.
        wall: seconds of the clock.
    """

    busy: float
    own: float
    wall: float

    def others(self, before: "Load") -> float:
        """Return how many processors others used on average since an earlier reading."""
        span = self.wall - before.wall
        spent = (self.busy - before.busy) - (self.own - before.own)
        return max(0.0, spent / span) if span > 0 else 0.0


def busy_seconds(text: str, processors: Iterable[int], ticks: int) -> float:
    """Return the seconds that processors were busy, of the text of ``/proc/stat``.

    All columns but idle and waiting for a disk: user, nice, system, interrupts and steal. Guests
    are in user already (proc_stat(5)).

    Args:
        text: the file.
        processors: their numbers.
        ticks: of a second (``sysconf(_SC_CLK_TCK)``).
    """
    wanted = {f"cpu{number}" for number in processors}
    total = 0
    for line in text.splitlines():
        name, *columns = line.split()
        if name in wanted:
            user, nice, system, _, _, *rest = map(int, columns[:8])
            total += user + nice + system + sum(rest)
    return total / ticks


def waited(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return the nanoseconds that threads waited for a processor between two readings.

    Args:
        before: by thread, since it began.
        after: the same later; a thread that began or ended between the readings counts nothing.
    """
    return sum(after[thread] - before[thread] for thread in after.keys() & before.keys())


class Watch:
    """Reads the clock, and what the kernel tells of this process and of the machine.

    Args:
        processors: those that this process may use, all by default.
        proc: where the kernel tells it.
        clock: nanoseconds of the clock.
        spent: nanoseconds that this process has computed, all threads.
    """

    def __init__(
        self,
        processors: Iterable[int] | None = None,
        proc: Path = PROC,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        spent: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self.processors = sorted(usable() if processors is None else processors)
        self.proc = proc
        self.clock = clock
        self._spent = spent

    def waiting(self) -> dict[str, int]:
        """Return how long each thread of this process has waited for a processor, nanoseconds.

        The second number of ``/proc/self/task/*/schedstat``: runnable, but not running. Empty
        where the kernel does not tell.
        """
        tasks = f"{self.proc}/self/task"
        found = {}
        try:
            threads = os.listdir(tasks)
        except OSError:
            return {}
        for thread in threads:
            try:
                with open(f"{tasks}/{thread}/schedstat", encoding="ascii") as file:
                    found[thread] = int(file.read().split()[1])
            except (OSError, IndexError, ValueError):  # the thread ended, or nothing is told
                continue
        return found

    def load(self) -> Load | None:
        """Return the machine's use until now, or ``None`` where the kernel does not tell."""
        try:
            text = (self.proc / "stat").read_text(encoding="ascii")
            busy = busy_seconds(text, self.processors, os.sysconf("SC_CLK_TCK"))
        except (OSError, ValueError):
            return None
        return Load(busy, self._spent() / 1e9, self.clock() / 1e9)
