"""`mixnas replay`: a run rebuilt from its logs, and what it finds when something was changed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas
import pytest
import searched_run
import torch
from searched_run import concluded, problem, searched, trained

import mixnas
from mixnas.cost.limit import parse_all
from mixnas.errors import RunConflict
from mixnas.evaluate import Answers
from mixnas.jobs import front, front_answers, verdicts
from mixnas.jobs.replay import NEVER
from mixnas.jobs.replay import replay as job
from mixnas.jobs.replay_records import differing, ends, records, weights
from mixnas.jobs.replayed import replayed
from mixnas.report import winner_rows
from mixnas.run import Run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return the folder of runs with one finished search."""
    root = tmp_path_factory.mktemp("replay")
    of = problem(root, "120KFLOPs")
    with trained(of) as run:
        concluded(of, run, searched(of, run))
    return root


@pytest.fixture
def root(kept, tmp_path):
    """Return a copy of it that a test may change."""
    shutil.copytree(kept, tmp_path / "runs")
    return tmp_path / "runs"


def change(path, edit):
    """Change a file's plain data."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_nothing_differs_where_nothing_was_changed(root):
    found = job("run", runs=root)
    assert found["differences"] == []
    assert found["same"]
    assert found["asks"] == found["trials"] == 26
    assert found["complete"] == 24
    best = json.loads((root / "run" / "best.json").read_text())
    assert json.loads((root / "run" / "replay" / "best.json").read_text()) == best
    assert found["winner"] == mixnas.Architecture.from_dict(best).id
    for name in ("trials.csv", "finalists.json", "front.json"):
        rebuilt = (root / "run" / "replay" / name).read_bytes()
        assert rebuilt == (root / "run" / name).read_bytes(), name
    assert "<script" not in (root / "run" / "replay" / "report.html").read_text()


def test_the_logs_alone_are_enough(root):
    """Everything but the logs and what was asked is gone: the same files are made."""
    before = {name: (root / "run" / name).read_bytes() for name in ("trials.csv", "front.json")}
    for path in (root / "run").iterdir():
        if path.is_file() and path.name not in ("run.json", "log.jsonl", "finalists.jsonl"):
            path.unlink()
    found = job("run", runs=root)
    assert found["same"]
    for name, data in before.items():
        assert (root / "run" / "replay" / name).read_bytes() == data
    assert (root / "run" / "replay" / "report.html").is_file()


def test_the_replay_of_a_run_is_no_run_of_its_own(root):
    job("run", runs=root)
    shown = mixnas.jobs.show.show("run", root)
    assert shown["comparisons"] == []
    assert shown["retrainings"] == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_real_search_and_one_that_takes_its_supernet_over(tmp_path):
    """Trained, raced, its front judged afresh, measured: all that its files say is in its logs."""
    file = tmp_path / "few.toml"
    file.write_text(searched_run.SPACE)
    options = {"space": file, "epochs": 1, "trials": 8, "workers": 1, "runs": tmp_path}
    first = mixnas.search("150KFLOPs", name="first", **options)
    second = mixnas.search("100KFLOPs", name="second", **options)
    assert second.read("summary.json")["supernet"]["source"] == "first"
    assert first.read("summary.json")["supernet"]["source"] is None
    for run in (first, second):
        found = job(run.name, runs=tmp_path)
        assert found["differences"] == []
        assert found["winner"] == run.read("summary.json")["winner"]["id"]
        assert (run.path / "replay" / "fronts.json").is_file()
    assert (second.read("trials.csv")["flops"] <= 100_000).all()


def test_a_changed_cell_is_named(root):
    path = root / "run" / "trials.csv"
    lines = path.read_text().splitlines()
    cells = lines[4].split(",")
    cells[lines[0].split(",").index("loss")] = "0.001"
    path.write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]) + "\n")
    found = job("run", runs=root)
    assert len(found["differences"]) == 1
    assert found["differences"][0].startswith(
        "trials.csv, line 5, loss: 0.001 there, "
    )  # an editor's


def test_a_file_in_the_place_of_what_is_rebuilt_is_one_line(root, cli):
    (root / "run" / "replay").write_text("mine")
    code, _, err = cli("replay", "run", "--runs", root, "--quiet")
    assert code == 2
    assert "run/replay: cannot be made a folder, since a file stands there" in " ".join(err.split())
    assert (root / "run" / "replay").read_text() == "mine"


def test_a_log_that_was_lost_or_is_another_is_said(root):
    log = root / "run" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:6]))
    with pytest.raises(RunConflict, match=r"is no trial of the search's log: one of the two files"):
        job("run", runs=root)
    log.unlink()
    with pytest.raises(RunConflict, match=r"log\.jsonl: lost or emptied"):
        job("run", runs=root)


def test_another_winner_is_named(root):
    change(root / "run" / "best.json", lambda arch: arch["stages"][0].update(width=7))
    change(root / "run" / "summary.json", lambda told: told["winner"].update(accuracy=0.999))
    found = job("run", runs=root)
    assert not found["same"]
    assert any(line.startswith("best.json, stages, 0, width: 7") for line in found["differences"])
    assert any("summary.json, winner, accuracy: 0.999" in line for line in found["differences"])


def test_a_missing_file_and_a_broken_one_are_named(root):
    (root / "run" / "front.json").unlink()
    (root / "run" / "finalists.json").write_text("junk")
    found = job("run", runs=root)
    assert "front.json: is not there" in found["differences"]
    assert "finalists.json: cannot be read" in found["differences"]


def test_an_outcome_changed_in_the_log_changes_the_later_asks(root):
    """The sampler, told another loss, asks otherwise; and the front is another."""
    path = root / "run" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tell = next(line for line in lines if line.get("tell") == 3)
    tell["loss"] = 0.0001
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = job("run", runs=root)
    assert not found["same"]
    assert any(line.startswith("log.jsonl, ask ") for line in found["differences"])
    assert any(line.startswith("trials.csv, ") for line in found["differences"])
    assert not any(line.startswith("front.json") for line in found["differences"])
    assert any(line.startswith("front.json, ") for line in found["following"])
    assert 20 <= found["asks"] < 26  # the first generation was drawn before


def test_why_a_winner_was_not_timed_is_kept_and_shown(root):
    """By the log of finalists, so a replay tells it as well."""
    run = Run.open(root / "run")
    log = run.file(verdicts.LOG)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "not_timed" not in run.read("summary.json")["winner"]
    for entry in lines[1]["finalists"]:
        entry["not_timed"] = {"latency_ms": "busy machine"}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = dict(replayed(run).products())["summary.json"]
    assert told["winner"]["not_timed"] == {"latency_ms": "busy machine"}
    assert dict(winner_rows(told))["latency"] == "not timed: busy machine"


def test_a_torn_table_is_said_in_one_line(root):
    path = root / "run" / "trials.csv"
    path.write_bytes(path.read_bytes()[:-40])
    found = job("run", runs=root)
    assert found["differences"] == [
        "trials.csv, line 27: is torn",
        "trials.csv: 25 rows, 26 trials in the log",
    ]


@pytest.fixture
def answered(root):
    """Return a run whose front has been judged afresh, by made-up answers."""
    run = Run.open(root / "run")
    found = replayed(run)
    log = run.file(front_answers.LOG)
    ground = front.Ground(found.limits, found.facts.labels, found.facts.image, found.facts.classes)
    front_answers.begin(run, found.trials, None)
    with log.open("a") as file:
        wanted = front.wanted(found.trials, front_answers.Record({}), ground)
        for place, arch in enumerate({arch.id: arch for arch in wanted}.values()):
            losses = torch.from_numpy(np.random.default_rng(place).random(50).astype("f4"))
            line = front_answers._line(arch, Answers(losses < 0.5, losses), {})
            file.write(json.dumps(line) + "\n")
    for name, data in replayed(run).products():
        seconds = {"seconds": run.read(name)["seconds"]} if name == "summary.json" else {}
        run.write(name, data | seconds if seconds else data)
    assert job("run", runs=root)["differences"] == []
    return run


def test_a_point_without_answers_is_named_and_what_follows_is_counted(root, answered, cli):
    log = answered.file(front_answers.LOG)
    lines = log.read_text().splitlines(keepends=True)
    lacking = json.loads(lines[1])["judged"]
    log.write_text("".join(line for line in lines if lacking not in line))
    trial = next(t for t in replayed(answered).trials if t.arch.id == lacking)
    found = job("run", runs=root)
    assert found["differences"] == [f"front.jsonl: no answers of trial {trial.number} ({lacking})"]
    assert not found["same"]
    assert {line.partition(",")[0] for line in found["following"]} == {
        "fronts.json",
        "front.json",
        "summary.json",
    }
    code, out, _ = cli("replay", "run", "--runs", root, "--quiet")
    assert code == 1
    assert "1 difference\n" in out
    assert out.count("differs: ") == out.count("what follows: ") == 1


def test_a_torn_or_damaged_or_lost_log_of_answers_is_one_line(root, answered):
    log = answered.file(front_answers.LOG)
    data = log.read_bytes()
    log.write_bytes(data[:-9])
    torn = job("run", runs=root)["differences"]
    assert torn[-1] == "front.jsonl: its last line is torn"
    assert torn[0].startswith("front.jsonl: no answers of trial ")
    log.write_bytes(data.replace(b'{"judged"', b'{"jud', 1))
    (damaged,) = job("run", runs=root)["differences"]
    assert damaged.startswith("front.jsonl: cannot be read (")
    log.write_bytes(data.replace(b'"format":1', b'"format":2', 1))  # of a later mixnas
    (strange,) = job("run", runs=root)["differences"]
    assert strange.startswith("front.jsonl: cannot be read")
    log.unlink()
    assert job("run", runs=root)["differences"] == ["front.jsonl: is not there"]


@pytest.mark.parametrize("damage", ["junk", '{"neither": 1}', '{"tell": 1000, "loss": 1}'])
def test_what_helps_against_a_damaged_log_is_something_that_a_replay_has(root, damage):
    path = root / "run" / "log.jsonl"
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(RunConflict, match="from a copy of the run") as told:
        job("run", runs=root)
    assert "--name" not in str(told.value)


def test_a_log_of_another_seed_asks_otherwise(root):
    change(root / "run" / "run.json", lambda made: made["settings"].update(seed=9))
    found = job("run", runs=root)
    assert found["asks"] == 0
    assert not found["same"]
    assert found["differences"] == ["log.jsonl, header: seed: was 0, now 9; no ask was repeated"]


def change_line(path, place, edit):
    """Change the first line of a log that has something."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(next(line for line in lines if place.items() <= line.items()))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("name", "value"),
    [("data", "elsewhere"), ("image", 64), ("classes", 11), ("space", "x"), ("labels", 9)],
)
def test_facts_that_are_not_what_was_asked_are_named(root, name, value):
    """In the log and in all that was made of it, so that nothing else shows it."""
    change_line(root / "run" / verdicts.LOG, {}, lambda line: line["facts"].update({name: value}))
    run = Run.open(root / "run")
    for file, data in replayed(run).products():
        run.write(file, {**data, "seconds": {}} if file == "summary.json" else data)
    (line,) = records(replayed(run))
    assert line.startswith(f"run.json, {name}: ")
    assert line.endswith(f"there, {value!r} by the log")


