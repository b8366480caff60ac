"""The tabular benchmark: train every architecture of the space `tabular` alone, and keep a table.

    python benchmarks/tabular.py --data FASHION_MNIST_FOLDER

A row of ``benchmarks/tabular.csv`` is one training: an architecture, a seed (of first weights and
of the order of images), its loss and accuracy on the 3,000 images that rank, and on 3,000 others
that report. What a sampler may see is seed 0 on the images that rank; the truth is the mean of the
other seeds on those that report. The script goes on where the table ends. Rows come seed by seed,
each seed in an order of its own, so that any beginning of it is a fair sample.
"""

import argparse
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch

from mixnas import data as datasets
from mixnas.arch import Architecture
from mixnas.evaluate import score
from mixnas.jobs.settings import duration
from mixnas.network import build
from mixnas.space import SearchSpace
from mixnas.train.alone import AloneTrainer
from mixnas.train.recipe import AloneRecipe

TABLE = Path(__file__).parent / "tabular.csv"
SEEDS = 3
RECIPE = AloneRecipe(steps=100, batch=64, rate=1e-2, smoothing=0.0)
HEADER = "id,seed,rank_loss,rank_accuracy,report_loss,report_accuracy,seconds"

Batches = tuple[tuple[torch.Tensor, torch.Tensor], ...]


def tasks(space: SearchSpace) -> list[tuple[Architecture, int]]:
    """Return every training, in the order of the table."""
    archs = sorted(space.architectures(), key=lambda arch: arch.id)
    return [
        (arch, seed) for seed in range(SEEDS) for arch in Random(seed).sample(archs, len(archs))
    ]


@cache
def loaded(folder: str, side: int) -> tuple[datasets.Data, Batches, Batches]:
    """Return the data, and the images that rank and those that report, once in a process."""
    data = datasets.load(folder, seed=0, image=side)
    rank, report = (tuple(data.batches(split, batch=256)) for split in ("rank", "report"))
    return data, rank, report


def train(arch: dict[str, Any], seed: int, folder: str, side: int) -> str:
    """Train one architecture from scratch; return its row."""
    torch.set_num_threads(1)
    data, rank, report = loaded(folder, side)
    torch.manual_seed(seed)
    network = build(Architecture.from_dict(arch), len(data.labels))
    trainer = AloneTrainer(network.to(memory_format=torch.channels_last), RECIPE, seed=seed)
    began = time.perf_counter()
    for _ in trainer.run(data.train(batch=RECIPE.batch, seed=seed)):
        pass
    seconds = time.perf_counter() - began
    scores = [score(network, batches) for batches in (rank, report)]
    figures = [f"{each.loss:.5f},{each.accuracy:.5f}" for each in scores]
    return ",".join([Architecture.from_dict(arch).id, str(seed), *figures, f"{seconds:.2f}"])


def known() -> set[tuple[str, int]]:
    """Return the trainings that the table holds; a torn last line is cut off."""
    if not TABLE.exists():
        TABLE.write_text(HEADER + "\n", encoding="utf-8")
    text = TABLE.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        TABLE.write_text(whole, encoding="utf-8")
    rows = (line.split(",") for line in whole.splitlines()[1:])
    return {(row[0], int(row[1])) for row in rows}


def main() -> None:
    """Train what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_FORM)
    parser.add_argument("--data", required=True, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--most", type=int, help="stop after that many trainings")
    options = parser.parse_args()
    space = SearchSpace.load("tabular")
    done = known()
    left = [task for task in tasks(space) if (task[0].id, task[1]) not in done][: options.most]
    print(f"{space.size()} architectures x {SEEDS} seeds: {len(done)} done, {len(left)} to do")
    began, count = time.perf_counter(), 0
    queue = iter(left)
    with (
        ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
        TABLE.open("a", encoding="utf-8") as table,
    ):

        def submit(number: int) -> set[Future[str]]:
            return {
                pool.submit(train, arch.to_dict(), seed, options.data, space.image)
                for arch, seed in islice(queue, number)
            }

        running = submit(2 * options.workers)
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                table.write(future.result() + "\n")
                table.flush()
                count += 1
            running |= submit(len(ready))
            pace = (time.perf_counter() - began) / count
            print(f"\r{count}/{len(left)}, {duration(pace * (len(left) - count))} left ", end="")
    print()


_FORM = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
