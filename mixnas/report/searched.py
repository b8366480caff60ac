"""A finished run as figures and one page: ``figures/*.png`` and a self-contained ``report.html``.

Everything is read off the run's files, so a report can be made again at any time. Nothing but
the page's own text reaches HTML unescaped, and matplotlib is used without its global state.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.arch import Architecture
from mixnas.cost.limit import Limit, column, cost_in, from_column, in_column
from mixnas.cost.limit import describe as amount
from mixnas.report.attribution import attribution_section
from mixnas.report.audit import audits_section
from mixnas.report.costs import axis, cell, further, head, percent
from mixnas.report.drawing import canvas, colour, literal, png
from mixnas.report.front import FRONTS, FRONTS_FILE, fronts_figure, fronts_sections
from mixnas.report.page import flat, image, made_with, page, pairs, table
from mixnas.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "report.html"
FRONT, TRAINING, WINNER = "figures/front.png", "figures/training.png", "figures/winner.png"

EVALUATED = ("complete", "beaten")
"""States of trials that have a loss: of all the images, or an estimate."""

FAR = 3
"""Times the dearest drawn beyond which a limit would leave the picture empty."""

HOW_TO_READ = (
    "A supernet's accuracy ranks architectures; it is not the accuracy of a trained network, "
    "which is usually higher: train the winner from scratch before you quote one.",
    "Finalists are chosen on one half of the held-out images (rank) and reported on the other "
    "(report), so that luck is not sold as skill. The test images are not read by a search.",
    "Beside an accuracy stands the standard error that its number of images implies: "
    "differences below about twice that may be chance.",
    "One fused multiply-add is one FLOP; costs are counted at the deployed image and classes, "
    "whatever the size of the training images. Latency and energy in tables are the upper end of "
    "what is predicted of a whole network; finalists are measured whole. Memory is computed: the "
    "weights, and the activations that live at once while one image is computed.",
    "The front holds the trials that no other beats in both loss and cost.",
    "A trial that a race stopped early has an estimate in place of its loss: that of the rival "
    "that had beaten it, moved by their mean difference on the images that both had seen. It "
    "enters no front and wins nothing.",
)


def trials_table(run: Run) -> "pandas.DataFrame":
    """Return the trials with a loss, the least first, with the columns `front` and `winner`.

    Raises:
        RunConflict: if the run has no trials yet.
    """
    table = run.read("trials.csv")
    complete = table[table["state"].isin(EVALUATED)].sort_values(["loss", "number"])
    front = {point["number"] for point in run.read("front.json")}
    winner = run.read("summary.json")["winner"]["number"]
    return complete.assign(
        front=complete["number"].isin(front), winner=complete["number"] == winner
    ).reset_index(drop=True)


def _contending(trials: "pandas.DataFrame") -> "pandas.DataFrame":
    """Leave out those that a race stopped: their figures are estimates."""
    return trials[trials["beaten_by"].isna()] if "beaten_by" in trials else trials


def figures(run: Run) -> list[Path]:
    """Draw the front, the training (if its curve is there) and the winner.

    Raises:
        RunConflict: if the run is not finished.
        StorageFull: if the disk is full.
    """
    drawn = {FRONT: front_figure(run), WINNER: _winner(run)}
    if run.file("supernet.csv").is_file():
        drawn[TRAINING] = _training(run)
    if run.file(FRONTS_FILE).is_file():
        drawn[FRONTS] = fronts_figure(run)
    return [run.write(name, png(figure)) for name, figure in drawn.items()]


def html(run: Run) -> Path:
    """Write ``report.html``: one file that needs no other, figures included.

    Raises:
        RunConflict: if the run is not finished.
        StorageFull: if the disk is full.
    """
    return run.write(PAGE, page(f"mixnas: {run.name}", _sections(run)))


def used(budget: str, winner: Mapping[str, Any]) -> str:
    """Say which share of a budget's upper end a winner uses."""
    limit = Limit.parse(budget)
    value = winner.get(column(limit.cost))
    if value is None:
        told = winner.get("predicted", {}).get(column(limit.cost))
        if not told:
            return "not measured"
        share = from_column(limit.cost, told["high"]) / limit.high
        return f"{share:.1%} used by the upper end of what is predicted; not measured there"
    value = from_column(limit.cost, value["median"] if isinstance(value, Mapping) else value)
    return f"{percent(value / limit.high)} used"


