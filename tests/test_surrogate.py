"""The surrogate's sampler: what it proposes is feasible, new, repeatable, and learnt."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy.stats import kendalltau
from searching import SPACE, Toy, evaluate, finish

from mixnas.asktell import Trial
from mixnas.asktell.genotype import Genotype
from mixnas.asktell.surrogate import MOST, Model, SurrogateSampler, instructive
from mixnas.evaluate import Failure, Score


@pytest.fixture(scope="module")
def toy():
    return Toy()


def told(toy, count, seed=0):
    """Return complete trials of random feasible architectures."""
    rng, genotype = Random(seed), Genotype(SPACE)
    archs = {arch.id: arch for arch in (toy.feasible.sample(rng) for _ in range(2 * count))}
    return [
        Trial(
            number,
            arch,
            {"flops": toy.table(arch)},
            genes=genotype.encode(arch, genotype.random(rng)),
            state="complete",
            score=evaluate(arch),
        )
        for number, arch in enumerate(list(archs.values())[:count])
    ]


def sampler(toy, seed=3):
    return SurrogateSampler(Genotype(SPACE), toy.feasible, toy.table, seed)


def proposals(toy, trials, count, seed=3):
    """Return one generation's proposals, each asked before the next is drawn."""
    one, genotype, archs = sampler(toy, seed), Genotype(SPACE), []
    for trial in trials:
        one.asked(trial)
    one.told(trials)
    for number in range(count):
        archs.append(genotype.decode(one.draw(1, number)))
        one.asked(Trial(len(trials) + number, archs[-1], {}))
    return archs


def test_model_learns_an_additive_loss(toy):
    trials = told(toy, 160)
    model = Model(Genotype(SPACE), toy.table)
    model.fit(trials[:80])
    mean, _ = model.predict([trial.arch for trial in trials[80:]])
    assert kendalltau(mean, [trial.loss for trial in trials[80:]])[0] > 0.5


def test_model_is_the_gaussian_process_that_it_says(toy):
    """Mean and standard deviation against the closed form, written out."""
    trials, asked = told(toy, 40), [trial.arch for trial in told(toy, 15, seed=1)]
    model = Model(Genotype(SPACE), toy.table)
    model.fit(trials)
    mean, deviation = model.predict(asked)

    kernel = model._process.kernel_
    variance, length, noise = (
        kernel.k1.k1.constant_value,
        kernel.k1.k2.length_scale,
        kernel.k2.noise_level,
    )
    known = model._scaled(model._raw([trial.arch for trial in trials]))
    new = model._scaled(model._raw(asked))

    def between(a, b):
        return variance * np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * length**2))

    losses = np.array([trial.loss for trial in trials])
    inverse = np.linalg.inv(between(known, known) + noise * np.eye(len(known)))
    weights = between(new, known) @ inverse
    expected = weights @ (losses - losses.mean()) + losses.mean()
    spread = np.sqrt(variance - (weights * between(new, known)).sum(1)) * losses.std()
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_allclose(deviation, spread, atol=1e-4)


def test_features_tell_architectures_apart_and_nothing_else(toy):
    model, rng, genotype = Model(Genotype(SPACE), toy.table), Random(0), Genotype(SPACE)
    for _ in range(100):
        arch, other = SPACE.sample(rng), SPACE.sample(rng)
        again = genotype.decode(genotype.encode(arch, genotype.random(rng)))
        assert model._genes(arch) == model._genes(again)
        assert (model._genes(arch) == model._genes(other)) == (arch == other)


def test_proposals_are_feasible_new_and_the_same_again(toy):
    trials = told(toy, 30)
    archs = proposals(toy, trials, 25)
    assert all(arch in toy.feasible for arch in archs)
    assert len({arch.id for arch in archs} | {trial.arch.id for trial in trials}) == 55
    assert archs == proposals(toy, trials, 25)
    assert archs != proposals(toy, trials, 25, seed=4)


def test_proposals_cover_the_costs_and_beat_what_was_learnt_from(toy):
    trials = told(toy, 60)
    archs = proposals(toy, trials, 20)
    assert np.mean([evaluate(arch).loss for arch in archs]) < np.quantile(
        [trial.loss for trial in trials], 0.2
    )
    costs = [toy.table(arch) for arch in archs]
    span = toy.feasible.window()
    assert max(costs) - min(costs) > 0.4 * (span[1] - span[0])


def test_a_constant_loss_or_nothing_learnt_is_no_error(toy):
    trials = told(toy, 12)
    flat = [replace(trial, score=Score(0.5, 1.0, 10)) for trial in trials]
    assert len({arch.id for arch in proposals(toy, flat, 5)}) == 5
    one = sampler(toy)
    one.told([replace(trial, state="failed", score=None) for trial in trials])
    assert one.draw(1, 0) is None


def test_many_trials_are_thinned_and_the_best_and_latest_stay(toy):
    base = told(toy, 60)
    many = [
        replace(base[number % 60], number=number, score=Score(0.5, float(-number % 997), 10))
        for number in range(MOST + 150)
    ]
    kept = {trial.number for trial in instructive(many)}
    assert len(kept) == MOST == len(instructive(many))
    assert kept >= {trial.number for trial in sorted(many, key=lambda each: each.loss)[: MOST // 2]}
    assert kept >= {trial.number for trial in many[-100:]}
    assert instructive(many[:MOST]) == many[:MOST]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_in_a_generation_it_asks_the_same(toy, tmp_path):
    settings = {"sampler": "surrogate", "trials": 18, "population": 6}
    undisturbed = finish(toy.search(tmp_path / "a", **settings))
    for step in range(60):
        search = toy.search(tmp_path / "b", **settings)
        for _ in range(1 + step % 3):
            if (candidate := search.ask()) is None:
                break
            if step % 4:  # every fourth time the process dies between ask and tell
                search.tell(candidate.number, evaluate(candidate.arch))
        over = search.finished
        search.close()
        if over:
            break
    assert over
    assert search.trials == undisturbed.trials


def test_a_first_generation_that_failed_is_made_up_for(toy, tmp_path):
    search = toy.search(tmp_path / "log", sampler="surrogate", trials=12, population=6)
    for _ in range(6):
        search.tell(search.ask().number, Failure("ran aground"))
    finish(search)
    assert search.complete == 12


def test_a_tiny_space_is_exhausted(tmp_path):
    arch = SPACE.sample(Random(2))
    open_genes = {"s16.width": (32, 48), "s16.b0.ratio": (1, 2)}
    genes = {key: (value,) for key, value in SPACE.genotype(arch).items()} | open_genes
    tiny = Toy(SPACE.keep(genes))
    search = finish(tiny.search(tmp_path / "log", sampler="surrogate", population=2))
    assert search.exhausted
    assert search.complete == tiny.feasible.count()
