"""An audit as one figure and one page: the supernet's ranking against trainings from scratch."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mixnas.cost.limit import describe as amount
from mixnas.report.drawing import canvas, literal, png
from mixnas.report.page import flat, image, page, pairs, table
from mixnas.run import Run, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AUDITED = "figures/audit.png"
AUDITED_PAGE = "audit.html"

GROUPS = {
    "across": ("o", "tab:blue", "across the budget"),
    "inside": ("^", "tab:orange", "within 10 % of the dearest"),
    "winner": ("*", "crimson", "the winner"),
}
"""Each group's marker, colour and name."""

FIGURES = {
    "networks": "networks",
    "tau": "Kendall's tau",
    "ceiling": "its ceiling: one seed against another",
    "share": "tau as a share of the ceiling",
    "best": "what a perfect ranking would reach",
    "strict": "tau as a share of that",
    "rho": "Spearman's rho",
    "tau_accuracy": "tau against accuracy",
    "tau_seed": "tau against one seed",
    "tau_over_seeds": "tau, seeds drawn anew too",
    "tau_cost": "tau of a ranking by cost alone",
    "regret_1": "regret of the supernet's best, nats",
    "chance_1": "the same of one drawn blindly",
    "regret_5": "regret of its best five, nats",
    "chance_5": "the same of five drawn blindly",
    "accuracy_regret_1": "regret of its best in accuracy",
    "accuracy_regret_5": "regret of its best five in accuracy",
    "spread": "networks differ by (deviation, nats)",
    "noise": "seeds differ by (deviation, nats)",
    "trusted": "the ranking",
}
"""The figures of a region, as they are called."""
REGION_SHORT = ("networks", "tau", "ceiling", "tau_cost", "regret_1", "trusted")
"""Those of them that a screen has room for."""
VERDICTS = {"yes": "may be trusted", "no": "may not be trusted", "unknown": "cannot be judged"}

HOW_TO_READ_AUDITED = (
    "Architectures were drawn from the feasible ones without looking at their scores: some with "
    "costs spread evenly over the budget, some within 10 % of the dearest feasible cost. The "
    "supernet ranked "
    "them as it does in a search, by their loss on the images that rank. Then each was trained "
    "from scratch, all by one recipe and with every seed, and judged on other images. The mean "
    "loss over the seeds is taken for the truth.",
    "Kendall's tau is the share of pairs that both put in the same order, less the share that "
    "they do not: 1 is the same ranking, 0 is chance. Intervals hold 95 %, by a bootstrap over "
    "networks; of fewer than 10 networks, or where all draws agree, they are at least as wide as "
    "the normal distribution has them without any relation. A share of a ceiling that cannot be "
    "told from 0 is a dash.",
    "The ceiling is the tau of one training seed against another: no ranking can be asked for "
    "much more, since trainings do not agree better with each other. A mean of several seeds is a "
    "little easier to foretell than one seed: what a perfect ranking would reach against it "
    "follows from the ceiling, for normal noise.",
    "Regret is the loss of the best of the supernet's first one or five, less that of the best "
    "of all that were drawn; since the best of all owes some of its place to luck, it is rather "
    "too great. Ranking by cost alone, the dearer the better, is what a supernet must beat.",
    "A network's misplacement is its true place less its place by the supernet: above 0, it is "
    "overrated. Its mean is told for networks with each stem, each mixer (by its share of the "
    "blocks), and for the halves below and above the median width, depth and MLP ratio. The "
    "chance is that of a permutation test with Holm's correction. A supernet that is merely "
    "blind to a trait underrates the good side of it and overrates the bad one.",
)


def audited_figure(run: Run) -> Path:
    """Draw an audit: loss alone over loss by the supernet, and what is misplaced.

    Raises:
        RunConflict: if the audit is not finished, or its summary is damaged.
        StorageFull: if the disk is full.
    """
    summary = run.read("summary.json")
    with run.reading("summary.json"):
        return run.write(AUDITED, png(draw_audit(summary)))


