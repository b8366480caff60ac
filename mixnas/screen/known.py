"""What there is: spaces, mixers, published networks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mixnas.cost.limit import describe as amount
from mixnas.report import percent
from mixnas.screen.parts import grid, heading, listed
from mixnas.terminal import rows

MOST_DROPPED = 12
"""Choices without use that are named; the rest are counted (`--json` names all)."""
COUNTS = "These are shares of a count of architectures, not a judgement of what they are worth."
SKIPPED = (
    "Where a stride's widths or depths add up to less than 100%, the rest has no such stage: its "
    "stem enters behind it, or its depth is 0 (which has no width)."
)
RATES = {
    "bins": "counted, with costs rounded to the nearest bin",
    "draws": "of {draws:,} draws: further limits, or memory, only reject",
}
"""How base rates were found, where they are not exact."""


def mixers(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.mixers` returned."""
    table = grid("mixer", "what it is", "knobs", "norm", words=4)
    for mixer in known:
        knobs = "\n".join(f"{knob}: {listed(values)}" for knob, values in mixer["knobs"].items())
        table.add_row(*map(Text, (mixer["name"], mixer["summary"], knobs or "none", mixer["norm"])))
    return table


def spaces(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.spaces` returned."""
    return Group(*(part for space in known for part in _space(space)))


def zoo(known: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render what `mixnas.jobs.zoo` returned: the list, or one network that was counted."""
    if len(known) == 1 and "counted" in known[0]:
        return _zoo_network(known[0])
    table = grid("network", "system", "mixer", "image", "parameters", "FLOPs", "top-1", words=3)
    notes: dict[str, list[str]] = {}
    for network in known:
        published = network["published"]
        cells = (network["name"], network["system"], network["mixer"])
        table.add_row(*map(Text, cells), str(published["image"]), *_figures(published))
        notes.setdefault(published["note"], []).append(network["name"])
    said = [Text(f"{', '.join(names)}: {note}") for note, names in notes.items() if note]
    return Group(
        "As published, FLOPs in the authors' own convention:",
        table,
        *said,
        "\nBuild one and count it: mixnas zoo NAME",
    )


def count(number: int) -> str:
    """Return a count for people: ``12,345`` or ``3.1e+19``."""
    return f"{number:,}" if number < 10**6 else f"{number:.3e}"


def _space(space: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield heading(f"{space['name']}  ({space['file']})")
    least, most = space["cheapest"], space["dearest"]
    facts = {
        "deployed at": f"{space['image']}x{space['image']} pixels, {space['classes']} classes",
        "architectures": count(space["architectures"]),
        "FLOPs": f"{amount('flops', least['flops'])} to {amount('flops', most['flops'])}",
        "parameters": f"{amount('params', least['params'])} to {amount('params', most['params'])}",
        "stems": listed(space["stems"]),
    }
    yield rows({**facts, **dict(_fitting(space))})
    table = grid("stride", "width", "depth", "MLP ratio", "mixers", words=5)
    for stage in space["stages"]:
        ratios = [f"{ratio:g}" for ratio in stage["ratio"]]
        lists = (stage["width"], stage["depth"], ratios, stage["mixers"])
        table.add_row(str(stage["stride"]), *(Text(listed(values)) for values in lists))
    yield table
    if "rates" in space:
        yield from _rates(space["rates"])


def _rates(rates: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Render how often widths, depths and mixers stand among what fits, by stage."""
    yield Text("\nAmong those that fit (mixers: of the blocks there):")
    table = grid("stride", "width", "depth", "mixers", words=4)
    for stride, widths in rates["widths"].items():
        mixers: dict[str, float] = {}
        for key, shares in rates["genes"].items():
            if key.startswith(f"s{stride}.b") and key.endswith(".mixer"):
                for mixer, share in shares.items():
                    mixers[mixer] = mixers.get(mixer, 0.0) + share
        blocks = sum(mixers.values())
        of_blocks = {mixer: share / blocks for mixer, share in mixers.items()} if blocks else {}
        lists = (_shares(widths), _shares(rates["depths"][stride]), _shares(of_blocks))
        table.add_row(stride, *map(Text, lists))
    yield table
    whole = [*rates["widths"].values(), *rates["depths"].values()]
    if any(sum(shares.values()) < 0.9995 for shares in whole):
        yield Text(SKIPPED)
    yield Text(COUNTS)


def _fitting(space: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows about a budget, if one was given."""
    if "fitting" not in space:
        return
    fit = space["fitting"]
    if "reason" in space:
        yield "none fits", space["reason"]
        return
    exact = fit["lower"] == fit["upper"]
    text = count(fit["count"]) if exact else f"about {count(fit['count'])}"
    between = "" if exact else f"; between {count(fit['lower'])} and {count(fit['upper'])}"
    yield (
        f"fit {' and '.join(space['budget'])}",
        f"{text}, {percent(space['share'])} of all{between}; "
        f"{percent(space['acceptance'])} of draws accepted",
    )
    rates = space["rates"]
    for stem, share in space["stem_shares"].items():
        yield f"  stem {stem}", f"{percent(share)} of those that fit"
    yield "  blocks", f"{rates['blocks']:.1f} on average: {_shares(rates['mixers'])}"
    if rates["how"] != "exact":
        yield "  rates", RATES[rates["how"]].format(draws=rates["draws"])
    dropped = space["dropped"]
    more = f"; and {len(dropped) - MOST_DROPPED} more" * (len(dropped) > MOST_DROPPED)
    yield "have no use", "; ".join(dropped[:MOST_DROPPED]) + more or "none: every choice fits some"


def _zoo_network(network: Mapping[str, Any]) -> RenderableType:
    """Render one published network: as published, as counted, and with norms folded."""
    published, counted, folded = (network[key] for key in ("published", "counted", "folded"))
    parameters, flops, accuracy = _figures(published)
    facts = {
        "published by": network["paper"],
        "published": f"{parameters}, {flops}, {accuracy} top-1, at {published['image']} pixels",
        "note": published["note"],
        "counted": f"{network['image']} pixels, {network['classes']} classes, "
        f"{network['width']:g} times the published width",
    }
    table = grid("", "counted", "norms folded", words=1)
    table.add_row("parameters", f"{counted['params']:,}", f"{folded['params']:,}")
    table.add_row("FLOPs", f"{counted['flops']:,}", f"{folded['flops']:,}")
    for operator, number in counted["operators"].items():
        after = folded["operators"].get(operator, 0)
        table.add_row(Text(f"  {operator}"), f"{number:,}", f"{after:,}")
    return Group(
        heading(f"{network['name']}: {network['system']}, mixer {network['mixer']}"),
        rows({label: text for label, text in facts.items() if text}),
        table,
        Text(network["choices"].partition("\nArgs:")[0].strip()),
    )


def _figures(published: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return published parameters, FLOPs and accuracy as they were printed."""
    accuracy = published["accuracy"]
    return (
        amount("params", round(published["params"])),
        amount("flops", round(published["flops"])),
        "-" if accuracy is None else f"{accuracy:g}%",
    )


def _shares(shares: Mapping[str, float]) -> str:
    """Return shares on one line, those that are 0 left out."""
    return ", ".join(f"{name} {percent(share)}" for name, share in shares.items() if share)
