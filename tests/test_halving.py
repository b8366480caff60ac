"""Who is stopped early: laws of the decisions, whatever the figures."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixnas.errors import RunConflict
from mixnas.jobs import retrained
from mixnas.jobs.halving import (
    ASHA,
    NONE,
    WORST,
    Figure,
    counts,
    kept,
    race,
    rungs,
    survivors,
)
from mixnas.jobs.retrain_settings import RetrainSettings
from mixnas.jobs.sweep_races import DIVERGED, Races
from mixnas.jobs.sweep_settings import SweepSettings, named
from mixnas.run import Run

COARSE = st.sampled_from([0.1, 0.5, 0.9])  # so that equal figures are common
FIGURE = st.builds(Figure, COARSE | st.floats(0, 1), COARSE | st.just(math.nan)) | st.just(WORST)
EPOCHS = st.integers(1, 400)


@st.composite
def races(draw):
    """A race that has run to its end: who, its rungs, and everyone's figures at each of them."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 12)))]
    at = rungs(draw(EPOCHS))
    figures = {name: {rung: draw(FIGURE) for rung in at} for name in names}
    return names, at, figures


@given(EPOCHS)
def test_rungs_grow_by_three_and_end_before_the_end(epochs):
    at = rungs(epochs, ASHA)
    assert all(1 <= rung < epochs for rung in at)
    assert all(b == 3 * a for a, b in pairwise(at))
    assert len(at) <= 2
    assert rungs(epochs, NONE) == ()


@pytest.mark.parametrize(
    ("epochs", "at"),
    [(1, ()), (2, (1,)), (3, (1,)), (9, (1, 3)), (10, (2, 6)), (30, (4, 12)), (300, (34, 102))],
)
def test_rungs_of_usual_lengths(epochs, at):
    assert rungs(epochs) == at


@given(st.dictionaries(st.text(max_size=3), FIGURE, min_size=1, max_size=30))
def test_the_best_third_goes_on_and_none_that_equals_it_is_stopped(figures):
    on = survivors(figures)
    best = max(figure.order for figure in figures.values())
    assert {name for name, figure in figures.items() if figure.order == best} <= set(on)
    assert len(on) >= kept(len(figures)) >= 1
    least = min(figures[name].order for name in on)
    out = [name for name in figures if name not in on]
    assert all(figures[name].order < least for name in out)
    assert sum(figures[name].order > least for name in on) < kept(len(figures))


@given(races())
def test_the_best_at_every_rung_is_never_stopped(drawn):
    names, at, figures = drawn
    standing = race(names, at, figures)
    assert standing.rung is None
    assert set(standing.alive) | set(standing.stopped) == set(names)
    assert not set(standing.alive) & set(standing.stopped)
    assert standing.alive
    for name in names:
        if all(
            figures[name][rung].order == max(figures[other][rung].order for other in names)
            for rung in at
        ):
            assert name in standing.alive
    for stop in standing.stopped.values():
        assert stop.epoch in at
        assert stop.figure.order < stop.against.order


@given(races(), st.randoms())
def test_neither_order_nor_a_repeat_changes_a_decision(drawn, random):
    names, at, figures = drawn
    first = race(names, at, figures)
    shuffled = random.sample(names, len(names))
    again = race(shuffled, at, {name: figures[name] for name in reversed(shuffled)})
    assert set(again.alive) == set(first.alive)
    assert again.stopped == first.stopped


@given(races(), st.randoms())
def test_whatever_the_order_of_training_all_end_alike(drawn, random):
    """As a driver does it: anyone who is behind trains to the rung; kills forget nothing else."""
    names, at, figures = drawn
    known: dict[str, dict[int, Figure]] = {}
    while (standing := race(names, at, known)).rung is not None:
        behind = [n for n in standing.alive if standing.rung not in known.get(n, {})]
        assert behind
        name = random.choice(behind)
        known.setdefault(name, {})[standing.rung] = figures[name][standing.rung]
    whole = race(names, at, figures)
    assert (standing.alive, standing.stopped) == (whole.alive, whole.stopped)
    for name, stop in standing.stopped.items():
        assert max(known[name]) == stop.epoch  # nobody trained past where it was stopped


@given(st.lists(FIGURE, min_size=1, max_size=9), EPOCHS)
def test_with_none_nothing_is_stopped(drawn, epochs):
    names = [str(i) for i in range(len(drawn))]
    figures = {name: {1: figure} for name, figure in zip(names, drawn, strict=True)}
    standing = race(names, rungs(epochs, NONE), figures)
    assert (standing.alive, standing.stopped, standing.rung) == (tuple(names), {}, None)


