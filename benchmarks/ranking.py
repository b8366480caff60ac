"""What makes a supernet rank? Variants of its training against the tabular benchmark's truth.

    python benchmarks/ranking.py --list
    python benchmarks/ranking.py --data FASHION_MNIST_FOLDER --variant joint --seed 0
    python benchmarks/ranking.py --data FASHION_MNIST_FOLDER --all --seed 0,1,2
    python benchmarks/ranking.py --report

A variant trains a supernet of the space `tabular` (or several, of parts of it, for as many steps in
all) on the images of ``benchmarks/tabular.py``, and ranks the networks of the table by their loss
with inherited weights on 1,000 images. Options join by "+": ``alpha+stratified``. A row of
``benchmarks/ranking.csv`` is one variant and seed, its losses in a fixed order of networks. The
report compares them with the truth, the mean over the table's seeds of the loss on the images that
report, overall, within 10 % of budgets, and between networks that differ in a single gene; beside
the ceiling, which one training seed reaches against another. Intervals are percentiles of a
bootstrap over networks; how far supernets of other seeds differ is the spread told beside them.
``--cosines 24`` measures after training how far gradients of networks agree that differ in one
gene, into ``benchmarks/ranking-cosines.json``.
"""

import argparse
import csv
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import torch

from mixnas import data as datasets
from mixnas.arch import Architecture
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.evaluate import SupernetEvaluator
from mixnas.network import Network
from mixnas.ranking import against_mean, bootstrap, ceiling, kendall
from mixnas.sharing import Sharing
from mixnas.space import SearchSpace
from mixnas.storage import write
from mixnas.train.cosines import cosines, groups
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe
from mixnas.train.supernet import SupernetTrainer

HERE = Path(__file__).parent
TABLE, RANKING, COSINES = (
    HERE / name for name in ("tabular.csv", "ranking.csv", "ranking-cosines.json")
)
HEADER = ("variant", "seed", "steps", "train_seconds", "rank_seconds", "losses")
STEPS, NETWORKS, IMAGES = 600, 400, 1000
WINDOWS = (1.0, 0.75, 0.5)
"""Budgets, as quantiles of the networks' FLOPs; inside is within 10 % below."""
RESAMPLES = 400
GENES = ("mixer", "width", "ratio", "depth", "stem")


@dataclass(frozen=True)
class Variant:
    """A way to train, as what differs from the plain one.

    Attributes:
        says: in words.
        recipe: changes of the recipe.
        sharing: changes of what mixers share.
        split: the gene each of whose values has a supernet of its own.
        longer: how many times the steps.
    """

    says: str
    recipe: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    longer: float = 1.0


PLAIN = {"rate": 2e-3, "lesson": "soft"}
"""What the others differ from: the recipe's defaults before these variants were compared."""
VARIANTS = {
    "joint": Variant("one supernet, by the recipe as it was before this comparison"),
    "stratified": Variant("random draws from equal strata of cost", {"spread": "stratified"}),
    "focused": Variant("random draws more at the upper end of cost", {"spread": "focused"}),
    "unfair": Variant("each draw's mixers and stem at random", {"fairness": "uniform"}),
    "stages": Variant("fair, but stems as often as they have stages", {"fairness": "stages"}),
    "feasible": Variant("uniform draws of feasible architectures", {"fairness": "none"}),
    "labels": Variant("every draw learns from the labels", {"lesson": "labels"}),
    "alpha": Variant("AlphaNet's alpha-divergence in place of KL", {"lesson": "alpha"}),
    "nasvit": Variant("the dearest's gradient gives way", {"projection": "dearest"}),
    "yielding": Variant("the others' gradients give way", {"projection": "others"}),
    "best": Variant("attentive: of 3 candidates the best", {"attention": "best"}),
    "worst": Variant("attentive: of 3 candidates the worst", {"attention": "worst"}),
    "warmup": Variant("the dearest alone for a fifth of the steps", {"dearest_first": 0.2}),
    "draws4": Variant(
        "4 random draws in a step, two thirds of the steps", {"draws": 4}, longer=2 / 3
    ),
    "draws1": Variant("1 random draw in a step, 4/3 of the steps", {"draws": 1}, longer=4 / 3),
    "ema999": Variant("slower averaging of the weights", {"ema": 0.999}),
    "rate4e-3": Variant("twice the learning rate", {"rate": 4e-3}),
    "rate1e-2": Variant("the table's own learning rate", {"rate": 1e-2}),
    "hard-labels": Variant("no label smoothing, as in the table", {"smoothing": 0.0}),
    "double": Variant("twice the steps", longer=2.0),
    "scale-shared": Variant("one layer scale for all mixers", sharing={"scale": "shared"}),
    "scale-switchable": Variant(
        "the feed-forward part's layer scale, too, for each mixer", sharing={"scale": "switchable"}
    ),
    "norms-apart": Variant("the surroundings' norms for each mixer", sharing={"norms": "mixer"}),
    "mlp-apart": Variant("a feed-forward part for each mixer", sharing={"feed_forward": "mixer"}),
    "stems-apart": Variant("a supernet for each stem", split="stem"),
    "mixers-apart": Variant(
        "a supernet for each mixer of the last block, a fifth of the steps each",
        split="s8.b0.mixer",
    ),
    "mixers-apart-longer": Variant(
        "a supernet for each mixer of the last block, two fifths of the steps each",
        split="s8.b0.mixer",
        longer=2.0,
    ),
}


