"""What a search tells of its trials and of its budget, as plain data and in words."""

import pytest
from finished_run import finished
from raced import raced
from searched_run import problem
from searching import Toy

from mixnas import report
from mixnas.asktell import trial as trials_module
from mixnas.cost.count import flops
from mixnas.cost.limit import describe
from mixnas.cost.table import CostTable
from mixnas.jobs.found import Facts, row, summary
from mixnas.jobs.problem import Plan
from mixnas.racing import FEWEST, RATE

FACTS = Facts(
    run="run",
    budget=["1MFLOPs"],
    data="digits",
    space="toy",
    image=32,
    classes=10,
    resolution=32,
    labels=10,
    params=1000,
    steps=10,
    lower=1,
    upper=1,
    trained_for=["1MFLOPs"],
    source=None,
    racing=RATE,
)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return raced(Toy().search(tmp_path_factory.mktemp("raced") / "log", racing=RATE))


def test_a_trial_that_a_race_stopped_is_not_called_complete(search):
    states = [row(trial)["state"] for trial in search.trials]
    stopped = [trial.score.beaten_by is not None for trial in search.trials]
    assert sum(stopped) > 5
    assert states == ["beaten" if one else "complete" for one in stopped]
    assert all(trial.state == "complete" for trial in search.trials)  # in the log it is as it was


def test_a_summary_counts_the_beaten_apart(search):
    best = trials_module.best(search.trials)
    scores = {"accuracy": 0.5, "standard_error": 0.1, "loss": best.loss, "images": 100}
    entry = {"number": best.number, "id": best.arch.id, "rank": scores, "report": scores}
    entry |= {"flops": best.cost, "params": 1, "predicted": {}}
    told = summary(FACTS, search.trials, entry, [], {"search": 1.0})["trials"]
    states = [row(trial)["state"] for trial in search.trials]
    assert told == {
        "asked": len(states),
        "complete": states.count("complete"),
        "beaten": states.count("beaten"),
        "failed": 0,
    }
    assert told["complete"] + told["beaten"] == told["asked"]


def test_the_beaten_are_shown_and_drawn(tmp_path, cli):
    run = finished(tmp_path)
    table, told = run.read("trials.csv"), run.read("summary.json")
    last = table["loss"].idxmax()
    run.write("trials.csv", table.assign(state=table["state"].where(table.index != last, "beaten")))
    told["trials"] |= {"complete": told["trials"]["complete"] - 1, "beaten": 1}
    run.write("summary.json", told)
    code, out, err = cli("show", run.name, "--runs", tmp_path)
    assert (code, err) == (0, "")
    assert "22 of 24 architectures, 1 of them stopped early, 2 failed" in out
    assert table["loss"][last] in set(report.trials_table(run)["loss"])
    points = [
        offset for c in report.front_figure(run).axes[0].collections for offset in c.get_offsets()
    ]
    assert len(points) == 22


def racing(each, **known):
    return {"rate": RATE, "judged": 10 * each, "saved": 0, "stopped": 0, "complete": 10, **known}


def test_where_images_are_too_few_nothing_is_raced():
    assert "nothing is raced below 200 images" in report.raced(racing(FEWEST - 1))
    assert "0 of 10 evaluations stopped early" in report.raced(racing(FEWEST))
    assert report.raced(racing(FEWEST - 1, rate=None)).startswith("off")
    saved = racing(FEWEST, judged=5 * FEWEST, saved=5 * FEWEST, stopped=6)
    assert "(50%): 6 of 10 evaluations" in report.raced(saved)


def plan(of):
    lower, upper = of.feasible.bounds()
    return Plan(10, 1.0, 1000, lower, upper, 0.1, 0.01, 10**8, 1, acceptance=0.99996)


def test_a_plan_says_if_its_budget_limits_nothing(tmp_path):
    of = problem(tmp_path, "1GFLOPs")
    table = CostTable(flops, image=of.space.image, classes=of.space.classes)
    dearest = max(map(table, of.full.architectures()))
    rows = plan(of).rows(of)
    cost = describe("flops", dearest)
    assert rows["warning"] == f"every architecture of 'few' fits; the dearest takes {cost}"
    assert "(>99.9% of draws accepted)" in rows["space"]
    below = problem(tmp_path, f"{dearest - 1}FLOPs", name="below")
    assert "warning" not in plan(below).rows(below)


def test_a_plan_of_several_limits_that_limit_nothing(tmp_path):
    of = problem(tmp_path, "1GFLOPs", "1Bparams")
    assert plan(of).rows(of)["warning"] == "every architecture of 'few' fits"
