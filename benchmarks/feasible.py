"""The feasible set under two limits: does it count right, draw uniformly, and answer quickly?

    python benchmarks/feasible.py

On three small spaces every pair of limits is counted against a list of all architectures, and
50,000 draws are tested for uniformity (chi-square, fixed seeds, p > 0.001). On `default` FLOPs are
limited together with three latencies that add up over parts: one that follows FLOPs, one with a
rate of its own for each part, one that falls where FLOPs rise; and with parameters. There the
bracket of the count is timed, a draw is timed, and 10,000 draws are checked against both limits.
Prints PASS or FAIL for each promise; exits with 1 if one fails. Takes about three minutes on one
core, most of it counting the parts of `default` and checking draws. No data, no GPU.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from random import Random
from zlib import crc32

from scipy.stats import chisquare

from mixnas.arch import Architecture
from mixnas.cost.count import flops, params
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable, Measure
from mixnas.network import Part
from mixnas.space import SearchSpace

DRAWS = 10_000
BRACKET_SECONDS = 10.0
DRAW_SECONDS = 0.005


def main() -> int:
    """Check every promise; return 0 if all are kept."""
    failed = 0
    for check in (small, full):
        for name, holds, found in check():
            print(f"{'PASS' if holds else 'FAIL'}  {name}: {found}", flush=True)
            failed += not holds
    return 1 if failed else 0


def small() -> Iterator[tuple[str, bool, str]]:
    """Yield the promises on small spaces: name, kept or not, what was found."""
    for space in small_spaces():
        archs = list(space.architectures())
        costs = {"flops": _of(scattered, space), "params": _of(against, space)}
        values = {cost: {arch: table(arch) for arch in archs} for cost, table in costs.items()}
        right, pairs = 0, 0
        for ends in product([(0, 0.3), (0, 0.6), (0.2, 0.7)], repeat=2):
            limits = [
                _between(cost, values[cost].values(), *part)
                for cost, part in zip(costs, ends, strict=True)
            ]
            found = [a for a in archs if all(x.excess(values[x.cost][a]) <= 0 for x in limits)]
            if not found:
                continue
            pairs += 1
            feasible = Feasible(space, limits, costs)
            right += feasible.exact and feasible.count() == len(found)
            if ends == ((0, 0.6), (0, 0.6)):
                p_value, acceptance = uniformity(feasible, found)
                yield (
                    f"{space.name}: 50,000 draws are uniform",
                    p_value > 0.001,
                    f"p = {p_value:.3f} over {len(found):,} architectures, "
                    f"{acceptance:.1%} of draws accepted",
                )
        yield (
            f"{space.name}: the count equals a list of all {len(archs):,}",
            right == pairs,
            f"under {right} of {pairs} pairs of limits",
        )


def uniformity(feasible: Feasible, population: Sequence[Architecture]) -> tuple[float, float]:
    """Return the p-value of 50,000 draws under uniformity, and the acceptance."""
    counts = dict.fromkeys(population, 0)
    rng = Random(1)
    for _ in range(50_000):
        counts[feasible.sample(rng)] += 1
    return float(chisquare(list(counts.values())).pvalue), feasible.acceptance


def full() -> Iterator[tuple[str, bool, str]]:
    """Yield the promises on `default`."""
    space = SearchSpace.load("default")
    first = {"flops": _of(multiply_adds, space), "params": _of(params, space)}
    Feasible(space, [Limit(cost, 0, 10**15) for cost in first], first)  # counts every part once
    rng = Random(2)
    alone = Feasible(space, [Limit.parse("1.5GFLOPs")], first)
    archs = [alone.sample(rng) for _ in range(300)]
    for name, measure in LATENCIES.items():
        table = _of(measure, space)
        values = sorted(map(table, archs))
        for part in QUANTILES[name]:
            limits = [Limit.parse("1.5GFLOPs"), Limit("latency", 0, values[int(part * 300)])]
            yield from promises(f"FLOPs and {name}", space, limits, {**first, "latency": table})
    yield from promises(
        "FLOPs and parameters",
        space,
        [Limit.parse("1.5GFLOPs"), Limit.parse("6Mparams")],
        first,
    )


def promises(
    name: str, space: SearchSpace, limits: Sequence[Limit], tables: dict[str, CostTable]
) -> Iterator[tuple[str, bool, str]]:
    """Yield what two limits on a large space have to keep."""
    name = f"{name} ({' and '.join(map(str, limits))})"
    began = time.perf_counter()
    feasible = Feasible(space, limits, tables)
    low, high = feasible.bounds()
    span = time.perf_counter() - began
    yield (
        f"{name}: bracket within {BRACKET_SECONDS:.0f} s",
        span < BRACKET_SECONDS and 0 < low <= high,
        f"{span:.2f} s, {low:.3e} to {high:.3e}",
    )
    rng = Random(3)
    feasible.sample(rng)
    drawn, accepted = feasible.drawn, feasible.accepted
    began = time.perf_counter()
    archs = [feasible.sample(rng) for _ in range(DRAWS)]
    span = (time.perf_counter() - began) / DRAWS
    share = (feasible.accepted - accepted) / (feasible.drawn - drawn)
    yield (
        f"{name}: a draw within {1000 * DRAW_SECONDS:.0f} ms",
        span < DRAW_SECONDS,
        f"{1000 * span:.2f} ms, {share:.1%} accepted",
    )
    beyond = sum(any(x.excess(tables[x.cost](arch)) > 0 for x in limits) for arch in archs)
    yield f"{name}: no draw beyond a limit", beyond == 0, f"{beyond} of {DRAWS:,}"
    yield given_draws(name, space, feasible)


def given_draws(name: str, space: SearchSpace, feasible: Feasible) -> tuple[str, bool, str]:
    """Time draws of a training step: every block's mixer is given, anew each time."""
    rng, spans = Random(4), dict.fromkeys([(0.0, 1.0), (0.9, 1.0)], 0.0)
    keys = [key for key in space.genes if key.endswith(".mixer")]
    for share in spans:
        began = time.perf_counter()
        for _ in range(100):
            feasible.sample(rng, {key: rng.choice(space.genes[key]) for key in keys}, share=share)
        spans[share] = 10 * (time.perf_counter() - began)
    anywhere, upper = spans.values()
    found = f"{anywhere:.2f} ms; {upper:.2f} ms near the upper edge"
    return f"{name}: a draw with all mixers given (no promise)", True, found


