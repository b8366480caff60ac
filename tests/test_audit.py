"""Audits: who is drawn, what is said and when, the page, the command, kills and extensions."""

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas
import psutil
import pytest
from finished_run import SETTINGS, begun, finished
from rich.console import Console
from safetensors.torch import save
from scipy import stats

import mixnas
from mixnas import data as datasets
from mixnas import report, screen
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable
from mixnas.errors import BudgetUnreachable, InvalidOption, RunConflict
from mixnas.jobs import audit_draws
from mixnas.jobs.audit import audit, trained_at
from mixnas.jobs.audit_axes import by_axis, misplaced
from mixnas.jobs.audit_before import Wanted, with_kept
from mixnas.jobs.audit_draws import Drawer, Span, halves
from mixnas.jobs.audit_rows import placed, rows, traits
from mixnas.jobs.audit_verdict import SHARES, WORDS, findings, trusted
from mixnas.jobs.audited import audited, audits, command
from mixnas.jobs.entrants import Entrant
from mixnas.jobs.problem import Plan, reopen
from mixnas.jobs.settings import Silent
from mixnas.jobs.show import show
from mixnas.jobs.stages import supernet
from mixnas.jobs.trainings import train
from mixnas.ranking import ENOUGH, proportion
from mixnas.run import Run
from mixnas.space import SearchSpace


