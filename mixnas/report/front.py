"""The fronts of a search, judged afresh: tables, sentences, a figure and a part of the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mixnas.cost.limit import MEASURED, column, cost_in, kind_of
from mixnas.cost.limit import describe as amount
from mixnas.report.costs import axis, cell, head
from mixnas.report.drawing import canvas, literal
from mixnas.report.page import image, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONTS_FILE = "fronts.json"
FRONTS = "figures/fronts.png"

HOW_TO_READ_FRONTS = (
    "A front is chosen by the loss on the ranking images, which flatters it, and judged afresh on "
    "the report images, which chose nothing; both are told. A loss's interval is a bootstrap over "
    "the images, an accuracy's is Wilson's. They tell the noise of the images, not that of "
    "another training.",
    "Better than the cheaper: the chance that a point's loss is below that of the next cheaper "
    "point, on the same images. Where it is too low the two are not told apart: the dearer one "
    "may not be worth its cost.",
    "The hypervolume is the share that a front dominates of the rectangle from no loss at no cost "
    "to its reference point: guessing at the budget (at the dearest trial's cost where there is "
    "no limit). It compares fronts of the same reference point on the same images; that of a flat "
    "front, whose points are alike, is flattered by their noise.",
    "FLOPs are multiply-adds. A Fourier transform is counted by a formula; softmax, products with "
    "a spectrum, activations and sums are not counted at all. Beside them stands what those come "
    "to, each operation taken for a multiply-add: a mixer must not win by a convention.",
)

QUARTILES = ("median", "lower", "upper")

NO_TABLE = (
    "not known: give a limit such as 20ms too, or measure the space first (mixnas measure) into "
    "the same folder of runs"
)

CONVENTION_HEADS = (
    "mixer",
    "FLOPs on the front",
    "of them transforms",
    "uncounted: softmax",
    "spectrum",
    "element-wise",
)


def front_heads(front: Mapping[str, Any]) -> list[str]:
    """Return what `front_cells` tells of a front's points."""
    return [
        "trial",
        _head(front["cost"]),
        "loss, ranking",
        "loss, report",
        "accuracy, report",
        "better than the cheaper",
        *_foretold(front["points"], "predicted"),
        *_foretold(front["points"], "measured"),
    ]


def front_cells(front: Mapping[str, Any], winner: int | None, least: float) -> Iterator[list[str]]:
    """Yield the cells of each point; the winner has a star.

    Args:
        front: one of ``fronts.json``.
        winner: number of its trial.
        least: chance of beating the cheaper neighbour below which the two are not told apart.
    """
    points, cost = front["points"], front["cost"]
    told = [(name, kind) for kind in ("predicted", "measured") for name in _columns(points, kind)]
    for point in points:
        again = point["report"]
        yield [
            f"{point['number']}{' *' if point['number'] == winner else ''}",
            _cost(cost, point),
            f"{point['loss']:.4f}",
            f"{again['loss']:.4f} ({again['loss_low']:.4f} to {again['loss_high']:.4f})",
            f"{again['accuracy']:.1%} ({again['accuracy_low']:.1%} to "
            f"{again['accuracy_high']:.1%})",
            _chance(point, least),
            *(_span(name, point[kind].get(name)) for name, kind in told),
        ]


def fronts_rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about the fronts: label and text.

    Args:
        told: the content of ``fronts.json``.
    """
    for front in told["fronts"]:
        name = f"over {_head(front['cost'])}"
        yield f"{name}: points", _points(front, told["told_apart"])
        yield f"{name}: chosen", _selection(front, told["images"])
        yield f"{name}: hypervolume", _hypervolume(front)
    if not any(kind_of(front["cost"]) in MEASURED for front in told["fronts"]):
        yield "over latency", NO_TABLE
    yield "beside FLOPs", beside_flops(told["conventions"])


def beside_flops(conventions: Mapping[str, Any]) -> str:
    """Say what the front's FLOPs count by a formula or leave out, and whether that decides."""
    points = conventions["points"]
    fallen = [str(point["number"]) for point in points if not point["stands"]]
    judged = (
        f"counted in, trial {', '.join(fallen)} would leave the front"
        if fallen
        else "counted in, every point would stay on the front"
    )
    return (
        f"{_range(points, 'transforms')} of the FLOPs stand for Fourier transforms by a formula; "
        f"uncounted work comes to another {_range(points, 'uncounted')} (softmax "
        f"{_range(points, 'softmax')}, spectra {_range(points, 'spectrum')}); {judged}"
    )


