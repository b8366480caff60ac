"""One figure out of blocks: which of them count, how far they agree, and why there is none."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from mixnas.errors import TooNoisy
from mixnas.timing.blocks import Block

WAITED = 0.02
"""Share of a block's time that threads may wait for a processor."""
SHORT = 20_000
"""Nanoseconds that they may wait whatever the share."""
OTHERS = 0.1
"""Processors that others may use, beside half of those that are not computed on."""
OFF = 0.15
"""Share by which the reference may differ from its median in the same figure."""
SPREAD = 0.05
"""Half width of the median's interval, as a share of it, at most."""
SLIGHT = 20_000.0
"""Nanoseconds of half width that are never too many."""
DRIFT = 2.0
"""Factor by which the reference may differ from its typical time."""
MOSTLY = 0.5
"""Share of disturbed blocks above which they are the reason that there is no figure."""
NEAR = 3
"""Blocks before and after, whose references are smoothed into one factor."""

REASONS = {
    "waited": "threads of this process waited for processors",
    "others": "other processes computed",
    "off": "the reference network's speed changed",
}


class Figure:
    """Blocks of one module.

    Args:
        wanted: undisturbed blocks that are needed.
        spare: processors that are not computed on.
        typical: milliseconds of the reference that times are scaled to; none: they stay raw.
    """

    def __init__(self, wanted: int, spare: int, typical: float | None) -> None:
        self.wanted = wanted
        self.spare = spare
        self.typical = typical
        self.blocks: list[Block] = []

    def add(self, block: Block) -> None:
        """Take one block more."""
        self.blocks.append(block)

    def kept(self) -> list[int]:
        """Return the numbers of the blocks that count: their window ended, nothing disturbed."""
        centre = self.reference()
        return [
            number
            for number, block in enumerate(self.blocks)
            if block.told and not self._reasons(block, centre)
        ]

    def reference(self) -> float:
        """Return the reference's median in nanoseconds, over all blocks."""
        return statistics.median(block.reference for block in self.blocks)

    def _reasons(self, block: Block, centre: float) -> list[str]:
        """Return what disturbed a block."""
        found = []
        if block.waited > max(SHORT, WAITED * sum(block.spans)):
            found.append("waited")
        if block.others is not None and block.others > OTHERS + self.spare / 2:
            found.append("others")
        if abs(block.reference - centre) > OFF * centre:
            found.append("off")
        return found

    def factor(self, number: int) -> float:
        """Return what a block's times are multiplied by: typical over present reference.

        The present one is the median of the blocks near it, since one reference of some
        milliseconds is itself uncertain by several per cent.
        """
        if self.typical is None:
            return 1.0
        near = self.blocks[max(0, number - NEAR) : number + NEAR + 1]
        return self.typical * 1e6 / statistics.median(block.reference for block in near)

    def medians(self) -> list[float]:
        """Return the nanoseconds of each block that counts."""
        return [
            statistics.median(self.blocks[number].spans) * self.factor(number)
            for number in self.kept()
        ]

    def good(self) -> bool:
        """Say whether enough blocks count, and agree, at a speed that can be compared."""
        if sum(block.told for block in self.blocks) < self.wanted:
            return False
        medians = self.medians()
        return len(medians) >= max(self.wanted, 1) and agree(medians) and not self._slow()

    def _slow(self) -> float:
        """Return the reference's time as a multiple of its typical one, 0 if it is near enough."""
        ratio = self.reference() / (self.typical * 1e6) if self.typical else 1.0
        return 0.0 if 1 / DRIFT <= ratio <= DRIFT else ratio

    def refusal(self, seconds: float) -> TooNoisy:
        """Return why there is no figure after so many seconds."""
        return TooNoisy(
            f"busy machine: no true time after {seconds:.0f} s, since {self._why()}; stop what "
            "else runs, or repeat later; no figure was kept"
        )

    def _why(self) -> str:
        """Return what came between, the most telling reason only."""
        kept = self.medians()
        causes = [self._reasons(block, self.reference()) for block in self.blocks]
        counts = Counter(reason for found in causes for reason in found)
        share = sum(map(bool, causes)) / len(causes)
        if counts and (share > MOSTLY or len(kept) < self.wanted):
            return f"{share:.0%} of the runs were disturbed ({self._told(counts)})"
        if self._slow():
            return (
                f"the reference network takes {self._slow():.2g} times as long as when this "
                "table was begun"
            )
        if len(kept) >= self.wanted:
            return f"runs differ so much that their median is known to {spread(kept):.0%} only"
        return f"{len(kept)} of {self.wanted} blocks of runs are all that it allowed"

    def _told(self, counts: Counter[str]) -> str:
        """Return the reasons in words, the most frequent first."""
        used = [block.others for block in self.blocks if block.others is not None]
        words = []
        for reason, count in counts.most_common():
            more = f", {statistics.median(used):.1f} processors" if reason == "others" else ""
            words.append(f"{REASONS[reason]} in {count / len(self.blocks):.0%}{more}")
        return "; ".join(words)


def agree(medians: Sequence[float]) -> bool:
    """Say whether a median is known well enough."""
    return spread(medians) <= max(SPREAD, SLIGHT / statistics.median(medians))


def spread(values: Sequence[float]) -> float:
    """Return half the width of the median's 95 % interval, as a share of the median.

    The interval lies between two order statistics, whatever the distribution (David and
    Nagaraja, Order Statistics, section 7.1); of fewer than 6 values it is their whole range.
    """
    ordered = sorted(values)
    rank = _rank(len(ordered))
    return (ordered[-1 - rank] - ordered[rank]) / 2 / statistics.median(ordered)


def _rank(count: int) -> int:
    """Return the greatest number of values to leave out at each end of a 95 % interval."""
    below, rank = 0.0, 0
    while rank < count:
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            break
        rank += 1
    return max(0, rank - 1)