@pytest.mark.parametrize(
    ("file", "edit", "told"),
    [
        ("plan.json", lambda data: data.update(steps=5), "plan.json, steps: 5 there"),
        ("plan.json", lambda data: data.update(lower=5), "plan.json, lower: 5 there"),
        (
            "supernet.json",
            lambda data: data["limits"][0].update(high=7),
            "supernet.json, limits, 0",
        ),
        (
            "supernet.json",
            lambda data: data.update(source="other"),
            "supernet.json, source: 'other'",
        ),
        ("supernet.json", lambda data: data.update(recipe=7), "supernet.json: cannot be read"),
    ],
)
def test_a_changed_record_is_named(root, file, edit, told):
    change(root / "run" / file, edit)
    (line,) = records(replayed(Run.open(root / "run")))
    assert line.startswith(told)


@pytest.mark.parametrize(
    "name",
    ["plan.json", "best.safetensors", "supernet.safetensors"],
)
def test_a_lost_file_is_named(root, name):
    (root / "run" / name).unlink()
    run = Run.open(root / "run")
    assert [*records(replayed(run)), *weights(run)] == [f"{name}: is not there"]


def test_what_was_lost_of_a_run_makes_its_replay_differ(root):
    """All kinds at once, as the command tells them."""
    change(root / "run" / "plan.json", lambda plan: plan.update(steps=5))
    for name in ("attribution.json", "attribution.csv", "best.safetensors"):
        (root / "run" / name).unlink()
    shutil.copy(root / "run" / "log.jsonl", root / "run" / "log.2.jsonl")
    found = job("run", runs=root)
    assert not found["same"]
    assert [line.partition(":")[0] for line in found["differences"]] == [
        "log.2.jsonl",
        "plan.json, steps",
        "best.safetensors",
        "attribution.json",
        "attribution.csv",
    ]