def searched(root: Path, budget: str = "4MFLOPs") -> Run:
    """A finished search of digits with an untrained supernet, its winner drawn at random."""
    settings = replace(SETTINGS, budget=(budget,))
    run = finished(root, settings=settings)
    data = datasets.load("digits", seed=settings.seed)
    found = {"data": data.fingerprint, "labels": list(data.labels)}
    run.write("run.json", {**run.made, "settings": {**run.settings, "found": found}})
    run = Run.open(run.path)
    problem = reopen(run, Silent())
    run.write("best.json", problem.feasible.greatest().to_json() + "\n")
    run.write("plan.json", Plan(16, 1.0, 1, 1, 1, 0.1, 0.1, 1, 1).to_dict())
    state = problem.network().state_dict()
    run.write("supernet.safetensors", save({k: v.contiguous() for k, v in state.items()}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def problem(run):
    return reopen(run, Silent())


def drawn(problem, across, inside, known=None):
    winner = problem.feasible.greatest()
    made = audit_draws.makers(problem, winner, across, inside, known or {})
    return {key: make() for key, make in made.items()}


def arch_of(entrant) -> mixnas.Architecture:
    return mixnas.Architecture.from_dict(entrant.source["arch"])


# Who is drawn


def test_the_sequence_of_halves_fills_the_span_ever_finer():
    assert [halves(n) for n in range(1, 8)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    for number in (24, 100):
        places = sorted(halves(n) for n in range(1, number + 1))
        assert np.diff([0, *places, 1]).max() <= 2 / number


def test_draws_are_feasible_different_and_spread_over_the_costs(problem):
    found = drawn(problem, 24, 8)
    assert len({arch_of(entrant).id for entrant in found.values()}) == 33
    span = Span(problem)
    assert span.cost == "flops"
    for entrant in found.values():
        assert arch_of(entrant) in problem.feasible
        assert entrant.costs["flops"] <= 4_000_000
    one = found["inside-1"]
    assert mixnas.count_flops(arch_of(one), 64, classes=10) == one.costs["flops"]
    across = sorted(e.costs["flops"] for k, e in found.items() if k.startswith("across"))
    shares = (np.array(across) - span.least) / (span.greatest - span.least)
    assert stats.kstest(shares, "uniform").statistic < 0.1
    inside = [e.costs["flops"] for k, e in found.items() if k.startswith("inside")]
    assert all(0.9 * span.greatest <= flops <= span.greatest for flops in inside)


def test_more_draws_keep_the_earlier_ones_and_a_second_call_draws_the_same(problem):
    first = drawn(problem, 5, 4)
    assert drawn(problem, 5, 4) == first
    known = {key: arch_of(entrant).id for key, entrant in first.items()}
    winner = problem.feasible.greatest()
    made = audit_draws.makers(problem, winner, 7, 5, known)
    fresh = {arch_of(make()).id for key, make in made.items() if key not in known}
    assert len(fresh) == 3
    assert not fresh & set(known.values())


def test_a_space_that_runs_out_says_so(problem):
    space = SearchSpace.load("tabular").only_mixers(("aff",))
    limits = (Limit.parse("100GFLOPs"),)
    tables = {"flops": CostTable(count.flops, image=16, classes=10)}
    small = replace(
        problem,
        settings=replace(SETTINGS, space="tabular"),
        space=space,
        limits=limits,
        tables=tables,
        feasible=Feasible(space, limits, tables),
    )
    drawer = Drawer(small, ())
    every = {drawer.across(number).id for number in range(small.feasible.count())}
    assert every == {arch.id for arch in space.architectures()}
    with pytest.raises(BudgetUnreachable, match="no further architecture lies within the budget"):
        drawer.across(len(every))
    with pytest.raises(BudgetUnreachable, match="within 10 % of the dearest feasible cost"):
        drawer.inside(0)


# What is said


def a_row(number: int, predicted: float, losses, group="across", **more) -> dict:
    arch = SearchSpace.load("micro").sample(Random(number))
    spread = None if losses is None or len(losses) < 2 else float(np.std(losses, ddof=1))
    return {
        "key": f"{group}-{number}",
        "group": group,
        "id": arch.id,
        "inside": group != "across",
        "load": (0.5 if group == "across" else 0.95) + number / 10_000,
        "flops": 3_000_000 + number,
        "params": 1000,
        "supernet_loss": predicted,
        "supernet_accuracy": 0.5,
        "losses": losses,
        "accuracies": losses and [1 - loss / 10 for loss in losses],
        "loss": None if losses is None else float(np.mean(losses)),
        "loss_spread": spread,
        "accuracy": None if losses is None else 1 - float(np.mean(losses)) / 10,
        "accuracy_spread": spread,
        **traits(arch),
        **more,
    }


def made_up(across=24, inside=24, error=0.3, inner_error=0.3, noise=0.2, seeds=2, seed=0):
    """Networks of normal worth; the supernet's error, and each training's noise."""
    rng = np.random.default_rng(seed)
    found = []
    for group, number, wrong in (("across", across, error), ("inside", inside, inner_error)):
        for place in range(number):
            worth = rng.normal()
            losses = [2 + worth + noise * rng.normal() for _ in range(seeds)]
            found.append(a_row(place, 2 + worth + wrong * rng.normal(), losses, group))
    return [a_row(999, -1.0, [-3.0] * seeds, "winner"), *found]


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, ("yes", "yes"), "The ranking may be trusted: tau 0."),
        ({"inner_error": 50.0}, ("yes", "no"), "across the budget, but not inside it"),
        ({"error": 50.0}, ("no", "yes"), "inside the budget, but not across it"),
        ({"error": 50.0, "inner_error": 50.0}, ("no", "no"), "may not be trusted"),
        ({"seeds": 1}, ("unknown", "unknown"), "give more --seeds"),
        ({"noise": 99.0}, ("unknown", "unknown"), "cannot be judged"),
        ({"inside": 0}, ("yes", "unknown"), "inside it nothing can be said"),
        ({"inside": 7, "inner_error": 0.0}, ("yes", "unknown"), "(7 networks; 8 are needed)"),
    ],
    ids=str,
)
def test_the_sentence_follows_the_rule(changes, verdict, words):
    found = findings(made_up(**changes), changes.get("seeds", 2))
    assert (found["trusted"]["overall"], found["trusted"]["inside"]) == verdict
    assert words in found["sentence"]
    json.dumps(found, allow_nan=False)


def test_the_sentence_says_where_cost_alone_ranks_better():
    rows = made_up(error=3.0)
    assert "By cost alone" not in findings(made_up(), 2)["sentence"]
    for row in rows:
        if row["group"] == "across":
            row["flops"] = round(1e6 - 1e5 * row["loss"])
            row["load"] = row["flops"] / 1e6
    told = findings(rows, 2)["sentence"]
    assert "By cost alone, the dearer the better, it is truer across the budget (tau 1.00)." in told
    few = [row for row in rows if row["group"] == "across"][: ENOUGH - 1]
    assert "By cost alone" not in findings(few, 2)["sentence"]