def test_equal_accuracies_are_decided_by_the_loss_and_equals_stay_together():
    first, second = Figure(0.9, 0.3), Figure(0.9, 0.4)
    assert survivors({"b": second, "a": first}) == ("a",)
    assert survivors({"b": second, "a": second, "c": second}) == ("b", "a", "c")
    assert survivors({"a": WORST, "b": Figure(0.0, math.nan)}) == ("b",)
    assert counts(9, (1, 3)) == [9, 3, 1]
    assert counts(2, (1,)) == [2, 1]


# In folders

SMALL, LARGE = ("6MFLOPs",), ("8MFLOPs",)


@pytest.fixture
def swept(tmp_path):
    """Two budgets with three seeds: what each search found, by name; `both` won under both."""
    asked = SweepSettings((SMALL, LARGE), (0, 1, 2), ("micro",), retrain=3)
    run = Run.create(tmp_path, "study", asked.to_dict())
    found = iter(["both", "big", "slim", "huge", "tiny", "both"])
    for settings in asked.searches():
        search = Run.create(run.path, named(settings), settings.to_dict())
        search.write("summary.json", {"winner": {"id": next(found)}})
    return run, asked


def train(run, holder, *accuracies):
    """Write the curve of a retraining."""
    kept = Run.create(run.path / holder, "retrain", {"job": "retrain", "of": holder})
    rows = [f"{n},{n},{accuracy},1.0" for n, accuracy in enumerate(accuracies, 1)]
    kept.write("metrics.csv", "\n".join(["epoch,step,val_accuracy,val_loss", *rows, ""]))
    return kept


def test_budgets_race_apart_and_an_architecture_is_trained_once(swept):
    run, asked = swept
    scores = {"both": 0.6, "slim": 0.4, "tiny": 0.5, "big": 0.9, "huge": 0.8}
    done = []
    while (wanted := Races.of(run, asked).next()) is not None:
        holder, epoch = wanted
        score = scores[Run.open(run.path / holder).read("summary.json")["winner"]["id"]]
        kept = train(run, holder, *[score] * epoch)
        if epoch == 3:
            for name in (retrained.SUMMARY, *retrained.MODEL):
                kept.write(name, "{}")
        kept.close()
        done.append(wanted)
    assert [epoch for _, epoch in done] == [1] * 5 + [3] * 2
    both, big = "micro-6MFLOPs-seed0", "micro-8MFLOPs-seed0"
    assert done[5:] == [(both, 3), (big, 3)]  # beaten by `big` under 8MFLOPs, best under 6MFLOPs
    races = Races.of(run, asked)
    assert races.holders["micro-8MFLOPs-seed2"] == both
    stops = races.stops()
    assert set(stops) == {"micro-6MFLOPs-seed1", "micro-6MFLOPs-seed2", "micro-8MFLOPs-seed1"}
    assert {stop.against.accuracy for stop in stops.values()} == {0.6, 0.9}


def test_what_diverged_is_beaten_and_not_tried_again(swept):
    run, asked = swept
    with train(run, "micro-6MFLOPs-seed0") as kept:
        kept.mark(DIVERGED, reason="test")
    races = Races.of(run, asked)
    assert races.next() == ("micro-8MFLOPs-seed0", 1)
    assert races.figures["micro-6MFLOPs-seed0"] == {1: WORST}


def test_a_budget_waits_for_all_its_searches(swept):
    run, asked = swept
    (run.path / "micro-8MFLOPs-seed1" / "summary.json").unlink()
    races = Races.of(run, asked)
    assert list(races.budgets) == [SMALL]
    assert races.told("micro-8MFLOPs-seed1")["retraining"] is None
    assert races.told("micro-8MFLOPs-seed0")["retraining"] == "waiting"


@pytest.mark.parametrize("other", [{"epochs": 300}, {"found": {"data": "other images"}}])
def test_a_retraining_by_hand_takes_no_part_and_is_named(swept, other):
    run, asked = swept
    name = "micro-6MFLOPs-seed0"
    sweeps = RetrainSettings("x", epochs=asked.retrain, seed=asked.seeds[0]).to_dict()
    by_hand = {"job": "retrain", "of": name, **sweeps, **other}
    with Run.create(run.path / name, "retrain", by_hand) as kept:
        kept.write("metrics.csv", "epoch,step,val_accuracy,val_loss\n1,1,0.9,0.1\n")
    races = Races.of(run, asked)
    assert races.figures[name] == {}
    assert races.told(name)["retraining"] == "waiting"
    with pytest.raises(RunConflict, match="retrain is a retraining of its own") as caught:
        races.check()
    assert "\n" not in str(caught.value)
    kept.path.rename(kept.path.with_name("by-hand"))
    Races.of(run, asked).check()
