"""The report of a retraining and of its exports: it says what the files say, and trusts nothing."""

import base64
import io

import pytest
from PIL import Image
from retrained_run import LABELS, begun_training, curve, exports, judged, trained
from test_report import NASTY, Page

from mixnas import report
from mixnas.errors import RunConflict
from mixnas.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = trained(tmp_path_factory.mktemp("runs"), "one", of="found")
    report.retrained(run)
    return run


def text_of(path):
    return " ".join(Page(path.read_text(encoding="utf-8")).text)


def test_it_draws_two_pictures_and_writes_a_page_that_stands_alone(run):
    made = report.retrained(run)
    names = [path.relative_to(run.path).as_posix() for path in made]
    assert names == ["figures/curves.png", "figures/confusion.png", "report.html"]
    for path in made[:2]:
        picture = Image.open(path)
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) >= 400
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # not blank
    page = Page(made[2].read_text(encoding="utf-8"))
    assert not page.open
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.images) == 2
    for source in page.images:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()


def test_it_is_the_same_each_time(run):
    first = [path.read_bytes() for path in report.retrained(run)]
    assert [path.read_bytes() for path in report.retrained(run)] == first


def test_the_page_says_what_was_found(run):
    text = text_of(run.file("report.html"))
    summary = run.read("summary.json")
    for expected in (
        f"{summary['top1']:.2%} +- {summary['standard_error']:.2%} of 360 images",
        f"{summary['top5']:.2%}",
        f"{summary['calibration_error']:.2%}",
        "87.50% by the supernet's weights, on other images",
        "20 epochs of recipe quick on digits at 32x32 pixels, 320 steps of 64 images",
        "3.21 MFLOPs at 32x32 pixels",
        "found, recipe, rate 0.001",
        "read once",
        *run.made["versions"].values(),
    ):
        assert expected in text
    for line in report.HOW_TO_READ_RETRAINED:
        assert line in text


def test_an_unfinished_training_is_reported_as_far_as_it_is(tmp_path):
    run = begun_training(tmp_path)
    assert [path.name for path in report.retrained(run)] == ["report.html"]
    run.write("metrics.csv", curve(1))
    assert [path.name for path in report.retrained(run)] == ["curves.png", "report.html"]
    assert "not finished; the test images are unread" in text_of(run.file("report.html"))


def test_curves_show_every_epoch_that_was_recorded():
    table = curve(9)
    losses, accuracy, rate = report.curves_figure(table).axes
    seen = table.dropna()
    assert len(seen) == 4
    training, validation = losses.lines
    assert list(training.get_ydata()) == pytest.approx(list(table["loss"]))
    assert list(validation.get_ydata()) == pytest.approx(list(seen["val_loss"]))
    assert list(accuracy.lines[0].get_xdata()) == list(seen["epoch"])
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx(list(seen["val_accuracy"]))
    assert list(rate.lines[0].get_ydata()) == pytest.approx(list(table["lr"]))


def test_a_training_on_all_images_has_no_validation(tmp_path):
    run = begun_training(tmp_path)
    run.write("metrics.csv", curve(4).assign(val_loss=None, val_accuracy=None))
    accuracy = report.curves_figure(run.read("metrics.csv")).axes[1]
    assert accuracy.get_title() == "no image was kept aside"
    assert [path.name for path in report.retrained(run)] == ["curves.png", "report.html"]


@pytest.mark.parametrize("classes", [2, 10, 20, 120])
def test_a_confusion_matrix_of_any_number_of_classes(classes):
    found = judged(400, [f"class number {i} of many" for i in range(classes)])
    axes, bar = report.confusion_figure(found).axes
    shares = axes.images[0].get_array()
    assert shares.shape == (classes, classes)
    for i, recall in enumerate(found["recall"]):
        assert shares[i, i] == pytest.approx(recall or 0)
    texts = [text.get_text() for text in axes.texts]
    counts = [count for row in found["confusion"] for count in row if count]
    assert sorted(map(int, texts)) == (sorted(counts) if classes <= 12 else [])
    assert len(axes.get_xticklabels()) == classes or classes > 25
    assert bar.get_ylabel().startswith("share")