def test_the_rule_at_its_edges():
    def figures(low, value, top=(0.5, 0.6)):
        ceiling = None if top is None else {"low": top[0], "value": top[1]}
        return {"networks": 8, "tau": {"low": low, "value": value}, "ceiling": ceiling}

    assert SHARES == {"overall": 0.7, "inside": 0.5}
    for share, enough in ((0.7, 0.42), (0.5, 0.3)):
        assert trusted(figures(0.01, enough), share) == "yes"
        assert trusted(figures(0.01, enough - 0.01), share) == "no"
        assert trusted(figures(0.0, 0.9), share) == "no"
        assert trusted(figures(0.1, 0.9, top=None), share) == "unknown"
        assert trusted(figures(0.1, 0.9, top=(-0.1, 0.2)), share) == "unknown"
        assert trusted({"tau": None, "ceiling": None}, share) == trusted(None, share) == "unknown"
        assert trusted(figures(0.01, enough) | {"networks": 7}, share) == "unknown"
    assert set(WORDS) == {
        (a, b) for a in ("yes", "no", "unknown") for b in ("yes", "no", "unknown")
    }


def test_the_interval_of_the_winners_share_knows_the_noise_of_its_own_trainings():
    def share(noise):
        losses = [2 + noise, 2 - noise]
        middle = a_row(999, -1.0, losses, "winner")
        others = [
            a_row(n, 0.0, [1.5 + n / 24 + noise, 1.5 + n / 24 - noise], "across") for n in range(24)
        ]
        return findings([middle, *others], 2)["winner"]["across"]

    quiet, noisy = share(1e-6), share(0.5)
    assert noisy["high"] - noisy["low"] > quiet["high"] - quiet["low"] + 0.1
    for told in (quiet, noisy):  # never narrower than Wilson's
        wilson = proportion(told["beaten"], told["of"])
        assert told["low"] <= wilson.low
        assert told["high"] >= wilson.high


def test_figures_are_of_the_drawn_networks_and_the_winner_stands_apart():
    whole = made_up()
    found = findings(whole, 2)
    across = [row for row in whole if row["group"] == "across"]
    assert found["overall"]["networks"] == 24
    judge = stats.kendalltau(
        [row["supernet_loss"] for row in across], [np.mean(row["losses"]) for row in across]
    )
    assert found["overall"]["tau"]["value"] == pytest.approx(judge.statistic)
    best = min(across, key=lambda row: row["supernet_loss"])
    least = min(np.mean(row["losses"]) for row in across)
    assert found["overall"]["regret_1"] == pytest.approx(best["loss"] - least)
    assert (found["winner"]["across"]["beaten"], found["winner"]["across"]["of"]) == (24, 24)
    assert found["winner"]["inside"]["low"] < 0.9 < found["winner"]["inside"]["value"]


def test_inside_takes_in_what_was_drawn_across_and_lies_there():
    whole = made_up(inside=4)
    whole[1]["inside"] = True
    found = findings(whole, 2)
    assert found["inside"]["networks"] == 5
    assert found["overall"]["networks"] == 24


def test_a_network_that_failed_is_left_out_and_told():
    whole = made_up()
    whole[3] = a_row(2, 1.0, None)
    found = findings(whole, 2)
    assert found["overall"]["networks"] == 23
    told = {row["key"]: row for row in placed(whole)}
    assert told["across-2"]["place"] is None
    assert {row["place"] for row in told.values() if row["place"]} == set(range(1, 49))


