"""One supernet, many budgets: `mixnas pick`, and a search that takes a trained supernet over."""

import json
import os
import shutil
from pathlib import Path
from random import Random

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from searched_run import problem, searched, trained

import mixnas
from mixnas.arch import Architecture
from mixnas.asktell import read_trials
from mixnas.cluster import Crew
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit, parse_all
from mixnas.errors import BudgetUnreachable, InvalidBudget, InvalidOption, RunConflict
from mixnas.evaluate import Score
from mixnas.jobs import problem as problems
from mixnas.jobs import reuse, stages
from mixnas.jobs.finalists import TRIALS
from mixnas.jobs.found import row
from mixnas.jobs.pick import interval
from mixnas.jobs.pick import pick as job
from mixnas.jobs.picking import Ideas, Origin
from mixnas.jobs.problem import PLAN, Plan, reopen
from mixnas.jobs.search import _planned
from mixnas.jobs.settings import Silent, seconds, written
from mixnas.jobs.stages import supernet
from mixnas.run import Run
from mixnas.storage import link
from mixnas.train.recipe import Recipe

LIMITS = st.builds(
    lambda cost, a, b: Limit(cost, min(a, b), max(a, b)),
    st.sampled_from(["flops", "params", "latency@cpu"]),
    st.integers(0, 20),
    st.integers(1, 20),
)


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def by_cost(limits):
    """Return one limit a cost, the last."""
    return tuple({limit.cost: limit for limit in limits}.values())


@given(st.lists(LIMITS).map(by_cost), st.lists(LIMITS).map(by_cost), st.data())
def test_limits_within_others_allow_nothing_more(new, old, data):
    """Judged point by point: whatever values an architecture has."""
    values = {cost: data.draw(st.integers(0, 21)) for cost in ("flops", "params", "latency@cpu")}

    def keeps(limits):
        return all(limit.excess(values[limit.cost]) <= 0 for limit in limits)

    if reuse.within(new, old) and keeps(new):
        assert keeps(old)


@given(st.lists(LIMITS).map(by_cost), st.lists(LIMITS).map(by_cost))
def test_a_budget_is_put_inside_what_was_trained_or_refused(new, old):
    try:
        found = reuse.tightened(new, old, "run")
    except InvalidBudget:
        assert not reuse.within(new, old)
        return
    assert reuse.within(found, old)
    given_costs = {limit.cost for limit in new}
    assert given_costs <= {limit.cost for limit in found}
    if reuse.within(new, old):
        assert sorted(map(str, found)) == sorted(map(str, new))


