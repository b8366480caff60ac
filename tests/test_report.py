"""The report: figures that are pictures, a page that stands alone and trusts nothing."""

import base64
import io
from html.parser import HTMLParser

import pandas
import pytest
from finished_run import SETTINGS, begun, finished, trials, with_budget
from PIL import Image

from mixnas import report
from mixnas.arch import Architecture
from mixnas.cost.limit import Limit, column, in_column
from mixnas.errors import RunConflict
from mixnas.run import Run

NASTY = "<script>alert('x')</script> & [red]\"quoted\"[/red] $_^$"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = finished(tmp_path_factory.mktemp("runs"))
    report.figures(run)
    report.html(run)
    return run


class Page(HTMLParser):
    """Collects tags, images, text and the cells of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_figures_are_pictures_of_a_readable_size(run):
    drawn = report.figures(run)
    assert {path.relative_to(run.path).as_posix() for path in drawn} == {
        "figures/front.png",
        "figures/training.png",
        "figures/winner.png",
    }
    for path in drawn:
        picture = Image.open(path)
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= 800
        assert picture.height >= 250
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # not blank


def test_figures_are_the_same_each_time_and_leave_no_global_state(run):
    first = [path.read_bytes() for path in report.figures(run)]
    assert [path.read_bytes() for path in report.figures(run)] == first
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_figures_without_a_training_curve(tmp_path):
    run = finished(tmp_path)
    run.file("supernet.csv").unlink()
    assert {path.name for path in report.figures(run)} == {"front.png", "winner.png"}
    report.html(run)


@pytest.mark.parametrize(
    "budget",
    ["3MFLOPs", "1-3MFLOPs", "100Kparams", "30ms", "5mJ@cuda:1", "80MB", "20ms@table:a$b$"],
)
def test_the_front_is_drawn_over_the_first_budget(tmp_path, budget):
    run = finished(tmp_path, settings=with_budget(budget))
    limit = Limit.parse(budget)
    table = run.read("trials.csv")
    if column(limit.cost) not in table:
        table = table.rename(columns={"latency_ms": column(limit.cost)})
    run.write("trials.csv", table)
    figure = report.front_figure(run)
    label, divisor = report.axis(limit.kind, table[column(limit.cost)].max())
    per_limit = divisor * limit.high / in_column(limit.cost, limit.high)
    axes = figure.axes[0]
    assert axes.get_xlabel().startswith(label)
    assert axes.get_xlim()[1] * per_limit < 10 * limit.high
    assert limit.where.replace("$", r"\$") in axes.get_xlabel()
    lines = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"]
    ends = [end / per_limit for end in (limit.low, limit.high) if end]
    assert [line[0] for line in lines] == pytest.approx(ends)


@pytest.mark.parametrize(
    ("cost", "most", "label", "divisor"),
    [
        ("flops", 2_600_000_000, "GFLOPs", 1e9),
        ("flops", 2_600_000, "MFLOPs", 1e6),
        ("flops", 459_000, "KFLOPs", 1e3),
        ("flops", None, "GFLOPs", 1e9),
        ("params", 55_000, "thousand parameters", 1e3),
        ("params", 1_500_000, "million parameters", 1e6),
        ("latency@cuda", 0.2, "milliseconds", 1.0),
    ],
)
def test_an_axis_has_the_unit_that_fits(cost, most, label, divisor):
    found = report.axis(cost, most)
    assert found[0].startswith(label)
    assert found[1] == divisor


def test_a_limit_far_away_does_not_squeeze_the_trials(tmp_path):
    figure = report.front_figure(finished(tmp_path, settings=with_budget("1TFLOPs")))
    for axes in figure.axes:
        drawn = [x for c in axes.collections for x, _ in c.get_offsets()]
        assert axes.get_xlim()[1] < 2 * max(drawn)
        assert "1TFLOPs" in axes.get_title()


def test_the_front_is_a_line_in_loss_only(run):
    """In accuracy its points are marked: the front in loss need not be one there."""
    loss, accuracy = report.front_figure(run).axes
    points = {(row["flops"], row["accuracy"]) for row in run.read("front.json")}
    (line,) = [line for line in loss.lines if line.get_label() == "front"]
    (marks,) = [line for line in accuracy.lines if "front" in line.get_label()]
    assert (line.get_linestyle(), marks.get_linestyle()) == ("-", "None")
    label = accuracy.get_xlabel()
    divisor = {"M": 1e6, "G": 1e9, "K": 1e3}[label[0]]
    drawn = {(round(x * divisor), y) for x, y in zip(*marks.get_data(), strict=True)}
    assert drawn == points


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.0%"),
        (2e-16, "<0.1%"),
        (0.00096, "<0.1%"),
        (0.001, "0.1%"),
        (0.9992, ">99.9%"),
        (1 - 1e-12, "100.0%"),
        (1, "100.0%"),
        (1.25, "125.0%"),
    ],
)
def test_shares_are_never_rounded_to_nothing_or_all(share, text):
    assert report.percent(share) == text


def test_every_complete_trial_is_drawn_and_no_other(run):
    figure = report.front_figure(run)
    rows, _ = trials(SETTINGS)
    complete = {round(row["loss"], 9) for row in rows if row["state"] == "complete"}
    for index, measure in enumerate(("loss", "accuracy")):
        points = [offset for c in figure.axes[index].collections for offset in c.get_offsets()]
        assert len(points) == len(complete), measure
    drawn = {round(float(y), 9) for c in figure.axes[0].collections for _, y in c.get_offsets()}
    assert drawn == complete


def test_the_page_stands_alone(run):
    page = Page(run.file("report.html").read_text(encoding="utf-8"))
    assert not page.open
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.images) == 3
    for source in page.images:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()


def test_the_page_says_what_was_found_and_how_to_read_it(run):
    text = " ".join(Page(run.file("report.html").read_text(encoding="utf-8")).text)
    winner = run.read("summary.json")["winner"]
    for expected in (winner["id"], "87.5%", "180 images", "3MFLOPs", "40ms", "seed", "surrogate"):
        assert expected in text
    for line in report.HOW_TO_READ:
        assert line in text
    for package, number in run.made["versions"].items():
        assert package in text
        assert number in text


def test_nothing_of_the_users_becomes_markup(tmp_path):
    run = finished(tmp_path, name=NASTY.replace("/", "|"))
    made = run.read("run.json")
    made["settings"]["data"] = NASTY
    made["settings"]["mixers"] = [NASTY]
    made["device"] = NASTY
    run.write("run.json", made)
    arch = run.read("best.json")
    arch["stages"][0]["blocks"][0]["mixer"] = NASTY
    run.write("best.json", arch)
    table = run.read("trials.csv")
    table["stem"] = NASTY
    run.write("trials.csv", table)
    run = Run.open(run.path)
    report.figures(run)
    text = report.html(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert NASTY in "".join(page.text)


def test_trials_come_best_first_with_front_and_winner_marked(run):
    table = report.trials_table(run)
    assert list(table["loss"]) == sorted(table["loss"])
    assert set(table["state"]) == {"complete"}
    assert len(table) == 22
    assert set(table.loc[table["front"], "number"]) == {p["number"] for p in run.read("front.json")}
    assert list(table.loc[table["winner"], "number"]) == [
        run.read("summary.json")["winner"]["number"]
    ]
    assert isinstance(table, pandas.DataFrame)


def test_accuracies_say_of_which_images_they_are(run):
    text = run.file("report.html").read_text(encoding="utf-8")
    assert text.count(">accuracy, ranking<") == 2  # the front's, and the best trials'
    assert text.count("% (standard error) by the supernet") == 1


def test_an_unfinished_run_has_no_report(tmp_path):
    run = begun(tmp_path)
    for make in (report.figures, report.html, report.trials_table):
        with pytest.raises(RunConflict, match=r"has no \S+: that stage has not finished"):
            make(run)
    assert not run.file("report.html").exists()
    assert not run.file("figures").exists()


def test_stage_rows_describe_every_block(run):
    arch = Architecture.from_dict(run.read("best.json"))
    rows = list(report.stage_rows(arch))
    assert [row[3] for row in rows] == [
        arch.stem.kind,
        *(block.mixer for stage in arch.stages for block in stage.blocks),
    ]
    shapes = [f"{stage.width} x {len(stage.blocks)}" for stage in arch.stages]
    assert [row[2] for row in rows[1:] if row[2]] == shapes


@pytest.mark.parametrize(
    ("budget", "winner", "expected"),
    [
        ("2GFLOPs", {"flops": 10**9}, "50.0% used"),
        ("1-2GFLOPs", {"flops": 2 * 10**9}, "100.0% used"),
        ("10Mparams", {"params": 2_500_000}, "25.0% used"),
        ("40ms", {"latency_ms": {"median": 10.0, "lower": 9.0, "upper": 11.0}}, "25.0% used"),
        ("40ms", {"latency_ms": 30.0}, "75.0% used"),
        ("40ms@cuda", {"latency_ms": 30.0, "latency_ms@cuda": 10.0}, "25.0% used"),
        ("40ms@table:a.csv", {"latency_ms": 30.0, "latency_ms@table:a.csv": None}, "not measured"),
        ("200MB", {"memory_mb": 50.0}, "25.0% used"),
        ("2mJ", {"energy_mj": {"median": 1.5, "lower": 1.5, "upper": 1.5}}, "75.0% used"),
        ("40ms", {"flops": 1}, "not measured"),
    ],
)
def test_the_share_of_a_budget(budget, winner, expected):
    assert report.used(budget, winner) == expected


def test_latency_in_words():
    assert report.latency(None) == "-"
    assert report.latency(float("nan")) == "-"
    assert report.latency(12.5) == "12.5 ms"
    assert report.latency({"median": 1.25, "lower": 1.2, "upper": 1.3}) == (
        "1.25 ms (quartiles 1.2 ms to 1.3 ms)"
    )


def test_every_limited_cost_has_its_column():
    points = [
        {"number": 1, "accuracy": 0.5, "loss": 1.0, "flops": 10**6, "params": 1000}
        | {"latency_ms@cpu": 12.5, "latency_ms@cuda:1": None, "memory_mb": 0.25, "stem": "conv8"},
        {"number": 2, "accuracy": 0.5, "loss": 1.0, "flops": 10**6, "params": 1000}
        | {"latency_ms@cpu": 11.0, "latency_ms@cuda:1": 2.0, "memory_mb": 0.5, "stem": "conv8"},
    ]
    costs = report.further(points)
    assert costs == ["latency@cpu", "memory", "latency@cuda:1"]
    assert report.point_heads(points)[5:] == ["latency cpu", "memory", "latency cuda:1"]
    assert report.point_cells(points[0], 1, costs)[5:] == ["12.5 ms", "250 KB", "-"]
    assert report.point_cells(points[1], 1, costs)[5:] == ["11 ms", "500 KB", "2 ms"]


def test_a_winner_is_told_as_measured_predicted_and_computed(run):
    summary = run.read("summary.json")
    spans = {"lower": 9.0, "median": 10.0, "upper": 12.0}
    summary["winner"] |= {
        "latency_ms@cuda": spans,
        "predicted": {"latency_ms@cuda": {"value": 10.5, "low": 9.5, "high": 11.0}},
        "memory_mb": 3.0,
        "memory_mb_measured": 3.2,
    }
    summary["budget"] = ["12ms@cuda", "4MB"]
    told = dict(report.winner_rows(summary))
    assert told["latency cuda"] == (
        "10 ms (quartiles 9 ms to 12 ms), measured whole; predicted 10.5 ms (9.5 ms to 11 ms)"
    )
    assert told["latency"].endswith("measured whole")
    assert told["memory"] == "3 MB computed, 3.2 MB measured"
    assert told["of 12ms@cuda"] == "83.3% used"
    assert told["of 4MB"] == "75.0% used"