def winner_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about a winner: label and text."""
    winner = summary["winner"]
    side, trained = summary["image"], winner["resolution"]
    yield "architecture", f"{winner['id']}, trial {winner['number']}"
    accuracy = f"{winner['accuracy']:.1%} +- {winner['standard_error']:.1%} (standard error)"
    images = f"{winner['images']} images that chose nothing, at {trained}x{trained} pixels"
    flops, as_trained = (amount("flops", winner[k]) for k in ("flops", "flops_as_trained"))
    yield "accuracy", f"{accuracy} by the supernet's weights, on {images}"
    yield "FLOPs", f"{flops} at {side}x{side} pixels and {summary['classes']} classes"
    yield "as trained", f"{as_trained} at {trained}x{trained} pixels, {winner['labels']} classes"
    yield "parameters", amount("params", winner["params"])
    for cost in further([winner]):
        yield head(cost), _measured(cost, winner)
    for name, reason in winner.get("not_timed", {}).items():
        yield head(cost_in(name) or name), f"not timed: {reason}"
    for budget in summary["budget"]:
        yield f"of {budget}", used(budget, winner)


def _measured(cost: str, winner: Mapping[str, Any]) -> str:
    """Say what a winner takes: measured, and as it was predicted or computed."""
    name = column(cost)
    value, predicted = winner[name], winner.get("predicted", {}).get(name)
    if not isinstance(value, Mapping):
        told = winner.get(f"{name}_measured")
        return f"{cell(cost, value)} computed" + (
            "" if told is None else f", {cell(cost, told)} measured"
        )
    if predicted is None:
        return f"{cell(cost, value)}, measured whole"
    middle, low, high = (cell(cost, predicted[key]) for key in ("value", "low", "high"))
    return f"{cell(cost, value)}, measured whole; predicted {middle} ({low} to {high})"


def learnt(random: Mapping[str, Any]) -> str:
    """Say how random feasible architectures score, and whether their spread is more than noise."""
    accuracy = random["accuracy"]
    spread = f"{random['loss_deviation']:.4f}, one loss's standard error {random['loss_error']:.4f}"
    return (
        f"{random['architectures']} random feasible architectures: accuracy "
        f"{accuracy['min']:.1%} to {accuracy['max']:.1%}, spread of their losses {spread}"
    )


def raced(racing: Mapping[str, Any], again: int = 0) -> str:
    """Say how many images a race judged and saved, and how sure it was of whom it stopped.

    Args:
        racing: of the run's summary.
        again: images that workers judged once more, for rivals that others had judged.
    """
    from mixnas.racing import FEWEST  # brings torch

    if racing["rate"] is None:
        return f"off: {racing['judged']:,} images judged"
    total = racing["judged"] + racing["saved"]
    if racing["complete"] and total < FEWEST * racing["complete"]:
        return f"{racing['judged']:,} images judged: nothing is raced below {FEWEST} images each"
    return (
        f"{racing['judged']:,} images judged, {racing['saved']:,} saved "
        f"({racing['saved'] / max(total, 1):.0%}): {racing['stopped']} of {racing['complete']} "
        "evaluations stopped early, since a rival that is no dearer had beaten them "
        f"(error rate {racing['rate']:.0%} each)"
        + (f"; {again:,} judged again for rivals, by workers that had not" if again else "")
    )


def rejudged(run: Run) -> int:
    """Return how many images a race's workers judged once more, as the run's stages tell."""
    return sum(int(stage.get("rejudged", 0)) for stage in run.stages.values())


STAGE_HEADS = ("stage", "stride", "width x depth", "mixer", "knobs", "MLP ratio")
"""What `stage_rows` tells."""


def stage_rows(arch: Architecture) -> Iterator[tuple[str, ...]]:
    """Yield a row for the stem and for each block, the stage named at its first."""
    yield "stem", str(arch.stem.stride), str(arch.stages[0].width), arch.stem.kind, "", ""
    for index, stage in enumerate(arch.stages):
        shape = f"{stage.width} x {len(stage.blocks)}"
        named = (str(index + 1), str(arch.stem.stride << index), shape)
        for block in stage.blocks:
            knobs = ", ".join(f"{name} {value}" for name, value in block.knobs)
            yield *named, block.mixer, knobs, f"{block.ratio:g}"
            named = ("", "", "")


def point_heads(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what `point_cells` tells of these points."""
    scores = ["accuracy, ranking", "loss, ranking"]
    return ["trial", *scores, "FLOPs", "parameters", *map(head, further(points))]


