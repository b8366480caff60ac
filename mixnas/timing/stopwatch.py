"""The honest stopwatch: interleaved with a fixed network, disturbed runs taken again, or no figure.

A figure is the median of many runs that nothing disturbed. They come in **blocks**: the module
for some milliseconds, the fixed reference network before it and after it. A block counts unless
this process's threads waited for a processor, others used the machine meanwhile, or the reference
beside it ran at another speed than in the rest of the figure. What is thrown away is taken again
until enough blocks agree, or patience ends and `TooNoisy` says why there is no figure.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mixnas.errors import InvalidOption
from mixnas.timing.blocks import BLOCK, Recorder, filling
from mixnas.timing.conditions import Conditions
from mixnas.timing.disturbance import Watch
from mixnas.timing.figures import Figure, spread
from mixnas.timing.machine import physical_cores
from mixnas.timing.pinning import pinned
from mixnas.timing.reference import SHAPE, Shape, reference
from mixnas.timing.runtimes import RUNTIMES_HERE, Call, Runtime

__all__ = ["Runtime", "Shape", "Stopwatch", "Timing"]

BLOCKS = 12
"""Undisturbed blocks of a part's figure: 12 bound a median at 95 % by their 3rd and 10th."""

LONGEST = 3
"""By how much patience is stretched at most for a network that is slow itself."""


@dataclass(frozen=True)
class Timing:
    """One figure, in milliseconds.

    Attributes:
        median: of the runs that count.
        lower: their lower quartile.
        upper: their upper quartile.
        runs: how many count.
        raw: the median as the clock read it. The three above are scaled to the reference's
            typical time where the stopwatch knows it, else they are raw too.
        reference: the reference's median beside them, as the clock read it.
        spread: half the width of the median's 95 % interval, as a share of the median.
        retimed: runs that were thrown away as disturbed.
    """

    median: float
    lower: float
    upper: float
    runs: int
    raw: float
    reference: float
    spread: float
    retimed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


class Stopwatch:
    """Times modules under fixed conditions.

    Args:
        conditions: device, threads, batch, precision.
        runtime: what computes; eager PyTorch or `torch.compile` by the conditions if not given.
        patience: seconds that one figure may take, without placing and compiling. A network so
            slow that it needs more may take `LONGEST` times as many.
        typical: milliseconds of the reference network that figures are scaled to: a table's own,
            so that all its figures are as of one moment. Without it figures are raw.
        watch: reads the clock and who else uses the machine; the kernel's by default.

    Raises:
        InvalidOption: if the runtime is another than PyTorch's and is not given.
    """

    def __init__(
        self,
        conditions: Conditions,
        runtime: Runtime | None = None,
        *,
        patience: float = 20.0,
        typical: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        if runtime is None and conditions.runtime not in RUNTIMES_HERE:
            raise InvalidOption(
                f"runtime '{conditions.runtime}': the stopwatch needs it given; "
                f"its own are {', '.join(RUNTIMES_HERE)}"
            )
        self.conditions = conditions
        self.runtime = runtime or RUNTIMES_HERE[conditions.runtime]
        self.patience = patience
        self.typical = typical
        self._watch = watch or Watch()
        self._spare = max(0, physical_cores() - conditions.threads)
        self._beside: Call | None = None

    def calibrate(self) -> float:
        """Take the reference's milliseconds now as the typical ones, and return them.

        Raises:
            TooNoisy: if they cannot be told.
        """
        with self._ready() as beside:
            (timing,) = self._timings([beside], 3 * BLOCKS, None)
        self.typical = timing.raw
        return self.typical

    def time(self, module: nn.Module, shape: Shape) -> Timing:
        """Time a part or a network by itself.

        Args:
            module: it is moved, and may be converted, by the runtime.
            shape: the input without the batch, ``(C, H, W)``.

        Raises:
            TooNoisy: if patience ended before the figure was good.
        """
        with self._ready():
            call = self.runtime.place(module, shape, self.conditions)
            return self._timings([call], BLOCKS, self.typical)[0]

    def interleave(
        self, modules: Sequence[nn.Module], shape: Shape, rounds: int = 20
    ) -> list[Timing]:
        """Time whole networks in turn, so that they share the noise.

        Args:
            modules: as in `time`; all are on the device at once.
            shape: of all.
            rounds: undisturbed blocks that each gets at least.

        Raises:
            TooNoisy: if patience, so long for each, ended before all figures were good.
        """
        with self._ready():
            calls = [self.runtime.place(module, shape, self.conditions) for module in modules]
            return self._timings(calls, rounds, self.typical)

    @contextmanager
    def _ready(self) -> Iterator[Call]:
        """Pin threads, and place the reference if it is not yet."""
        with pinned(self.conditions):
            if self._beside is None:
                self._beside = self.runtime.place(reference(), SHAPE, self.conditions)
            yield self._beside

    def _timings(self, calls: Sequence[Call], wanted: int, typical: float | None) -> list[Timing]:
        """Take blocks of each in turn until all figures are good."""
        assert self._beside is not None
        figures = [Figure(wanted, self._spare, typical) for _ in calls]
        with torch.inference_mode():
            recorder = Recorder(self._beside, self.conditions, self._watch)
            spans = list(map(recorder.warm, calls))
            runs = [filling(BLOCK, span) for span in spans]
            least = wanted * sum(map(recorder.lasting, spans))
            began = self._watch.clock()
            patience = 1e9 * self.patience * len(calls)
            ends = began + min(max(patience, 2 * least), LONGEST * patience)
            waiting = list(zip(figures, calls, runs, strict=True))
            while waiting:
                for figure, call, count in waiting:
                    figure.add(recorder.block(call, count))
                waiting = [each for each in waiting if not each[0].good()]
                if waiting and self._watch.clock() > ends:
                    raise waiting[0][0].refusal((self._watch.clock() - began) / 1e9)
        return list(map(_timing, figures))


def _timing(figure: Figure) -> Timing:
    kept = figure.kept()
    raw = [span for number in kept for span in figure.blocks[number].spans]
    scaled = [
        span * figure.factor(number) for number in kept for span in figure.blocks[number].spans
    ]
    lower, median, upper = _quartiles(scaled)
    return Timing(
        median=median,
        lower=lower,
        upper=upper,
        runs=len(raw),
        raw=statistics.median(raw) / 1e6,
        reference=statistics.median(figure.blocks[number].reference for number in kept) / 1e6,
        spread=spread(figure.medians()),
        retimed=sum(len(block.spans) for block in figure.blocks) - len(raw),
    )


def _quartiles(spans: Sequence[float]) -> tuple[float, float, float]:
    """Return milliseconds of nanoseconds."""
    if len(spans) == 1:
        return (spans[0] / 1e6,) * 3
    lower, median, upper = statistics.quantiles(spans, n=4, method="inclusive")
    return lower / 1e6, median / 1e6, upper / 1e6
