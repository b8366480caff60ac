"""A training alone with all that a recipe may ask for, against references written out."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import SoftTargetCrossEntropy

from mixnas import data, zoo
from mixnas.data.augment import Augmentation
from mixnas.errors import DataError, InvalidOption, OutOfMemory, TrainingDiverged
from mixnas.network import build
from mixnas.train.alone import AloneTrainer
from mixnas.train.execution import Execution
from mixnas.train.mixing import Mixing
from mixnas.train.objective import Objective
from mixnas.train.recipe import AloneRecipe
from mixnas.train.recipes import COURSES, course
from mixnas.train.teacher import Teacher

EVERYTHING = {"mixup": 0.8, "cutmix": 1.0, "ema": 0.9, "drop_path": 0.3}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image=16)


def resnet(norms=True):
    """A network of timm that draws at random while it trains."""
    torch.manual_seed(5)
    network = timm.create_model(
        "resnet10t", num_classes=10, drop_rate=0.3, drop_path_rate=0.3, stem_width=8
    )
    return network if norms else network.to(memory_format=torch.channels_last)


def plain(kind=torch.float64, classes=10):
    """A network without norms or randomness."""
    torch.manual_seed(1)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Flatten()
    network = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 36, classes)).to(kind)
    network.num_classes = classes
    return network


def batches(count, images=12, seed=0, kind=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        pixels = torch.randn(images, 3, 8, 8, generator=generator, dtype=kind)
        yield pixels, torch.randint(0, 10, (images,), generator=generator)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_by_default_a_step_is_what_it_was_before_recipes_could_ask_for_more(digits):
    """Bit for bit: the loop of the comparisons, written out with torch and timm alone."""
    learner = AloneTrainer(resnet(), AloneRecipe(steps=6, batch=16), seed=4)
    network = resnet().to(memory_format=torch.channels_last)
    groups = timm.optim.param_groups_weight_decay(network, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=2e-3, fused=True)
    for step, (images, labels) in zip(range(6), digits.train(batch=16, seed=3), strict=False):
        result = learner.train(images, labels)
        rate = 2e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 6)) / 2) if step else 2e-3
        assert result.rate == pytest.approx(rate)
        for group in optimizer.param_groups:
            group["lr"] = result.rate
        network.train()
        optimizer.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(random.Random(f"4/{step}").getrandbits(63))
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        assert result.losses == {"labels": loss.item()}
    assert equal(learner.network.state_dict(), network.state_dict())
    assert learner.judged is learner.network


@pytest.mark.parametrize("cut", [1, 4])
def test_with_everything_on_a_training_cut_at_any_step_goes_on_bit_for_bit(tmp_path, digits, cut):
    def learner():
        recipe = AloneRecipe(steps=6, batch=16, distillation="hard", **EVERYTHING)
        execution = Execution(accumulate=2)
        return AloneTrainer(resnet(), recipe, 1, execution=execution, teacher=resnet().eval())

    whole = learner()
    straight = [r.row() for r in whole.run(digits.train(batch=16, seed=3))]
    first = learner()
    begun = [r.row() for r in first.run(digits.train(batch=16, seed=3), until=cut)]
    torch.save(first.state(), tmp_path / "state.pt")
    np.random.rand(7), torch.rand(7), random.random()  # what else draws does not matter
    second = learner()
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = [r.row() for r in second.run(digits.train(batch=16, seed=3, start=cut))]
    assert begun + rest == straight
    assert equal(whole.network.state_dict(), second.network.state_dict())
    assert equal(whole.judged.state_dict(), second.judged.state_dict())
    assert not equal(whole.judged.state_dict(), whole.network.state_dict())


@pytest.mark.parametrize("name", ["sgd", "lamb", "lion", "adafactor", "nadamw", "adan"])
def test_optimisers_of_timm_go_on_bit_for_bit_too(name):
    def learner():
        return AloneTrainer(plain(), AloneRecipe(steps=6, batch=12, optimizer=name))

    whole, first, second = learner(), learner(), learner()
    assert not any(whole.train(*batch).skipped for batch in batches(6))
    for batch in list(batches(6))[:3]:
        first.train(*batch)
    second.restore(first.state())
    for batch in list(batches(6))[3:]:
        second.train(*batch)
    assert equal(whole.network.state_dict(), second.network.state_dict())


@settings(max_examples=12, deadline=None)
@given(
    parts=st.integers(1, 12),
    mixed=st.booleans(),
    distillation=st.sampled_from(["none", "soft", "hard"]),
)
def test_a_batch_in_parts_is_the_batch_as_a_whole(parts, mixed, distillation):
    teacher = None if distillation == "none" else plain().eval()
    recipe = AloneRecipe(
        steps=4, batch=12, distillation=distillation, mixup=0.8 * mixed, cutmix=1.0 * mixed
    )
    one, many = (
        AloneTrainer(plain(), recipe, execution=Execution(accumulate=n), teacher=teacher)
        for n in (1, parts)
    )
    for batch in batches(4):
        wanted, found = one.train(*batch), many.train(*batch)
        assert found.losses["labels"] == pytest.approx(wanted.losses["labels"], abs=1e-12)
        assert found.accuracy == pytest.approx(wanted.accuracy)
    for value, other in zip(one.network.parameters(), many.network.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["micro", "shvit_s1"])
def test_checkpointed_activations_change_nothing(micro, digits, name):
    def learner(checkpointing):
        torch.manual_seed(2)
        if name == "micro":
            network = build(micro.sample(random.Random(3)), 10, drop_path=0.3)
        else:
            network = zoo.create(name, num_classes=10, image=64)
        recipe = AloneRecipe(steps=3, batch=8)
        return AloneTrainer(network, recipe, execution=Execution(checkpointing=checkpointing))

    pair = learner(False), learner(True)
    side = 16 if name == "micro" else 64
    for _ in range(3):
        images, labels = torch.randn(8, 3, side, side), torch.randint(0, 10, (8,))
        rows = [one.train(images, labels).row() for one in pair]
        assert rows[0] == rows[1]
    assert equal(pair[0].network.state_dict(), pair[1].network.state_dict())


def test_mixed_labels_are_as_much_of_each_class_as_of_its_image():
    """Images of constant brightness say how much of each there is; seeds say which mix."""
    recipe = AloneRecipe(steps=1, mixup=1.0, cutmix=1.0, smoothing=0.0)
    mixing = Mixing(recipe, 10)
    labels = torch.arange(10)
    images = labels.float()[:, None, None, None].expand(10, 3, 20, 20).contiguous()
    kinds = set()
    state = np.random.get_state()[1].copy()
    for step in range(20):
        mixed, targets = mixing(images, labels, f"0/{step}")
        again, _ = mixing(images, labels, f"0/{step}")
        assert torch.equal(mixed, again)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ labels.float())
        torch.testing.assert_close(targets.sum(1), torch.ones(10))
        kinds.add("mixup" if (mixed == mixed[:, :, :1, :1]).all() else "cutmix")
    assert kinds == {"mixup", "cutmix"}
    assert torch.equal(images[3], torch.full((3, 20, 20), 3.0))  # the caller's are left alone
    assert (np.random.get_state()[1] == state).all()


def test_the_loss_of_labels_and_of_a_teacher():
    """Against timm's loss of soft targets and DeiT's two equations, by hand in float64."""
    generator = torch.Generator().manual_seed(0)
    first, second, taught = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (7,), generator=generator)
    soft = torch.rand(7, 5, generator=generator, dtype=torch.float64).softmax(1)
    own = F.cross_entropy(first, labels, label_smoothing=0.1)
    recipe = AloneRecipe(steps=1)
    assert Objective(recipe)([first], labels, None) == own
    mean = (SoftTargetCrossEntropy()(first, soft) + SoftTargetCrossEntropy()(second, soft)) / 2
    torch.testing.assert_close(Objective(recipe)([first, second], soft, None), mean)

    hard = dataclasses.replace(recipe, distillation="hard", teaching=0.3)
    wanted = 0.7 * own + 0.3 * F.cross_entropy(second, taught.argmax(1))
    torch.testing.assert_close(Objective(hard)([first, second], labels, taught), wanted)

    warm = dataclasses.replace(recipe, distillation="soft", teaching=0.1, temperature=3.0)
    p, q = (taught / 3).softmax(1), (first / 3).softmax(1)
    wanted = 0.9 * own + 0.1 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(Objective(warm)([first], labels, taught), wanted)


def test_a_student_becomes_its_teacher():
    """A linear student of a linear teacher, with the labels counting for nothing."""
    torch.manual_seed(0)
    teacher, student = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)) for _ in range(2)
    )
    recipe = AloneRecipe(
        steps=300, rate=0.05, decay=0.0, distillation="soft", teaching=1.0, smoothing=0.0
    )
    learner = AloneTrainer(student, recipe, teacher=Teacher(teacher))
    for _ in range(300):
        learner.train(torch.randn(64, 3, 2, 2), torch.randint(0, 3, (64,)))
    images = torch.randn(50, 3, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            student(images).softmax(1), teacher(images).softmax(1), rtol=0, atol=0.02
        )


def test_a_teacher_sees_images_in_its_own_normalisation_and_size():
    seen = []

    class Watcher(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    pixels = torch.rand(2, 3, 8, 8)
    ours = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    theirs = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, deviation, own, spread = (torch.tensor(v)[:, None, None] for v in (*ours, *theirs))
    teacher = Teacher(Watcher(), *ours, *theirs, image=16).train()
    assert not teacher.network.training
    teacher((pixels - mean) / deviation)
    assert seen[0].shape == (2, 3, 16, 16)
    teacher = Teacher(Watcher(), *ours, *theirs)
    teacher((pixels - mean) / deviation)
    torch.testing.assert_close(seen[1], (pixels - own) / spread, rtol=0, atol=1e-5)
    images = torch.rand(2, 3, 8, 8)
    Teacher(Watcher(), (0.5,), (0.2,))(images)
    assert torch.equal(seen[2], images)


def test_the_average_follows_its_formula():
    """A geometric mean of what was, whose decay rises as 1 - n^(-3/4) up to the recipe's."""
    learner = AloneTrainer(plain(), AloneRecipe(steps=8, batch=12, rate=0.1, ema=0.6))
    average = learner.network[0].weight.detach().clone()
    for step, batch in enumerate(batches(8), 1):
        learner.train(*batch)
        decay = min(0.6, 1 - step**-0.75) if step > 1 else 0.0
        average = decay * average + (1 - decay) * learner.network[0].weight.detach()
        torch.testing.assert_close(learner.judged[0].weight, average)
    assert not learner.judged.training


