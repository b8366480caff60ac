import gzip
import itertools
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from timm.data.dataset import IterableImageDataset

from mixnas.data import load
from mixnas.data.arrays import Arrays, digits
from mixnas.data.folders import read_folder
from mixnas.data.idx import read_idx
from mixnas.data.preprocessing import as_rgb
from mixnas.data.sources import renumber
from mixnas.data.splits import NAMES, stratified
from mixnas.data.timm_sets import from_streams
from mixnas.errors import DataError, InvalidOption

FASHION = Path("/usr/share/datasets/fashion-mnist")


# --- writers of small sets --------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_idx_set(folder: Path, *, test: bool = True, gz: str = "", classes: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, each in (("train", 20), ("t10k", 4)) if test else (("train", 20),):
        numbers = rng.permutation(np.repeat(np.arange(classes), each))
        images = rng.integers(0, 60, (len(numbers), 28, 28)) + 60 * numbers[:, None, None]
        write_idx(folder / f"{prefix}-images-idx3-ubyte{gz}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{gz}", numbers)
    return folder


def write_classes(
    folder: Path, counts: dict[str, int], *, side: int = 20, end: str = "png"
) -> Path:
    """Class k's images are of brightness 40 + 80 k with a little noise."""
    rng = np.random.default_rng(1)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for item in range(count):
            noise = rng.integers(0, 30, (side, side + 4, 3))
            pixels = (40 + 80 * number + noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{item:03}.{end}")
    return folder


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("data") / "My pets", {"cat": 12, "dog": 14})


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(one, other, strict=True)
    )


# --- splits -----------------------------------------------------------------------------------

sizes_of_classes = st.lists(st.integers(5, 80), min_size=2, max_size=8)


def labelled(counts, seed=0):
    targets = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(targets), [f"c{i}" for i in range(len(counts))]


@given(counts=sizes_of_classes, seed=st.integers(), own_test=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_splits_are_a_stratified_partition(counts, seed, own_test):
    targets, labels = labelled(counts)
    targets = np.concatenate([targets, np.zeros(own_test, np.int64)])
    splits = stratified(targets, labels, own_test, seed)
    assert tuple(sorted(splits)) == tuple(sorted(NAMES))
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(targets)))
    if own_test:
        assert set(splits["test"]) == set(range(sum(counts), len(targets)))
    assert abs(len(splits["rank"]) - len(splits["report"])) <= 1
    least = 2 if own_test else 1
    share = 0.1 if own_test else 0.2
    for label, count in enumerate(counts):
        have = {name: int((targets[splits[name]] == label).sum()) for name in NAMES}
        assert have["train"] >= 1
        assert min(have["rank"], have["report"]) >= least
        assert abs(have["rank"] - have["report"]) <= 1
        search = have["rank"] + have["report"]
        assert abs(search - share * count) < 1.5 or search == 2 * least
        if not own_test:
            assert abs(have["test"] - 0.2 * count) < 1.5 or have["test"] == 1
    if not own_test and min(counts) >= 10:  # no bound is met
        assert len(splits["test"]) == round(0.2 * sum(counts))
        assert len(splits["rank"]) + len(splits["report"]) == round(0.2 * sum(counts))


@given(counts=sizes_of_classes, seed=st.integers(-(10**6), 10**12))
@settings(max_examples=30, deadline=None)
def test_a_split_repeats_by_its_seed_and_changes_with_it(counts, seed):
    targets, labels = labelled(counts)
    one, again, other = (stratified(targets, labels, 0, s) for s in (seed, seed, seed + 1))
    assert all(np.array_equal(one[name], again[name]) for name in NAMES)
    assert not all(np.array_equal(one[name], other[name]) for name in NAMES)


def test_a_large_search_split_is_capped():
    targets, labels = labelled([90_000, 60_000])
    splits = stratified(np.append(targets, 0), labels, 1, 0)
    assert (len(splits["rank"]), len(splits["report"])) == (5_000, 5_000)


@pytest.mark.parametrize("own_test", [0, 3])
def test_a_scarce_class_is_named(own_test):
    targets, labels = labelled([9, 4, 9])
    targets = np.append(targets, np.ones(own_test, np.int64))
    with pytest.raises(DataError, match=r"class 'c1' has 4 training images.* at least 5"):
        stratified(targets, labels, own_test, 0)


