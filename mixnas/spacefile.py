"""Read a search space from TOML, and refuse what does not make sense, naming file, stage, field."""

from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from mixnas import mixers as registry
from mixnas.arch import STEM_STRIDES
from mixnas.errors import InvalidSpace, UnknownMixer, did_you_mean
from mixnas.space import SearchSpace

TOP = ("name", "image", "classes", "stems", "ratio", "mixers", "stages")
STAGE = ("stride", "width", "depth", "ratio", "mixers", "knobs")


def read(data: Mapping[str, Any], path: Path) -> SearchSpace:
    """Turn parsed TOML into a space.

    Raises:
        InvalidSpace: for a missing, unknown or senseless field.
    """
    _only(data, TOP, f"{path}")
    where = f"{path}"
    stems = _choices(data.get("stems"), f"{where}, stems", str)
    for stem in stems:
        if stem not in STEM_STRIDES:
            raise InvalidSpace(
                f"{where}, stems: no stem '{stem}'; {did_you_mean(stem, STEM_STRIDES)}"
            )
    stages = data.get("stages")
    if not isinstance(stages, list) or not stages:
        raise InvalidSpace(f"{where}, stages: missing; write one [[stages]] table for each stride")
    genes: dict[str, tuple[Any, ...]] = {"stem": stems}
    for number, stage in enumerate(stages, start=1):
        genes |= _stage(stage, data, f"{where}, stage {number}", last=number == len(stages))
    space = SearchSpace(
        name=str(data.get("name", path.stem)),
        image=_whole(data.get("image", 224), f"{where}, image", least=16),
        classes=_whole(data.get("classes", 1000), f"{where}, classes", least=2),
        genes=genes,
    )
    _pyramid(space, where)
    return space


def _stage(
    stage: Mapping[str, Any], data: Mapping[str, Any], where: str, *, last: bool
) -> dict[str, tuple[Any, ...]]:
    """Return the genes of one stage."""
    _only(stage, STAGE, where)
    stride = _whole(stage.get("stride"), f"{where}, stride", least=1)
    widths = _choices(stage.get("width"), f"{where}, width", int)
    depths = _choices(stage.get("depth"), f"{where}, depth", int, least=0)
    if depths[-1] == 0 or (depths[0] == 0 and not last):
        raise InvalidSpace(f"{where}, depth: only the last stage may offer 0, and not alone")
    ratios = _choices(stage.get("ratio", data.get("ratio")), f"{where}, ratio", float)
    offered = _mixers(stage, data, where)
    for mixer, knobs in offered.items():
        _fits(mixer, knobs, widths, where)
    genes: dict[str, tuple[Any, ...]] = {f"s{stride}.depth": depths, f"s{stride}.width": widths}
    for i in range(depths[-1]):
        at = f"s{stride}.b{i}"
        genes[f"{at}.mixer"] = tuple(offered)
        for mixer, knobs in offered.items():
            genes |= {f"{at}.{mixer}.{knob}": values for knob, values in sorted(knobs.items())}
        genes[f"{at}.ratio"] = ratios
    return genes


def _mixers(
    stage: Mapping[str, Any], data: Mapping[str, Any], where: str
) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Return the mixers that a stage offers, each with the choices of all its knobs."""
    shared = _table(data.get("mixers", {}), f"{where}, mixers")
    own = _table(stage.get("knobs", {}), f"{where}, knobs")
    names = _choices(stage.get("mixers", list(shared)), f"{where}, mixers", str)
    offered = {}
    for name in names:
        try:
            mixer = registry.get(name)
        except UnknownMixer as error:
            raise InvalidSpace(f"{where}: {error}") from None
        given = {**_table(shared.get(name, {}), where), **_table(own.get(name, {}), where)}
        _only(given, tuple(mixer.knobs), f"{where}, mixer '{name}'", "knob")
        offered[name] = {
            knob: _choices(
                given.get(knob, list(values)), f"{where}, {name}.{knob}", type(values[0])
            )
            for knob, values in mixer.knobs.items()
        }
    stray = set(own) - set(names)
    if stray:
        raise InvalidSpace(
            f"{where}, knobs: {', '.join(sorted(stray))} is not a mixer of this stage"
        )
    return offered


def _fits(
    mixer: str, knobs: Mapping[str, tuple[Any, ...]], widths: tuple[int, ...], where: str
) -> None:
    """Refuse knobs that cannot work at one of the widths."""
    for width, *values in product(widths, *knobs.values()):
        chosen = dict(zip(knobs, values, strict=True))
        if reason := registry.get(mixer).check(width, **chosen):
            raise InvalidSpace(f"{where}, mixer '{mixer}' at width {width}: {reason}")


def _pyramid(space: SearchSpace, where: str) -> None:
    """Refuse strides that do not double, and stems that enter where there is no stage."""
    for number, (fine, coarse) in enumerate(pairwise(space.strides), start=2):
        if coarse != 2 * fine:
            raise InvalidSpace(
                f"{where}, stage {number}, stride: {coarse} follows {fine}; each stage stands at "
                "twice the stride of the one before"
            )
    for kind in space.genes["stem"]:
        stride = STEM_STRIDES[kind]
        if stride not in space.strides:
            raise InvalidSpace(
                f"{where}, stems: '{kind}' enters at stride {stride}, where there is no stage "
                f"(strides: {', '.join(map(str, space.strides))})"
            )
        if not space.genes[f"s{stride}.depth"][0]:
            raise InvalidSpace(f"{where}, stems: '{kind}' enters at a stage that may be absent")
        for width in space.genes[f"s{stride}.width"]:
            if width % 8:
                raise InvalidSpace(
                    f"{where}, stems: '{kind}' needs widths divisible by 8, not {width}"
                )


def _only(
    table: Mapping[str, Any], known: tuple[str, ...], where: str, noun: str = "field"
) -> None:
    """Refuse a table with an unknown key."""
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) if known else "(it has none)"
            raise InvalidSpace(f"{where}: no {noun} '{key}'; {hint}")


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidSpace(f"{where}: {value!r} is not a table")
    return value


def _whole(value: Any, where: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidSpace(
            f"{where}: {value!r} given; a whole number of at least {least} is needed"
        )
    return value


def _choices(value: Any, where: str, kind: type, *, least: float | None = None) -> tuple[Any, ...]:
    """Return a list's values: of one kind, not empty, and increasing if they are numbers."""
    if value is None:
        raise InvalidSpace(f"{where}: missing; write a list of choices")
    values = value if isinstance(value, list) else [value]
    number = kind in (int, float)
    allowed: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not values or any(isinstance(v, bool) != (kind is bool) for v in values):
        raise InvalidSpace(f"{where}: {value!r} given; a list of {kind.__name__} is needed")
    if not all(isinstance(v, allowed) for v in values):
        raise InvalidSpace(f"{where}: {value!r} given; a list of {kind.__name__} is needed")
    if number:
        low = (1 if kind is int else 0) if least is None else least
        if values[0] < low or (kind is float and values[0] <= 0):
            raise InvalidSpace(f"{where}: {values[0]!r} is too small")
        if any(b <= a for a, b in pairwise(values)):
            raise InvalidSpace(
                f"{where}: {value!r} does not increase; list each choice once, rising"
            )
    elif len(set(values)) != len(values):
        raise InvalidSpace(f"{where}: {value!r} repeats a choice")
    return tuple(float(v) if kind is float else v for v in values)
