"""The samplers on the truth: searches over the space `tabular`, each network of it trained alone.

    python benchmarks/samplers.py                        # all samplers, 30 seeds, some minutes
    python benchmarks/samplers.py --samplers surrogate,nsga2@10,random --seeds 100-109 --csv OTHER

A search sees the loss of one training seed on the images that rank (benchmarks/tabular.csv); the
searches take the training seeds in turn, so that no single draw of their noise decides. Each is
judged by the mean of the other seeds' losses on the images that report, which it never saw:

* regret: the true loss of the incumbent (least loss seen) less that of the best within the budget;
* hypervolume: of the search's own front at its true losses, in (loss, FLOPs), against the point of
  the greatest true loss and the greatest FLOPs within the budget, as a share of the true front's.

Beside them, what no choice by a noisy loss spoils: "lowest" is the regret of the truly best that
was evaluated, "volume_found" the hypervolume of all that was evaluated, each at its true loss.

All after 70 and after 200 evaluations. The budget leaves the cheapest two thirds of the space.
`NAME@N` sets the size of a generation. A row of benchmarks/samplers.csv is one search; the script
goes on where it ends. Parameters of samplers were chosen on seeds from 100; 0 to 29 judge them.
Exit code 1 if the default sampler fails: its median regret at 70 evaluations must be at most random
search's at 200, and its hypervolume at 200 above random's of the same seed nine times in ten.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from mixnas.asktell import Search, Trial, front
from mixnas.cost.count import flops
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable
from mixnas.evaluate import Score, TableEvaluator
from mixnas.jobs.settings import Settings
from mixnas.space import SearchSpace

HERE = Path(__file__).parent
SAMPLERS = "surrogate,nsga2,tpe,evolution,random"
EARLY, LATE = 70, 200
KEPT = 2 / 3
POPULATION = 20
CHOSEN = ("regret_70", "regret_200", "volume_70", "volume_200")
FOUND = ("lowest_70", "lowest_200", "volume_found_70", "volume_found_200")
FIGURES = (*CHOSEN, *FOUND)
HEADER = f"sampler,seed,visible,truth,kept,{','.join(FIGURES)},seconds"


class Task:
    """The table as a search sees it, and as it is judged."""

    def __init__(self, table: Path, visible: int, kept: float) -> None:
        space = SearchSpace.load("tabular")
        rows, whole = recorded(table, space.size())
        seen = rows[rows.seed == visible].set_index("id")
        judges = sorted(seed for seed in whole if seed != visible) or [visible]
        truth = rows[rows.seed.isin(judges)].groupby("id").report_loss.mean()
        self.space, self.visible, self.judges, self.kept = (
            space,
            visible,
            "+".join(map(str, judges)),
            kept,
        )
        self.cost = CostTable(flops, image=space.image, classes=space.classes)
        costs = {arch.id: self.cost(arch) for arch in space.architectures()}
        self.limit = Limit("flops", 0, int(np.quantile(list(costs.values()), kept)))
        self.truth = {key: float(truth[key]) for key in costs if costs[key] <= self.limit.high}
        self.evaluate = TableEvaluator(
            {row.Index: Score(row.rank_accuracy, row.rank_loss, 3000) for row in seen.itertuples()}
        )
        self.feasible = Feasible(space, [self.limit], {"flops": self.cost})
        self.corner = max(costs[key] for key in self.truth), max(self.truth.values())
        self.volume = volume([(costs[key], loss) for key, loss in self.truth.items()], self.corner)

    def __str__(self) -> str:
        same = " (the very seed that is seen, for want of another)"
        return (
            f"{self.space.size()} architectures, {len(self.truth)} within {self.limit.high:,} "
            f"FLOPs; seen: training seed {self.visible}, judged by {self.judges}"
            f"{same if self.judges == str(self.visible) else ''}; "
            f"corner: {self.corner[0]:,} FLOPs, {self.corner[1]:.4f} nats"
        )

    def key(self, name: str, seed: int) -> tuple[str, ...]:
        """Return what tells one search from another."""
        return tuple(map(str, (name, seed, self.visible, self.judges, f"{self.kept:.3f}")))

    def search(self, name: str, seed: int, log: Path) -> list[Trial]:
        """Search the table; return the trials."""
        sampler, _, population = name.partition("@")
        search = Search(
            self.space,
            self.feasible,
            costs={"flops": self.cost},
            limits=[self.limit],
            sampler=sampler,
            seed=seed,
            trials=LATE,
            population=int(population or POPULATION),
            log=log,
        )
        while (candidate := search.ask()) is not None:
            search.tell(candidate.number, self.evaluate(candidate.arch))
        search.close()
        return search.trials

    def figures(self, trials: Sequence[Trial]) -> list[float]:
        """Return regret and hypervolume of what is chosen by the loss seen, and of all found."""
        best, loss = min(self.truth.values()), self.truth
        incumbent = min(trials, key=lambda trial: trial.loss)
        lowest = min(loss[trial.arch.id] for trial in trials)
        shares = [
            volume([(trial.cost, loss[trial.arch.id]) for trial in points], self.corner)
            / self.volume
            for points in (front(trials), trials)
        ]
        return [loss[incumbent.arch.id] - best, shares[0], lowest - best, shares[1]]


def recorded(table: Path, size: int) -> tuple[pd.DataFrame, list[int]]:
    """Return the table, and the training seeds of which it holds every architecture."""
    rows = pd.read_csv(table).drop_duplicates(["id", "seed"])
    counts = {int(seed): int(count) for seed, count in rows.seed.value_counts().items()}
    whole = sorted(seed for seed, count in counts.items() if count == size)
    if not whole:
        sys.exit(
            f"{table}: no seed has all {size} rows, but {counts}; benchmarks/tabular.py goes on"
        )
    return rows, whole


def volume(points: Sequence[tuple[int, float]], corner: tuple[int, float]) -> float:
    """Return the area that points dominate, up to a corner."""
    area, best = 0.0, corner[1]
    ordered = [*sorted(points), (corner[0], best)]
    for (cost, loss), (following, _) in pairwise(ordered):
        best = min(best, loss)
        area += (following - cost) * (corner[1] - best)
    return area


@cache
def task(table: Path, visible: int, kept: float) -> Task:
    return Task(table, visible, kept)


def run(name: str, seed: int, table: Path, visible: int, kept: float) -> tuple[object, ...]:
    """Make one search in a folder of its own, and judge it; return its row."""
    one = task(table, visible, kept)
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        trials = one.search(name, seed, Path(folder) / "log.jsonl")
    seconds = f"{time.perf_counter() - began:.2f}"
    figures = [
        x
        for pair in zip(*(one.figures(trials[:n]) for n in (EARLY, LATE)), strict=True)
        for x in pair
    ]
    return (*one.key(name, seed), *(f"{figure:.6f}" for figure in figures), seconds)


def known(path: Path) -> set[tuple[str, ...]]:
    """Return what the file holds; a torn last line is cut off, an absent file begun."""
    text = path.read_text(encoding="utf-8") if path.exists() else HEADER + "\n"
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole, encoding="utf-8")
    return {tuple(row[:5]) for row in csv.reader(whole.splitlines()[1:])}


def median(values: np.ndarray) -> tuple[float, float, float]:
    """Return a median and its 95 % interval by the bootstrap over seeds."""
    if len(set(values)) < 2:
        return (float(np.median(values)),) * 3
    found = bootstrap(
        (values,), np.median, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(np.median(values)), float(found.low), float(found.high)


def report(rows: pd.DataFrame, default: str) -> bool:
    """Print a table, the wins and the verdict on the default sampler."""
    by = {name: group.set_index("seed") for name, group in rows.groupby("sampler")}
    ordered = sorted(by.items(), key=lambda item: item[1].volume_200.median())
    print("medians and 95 % intervals over seeds")
    for shown in (CHOSEN, FOUND):
        print(f"{'sampler':12}{'seeds':>6}{''.join(f'{figure:>27}' for figure in shown)}  seconds")
        for name, group in ordered:
            cells = [median(group[figure].to_numpy()) for figure in shown]
            text = "".join(f"{a:>9.4f} [{low:.4f}, {high:.4f}]" for a, low, high in cells)
            print(f"{name:12}{len(group):>6}{text}{group.seconds.median():>9.1f}")
    for name in (other for other in by if other != default and default in by):
        told = []
        for figure in FIGURES:
            lead = (by[default][figure] - by[name][figure]).dropna()
            lead *= 1 if "volume" in figure else -1
            told.append(f"{figure} {int((lead > 0).sum())} (ties {int((lead == 0).sum())})")
        print(f"{default} better than {name}, of {len(lead)} seeds: {', '.join(told)}")
    return verdict(by, default)


def verdict(by: dict[str, pd.DataFrame], default: str) -> bool:
    """Judge the default sampler against random search."""
    if default not in by or "random" not in by:
        print("no verdict: it needs the default sampler and random")
        return True
    own, chance = by[default], by["random"]
    early, late = own.regret_70.median(), chance.regret_200.median()
    lead = (own.volume_200 - chance.volume_200).dropna()
    wins, needed = int((lead > 0).sum()), ceil(0.9 * len(lead))
    first, second = early <= late, wins >= needed
    words = {True: "PASS", False: "FAIL"}
    print(
        f"{words[first]}: {default}'s median regret at {EARLY} is {early:.4f}, "
        f"random's at {LATE} is {late:.4f}\n"
        f"{words[second]}: hypervolume at {LATE} above random's in {wins} of {len(lead)} seeds, "
        f"{needed} needed"
    )
    return first and second


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw every search as a point, a panel a figure."""
    from matplotlib.figure import Figure

    names = sorted(rows.sampler.unique())
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    shown = ("regret", "true regret, nats"), ("volume", "share of the true front's hypervolume")
    for axes, (what, label) in zip(figure.subplots(1, 2), shown, strict=True):
        for place, name in enumerate(names):
            group = rows[rows.sampler == name]
            for shift, when in ((-0.17, EARLY), (0.17, LATE)):
                values = group[f"{what}_{when}"].to_numpy()
                spread = np.linspace(-0.1, 0.1, len(values))
                colour = "tab:orange" if when == EARLY else "tab:blue"
                told = f"{when} evaluations" if place == 0 else None
                axes.plot(place + shift + spread, values, ".", color=colour, alpha=0.5, label=told)
                axes.hlines(np.median(values), place + shift - 0.14, place + shift + 0.14, "black")
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(label)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", default=SAMPLERS)
    parser.add_argument("--seeds", default="0-29", help="FIRST-LAST")
    parser.add_argument(
        "--visible", type=int, nargs="+", help="training seeds seen (all whole ones)"
    )
    parser.add_argument("--kept", type=float, default=KEPT, help="share of the space in the budget")
    parser.add_argument("--default", default=Settings.sampler, help="the sampler to be judged")
    parser.add_argument("--table", type=Path, default=HERE / "tabular.csv")
    parser.add_argument("--csv", type=Path, default=HERE / "samplers.csv")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    size = SearchSpace.load("tabular").size()
    seen = options.visible or recorded(options.table, size)[1]
    for visible in seen:
        print(Task(options.table, visible, options.kept))
    first, last = map(int, options.seeds.split("-"))
    wanted = {}
    for seed in range(first, last + 1):
        visible = seen[seed % len(seen)]
        for name in options.samplers.split(","):
            wanted[task(options.table, visible, options.kept).key(name, seed)] = visible
    left = [key for key in wanted if key not in known(options.csv)]
    print(f"{len(wanted) - len(left)} searches known, {len(left)} to make", flush=True)
    with (
        ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
        options.csv.open("a", encoding="utf-8", newline="") as file,
    ):
        for future in [
            pool.submit(run, key[0], int(key[1]), options.table, wanted[key], options.kept)
            for key in left
        ]:
            csv.writer(file, lineterminator="\n").writerow(future.result())
            file.flush()
    rows = pd.read_csv(options.csv, dtype={"visible": str, "truth": str, "kept": str})
    keys = list(
        zip(rows.sampler, rows.seed.astype(str), rows.visible, rows.truth, rows.kept, strict=True)
    )
    rows = rows[[key in wanted for key in keys]].drop_duplicates(["sampler", "seed"])
    draw(rows, options.csv.with_suffix(".png"))
    return 0 if report(rows, options.default) else 1


if __name__ == "__main__":
    sys.exit(main())