def test_damaged_weights_and_a_lost_record_of_them_are_told(root):
    file = root / "run" / "supernet.safetensors"
    file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    told = ["supernet.safetensors: not the weights whose SHA-256 supernet.json has"]
    assert job("run", runs=root)["differences"] == told
    (root / "run" / "supernet.json").unlink()
    found = job("run", runs=root)
    assert found["same"]
    assert any("supernet.json: is not there" in line for line in found["unreplayed"])


def test_a_lost_predictor_is_a_difference(root):
    """By it the asks are repeated: the run always keeps it."""
    found = replayed(Run.open(root / "run"))
    assert list(found.lost()) == []
    measured = replace(found, limits=parse_all(["120KFLOPs", "20ms@cpu"]))
    (line,) = measured.lost()
    assert line.endswith("is not there, so no ask can be repeated")


@pytest.fixture
def forty(tmp_path):
    """Return a run with trials enough for an attribution."""
    of = problem(tmp_path, "120KFLOPs", trials=44)
    with trained(of) as run:
        concluded(of, run, searched(of, run))
    return run


def test_an_attribution_is_made_again_and_each_change_of_it_named(forty):
    root = forty.path.parent
    assert job("run", runs=root)["differences"] == []
    path = forty.file("attribution.csv")
    lines = path.read_text().splitlines()
    assert len(lines) > 3
    cells = lines[2].split(",")
    cells[lines[0].split(",").index("effect")] = "-3.5"
    path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    change(forty.file("attribution.json"), lambda told: told["stages"][0].update(low=-9.0))
    differences = job("run", runs=root)["differences"]
    assert [line.rpartition(":")[0] for line in differences] == [
        "attribution.json, stages, 0, low",
        "attribution.csv, line 3, effect",
    ]
    change(forty.file("run.json"), lambda made: made.update(git="0" * 40))
    found = job("run", runs=root)
    assert found["same"]
    assert any(
        line.startswith("attribution.json and attribution.csv: 2 figures differ, but another")
        for line in found["unreplayed"]
    )