def draw_audit(summary: Mapping[str, Any]) -> "Figure":
    """Return the figure of an audit's summary."""
    figure, (left, right) = canvas(2, max(4.6, 0.3 * len(summary["values"])))
    figure.set_figwidth(13)
    _scatter(left, summary["rows"])
    _misplacements(right, summary["values"])
    return figure


def _scatter(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    for group, (marker, colour, label) in GROUPS.items():
        found = [row for row in rows if row["group"] == group and row["losses"]]
        if not found:
            continue
        middle = [row["loss"] for row in found]
        axes.errorbar(
            [row["supernet_loss"] for row in found],
            middle,
            yerr=[
                [row["loss"] - min(row["losses"]) for row in found],
                [max(row["losses"]) - row["loss"] for row in found],
            ],
            fmt=marker,
            color=colour,
            ms=13 if group == "winner" else 5,
            elinewidth=1,
            capsize=0,
            label=label,
            zorder=3 if group == "winner" else 2,
        )
    axes.set_xlabel("loss by the supernet, on the images that rank")
    axes.set_ylabel("loss when trained alone (bars: its seeds)")
    axes.legend(fontsize="small")


def _misplacements(axes: "Axes", values: Sequence[Mapping[str, Any]]) -> None:
    drawn = list(reversed(values))
    for height, row in enumerate(drawn):
        places = row["places"]
        sure = row["corrected"] < 0.05
        axes.plot([places["low"], places["high"]], [height, height], color="grey", lw=1)
        axes.plot(places["value"], height, "o", color="crimson" if sure else "grey", ms=6)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(drawn)), [literal(f"{r['axis']}: {r['value']}") for r in drawn])
    axes.set_xlabel("overrated by the supernet, places (red: beyond chance)")


def audited_html(run: Run) -> Path:
    """Write the audit's page: one file that needs no other, the figure included.

    Raises:
        RunConflict: if the audit is not finished, or its summary is damaged.
        StorageFull: if the disk is full.
    """
    summary = run.read("summary.json")
    with run.reading("summary.json"):
        text = page(f"mixnas: {summary['of']} audited", _sections(run, summary))
    return run.write(AUDITED_PAGE, text)


def audits_section(run: Run) -> Iterator[str]:
    """Yield what the audits in a search's folder say, if there are any, with links to them.

    Raises:
        RunConflict: if the summary of one is damaged.
    """
    done = [kept for kept in runs(run.path) if kept.settings.get("job") == "audit"]
    done = [kept for kept in done if kept.file("summary.json").is_file()]
    if done:
        yield "<h2>Audited: may the ranking be trusted?</h2>"
    for kept in done:
        summary = kept.read("summary.json")
        with kept.reading("summary.json"):
            sentence, link = escape(summary["sentence"]), f"{kept.name}/{AUDITED_PAGE}"
        yield f'<p>{sentence} <a href="{escape(quote(link))}">{escape(link)}</a></p>'