def point_cells(
    point: Mapping[str, Any], winner: int | None, costs: Iterable[str] = ()
) -> list[str]:
    """Return a trial's cells: number (starred if it won), accuracy, loss and costs.

    Args:
        point: a row of ``trials.csv`` or ``front.json``.
        winner: the number of the winner.
        costs: those beside FLOPs and parameters.
    """
    star = " *" if point["number"] == winner else ""
    return [
        f"{point['number']}{star}",
        f"{point['accuracy']:.1%}",
        f"{point['loss']:.4f}",
        amount("flops", int(point["flops"])),
        amount("params", int(point["params"])),
        *(cell(cost, point.get(column(cost))) for cost in costs),
    ]


def front_figure(run: Run) -> "Figure":
    """Draw loss and accuracy over the first limit's cost; the front is one of loss."""
    trials, summary = trials_table(run), run.read("summary.json")
    limits = [Limit.parse(text) for text in summary["budget"]]
    cost = limits[0].cost if limits else "flops"
    name = column(cost)
    label, divisor = axis(cost, trials[name].max())
    figure, panels = canvas(2, 4.2)
    for axes, measure in zip(panels, ("loss", "accuracy"), strict=True):
        for stem, group in trials.groupby("stem"):
            x = group[name] / divisor
            axes.scatter(x, group[measure], s=14, alpha=0.6, label=literal(stem))
        best, won = trials[trials["front"]].sort_values(name), trials[trials["winner"]]
        ring = {"ls": "", "marker": "o", "mfc": "none", "ms": 6, "label": "on the front in loss"}
        line = {"drawstyle": "steps-post", "label": "front"} if measure == "loss" else ring
        axes.plot(best[name] / divisor, best[measure], color="black", **line)
        axes.plot(won[name] / divisor, won[measure], "r*", ms=15, label="winner")
        _limited(axes, limits[:1], divisor)
        axes.set_xlabel(literal(label))
        axes.set_ylabel(f"{measure}, ranking images")
        axes.legend(fontsize="small")
    return figure


def _limited(axes: "Axes", limits: Iterable[Limit], divisor: float) -> None:
    """Draw the ends of limits; one far above all that is drawn is named, and not drawn to."""
    low, high = axes.get_xlim()
    for limit in limits:
        ends = [in_column(limit.cost, end) / divisor for end in (limit.low, limit.high) if end]
        for end in ends:
            axes.axvline(end, color="grey", ls="--", lw=1)
        if ends[-1] > FAR * high:
            axes.set_xlim(low, high)
            axes.set_title(literal(f"{limit} lies beyond the right edge"), fontsize="small")