def test_frozen_norms_keep_their_statistics_and_learn_their_scales(digits):
    learner = AloneTrainer(resnet(), AloneRecipe(steps=3, batch=16, frozen_norms=True))
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    for _, batch in zip(range(3), digits.train(batch=16, seed=0), strict=False):
        learner.train(*batch)
    after = learner.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after if "running" in key)
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])


@pytest.mark.parametrize(("mode", "clip"), [("value", 1e-3), ("agc", 1e-3), ("norm", None)])
def test_clipping_in_each_way(mode, clip):
    """Against the definition of each, on the gradient that plain descent sees."""
    batch = next(batches(1))
    network = plain()
    wanted = {}
    F.cross_entropy(network(batch[0]), batch[1], label_smoothing=0.1).backward()
    for name, parameter in network.named_parameters():
        gradient, value = parameter.grad, parameter.detach()
        if mode == "value":
            wanted[name] = gradient.clamp(-clip, clip)
        elif mode == "agc":
            axes = tuple(range(1, gradient.dim())) or (0,)
            norms = [x.square().sum(axes, keepdim=True).sqrt() for x in (gradient, value)]
            most = clip * norms[1].clamp(min=1e-3)
            wanted[name] = gradient * (most / norms[0]).clamp(max=1)
        else:
            wanted[name] = gradient
    recipe = AloneRecipe(steps=1, batch=12, clip=clip, clip_mode=mode)
    learner = AloneTrainer(plain(), recipe)
    assert learner.train(*batch).skipped is None
    for name, parameter in learner.network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12)