def test_rows_need_every_seed_and_say_what_is_inside(problem):
    archs = {"winner": problem.feasible.greatest(), "across-1": problem.feasible.least()}
    entrants = [
        Entrant(key, "random", key, {"arch": arch.to_dict()}, _costs(problem, arch))
        for key, arch in archs.items()
    ]
    scores = {key: {"loss": 1.0, "accuracy": 0.5} for key in archs}
    done = {"hits": "1", "loss": 2.0, "accuracy": 0.25}
    results = {
        "winner": {0: done, 1: done | {"loss": 3.0}},
        "across-1": {0: done, 1: {"reason": "x"}},
    }
    best, cheap = rows(entrants, scores, results, 2, Span(problem))
    assert (best["losses"], best["loss"], best["accuracy"]) == ([2.0, 3.0], 2.5, 0.25)
    assert best["loss_spread"] == pytest.approx(np.std([2, 3], ddof=1))
    assert (best["inside"], best["load"], cheap["inside"]) == (True, 1.0, False)
    assert cheap["losses"] is None


def _costs(problem, arch):
    return {name: table(arch) for name, table in problem.tables.items()}


def test_traits_are_read_off_the_architecture(problem):
    for entrant in drawn(problem, 6, 0).values():
        arch = arch_of(entrant)
        found = traits(arch)
        blocks = [block for stage in arch.stages for block in stage.blocks]
        assert found["depth"] == len(blocks)
        assert sum(found["mixers"].values()) == pytest.approx(1)
        assert found["mixers"].get("aff", 0) == np.mean([b.mixer == "aff" for b in blocks])
        wider = replace(arch, stages=tuple(replace(s, width=2 * s.width) for s in arch.stages))
        assert traits(wider)["width"] == pytest.approx(found["width"] + 1)


def test_an_overrated_mixer_and_stem_are_named():
    rng = np.random.default_rng(5)
    found = []
    for number in range(48):
        row = a_row(number, 0.0, [rng.normal(), rng.normal()])
        aff = float(number % 2)
        row |= {"mixers": {"aff": aff, "hilo": 1 - aff}, "supernet_loss": row["loss"] - 1.5 * aff}
        found.append(row)
    axes, values = by_axis(found)
    told = {row["value"]: row for row in values}
    assert told["aff"]["places"]["value"] > 5
    assert told["aff"]["corrected"] < 0.05
    assert min(axes, key=lambda row: row["chance"])["axis"] == "mixer"
    assert all(row["corrected"] >= row["chance"] for row in [*axes, *values])
    text = misplaced(values, 48)
    assert f"overrates aff by {told['aff']['places']['value']:.1f} places" in text
    assert "underrates hilo by" in text
    assert "beyond chance" in misplaced([], 48)


# The page


def a_summary(**changes) -> dict:
    whole = made_up(**changes)
    whole[1]["mixers"] = {"<b>aff": 1.0}
    seeds = changes.get("seeds", 2)
    return {
        "of": "run <i>",
        **findings(whole, seeds),
        "rule": "the rule",
        "rows": placed(whole),
        "absent": {"inside-9": "it <u>lacks"},
        "failed": {},
        "data": "digits",
        "labels": 10,
        "budget": ["4MFLOPs"],
        "cost": "flops",
        "image": 64,
        "classes": 10,
        "ranked": 32,
        "trained": 64,
        "rank_images": 180,
        "images": 179,
        "seeds": seeds,
        "epochs": 1,
        "steps": 16,
        "recipe": {"rate": 1e-3, "betas": None, "ema": 0.0, "optimizer": "adamw"},
        "files": {},
    }


@pytest.mark.parametrize("changes", [{}, {"seeds": 1}, {"across": 4, "inside": 0}], ids=str)
def test_page_and_screen_tell_everything_escaped(tmp_path, changes):
    run = Run.create(tmp_path, "page", {})
    run.write("summary.json", summary := a_summary(**changes))
    report.audited_figure(run)
    page = report.audited_html(run).read_text()
    assert run.file(report.AUDITED).read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in page
    for raw in ("<b>", "<i>", "<u>"):
        assert raw not in page
    for text in ("&lt;b&gt;aff", "it &lt;u&gt;lacks", "Kendall&#x27;s tau", "rate 0.001"):
        assert text in page
    assert "betas" not in page
    out = Console(width=200, record=True, file=io.StringIO())
    out.print(screen.audited(summary))
    text = out.export_text()
    assert summary["sentence"][:60] in text
    assert "tau of a ranking by cost alone" in text
    assert "beats networks spread over the budget" in text
    assert ("may be trusted" in text) == ("yes" in summary["trusted"].values())
    for left in ("rho", "one drawn blindly", "<b>aff", "explains"):  # the page has the room
        assert left not in text
    run.close()