def test_what_is_not_given_stays_and_a_lower_end_is_kept():
    old = (Limit("flops", 100, 200), Limit("params", 0, 50))
    assert reuse.tightened([Limit("flops", 0, 150)], old, "r") == (
        Limit("flops", 100, 150),
        Limit("params", 0, 50),
    )
    for beyond in (Limit("flops", 0, 201), Limit("flops", 99, 150), Limit("flops", 0, 99)):
        with pytest.raises(InvalidBudget, match=r"'r' was trained for 100-200FLOPs"):
            reuse.tightened([beyond], old, "r")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return the folder of runs with a searched one, trained for 120,000 FLOPs."""
    root = tmp_path_factory.mktemp("pick")
    of = problem(root, "120KFLOPs", name="source")
    with trained(of) as run:
        searched(of, run)
    return root


@pytest.fixture
def root(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_tighter_search_takes_the_supernet_over(root):
    of = problem(root, "100KFLOPs", "20Kparams")
    plan = _planned(of, Crew(1), fresh=False)
    assert plan.source == "source"
    assert plan.steps == of.steps()
    assert plan.training_seconds == 0
    assert "taken over from run source: no training" in plan.rows(of)["supernet"]
    listener = Notes()
    with of.open_run() as run:
        reuse.supply(of, plan.source, run, listener)
        assert run.done("training")
        assert "run source, trained for 120KFLOPs" in listener.notes[0]
        assert os.path.samefile(run.file(reuse.WEIGHTS), root / "source" / reuse.WEIGHTS)
        own = reuse.of(run)
        assert own.source == "source"
        assert own.limits == reuse.of(Run.open(root / "source")).limits
        network, whole = supernet(of, run), supernet(of, Run.open(root / "source"))
        assert reuse.holds(network.space, of.space)
        arch = of.feasible.least()
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(network(images, arch), whole.extract(arch)(images))
        run.write(PLAN, plan.to_dict())
    again = problem(root, "100KFLOPs", "20Kparams")
    assert again.begun
    assert Plan.of(Run.open(root / "run")).source == "source"
    assert reopen(Run.open(root / "run"), Silent()).space.genes == of.space.genes
    # A third search finds the one that trained, not the one that took over.
    assert reuse.find(problem(root, "90KFLOPs", "20Kparams", name="third")).name == "source"


def test_a_run_that_took_over_serves_when_the_first_has_gone(root):
    of = problem(root, "100KFLOPs")
    with of.open_run() as run:
        reuse.supply(of, "source", run, Silent())
    shutil.rmtree(root / "source")
    third = problem(root, "90KFLOPs", name="third")
    assert reuse.find(third).name == "run"
    with third.open_run() as run:
        reuse.supply(third, "run", run, Silent())
        assert reuse.of(run).source == "source"


def test_the_narrowest_supernet_that_fits_is_taken(root):
    for name, budget in (("narrow", "50KFLOPs"), ("wide", "150KFLOPs")):
        with trained(problem(root, budget, name=name)):
            pass
    assert reuse.find(problem(root, "45KFLOPs")).name == "narrow"
    assert reuse.find(problem(root, "130KFLOPs")).name == "wide"


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (("121KFLOPs",), {}),
        (("20Kparams",), {}),
        (("100KFLOPs",), {"seed": 1}),
        (("100KFLOPs",), {"epochs": 2}),
        (("100KFLOPs",), {"batch": 32}),
        (("100KFLOPs",), {"resolution": 48}),
        (("100KFLOPs",), {"mixers": ("additive",)}),
        (("100KFLOPs",), {"image": 64}),
    ],
)
def test_another_training_is_not_taken_over(root, budget, options):
    try:
        other = problem(root, *budget, **options)
    except BudgetUnreachable:  # at another size
        other = problem(root, "400KFLOPs", **options)
    assert reuse.find(other) is None


def test_trials_sampler_and_workers_may_differ(root):
    assert reuse.find(problem(root, "100KFLOPs", trials=7, sampler="random")).name == "source"


def test_what_is_damaged_or_unfinished_serves_nobody(root):
    of = problem(root, "100KFLOPs")
    weights = root / "source" / reuse.WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert reuse.find(of) is None
    weights.unlink()
    assert reuse.find(of) is None
    weights.write_bytes(data)
    assert reuse.find(of) is not None
    record = root / "source" / reuse.RECORD
    text = record.read_text()
    for junk in ("[1]", "junk", '{"format": 2}'):
        record.write_text(junk)
        assert reuse.find(of) is None
        with pytest.raises(RunConflict, match="damaged"):
            reuse.of(Run.open(root / "source"))
    record.write_text(text)
    (root / "source" / "stages.json").unlink()
    assert reuse.find(of) is None


def test_fresh_trains_anyway(root):
    plan = _planned(problem(root, "100KFLOPs"), Crew(1), fresh=True)
    assert plan.source is None
    assert plan.training_seconds > 0


def test_a_source_that_has_gone_since_the_plan_is_said(root):
    of = problem(root, "100KFLOPs")
    shutil.rmtree(root / "source")
    listener = Notes()
    with of.open_run() as run:
        reuse.supply(of, "source", run, listener)
        assert not run.done("training")
    assert "one is trained" in listener.notes[0]


def test_a_run_from_before_the_record_still_opens(root):
    (root / "source" / reuse.RECORD).unlink()
    plan = root / "source" / PLAN
    plan.write_text(json.dumps({k: v for k, v in json.loads(plan.read_text()).items() if v}))
    run = Run.open(root / "source")
    assert Plan.of(run).source is None
    assert supernet(reopen(run, Silent()), run).num_classes == 10
    assert job("source", "100KFLOPs", time="1s", runs=root)["trained_for"] == ["120KFLOPs"]


@pytest.mark.parametrize("fresh", [False, True])
def test_damaged_weights_answer_nothing(root, fresh):
    """A file that can still be read, but is not what was trained."""
    weights = root / "source" / reuse.WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(data[:-4000] + bytes(4000))
    if fresh:  # as if it had been damaged after the search for one that fits
        with pytest.raises(RunConflict, match="missing or damaged; remove"):
            reuse.rehearse(problem(root, "100KFLOPs"), Run.open(root / "source"), 1)
    else:
        with pytest.raises(RunConflict, match="missing or damaged; remove"):
            job("source", "100KFLOPs", time="1s", runs=root)
        assert not (root / "source" / "picks").exists()


class Stopped(Silent):
    """Interrupts a training after some steps."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, steps, **figures):
        self.left -= steps
        if not self.left:
            raise KeyboardInterrupt


