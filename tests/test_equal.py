"""The equal-compute control: what it counts, what it draws, and a comparison with it."""

import json
import shutil
from dataclasses import asdict, replace
from random import Random

import pytest
from test_compare import searched

import mixnas
from mixnas import cluster
from mixnas.asktell import Trial
from mixnas.asktell.trial import ask_line, tell_line
from mixnas.cost import count
from mixnas.cost.table import CostTable
from mixnas.errors import EvaluationFailed, TrainingDiverged
from mixnas.evaluate import Failure, Score
from mixnas.jobs.compare import compare
from mixnas.jobs.contest import Contest, settled
from mixnas.jobs.equal import EVERY, PASSES, EqualCompute, _best, draws, spent
from mixnas.jobs.problem import Plan, reopen
from mixnas.jobs.settings import Silent
from mixnas.run import Run
from mixnas.train.recipe import AloneRecipe

RECIPE = AloneRecipe(steps=4, batch=16)
FINALIST = {"number": 0, "rank": {"images": 180}, "report": {}, "predicted": {}, "round": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = searched(tmp_path_factory.mktemp("runs"), "4MFLOPs")
    feasible = reopen(made, Silent()).feasible
    lines: list[dict] = [{"format": 1}]
    for number in range(3):
        lines.append(ask_line(Trial(number, feasible.sample(Random(number)), {})))
        lines.append(tell_line(number, Score(0.5, 1.0, 100 + number)))
    lines[-1] = tell_line(2, Failure("it broke"))
    made.file("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@pytest.fixture(scope="module")
def problem(run):
    return reopen(run, Silent())


@pytest.fixture(scope="module")
def cost(problem):
    return CostTable(count.flops, image=problem.data.image, classes=10)


def test_the_compute_of_a_search_is_that_of_its_draws_and_its_evaluations(
    run, problem, cost, tmp_path
):
    steps = Plan.of(run).steps
    trainer = problem.trainer(problem.recipe(steps))
    counted = list(range(0, steps, EVERY))
    drawn = sum(cost(d.arch) for step in counted for d in trainer.draws.at(step))
    found = spent(run, problem)
    per_step = PASSES * trainer.recipe.batch * drawn / len(counted)
    assert found.training == pytest.approx(steps * per_step)
    lines = [json.loads(line) for line in run.file("log.jsonl").read_text().splitlines()[1:]]
    archs = {e["ask"]: mixnas.Architecture.from_dict(e["arch"]) for e in lines if "ask" in e}
    told = [e for e in lines if "loss" in e]
    priced = [cost(archs[e["tell"]]) for e in told]
    expected = sum(price * (e["images"] + 256) for price, e in zip(priced, told, strict=True))
    assert len(told) == 2
    assert found.search == pytest.approx(expected)
    shutil.copytree(run.path, tmp_path / "run")
    judged = Run.open(tmp_path / "run")
    judged.mark("search", rejudged=500)
    judged.write("finalists.json", [FINALIST | {"id": archs[0].id}])
    expected += 500 * sum(priced) / 2 + priced[0] * (180 + 512)
    assert spent(judged, problem).search == pytest.approx(expected)
    assert found.total == found.training + found.search


@pytest.mark.parametrize("share", [0.0, 1.0, 3.7, 9.2])
def test_draws_are_feasible_distinct_and_spend_what_there_is(problem, cost, share):
    images = PASSES * RECIPE.batch * RECIPE.steps + problem.data.sizes["rank"]
    total = share * images * 3e6
    archs = draws(problem, RECIPE, total)
    prices = [images * cost(arch) for arch in archs]
    assert len({arch.id for arch in archs}) == len(archs)
    assert all(arch in problem.feasible for arch in archs)
    assert sum(prices) >= total
    assert sum(prices[:-1]) < max(total, 1)  # the last is the one that reaches it
    further = draws(problem, RECIPE, 2 * total + 1)
    assert further[: len(archs)] == archs


def test_the_best_is_that_of_least_loss_and_failures_do_not_count(problem):
    archs = draws(problem, RECIPE, 1e12)[:3]
    results = [{"loss": 2.0}, {"reason": "it diverged"}, {"loss": 1.0}]
    assert _best(archs, results) == (archs[2], "the best of 2 of 3 random networks trained alone")
    with pytest.raises(TrainingDiverged, match=r"none of 1 .* it diverged"):
        _best(archs[:1], results[1:2])


def test_a_loss_that_is_no_number_is_never_the_best(problem):
    archs = draws(problem, RECIPE, 1e12)[:2]
    results = [{"loss": float("nan")}, {"loss": 1.0}]
    assert _best(archs, results)[0] == archs[1]


def test_a_lost_worker_takes_no_training_away(run, problem, tmp_path, monkeypatch):
    control = EqualCompute.of(run, problem, RECIPE)
    control = replace(control, archs=control.archs[:2])

    def each(_, tasks, crew):
        for index, _ in enumerate(tasks):
            yield index, {"loss": 1.0} if index else Failure("its worker was killed")

    monkeypatch.setattr(cluster, "each", each)
    with Run.create(tmp_path, "kept", {}) as kept:
        with pytest.raises(EvaluationFailed, match=r"1 of 2 .* gave nothing \(its worker was kill"):
            control.choose(kept, 1, Silent())
        assert control.lacking(kept) == [control.archs[0]]
        makers = {"equal": lambda: control.choose(kept, 1, Silent())}
        contest = Contest(run, problem, control.archs[0], 1, "kept", 1, Silent())
        with pytest.raises(EvaluationFailed):
            contest.plan(makers, 1, kept, keep=True)
        assert not settled(kept, "equal")


def test_the_reckoning_is_that_of_the_draws(run, problem, cost):
    control = EqualCompute.of(run, problem, RECIPE)
    told = control.reckoning
    assert (told["training"], told["search"]) == (control.spent.training, control.spent.search)
    assert told["networks"] == len(control.archs)
    images = PASSES * RECIPE.batch * RECIPE.steps + problem.data.sizes["rank"]
    assert told["cost"] == pytest.approx(sum(images * cost(arch) for arch in control.archs))
    assert told["price"] * told["networks"] == pytest.approx(told["cost"])
    assert f"{told['networks']} random networks x " in control.note


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_dry_run_counts_the_control_before_it_is_chosen(run, seeds):
    settings = {"seeds": seeds, "random": 1, "epochs": 1, "dry_run": True, "name": "dry"}
    with_it = compare(run, only=["random", "equal"], **settings)
    without = compare(run, only=["random"], **settings)
    assert (with_it.to_come, without.to_come) == (1, 0)
    assert with_it.first == with_it.equal["networks"]
    assert without.rows()["trainings"].startswith(f"{2 * seeds} of ")
    assert with_it.rows()["trainings"].startswith(f"{3 * seeds} of ")
    assert with_it.seconds > replace(with_it, to_come=0).seconds
    assert f"{with_it.first} random networks are trained first" in with_it.rows()["equal"]


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_comparison_with_the_control_goes_on_where_it_was(run, problem, monkeypatch):
    settings = {"only": ["equal"], "seeds": 1, "epochs": 1, "workers": 2}
    plan = compare(run, **settings, dry_run=True)
    assert plan.rows()["trainings"].startswith("2 of ")  # the winner and the control
    assert plan.first == len(EqualCompute.of(run, problem, plan_recipe(problem)).archs)
    assert f"{plan.first} random networks" in plan.rows()["equal"]
    kept = compare(run, **settings)
    chosen = json.loads(kept.file("entrants.json").read_text())["entrants"]["equal"]
    losses = {p.stem: json.loads(p.read_text())["loss"] for p in kept.path.glob("equal/*.json")}
    arch = mixnas.Architecture.from_dict(chosen["source"]["arch"])
    assert losses[arch.id] == min(losses.values())
    assert len(losses) == plan.first
    assert kept.read("summary.json")["equal"] == plan.equal
    rows = {row["key"]: row for row in kept.read("summary.json")["rows"]}
    assert rows["equal"]["kind"] == "equal"
    assert f"the best of {plan.first} random networks trained alone: " in rows["equal"]["note"]
    assert rows["equal"]["verdict"] in ("ahead", "level", "behind")
    before = {p: p.stat().st_mtime_ns for p in kept.path.glob("equal/*.json")}
    again = compare(run, **settings, dry_run=True)
    assert (again.first, again.to_come, again.trainings) == (0, 0, ())
    assert again.rows()["trainings"].startswith("2 of ")
    compare(run, **settings)
    assert {p: p.stat().st_mtime_ns for p in kept.path.glob("equal/*.json")} == before


def plan_recipe(problem):
    batch = min(problem.settings.batch, problem.data.sizes["train"])
    return AloneRecipe(**asdict(AloneRecipe(problem.data.steps_per_epoch(batch), batch)))
