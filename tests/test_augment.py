import hashlib
import io
import itertools
import json
import random
import shutil
from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixnas.data import Augmentation, Preprocessing, load
from mixnas.data.arrays import Arrays
from mixnas.data.augment import augmented, seeded
from mixnas.errors import DataError, InvalidOption, WorkerLost

DEIT = Augmentation(
    randaugment="rand-m9-mstd0.5-inc1", scale=(0.08, 1.0), color_jitter=0.4, erasing=0.25, repeats=3
)
SHIFT = Augmentation(shift=True)
ERASE = Augmentation(shift=True, erasing=0.5, repeats=2)


def picture(seed, height=30, width=44, channels=3):
    """Noise over a gradient: every pixel counts, and a crop or a flip shows."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, width)[None, :, None] + np.zeros((height, width, channels))
    return (ramp + rng.integers(0, 100, ramp.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pets"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for item in range(12):
            Image.fromarray(picture(100 * number + item)).save(folder / name / f"{item:03}.png")
    return folder


def colours(count=12, side=24, flip=True):
    pixels = np.stack([picture(i, side, side) for i in range(count)])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Arrays(pixels, np.arange(count) % 2, ("a", "b"), flip=flip)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(one, other, strict=True)
    )


def joined(parts):
    return [
        tuple(torch.cat(part) for part in zip(*step, strict=True))
        for step in zip(*parts, strict=True)
    ]


# --- what is done to an image -------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["digits", "pets"])
def test_no_augmentation_is_the_clean_image(spec, pets):
    data = load("digits" if spec == "digits" else str(pets))
    every = data.sizes["train"]
    images, labels = next(data.train(batch=every, seed=0, augmentation=Augmentation(hflip=0)))
    clean, truth = next(data.batches("train", batch=every))
    order = {image.numpy().tobytes(): int(label) for image, label in zip(clean, truth, strict=True)}
    found = [order[image.numpy().tobytes()] for image in images]
    assert found == labels.tolist()


def test_a_transform_without_a_crop_leaves_the_square_whole():
    """timm always crops: asked for the whole area it must give back every pixel."""
    source = colours()
    clean = source.clean(np.arange(12), 40)
    both = augmented(source, np.arange(12), range(12), 40, Augmentation(hflip=1), (0.5,) * 3)
    assert torch.equal(both, clean.flip(-1))


def test_shifts_are_at_most_an_eighth_and_reach_it():
    source = colours(flip=False)
    clean = source.clean(np.zeros(200, np.int64), 32)
    moved = augmented(source, np.zeros(200, np.int64), range(200), 32, SHIFT, (0.5,) * 3)
    padded = torch.nn.functional.pad(clean[0], (4,) * 4)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
    seen = Counter()
    for image in moved:
        places = (windows == image[:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert len(places) == 1
        seen[tuple(places[0].tolist())] += 1
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(9))


@pytest.mark.parametrize(
    ("own", "asked", "share"), [(True, None, 0.5), (False, None, 0), (True, 0, 0)]
)
def test_mirrors_by_the_sets_rule_unless_told(own, asked, share):
    source = colours(flip=own)
    where = np.zeros(400, np.int64)
    one = augmented(source, where, range(400), 24, Augmentation(hflip=asked), (0.5,) * 3)
    mirrored = (one == source.clean(where, 24).flip(-1)).flatten(1).all(1)
    assert mirrored.float().mean().item() == pytest.approx(share, abs=0.1)


def test_greys_stay_grey():
    data = load("digits")
    wild = Augmentation(randaugment="rand-m9-mstd0.5-inc1", scale=(0.3, 1.0), color_jitter=0.4)
    images, _ = next(data.train(batch=64, seed=0, augmentation=wild))
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    clean, _ = next(data.batches("train", batch=64))
    assert not torch.equal(images, clean)


def test_erasing_puts_noise_on_a_share_of_the_normalised_images():
    data = load("digits")
    plain = Augmentation(shift=True)
    noisy = Augmentation(shift=True, erasing=0.25)
    before, _ = next(data.train(batch=1000, seed=0, augmentation=plain))
    after, _ = next(data.train(batch=1000, seed=0, augmentation=noisy))
    changed = (before != after).any(1)
    share = changed.flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.05)
    noise = after[(before != after)]
    assert abs(noise.mean().item()) < 0.05  # noise of a normalised image: mean 0, deviation 1
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    for mask in changed[changed.flatten(1).any(1)][:20]:  # one solid rectangle of up to a third
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert mask.sum() == area
        assert 0.01 <= area / mask.numel() <= 0.37


# --- pure by image ------------------------------------------------------------------------------


@given(st.permutations(range(8)), st.integers(1, 7), st.sampled_from(["digits", "colour"]))
@settings(max_examples=15, deadline=None)
def test_an_image_is_a_function_of_its_index_and_number(order, cut, kind):
    source = colours() if kind == "colour" else load("digits")._source
    strong = Augmentation(
        shift=True, randaugment="rand-m9-mstd0.5-inc1", scale=(0.2, 1.0), interpolation="random"
    )
    numbers = [10**12 + 7 * i for i in range(8)]
    mean = (0.5,) * (3 if kind == "colour" else 1)
    whole = augmented(source, np.arange(8), numbers, 32, strong, mean)
    chosen = order[:cut]
    parts = augmented(source, np.array(chosen), [numbers[i] for i in chosen], 32, strong, mean)
    assert torch.equal(parts, whole[chosen])


@pytest.mark.parametrize("spec", ["digits", "pets"])
def test_the_stream_is_pure_and_leaves_the_global_generators_alone(spec, pets):
    spec = "digits" if spec == "digits" else str(pets)
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = random.random(), torch.rand(3).tolist(), np.random.rand()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    whole = take(load(spec).train(batch=6, seed=2, augmentation=DEIT), 4)
    assert (random.random(), torch.rand(3).tolist(), np.random.rand()) == expected
    assert same(take(load(spec).train(batch=6, seed=2, start=2, augmentation=DEIT), 2), whole[2:])
    assert not same(take(load(spec).train(batch=6, seed=3, augmentation=DEIT), 4), whole)


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_stand_in_a_row_and_differ(pets, repeats):
    data = load(str(pets))
    many = Augmentation(shift=True, randaugment="rand-m9-mstd0.5-inc1", repeats=repeats)
    assert data.steps_per_epoch(4) == 3  # 12 places in the order that one copy each would have
    epoch = take(data.train(batch=4, seed=0, augmentation=many), 3)
    images = torch.cat([images for images, _ in epoch])
    labels = torch.cat([labels for _, labels in epoch])
    alone = torch.cat([y for _, y in take(data.train(batch=4, seed=0, augmentation=SHIFT), 3)])
    assert torch.equal(labels, alone.repeat_interleave(repeats)[:12])
    assert len(images.flatten(1).unique(dim=0)) == 12
    first = Augmentation(shift=True, randaugment="rand-m9-mstd0.5-inc1")
    once = torch.cat([x for x, _ in take(data.train(batch=4, seed=0, augmentation=first), 3)])
    assert torch.equal(images[::repeats], once[: 12 // repeats])  # copy 0 is the only copy


# --- shards and splits --------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [None, SHIFT, ERASE, DEIT])
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("spec", ["digits", "pets"])
def test_shards_are_together_the_batch_of_one_process(spec, augmentation, size, pets):
    spec = "digits" if spec == "digits" else str(pets)
    settings = {"batch": 12, "seed": 4, "start": 1, "augmentation": augmentation}
    splits = {"splits": ("train", "rank", "report")}
    whole = take(load(spec).train(**settings, **splits), 2)
    parts = [
        take(load(spec).train(**settings, **splits, shard=(rank, size)), 2) for rank in range(size)
    ]
    assert all(len(labels) == 12 // size for part in parts for _, labels in part)
    assert same(joined(parts), whole)


@pytest.mark.slow
@pytest.mark.timeout(300)  # each worker imports torch anew
@pytest.mark.parametrize("spec", ["digits", "pets"])
def test_workers_change_nothing_of_a_shard(spec, pets):
    data = load("digits" if spec == "digits" else str(pets))
    settings = {"batch": 6, "seed": 4, "augmentation": DEIT, "shard": (1, 2)}
    stream = data.train(**settings, workers=2)
    assert same(take(stream, 4), take(data.train(**settings), 4))
    stream.close()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("limit", [None, 101, 3])
def test_every_image_is_one_shards(size, limit):
    data = load("digits")
    whole = torch.cat([x for x, _ in data.batches("test", batch=50, limit=limit)])
    parts = [
        [x for x, _ in data.batches("test", batch=7, limit=limit, shard=(rank, size))]
        for rank in range(size)
    ]
    back = torch.empty_like(whole)
    for rank, part in enumerate(parts):
        back[rank::size] = torch.cat([*part, whole[:0]])
    assert torch.equal(back, whole)
    assert sum(len(x) for part in parts for x in part) == (limit or data.sizes["test"])


def test_training_on_several_splits():
    data = load("digits")
    splits = ("train", "rank", "report")
    every = sum(data.sizes[split] for split in splits)
    assert data.steps_per_epoch(10, splits) == every // 10
    images, labels = next(
        data.train(batch=10**6, seed=0, splits=splits, augmentation=Augmentation())
    )
    assert len(images) == every
    truth = torch.cat([y for split in splits for _, y in data.batches(split, batch=500)])
    assert torch.equal(labels.bincount(), truth.bincount())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (0, 3)}, r"batch of 8 images does not divide into 3 .*multiple of 3"),
        ({"shard": (2, 2)}, "shard 2 of 2 is not allowed; give 0 to 1"),
        ({"splits": ()}, "splits none is not allowed; give each of train, rank, report"),
        ({"splits": ("train", "test")}, "splits train, test is not allowed"),
        ({"splits": ("train", "train")}, "at most once"),
    ],
)
def test_impossible_streams_are_refused(options, message):
    with pytest.raises(InvalidOption, match=message) as caught:
        next(load("digits").train(batch=8, seed=0, augmentation=SHIFT, **options))
    assert "\n" not in str(caught.value)


def test_a_clipped_batch_must_divide_too():
    data = load("digits")
    assert data.sizes["train"] % 2
    with pytest.raises(InvalidOption, match=f"batch of {data.sizes['train']} images"):
        next(data.train(batch=10**6, seed=0, shard=(0, 2)))


# --- as plain data ------------------------------------------------------------------------------

augmentations = st.builds(
    Augmentation,
    shift=st.booleans(),
    randaugment=st.sampled_from([None, "rand-m9-mstd0.5-inc1", "rand-m5-n3"]),
    scale=st.sampled_from([None, (0.08, 1.0)]),
    ratio=st.sampled_from([None, (0.75, 1.25)]),
    hflip=st.none() | st.floats(0, 1),
    color_jitter=st.floats(0, 1),
    erasing=st.floats(0, 1),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    repeats=st.integers(1, 5),
)


@given(augmentations)
@settings(max_examples=40, deadline=None)
def test_plain_data_and_back(augmentation):
    assert Augmentation.from_dict(json.loads(json.dumps(augmentation.to_dict()))) == augmentation
    assert Augmentation.from_dict({}) == Augmentation()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"hflip": 1.5}, r"hflip 1\.5 is not allowed; give a chance from 0 to 1"),
        ({"erasing": -0.1}, r"erasing -0\.1"),
        ({"erasing": float("nan")}, "erasing nan"),
        ({"scale": [0.5, 0.2]}, r"scale \(0\.5, 0\.2\)"),
        ({"scale": [0.5, 2]}, r"scale \(0\.5, 2\)"),
        ({"scale": 0.5}, r"'scale': 0\.5.*give numbers"),
        ({"ratio": [0, 1]}, r"ratio \(0, 1\)"),
        ({"color_jitter": -1}, "color_jitter -1"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is not allowed; give one of bicubic"),
        ({"repeats": 0}, "repeats 0"),
        ({"repeats": 1.5}, r"repeats 1\.5"),
        ({"randaugment": "augmix-m5"}, "randaugment 'augmix-m5'"),
        ({"randaugment": "rand-m9-q7"}, "rand-m9-q7"),
        ({"randaugment": "rand-m9.5"}, r"rand-m9\.5"),
        ({"erasure": 0.1}, "no 'erasure'; did you mean 'erasing'"),
        ({"erasing": "much"}, "give numbers|erasing 'much'"),
    ],
)
def test_what_makes_no_sense_is_refused(data, message):
    with pytest.raises(InvalidOption, match=message) as caught:
        Augmentation.from_dict(data)
    assert "\n" not in str(caught.value)


# --- one preprocessing in training and in use ---------------------------------------------------


def reread(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()))


def agrees(data, pictures):
    tensors = torch.cat([images for images, _ in data.batches("test", batch=7)])
    preprocessing = Preprocessing.from_dict(data.preprocessing.to_dict())
    assert preprocessing == data.preprocessing
    for index, tensor in zip(data.indices("test"), tensors, strict=True):
        assert torch.equal(preprocessing(reread(pictures(index))), tensor)


@pytest.mark.parametrize("side", [32, 40])
def test_a_digit_from_a_file_is_the_test_sets(side):
    data = load("digits", image=side)
    assert (data.preprocessing.grey, data.preprocessing.crop) == (True, None)
    agrees(data, lambda index: Image.fromarray(data._source.pixels[index, 0].numpy()))


@pytest.mark.parametrize("side", [32, 160])
def test_a_picture_from_a_file_is_the_test_sets(pets, side):
    data = load(str(pets), image=side)
    assert (data.preprocessing.grey, data.preprocessing.crop) == (
        False,
        1.0 if side < 128 else 0.875,
    )
    agrees(data, lambda index: Image.open(data._source.album.name(index)))


@pytest.mark.parametrize("side", [32, 33, 160])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (28, 40), (200, 170)])
def test_stored_pixels_from_a_file_are_the_sets(channels, size, side):
    pixels = np.stack([picture(i, *size, channels) for i in range(5)])
    source = Arrays(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), np.zeros(5, np.int64), ("a",)
    )
    clean = source.clean(np.arange(5), side)
    values = (0.4,) * channels, (0.3,) * channels
    preprocessing = Preprocessing(side, *values, source.grey, source.crop(side))
    for index, array in enumerate(pixels):
        image = reread(Image.fromarray(array[..., 0] if channels == 1 else array))
        assert torch.equal(preprocessing.pixels(image), clean[index])
        assert torch.equal(preprocessing(image), preprocessing.normalised(clean)[index])


# --- what is lost on the way --------------------------------------------------------------------


def lost(data, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        take(data.train(batch=16, seed=0, **options), 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        list(data.batches("train", batch=4))


@pytest.fixture
def frail(pets, tmp_path):
    return shutil.copytree(pets, tmp_path / "pets")


@pytest.mark.parametrize("augmentation", [None, DEIT, SHIFT])
def test_an_image_that_vanished_is_named(frail, augmentation):
    data = load(str(frail))
    for path in (frail / "dog").iterdir():
        path.unlink()
    lost(
        data,
        r"image '.*/dog/\d+.png' is gone; put it back, then .*it goes on",
        augmentation=augmentation,
    )


def test_a_class_folder_that_vanished_is_named_and_may_come_back(frail, tmp_path):
    data = load(str(frail))
    before = take(data.train(batch=16, seed=0, augmentation=DEIT), 2)
    (frail / "dog").rename(tmp_path / "elsewhere")
    lost(data, r"folder '.*/pets/dog' is gone; put it back", augmentation=DEIT)
    (tmp_path / "elsewhere").rename(frail / "dog")
    assert load(str(frail)).fingerprint == data.fingerprint
    assert same(take(data.train(batch=16, seed=0, augmentation=DEIT), 2), before)


def test_the_whole_set_that_vanished_is_named(frail):
    data = load(str(frail))
    shutil.rmtree(frail)
    lost(data, r"folder '.*/pets' is gone", augmentation=SHIFT)


def test_an_image_that_broke_is_named(frail):
    data = load(str(frail))
    for path in frail.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:700])
    lost(data, r"image '.*.png' cannot be decoded \(.*\); put a sound copy", augmentation=DEIT)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_ends_in_one_line(pets):
    stream = load(str(pets)).train(batch=4, seed=0, augmentation=DEIT, workers=2)
    next(stream)
    family = psutil.Process().children(recursive=True)
    workers = [p for p in family if not p.children() and "forkserver" in " ".join(p.cmdline())]
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    with pytest.raises(WorkerLost, match=r"process that loads images ended.*goes on") as caught:
        take(stream, 50)
    assert "\n" not in str(caught.value)


# --- the supernet's stream ----------------------------------------------------------------------


def digest(tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def stream(data, steps, **settings):
    return digest(t for pair in take(data.train(**settings), steps) for t in pair)


def test_a_supernets_stream_of_digits_is_the_published_one():
    """Hashes taken before stand-alone training had an augmentation of its own."""
    data = load("digits")
    assert data.fingerprint == "83823dcf5bd4f316"
    assert stream(data, 2, batch=32, seed=3) == "aa9b0fa1b532680c"
    assert stream(data, 1, batch=100, seed=5, start=11) == "5b532f92ca71efa3"
    assert digest(t for pair in data.batches("rank", batch=50) for t in pair) == "2d7ad5b3a87b9b96"
    assert digest(data.calibration(batches=2, batch=32, seed=0)) == "5ccd78aa64274810"


def test_a_supernets_streams_of_colours_are_the_published_ones(tmp_path):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (12, 3, 32, 32)).astype(np.uint8))
    source = Arrays(pixels, np.zeros(12, np.int64), ("a",), flip=True)
    assert digest([source.varied(np.arange(1, 9), 32, 4, 2)]) == "1cf405bb8a61017f"
    assert digest([source.varied(np.arange(1, 9), 48, 4, 2)]) == "fef08feb21f2bf39"
    for name in ("cat", "dog"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for item in range(8):
            array = rng.integers(0, 256, (30, 44, 3)).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "p" / name / f"{item}.png")
    for side, train, test in (
        (32, "076b38181bbfe744", "92c67b2f5f35802c"),
        (160, "0d46cbad7b1c030a", "736d5575d01dcd3e"),
    ):
        data = load(str(tmp_path / "p"), image=side)
        assert stream(data, 3, batch=4, seed=2, start=1) == train
        assert digest(t for pair in data.batches("test", batch=2) for t in pair) == test


def test_posterising_leaves_a_bit_at_its_strongest():
    """timm asks Pillow for no bit at all at level 10; Pillow 13 refuses that."""
    augmentation = Augmentation(randaugment="rand-m10-n4-inc1", scale=(0.5, 1.0))
    transform = augmentation.transform(16, (0.5,), flip=False)
    picture = Image.fromarray(np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8))
    (policy,) = (step for step in transform.transforms if hasattr(step, "ops"))
    posterise = [op for op in policy.ops if op.name.startswith("Posterize")]
    assert posterise
    for operation in posterise:
        assert operation.level_fn(10, {})[0] == 1
        assert operation.aug_fn(picture, *operation.level_fn(10, {})).size == (16, 16)
    for number in range(40):
        with seeded(number):
            assert transform(picture).shape == (3, 16, 16)
