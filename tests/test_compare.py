"""Comparisons: who takes part, trainings that resume, honest figures, the command."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pandas
import psutil
import pytest
from finished_run import SETTINGS, begun, finished
from hypothesis import given
from hypothesis import strategies as st

import mixnas
from mixnas import data as datasets
from mixnas import report, screen, zoo
from mixnas.errors import BudgetUnreachable, InvalidOption, RunConflict
from mixnas.jobs import entrants, one_mixer, scaling, timm_rivals
from mixnas.jobs.compare import compare
from mixnas.jobs.contest import _results, digest
from mixnas.jobs.entrants import Entrant, described
from mixnas.jobs.problem import Plan, Problem, reopen
from mixnas.jobs.settings import Silent
from mixnas.jobs.show import show
from mixnas.jobs.standings import interval, sentence, sound, standings
from mixnas.jobs.trainings import Keeper, loaded, train, trainer
from mixnas.report.comparison import apart, draw
from mixnas.run import Run
from mixnas.train.recipe import AloneRecipe

EVERY_MIXER = ("additive", "xnorm", "hilo", "aff", "single_head", "identity", "attention")


def searched(root: Path, *budget: str, **changes) -> Run:
    """A finished search of digits, its winner drawn near the upper edge of the budget."""
    settings = replace(SETTINGS, budget=budget or ("4MFLOPs",), **changes)
    run = finished(root, settings=settings)
    data = datasets.load("digits", seed=settings.seed)
    found = {"data": data.fingerprint, "labels": list(data.labels)}
    run.write("run.json", {**run.made, "settings": {**run.settings, "found": found}})
    run = Run.open(run.path)
    best = reopen(run, Silent()).feasible.sample(Random(1), share=(0.8, 1.0))
    run.write("best.json", best.to_json() + "\n")
    run.write("plan.json", Plan(16, 1.0, 1, 1, 1, 0.1, 0.1, 1, 1).to_dict())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("runs"), "4MFLOPs", "90Kparams")


@pytest.fixture(scope="module")
def problem(run):
    return reopen(run, Silent())


@pytest.fixture(scope="module")
def winner(run):
    return mixnas.Architecture.from_dict(run.read("best.json"))


def take_part(problem: Problem, *only: str, random: int = 3) -> dict[str, Entrant]:
    best = json.loads((problem.runs / problem.name / "best.json").read_text())
    winner = mixnas.Architecture.from_dict(best)
    return {k: make() for k, make in entrants.makers(problem, winner, only, random, None).items()}


def arch_of(entrant: Entrant) -> mixnas.Architecture:
    return mixnas.Architecture.from_dict(entrant.source["arch"])


# Who takes part


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_architecture_keeps_every_limit_by_an_independent_count(problem, tmp_path):
    between = reopen(searched(tmp_path, "2-4MFLOPs"), Silent())
    for each in (problem, between):
        for entrant in take_part(each, "mixer", "control", "random").values():
            arch = arch_of(entrant)
            assert mixnas.count_flops(arch, 64, classes=10) == entrant.costs["flops"]
            assert mixnas.count_params(arch, classes=10) == entrant.costs["params"]
            for limit in each.limits:
                assert limit.excess(entrant.costs[limit.cost]) <= 0, entrant.label


def test_a_network_of_one_mixer_has_it_alone_at_the_winners_cost(problem):
    found = take_part(problem, "mixer", "control")
    alone = {e.key.partition("-")[2]: e for e in found.values() if e.kind != "winner"}
    assert set(alone) == set(EVERY_MIXER)
    cost = found["winner"].costs["flops"]
    for mixer, entrant in alone.items():
        blocks = [block for stage in arch_of(entrant).stages for block in stage.blocks]
        assert {block.mixer for block in blocks} == {mixer}
        share = 0.03 if not entrant.note else float(entrant.note.split("%")[0].split()[1]) / 100
        assert abs(entrant.costs["flops"] - cost) <= share * cost


def test_no_nearer_network_of_one_mixer_changes_fewer_choices(problem, winner):
    """Against every one-step and no-step neighbour of the winner's skeleton."""
    for mixer in EVERY_MIXER:
        space = one_mixer.with_mixer(problem.full, mixer)
        start = one_mixer.skeleton(space, problem.full.genotype(winner))
        arch, note = one_mixer.nearest(problem, winner, mixer)
        if note:
            continue
        cost = problem.tables["flops"](winner)

        def within(arch, cost=cost):
            near = abs(problem.tables["flops"](arch) - cost) <= 0.03 * cost
            costs = {name: table(arch) for name, table in problem.tables.items()}
            return near and all(x.excess(costs[x.cost]) <= 0 for x in problem.limits)

        genes, chosen = space.genotype(start), space.genotype(arch)
        changed = sum(chosen.get(k, v) != v for k, v in genes.items())
        assert within(arch)
        assert (changed == 0) == within(start)
        if changed > 1:
            for key, value in genes.items():
                for other in set(space.genes[key]) - {value}:
                    assert not within(one_mixer.skeleton(space, genes | {key: other})), key


