"""The search engine: same seed, same trials, whatever happens to the process."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import optuna
import pytest
from searching import SPACE, Toy, evaluate, finish

from mixnas.asktell import SAMPLERS, best, export_optuna, front, read_trials
from mixnas.asktell.genotype import Genotype
from mixnas.errors import EvaluationFailed, InvalidOption, RunConflict
from mixnas.evaluate import Failure, Score

SCRIPT = Path(__file__).with_name("searching.py")


@pytest.fixture(scope="module")
def toy():
    return Toy()


def facts(search):
    return [(t.number, t.arch.id, t.origin, t.generation, t.state, t.score) for t in search.trials]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_sampler_asks_only_new_feasible_architectures(toy, tmp_path, sampler):
    search = finish(toy.search(tmp_path / "log", sampler=sampler))
    assert search.finished
    assert [trial.number for trial in search.trials] == list(range(60))
    assert len({trial.arch.id for trial in search.trials}) == 60
    assert all(trial.arch in toy.feasible for trial in search.trials)
    assert all(trial.costs["flops"] == toy.table(trial.arch) for trial in search.trials)


@pytest.mark.parametrize("sampler", ["surrogate", "nsga2", "evolution"])
@pytest.mark.parametrize("whole", [0, 1])
def test_a_generation_that_fails_but_for_one_does_not_stop_a_search(toy, tmp_path, sampler, whole):
    search = toy.search(tmp_path / "log", sampler=sampler, trials=200, population=8)
    for _ in range(30):
        number = (candidate := search.ask()).number
        failed = whole <= number < 8
        search.tell(number, Failure("it broke") if failed else evaluate(candidate.arch))
    assert search.complete == 22 + whole


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gp_runs(toy, tmp_path):
    search = finish(toy.search(tmp_path / "log", sampler="gp", trials=24, population=12))
    assert len({trial.arch.id for trial in search.trials}) == 24
    assert Counter(trial.generation for trial in search.trials) == {0: 12, 1: 12}


@pytest.mark.parametrize("sampler", ["surrogate", "nsga2", "tpe", "evolution"])
def test_order_of_answers_does_not_matter(toy, tmp_path, sampler):
    undisturbed = finish(toy.search(tmp_path / "a", sampler=sampler))
    search, rng = toy.search(tmp_path / "b", sampler=sampler), Random(5)
    while not search.finished:
        waiting = []
        while (candidate := search.ask()) is not None:
            waiting.append(candidate)
        rng.shuffle(waiting)
        for candidate in waiting:
            search.tell(candidate.number, evaluate(candidate.arch))
    assert facts(search) == facts(undisturbed)
    assert search.best() == undisturbed.best()


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "evolution", "random"])
def test_reopened_after_every_step_it_asks_the_same(toy, tmp_path, sampler):
    undisturbed = finish(toy.search(tmp_path / "a", sampler=sampler, trials=33))
    for step in range(80):
        search = toy.search(tmp_path / "b", sampler=sampler, trials=33)
        candidate = search.ask()
        if candidate is None:
            break
        if step % 3:  # every third time the process dies between ask and tell
            search.tell(candidate.number, evaluate(candidate.arch))
        search.close()
    assert search.finished
    assert facts(search) == facts(undisturbed)


def test_failed_trials_are_made_up_for_and_replayed(toy, tmp_path):
    def run(log):
        while True:
            search = toy.search(log)
            if (candidate := search.ask()) is None:
                return search
            bad = candidate.number % 7 == 3
            outcome = Failure("ran aground") if bad else evaluate(candidate.arch)
            search.tell(candidate.number, outcome)
            search.close()

    search = run(tmp_path / "a")
    states = Counter(trial.state for trial in search.trials)
    assert states == {"complete": 60, "failed": 10}
    assert {t.reason for t in search.trials if t.state == "failed"} == {"ran aground"}
    assert facts(search) == facts(run(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_five_times_it_ends_as_if_undisturbed(toy, tmp_path):
    log, rng, trials = tmp_path / "log", Random(1), 120
    for _ in range(5):
        process = subprocess.Popen([sys.executable, SCRIPT, log, str(trials), "0.01"])
        size = log.stat().st_size if log.exists() else 0
        wanted = size + rng.randrange(2_000, 25_000)
        while process.poll() is None and (not log.exists() or log.stat().st_size < wanted):
            time.sleep(0.002)
        assert process.poll() is None, "it was to be killed on its way"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, SCRIPT, log, str(trials), "0"], check=True)
    undisturbed = finish(toy.search(tmp_path / "undisturbed", trials=trials))
    assert read_trials(log) == undisturbed.trials
    assert best(read_trials(log)) == undisturbed.best()
    assert front(read_trials(log)) == undisturbed.front()
    tells = Counter(line.get("tell") for line in map(json.loads, log.read_text().splitlines()))
    assert all(tells[number] == 1 for number in range(trials))


def test_torn_last_line_is_dropped(toy, tmp_path):
    undisturbed = finish(toy.search(tmp_path / "a", trials=25))
    undisturbed.close()
    whole = (tmp_path / "a").read_bytes()
    for cut in (len(whole) - 1, len(whole) - 30, len(whole) * 2 // 3, 700, 90, 3, 0):
        (tmp_path / "b").write_bytes(whole[:cut])
        search = finish(toy.search(tmp_path / "b", trials=25))
        search.close()
        assert facts(search) == facts(undisturbed)
        assert (tmp_path / "b").read_bytes() == whole


def test_broken_line_inside_is_refused(toy, tmp_path):
    log = tmp_path / "log"
    finish(toy.search(log, trials=12)).close()
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:4], b"{oops\n", *lines[5:]]))
    with pytest.raises(RunConflict, match="line 5: not a line that mixnas wrote"):
        toy.search(log, trials=12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_is_a_failed_trial(toy, tmp_path, bad):
    search = toy.search(tmp_path / "log", trials=12)
    search.tell(search.ask().number, Score(0.1, bad, 100))
    finish(search)
    assert (search.trials[0].state, search.trials[0].reason) == ("failed", "non-finite loss")
    assert search.complete == 12
    assert not search.pending
    assert len(search.trials) == 13


def test_too_many_failures_end_the_search(toy, tmp_path):
    search = toy.search(tmp_path / "log")
    for _ in range(12):
        search.tell(search.ask().number, Failure("no more paper"))
    number = search.ask().number
    with pytest.raises(EvaluationFailed, match=r"13 of 13 .* trial 12, with: no more paper"):
        search.tell(number, Failure("no more paper"))
    search.close()
    with pytest.raises(EvaluationFailed, match="no more paper"):
        toy.search(tmp_path / "log").ask()


def test_tiny_space_is_exhausted(tmp_path):
    rng = Random(2)
    arch = SPACE.sample(rng)
    open_genes = {"s16.width": (32, 48), "s16.b0.ratio": (1, 2)}
    genes = {key: (value,) for key, value in SPACE.genotype(arch).items()} | open_genes
    toy = Toy(SPACE.keep(genes))
    count = toy.feasible.count()
    search = finish(toy.search(tmp_path / "log", population=3))
    assert search.exhausted
    assert search.finished
    assert 1 <= search.complete == count <= 4
    search.close()
    again = toy.search(tmp_path / "log", population=3)
    assert again.ask() is None
    assert again.finished


def test_one_search_holds_a_log(toy, tmp_path):
    first = toy.search(tmp_path / "log")
    with pytest.raises(RunConflict, match="in use"):
        toy.search(tmp_path / "log")
    first.close()
    toy.search(tmp_path / "log").close()


def test_log_of_other_settings_is_refused(toy, tmp_path):
    toy.search(tmp_path / "log").close()
    with pytest.raises(RunConflict, match=r"seed: was 3, now 4; give another --name"):
        toy.search(tmp_path / "log", seed=4)
    with pytest.raises(RunConflict, match=r'sampler: was "nsga2", now "tpe"'):
        toy.search(tmp_path / "log", sampler="tpe")
    toy.search(tmp_path / "log", trials=70).close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sampler": "nsga"}, r"no sampler 'nsga'; did you mean 'nsga2'\?"),
        ({"trials": 0}, "--trials 0: must be at least 1"),
        ({"population": -1}, "--population -1: must be at least 1"),
    ],
)
def test_bad_options(toy, tmp_path, option, message):
    with pytest.raises(InvalidOption, match=message):
        toy.search(tmp_path / "log", **option)
    assert not (tmp_path / "log").exists()


def test_an_outcome_is_told_once(toy, tmp_path):
    search = toy.search(tmp_path / "log")
    number = search.ask().number
    search.tell(number, Score(0.5, 1.0, 10))
    for wrong in (number, 1, -1):
        with pytest.raises(ValueError, match="not waiting"):
            search.tell(wrong, Score(0.5, 1.0, 10))


def test_a_generation_waits_for_its_last_outcome(toy, tmp_path):
    search = toy.search(tmp_path / "log")
    candidates = [search.ask() for _ in range(10)]
    assert search.ask() is None
    assert not search.finished
    for candidate in candidates[1:]:
        search.tell(candidate.number, evaluate(candidate.arch))
    assert search.ask() is None
    search.tell(0, evaluate(candidates[0].arch))
    assert search.ask().number == 10
    assert search.trials[10].generation == 1


def test_first_population_takes_the_stems_in_turn(toy, tmp_path):
    trials = finish(toy.search(tmp_path / "log", trials=12, population=12)).trials
    assert {trial.arch.stem.kind for trial in trials} == set(SPACE.genes["stem"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sampler", ["surrogate", "nsga2", "tpe", "evolution"])
def test_samplers_beat_chance(toy, tmp_path, sampler):
    def late(name, seed):
        log = tmp_path / f"{name}{seed}"
        trials = finish(toy.search(log, sampler=name, seed=seed, trials=240, population=20)).trials
        return sum(trial.loss for trial in trials[-60:]) / 60

    learnt = [late(sampler, seed) for seed in range(3)]
    chance = [late("random", seed) for seed in range(3)]
    assert max(learnt) < min(chance) - 0.05, (learnt, chance)


def test_front_and_best_agree_with_their_definitions(toy, tmp_path):
    search = finish(toy.search(tmp_path / "log"))
    assert search.best().loss == min(trial.loss for trial in search.trials)
    points = [(trial.loss, trial.cost) for trial in search.trials]
    beaten = {
        point
        for point in points
        if any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in points)
    }
    assert {(t.loss, t.cost) for t in search.front()} == set(points) - beaten
    assert search.best() in search.front()


def test_genotype_round_trip():
    genotype, rng = Genotype(SPACE), Random(0)
    for _ in range(200):
        genes = genotype.random(rng)
        arch = genotype.decode(genes)
        assert genotype.encode(arch, genes) == genes
        assert genotype.decode(genotype.encode(arch, genotype.random(rng))) == arch
        assert genotype.decode(genotype.mutant(genes, rng)) != arch


def test_export_for_optuna(toy, tmp_path):
    search = toy.search(tmp_path / "log", trials=12)
    search.tell(search.ask().number, Failure("broke"))
    finish(search)
    export_optuna(search.trials, SPACE, tmp_path / "study.db", "toy")
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path / 'study.db'}")
    states = Counter(trial.state.name for trial in study.trials)
    assert states == {"COMPLETE": 12, "FAIL": 1}
    front = {trial.user_attrs["id"] for trial in study.best_trials}
    assert front >= {trial.arch.id for trial in search.front()}
    study._storage._backend.engine.dispose()
