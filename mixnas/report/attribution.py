"""Which mixer helps where: a picture, a table and a section of the page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import image, table
from mixnas.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTRIBUTED = "attribution.json"
ATTRIBUTION = "figures/attribution.png"

HOW_TO_READ_ATTRIBUTION = (
    "An effect is what a mixer in one block does to the loss by the supernet's weights, in nats, "
    "against the mean of the mixers there, at equal cost and all other choices equal: less than "
    "nought helps. It comes from an additive ridge regression over the evaluated architectures. "
    "A star marks what is told apart from nought: so great an effect would seldom come out if no "
    "mixer there had any, and what the cost and all other choices leave of the losses were dealt "
    "out at random (after Holm's correction, one table at a time: where no mixer has any effect, "
    "about 1 search in 20 has a star in its table). The 95 % interval takes "
    "the greater of that scatter and of a bootstrap's over the architectures. What an additive "
    "model lacks, such as a width that matters with one stem alone, may pass for an effect. In the "
    "picture all others are hatched. Beside it stands how often "
    "the best tenth of the trials chose the mixer, and how often a random feasible architecture "
    "does. A search's trials descend from each other, so the elite's shares may repeat one lucky "
    "ancestor; effects and shares need not agree."
)

STAGE_EFFECT_HEADS = ("stride", "mixer", "effect a block", "interval", "elite", "feasible")
"""What `stage_effect_rows` tells."""


def stage_effect_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row a stage and mixer, the stride named at its first, the best mixer first."""
    before = None
    for row in sorted(found["stages"], key=lambda row: (row["stride"], row["effect"])):
        stride = "" if row["stride"] == before else str(row["stride"])
        before = row["stride"]
        yield (stride, row["mixer"], *_cells(row))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    star = " *" if row["told"] else ""
    return (
        f"{row['effect']:+.4f}{star}",
        f"{row['low']:+.4f} to {row['high']:+.4f}",
        _share(row["elite"]),
        _share(row["base"]),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def attribution_section(run: Run) -> Iterator[str]:
    """Yield the section of a page, nothing if the run tells of no attribution.

    Raises:
        RunConflict: if its file is damaged.
    """
    if not run.file(ATTRIBUTED).is_file():
        return
    with run.reading(ATTRIBUTED):
        found = run.read(ATTRIBUTED)
        yield "<h2>Which mixer helps where</h2>"
        yield f"<p><strong>{escape(found['sentence'])}</strong></p>"
        if not found["stages"]:
            return
        yield image(run, ATTRIBUTION, "effect of each mixer at each block")
        yield table(STAGE_EFFECT_HEADS, stage_effect_rows(found), figures=True)
        if pairs := [pair for pair in found["pairs"] if pair["told"]]:
            yield "<p>Neighbours that do more, or less, than each by itself:</p>"
            yield table(PAIR_HEADS, (_pair_cells(pair) for pair in pairs[:10]), figures=True)
        yield "<p>Share of the loss's variance by gene (functional ANOVA):</p>"
        shares = list(found["importance"].items())[:10]
        yield table(("gene", "share"), ((key, f"{share:.1%}") for key, share in shares))
        yield f"<p>{escape(HOW_TO_READ_ATTRIBUTION)}</p>"


PAIR_HEADS = ("stride", "block", "and the next", "effect", "interval", "trials")


def _pair_cells(pair: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{pair['low']:+.4f} to {pair['high']:+.4f}"
    named = (str(pair["stride"]), pair["first"], pair["then"])
    return (*named, f"{pair['effect']:+.4f}", interval, str(pair["trials"]))


def attribution_png(found: Mapping[str, Any]) -> bytes:
    """Return the picture of effects as a PNG."""
    return png(attribution_figure(found))


def attribution_figure(found: Mapping[str, Any]) -> "Figure":
    """Draw the effect of each mixer at each block; what is not told apart is hatched.

    A stride of which no block has effects of its own is drawn as the table has it: over its blocks.
    """
    rows = _drawn(found)
    places = list(dict.fromkeys((row["stride"], row["block"]) for row in rows))
    mixers = sorted({row["mixer"] for row in rows})
    figure, (axes,) = canvas(1, max(3.0, 1.5 + 0.32 * len(places)))
    figure.set_figwidth(max(5.5, 2.0 + 0.8 * len(mixers)))
    most = max(abs(row["effect"]) for row in rows) or 1.0
    values = [[float("nan")] * len(mixers) for _ in places]
    for row in rows:
        place = places.index((row["stride"], row["block"]))
        values[place][mixers.index(row["mixer"])] = row["effect"]
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for row in rows:
        _mark(axes, row, mixers.index(row["mixer"]), places.index((row["stride"], row["block"])))
    _name(axes, mixers, places)
    figure.colorbar(drawn, ax=axes, label="effect in nats: blue helps")
    return figure


def _drawn(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of blocks, and of stages without any, in the order of strides."""
    blocks = {row["stride"] for row in found["blocks"]}
    stages = [row for row in found["stages"] if row["stride"] not in blocks]
    return sorted([*found["blocks"], *stages], key=lambda row: int(row["stride"]))


def _mark(axes: "Axes", row: Mapping[str, Any], x: int, y: int) -> None:
    """Write an effect into its cell; hatch the cell if it is not told apart from nought."""
    from matplotlib.patches import Rectangle

    ground = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.0}
    text = f"{row['effect']:+.3f}"
    axes.text(x, y, text, ha="center", va="center", fontsize="x-small", bbox=ground)
    if not row["told"]:
        corner = (x - 0.5, y - 0.5)
        cell = Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.6", linewidth=0)
        axes.add_patch(cell)


def _name(axes: "Axes", mixers: Sequence[str], places: Sequence[tuple[int, str]]) -> None:
    axes.set_facecolor("0.92")
    axes.set_xticks(range(len(mixers)), [literal(mixer) for mixer in mixers], fontsize="small")
    labels = [
        f"stride {stride}, " + ("each block" if block == "all" else f"block {block}")
        for stride, block in places
    ]
    axes.set_yticks(range(len(places)), labels, fontsize="small")
    axes.set_title("Hatched: not told apart from the mean of the mixers there", fontsize="small")
