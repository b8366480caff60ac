"""The networks of one mixer: the winner's nearest relatives whose every block has that mixer.

The rule is the same for every mixer, offered by the space or not: all of the winner's mixers are
replaced, and of the architectures with that mixer only, whose leading cost lies within 3 % of the
winner's and which keep every limit, the one that changes the fewest further choices is taken.
"""

from collections.abc import Mapping
from itertools import product
from math import ceil, floor
from typing import Any

from mixnas import mixers as registry
from mixnas.arch import Architecture
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.errors import BudgetUnreachable, InvalidSpace
from mixnas.jobs.problem import Problem
from mixnas.space import SearchSpace

CONTROLS = ("identity", "attention")
"""Does any mixer matter, and is none better than plain attention?"""
FIVE = ("additive", "xnorm", "hilo", "aff", "single_head")
"""The mixers of the five published systems."""
WINDOWS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
"""How far the leading cost may be from the winner's, as a share; the first that holds any."""


def searched(space: SearchSpace) -> list[str]:
    """Return the mixers that are compared: the five, and what else the space offers."""
    others = {m for key, values in space.genes.items() if key.endswith(".mixer") for m in values}
    return [*FIVE, *sorted(others - {*FIVE, *CONTROLS})]


def nearest(problem: Problem, winner: Architecture, mixer: str) -> tuple[Architecture, str]:
    """Return the architecture of one mixer that is nearest to the winner, and a note.

    Raises:
        BudgetUnreachable: if no such architecture keeps the limits.
        InvalidSpace: if the mixer fits none of a stage's widths.
    """
    space = with_mixer(problem.full, mixer)
    start = skeleton(space, problem.full.genotype(winner))
    first, *others = problem.limits
    cost = problem.tables[first.cost](winner)
    for share in WINDOWS:
        low = max(first.low, ceil(cost * (1 - share)))
        window = Limit(first.cost, low, min(first.high, floor(cost * (1 + share))))
        try:
            feasible = Feasible(space, (window, *others), problem.tables)
            return feasible.nearest(start), _note(share)
        except BudgetUnreachable:
            continue
    raise BudgetUnreachable(f"no architecture of {mixer} alone keeps the limits")


def _note(share: float) -> str:
    return "" if share == WINDOWS[0] else f"within {share:.0%} of the winner's cost: none is nearer"


def with_mixer(space: SearchSpace, mixer: str) -> SearchSpace:
    """Return the space with this mixer in every block, and no other.

    Where a block does not offer it, it gets the choices that the block's other mixers have for
    knobs of the same name, else its own default; a stage keeps the widths at which that works.

    Raises:
        UnknownMixer: if there is none of that name.
        InvalidSpace: if a stage is left without a width.
    """
    genes = {key: values for key, values in space.genes.items() if key.count(".") != 3}
    for stride in space.strides:
        widths: tuple[int, ...] = space.genes[f"s{stride}.width"]
        for index in range(space.blocks(stride)):
            at = f"s{stride}.b{index}"
            knobs = _knobs(space, at, mixer)
            widths = tuple(width for width in widths if _works(mixer, width, knobs))
            genes[f"{at}.mixer"] = (mixer,)
            genes |= {f"{at}.{mixer}.{knob}": values for knob, values in knobs.items()}
        if not widths:
            raise InvalidSpace(
                f"space '{space.name}', stride {stride}: {mixer} fits none of its widths"
            )
        genes[f"s{stride}.width"] = widths
    return SearchSpace(space.name, space.image, space.classes, genes)


def _knobs(space: SearchSpace, at: str, mixer: str) -> dict[str, tuple[Any, ...]]:
    """Return the choices of a mixer's knobs in a block."""
    if mixer in space.genes[f"{at}.mixer"]:
        return space.knobs(at, mixer)
    shared: dict[str, tuple[Any, ...]] = {}
    for other in space.genes[f"{at}.mixer"]:
        shared |= space.knobs(at, other)
    own = registry.get(mixer).knobs
    return {knob: shared.get(knob, values)[:1] for knob, values in sorted(own.items())}


def _works(mixer: str, width: int, knobs: Mapping[str, tuple[Any, ...]]) -> bool:
    check = registry.get(mixer).check
    chosen = (dict(zip(knobs, values, strict=True)) for values in product(*knobs.values()))
    return all(check(width, **knob) is None for knob in chosen)


def skeleton(space: SearchSpace, genes: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a space that makes the given choices wherever it can.

    Where it cannot it takes the nearest number, or else the first choice.
    """

    def choose(key: str, choices: tuple[Any, ...]) -> Any:
        value = genes.get(key)
        if value in choices:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return min(choices, key=lambda choice: abs(choice - value))
        return choices[0]

    return space.pick(choose)