def test_half_precision_computes_in_half_and_goes_on_with_its_scale(digits):
    def learner():
        recipe = AloneRecipe(steps=4, batch=16, rate=1e-3)
        return AloneTrainer(plain(torch.float32), recipe, execution=Execution("fp16"))

    steps = list(batches(4, 16, kind=torch.float32))
    whole, first, second = learner(), learner(), learner()
    kinds = []
    whole.network[3].register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    rows = [whole.train(*batch).row() for batch in steps]
    assert set(kinds) == {torch.float16}
    exact = AloneTrainer(plain(torch.float32), AloneRecipe(steps=4, batch=16, rate=1e-3))
    losses = [exact.train(*batch).losses["labels"] for batch in steps]
    assert [row["loss_labels"] for row in rows] == pytest.approx(losses, rel=5e-3)
    for batch in steps[:2]:
        first.train(*batch)
    first.scaler.update(512.0)
    second.restore(first.state())
    assert second.scaler.get_scale() == 512.0
    first.train(*steps[2])
    second.train(*steps[2])
    assert equal(first.network.state_dict(), second.network.state_dict())


def test_an_overflow_in_half_precision_lowers_the_scale_and_leaves_the_weights():
    recipe = AloneRecipe(steps=4, batch=16)
    learner = AloneTrainer(plain(torch.float32), recipe, execution=Execution("fp16"))
    for _ in range(2):  # a scale is set once there is one
        learner.train(*next(batches(1, 16, kind=torch.float32)))
    learner.scaler.update(2.0**40)
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    result = learner.train(*next(batches(1, 16, kind=torch.float32)))
    assert "a gradient of" in result.skipped
    assert learner.scaler.get_scale() == 2.0**39
    assert equal(before, learner.network.state_dict())