def scattered(part: Part) -> int:
    """Return a cost in the billions without any structure: bins hold many sums."""
    return crc32(repr(part).encode()) % 4000 * 1_000_003


def against(part: Part) -> int:
    """Return a cost that falls where `scattered` rises, but for noise."""
    return (4000 - scattered(part) // 1_000_003) * 10_007 + crc32(repr((part, 1)).encode()) % 10**6


@cache
def multiply_adds(part: Part) -> int:
    """Count a part once; counting takes most of this script's time otherwise."""
    return flops(part)


def following(part: Part) -> int:
    """Return nanoseconds: a launch, and 100 multiply-adds a nanosecond."""
    return 40_000 + multiply_adds(part) // 100


def own_rates(part: Part) -> int:
    """Return nanoseconds: a launch, and a rate of its own for each kind and mixer."""
    rate = 40 + crc32(repr((part.kind, part.spec)).encode()) % 160
    return 40_000 + multiply_adds(part) // rate


def opposed(part: Part) -> int:
    """Return nanoseconds: much where FLOPs are few, as if work that they do not count ruled."""
    return 50_000 + 4 * 10**12 // (multiply_adds(part) + 4_000_000)


LATENCIES: dict[str, Measure] = {
    "a latency that follows them": following,
    "a latency with rates of its own": own_rates,
    "a latency that falls where they rise": opposed,
}
COSTS: dict[Measure, str] = {scattered: "flops", against: "params", multiply_adds: "flops"}
COSTS |= dict.fromkeys(LATENCIES.values(), "latency")
QUANTILES = {
    "a latency that follows them": (0.3,),
    "a latency with rates of its own": (0.02, 0.3),
    "a latency that falls where they rise": (0.02, 0.3),
}
"""Where each latency's limit lies among architectures within the limit of FLOPs."""


def small_spaces() -> list[SearchSpace]:
    """Return three spaces of 1,220 to a few thousand architectures."""
    hilo = {"hilo": {"alpha": (0.5, 0.9)}, "single_head": {}}
    return [
        SearchSpace.load("tabular"),
        _space("one stage", ("conv16",), [(16, (1, 3), (32, 48, 64))], hilo, (1.0, 2.0)),
        _space(
            "three stages",
            ("conv8", "conv16", "patch16"),
            [(8, (1,), (16, 24)), (16, (1, 2), (32, 40)), (32, (0, 1), (48,))],
            {"additive": {}, "aff": {}},
            (1.0, 2.0),
        ),
    ]


def _space(
    name: str,
    stems: tuple[str, ...],
    stages: list[tuple[int, tuple[int, ...], tuple[int, ...]]],
    mixers: dict[str, dict[str, tuple[float, ...]]],
    ratios: tuple[float, ...],
) -> SearchSpace:
    genes: dict[str, tuple[object, ...]] = {"stem": stems}
    for stride, depths, widths in stages:
        genes |= {f"s{stride}.depth": depths, f"s{stride}.width": widths}
        for at in (f"s{stride}.b{block}" for block in range(depths[-1])):
            genes[f"{at}.mixer"] = tuple(mixers)
            for mixer, knobs in mixers.items():
                genes |= {f"{at}.{mixer}.{knob}": values for knob, values in knobs.items()}
            genes[f"{at}.ratio"] = ratios
    return SearchSpace(name, 64, 10, genes)


def _of(measure: Measure, space: SearchSpace) -> CostTable:
    table = CostTable(measure, image=space.image, classes=space.classes)
    table.cost = COSTS.get(measure, table.cost)
    return table


def _between(cost: str, values: object, low: float, high: float) -> Limit:
    known = sorted(values)  # type: ignore[call-overload]
    least, most = (int(known[int(part * (len(known) - 1))]) for part in (low, high))
    return Limit(cost, least if low else 0, most)


if __name__ == "__main__":
    sys.exit(main())
