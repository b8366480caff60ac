"""What is said of a classifier, against scikit-learn, numpy and the papers' equations."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from mixnas import data
from mixnas.errors import DataError, TrainingDiverged
from mixnas.evaluate import score
from mixnas.metrics import calibration_error, logits, metrics
from mixnas.network import build

NAMES = [str(number) for number in range(10)]


def answers(seed, images=200, classes=10, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    values = torch.randn(images, classes, generator=generator)
    values[torch.arange(images), labels] += 1.0
    return sharpness * values, labels


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 120), classes=st.integers(2, 12))
def test_figures_are_those_of_scikit_learn(seed, images, classes):
    values, labels = answers(seed, images, classes)
    every = list(range(classes))
    found = metrics(values, labels, [str(c) for c in every])
    answered = values.argmax(1).numpy()
    probability = values.double().softmax(1).numpy()
    assert found["images"] == images
    assert found["top1"] == pytest.approx(accuracy_score(labels, answered))
    assert found["loss"] == pytest.approx(log_loss(labels, probability, labels=every))
    assert found["confusion"] == confusion_matrix(labels, answered, labels=every).tolist()
    if classes > 5:
        top5 = top_k_accuracy_score(labels, values.numpy(), k=5, labels=every)
        assert found["top5"] == pytest.approx(top5)
    else:
        assert found["top5"] is None
    recall = recall_score(labels, answered, labels=every, average=None, zero_division=np.nan)
    own = [np.nan if value is None else value for value in found["recall"]]
    np.testing.assert_allclose(own, recall)
    json.dumps(found, allow_nan=False)  # plain data, whatever the classes without images


def binned_by_hand(confidence, right, bins):
    """Equation 3 of Guo et al. 2017, bin by bin."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(confidence)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 300), bins=st.integers(1, 30))
def test_the_calibration_error_is_the_papers_equation(seed, images, bins):
    rng = np.random.default_rng(seed)
    confidence = np.where(
        rng.random(images) < 0.2,
        rng.integers(1, bins + 1, images) / bins,
        rng.uniform(1e-6, 1, images),
    )
    right = rng.random(images) < confidence
    found = calibration_error(torch.from_numpy(confidence), torch.from_numpy(right), bins)
    assert found == pytest.approx(binned_by_hand(confidence, right, bins), abs=1e-12)


def test_the_calibration_error_of_known_cases():
    sure = torch.ones(10)
    assert calibration_error(sure, torch.ones(10, dtype=torch.bool)) == 0
    assert calibration_error(sure, torch.zeros(10, dtype=torch.bool)) == 1
    half = torch.arange(10) < 5
    assert calibration_error(torch.full((10,), 0.5), half) == pytest.approx(0)
    assert calibration_error(torch.full((10,), 0.8), half) == pytest.approx(0.3)


def test_confidence_is_of_the_class_answered():
    values, labels = answers(3)
    confidence = values.double().softmax(1).amax(1)
    expected = binned_by_hand(
        confidence.numpy(), (values.argmax(1) == labels).numpy().astype(float), 15
    )
    assert metrics(values, labels, NAMES)["calibration_error"] == pytest.approx(expected)


def test_the_standard_error_covers_the_truth():
    """Over many draws of a classifier that is right with 70 %, one error holds about 68 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        right = torch.from_numpy(rng.random(300) < 0.7)
        labels = torch.zeros(300, dtype=torch.int64)
        values = torch.stack([right.float(), 1 - right.float()], 1)
        found = metrics(values, labels, ["a", "b"])
        held += abs(found["top1"] - 0.7) <= found["standard_error"]
    assert 0.6 < held / 400 < 0.76


def test_answers_come_in_order_and_agree_with_the_score(micro, rng):
    digits = data.load("digits", image=16)
    network = build(micro.sample(rng), 10).train()
    batches = list(digits.batches("test", batch=100))
    values, labels = logits(network, batches)
    assert not network.training
    assert values.dtype == torch.float32
    assert values.shape == (len(labels), 10)
    assert torch.equal(labels, torch.cat([truth for _, truth in batches]))
    with torch.no_grad():
        assert torch.equal(values[:100], network(batches[0][0]))
    judged, found = score(network, batches), metrics(values, labels, digits.labels)
    assert found["top1"] == judged.accuracy
    assert found["standard_error"] == judged.standard_error
    assert found["loss"] == pytest.approx(judged.loss, abs=1e-6)


def test_half_precision_is_answered_in_float32():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).bfloat16()
    values, _ = logits(network, [(torch.rand(2, 3, 2, 2).bfloat16(), torch.tensor([0, 1]))])
    assert values.dtype == torch.float32


def test_a_share_without_images_has_no_rows():
    values, labels = logits(torch.nn.Identity(), [], classes=7)
    assert values.shape == (0, 7)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("values", "labels", "names", "error", "says"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "ab", DataError, "no|0 answers"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "ab", DataError, "3 answers to 2"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), "abc", DataError, "2 classes on data of 3"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "ab", DataError, "label 2"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), "ab", DataError, "label -1"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "ab", TrainingDiverged, "2 of 2"),
    ],
)
def test_what_does_not_fit_is_one_line(values, labels, names, error, says):
    with pytest.raises(error, match=says) as raised:
        metrics(values, labels, list(names))
    assert "\n" not in str(raised.value)