def test_a_damaged_summary_is_one_clear_error(tmp_path):
    run = Run.create(tmp_path, "page", {})
    for broken in ({}, {"values": 3}, {"values": [], "rows": [{}]}):
        run.write("summary.json", broken)
        with pytest.raises(RunConflict, match="damaged"):
            report.audited_figure(run)
        with pytest.raises(RunConflict, match="damaged"):
            report.audited_html(run)
    run.close()


# The command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "0"], "seeds 0: a whole number of at least 1"),
        (["--architectures", "x"], "--architectures 'x'"),
        (["--architectures", "3", "--inside", "0"], "at least 4"),
        (["--inside", "-1"], "inside -1"),
        (["--architectures", "10001"], "architectures 10001: give at most 10000"),
        (["--inside", "3000000"], "inside 3000000: give at most 10000"),
        (["--epochs", "0"], "epochs 0"),
        (["--resolution", "8"], "resolution 8"),
        (["--resolution", "100000"], "resolution 100000: give at most 1024"),
        (["--workers", "0"], "workers 0"),
        (["--name", "../x"], "run name '../x'"),
    ],
)
def test_a_bad_option_is_one_line(cli, run, words, told):
    before = sorted(run.path.rglob("*"))
    code, out, err = cli("audit", "sample", "--runs", run.path.parent, "-q", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert sorted(run.path.rglob("*")) == before


def test_a_run_without_winner_or_supernet_is_refused_in_one_line(cli, run, tmp_path):
    begun(tmp_path / "unfinished")
    code, out, err = cli("audit", "sample", "--runs", tmp_path / "unfinished")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no winner yet" in err
    bare = Run.open(shutil.copytree(run.path, tmp_path / "bare" / "sample"))
    bare.file("supernet.safetensors").write_bytes(b"junk")
    code, out, err = cli("audit", "sample", "--runs", tmp_path / "bare", "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "supernet.safetensors" in err
    assert not bare.file("audit").exists()


def test_a_dry_run_tells_the_plan_and_writes_nothing(cli, run):
    before = sorted(run.path.rglob("*"))
    words = ("--architectures", "5", "--inside", "2", "--seeds", "3", "--resolution", "48")
    code, out, _ = cli("audit", run.path, "--dry-run", "-q", "--workers", "1", *words)
    assert code == 0
    assert "5 with costs (flops) spread over the budget, 2 within 10 % of the dearest" in out
    assert "by the supernet at 32 px, trained alone at 48 px" in out
    assert "24 of 16 steps (1 epochs), 3 seeds" in out
    code, out, _ = cli("audit", run.path, "--dry-run", "--json", *words)
    plan = json.loads(out)
    assert (plan["across"], plan["inside"], plan["trained"], plan["seeds"]) == (5, 2, 48, 3)
    assert len(plan["pace"]) == 8
    assert all(pace > 0 for pace in plan["pace"].values())
    assert sorted(run.path.rglob("*")) == before


def test_another_size_has_the_same_images_in_the_same_splits(problem):
    larger = trained_at(problem, 48)
    assert larger.data.image == 48
    for split in ("train", "rank", "report", "test"):
        assert larger.data.indices(split) == problem.data.indices(split)
    assert trained_at(problem, None) is trained_at(problem, 32) is problem


def test_another_recipe_or_a_folder_of_something_else_is_refused(run):
    for made, told in (
        ({"job": "audit", "epochs": 1}, r"epochs: was 1, now 2.* --name"),
        ({"job": "compare", "epochs": 2}, r"by mixnas compare, not by mixnas audit; .* --name"),
    ):
        with Run.create(run.path, "taken", made):
            pass
        with pytest.raises(RunConflict, match=told):
            audit(run, epochs=2, name="taken", dry_run=True)
        shutil.rmtree(run.file("taken"))


def kept_audit(run: Run, name: str, *keys: str, seeds: int = 3, summary: bool = True) -> Run:
    """An audit that is done with some architectures, or whose trainings alone are there."""
    winner, recipe = json.loads(run.file("best.json").read_text()), {}
    settings = {"job": "audit", "epochs": 1, "winner": "x", "recipe": recipe, "source": winner}
    with Run.create(run.path, name, settings) as kept:
        if summary:
            rows = [{"key": key} for key in ("winner", *keys)]
            kept.write("summary.json", {"seeds": seeds, "rows": rows})
        for key in keys:
            for seed in range(seeds):
                kept.write(f"trainings/{key}.seed{seed}.json", {})
        return kept


def test_the_command_that_goes_on_asks_for_what_was_asked(run):
    kept = kept_audit(run, "asked", summary=False)
    assert "--seeds" not in command(kept)  # a folder of long ago
    kept.write("asked.json", {"architectures": 12, "inside": 9, "seeds": 1})
    words = shlex.split(command(kept))
    assert words[:2] == ["mixnas", "audit"]
    told = dict(zip(words[3::2], words[4::2], strict=True))
    numbers = {"--architectures": "12", "--inside": "9", "--seeds": "1"}
    assert told.items() >= {"--name": "asked", "--epochs": "1", **numbers}.items()
    kept.write("asked.json", [12, 9, 1])
    with pytest.raises(RunConflict, match=r"asked\.json"):
        command(kept)
    shutil.rmtree(kept.path)


def test_what_an_audit_rests_on_never_shrinks(run):
    keys = ("across-1", "across-2", "across-3", "inside-1", "inside-2")
    kept = kept_audit(run, "before", *keys, seeds=3)
    assert with_kept(Wanted(1, 1, 1), None) == Wanted(1, 1, 1)
    assert with_kept(Wanted(1, 1, 1), kept) == Wanted(3, 2, 3)
    assert with_kept(Wanted(0, 0, 1), kept) == Wanted(3, 2, 3)
    assert with_kept(Wanted(8, 1, 2), kept) == Wanted(8, 2, 3)
    assert with_kept(Wanted(1, 9, 4), kept) == Wanted(3, 9, 4)
    # Trained, but told by no summary: a call was killed. Those of too few seeds are not in it.
    kept.file("summary.json").unlink()
    assert with_kept(Wanted(1, 1, 2), kept) == Wanted(3, 2, 2)
    kept.file("trainings/across-2.seed1.json").unlink()
    assert with_kept(Wanted(1, 1, 2), kept) == Wanted(1, 2, 2)
    for broken in ({}, {"seeds": "x", "rows": []}, {"seeds": 2, "rows": [1]}):
        kept.write("summary.json", broken)
        with pytest.raises(RunConflict, match="damaged"):
            with_kept(Wanted(1, 1, 1), kept)
    shutil.rmtree(kept.path)


@pytest.mark.parametrize("job", ["audit", "compare"])
@pytest.mark.parametrize("name", ["replay", "picks", "figures", "explain", "equal", "retrain"])
def test_a_name_that_a_run_keeps_for_something_else_is_refused(cli, run, job, name):
    for words in ((), ("--dry-run",)):
        code, out, err = cli(job, run.path, "--name", name, "-q", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"--name {name}" in err
        assert f"{job}-2" in err
    assert not run.file(name).joinpath("run.json").exists()


@pytest.mark.parametrize("job", ["audit", "compare"])
def test_an_audit_of_an_audit_says_that_the_search_is_wanted(cli, run, job):
    kept = kept_audit(run, "inner", "across-1")
    code, out, err = cli(job, kept.path, "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'inner' is an audit of the run 'sample', not a search" in err
    assert f"mixnas {job} {run.path}" in err
    shutil.rmtree(kept.path)


def test_show_of_an_audit_shows_it_and_the_runs_page_names_it(cli, run, tmp_path):
    copy = Run.open(shutil.copytree(run.path, tmp_path / "runs" / "sample"))
    kept = kept_audit(copy, "audit", summary=False)
    code, out, _ = cli("show", "sample/audit", "--runs", copy.path.parent)
    assert code == 0
    assert "not finished" in out
    assert f"mixnas audit {copy.path}" in " ".join(out.split())
    summary = a_summary(seeds=2)
    kept.write("summary.json", summary)
    report.audited_figure(kept)
    report.audited_html(kept)
    code, out, _ = cli("show", "sample/audit", "--runs", copy.path.parent)
    assert code == 0
    assert summary["sentence"][:40] in " ".join(out.split())
    code, out, _ = cli("show", "sample/audit", "--runs", copy.path.parent, "--json")
    told = json.loads(out)
    assert (told["job"], told["state"], told["sentence"]) == (
        "audit", "finished", summary["sentence"]
    )  # fmt: skip
    assert told["again"] == f"mixnas show {kept.path}"
    assert show("sample", copy.path.parent)["audits"][0]["page"] == str(kept.file("audit.html"))
    page = report.html(copy).read_text()
    assert 'href="audit/audit.html"' in page
    assert summary["sentence"][:40] in page
    assert "Audited" not in report.html(run).read_text()


def test_names_are_public():
    assert mixnas.audit is audit
    with pytest.raises(InvalidOption):
        audit("nothing", architectures=-1)


def process(folder: Path, *words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", "audit", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


SMALL = ["sample", "--epochs", "1", "--workers", "2"]


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(500)
def test_an_audit_killed_and_repeated_and_extended(tmp_path):
    """The judges: each training done here, alone; each score by the evaluator of the search."""
    run = searched(tmp_path / "runs")
    few = [*SMALL, "--architectures", "4", "--inside", "1", "--seeds", "1"]
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", "audit", *few]
    job = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL)
    results = run.path / "audit" / "trainings"
    while job.poll() is None and not list(results.glob("*.json")):
        time.sleep(0.02)
    for victim in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
        victim.send_signal(signal.SIGKILL)
    job.wait()
    assert not (run.path / "audit" / "summary.json").exists()
    assert list(audits(run)) == []

    done = process(tmp_path, *few)
    assert done.returncode == 0, done.stderr
    assert "cannot be judged" in done.stdout
    first = {path.name: path.read_bytes() for path in results.glob("*.json")}
    assert len(first) == 6

    more = process(tmp_path, *SMALL, "--architectures", "5", "--inside", "4", "--json")
    assert more.returncode == 0, more.stderr
    assert {name: (results / name).read_bytes() for name in first} == first
    summary = json.loads(more.stdout)
    kept = Run.open(run.path / "audit")
    paths = ("folder", "files")  # as the command was told them, from its own folder
    same = {key: value for key, value in audited(kept).items() if key not in paths}
    assert {key: value for key, value in summary.items() if key not in paths} == same
    assert set(summary["files"]) == {
        "audit.csv", "trainings.csv", "entrants.json", "figures/audit.png", "audit.html"
    }  # fmt: skip
    told = show("sample", tmp_path / "runs")
    assert [one["sentence"] for one in told["audits"]] == [summary["sentence"]]
    assert told["comparisons"] == []
    text = Console(width=400, record=True, file=io.StringIO())
    text.print(screen.found(told))
    assert summary["sentence"] in text.export_text()
    assert not list(results.glob("*.pt"))

    table = pandas.read_csv(kept.file("audit.csv")).set_index("key")
    assert len(table) == 10
    problem = reopen(run, Silent())
    evaluator = problem.evaluator(supernet(problem, run))
    listed = kept.read("entrants.json")["entrants"]
    recipe = kept.settings["recipe"]
    for key, row in list(table.iterrows())[:3]:
        arch = mixnas.Architecture.from_dict(listed[key]["source"]["arch"])
        assert row["supernet_loss"] == pytest.approx(evaluator(arch).loss, rel=1e-4)
        task = {
            "source": listed[key]["source"],
            "seed": 1,
            "data": ["digits", problem.settings.seed, 32],
            "recipe": recipe,
            "device": "cpu",
            "state": str(tmp_path / "state.pt"),
        }
        alone = train(task)
        (tmp_path / "state.pt").unlink(missing_ok=True)
        assert row["loss_seed1"] == pytest.approx(alone["loss"], abs=1e-12)
        assert row["loss"] == pytest.approx((row["loss_seed0"] + row["loss_seed1"]) / 2)