# --- digits -----------------------------------------------------------------------------------


def test_digits():
    data = load("digits")
    assert (data.name, data.image, data.labels) == ("digits", 32, tuple("0123456789"))
    assert sum(data.sizes.values()) == 1797
    assert data.sizes["test"] == data.sizes["rank"] + data.sizes["report"] == 359
    images, labels = next(data.train(batch=64, seed=0))
    assert (images.shape, images.dtype) == ((64, 3, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert images.is_contiguous()
    assert data.steps_per_epoch(64) == data.sizes["train"] // 64


def test_digits_are_normalised_by_the_training_split_and_are_the_digits():
    data = load("digits")
    images = torch.cat([images for images, _ in data.batches("train", batch=200)])
    assert images.mean().abs() < 1e-4
    assert (images.std() - 1).abs() < 1e-3
    # The middle of every image still shows scikit-learn's 8 x 8 pixels: judged by correlation.
    shrunk = torch.nn.functional.avg_pool2d(images[:, 0], 4).flatten(1)
    truth = torch.from_numpy(load_digits().images[list(data.indices("train"))]).float().flatten(1)
    both = torch.stack([shrunk.flatten(), truth.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97
    labels = torch.cat([labels for _, labels in data.batches("train", batch=200)])
    assert np.array_equal(labels, load_digits().target[list(data.indices("train"))])


def test_augmentation_shifts_by_at_most_an_eighth_and_never_mirrors():
    data = load("digits")
    every = data.sizes["train"]
    images, labels = next(data.train(batch=every, seed=3))
    clean, truth = next(data.batches("train", batch=every))
    order = torch.argsort(labels, stable=True)
    assert torch.equal(labels[order], torch.sort(truth).values)
    black = (0 - data.mean[0]) / data.deviation[0]
    padded = torch.nn.functional.pad(clean[:, 0], (4,) * 4, value=black)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (N, 9, 9, 32, 32)
    for image, label in zip(images[:12, 0], labels[:12], strict=True):
        alike = (windows[truth == label] - image).abs().amax((-1, -2)) < 1e-5
        assert alike.any()


def test_an_epoch_holds_each_training_image_at_most_once():
    data = load("digits")
    steps = data.steps_per_epoch(100)
    epochs = [
        Counter(
            torch.cat([y for _, y in take(data.train(batch=100, seed=1, start=s), steps)]).tolist()
        )
        for s in (0, steps)
    ]
    training = torch.cat([labels for _, labels in data.batches("train", batch=500)])
    for epoch in epochs:
        assert sum(epoch.values()) == steps * 100
        assert epoch <= Counter(training.tolist())
    assert not same(
        take(data.train(batch=100, seed=1), 1), take(data.train(batch=100, seed=1, start=steps), 1)
    )


@pytest.mark.parametrize("start", [1, 10, 11, 40])
def test_a_stream_that_starts_late_is_the_stream_after_skipping(start):
    data = load("digits")  # 10 steps an epoch of 100
    whole = take(data.train(batch=100, seed=5), start + 3)
    assert same(take(load("digits").train(batch=100, seed=5, start=start), 3), whole[start:])
    assert not same(take(data.train(batch=100, seed=6), 1), whole[:1])


def test_a_batch_larger_than_the_training_split_is_the_split():
    data = load("digits")
    assert data.steps_per_epoch(10**6) == 1
    images, _ = next(data.train(batch=10**6, seed=0))
    assert len(images) == data.sizes["train"]


def test_batches_are_fixed_limited_and_mixed():
    data = load("digits")
    first, again = (list(data.batches("rank", batch=50)) for _ in range(2))
    assert same(first, again)
    assert [len(labels) for _, labels in first] == [50, 50, 50, 30]
    few = list(data.batches("rank", batch=50, limit=70))
    assert [len(labels) for _, labels in few] == [50, 20]
    assert torch.equal(torch.cat([y for _, y in few]), torch.cat([y for _, y in first])[:70])
    assert len(torch.cat([y for _, y in few]).unique()) == 10


def test_calibration_draws_clean_training_images_by_seed():
    data = load("digits")
    one, again, other = (data.calibration(batches=3, batch=32, seed=s) for s in (0, 0, 1))
    assert [tuple(part.shape) for part in one] == [(32, 3, 32, 32)] * 3
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    clean = torch.cat([images for images, _ in data.batches("train", batch=500)])
    known = {row.numpy().tobytes() for row in clean}
    assert all(row.numpy().tobytes() in known for part in one for row in part)
    assert len(data.calibration(batches=50, batch=64, seed=0)) == 50  # more than the split holds
    assert data.calibration(batches=0, batch=64, seed=0) == []


def test_the_stream_leaves_the_global_generators_alone(pets):
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = random.random(), torch.rand(3).tolist(), np.random.rand()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    for spec in ("digits", str(pets)):
        take(load(spec).train(batch=4, seed=0), 3)
    assert (random.random(), torch.rand(3).tolist(), np.random.rand()) == expected


@pytest.mark.parametrize("side", [16, 33, 64])
def test_any_side_from_16_on(side):
    data = load("digits", image=side)
    assert next(data.train(batch=4, seed=0))[0].shape == (4, 3, side, side)
    assert next(data.batches("test", batch=4))[0].shape == (4, 3, side, side)


def test_large_sides_have_the_moments_of_all_images_in_parts_of_as_many_pixels(monkeypatch):
    source, parts, clean = digits(), [], Arrays.clean
    chosen, side = np.arange(70), 512

    def watched(self, indices, side):
        parts.append(len(indices))
        return clean(self, indices, side)

    monkeypatch.setattr(Arrays, "clean", watched)
    mean, deviation = source.moments(chosen, side)
    values = clean(source, chosen, side).numpy() / 255
    assert parts == [64, 6]
    assert mean == pytest.approx([values.mean()])
    assert deviation == pytest.approx([values.std()])


@pytest.mark.parametrize("side", [15, 0, -32])
def test_smaller_sides_are_refused(side):
    with pytest.raises(DataError, match=rf"images of {side} pixels .* at least 16"):
        load("digits", image=side)


@pytest.mark.parametrize("call", ["train", "batches", "calibration", "steps_per_epoch"])
def test_a_batch_needs_an_image(call):
    data = load("digits")
    calls = {
        "train": lambda: next(data.train(batch=0, seed=0)),
        "batches": lambda: next(data.batches("rank", batch=0)),
        "calibration": lambda: data.calibration(batches=1, batch=0, seed=0),
        "steps_per_epoch": lambda: data.steps_per_epoch(0),
    }
    with pytest.raises(InvalidOption, match="batch size 0"):
        calls[call]()


# --- IDX files --------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx_with_its_own_test_files(tmp_path, gz):
    data = load(str(write_idx_set(tmp_path / "set", gz=gz)))
    assert (data.name, data.image, data.labels) == ("set", 32, ("0", "1", "2"))
    assert data.sizes == {"train": 48, "rank": 6, "report": 6, "test": 12}
    assert set(data.indices("test")) == set(range(60, 72))
    for images, labels in data.batches("test", batch=1):  # brightness tells the class
        grey = (images * data.deviation[0] + data.mean[0]).mean() * 255
        assert int(grey // 60) == int(labels)


def test_idx_without_test_files_and_with_class_names(tmp_path):
    folder = write_idx_set(tmp_path / "set", test=False)
    (folder / "labels.txt").write_text("shirt\nbag\nankle boot\n")
    data = load(str(folder))
    assert data.labels == ("shirt", "bag", "ankle boot")
    assert data.sizes == {"train": 36, "rank": 6, "report": 6, "test": 12}


def test_idx_reader_reads_what_was_written(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    write_idx(tmp_path / "x", array)
    assert np.array_equal(read_idx(tmp_path / "x", 3), array)


def test_idx_labels_need_not_begin_at_zero(tmp_path):
    folder = write_idx_set(tmp_path / "set", test=False)
    numbers = read_idx(folder / "train-labels-idx1-ubyte", 1)
    write_idx(folder / "train-labels-idx1-ubyte", numbers * 2 + 1)
    data = load(str(folder))
    assert data.labels == ("1", "3", "5")
    assert set(torch.cat([y for _, y in data.batches("train", batch=9)]).tolist()) == {0, 1, 2}


def cut(name, keep):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(IMAGES, 1000), rf"{IMAGES}' is broken.*promises 60 x 28 x 28 bytes and holds 984"),
        (cut(IMAGES, 9), rf"{IMAGES}' is broken.*does not begin like IDX"),
        (overwrite(LABELS, b"hello, world"), rf"{LABELS}' is broken.*does not begin like IDX"),
        (overwrite(LABELS, b""), rf"{LABELS}' is broken"),
        (lambda f: write_idx(f / IMAGES, np.zeros((0, 28, 28))), "holds no images"),
        (lambda f: write_idx(f / LABELS, np.zeros(59)), "60 images, 59 labels"),
        (lambda f: (f / LABELS).unlink(), "no train-labels-idx1-ubyte"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "no t10k-labels-idx1-ubyte"),
        (lambda f: write_idx(f / LABELS, np.zeros(60)), "class '1', which no training image has"),
        (lambda f: write_idx(f / LABELS, np.arange(60) // 58 * 2), r"class '1', which no training"),
        (
            lambda f: write_idx(f / "t10k-images-idx3-ubyte", np.zeros((12, 8, 8))),
            "28 x 28 pixels and test images 8 x 8",
        ),
        (overwrite("labels.txt", b"a\nb\n"), "labels.txt' has 2 names, and labels go up to 2"),
        (overwrite("labels.txt", b"\xff\xfe\xff"), "labels.txt' cannot be read as UTF-8"),
    ],
)
def test_broken_idx(tmp_path, damage, message):
    folder = write_idx_set(tmp_path / "set")
    damage(folder)
    refuses(str(folder), message)


@pytest.mark.parametrize("keep", [5, 200])
def test_truncated_gzip(tmp_path, keep):
    folder = write_idx_set(tmp_path / "set", gz=".gz")
    cut(f"{IMAGES}.gz", keep)(folder)
    refuses(str(folder), rf"{IMAGES}.gz' is broken or truncated")


def test_idx_of_one_class(tmp_path):
    refuses(str(write_idx_set(tmp_path / "set", classes=1)), r"set': one class only \('0'\)")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    data = load(str(FASHION))
    assert (data.name, data.image) == ("fashion-mnist", 32)
    assert data.labels == tuple("0123456789")
    assert data.sizes == {"train": 54_000, "rank": 3_000, "report": 3_000, "test": 10_000}
    labels = torch.cat([y for _, y in data.batches("rank", batch=500)])
    assert labels.bincount().tolist() == [300] * 10
    images, _ = next(data.train(batch=128, seed=0))
    assert images.mean().abs() < 0.3


# --- class folders ----------------------------------------------------------------------------


def test_class_folders(pets):
    data = load(str(pets))
    assert (data.name, data.image, data.labels) == ("My-pets", 32, ("cat", "dog"))
    assert data.sizes == {"train": 16, "rank": 2, "report": 3, "test": 5} or (
        data.sizes == {"train": 16, "rank": 3, "report": 2, "test": 5}
    )
    for images, labels in data.batches("train", batch=1):
        assert images.shape == (1, 3, 32, 32)
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (data.mean, data.deviation))
        grey = ((images[0] * deviation + mean).mean() * 255).item()
        assert (grey > 100) == bool(labels)


def test_stream_of_files_is_pure_and_augmented(pets):
    data = load(str(pets))
    whole = take(data.train(batch=5, seed=2), 7)  # 3 steps an epoch
    assert same(take(load(str(pets)).train(batch=5, seed=2, start=4), 3), whole[4:])
    assert whole[0][0].shape == (5, 3, 32, 32)
    flat = torch.cat([images for images, _ in whole]).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)  # no view of an image comes twice


@pytest.mark.slow
@pytest.mark.timeout(180)  # each worker imports torch anew
def test_worker_processes_change_nothing(pets):
    data = load(str(pets))
    alone = take(data.train(batch=5, seed=2, start=1), 6)
    stream = data.train(batch=5, seed=2, start=1, workers=2)
    assert same(take(stream, 6), alone)
    stream.close()


@pytest.mark.slow
@pytest.mark.timeout(180)  # each worker imports torch anew
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_named(tmp_path, workers):
    folder = write_classes(tmp_path / "pets", {"cat": 8, "dog": 8})
    data = load(str(folder))
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"image '.*/(cat|dog)/00\d.png' cannot be decoded") as e:
        next(data.train(batch=4, seed=0, workers=workers))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("test_name", ["val", "validation", "test"])
def test_train_beside_a_test_folder(tmp_path, test_name):
    write_classes(tmp_path / "train", {"a": 20, "b": 20})
    write_classes(tmp_path / test_name, {"a": 3, "b": 4})
    data = load(str(tmp_path))
    assert data.labels == ("a", "b")
    assert data.sizes == {"train": 32, "rank": 4, "report": 4, "test": 7}
    album = read_folder(tmp_path).album
    assert {Path(album.name(i)).parts[-3] for i in data.indices("test")} == {test_name}
    assert {Path(album.name(i)).parts[-3] for i in data.indices("train")} == {"train"}


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, {"train": 6, "plane": 6})
    assert load(str(tmp_path)).labels == ("plane", "train")


def test_nested_and_hidden_files(tmp_path):
    write_classes(tmp_path / "set" / "a", {"2020": 4, "2021": 4})
    write_classes(tmp_path / "set", {"b": 8})
    (tmp_path / "set" / "a" / "notes.txt").write_text("ignored")
    (tmp_path / "set" / "a" / "._000.png").write_bytes(b"not an image")
    write_classes(tmp_path / "set", {".cache": 2})
    data = load(str(tmp_path / "set"))
    assert data.labels == ("a", "b")
    assert sum(data.sizes.values()) == 16


@pytest.mark.parametrize(("side", "image"), [(8, 32), (32, 32), (33, 64), (224, 224), (300, 224)])
def test_side_follows_the_images(tmp_path, side, image):
    assert load(str(write_classes(tmp_path, {"a": 5, "b": 5}, side=side))).image == image


@pytest.mark.parametrize("end", ["jpg", "bmp", "webp", "tif", "gif", "PNG"])
def test_formats(tmp_path, end):
    data = load(str(write_classes(tmp_path, {"a": 5, "b": 5}, end=end)))
    assert next(data.train(batch=2, seed=0))[0].shape == (2, 3, 32, 32)


def test_modes_become_rgb():
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    deep = as_rgb(Image.fromarray(ramp.astype(np.uint16)))
    assert np.abs(np.asarray(deep)[..., 0] - ramp / 257).max() <= 1
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = b"\x00\xff"
    assert [as_rgb(Image.new(mode, (4, 4))).mode for mode in ("1", "L", "LA", "RGBA", "CMYK")] == [
        "RGB"
    ] * 5
    assert as_rgb(palette).mode == "RGB"


def test_fingerprint_notices_what_changes(tmp_path):
    folder = write_classes(tmp_path / "one", {"a": 8, "b": 8})
    first = load(str(folder)).fingerprint
    assert load(str(folder)).fingerprint == first
    assert load(str(folder), seed=1).fingerprint != first
    moved = tmp_path / "elsewhere" / "one"
    shutil.copytree(folder, moved)
    assert load(str(moved)).fingerprint == first  # the same set in another place
    (folder / "a" / "000.png").rename(folder / "a" / "100.png")
    assert load(str(folder)).fingerprint != first
    shutil.rmtree(moved / "b")
    write_classes(moved, {"b": 9})
    assert load(str(moved)).fingerprint != first


def test_fingerprint_notices_images_of_the_same_size_in_bytes(tmp_path):
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / name / f"{number}.bmp")
    first = load(str(folder)).fingerprint
    other = folder / "a" / "3.bmp"
    before = other.stat().st_size
    Image.new("RGB", (40, 40), (200, 200, 200)).save(other)
    assert other.stat().st_size == before
    assert load(str(folder)).fingerprint != first