def half_trained(of, plan, steps):
    """Train a part, and leave the run's state."""
    with of.open_run() as run, pytest.raises(KeyboardInterrupt):
        stages.train_supernet(of, plan, run, Stopped(steps))
    return run.file(stages.STATE)


@pytest.mark.parametrize("told", [True, False])
def test_a_training_goes_on_by_the_recipe_that_it_was_begun_by(tmp_path, monkeypatch, told):
    """The same weights as without the stop, and the record says by which recipe."""

    def usual(widest, steps, batch):
        return Recipe(steps, batch)

    today, plan = problems.suited, Plan(6, 0.3, 1, 1, 1, 0.1, 0.1, 1, 1)
    monkeypatch.setattr(problems, "suited", usual)
    whole, half = (problem(tmp_path, "120KFLOPs", name=name) for name in ("whole", "half"))
    with whole.open_run() as run:
        stages.train_supernet(whole, plan, run, Silent())
    path = half_trained(half, plan, 3)
    if not told:  # as states were before they told it
        state = torch.load(path, weights_only=True)
        del state["recipe"]
        torch.save(state, path)
    monkeypatch.setattr(problems, "suited", today)
    assert half.recipe(6) != usual(32, 6, half.recipe(6).batch)
    with half.open_run() as run:
        stages.train_supernet(half, plan, run, Silent())
        assert Recipe(**reuse.of(run).recipe) == usual(32, 6, half.recipe(6).batch)
    was, now = (load_file(tmp_path / name / reuse.WEIGHTS) for name in ("whole", "half"))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[key], now[key]) for key in was)


@pytest.mark.parametrize("recipe", [{"steps": 6, "lesson": "other"}, {"other": 1}, 7])
def test_a_state_with_a_damaged_recipe_is_refused(tmp_path, recipe):
    of, plan = problem(tmp_path, "120KFLOPs"), Plan(6, 0.3, 1, 1, 1, 0.1, 0.1, 1, 1)
    path = half_trained(of, plan, 2)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"recipe": recipe}, path)
    with of.open_run() as run, pytest.raises(RunConflict, match=r"supernet\.state\.pt is damaged"):
        stages.train_supernet(of, plan, run, Silent())


