"""A search over `micro` with a made-up cost and loss: quick, and the same in every process.

As a script it runs the search on a log without Ray: ``python searching.py LOG TRIALS SECONDS``.
"""

import hashlib
import sys
import time
from functools import partial
from pathlib import Path
from random import Random

from mixnas.arch import Architecture
from mixnas.asktell import Search
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable
from mixnas.evaluate import Score
from mixnas.network import Part
from mixnas.space import SearchSpace

SPACE = SearchSpace.load("micro")


def digest(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def measure(part: Part) -> int:
    return 1000 + int(1000 * digest(f"{part.kind} {part.spec}"))


def loss(arch: Architecture) -> float:
    """Separable: a sum of a fixed worth for each choice at each place."""
    worth = [digest(f"stem {arch.stem.kind}")]
    for i, stage in enumerate(arch.stages):
        worth += [digest(f"{i} {stage.width}")]
        for j, block in enumerate(stage.blocks):
            worth += [2 * digest(f"{i} {j} {block.mixer}"), digest(f"{i} {j} {block.ratio}")]
    return sum(worth) / len(worth)


def evaluate(arch: Architecture, seconds: float = 0.0) -> Score:
    time.sleep(seconds)
    return Score(1 - loss(arch) / 3, loss(arch), 100)


def make_evaluator(seconds: float = 0.0):
    return partial(evaluate, seconds=seconds)


class Toy:
    """The parts of a search: its table, its limit in the middle of the space, its feasible set."""

    def __init__(self, space: SearchSpace = SPACE) -> None:
        self.space = space
        self.table = CostTable(measure, image=space.image, classes=space.classes)
        rng = Random(0)
        costs = sorted(self.table(space.sample(rng)) for _ in range(200))
        self.limit = Limit("flops", costs[20], costs[120])
        self.feasible = Feasible(space, [self.limit], {"flops": self.table})

    def search(self, log: Path, **options) -> Search:
        settings = {"sampler": "nsga2", "seed": 3, "trials": 60, "population": 10, **options}
        return Search(
            self.space,
            self.feasible,
            costs={"flops": self.table},
            limits=[self.limit],
            log=log,
            **settings,
        )


def finish(search: Search, seconds: float = 0.0) -> Search:
    while (candidate := search.ask()) is not None:
        search.tell(candidate.number, evaluate(candidate.arch, seconds))
    return search


if __name__ == "__main__":
    finish(Toy().search(Path(sys.argv[1]), trials=int(sys.argv[2])), float(sys.argv[3]))