def test_a_mixer_that_the_space_lacks_gets_knobs_that_fit(problem):
    space = one_mixer.with_mixer(problem.full, "attention")
    assert space.genes["s16.b0.attention.head_width"] == (16,)  # as the space's other heads
    assert space.genes["s16.width"] == problem.full.genes["s16.width"]
    assert space.genes["s8.b1.mixer"] == ("attention",)
    for seed in range(20):
        mixnas.build(space.sample(Random(seed)), num_classes=10)


def test_random_draws_are_feasible_distinct_and_the_same_however_many(problem):
    few, more = (take_part(problem, "random", random=number) for number in (2, 5))
    assert {key: more[key] for key in few} == few
    ids = [arch_of(entrant).id for entrant in more.values()]
    assert len(set(ids)) == len(ids) == 6
    assert take_part(problem, "random", random=5) == more


def test_a_space_without_further_architectures_gives_no_further_draws(tmp_path):
    run = searched(tmp_path, "0.45MFLOPs")
    problem = reopen(run, Silent())
    winner = mixnas.Architecture.from_dict(run.read("best.json"))
    there = problem.feasible.count()
    assert there == 6
    made = list(entrants.makers(problem, winner, ["random"], there, None).values())
    assert len({arch_of(make()).id for make in made[:there]}) == there  # the winner is one
    with pytest.raises(BudgetUnreachable, match="no further architecture"):
        made[there]()


