"""Who takes part in a comparison: plain descriptions, chosen by rules that are the same for all.

The winner; each published system at one common rule of width; the networks of one mixer; random
feasible draws; a well-known network of timm. Each is described by JSON from which a worker builds
it, and by its costs at the deployed image.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from random import Random
from typing import Any

from torch import nn

from mixnas import model
from mixnas.arch import Architecture
from mixnas.errors import BudgetUnreachable, InvalidOption, did_you_mean
from mixnas.jobs import one_mixer, scaling, timm_rivals
from mixnas.jobs.problem import Problem
from mixnas.jobs.scaling import Scales

KINDS = ("system", "mixer", "control", "random", "timm", "equal")
"""Who may stand beside the winner; `--only` chooses among them."""
USUAL = KINDS[:-1]
"""Who does unless told: the equal-compute control takes as long as the search did."""

MOST_DRAWS = 20
"""Draws at most, on average, for a random architecture that has not been drawn before."""


FULL = 0.9
"""Share of the budget below which it is said that a system's widths come in coarse steps."""


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Attributes:
        key: its name in files.
        kind: ``winner`` or one of `KINDS`.
        label: its name for people.
        source: what `create` builds it from.
        costs: flops, params and (if it is limited) latency in nanoseconds, as deployed.
        note: what must be said beside it.
    """

    key: str
    kind: str
    label: str
    source: Mapping[str, Any]
    costs: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def described(entrant: Entrant) -> bool:
    """Say whether an entrant that was read from a file is what it should be."""
    words = entrant.key, entrant.kind, entrant.label, entrant.note
    costs = entrant.costs if isinstance(entrant.costs, Mapping) else {}
    return (
        all(isinstance(word, str) for word in words)
        and entrant.kind in ("winner", *KINDS)
        and isinstance(entrant.source, Mapping)
        and {"flops", "params"} <= costs.keys()
        and all(type(cost) is int for cost in costs.values())
    )


def create(source: Mapping[str, Any], *, classes: int, image: int) -> nn.Module:
    """Build an entrant's network, untrained.

    Args:
        source: as in `Entrant`.
        classes: of the head.
        image: side of the images in pixels, on which tables of positions depend.
    """
    if "timm" in source:
        return timm_rivals.create(source["timm"], classes=classes, image=image)
    return model.create(source, classes=classes, image=image)


def check(only: Iterable[str], timm: str | None) -> None:
    """Refuse kinds and a timm network that do not exist.

    Raises:
        InvalidOption: in one line, with the cure.
    """
    for kind in only:
        if kind not in KINDS:
            raise InvalidOption(f"no kind of entrant '{kind}'; {did_you_mean(kind, KINDS)}")
    if timm is not None:
        timm_rivals.check(timm)


Maker = Callable[[], Entrant]
"""Finds an entrant; raises a `MixnasError` where there is none, whose text says why."""


def makers(
    problem: Problem, winner: Architecture, only: Iterable[str], random: int, timm: str | None
) -> dict[str, Maker]:
    """Return who shall take part: key to a call that finds the entrant.

    Args:
        problem: what was searched.
        winner: the best architecture.
        only: the kinds beside the winner; none means the usual ones. `equal` adds one more.
        random: how many random feasible architectures.
        timm: a network of timm by name; by default the nearest in cost among well-known ones.
    """
    scales = Scales(problem, create)
    draws = cache(partial(_draws, problem, winner, random))
    found: dict[str, dict[str, Maker]] = {
        "system": {f"system-{s}": partial(_system, s, scales) for s in scaling.contenders()},
        "mixer": {
            f"mixer-{m}": partial(_mixer, "mixer", m, problem, winner)
            for m in one_mixer.searched(problem.full)
        },
        "control": {
            f"control-{m}": partial(_mixer, "control", m, problem, winner)
            for m in one_mixer.CONTROLS
        },
        "random": {f"random-{i + 1}": partial(_random, i, problem, draws) for i in range(random)},
        "timm": {f"timm-{timm}" if timm else "timm": partial(_timm, timm, scales, winner)},
    }
    wanted = set(only) or set(USUAL)
    chosen = {key: make for kind in found if kind in wanted for key, make in found[kind].items()}
    return {"winner": partial(_arch, "winner", "winner", "the winner", problem, winner), **chosen}


def equal(problem: Problem, choose: Callable[[], tuple[Architecture, str]]) -> dict[str, Maker]:
    """Return the equal-compute control, which `choose` finds by training random networks."""

    def make() -> Entrant:
        arch, note = choose()
        return _arch("equal", "equal", "random, equal compute", problem, arch, note)

    return {"equal": make}


def _arch(
    key: str, kind: str, label: str, problem: Problem, arch: Architecture, note: str = ""
) -> Entrant:
    costs = {name: table(arch) for name, table in problem.tables.items()}
    return Entrant(key, kind, label, {"arch": arch.to_dict()}, costs, note)


def _system(name: str, scales: Scales) -> Entrant:
    source = scaling.scaled(name, scales)
    label = f"{source['zoo']} x {source['width']:.3g}"
    costs = scales(source)
    load = scales.load(costs)
    note = f"{load:.0%} of the budget: the next of its widths is above it" if load < FULL else ""
    return Entrant(f"system-{name}", "system", label, source, costs, note)


def _mixer(kind: str, mixer: str, problem: Problem, winner: Architecture) -> Entrant:
    arch, note = one_mixer.nearest(problem, winner, mixer)
    return _arch(f"{kind}-{mixer}", kind, f"{mixer} alone", problem, arch, note)


def _draws(problem: Problem, winner: Architecture, number: int) -> list[Architecture]:
    """Draw feasible architectures, uniformly and without repetition; as many as there are."""
    rng = Random(f"compare {problem.settings.seed}")
    drawn = {winner.id: winner}
    for _ in range(MOST_DRAWS * number):
        if len(drawn) > number:
            break
        arch = problem.feasible.sample(rng)
        drawn.setdefault(arch.id, arch)
    return [arch for arch in drawn.values() if arch != winner]


def _random(index: int, problem: Problem, draws: Callable[[], list[Architecture]]) -> Entrant:
    found = draws()
    if index >= len(found):
        raise BudgetUnreachable("no further architecture lies within the budget")
    key = f"random-{index + 1}"
    return _arch(key, "random", f"random draw {index + 1}", problem, found[index])


def _timm(name: str | None, scales: Scales, winner: Architecture) -> Entrant:
    chosen = name or timm_rivals.nearest(scales, winner)
    source = {"timm": chosen}
    costs = scales(source)
    note = "" if scales.within(costs) else "outside the budget, as asked for"
    return Entrant(f"timm-{name}" if name else "timm", "timm", chosen, source, costs, note)
