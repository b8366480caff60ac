"""Predictions: the training's own preprocessing, and a line for each image that cannot be read."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from finished_run import SETTINGS, begun, finished
from PIL import Image
from retrained_run import begun_training, trained
from safetensors.torch import save
from sklearn.datasets import load_digits

from mixnas import data
from mixnas.errors import InvalidCheckpoint, InvalidOption, RunConflict
from mixnas.exports import FORMS
from mixnas.exports.weights import WEIGHTS
from mixnas.folding import fuse
from mixnas.jobs.predict import predict
from mixnas.jobs.settings import Silent
from mixnas.metrics import logits


class Heard(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs: a search with a finished retraining, one without, and a retraining alone."""
    root = tmp_path_factory.mktemp("runs")
    settings = replace(SETTINGS, resolution=32)
    trained(finished(root, "searched", settings).path, of="searched")
    begun_training(finished(root, "untrained", settings).path, of="untrained")
    trained(root, "alone")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The first test images of the digits as files, and their numbers."""
    folder = tmp_path_factory.mktemp("photos")
    numbers = data.load("digits", image=32).indices("test")[:40]
    stored = load_digits().images
    for place, number in enumerate(numbers):
        pixels = np.round(stored[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:03}.png")
    return folder


def test_it_answers_as_the_network_does_on_the_data_itself(root, photos):
    """Forty files in two batches: as the tensors of the data set, image by image."""
    found = predict(root / "alone", [photos], top=10)
    network = WEIGHTS.load(root / "alone").network
    values, _ = logits(network, data.load("digits", image=32).batches("test", batch=32, limit=40))
    expected = values.double().softmax(1)
    assert [one["image"] for one in found] == [str(photos / f"{i:03}.png") for i in range(40)]
    for one, chances in zip(found, expected, strict=True):
        told = {guess["label"]: guess["probability"] for guess in one["classes"]}
        assert [told[str(label)] for label in range(10)] == pytest.approx(
            chances.tolist(), abs=1e-6
        )
        ranks = [guess["probability"] for guess in one["classes"]]
        assert ranks == sorted(ranks, reverse=True)
        assert math.fsum(ranks) == pytest.approx(1)


@pytest.mark.parametrize("top", [1, 3, 10, 99])
def test_so_many_classes_are_named_as_asked_or_as_there_are(root, photos, top):
    (one,) = predict("alone", [photos / "000.png"], top=top, runs=root)
    assert len(one["classes"]) == min(top, 10)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_exported_form_answers_as_what_was_trained(root, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    expected = predict("alone", [photos], top=10, runs=root)
    trained_one = WEIGHTS.load(root / "alone")
    network, model = fuse(trained_one.network), trained_one.model.folded()
    for form in FORMS.values():
        form.write(tmp_path / form.place, network, model, {})
        given = [tmp_path / form.place, *(tmp_path / form.place).glob("*.safetensors")]
        for path in given:
            found = predict(path, [photos], top=10)
            for one, other in zip(found, expected, strict=True):
                told, wanted = (
                    {guess["label"]: guess["probability"] for guess in answer["classes"]}
                    for answer in (one, other)
                )
                assert told == pytest.approx(wanted, abs=1e-5), path
                assert one["classes"][0]["label"] == other["classes"][0]["label"], path


def test_a_search_answers_by_its_retraining(root, photos):
    heard = Heard()
    by_name = predict("searched", [photos], runs=root, listener=heard)
    assert by_name == predict(root / "searched" / "retrain", [photos])
    assert by_name == predict(root / "searched" / "retrain" / "model.safetensors", [photos])
    assert heard.notes == []


def test_a_search_without_one_answers_by_its_winners_weights_and_says_so(root, photos):
    heard = Heard()
    found = predict("untrained", [photos / "000.png"], runs=root, listener=heard)
    assert len(found[0]["classes"]) == 5
    (note,) = heard.notes
    assert "inherits from the supernet" in note
    assert "mixnas retrain untrained" in note
    assert "\n" not in note


def test_broken_images_are_told_and_the_others_answered(root, photos, tmp_path):
    good = tmp_path / "good.png"
    shutil.copy(photos / "000.png", good)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-40])
    text = tmp_path / "text.png"
    text.write_text("no image")
    (tmp_path / "empty").mkdir()
    gone = tmp_path / "gone.png"
    given = [cut, good, text, gone, tmp_path / "empty", good]
    found = predict("alone", given, runs=root)
    assert [one["image"] for one in found] == list(map(str, given))
    assert ["classes" in one for one in found] == [False, True, False, False, False, True]
    assert found[1]["classes"] == found[5]["classes"]
    for one in found:
        if "error" in one:
            assert one["image"] in one["error"]
            assert "\n" not in one["error"]
            assert "classes" not in one
    assert all("error" in one for one in predict("alone", [gone], runs=root))


def test_a_folder_is_read_at_any_depth_in_order_without_what_is_hidden(root, photos, tmp_path):
    for name in ("b/2.png", "b/10.png", "a.PNG", ".hidden/x.png", "b/.x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "000.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = predict("alone", [tmp_path], runs=root)
    expected = [str(tmp_path / name) for name in ("a.PNG", "b/10.png", "b/2.png")]
    assert [one["image"] for one in found] == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(8, 8), (33, 17), (3, 100)])
def test_any_mode_and_shape_of_picture_is_answered(root, tmp_path, mode, size):
    picture = Image.effect_noise(size, 60)
    picture = (
        picture.convert("I").point(lambda v: v * 257).convert(mode)
        if mode == "I;16"
        else (picture.convert("RGB").convert(mode))
    )
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    picture.save(path)
    (one,) = predict("alone", [path], runs=root)
    assert len(one["classes"]) == 5


def test_what_cannot_answer_is_one_line(root, photos, tmp_path):
    image = [photos / "000.png"]
    begun(tmp_path, "fresh")
    begun_training(tmp_path, "training")
    (tmp_path / "x.pt2").write_bytes(b"cut")
    broken = trained(tmp_path, "broken")
    state = {
        key: value * torch.nan
        for key, value in WEIGHTS.load(broken.path).network.state_dict().items()
    }
    broken.write("model.safetensors", save(state))
    short = trained(tmp_path, "short")
    short.file("model.safetensors").write_bytes(b"cut")
    for model, options, error, says in (
        ("alone", {"images": []}, InvalidOption, "no image given"),
        ("alone", {"top": 0}, InvalidOption, "top 0"),
        ("aloen", {}, RunConflict, "did you mean 'alone'.*mixnas export"),
        ("nowhere/model.onnx", {}, InvalidCheckpoint, "nowhere/model.onnx"),
        (tmp_path / "x.pt2", {}, InvalidCheckpoint, r"x\.pt2"),
        (photos, {}, InvalidCheckpoint, "photos"),
        (tmp_path / "fresh", {}, RunConflict, "no winner yet"),
        (tmp_path / "training", {}, RunConflict, "no weights yet; go on with: mixnas retrain"),
        (tmp_path / "broken", {}, InvalidCheckpoint, "not finite"),
        (tmp_path / "short", {}, InvalidCheckpoint, "model.safetensors"),
    ):
        with pytest.raises(error, match=says) as raised:
            predict(model, **({"images": image, "runs": root} | options))
        assert "\n" not in str(raised.value)
