"""Where a network's time goes, beside its FLOPs: rows for people, one figure, one page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import describe as amount
from mixnas.report.drawing import canvas, colour, literal, png
from mixnas.report.measured import conditions_rows, figure_of
from mixnas.report.page import image, made_with, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPLAINED = "explain"
"""Where an explanation stands in a run, without its suffix: facts, picture and page."""

KINDS = {
    "stem": ("stem", "#4d4d4d"),
    "local": ("local 3x3", "#a6a6a6"),
    "mlp": ("MLP", "#dcdcdc"),
    "merge": ("merge", "#7a7a7a"),
    "head": ("head", "#000000"),
}
"""What is not a mixer: its name and its colour, without hue, so that mixers stand out."""

LEAST_PRICED = 0.005
"""Share of the total below which an operation's price is left out of the picture."""

HOW_TO_READ_EXPLAINED = (
    "Parts are measured alone, one after the other, and shares are shares of their sum; the "
    "network as a whole takes a little more or less, which is what the prediction is calibrated "
    "for.",
    "A FLOP is one fused multiply-add, counted at the deployed image and classes. The price of a "
    "FLOP is a share of the time divided by the share of the FLOPs: 1 is the network's mean, 2 is "
    "twice as dear. Depth-wise convolutions, norms and the movement of data have few FLOPs or "
    "none and take time all the same, so small prices are found in large matrix products.",
    "A merge belongs to the stage that it leads to; the stem stands for itself.",
)


def explained(run: Run, place: str = EXPLAINED) -> Path:
    """Draw the picture and write the page of an explanation, from its facts in a run.

    Args:
        run: the folder that holds ``PLACE.json``, what `mixnas.jobs.explain` returned.
        place: where in the run, without a suffix; the picture and the page stand beside it.

    Returns:
        The page.

    Raises:
        RunConflict: if the facts are not there, or are damaged.
        StorageFull: if the disk is full.
    """
    facts = f"{place}.json"
    found = run.read(facts)
    with run.reading(facts):
        run.write(f"{place}.png", png(explained_figure(found)))
        title = f"mixnas: where the {what(found)} of {found.get('of', found['id'])} goes"
        text = page(title, _sections(run, found, place))
    return run.write(f"{place}.html", text)


def what(found: Mapping[str, Any]) -> str:
    """Return what is shared out: time or energy."""
    return "energy" if found["quantity"] == "energy" else "time"


def explained_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures of the whole: label and text."""
    quantity = found["quantity"]
    yield "architecture", found["id"]
    yield "parts' sum", f"{figure_of(quantity, found['sum'])}, each of them measured alone"
    if found["predicted"]:
        yield "predicted", _interval(quantity, found["predicted"])
    if found["measured"]:
        yield "measured", _measured(found)
    yield "FLOPs", amount("flops", found["flops"])
    yield "parameters", amount("params", found["params"])
    if memory := found["memory"]:
        total, weights, live = (
            amount("memory", memory[key]) for key in ("total", "weights", "activations")
        )
        text = f"{total}: weights {weights}, activations {live} at {memory['at']}"
        if memory["measured"] is not None:
            text += f"; measured {amount('memory', memory['measured'])}"
        yield "peak memory", text


def _interval(quantity: str, told: Mapping[str, float]) -> str:
    value, low, high = (figure_of(quantity, told[key]) for key in ("value", "low", "high"))
    return value if told["low"] == told["high"] else f"{value} ({low} to {high})"


def _measured(found: Mapping[str, Any]) -> str:
    told, quantity = found["measured"], found["quantity"]
    text = f"{figure_of(quantity, told['median'])}, the network as a whole"
    if "lower" in told and "upper" in told:
        ends = (figure_of(quantity, told[key]) for key in ("lower", "upper"))
        text += f" ({' to '.join(ends)})"
    if found["difference"] is not None:
        text += f"; the prediction is {found['difference']:+.1%} off"
        low, high = found["predicted"]["low"], found["predicted"]["high"]
        if low < high:
            text += (
                ", within its interval"
                if low <= told["median"] <= high
                else ", outside its interval"
            )
    return text


def sum_heads(found: Mapping[str, Any], first: str) -> tuple[str, ...]:
    """Return the heads over `sum_cells`."""
    return first, "parts", what(found), "share", "FLOPs", "share", "price"


def sum_cells(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return a sum's cells: name, number of parts, amount, FLOPs and their shares, price."""
    stride = f", stride {row['stride']}" if row["stride"] else ""
    return [f"{operation_name(row['name'])}{stride}", str(row["parts"]), *_figures(found, row)]