def test_of_a_relative_symbolic_link_the_file_behind_it_is_named_again(tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    (folders[0] / "kept").write_bytes(b"weights")
    (folders[0] / "name").symlink_to("kept")
    link(folders[0] / "name", folders[1] / "name")
    assert (folders[1] / "name").read_bytes() == b"weights"
    assert not (folders[1] / "name").is_symlink()


def test_a_second_name_of_a_file_lasts_when_the_first_is_written_anew(tmp_path):
    source, target = tmp_path / "one", tmp_path / "two"
    source.write_bytes(b"old")
    link(source, target)
    link(source, target)
    assert os.path.samefile(source, target)
    mixnas.storage.write(source, b"new")
    assert target.read_bytes() == b"old"
    link(source, target)
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_pick_keeps_the_budget_and_is_kept(root):
    found = job("source", "100KFLOPs", time="5s", runs=root)
    arch = Architecture.from_dict(found["architecture"])
    assert mixnas.count_flops(arch, image=32, classes=10) == found["costs"]["flops"] <= 100_000
    assert mixnas.count_params(arch, classes=10) == found["costs"]["params"]
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert found["images"] > 100
    picks = root / "source" / "picks"
    place = picks / f"100KFLOPs.{arch.id}.json"
    assert place.read_text() == arch.to_json() + "\n"
    network = mixnas.build(arch, num_classes=10)
    network.load_state_dict(load_file(place.with_suffix(".safetensors")))
    assert json.loads((picks / "100KFLOPs.found.json").read_text()) == found
    weights = str(place.with_suffix(".safetensors"))
    assert found["files"] == {"architecture": str(place), "weights": weights}
    assert found["candidates"]["known"] > 0
    assert found["next"].startswith(f"mixnas retrain {place} --init ")


@pytest.mark.parametrize("moment", range(1, 4))
def test_a_kill_inside_a_pick_leaves_no_weights_beside_another_architecture(
    root, monkeypatch, moment
):
    """Stopped at each of its writes: what the found file names belongs together, or is not there.

    The second pick finds another architecture, for the first one's trial has got a bad loss.
    """
    found = job("source", "120KFLOPs", time=0.001, runs=root)
    log = root / "source" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    number = next(line["ask"] for line in lines if architecture_id(line) == found["id"])
    told = [line | {"failed": "x"} if line.get("tell") == number else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in told))
    write, left = Run.write, iter(range(1, 9))

    def killed(run, name, value):
        if name.startswith("picks/") and next(left) == moment:
            raise KeyboardInterrupt
        return write(run, name, value)

    monkeypatch.setattr(Run, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        job("source", "120KFLOPs", time=0.001, runs=root)
    kept = json.loads((root / "source" / "picks" / "120KFLOPs.found.json").read_text())
    assert kept == found
    arch = Architecture.from_json(Path(kept["files"]["architecture"]).read_text())
    assert arch.id == kept["id"]
    mixnas.build(arch, num_classes=10).load_state_dict(load_file(kept["files"]["weights"]))


def architecture_id(line):
    """Return the id of the architecture that a line of a log asks about, None if it tells."""
    return Architecture.from_dict(line["arch"]).id if "ask" in line else None


def alone(root, outcome):
    """Return a trial, and a budget that it alone keeps, after its outcome was made another."""
    log = root / "source" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    of = problem(root, "120KFLOPs")
    units = (("flops", "FLOPs"), ("params", "params"))
    for ask in (line for line in lines if "ask" in line):
        budget = ["{0}-{0}{1}".format(ask["costs"][cost], unit) for cost, unit in units]
        if Feasible(of.space, parse_all(budget), of.tables).bounds()[1] == 1:
            break
    told = {"tell": ask["ask"], **outcome}
    lines = [told if line.get("tell") == ask["ask"] else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ask, budget


def test_what_a_race_stopped_can_be_picked_where_its_rival_is_outside(root):
    part = {"accuracy": 0.5, "loss": 1.0, "images": 60, "loss_error": 0.1}
    ask, budget = alone(root, part | {"beaten_by": "313c5712bfd0"})
    found = job("source", budget, time="2s", runs=root)
    assert found["id"] == architecture_id(ask)
    assert found["origin"] == f"trial {ask['ask']} of log.jsonl, evaluated now"
    assert found["candidates"] == {"known": 0, "evaluated": 1, "judged": 1}


def test_where_nothing_can_be_judged_it_is_one_line(root, monkeypatch):
    monkeypatch.setattr(Ideas, "batch", lambda *given: [])
    _, budget = alone(root, {"failed": "loss is not finite"})
    with pytest.raises(BudgetUnreachable, match="none was found to evaluate"):
        job("source", budget, time="1s", runs=root)


def lose(log):
    log.unlink()


def halve(log):
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) // 2]))


def swap(log):
    """Put the log of a search of another seed there."""
    other = problem(log.parent.parent, "120KFLOPs", name="other", seed=1)
    with trained(other) as run:
        searched(other, run)
        shutil.copy(run.file("log.jsonl"), log)


@pytest.mark.parametrize("damage", [lose, halve, swap])
def test_a_finished_search_whose_log_is_not_its_own_answers_nothing(root, damage):
    source = Run.open(root / "source")
    log = source.file("log.jsonl")
    source.write(TRIALS, pandas.DataFrame([row(trial) for trial in read_trials(log)]))
    assert job("source", "100KFLOPs", time="1s", runs=root)["candidates"]["known"]
    damage(log)
    with pytest.raises(RunConflict, match=r"of the 24 architectures in trials\.csv .* another run"):
        job("source", "100KFLOPs", time="1s", runs=root)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_time_enough_a_pick_is_the_same_again(root):
    found = job("source", "120KFLOPs", time="1h", runs=root)
    assert found["candidates"] == {"known": 24, "evaluated": 40, "judged": 5}
    again = job("source", "120KFLOPs", time="1h", runs=root)
    assert again | {"seconds": 0} == found | {"seconds": 0}


def test_a_pick_never_leaves_any_of_its_limits(root):
    found = job("source", ["60-110KFLOPs", "15Kparams"], time="3s", runs=root)
    assert found["budget"] == ["60-110KFLOPs", "15Kparams"]
    assert 60_000 <= found["costs"]["flops"] <= 110_000
    assert found["costs"]["params"] <= 15_000


def test_a_pick_without_a_log_evaluates(tmp_path):
    with trained(problem(tmp_path, "120KFLOPs")):
        pass
    found = job("run", "100KFLOPs", time="5s", runs=tmp_path)
    assert found["candidates"]["known"] == 0
    assert found["candidates"]["evaluated"] > 0
    assert "evaluated now" in found["origin"]


def test_budgets_that_cannot_be_answered(root):
    with pytest.raises(InvalidBudget, match="trained for 120KFLOPs"):
        job("source", "130KFLOPs", runs=root)
    with pytest.raises(BudgetUnreachable):
        job("source", "1KFLOPs", runs=root)
    with pytest.raises(InvalidOption, match="pick measures nothing"):
        job("source", "20ms", runs=root)
    with pytest.raises(InvalidBudget, match="no budget given"):
        job("source", [], runs=root)
    with pytest.raises(InvalidOption, match="not a length of time"):
        job("source", "100KFLOPs", time="soon", runs=root)


@pytest.mark.parametrize(
    ("time", "number"),
    [("90s", 90), ("1h30m", 5400), ("1.5m", 90), (3, 3), (2.5, 2.5), (written(90), 90)],
)
def test_a_time_is_read_with_a_unit_or_as_a_number_of_seconds(time, number):
    assert seconds(time) == number
    assert seconds(written(time)) == number


@pytest.mark.parametrize("time", ["0s", "-3s", 0, -3, 0.0, "0h0m"])
def test_a_time_is_longer_than_nothing(time):
    with pytest.raises(InvalidOption, match="longer than nothing"):
        seconds(time)


@pytest.mark.parametrize("time", ["", "-", "3", "soon", None, True, float("nan"), float("inf"), []])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(InvalidOption, match="not a length of time"):
        seconds(time)


def test_a_pick_takes_seconds_as_a_number(root):
    assert job("source", "100KFLOPs", time=2, runs=root)["costs"]["flops"] <= 100_000


def test_an_origin_is_told_once_however_far_it_goes_back():
    root = Origin("trial 14 of log.jsonl")
    assert str(root) == "trial 14 of log.jsonl"
    near = Origin(root.root, 1, now=True)
    assert str(near) == "a neighbour of trial 14 of log.jsonl, evaluated now"
    assert str(Origin(root.root, 3, now=True)) == (
        "3 steps from trial 14 of log.jsonl, evaluated now"
    )
    assert str(Origin("a feasible draw", now=True)) == "a feasible draw, evaluated now"


def test_a_neighbour_of_a_neighbour_counts_its_steps(root):
    of = problem(root, "120KFLOPs")
    ideas = Ideas(of.space, of.feasible, [of.tables["flops"]], Random(0))
    best = [(Origin("trial 3 of log.jsonl", 1, now=True), of.feasible.least())]
    origins = {idea.origin for idea in ideas.batch({}, (), best, 10_000)}
    assert origins == {
        Origin("a feasible draw", 0, now=True),
        Origin("trial 3 of log.jsonl", 2, now=True),
    }


@pytest.mark.parametrize("damage", ["junk", '{"neither": 1}'])
def test_a_damaged_log_is_told_with_what_helps(root, damage):
    log = root / "source" / "log.jsonl"
    log.write_text(log.read_text() + damage + "\n")
    with pytest.raises(RunConflict, match="from a copy of the run") as told:
        job("source", "100KFLOPs", runs=root)
    assert "--name" not in str(told.value)


def test_a_run_without_a_supernet_is_refused(root):
    (root / "source" / "stages.json").unlink()
    with pytest.raises(RunConflict, match="not trained yet; go on with: mixnas search"):
        job("source", "100KFLOPs", runs=root)


def test_the_interval_is_wilsons():
    """Against its formula: Wilson, 1927; z is 1.959964."""
    z, n, p = 1.959964, 200, 0.8
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert interval(Score(p, 0.5, n)) == pytest.approx([middle - half, middle + half], abs=1e-6)


def test_the_command_line(root, cli):
    words = ["pick", "source", "--budget", "100KFLOPs", "--time", "2s", "--runs", root]
    code, out, err = cli(*words, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    code, out, _ = cli(*words, "--quiet")
    assert code == 0
    assert found["id"] in out
    assert "mixnas retrain" in out
    code, _, err = cli("pick", "source", "--budget", "200KFLOPs", "--runs", root)
    assert code == 2
    assert "trained for 120KFLOPs" in err.splitlines()[-1]