def _training(run: Run) -> "Figure":
    """Draw the supernet's losses and its accuracy over the steps."""
    curve = run.read("supernet.csv")
    smooth = max(1, len(curve) // 50)
    figure, (left, right) = canvas(2, 3.6)
    for name in ("loss_cheapest", "loss_random", "loss_dearest"):
        if name in curve:
            mean = curve[name].rolling(smooth, min_periods=1).mean()
            left.plot(curve["step"], mean, lw=1, label=name.removeprefix("loss_"))
    right.plot(curve["step"], curve["accuracy"].rolling(smooth, min_periods=1).mean(), lw=1)
    left.set_ylabel(f"training loss (mean of {smooth} rows)")
    right.set_ylabel("training accuracy")
    left.legend(fontsize="small", title="architecture drawn")
    left.set_title("the dearest learns from labels, the others from it", fontsize="small")
    for axes in (left, right):
        axes.set_xlabel("step")
    return figure


def _winner(run: Run) -> "Figure":
    """Draw the winner's blocks in order: colour says the mixer, height the width."""
    arch = Architecture.from_dict(run.read("best.json"))
    figure, (axes,) = canvas(1, 2.6)
    figure.set_figwidth(11)
    place = 0
    names = sorted({block.mixer for stage in arch.stages for block in stage.blocks})
    for index, stage in enumerate(arch.stages):
        for block in stage.blocks:
            label = literal(block.mixer) if block.mixer in names else "_"
            names = [name for name in names if name != block.mixer]
            axes.bar(place, stage.width, width=0.9, color=colour(block.mixer), label=label)
            place += 1
        middle = place - len(stage.blocks) / 2 - 0.5
        text = f"stride {arch.stem.stride << index}"
        axes.annotate(text, (middle, 0), (0, -14), "data", "offset points", ha="center")
        place += 1
    axes.set_ylabel("channels")
    axes.set_xticks([])
    axes.legend(fontsize="small", ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def _sections(run: Run) -> Iterator[str]:
    summary = run.read("summary.json")
    arch = Architecture.from_dict(run.read("best.json"))
    heads, costs = point_heads(summary["front"]), further(summary["front"])
    winner = summary["winner"]["number"]
    yield f"<h1>mixnas: {escape(run.name)}</h1>"
    yield f"<p><strong>{escape(HOW_TO_READ[0])}</strong></p>"
    yield "<h2>Winner</h2>" + pairs(winner_rows(summary))
    yield table(STAGE_HEADS, stage_rows(arch))
    yield image(run, WINNER, "the winner's blocks")
    yield "<h2>Front</h2>" + image(run, FRONT, "loss and accuracy over cost")
    if not run.file(FRONTS_FILE).is_file():  # else the same points follow, as they were judged
        points = (point_cells(point, winner, costs) for point in summary["front"])
        yield table(heads, points, figures=True)
    yield from fronts_sections(run, winner)
    yield from attribution_section(run)
    yield from audits_section(run)
    yield "<h2>Best trials by loss</h2>"
    best = [dict(row) for _, row in _contending(trials_table(run)).head(20).iterrows()]
    yield table(heads, (point_cells(row, winner, costs) for row in best), figures=True)
    yield "<h2>Supernet</h2>" + image(run, TRAINING, "losses over the training steps")
    yield pairs(flat(summary["supernet"]))
    if racing := summary.get("racing"):
        yield "<h2>Racing</h2>" + pairs([("images", raced(racing, rejudged(run)))])
    yield "<h2>How to read this</h2>" + "".join(f"<p>{escape(text)}</p>" for text in HOW_TO_READ)
    yield "<h2>Settings</h2>" + pairs(_settings(run))
    yield "<h2>Made with</h2>" + pairs(made_with(run))
    yield "<h2>Seconds</h2>" + pairs((k, f"{v:.1f}") for k, v in summary["seconds"].items())


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what the user asked; the space itself and the data's fingerprint stay in run.json."""
    for name, value in run.settings.items():
        if value is not None and not isinstance(value, Mapping):
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