def convention_cells(conventions: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of each mixer on the front, as `CONVENTION_HEADS` names them."""
    names = ("transforms", "softmax", "spectrum", "elementwise")
    for mixer, shares in conventions["mixers"].items():
        flops = amount("flops", shares["flops"])
        yield [mixer, flops, *(f"{shares[name]:.1%}" for name in names)]


def fronts_figure(run: Run) -> "Figure":
    """Draw the fronts side by side: as they were chosen, and as they were judged.

    Raises:
        RunConflict: if the run has no fronts that were judged.
    """
    told, trials = run.read(FRONTS_FILE), run.read("trials.csv")
    figure, panels = canvas(len(told["fronts"]), 4.4)
    for axes, front in zip(panels, told["fronts"], strict=True):
        _draw(axes, front, trials[trials["loss"].notna()])
    panels[0].set_ylabel("loss by the supernet's weights")
    _legend(figure, panels)
    return figure


def _legend(figure: "Figure", panels: Iterable["Axes"]) -> None:
    """Name below the panels whatever one of them shows, once."""
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    named: dict[str, Any] = {label: handle for pairs in found for handle, label in pairs}
    handles, labels = list(named.values()), list(named)
    below = figure.legend(handles, labels, loc="outside lower center", ncols=len(named))
    for text in below.get_texts():
        text.set_fontsize("small")


def fronts_sections(run: Run, winner: int) -> Iterator[str]:
    """Yield the page's part about the fronts; nothing of a run that has none."""
    if not run.file(FRONTS_FILE).is_file():
        return
    told = run.read(FRONTS_FILE)
    yield "<h2>Fronts, judged afresh</h2>" + image(run, FRONTS, "fronts as chosen and as judged")
    for front in told["fronts"]:
        yield f"<h3>Over {escape(_head(front['cost']))}</h3>"
        yield table(
            front_heads(front), front_cells(front, winner, told["told_apart"]), figures=True
        )
    yield pairs(fronts_rows(told))
    yield "<h3>What FLOPs do not say of the front's mixers</h3>"
    yield table(CONVENTION_HEADS, convention_cells(told["conventions"]), figures=True)
    yield "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ_FRONTS)


def _draw(axes: "Axes", front: Mapping[str, Any], trials: "pandas.DataFrame") -> None:
    name, points = column(front["cost"]), front["points"]
    most = trials[name].max() if name in trials else max(point[name] for point in points)
    label, divisor = axis(front["cost"], most)
    x = [point[name] / divisor for point in points]
    if name in trials:
        axes.scatter(trials[name] / divisor, trials["loss"], s=10, color="lightgrey", label="trial")
    chosen = [point["loss"] for point in points]
    axes.plot(x, chosen, color="grey", drawstyle="steps-post", lw=1, label="as chosen (ranking)")
    groups = (
        ("as judged (report)", "o", [point["told_apart"] is not False for point in points]),
        (
            "not told apart from the cheaper",
            "x",
            [point["told_apart"] is False for point in points],
        ),
    )
    for text, mark, mask in groups:
        these = [(place, p["report"]) for p, place, one in zip(points, x, mask, strict=True) if one]
        if these:
            _bars(axes, these, mark, text)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(literal(label))


def _bars(
    axes: "Axes", points: Sequence[tuple[float, Mapping[str, float]]], mark: str, label: str
) -> None:
    places, judged = zip(*points, strict=True)
    middle = [one["loss"] for one in judged]
    ends = [
        [one["loss"] - one["loss_low"] for one in judged],
        [one["loss_high"] - one["loss"] for one in judged],
    ]
    colour = "black" if mark == "o" else "crimson"
    axes.errorbar(places, middle, ends, fmt=mark, color=colour, ms=4, lw=1, label=label)


def _head(cost: str) -> str:
    """Return a cost as people call it."""
    return {"flops": "FLOPs", "params": "parameters"}.get(cost, head(cost))


def _cost(cost: str, point: Mapping[str, Any]) -> str:
    value = point[column(cost)]
    return amount(cost, int(value)) if kind_of(cost) in ("flops", "params") else cell(cost, value)


def _columns(points: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    """Return the columns that some point has a prediction or a measurement of."""
    return list(dict.fromkeys(name for point in points for name in point[kind]))


def _foretold(points: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    return [f"{head(cost_in(name) or name)}, {kind}" for name in _columns(points, kind)]


def _span(name: str, value: Mapping[str, float] | None) -> str:
    """Return a prediction or a measurement with its ends."""
    if value is None:
        return "-"
    middle, low, high = ("value", "low", "high") if "value" in value else QUARTILES
    texts = [cell(cost_in(name) or name, value[key]) for key in (middle, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _chance(point: Mapping[str, Any], least: float) -> str:
    if point["chance"] is None:
        return "-"
    share = f"{min(max(point['chance'], 0.01), 0.99):.0%}"
    sign = ">" if point["chance"] > 0.99 else "<" if point["chance"] < 0.01 else ""
    other = ", worse" if point["chance"] <= 1 - least else ", not told apart"
    return sign + share + ("" if point["told_apart"] else other)


def _points(front: Mapping[str, Any], least: float) -> str:
    points = front["points"]
    apart = sum(point["told_apart"] is True for point in points)
    text = f"{len(points)} judged" + ("" if front["of"] == len(points) else f" of {front['of']}")
    if len(points) > 1:
        text += (
            f"; {apart} of {len(points) - 1} are better than their cheaper neighbour with a "
            f"chance of at least {least:.0%}"
        )
    if front["left_out"]:
        text += (
            f"; {front['left_out']} more might stand here, but their evaluation was stopped early"
        )
    return text


def _selection(front: Mapping[str, Any], images: int) -> str:
    means = front["selection"]
    return (
        f"mean loss {means['rank_loss']:.4f} on the images that chose the points, "
        f"{means['report_loss']:.4f} ({means['low']:.4f} to {means['high']:.4f}) on {images} others"
    )


def _hypervolume(front: Mapping[str, Any]) -> str:
    volume, cost = front["hypervolume"], front["cost"]
    reference = volume["reference"]
    return (
        f"{volume['value']:.4f} ({volume['low']:.4f} to {volume['high']:.4f}); "
        f"{volume['rank']:.4f} on the images that chose; reference point "
        f"{_cost(cost, reference)} and a loss of {reference['loss']:.3f}"
    )


def _range(points: Iterable[Mapping[str, Any]], name: str) -> str:
    """Return the least and the greatest share."""
    shares = [point[name] for point in points]
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"