def _sections(run: Run, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>mixnas: {escape(summary['of'])} audited</h1>"
    yield f"<p><strong>{escape(summary['sentence'])}</strong></p>"
    yield f"<p>{escape(summary['misplaced'])}</p>"
    yield image(run, AUDITED, "loss alone over loss by the supernet, and what is misplaced")
    yield "<h2>How far the ranking is true</h2>"
    yield table(REGION_HEADS, region_rows(summary), figures=True)
    yield pairs(winner_beats(summary))
    yield "<h2>What is misplaced</h2>"
    yield table(AXIS_HEADS, map(axis_cells, summary["axes"]), figures=True)
    yield table(VALUE_HEADS, map(value_cells, summary["values"]), figures=True)
    yield "<h2>The networks</h2>"
    yield table(NETWORK_HEADS, map(network_cells, summary["rows"]), figures=True)
    yield pairs(audited_notes(summary))
    yield "<h2>How to read this</h2>"
    yield "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ_AUDITED)
    yield "<h2>Conditions</h2>" + pairs(audited_conditions(summary))


REGION_HEADS = ("", "across the budget", "inside it (its dearest 10 %)")
AXIS_HEADS = ("axis", "explains of the misplacement", "chance")
VALUE_HEADS = ("axis", "value", "networks", "place by the supernet", "true place", "overrated by",
               "chance")  # fmt: skip
NETWORK_HEADS = ("network", "id", "FLOPs", "place by the supernet", "true place", "loss", "seeds' "
                 "deviation", "accuracy")  # fmt: skip


def region_rows(
    summary: Mapping[str, Any], names: Sequence[str] = tuple(FIGURES)
) -> Iterator[list[str]]:
    """Yield the figures across the budget and inside it.

    Args:
        summary: of an audit.
        names: of the figures; by default all of `FIGURES`.
    """
    for name in names:
        cells = [_cell(summary, where, name) for where in ("overall", "inside")]
        if any(cell != "-" for cell in cells):
            yield [FIGURES[name], *cells]


def _cell(summary: Mapping[str, Any], where: str, name: str) -> str:
    if name == "trusted":
        return VERDICTS[summary["trusted"][where]]
    return _figure((summary[where] or {}).get(name))


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


def winner_beats(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how often the winner beats networks that were drawn."""
    for where, words in (("across", "spread over the budget"), ("inside", "near its end")):
        if told := summary["winner"][where]:
            share = f"{told['value']:.0%} [{told['low']:.0%}, {told['high']:.0%}]"
            yield (
                f"the winner beats networks {words}",
                (f"{told['beaten']} of {told['of']}: {share}"),
            )


def axis_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of an axis."""
    return [row["axis"], f"{row['explained']:.0%}", f"{row['corrected']:.3f}"]


def value_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one value of an axis."""
    places = row["places"]
    return [
        row["axis"],
        row["value"],
        f"{row['networks']:.3g}",
        f"{row['predicted']:.1f}",
        f"{row['true']:.1f}",
        f"{places['value']:+.1f} [{places['low']:+.1f}, {places['high']:+.1f}]",
        f"{row['corrected']:.3f}",
    ]


def network_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one network."""
    cost = amount("flops", row["flops"])
    if not row["losses"]:
        return [row["key"], row["id"], cost, "-", "-", "failed", "-", "-"]
    spread = "-" if row["loss_spread"] is None else f"{row['loss_spread']:.4f}"
    return [
        row["key"],
        row["id"],
        cost,
        f"{row['supernet_place']:g}",
        f"{row['place']:g}",
        f"{row['loss']:.4f}",
        spread,
        f"{row['accuracy']:.1%}",
    ]


def audited_notes(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield which networks have no figures, and why."""
    for key, reason in summary["absent"].items():
        yield f"without {key}", reason
    for key, reason in summary["failed"].items():
        yield f"{key} failed", reason


def audited_conditions(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield under what an audit holds: label and text."""
    yield "the rule", summary["rule"]
    yield "data", f"{summary['data']}: {summary['labels']} classes"
    yield (
        "ranked",
        f"by the supernet at {summary['ranked']} px, on {summary['rank_images']:,} images",
    )
    yield (
        "trained alone",
        f"at {summary['trained']} px, {summary['epochs']} epochs, {summary['steps']:,} steps, "
        f"{summary['seeds']} seeds",
    )
    yield "judged on", f"{summary['images']:,} images that chose nothing"
    yield "budget", " and ".join(summary["budget"])
    yield "costs", f"{summary['cost']}, at {summary['image']} px and {summary['classes']} classes"
    used = {k: v for k, v in summary["recipe"].items() if v not in (None, False, "none", 0)}
    yield "recipe", ", ".join(f"{name} {value}" for name, value in flat(used))