@pytest.mark.parametrize("name", ["log.jsonl", verdicts.LOG])
@pytest.mark.parametrize("cut", [True, False])
def test_a_torn_log_of_a_finished_stage_is_named(root, name, cut):
    log = root / "run" / name
    log.write_bytes(log.read_bytes()[:-1] if cut else log.read_bytes() + b'{"tell":3,"acc')
    assert f"{name}: its last line is torn" in list(ends(replayed(Run.open(root / "run"))))


def test_a_second_outcome_of_a_trial_is_refused_before_or_after_the_true_one(root):
    log = root / "run" / "log.jsonl"
    lines = log.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if json.loads(line).get("tell") == 3)
    false = json.dumps(json.loads(lines[place]) | {"loss": 0.001})
    for at in (place, place + 1, len(lines)):
        log.write_text("\n".join([*lines[:at], false, *lines[at:]]) + "\n")
        with pytest.raises(RunConflict, match=r"line \d+: .*a second tell of 3"):
            job("run", runs=root)


@pytest.mark.parametrize(
    ("place", "edit"),
    [
        ({"tell": 3}, {"loss": "x"}),
        ({"tell": 3}, {"loss": float("nan")}),
        ({"tell": 3}, {"accuracy": 1.7}),
        ({"tell": 3}, {"accuracy": True}),
        ({"tell": 3}, {"images": 18.5}),
        ({"tell": 3}, {"loss_error": None}),
        ({"tell": 9}, {"failed": 3}),
        ({"ask": 3}, {"costs": {}}),
        ({"ask": 3}, {"costs": {"flops": "x", "params": 3}}),
        ({"ask": 3}, {"costs": None}),
        ({"ask": 3}, {"arch": {}}),
        ({"ask": 3}, {"genes": [0.5]}),
        ({"ask": 3}, {"ask": "3"}),
        ({"ask": 3}, {"ask": 2}),
    ],
)
def test_a_line_that_mixnas_never_wrote_is_named_in_one_line(root, cli, place, edit):
    log = root / "run" / "log.jsonl"
    change_line(log, place, lambda line: line.update(edit))
    code, _, err = cli("replay", "run", "--runs", root)
    assert code == 2
    assert err.count("\n") == 1
    assert f"search log {log}, line " in err