def test_the_weakest_classes_are_listed_first(run):
    rows = Page(run.file("report.html").read_text(encoding="utf-8")).text
    found = run.read("metrics.json")
    pairs = sorted(zip(found["recall"], LABELS, strict=True), key=lambda pair: pair[0])
    start = rows.index("recall") + 1
    names = rows[start : start + 30 : 3]
    assert [found["recall"][int(name)] for name in names] == [recall for recall, _ in pairs]


def test_nothing_of_the_users_becomes_markup(tmp_path):
    run = trained(tmp_path, NASTY.replace("/", "|"), of=NASTY)
    run.write("summary.json", run.read("summary.json") | {"label": NASTY, "device": NASTY})
    made = run.read("run.json")
    made["settings"]["data"] = made["settings"]["found"]["labels"][0] = NASTY
    run.write("run.json", made)
    run.write("metrics.json", judged(labels=[NASTY + str(i) for i in range(10)]))
    run = Run.open(run.path)
    report.retrained(run)
    found = exports(run)
    found["<script>"] = found["onnx"] | {"file": NASTY, "versions": {NASTY: NASTY}}
    run.write("export/exports.json", found)
    report.exported(run)
    for name in ("report.html", "export/report.html"):
        text = run.file(name).read_text(encoding="utf-8")
        assert "script" not in Page(text).tags
        assert "<script" not in text
        assert text.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "{}"),
        ("summary.json", "[1]"),
        ("summary.json", '{"top1'),
        ("metrics.json", '{"labels": ["a"], "confusion": 3}'),
        ("metrics.json", '{"labels": ["a", "b"], "recall": [1.0], "confusion": [[1, 0], [0, 1]]}'),
        ("metrics.csv", ""),
        ("metrics.csv", "epoch,lr\n1,2\n"),
        ("metrics.csv", "epoch,step,lr,loss,val_loss,val_accuracy\nx,y,z,a,b,c\n"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, text):
    run = trained(tmp_path)
    run.write(name, text)
    with pytest.raises(RunConflict, match=name) as raised:
        report.retrained(run)
    assert "\n" not in str(raised.value)


def test_exports_are_told_with_their_proof_and_their_times(run):
    exports(run)
    path = report.exported(run)
    assert path == run.path / "export" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    text = " ".join(page.text)
    for expected in (
        *("onnx", "pt2", "timm", "hf", "int8", "model.int8.onnx", "512.0 kB"),
        "3.0e-06",
        "100.00% of 360",
        "1.5 ms (quartiles 1.25 ms to 2 ms)",
        "3 ms (quartiles 2.5 ms to 3.25 ms)",
        "accuracy 97.50% before, 96.25% after",
        "batch norms folded",
    ):
        assert expected in text
    assert text.count("3.0e-06") == 4  # int8 is not claimed to be the same


def test_exports_that_are_not_there_or_damaged_are_one_line(tmp_path):
    run = trained(tmp_path)
    with pytest.raises(RunConflict, match=r"has no export/exports\.json"):
        report.exported(run)
    for text in ("[]", '{"onnx": 1}', '{"onnx": {"file": "x"}}', '{"onnx'):
        run.write("export/exports.json", text)
        with pytest.raises(RunConflict, match="damaged") as raised:
            report.exported(run)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("init", "of", "told"),
    [
        ("scratch", None, "scratch"),
        ("scratch", "a-search", "scratch; found by a-search"),
        ("supernet", "a-search", "the supernet's weights of a-search"),
        ("old.safetensors", None, "the weights of old.safetensors"),
        ("old.safetensors", "a-search", "the weights of old.safetensors; found by a-search"),
    ],
)
def test_it_says_what_the_training_began_from(run, init, of, told):
    summary = run.read("summary.json") | {"init": init, "of": of}
    assert dict(report.retrained_rows(summary))["began from"] == told