@given(
    grain=st.integers(1, 300),
    slope=st.floats(0.02, 50),
    least=st.floats(0, 1.5),
    power=st.floats(0.5, 3),
)
def test_the_greatest_step_is_found_for_any_load_that_does_not_fall(grain, slope, least, power):
    def load(step: int) -> float:
        return least + slope * (grain * (step // grain) / scaling.STEPS) ** power

    steps = range(1, scaling.WIDEST * scaling.STEPS + 1)
    fitting = sum(load(step) <= 1 for step in steps)
    assert scaling.greatest(load) == fitting


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_system_has_the_greatest_width_that_keeps_the_limits(tmp_path):
    problem = reopen(searched(tmp_path, "40MFLOPs", "1Mparams"), Silent())
    scales = scaling.Scales(problem, entrants.create)
    found = scaling.contenders()
    assert len(found) == 5
    for name in found:
        source = scaling.scaled(name, scales)
        network = entrants.create(source, classes=10, image=64)
        costs = {"flops": mixnas.count_flops(network, 64), "params": mixnas.count_params(network)}
        assert costs == scales(source)
        assert scales.within(costs)
        step = round(source["width"] * scaling.STEPS)
        wider = {**source, "width": (step + 1) / scaling.STEPS}
        assert zoo.options(wider["zoo"], wider["width"]) != zoo.options(**_named(source))
        assert not scales.within(scales(wider)), name


def _named(source):
    return {"name": source["zoo"], "width": source["width"]}


@pytest.mark.slow
def test_a_system_that_is_too_wide_at_its_thinnest_says_so(tmp_path):
    problem = reopen(searched(tmp_path, "1MFLOPs"), Silent())
    with pytest.raises(BudgetUnreachable, match=r"thinnest network takes .* the budget is"):
        scaling.scaled("fvit", scaling.Scales(problem, entrants.create))


@pytest.mark.slow
def test_the_network_of_timm_is_the_nearest_in_cost_within_the_limits(tmp_path):
    run = searched(tmp_path, "8MFLOPs")
    problem = reopen(run, Silent())
    winner = mixnas.Architecture.from_dict(run.read("best.json"))
    scales = scaling.Scales(problem, entrants.create)
    name = timm_rivals.nearest(scales, winner)
    flops = {known: scales({"timm": known})["flops"] for known in timm_rivals.KNOWN}
    fitting = {known: value for known, value in flops.items() if value <= 8_000_000}
    cost = problem.tables["flops"](winner)
    assert abs(fitting[name] - cost) == min(abs(value - cost) for value in fitting.values())


# A training


def a_task(folder: Path, source, seed: int = 0, steps: int = 12, resolution: int = 32):
    recipe = asdict(AloneRecipe(steps=steps, batch=16))
    data = ["digits", 3, resolution]
    state = str(folder / "state.pt")
    return {
        "source": dict(source),
        "seed": seed,
        "data": data,
        "recipe": recipe,
        "device": "cpu",
        "state": state,
    }


def same(first, second) -> bool:
    left, right = ({k: v for k, v in r.items() if k != "seconds"} for r in (first, second))
    return left == right


def test_a_training_that_was_stopped_ends_as_if_undisturbed(tmp_path, winner):
    task = a_task(tmp_path, {"arch": winner.to_dict()})
    whole = train(task)
    assert not Path(task["state"]).exists()
    data = loaded(*task["data"])
    recipe = AloneRecipe(**task["recipe"])
    keeper = Keeper(task, trainer(task, data, recipe), 0.0)
    for _ in keeper.trainer.run(data.train(batch=16, seed=0), until=5):
        keeper.keep()
    assert Keeper(task, trainer(task, data, recipe), 0.0).trainer.step == 5
    assert same(train(task), whole)
    assert whole["images"] == data.sizes["report"] == len(whole["hits"])
    assert whole["accuracy"] == pytest.approx(whole["hits"].count("1") / whole["images"])


def test_the_state_of_another_training_is_not_taken_up(tmp_path, winner):
    source = {"arch": winner.to_dict()}
    task = a_task(tmp_path, source)
    data = loaded(*task["data"])
    keeper = Keeper(task, trainer(task, data, AloneRecipe(**task["recipe"])), 0.0)
    next(keeper.trainer.run(data.train(batch=16, seed=0)))
    keeper.keep()
    other = a_task(tmp_path, source, seed=1)
    assert Keeper(other, trainer(other, data, keeper.trainer.recipe), 0.0).trainer.step == 0
    Path(task["state"]).write_bytes(b"junk")
    assert Keeper(task, trainer(task, data, keeper.trainer.recipe), 0.0).trainer.step == 0


def test_seeds_differ_and_are_the_same_again(tmp_path, winner):
    source = {"arch": winner.to_dict()}
    results = [train(a_task(tmp_path, source, seed=seed, steps=4)) for seed in (0, 1, 0)]
    assert same(results[0], results[2])
    assert not same(results[0], results[1])


# Figures


def answers(accuracy: float, images: int, seed: int) -> dict:
    hits = np.random.default_rng(seed).random(images) < accuracy
    text = "".join("01"[int(hit)] for hit in hits)
    return {
        "hits": text,
        "images": images,
        "accuracy": hits.mean(),
        "loss": 1.0,
        "seconds": 2.0,
        "steps": 3,
    }


def an_entrant(key: str, kind: str = "mixer") -> Entrant:
    return Entrant(key, kind, f"{key} <b>", {}, {"flops": 5_000_000, "params": 70_000})


def judged(**accuracies: float):
    cast = [an_entrant(key, "winner" if key == "winner" else "mixer") for key in accuracies]
    results = {
        key: {seed: answers(value, 500, seed + 10 * number) for seed in range(3)}
        for number, (key, value) in enumerate(accuracies.items())
    }
    return cast, results


def test_figures_are_those_of_the_answers():
    cast, results = judged(winner=0.7, worse=0.3, better=0.95)
    results["worse"][2] = {"reason": "it diverged"}
    latency = {key: {"lower": 1.0, "median": 2.0, "upper": 3.0} for key in results}
    rows = {row["key"]: row for row in standings(cast, results, latency)}
    values = [results["better"][seed]["accuracy"] for seed in range(3)]
    assert rows["better"]["accuracy"] == pytest.approx(np.mean(values))
    assert rows["better"]["spread"] == pytest.approx(np.std(values, ddof=1))
    mean = rows["better"]["accuracy"]
    assert rows["better"]["standard_error"] == pytest.approx(math.sqrt(mean * (1 - mean) / 500))
    assert rows["better"]["verdict"] == "ahead"
    assert rows["worse"]["verdict"] == "behind"
    assert rows["worse"]["seeds"] == 2
    assert "seed 2 failed: it diverged" in rows["worse"]["note"]
    common = [results["worse"][s]["accuracy"] - results["winner"][s]["accuracy"] for s in (0, 1)]
    assert rows["worse"]["difference"] == pytest.approx(np.mean(common))
    assert rows["winner"]["verdict"] is None
    assert rows["winner"]["latency_ms"] == 2.0


def test_equal_answers_are_level_and_the_interval_is_that_of_a_mean():
    assert interval(np.zeros((3, 50))) == (0.0, 0.0)
    gap = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(1, 4000))
    low, high = interval(gap)
    error = gap.std() / math.sqrt(gap.size)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < gap.mean() < high


def test_the_sentence_says_plainly_who_loses():
    rows = standings(*judged(winner=0.5, strong=0.9, weak=0.1), {})
    text = sentence(rows, 10)
    assert "place 2 of 3 (first: strong <b>" in text
    assert "loses to 1 (strong <b>)" in text
    assert "wins against 1 (weak <b>)" in text
    assert "ties with none" in text
    assert "No better than guessing: 1 (weak <b>)" in text
    rows = standings([an_entrant("winner", "winner")], {"winner": {0: {"reason": "died"}}}, {})
    assert "has no result: seed 0 failed: died" in sentence(rows, 10)


def test_a_result_of_another_network_under_the_same_key_is_done_again(tmp_path):
    (entrant,), results = judged(winner=0.7)
    with Run.create(tmp_path, "kept", {}) as kept:
        made = {"of": digest(entrant.source)}
        kept.write("trainings/winner.seed0.json", results["winner"][0] | made)
        kept.write("trainings/winner.seed1.json", results["winner"][1])  # of long ago
        assert set(_results(kept, [entrant], 3, 500)["winner"]) == {0, 1}
        other = replace(entrant, source={"arch": "another"})
        assert set(_results(kept, [other], 3, 500)["winner"]) == {1}


@pytest.mark.parametrize(
    "change",
    [
        {"hits": "01"},
        {"hits": 5},
        {"hits": "2" * 500},
        {"images": 400},
        {"accuracy": "x"},
        {"loss": None},
        {"seconds": "long"},
    ],
    ids=str,
)
def test_what_is_not_a_result_is_told_from_one(change):
    result = {**answers(0.7, 500, 0), "steps": 10, "seconds": 1.0}
    assert sound(result, 500)
    assert sound({"reason": "it diverged"}, 500)
    assert not sound({**result, **change}, 500)
    assert not any(sound(other, 500) for other in ([], None, 3, {}, {"hits": "1"}, {"reason": 1}))


@pytest.mark.parametrize(
    "change", [{"costs": {}}, {"costs": "x"}, {"label": 5}, {"kind": "foo"}, {"source": None}]
)
def test_what_is_not_an_entrant_is_told_from_one(change):
    assert described(an_entrant("winner", "winner"))
    assert not described(replace(an_entrant("winner", "winner"), **change))


def a_summary(**accuracies: float) -> dict:
    cast, results = judged(**accuracies)
    latency = {
        key: {"lower": 1.0, "median": 2.0 + n, "upper": 30.0} for n, key in enumerate(results)
    }
    rows = standings(cast, results, latency)
    return {
        "of": "run <i>",
        "sentence": sentence(rows, 10),
        "rows": rows,
        "absent": {"system-x": "it <u>takes too much"},
        "budget": ["4MFLOPs"],
        "image": 64,
        "classes": 10,
        "resolution": 32,
        "labels": 10,
        "images": 500,
        "data": "digits",
        "epochs": 1,
        "steps": 16,
        "seeds": 3,
        "recipe": asdict(AloneRecipe(16)),
        "conditions": {"device": "cpu"},
    }


def test_the_page_escapes_and_names_everyone(tmp_path):
    run = Run.create(tmp_path, "page", {})
    run.write("summary.json", a_summary(winner=0.5, strong=0.9, weak=0.1))
    report.compared_figure(run)
    page = report.compared_html(run).read_text()
    assert run.file(report.COMPARED).read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in page
    for raw in ("<b>", "<i>", "<u>"):
        assert raw not in page
    for text in ("strong &lt;b&gt;", "it &lt;u&gt;takes too much"):
        assert text in page
    run.close()


def test_the_picture_shows_every_entrant_in_both_panels_apart():
    names = {f"n{i}": 0.5 for i in range(20)}
    figure = draw(a_summary(winner=0.5, **names))
    for axes in figure.axes[:2]:
        labels = [text for text in axes.texts if text.get_text()]
        assert len(labels) == 21
        heights = sorted(text.xyann[1] for text in labels)
        assert min(np.diff(heights)) > 0.04
        assert len(axes.containers) == 21
    assert any(line.get_linestyle() == "--" for line in figure.axes[0].lines)


@given(st.lists(st.floats(0, 1), max_size=30).map(sorted), st.floats(0.001, 0.2))
def test_labels_lie_apart_and_inside(heights, gap):
    placed = apart(heights, gap)
    room = min(gap, 1 / max(1, len(heights) - 1))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    assert all(b - a >= room - 1e-9 for a, b in pairwise(placed))
    if all(b - a >= gap for a, b in pairwise(heights)):
        assert placed == pytest.approx(heights)


def test_markdown_is_a_table():
    summary = a_summary(winner=0.5, weak=0.1)
    lines = screen.markdown(summary).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


# The command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "0"], "seeds 0: a whole number of at least 1"),
        (["--seeds", "x"], "--seeds 'x'"),
        (["--epochs", "0"], "epochs 0"),
        (["--random", "-1"], "random -1"),
        (["--workers", "0"], "workers 0"),
        (["--only", "mixers"], "did you mean 'mixer'?"),
        (["--only", "random", "--random", "0"], "nobody would stand beside the winner"),
        (["--timm", "resnet19"], "timm: no network 'resnet19'; did you mean 'resnet18'?"),
        (["--timm", "resnet18.a1_in1k"], "no network"),
    ],
)
def test_a_bad_option_is_one_line(cli, run, words, told):
    before = sorted(run.path.rglob("*"))
    code, out, err = cli("compare", "sample", "--runs", run.path.parent, "-q", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert sorted(run.path.rglob("*")) == before


def test_an_unfinished_run_says_how_to_go_on(cli, tmp_path):
    begun(tmp_path)
    code, out, err = cli("compare", "sample", "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert "not finished" in err
    assert "mixnas search --budget 3MFLOPs" in err
    assert err.count("\n") == 1


def test_other_data_and_damaged_files_are_refused(tmp_path):
    run = searched(tmp_path)
    changed = {**run.settings, "found": {"data": "0" * 16, "labels": []}}
    run.write("run.json", {**run.made, "settings": changed})
    with pytest.raises(RunConflict, match="not what it was searched on"):
        compare("sample", runs=tmp_path)
    run.write("run.json", run.made)
    run.write("best.json", "{}")
    with pytest.raises(RunConflict, match=r"best\.json is damaged"):
        compare("sample", runs=tmp_path)


def test_a_dry_run_tells_the_plan_and_writes_nothing(cli, run):
    before = sorted(run.path.rglob("*"))
    words = ("--only", "control,random", "--random", "1", "--seeds", "2", "--epochs", "1")
    code, out, _ = cli("compare", run.path, "--dry-run", "-q", *words)
    assert code == 0
    assert "identity alone; attention alone" in out
    assert "8 of 16 steps (1 epochs), 2 seeds" in out
    assert sorted(run.path.rglob("*")) == before


def test_a_name_that_leads_out_of_the_run_is_refused(run):
    with pytest.raises(InvalidOption, match=r"run name '\.\./x'"):
        compare(run, only=["random"], random=0, dry_run=True, name="../x")


def test_another_recipe_is_another_comparison(run):
    with Run.create(run.path, "taken", {"epochs": 1}):
        pass
    with pytest.raises(RunConflict, match=r"epochs: was 1, now 2.* --name"):
        compare(run, only=["random"], random=0, dry_run=True, epochs=2, name="taken")
    shutil.rmtree(run.path / "taken")


def test_names_are_public():
    assert mixnas.compare is compare
    with pytest.raises(InvalidOption):
        entrants.check(["nobody"], None)


SMALL = ["--only", "control,random", "--random", "1", "--epochs", "1", "--workers", "2"]


def process(folder: Path, *words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", "compare", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_comparison_killed_and_repeated_and_extended(tmp_path):
    """The judge is each training done here, alone and undisturbed."""
    run = searched(tmp_path / "runs")
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", "compare", "sample"]
    job = subprocess.Popen([*line, *SMALL, "--seeds", "1"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    results = run.path / "compare" / "trainings"
    while job.poll() is None and not list(results.glob("*.json")):
        time.sleep(0.02)
    for victim in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
        victim.send_signal(signal.SIGKILL)
    job.wait()
    assert not (run.path / "compare" / "summary.json").exists()

    done = process(tmp_path, "sample", *SMALL, "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "place " in done.stdout
    table = pandas.read_csv(run.path / "compare" / "compare.csv").set_index("key")
    assert list(table.index) == ["winner", "control-identity", "control-attention", "random-1"]
    recipe = json.loads((run.path / "compare" / "run.json").read_text())["settings"]["recipe"]
    listed = json.loads((run.path / "compare" / "entrants.json").read_text())["entrants"]
    for key, row in table.iterrows():
        task = {**a_task(tmp_path, listed[key]["source"]), "recipe": recipe}
        alone = {**train(task), "of": digest(listed[key]["source"])}
        kept = json.loads((results / f"{key}.seed0.json").read_text())
        assert same(alone, kept), key
        assert (row["accuracy"], row["flops"]) == (alone["accuracy"], listed[key]["costs"]["flops"])
    first = {path.name: path.read_bytes() for path in results.glob("*.json")}

    # An entrant that cannot be built is a row with its reason; the rest goes on.
    kept = run.path / "compare" / "entrants.json"
    known = json.loads(kept.read_text())
    lost = {**known["entrants"]["random-1"], "key": "random-2"}
    lost["source"] = {"arch": {"format": 1}}
    known["entrants"]["random-2"] = lost
    kept.write_text(json.dumps(known))
    more = process(tmp_path, "sample", *SMALL, "--random", "2", "--seeds", "2", "--markdown")
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("\n") == 7
    assert "failed" in more.stdout.splitlines()[-1]
    assert {name: (results / name).read_bytes() for name in first} == first
    trainings = pandas.read_csv(run.path / "compare" / "trainings.csv")
    assert list(trainings["seed"]) == [0, 1] * 5
    assert list(trainings["reason"].notna()) == [False] * 8 + [True] * 2
    assert not list(results.glob("*.pt"))

    told = show("sample", tmp_path / "runs")["comparisons"]
    assert [one["name"] for one in told] == ["compare"]
    assert "The winner reaches" in told[0]["sentence"]