def test_bf16_is_near_and_says_so_of_a_gpu_without():
    recipe = AloneRecipe(steps=1, batch=12)
    batch = next(batches(1, kind=torch.float32))
    losses = [
        AloneTrainer(plain(torch.float32), recipe, execution=Execution(p)).train(*batch).losses
        for p in ("auto", "bf16")
    ]
    assert losses[0]["labels"] == pytest.approx(losses[1]["labels"], rel=2e-2)
    assert losses[0] != losses[1]


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_network_learns_the_same_under_the_same_names(micro):
    def learner(compiled):
        torch.manual_seed(0)
        network = build(micro.sample(random.Random(3)), 10)
        return AloneTrainer(
            network, AloneRecipe(steps=2, batch=8), execution=Execution(compile=compiled)
        )

    fast, slow = learner(True), learner(False)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    for _ in range(2):
        wanted = slow.train(images, labels).losses["labels"]
        assert fast.train(images, labels).losses["labels"] == pytest.approx(wanted, abs=1e-4)
    assert fast.state()["network"].keys() == slow.state()["network"].keys()


def test_memory_that_ends_is_a_sentence_and_the_training_is_whole():
    """The real allocator refuses: a layer asks for more than there is."""

    class Greedy(torch.nn.Module):
        greedy = False

        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)
            self.linear = torch.nn.Linear(3, 10)

        def forward(self, x):
            x = self.norm(x)
            if self.greedy:
                torch.empty(1 << 60, dtype=torch.uint8)
            return self.linear(x.mean((2, 3)))

    network = Greedy()
    learner = AloneTrainer(network, AloneRecipe(steps=3, batch=12))
    batch = next(batches(1, kind=torch.float32))
    learner.train(*batch)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.greedy = True
    with pytest.raises(OutOfMemory, match=r"step 1: .* 12 images .* --accumulate 2 or --check"):
        learner.train(*batch)
    assert equal(before, network.state_dict())
    assert learner.step == 1
    network.greedy = False
    learner.train(*batch)


