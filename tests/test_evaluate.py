"""Scores by inherited weights: fresh statistics, the supernet untouched, the same each time."""

import math

import pytest
import torch

from mixnas import data
from mixnas.errors import NotInSpace
from mixnas.evaluate import Score, SupernetEvaluator, answers, recalibrate, score
from mixnas.network import Network, build


@pytest.fixture(scope="module")
def evaluator(micro):
    digits = data.load("digits", image=16)
    torch.manual_seed(0)
    return SupernetEvaluator(
        Network(micro, 10).eval(),
        digits.calibration(batches=2, batch=64, seed=0),
        list(digits.batches("rank", batch=64)),
    )


def test_a_score_is_repeatable_and_leaves_the_supernet_alone(evaluator, micro, rng):
    before = {k: v.clone() for k, v in evaluator.network.state_dict().items()}
    arch = micro.sample(rng)
    first = evaluator(arch)
    evaluator(micro.largest(rng))
    assert evaluator(arch) == first
    assert all(torch.equal(before[k], v) for k, v in evaluator.network.state_dict().items())
    assert first.images == 180


def test_statistics_are_those_of_all_images_together(micro, rng):
    """The first batch norm behind the stem must see the pooled mean and variance."""
    network = build(micro.sample(rng), 10)
    generator = torch.Generator().manual_seed(0)
    batches = [3 * i + torch.randn(16, 3, 32, 32, generator=generator) for i in range(3)]
    recalibrate(network, batches)
    stem = next(iter(network.stems.values()))
    if hasattr(stem, "convs"):
        conv, norm = stem.convs[0], stem.norms[0]
        pooled = conv(torch.cat(batches)).transpose(0, 1).flatten(1)
    else:
        local = next(iter(network.stages.values()))[0].local
        norm = local.norm
        pooled = local.conv(stem(torch.cat(batches), local.conv.weight.shape[0]))
        pooled = pooled.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, pooled.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, pooled.var(1), rtol=1e-2, atol=1e-3)
    assert norm.momentum == 0.1
    assert not network.training


def test_a_score_counts_what_is_right():
    class Says(torch.nn.Module):
        def forward(self, images):
            return images[:, 0, 0, :3]

    images = torch.zeros(4, 1, 1, 3)
    for row, label in enumerate((0, 1, 2, 0)):
        images[row, 0, 0, label] = 9.0
    batches = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([2, 1]))]
    result = score(Says(), batches)
    assert (result.accuracy, result.images) == (0.75, 4)
    each = answers(Says(), iter(batches))
    assert each.right.tolist() == [True, True, True, False]
    assert each.losses[3].item() == pytest.approx(9 + math.log(1 + 2 * math.exp(-9)))
    assert each.score() == result
    assert result.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert Score(1.0, 0.0, 10).standard_error == 0.0


def test_an_architecture_of_another_space_is_refused(evaluator, default, rng):
    with pytest.raises(NotInSpace):
        evaluator(default.sample(rng))


def test_answers_are_those_of_evaluation_mode():
    network = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.9), torch.nn.Flatten()
    )
    images = torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    labels = images.flatten(1).argmax(1)  # the statistics are 0 and 1: the images are the logits
    result = answers(network.train(), [(images, labels)])
    assert result.right.all()
    assert network[0].num_batches_tracked == 0
    assert not network.training
