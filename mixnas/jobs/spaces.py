"""`mixnas spaces`: what a search space offers, and what a budget leaves of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixnas.cost.count import flops, params
from mixnas.cost.feasible import Feasible
from mixnas.cost.graph import Graph
from mixnas.cost.limit import MEASURED, Limit, parse_all
from mixnas.cost.memory import PeakMemory
from mixnas.cost.table import Additive, CostTable, Peaking
from mixnas.errors import BudgetUnreachable, InvalidBudget
from mixnas.jobs.settings import at_least, pixels
from mixnas.space import SearchSpace, find, shipped

Tables = Mapping[str, Additive | Peaking]

TRIED = 200
"""Draws that tell the acceptance."""


def spaces(
    space: str | None = None,
    *,
    budget: str | Sequence[str] = (),
    mixers: Sequence[str] = (),
    image: int | None = None,
    classes: int | None = None,
) -> list[dict[str, Any]]:
    """Describe the shipped search spaces, or one.

    Args:
        space: a shipped name or a TOML file; all shipped ones by default.
        budget: limits in FLOPs, parameters or bytes of memory that hold together.
        mixers: narrow the spaces to these.
        image: side of the deployed image in pixels, each space's own by default.
        classes: classes of the deployed network, each space's own by default.

    Returns:
        For each: name, file, image, classes, architectures, stems, stages, and the cheapest and
        dearest (flops, params, each on its own). With a budget also: budget, fitting (count, and
        its lower and upper bound, all equal where it is exact), share of all, acceptance (of
        draws: how many lay within every limit), stem_shares (of those that fit), rates (how often
        each choice stands among them: `mixnas.cost.rates.Rates.to_dict`), and dropped (choices
        that no fitting architecture makes); or the reason why none fits.

    Raises:
        InvalidSpace: if there is no such space, or it makes no sense.
        InvalidBudget: if a budget cannot be read, or is of what must be measured.
        BudgetUnreachable: if nothing of the one space asked for fits.
    """
    limits = _limits((budget,) if isinstance(budget, str) else budget)
    pixels("image", image)
    if classes is not None:
        at_least("classes", classes, 2)
    found = []
    for name in [space] if space is not None else list(shipped()):
        loaded = SearchSpace.load(name)
        loaded = loaded.only_mixers(tuple(mixers)) if mixers else loaded
        loaded = replace(loaded, image=image or loaded.image, classes=classes or loaded.classes)
        found.append(_describe(loaded, str(find(name)), limits, alone=space is not None))
    return found


def _limits(budget: Sequence[str]) -> tuple[Limit, ...]:
    limits = parse_all(budget)
    for limit in limits:
        if limit.kind in MEASURED:
            raise InvalidBudget(
                f"budget {limit}: {limit.kind} must be measured on the device, and mixnas spaces "
                "only counts; give FLOPs, params or MB here, or try mixnas search --dry-run"
            )
    return limits


def _describe(
    space: SearchSpace, file: str, limits: tuple[Limit, ...], *, alone: bool
) -> dict[str, Any]:
    sizes = {"image": space.image, "classes": space.classes}
    tables = {
        "flops": CostTable(flops, **sizes),
        "params": CostTable(params, **sizes),
    }
    cheapest, dearest = _extremes(space, tables)
    peak = PeakMemory(image=space.image, classes=space.classes)
    described = {
        "name": space.name,
        "file": file,
        **sizes,
        "architectures": space.size(),
        "stems": list(space.genes["stem"]),
        "stages": [_stage(space, stride) for stride in space.strides],
        "cheapest": cheapest,
        "dearest": dearest,
    }
    if not limits:
        return described
    return {**described, **_fitting(space, limits, {**tables, "memory": peak}, alone=alone)}


def _stage(space: SearchSpace, stride: int) -> dict[str, Any]:
    """Return what one stage offers, over all its blocks."""
    genes, blocks = space.genes, range(space.blocks(stride))
    mixers = {m: None for i in blocks for m in genes[f"s{stride}.b{i}.mixer"]}
    ratios = {r for i in blocks for r in genes[f"s{stride}.b{i}.ratio"]}
    return {
        "stride": stride,
        "width": list(genes[f"s{stride}.width"]),
        "depth": list(genes[f"s{stride}.depth"]),
        "ratio": sorted(ratios),
        "mixers": list(mixers),
    }


def _extremes(
    space: SearchSpace, tables: Mapping[str, CostTable]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the least and the greatest of each cost, each on its own."""
    graph = Graph(space)
    costs = {name: graph.measure(table.segment) for name, table in tables.items()}
    least = {name: int(graph.onward(cost)[0]) for name, cost in costs.items()}
    most = {name: int(graph.onward(cost, greatest=True)[0]) for name, cost in costs.items()}
    return least, most


def _fitting(
    space: SearchSpace, limits: tuple[Limit, ...], tables: Tables, *, alone: bool
) -> dict[str, Any]:
    """Return what the limits leave of a space."""
    facts: dict[str, Any] = {"budget": [str(limit) for limit in limits]}
    try:
        feasible = Feasible(space, limits, tables)
        (lower, upper), count = feasible.bounds(), feasible.count()
        rates, accepted = feasible.rates(), feasible.tried(TRIED)
    except BudgetUnreachable as error:
        if alone:
            raise
        facts |= {"fitting": {"count": 0, "lower": 0, "upper": 0}, "share": 0.0}
        return {**facts, "reason": str(error)}
    return {
        **facts,
        "fitting": {"count": count, "lower": lower, "upper": upper},
        "share": count / space.size(),
        "acceptance": accepted,
        "stem_shares": dict(rates.stems),
        "rates": rates.to_dict(),
        "dropped": _dropped(space, feasible.useful()),
    }


def _dropped(space: SearchSpace, useful: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Say which choices have no use; what follows from another lost choice is left out."""
    lines = []
    for key, choices in space.genes.items():
        if key not in useful:  # its mixer, block or stage is gone, which another line says
            continue
        lost = [str(choice) for choice in choices if choice not in useful[key]]
        if lost:
            lines.append(f"{key} {', '.join(lost)}")
    return lines