def test_fingerprint_of_arrays_notices_a_pixel(tmp_path):
    folder = write_idx_set(tmp_path / "set")
    first = load(str(folder)).fingerprint
    images = read_idx(folder / IMAGES, 3)
    images[0, 0, 0] ^= 1
    write_idx(folder / IMAGES, images)
    assert load(str(folder)).fingerprint != first


# --- bad input --------------------------------------------------------------------------------


def refuses(spec, message):
    with pytest.raises(DataError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_missing_path(tmp_path):
    refuses(str(tmp_path / "nowhere"), "nowhere': no such folder; give digits, a folder of class")


@pytest.mark.parametrize("word", ["digit", "", "imagenet", "torch", "hfds/", "two\nlines"])
def test_unknown_word(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(word, r"give digits, a folder of class folders.*hfds/\.\.\., wds/\.\.\., torch/\.\.\.")


def test_a_file(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"x")
    refuses(str(tmp_path / "set.zip"), r"set.zip' is a file; give a folder")


def test_an_empty_folder(tmp_path):
    refuses(str(tmp_path), "is an empty folder; give one with a folder of images a class")


def test_folders_without_images(tmp_path):
    (tmp_path / "a").mkdir()
    refuses(str(tmp_path), "neither class folders nor IDX files; put the images")


def test_images_without_class_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    refuses(str(tmp_path), "holds images, but no class folders; put the images")


def test_splits_without_classes(tmp_path):
    for part in ("train", "test"):
        write_classes(tmp_path, {part: 6})
    refuses(str(tmp_path), "train' holds images, but no class folders")


def test_one_class(tmp_path):
    refuses(str(write_classes(tmp_path, {"cat": 8})), r"one class only \('cat'\).*at least 2")


def test_an_empty_class(tmp_path):
    write_classes(tmp_path, {"cat": 8, "dog": 8, "eel": 0})
    refuses(str(tmp_path), r"class folder '.*eel' holds no images; add some .*or remove")


def test_too_few_images(tmp_path):
    write_classes(tmp_path, {"cat": 8, "dog": 4})
    refuses(str(tmp_path), r"data '.*': class 'dog' has 4 training images.*at least 5")


def test_a_class_of_the_test_folder_alone(tmp_path):
    write_classes(tmp_path / "train", {"a": 6, "b": 6})
    write_classes(tmp_path / "val", {"a": 3, "c": 4})
    refuses(str(tmp_path), "test images hold class 'c', which no training image has")


@pytest.mark.parametrize("end", ["png", "jpg", "bmp", "webp", "gif", "tif"])
@pytest.mark.parametrize("keep", [0, 30, 0.6])
def test_a_broken_image_is_named_before_any_work(tmp_path, end, keep):
    write_classes(tmp_path, {"cat": 6, "dog": 6}, side=64, end=end)
    path = tmp_path / "dog" / f"003.{end}"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refuses(str(tmp_path), rf"holds a broken image: '.*/dog/003.{end}' \(.*\); replace it or")


def test_several_broken_images_are_counted(tmp_path):
    write_classes(tmp_path, {"cat": 6, "dog": 6})
    for name in ("cat/001.png", "dog/000.png", "dog/005.png"):
        (tmp_path / name).write_bytes(b"\x89PNG no, a text")
    refuses(str(tmp_path), r"holds 3 broken images, the first: '.*/cat/001.png'")


# --- timm's names -----------------------------------------------------------------------------


def test_a_timm_name_reads_what_lies_there(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.parent.mkdir()
    write_idx_set(raw)
    data = load(f"torch/mnist@{tmp_path}")
    assert (data.name, data.image) == ("mnist", 32)
    assert data.sizes == {"train": 48, "rank": 6, "report": 6, "test": 12}
    assert data.labels[0].startswith("0")
    twin = load(str(raw))
    one, other = (list(d.batches("rank", batch=3)) for d in (data, twin))
    assert same(one, other)


def test_a_timm_set_of_files(tmp_path):
    """torchvision's ImageNet layout stands for any listable set that decodes item by item."""
    import torchvision.datasets.imagenet as layout

    for part, count in (("train", 20), ("val", 3)):
        write_classes(tmp_path / part, {"n01": count, "n02": count}, end="jpg")
    torch.save(({"n01": ("cat", "puss"), "n02": ("dog",)}, []), tmp_path / layout.META_FILE)
    data = load(f"torch/imagenet@{tmp_path}")
    assert data.labels == ("cat", "dog")
    assert data.sizes == {"train": 32, "rank": 4, "report": 4, "test": 6}
    images, labels = next(data.train(batch=4, seed=0))
    assert images.shape == (4, 3, 32, 32)
    greys = ((images * 0.225 + 0.45).mean((1, 2, 3)) * 255) > 100
    assert torch.equal(greys.long(), labels)


def stream_of(count, first=0):
    """A set that can only be walked through, as timm wraps tfds and wds; labels are 3 and 7."""
    shape = (600, 400, 3)
    pairs = [
        (Image.fromarray(np.full(shape, 20 + 200 * (i % 2), np.uint8)), 3 + 4 * (i % 2))
        for i in range(first, first + count)
    ]
    return IterableImageDataset("", reader=pairs)


def test_a_set_that_can_only_be_walked_through():
    source = from_streams("wds/x", stream_of(12), stream_of(3, first=1))
    assert (source.labels, source.side, source.own_test) == (("3", "7"), 256, 3)
    assert source.targets.tolist() == [0, 1] * 6 + [1, 0, 1]
    images = source.clean(np.arange(15), 32)
    assert images.float().mean((1, 2, 3)).tolist() == [20, 220] * 6 + [220, 20, 220]
    twin = from_streams("wds/x", stream_of(12), stream_of(3, first=1))
    assert twin.identity() == source.identity()
    assert from_streams("wds/x", stream_of(12), None).identity() != source.identity()


@pytest.mark.parametrize("part", ["training", "test"])
def test_labels_that_are_kept_secret_are_no_class(part):
    secret = IterableImageDataset("", reader=[(Image.new("RGB", (40, 40)), -1)] * 3)
    train, test = (secret, None) if part == "training" else (stream_of(12), secret)
    with pytest.raises(DataError, match=f"3 {part} images have the label -1, which stands for no"):
        from_streams("wds/x", train, test)


raw_labels = st.lists(st.integers(-2, 12), max_size=30).map(lambda raw: np.array(raw, np.int64))


@given(train=raw_labels, test=raw_labels, names=st.lists(st.text(min_size=1), max_size=8))
@settings(deadline=None)
def test_no_label_leaves_the_classes(train, test, names):
    named = [names[raw] if 0 <= raw < len(names) else str(raw) for raw in range(-2, 13)]
    negative = min(train.min(initial=0), test.min(initial=0)) < 0
    if negative or not set(test) <= set(train):
        with pytest.raises(DataError, match=r"label -\d|which no training image has"):
            renumber(train, test, names, "x")
        return
    targets, labels = renumber(train, test, names, "x")
    assert targets.dtype == np.int64
    assert all(0 <= target < len(labels) for target in targets)
    back = [labels[target] for target in targets]
    assert back == [named[raw + 2] for raw in np.concatenate([train, test])]


def test_a_walked_set_too_large_for_memory_is_refused(monkeypatch):
    monkeypatch.setattr("mixnas.data.timm_sets.MOST_BYTES", 10 * 256 * 384 * 3)
    from_streams("wds/x", stream_of(10), None)
    with pytest.raises(DataError, match="unpack it into a folder of class folders"):
        from_streams("wds/x", stream_of(11), None)


def test_unknown_and_unreachable_timm_names(tmp_path):
    refuses(f"torch/mnits@{tmp_path}", "torch/mnits@.* cannot be had .*mnits.*class folders")
    refuses("torch/folder@/data", "give the folder itself")


@pytest.mark.parametrize(
    ("spec", "module", "cure"),
    [
        ("hfds/someone/something", "datasets", "pip install datasets"),
        ("wds/shards", "webdataset", "pip install webdataset"),
        ("tfds/mnist", "tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named(spec, module, cure, monkeypatch):
    import mixnas.data.timm_sets as timm_sets

    found = timm_sets.find_spec
    monkeypatch.setattr(timm_sets, "find_spec", lambda n: None if n == module else found(n))
    refuses(spec, cure)