def variant(name: str) -> Variant:
    """Return a variant by name, or several joined by "+"."""
    parts = [VARIANTS[part] for part in name.split("+")]
    recipe = {key: value for part in parts for key, value in part.recipe.items()}
    sharing = {key: value for part in parts for key, value in part.sharing.items()}
    splits = [part.split for part in parts if part.split]
    longer = float(np.prod([part.longer for part in parts]))
    says = "; ".join(part.says for part in parts)
    return Variant(says, recipe, sharing, splits[0] if splits else None, longer)


@cache
def ordered() -> tuple[Architecture, ...]:
    """Return all networks in the order of a row's losses, of which any beginning is a sample."""
    archs = sorted(SearchSpace.load("tabular").architectures(), key=lambda arch: arch.id)
    return tuple(Random(0).sample(archs, len(archs)))


@dataclass(frozen=True)
class Trained:
    """A supernet, and what may be asked of it."""

    space: SearchSpace
    network: Network
    evaluator: SupernetEvaluator


def spaces(split: str | None) -> list[SearchSpace]:
    """Return the space, or its parts by a gene."""
    space = SearchSpace.load("tabular")
    if split is None:
        return [space]
    return [_part(space, split, value) for value in space.genes[split]]


def _part(space: SearchSpace, gene: str, value: Any) -> SearchSpace:
    genes = {**space.genes, gene: (value,)}
    if gene == "stem":  # stages that the stem does not enter
        entered = {f"s{stride}" for stride in space.entered(value)}
        genes = {k: v for k, v in genes.items() if k == "stem" or k.split(".")[0] in entered}
    return space.keep(genes)


def train(space: SearchSpace, how: Variant, data: datasets.Data, seed: int, steps: int) -> Trained:
    """Train one supernet as a search would."""
    torch.manual_seed(seed)
    network = Network(space, len(data.labels), sharing=Sharing(**how.sharing))
    table = CostTable(count.flops, image=space.image, classes=space.classes)
    feasible = Feasible(space, parse_all(["1GFLOPs"]), {"flops": table})  # all of them fit
    recipe = Recipe(**{"steps": steps, **PLAIN, **how.recipe})
    trainer = SupernetTrainer(
        network.to(memory_format=torch.channels_last),
        Draws.by(recipe, space, feasible, seed=seed),
        recipe,
    )
    for result in trainer.run(data.train(batch=recipe.batch, seed=seed)):
        if result.step % 25 == 0:
            print(f"\r{result.step}/{steps} {result.losses}", end="", flush=True)
    averaged = trainer.ema.module
    calibration = data.calibration(batches=4, batch=64, seed=seed)
    batches = list(data.batches("rank", batch=250, limit=IMAGES))
    return Trained(space, averaged, SupernetEvaluator(averaged.eval(), calibration, batches))