def part_heads(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heads over `part_cells`."""
    return (
        "stage", "stride", "block", "part", "input",
        what(found), "share", "FLOPs", "share", "price",
    )  # fmt: skip


def part_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each part in order; stage and block are named at their first."""
    stage = block = None
    for row in found["rows"]:
        new, fresh = row["stage"] != stage, (row["stage"], row["block"]) != (stage, block)
        stage, block = row["stage"], row["block"]
        yield [
            stage if new else "",
            str(row["stride"] or "") if new else "",
            str(block or "") if fresh else "",
            _part(row),
            "x".join(map(str, row["shape"])),
            *_figures(found, row),
        ]


def short_heads(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heads over `short_rows`."""
    return "where", "part", what(found), "share", "of the FLOPs", "price"


def short_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield `part_rows` as a terminal has room for them: no knobs, inputs or counts of FLOPs."""
    last = ""
    for row in found["rows"]:
        place = f"{row['stage']}, block {row['block']}" if row["block"] else row["stage"]
        amount_told, share, _, of_flops, price = _figures(found, row)
        name = operation_name(row["operation"])
        yield ["" if place == last else place, name, amount_told, share, of_flops, price]
        last = place


def _part(row: Mapping[str, Any]) -> str:
    knobs = ", ".join(f"{name} {value}" for name, value in row["knobs"].items())
    name = operation_name(row["operation"])
    return f"{name} ({knobs})" if knobs else name


def _figures(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    price = row["per_flop"]
    return [
        figure_of(found["quantity"], row["amount"]),
        f"{row['share']:.1%}",
        amount("flops", row["flops"]),
        f"{row['flops_share']:.1%}",
        "-" if price is None else f"{price:.2f}",
    ]


def operation_name(name: str) -> str:
    """Return an operation's name for people."""
    return KINDS[name][0] if name in KINDS else name


def explained_figure(found: Mapping[str, Any]) -> "Figure":
    """Draw stages as stacked bars, time beside FLOPs, and the price of a FLOP by operation."""
    stages, operations = found["stages"], sorted(found["operations"], key=_layer)
    figure, (left, right) = canvas(2, max(4.4, 0.34 * len(operations) + 1.2))
    figure.set_figwidth(13)
    _shares(left, found, stages, operations)
    _prices(right, [row for row in operations if row["per_flop"] and _large(row)])
    left.set_ylabel(f"share of the whole's {what(found)} and FLOPs, per cent")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize="small")
    return figure


def _layer(operation: Mapping[str, Any]) -> tuple[int, str]:
    """Return an operation's place in a stack: what every network has below, mixers on top."""
    kinds = list(KINDS)
    mixer = operation["kind"] == "mixer"
    return len(kinds) if mixer else kinds.index(operation["kind"]), operation["name"]


def _large(row: Mapping[str, Any]) -> bool:
    return bool(max(row["share"], row["flops_share"]) >= LEAST_PRICED)


def _shares(
    axes: "Axes",
    found: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    operations: Sequence[Mapping[str, Any]],
) -> None:
    """Stack each stage's operations twice: what they take, and their FLOPs."""
    ticks = []
    for place, stage in enumerate(stages):
        for side, key in ((-0.2, "share"), (0.2, "flops_share")):
            base = 0.0
            for operation in operations:
                height = 100 * sum(
                    row[key]
                    for row in found["rows"]
                    if row["stage"] == stage["name"] and _same(row, operation)
                )
                axes.bar(
                    place + side, height, 0.36, base,
                    color=_colour(operation), edgecolor="white", linewidth=0.5,
                    label=_once(operation, place, key),
                )  # fmt: skip
                base += height
            axes.annotate(
                f"{base:.0f}", (place + side, base), (0, 2), textcoords="offset points",
                ha="center", fontsize="small",
            )  # fmt: skip
        stride = f"\nstride {stage['stride']}" if stage["stride"] else ""
        ticks.append(f"{stage['name']}{stride}")
    axes.set_xticks(range(len(stages)), ticks)
    axes.set_xlabel(f"of each pair: left {what(found)}, right FLOPs")
    axes.set_ylim(0, 108 * max(max(row["share"], row["flops_share"]) for row in stages))


def _same(row: Mapping[str, Any], operation: Mapping[str, Any]) -> bool:
    return bool(row["kind"] == operation["kind"] and row["operation"] == operation["name"])


def _once(operation: Mapping[str, Any], place: int, key: str) -> str:
    """Return a label for the legend the first time, and none (an underscore) after."""
    first = place == 0 and key == "share"
    return literal(operation_name(operation["name"])) if first else "_"


def _prices(axes: "Axes", operations: Sequence[Mapping[str, Any]]) -> None:
    """Draw the price of a FLOP as bars about the mean, on a scale of ratios."""
    ordered = sorted(operations, key=lambda row: row["per_flop"])
    for place, row in enumerate(ordered):
        price = row["per_flop"]
        axes.barh(place, price - 1, 0.7, 1, color=_colour(row), edgecolor="grey", linewidth=0.5)
        right = price >= 1
        axes.annotate(
            f"{price:.2g}", (price, place), (4 if right else -4, 0), textcoords="offset points",
            ha="left" if right else "right", va="center", fontsize="small",
        )  # fmt: skip
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    prices = [row["per_flop"] for row in ordered] or [1.0]
    axes.set_xlim(min(0.5, min(prices) / 1.8), max(2.0, max(prices) * 1.8))
    axes.set_yticks(range(len(ordered)), [literal(operation_name(r["name"])) for r in ordered])
    axes.set_xlabel("price of a FLOP, the network's mean = 1")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _within(t, axes)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _within(tick: float, axes: "Axes") -> bool:
    low, high = axes.get_xlim()
    return bool(low <= tick <= high)


def _colour(operation: Mapping[str, Any]) -> Any:
    mixer = operation["kind"] == "mixer"
    return colour(operation["name"]) if mixer else KINDS[operation["kind"]][1]


def _sections(run: Run, found: Mapping[str, Any], place: str) -> Iterator[str]:
    yield f"<h1>Where the {what(found)} of {escape(str(found.get('of', found['id'])))} goes</h1>"
    yield f"<p><strong>{escape(found['sentence'])}.</strong></p>"
    yield pairs(explained_rows(found))
    yield image(run, f"{place}.png", f"{what(found)} and FLOPs by stage and operation")
    for title, key, first in (
        ("By stage", "stages", "stage"),
        ("By mixer", "mixers", "mixer"),
        ("By kind of part", "kinds", "kind"),
    ):
        if found[key]:
            cells = (sum_cells(found, row) for row in found[key])
            yield f"<h2>{title}</h2>" + table(sum_heads(found, first), cells, figures=True)
    yield "<h2>Part by part</h2>"
    yield table(part_heads(found), part_rows(found), figures=True)
    if found["memory"]:
        rows = (
            (one["name"], amount("memory", one["bytes"])) for one in found["memory"]["segments"]
        )
        yield "<h2>Activations in memory, at each segment's peak</h2>" + pairs(rows)
    yield "<h2>How to read this</h2>"
    yield "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ_EXPLAINED)
    yield "<h2>Measured on</h2>" + pairs(conditions_rows(found["conditions"]))
    yield "<h2>Made with</h2>" + pairs(made_with(run))