def test_a_search_does_not_go_on_with_such_a_line_either(root):
    change_line(root / "run" / "log.jsonl", {"tell": 3}, lambda line: line.update(loss="x"))
    of = problem(root, "120KFLOPs", name="other")
    with pytest.raises(RunConflict, match=r"line \d+: .*loss 'x': a number is needed"):
        searched(of, Run.open(root / "run"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.update(round="x"),
        lambda line: line.update(finalists=None),
        lambda line: line.update(finalists=[None]),
        lambda line: line.update(finalists=[{}]),
        lambda line: line["finalists"][0].update(number=999),
        lambda line: line["finalists"][1]["rank"].update(loss="x"),
        lambda line: line["finalists"][1].update(rank=3),
        lambda line: line["finalists"][0].update(predicted=None),
    ],
)
def test_damaged_finalists_are_one_line(root, cli, damage):
    change_line(root / "run" / verdicts.LOG, {"round": 0}, damage)
    code, _, err = cli("replay", "run", "--runs", root)
    assert code == 2
    assert err.count("\n") == 1
    assert "finalists.jsonl" in err


def test_a_log_without_its_finalists_is_named(root):
    log = root / "run" / verdicts.LOG
    change_line(log, {"round": 0}, lambda line: line.update(finalists=[]))
    told = f"{verdicts.LOG}: has no finalists"
    assert list(ends(replayed(Run.open(root / "run")))) == [told]


def test_an_architecture_of_another_space_is_named(forty):
    """And is no traceback where the attribution is made again."""

    def edit(line):
        line["arch"]["stages"][0]["blocks"][0]["mixer"] = "zz"

    change_line(forty.file("log.jsonl"), {"ask": 3}, edit)
    differences = job("run", runs=forty.path.parent)["differences"]
    assert "trials.csv, trial 3 by the log: an architecture that the space does not hold" in (
        differences
    )