def test_a_gpu_out_of_memory_is_the_same_sentence():
    execution = Execution(accumulate=8, checkpointing=True)
    with (
        pytest.raises(OutOfMemory, match=r"a smaller --batch under another name: it goes on"),
        execution.watched("step 4", 12),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(("label", "mixup"), [(10, 0.0), (-1, 0.0), (10, 0.8)])
def test_a_label_without_a_class_is_refused_before_it_is_learnt(label, mixup):
    learner = AloneTrainer(plain(), AloneRecipe(steps=1, batch=12, mixup=mixup))
    images, labels = next(batches(1))
    labels[5] = label
    before = {key: value.clone() for key, value in learner.network.state_dict().items()}
    with pytest.raises(DataError, match=rf"^label {label} is none of .* 10 classes \(0 to 9\);"):
        learner.train(images, labels)
    assert equal(before, learner.network.state_dict())


def test_a_skipped_step_leaves_weights_average_and_optimiser_and_too_many_stop():
    learner = AloneTrainer(plain(), AloneRecipe(steps=9, batch=12, ema=0.9, patience=2))
    images, labels = next(batches(1))
    learner.train(images, labels)
    before = learner.state()
    assert learner.train(images * math.nan, labels).skipped
    after = learner.state()
    assert equal(before["network"], after["network"])
    assert equal(before["ema"], after["ema"])
    assert after["bad"] == 1
    with pytest.raises(TrainingDiverged, match=r"2 steps in a row; lower the learning rate"):
        learner.train(images * math.nan, labels)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AloneRecipe(steps=0), "steps 0 is not allowed"),
        (lambda: AloneRecipe(steps=1, mixup=-1.0), "mixup -1 is not allowed; give 0 to 100"),
        (lambda: AloneRecipe(steps=1, rate=math.nan), "rate nan is not allowed"),
        (lambda: AloneRecipe(steps=1, clip_mode="no"), "'no' is not known; give norm, agc, value"),
        (lambda: AloneRecipe(steps=1, distillation="warm"), "'warm' is not known; give none"),
        (lambda: Execution(precision="fp8"), "'fp8' is not known; give auto, fp32, bf16, fp16"),
        (lambda: Execution(accumulate=0), "accumulate 0 is not allowed"),
        (lambda: course("diet"), r"no recipe 'diet'; did you mean 'deit'\?"),
        (lambda: course("deit").recipe(per_epoch=3, epochs=0), "give at least 1 of both"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(make, words):
    with pytest.raises(InvalidOption, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ({"optimizer": "adamx"}, {}, r"optimizer 'adamx' is not offered: did you mean 'adam"),
        ({"optimizer": "kron"}, {}, "'kron' is not offered"),
        ({"optimizer": "adahessian"}, {}, "needs second derivatives"),
        ({"optimizer": "fusedadamw"}, {}, "'fusedadamw' cannot be used here"),
        ({"distillation": "hard"}, {}, "'hard', but there is no teacher"),
        ({}, {"teacher": plain()}, "'none', but there is a teacher"),
        ({}, {"execution": Execution(synchronised=True)}, "need CUDA, not cpu"),
        ({}, {"execution": Execution(checkpointing=True)}, "Sequential cannot do without its"),
        ({}, {"execution": Execution(accumulate=13)}, "batch has only 12 images"),
        ({"distillation": "soft"}, {"teacher": plain(classes=7)}, r"\[7\] numbers .* 10 classes"),
    ],
)
def test_what_does_not_fit_together_is_one_line(recipe, settings, words):
    with pytest.raises(InvalidOption, match=words) as caught:
        AloneTrainer(plain(), AloneRecipe(steps=1, **recipe), **settings).train(*next(batches(1)))
    assert "\n" not in str(caught.value)


def test_an_odd_batch_cannot_be_mixed():
    learner = AloneTrainer(plain(), AloneRecipe(steps=1, mixup=1.0))
    with pytest.raises(InvalidOption, match="mix pairs, and a process's batch has 11 images"):
        learner.train(*next(batches(1, images=11)))


@pytest.mark.parametrize("name", COURSES)
def test_courses_are_recipes_and_their_values_survive_a_file(name):
    known = course(name)
    recipe = known.recipe(per_epoch=40)
    assert (recipe.steps, recipe.batch) == (40 * known.epochs, known.batch)
    assert AloneRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert (
        Augmentation.from_dict(recipe.augmentation).to_dict().items()
        >= dict(recipe.augmentation).items()
    )
    half = known.recipe(per_epoch=80, epochs=10, batch=known.batch // 2)
    assert half.rate == pytest.approx(recipe.rate / 2)
    assert half.steps == 800
    assert known.recipe(per_epoch=1, rate=0.7, batch=8).rate == 0.7


@pytest.mark.parametrize(
    ("name", "peak", "first", "last", "warm"),
    [
        ("deit", 1e-3, 1e-6, 1e-5, 5),
        ("litv2", 1e-3, 1e-6, 1e-5, 20),
        ("shvit", 4e-3, 1e-6, 1e-5, 5),
    ],
)
def test_rates_of_the_papers(name, peak, first, last, warm):
    """First, highest and last rate, and where the warm-up ends, at the published batch."""
    recipe = course(name).recipe(per_epoch=10)
    descent = AloneTrainer(plain(), recipe).descent
    rates = []
    for step in range(recipe.steps):
        descent.turn(step)
        rates.append(descent.rate)
    assert rates[0] == pytest.approx(first)
    assert rates.index(max(rates)) in (10 * warm - 1, 10 * warm)
    assert max(rates) == pytest.approx(peak, rel=0.02)
    assert rates[-1] == pytest.approx(last, rel=0.01)