def run(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train a variant, rank by it, and append its row."""
    torch.set_num_threads(1)
    how = variant(name)
    data = datasets.load(options.data, seed=0, image=SearchSpace.load("tabular").image)
    parts = spaces(how.split)
    steps = max(1, round(options.steps * how.longer / len(parts)))
    began = time.perf_counter()
    trained = [train(part, how, data, seed, steps) for part in parts]
    between = time.perf_counter()
    losses = []
    for number, arch in enumerate(ordered()[: options.networks]):
        evaluator = next(each.evaluator for each in trained if arch in each.space)
        losses.append(evaluator(arch).loss)
        if number % 10 == 0:
            print(f"\r{number}/{options.networks} networks ranked            ", end="", flush=True)
    seconds = between - began, time.perf_counter() - between
    texts = (f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", ";".join(f"{x:.5f}" for x in losses))
    append((name, str(seed), str(options.steps), *texts))
    print(f"\r{name}, seed {seed}: trained in {texts[0]} s, ranked in {texts[1]} s")
    if options.cosines and how.split is None:
        agree(name, seed, trained[0], data, options.cosines)


def append(row: Sequence[str]) -> None:
    """Append a row; what a kill has torn off at the end is cut off first."""
    if not RANKING.exists():
        RANKING.write_text(",".join(HEADER) + "\n", encoding="utf-8")
    with RANKING.open("r+b") as table:
        table.truncate(table.read().rfind(b"\n") + 1)
        table.seek(0, os.SEEK_END)
        table.write((",".join(row) + "\n").encode())


def agree(name: str, seed: int, trained: Trained, data: datasets.Data, number: int) -> None:
    """Measure the cosines of gradients by gene, and keep them."""
    known = json.loads(COSINES.read_text("utf-8")) if COSINES.exists() else {}
    stream = data.train(batch=64, seed=seed + 1000)
    found = {}
    for gene in GENES:
        chosen = groups(trained.space, gene, count=number, rng=Random(seed))
        found[gene] = asdict(cosines(trained.network, gene, chosen, stream))
    known[f"{name}/{seed}"] = found
    write(COSINES, json.dumps(_plain(known), sort_keys=True, allow_nan=False).encode() + b"\n")


def _plain(data: Any) -> Any:
    """Return plain data without NaN, which is no JSON."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and np.isnan(data) else data


def agreements() -> None:
    """Print how far gradients agree, in Markdown: by gene, and each pair of mixers."""
    known = json.loads(COSINES.read_text("utf-8")) if COSINES.exists() else {}
    for name, genes in known.items():
        print(f"\nGradients' cosines, {name}, {genes['mixer']['groups']} groups a gene:\n")
        print("| gene | on one batch, mean over pairs | least | on two batches, of one value |")
        print("|---|---|---|---|")
        for gene, found in genes.items():
            size = range(len(found["values"]))
            pairs = [found["same"][a][b] for a, b in combinations(size, 2)]
            told = [value for value in pairs if value is not None]
            noise = _mean(found["apart"][a][a] or 0.0 for a in size)
            print(f"| {gene} | {fmean(told):.3f} | {min(told):.3f} | {noise:.3f} |")
        values = genes["mixer"]["values"]
        print(f"\n| | {' | '.join(values)} |\n{'|---' * (len(values) + 1)}|")
        for value, row in zip(values, genes["mixer"]["same"], strict=True):
            print(f"| {value} | {' | '.join(f'{cosine:.3f}' for cosine in row)} |")


def done() -> dict[tuple[str, int, int], list[float]]:
    """Return the losses of each variant, seed and number of steps; a torn line is left out."""
    if not RANKING.exists():
        return {}
    text = RANKING.read_text("utf-8")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return {
        (row["variant"], int(row["seed"]), int(row["steps"])): [
            float(loss) for loss in row["losses"].split(";")
        ]
        for row in rows
    }


def truths(networks: int) -> np.ndarray:
    """Return the table's losses on the images that report, (networks, seeds), NaN where none is."""
    rows = list(csv.DictReader(TABLE.read_text("utf-8").splitlines()))
    place = {arch.id: number for number, arch in enumerate(ordered()[:networks])}
    seeds = 1 + max(int(row["seed"]) for row in rows)
    found = np.full((networks, seeds), np.nan)
    for row in rows:
        if row["id"] in place and row["report_loss"]:
            found[place[row["id"]], int(row["seed"])] = float(row["report_loss"])
    return found


def pairs(networks: int) -> dict[str, np.ndarray]:
    """Return pairs of networks that differ in one gene of a kind and in nothing that both have."""
    space = SearchSpace.load("tabular")
    genes = [space.genotype(arch) for arch in ordered()[:networks]]
    found: dict[str, list[tuple[int, int]]] = {gene: [] for gene in GENES}
    for key, kind in ((key, key.rsplit(".", 1)[-1]) for key in space.genes):
        if kind not in found:
            continue
        alike: dict[Any, list[int]] = defaultdict(list)
        for number, own in enumerate(genes):
            if key in own:
                alike[_rest(own, key)].append(number)
        for members in alike.values():
            differ = (p for p in combinations(members, 2) if genes[p[0]][key] != genes[p[1]][key])
            found[kind] += differ
    return {kind: np.array(each).reshape(-1, 2) for kind, each in found.items()}


def _rest(genes: dict[str, Any], key: str) -> tuple[tuple[str, Any], ...]:
    """Return what a network must share with another that differs in a gene."""
    kind, stride = key.rsplit(".", 1)[-1], key.split(".")[0]

    def brought(other: str) -> bool:
        """Say whether a gene comes and goes, or changes its meaning, with the one that differs."""
        if kind == "mixer":
            return other.startswith(key[: -len("mixer")]) and other.count(".") == 3
        if kind == "depth":
            return other.startswith(f"{stride}.b") and not other.startswith(f"{stride}.b0")
        return kind == "stem" and other.startswith("s4.")

    return tuple((k, v) for k, v in sorted(genes.items()) if k != key and not brought(k))


class Judge:
    """Compares rankings with the truth, on the networks that have one."""

    def __init__(self, networks: int) -> None:
        table = truths(networks)
        self.known = np.flatnonzero(~np.isnan(table).all(1))
        self.table = table[self.known]
        self.truth = np.nanmean(self.table, axis=1)
        archs = [ordered()[number] for number in self.known]
        space = SearchSpace.load("tabular")
        tables = {
            name: CostTable(measure, image=space.image, classes=space.classes)
            for name, measure in (("FLOPs", count.flops), ("parameters", count.params))
        }
        self.costs = {
            name: np.array([table(arch) for arch in archs], dtype=float)
            for name, table in tables.items()
        }
        flops = self.costs["FLOPs"]
        budgets = [float(np.quantile(flops, share)) for share in WINDOWS]
        self.windows = [np.flatnonzero((0.9 * b <= flops) & (flops <= b)) for b in budgets]
        back = {number: place for place, number in enumerate(self.known)}
        self.pairs = {
            kind: np.array([(back[a], back[b]) for a, b in each if a in back and b in back])
            for kind, each in pairs(networks).items()
        }

    def ceiling(self) -> tuple[float, float, int]:
        """Return the tau of one seed against another, and the best against the mean of all."""
        full = self.table[:, ~np.isnan(self.table).any(0)]
        one = ceiling(full)
        return one, against_mean(one, full.shape[1]), full.shape[1]

    def trained(self) -> dict[str, float]:
        """Return how one training seed ranks, against the mean of the others: the mean over seeds.

        The truth has one seed less here than for the supernets, so it is somewhat noisier.
        """
        return self._without([[losses] for losses in self.table.T])

    def equally(self, rankings: Sequence[np.ndarray]) -> dict[str, float]:
        """Return how supernets rank, held against the same truths as one training."""
        return self._without([rankings] * self.table.shape[1])

    def _without(self, rankings: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
        """Return mean figures of some rankings for each seed that is left out of the truth."""
        found = []
        for seed, each in enumerate(rankings):
            other = copy(self)
            other.truth = np.delete(self.table, seed, axis=1).mean(1)
            found.append(other.figures(each)(np.arange(len(self.truth))))
        return {name: _mean(row[name] for row in found) for name in found[0]}

    def figures(self, rankings: Sequence[np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
        """Return what tells the figures of some networks: each the mean over rankings."""

        def of(chosen: np.ndarray) -> dict[str, float]:
            times = np.bincount(chosen, minlength=len(self.truth))
            rows = [self._figures(losses, chosen, times) for losses in rankings]
            return {name: _mean(row[name] for row in rows) for name in rows[0]}

        return of

    def _figures(
        self, losses: np.ndarray, chosen: np.ndarray, times: np.ndarray
    ) -> dict[str, float]:
        inside = [np.repeat(window, times[window]) for window in self.windows]
        found = {
            "overall": kendall(losses[chosen], self.truth[chosen]),
            "inside": _mean(
                kendall(losses[part], self.truth[part]) for part in inside if len(part) > 1
            ),
        }
        for kind, each in self.pairs.items():
            if not len(each):
                continue
            one, other = each[:, 0], each[:, 1]
            signs = np.sign(losses[one] - losses[other]) * np.sign(
                self.truth[one] - self.truth[other]
            )
            weight = times[one] * times[other]
            found[kind] = float(signs @ weight / weight.sum()) if weight.sum() else np.nan
        return found


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return fmean(known) if known else float("nan")


def report(steps: int | None) -> None:
    """Print every variant's figures, in Markdown."""
    rows = {key: losses for key, losses in done().items() if steps in (None, key[2])}
    if not rows:
        print(f"{RANKING.name} has no row yet")
        return
    judge = Judge(min(len(losses) for losses in rows.values()))
    one, best, seeds = judge.ceiling()
    sizes = ", ".join(str(len(window)) for window in judge.windows)
    print(
        f"{len(judge.truth)} networks (inside: {sizes}), truth of {judge.table.shape[1]} seeds. "
        f"Ceiling: one seed against another {one:.3f}; "
        f"a perfect ranking against the mean of {seeds}: {best:.3f}."
    )
    counts = ", ".join(f"{kind} {len(each)}" for kind, each in judge.pairs.items())
    print(f"Pairs that differ in one gene: {counts}.\n")
    kinds = ["overall", "inside", *(kind for kind, each in judge.pairs.items() if len(each))]
    print(f"| variant | seeds | {' | '.join(kinds)} | above joint: overall | inside | by seed |")
    print("|---" * (len(kinds) + 5) + "|")
    own = judge.trained()
    cells = " | ".join(f"{own[kind]:.3f}" for kind in kinds)
    print(f"| one training's own loss | {judge.table.shape[1]} | {cells} | - | - | - |")
    for name, costs in judge.costs.items():
        line(judge, f"{name} alone", {0: -costs}, kinds, {})
    by_name: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for (name, seed, length), losses in rows.items():
        label = name if length == STEPS else f"{name}, {length} steps"
        by_name[label][seed] = np.array(losses)[judge.known]
    for name, rankings in by_name.items():
        line(judge, name, rankings, kinds, {} if name == "joint" else by_name.get("joint", {}))
    print("\nHeld against two of the table's seeds, as one training is:\n")
    for name, rankings in by_name.items():
        if len(rankings) > 1:
            equal = judge.equally(list(rankings.values()))
            print(f"{name}: overall {equal['overall']:.3f}, inside {equal['inside']:.3f}")
    agreements()


def line(
    judge: Judge,
    name: str,
    rankings: dict[int, np.ndarray],
    kinds: Sequence[str],
    joint: dict[int, np.ndarray],
) -> None:
    """Print one variant's row: its figures, and how far they are above the plain one's."""
    everything = np.arange(len(judge.truth))
    figures = judge.figures(list(rankings.values()))
    both = sorted(rankings.keys() & joint.keys())
    mine, plain = (judge.figures([of[seed] for seed in both]) for of in (rankings, joint))

    def all_of(chosen: np.ndarray) -> dict[str, float]:
        found = figures(chosen)
        if not both:
            return found
        a, b = mine(chosen), plain(chosen)
        return found | {f"above {kind}": a[kind] - b[kind] for kind in ("overall", "inside")}

    value, drawn = all_of(everything), bootstrap(all_of, len(judge.truth), RESAMPLES)

    def cell(key: str, sign: str = "") -> str:
        if key not in value:
            return "-"
        low, high = np.nanquantile(drawn[key], [0.025, 0.975])
        return f"{value[key]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    cells = [cell(kind) for kind in kinds]
    cells += [cell(f"above {kind}", "+") for kind in ("overall", "inside")]
    each = (kendall(losses, judge.truth) for losses in rankings.values())
    cells.append(", ".join(f"{tau:.3f}" for tau in each))
    print(f"| {name} | {len(rankings)} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--variant", help="one, or several joined by +; commas between runs")
    parser.add_argument("--all", action="store_true", help="every variant of --list")
    parser.add_argument("--seed", default="0", help="of weights, draws and images; commas between")
    parser.add_argument("--steps", type=int, help=f"of the plain variant, {STEPS} by default")
    parser.add_argument("--networks", type=int, default=NETWORKS, help="how many are ranked")
    parser.add_argument("--cosines", type=int, default=0, help="groups a gene; 0: not measured")
    parser.add_argument("--list", action="store_true", help="name the variants")
    parser.add_argument("--report", action="store_true", help="compare what there is")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:20} {each.says}" for name, each in VARIANTS.items()))
    names = list(VARIANTS) if options.all else (options.variant or "").split(",")
    wanted = [(name, int(seed)) for seed in options.seed.split(",") for name in names if name]
    if wanted and not options.data:
        parser.error("--data is needed to train")
    steps, options.steps = options.steps, options.steps or STEPS
    for name, seed in wanted:
        if options.cosines or (name, seed, options.steps) not in done():
            run(name, seed, options)
    if options.report:
        report(steps)


if __name__ == "__main__":
    main()