def test_a_table_that_is_no_text_is_named(root):
    path = root / "run" / "trials.csv"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    assert job("run", runs=root)["differences"] == ["trials.csv: cannot be read"]


def test_seconds_that_are_none_are_one_line(root, cli):
    change(root / "run" / "stages.json", lambda told: told["training"].update(seconds="x"))
    code, _, err = cli("replay", "run", "--runs", root)
    assert code == 2
    assert err.count("\n") == 1
    assert "stages.json is damaged" in err


def test_a_lost_outcome_is_named_in_its_own_row_alone(root):
    """The column of images, which pandas writes otherwise where one is lacking, is the same."""
    log = root / "run" / "log.jsonl"
    lines = log.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if "accuracy" in line)
    log.write_text("\n".join([*lines[:last], *lines[last + 1 :]]) + "\n")
    row = f"trials.csv, line {json.loads(lines[last])['tell'] + 2}, "
    rows = [line for line in job("run", runs=root)["differences"] if line.startswith("trials.csv")]
    assert rows
    assert all(line.startswith(row) for line in rows)


def test_a_run_from_before_beaten_trials_were_told_apart(root, cli):
    run, log = Run.open(root / "run"), root / "run" / "log.jsonl"
    part = {"images": 60, "beaten_by": "313c5712bfd0"}
    worst = max(
        (trial for trial in replayed(run).trials if trial.score), key=lambda trial: trial.loss
    )
    change_line(log, {"tell": worst.number}, lambda line: line.update(part))
    table = pandas.DataFrame(replayed(run).rows())
    told = dict(replayed(run).products())
    for name, data in told.items():
        run.write(name, {**data, "seconds": {}} if name == "summary.json" else data)
    run.write("trials.csv", table)
    whole = job("run", runs=root)
    assert (whole["complete"], whole["beaten"]) == (23, 1)
    assert " 23 complete, 1 stopped early" in " ".join(
        cli("replay", "run", "--runs", root)[1].split()
    )
    change(root / "run" / "summary.json", lambda made: made["trials"].pop("beaten"))
    change(root / "run" / "summary.json", lambda made: made["trials"].update(complete=24))
    run.write("trials.csv", table.replace({"state": {"beaten": "complete"}}))
    before = job("run", runs=root)
    assert whole["differences"] == before["differences"]
    assert not [line for line in before["differences"] if line.startswith(("trials", "summary"))]
    assert any("before those that a race stopped" in line for line in before["unreplayed"])
    assert not any("before those that a race stopped" in line for line in whole["unreplayed"])


def test_what_is_never_compared_is_said(root, cli):
    _, out, _ = cli("replay", "run", "--runs", root, "--quiet")
    for what in ("best.safetensors", "supernet.csv", "seconds", "figures", "picks"):
        assert any(what in line for line in NEVER)
    assert out.count("not replayed: ") >= len(NEVER)


def test_a_trial_over_the_budget_is_named(root):
    path = root / "run" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line.get("ask") == 5)["costs"]["flops"] = 120_001
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = job("run", runs=root)
    told = "log.jsonl, ask 5: flops 120001 is outside 120KFLOPs"
    assert told in found["differences"]
    assert any("costs.flops: was 120001, now" in line for line in found["differences"])


def test_a_run_from_before_finalists_were_logged(root):
    """What the old logs hold is compared; what they lack is said, and is no difference."""
    (root / "run" / "finalists.jsonl").unlink()
    path = root / "run" / "trials.csv"
    frame = mixnas.Run.open(root / "run").read("trials.csv")
    frame.drop(columns="beaten_by").to_csv(path, index=False)
    found = job("run", runs=root)
    assert found["same"]
    assert found["winner"] is None
    assert any("finalists.jsonl is not there: lost, or" in line for line in found["unreplayed"])


@pytest.mark.parametrize("stop", [0, 7, 20])
def test_an_unfinished_search_is_replayed_as_far_as_it_went(tmp_path, stop):
    of = problem(tmp_path, "120KFLOPs")
    with trained(of) as run:
        searched(of, run, stop=stop)
        log = run.file("log.jsonl")
    log.write_bytes(log.read_bytes() + b'{"tell":')  # torn by a kill
    found = job("run", runs=tmp_path)
    assert found["same"]
    assert found["asks"] == found["trials"] == stop + 1
    assert found["complete"] == stop - stop // 10
    assert found["winner"] is None


@pytest.mark.parametrize("sampler", ["random", "evolution", "tpe"])
def test_every_sampler_asks_the_same_again(tmp_path, sampler):
    of = problem(tmp_path, "120KFLOPs", sampler=sampler)
    with trained(of) as run:
        concluded(of, run, searched(of, run))
    found = job("run", runs=tmp_path)
    assert found["same"]
    assert found["asks"] == 26


def test_a_round_judged_again_counts_once(tmp_path):
    """A kill between the log and the file: the round is judged again, the later line counts."""
    of = problem(tmp_path, "120KFLOPs")
    with trained(of) as run:
        facts = verdicts.Facts.of(of, searched_run.Plan.of(run), run)
        verdicts.begin(run, facts)
        verdicts.begin(run, facts)
        verdicts.record(run, 0, [{"number": 1}])
        verdicts.record(run, 0, [{"number": 2}, {"number": 3}])
        verdicts.record(run, 1, [{"number": 4}])
        log = run.file(verdicts.LOG)
        log.write_bytes(log.read_bytes() + b'{"round":2,"finali')
        read, entries = verdicts.read(run)
    assert read == facts
    assert [entry["number"] for entry in entries] == [2, 3, 4]


def test_earlier_finalists_enter_a_new_log(tmp_path):
    of = problem(tmp_path, "120KFLOPs")
    with trained(of) as run:
        facts = verdicts.Facts.of(of, searched_run.Plan.of(run), run)
        earlier = [{"number": 1, "round": 0}, {"number": 2, "round": 1}, {"number": 3, "round": 0}]
        verdicts.begin(run, facts, earlier)
        assert [entry["number"] for entry in verdicts.read(run)[1]] == [1, 3, 2]


@pytest.mark.parametrize(
    ("was", "now", "places"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-12}, []),
        ({"a": 1.0}, {"a": 1.001}, ["x, a"]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": 1}, {"a": True}, ["x, a"]),
        ({"a": None}, {}, ["x, a"]),
        ([1, [2, 3]], [1, [2, 4], 5], ["x, 1, 1", "x, 2"]),
        ("one", "other", ["x"]),
    ],
)
def test_differences_are_found_and_rounding_is_none(was, now, places):
    assert [line.partition(":")[0] for line in differing("x", was, now)] == places


def test_mistakes_are_one_line(root, cli):
    code, _, err = cli("replay", "nothing", "--runs", root)
    assert code == 2
    assert err.count("\n") == 1
    (root / "run" / "log.jsonl").unlink()
    code, _, err = cli("replay", "run", "--runs", root)
    assert code == 2
    assert "log.jsonl: lost or emptied" in err


def test_a_log_that_is_none_is_refused(root):
    (root / "run" / "finalists.jsonl").write_text('{"format": 1}\n')
    with pytest.raises(RunConflict, match="not the log that mixnas wrote"):
        job("run", runs=root)


def test_the_command_line_says_if_anything_differs(root, cli):
    code, out, err = cli("replay", "run", "--runs", root, "--quiet")
    assert (code, err) == (0, "")
    assert "nothing differs" in out
    change(root / "run" / "best.json", lambda arch: arch["stem"].update(kind="other"))
    code, out, _ = cli("replay", "run", "--runs", root, "--quiet")
    assert code == 1
    assert "differs: best.json, stem, kind: 'other' there" in out
    code, out, _ = cli("replay", "run", "--runs", root, "--json")
    assert code == 1
    assert json.loads(out)["same"] is False
    assert Run.open(root / "run").name == "run"
