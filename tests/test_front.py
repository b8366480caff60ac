"""The front judged afresh: independent judges of its statistics, answers that survive a kill."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from math import erf, log, prod, sqrt
from random import Random

import numpy as np
import pytest
import torch
from finished_run import begun, finished
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from synthetic_device import Device

import mixnas
from mixnas import mixers, report
from mixnas.asktell import Trial
from mixnas.cost import count
from mixnas.cost.conventions import ARITHMETIC, Conventions, Unsaid, unsaid
from mixnas.cost.limit import Limit
from mixnas.errors import RunConflict
from mixnas.evaluate import Answers, Score, SupernetEvaluator, answers
from mixnas.jobs import front_answers, measuring, whole
from mixnas.jobs.bootstrap import chance_of_less, hypervolume, interval, resampled
from mixnas.jobs.front import (
    MOST,
    TOLD_APART,
    Ground,
    answered,
    front_rows,
    left_out,
    over,
    tell_fronts,
    thinned,
)
from mixnas.jobs.front_answers import Judged, Record, at_hand, begin, judge, read
from mixnas.jobs.settings import Silent
from mixnas.jobs.show import show
from mixnas.network import Network, Part, parts, walk
from mixnas.ranking import proportion
from mixnas.run import Run
from mixnas.space import SearchSpace

SPACE = SearchSpace.load("micro")
IMAGES = 120
TABLE = "latency@table:a<b>[red]$x$"
WHOLE = {"lower": 1.9, "median": 2.0, "upper": 2.1}
GROUND = Ground((Limit("flops", 0, 5_000_000),), 10, 32, 10)


def archs(number, seed=0):
    """Return architectures, none twice."""
    rng = Random(seed)
    found = {}
    while len(found) < number:
        arch = SPACE.sample(rng)
        found[arch.id] = arch
    return list(found.values())


ARCHS = archs(40)


def trial(number, loss, *, beaten_by=None, **costs):
    score = None if loss is None else Score(0.5, loss, IMAGES, 0.01, beaten_by)
    return Trial(number, ARCHS[number], costs, state="complete" if score else "failed", score=score)


def made_up(number=12, seed=0, table=True):
    """Return trials of random costs and losses, and answers of about those losses."""
    rng = np.random.default_rng(seed)
    trials, judged, values = [], {}, {}
    common = rng.exponential(size=IMAGES)
    for place in range(number):
        flops, params = (int(value) for value in rng.integers(10**5, 4 * 10**6, 2))
        loss = 2.5 - flops / 2e6 + rng.random() / 2
        trials.append(trial(place, loss, flops=flops, params=params))
        losses = (loss * common + 0.3 * rng.random(IMAGES)).astype("<f4").astype(np.float64)
        given = Answers(torch.from_numpy(losses < 1), torch.from_numpy(losses))
        judged[ARCHS[place].id] = Judged(given)
        values[ARCHS[place].id] = int(rng.integers(10**6, 9 * 10**6))
    return trials, Record(judged, TABLE if table else None, values if table else {})


@pytest.fixture(scope="module")
def sample():
    """Return trials, the record of their answers, and what they tell, with a table at hand."""
    trials, record = made_up(6)
    finalists = [{"id": one.arch.id, "latency_ms": WHOLE} for one in trials[:1]]
    return trials, record, tell_fronts(trials, record, finalists, GROUND)


places = some.lists(some.tuples(some.integers(0, 12), some.integers(0, 12)), min_size=1, max_size=8)


class TestHypervolume:
    @given(places)
    def test_is_the_share_of_dominated_squares(self, points):
        reference = 10, 9
        points = sorted(points)
        squares = sum(
            any(cost <= x and loss <= y for cost, loss in points)
            for x in range(reference[0])
            for y in range(reference[1])
        )
        found = hypervolume([c for c, _ in points], [loss for _, loss in points], reference)
        assert float(found) == pytest.approx(squares / prod(reference))

    def test_takes_many_draws_at_once(self):
        losses = np.random.default_rng(0).random((50, 6))
        costs = [1, 2, 3, 5, 8, 9]
        together = hypervolume(costs, losses, (10, 1.0))
        assert together == pytest.approx([float(hypervolume(costs, x, (10, 1.0))) for x in losses])


class TestBootstrap:
    losses = np.random.default_rng(1).gamma(1.5, size=(3, 400))

    def test_the_interval_is_scipys(self):
        means = resampled(self.losses, draws=4000)
        for place, own in enumerate(self.losses):
            other = stats.bootstrap(
                (own,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(9)
            ).confidence_interval
            assert interval(means[:, place]) == pytest.approx(tuple(other), abs=0.02)

    def test_networks_are_compared_on_the_same_images(self):
        """A small difference on very different images, which only a paired test can see."""
        hard = np.random.default_rng(2).gamma(1.0, size=900) * 3
        noise = np.random.default_rng(3).normal(0.02, 0.3, size=900)
        means = resampled([hard + noise, hard], draws=4000)
        sure = noise.mean() / (noise.std() / sqrt(900))
        expected = 0.5 * (1 + erf(sure / sqrt(2)))
        assert chance_of_less(means[:, 1], means[:, 0]) == pytest.approx(expected, abs=0.02)
        assert chance_of_less(means[:, 0], means[:, 1]) == pytest.approx(1 - expected, abs=0.02)

    def test_equal_networks_are_even(self):
        means = resampled([self.losses[0], self.losses[0]], draws=50)
        assert chance_of_less(means[:, 0], means[:, 1]) == 0.5

    def test_the_same_draws_each_time(self):
        assert np.array_equal(resampled(self.losses, 20), resampled(self.losses, 20))

    def test_all_right_is_not_certain(self):
        share = proportion(50, 50)
        low, high = share.low, share.high
        assert 0.9 < low < 0.95
        assert high == 1.0


class TestFronts:
    @given(some.lists(some.tuples(*[some.integers(0, 6)] * 3), min_size=1, max_size=20))
    def test_hold_what_no_other_beats(self, figures):
        trials = [trial(i, loss, flops=a, params=b) for i, (loss, a, b) in enumerate(figures)]
        for cost, axis in (("flops", 1), ("params", 2)):
            found = over(trials, cost)
            best = {
                (one[axis], one[0])
                for one in figures
                if not any(
                    (o[axis] <= one[axis] and o[0] <= one[0])
                    and (o[axis], o[0]) != (one[axis], one[0])
                    for o in figures
                )
            }
            assert [(t.costs[cost], t.loss) for t in found] == sorted(best)

    def test_what_a_race_stopped_stays_outside_but_is_told(self):
        trials = [
            trial(0, 1.0, flops=5, params=9),
            trial(1, 1.2, flops=6, params=4, beaten_by=ARCHS[0].id),
            trial(2, None, flops=1, params=1),
        ]
        assert [t.number for t in over(trials, "params")] == [0]
        assert left_out(trials, "params") == 1
        assert left_out(trials, "flops") == 0

    @given(some.lists(some.integers(0, 10**6), min_size=1, max_size=40, unique=True))
    @settings(max_examples=50)
    def test_are_thinned_to_so_many_with_both_ends(self, costs):
        front = [trial(i, 1.0, flops=cost) for i, cost in enumerate(sorted(costs))]
        found = thinned(front, 7)
        assert len(found) == min(7, len(front))
        assert found[0] is front[0]
        assert found[-1] is front[-1]
        assert found == sorted(found, key=lambda one: one.cost)

    def test_are_thinned_evenly_over_cost(self):
        costs = [*range(30), 100, 200, 300]  # a crowd at the cheap end
        front = [trial(i, 1.0, flops=cost) for i, cost in enumerate(costs)]
        assert [one.cost for one in thinned(front, 5)] in (
            [0, 29, 100, 200, 300],
            [0, 28, 100, 200, 300],
        )

    def test_there_is_one_over_each_cost(self):
        trials, record = made_up()
        assert GROUND.costs(record.weighed(trials)) == ["flops", TABLE]
        assert GROUND.costs(trials) == ["flops", "params"]
        memory = replace(GROUND, limits=(Limit("memory", 0, 9),))
        costs = {"memory": 1, "flops": 2, "params": 3, "latency@cpu": 4, "energy": 5}
        assert memory.costs([trial(0, 1.0, **costs)]) == [
            "memory",
            "flops",
            "latency@cpu",
            "energy",
        ]

    def test_the_reference_is_guessing_at_the_budget(self):
        trials, _ = made_up()
        assert GROUND.reference("flops", trials) == (5_000_000, log(10))
        dearest = max(one.costs["params"] for one in trials)
        assert GROUND.reference("params", trials) == (dearest, log(10))


class TestTold:
    def test_points_are_judged_by_their_answers(self, sample):
        _, record, told = sample
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert [front["cost"] for front in told["fronts"]] == ["flops", TABLE]
        for front in told["fronts"]:
            points = front["points"]
            before = None
            for point in points:
                given = record.judged[point["id"]].answers
                again = point["report"]
                assert again["loss"] == pytest.approx(float(given.losses.mean()))
                assert again["loss_low"] < again["loss"] < again["loss_high"]
                assert again["accuracy_low"] < again["accuracy"] < again["accuracy_high"]
                if before is not None:
                    gap = record.judged[before].answers.losses - given.losses
                    sure = float(gap.mean() / (gap.std() / sqrt(IMAGES)))
                    expected = 0.5 * (1 + erf(sure / sqrt(2)))
                    assert point["chance"] == pytest.approx(expected, abs=0.06)
                    assert point["told_apart"] == (point["chance"] >= TOLD_APART)
                before = point["id"]
            assert points[0]["chance"] is points[0]["told_apart"] is None
            volume = front["hypervolume"]
            assert volume["low"] < volume["value"] < volume["high"]
            chosen = np.mean([point["loss"] for point in points])
            assert front["selection"]["rank_loss"] == pytest.approx(chosen)

    def test_the_same_logs_tell_the_same(self, sample):
        trials, record, told = sample
        finalists = [{"id": one.arch.id, "latency_ms": WHOLE} for one in trials[:1]]
        assert tell_fronts(trials, record, finalists, GROUND) == told
        measured = [p["measured"] for p in told["fronts"][1]["points"] if p["measured"]]
        on_front = trials[0] in over(record.weighed(trials), TABLE)
        assert measured == ([{"latency_ms": WHOLE}] if on_front else [])

    def test_the_rows_of_the_front_keep_what_they_had(self, sample):
        trials, _, told = sample
        rows = front_rows(trials, told)
        assert [row["number"] for row in rows] == [one.number for one in over(trials, "flops")]
        for row in rows:
            assert {"id", "loss", "accuracy", "flops", "params", "stem", "depth", "arch"} <= set(
                row
            )
            assert row["report"]["images"] == IMAGES
            assert {"chance", "told_apart", "predicted", "measured"} <= set(row)

    def test_a_point_that_has_not_answered_is_missed(self, sample):
        trials, record, told = sample
        assert answered(trials, record, GROUND)
        last = told["fronts"][0]["points"][-1]["id"]
        short = {key: one for key, one in record.judged.items() if key != last}
        assert not answered(trials, replace(record, judged=short), GROUND)
        assert not answered([], record, GROUND)

    def test_a_table_that_lacks_a_trial_weighs_none(self):
        trials, record = made_up()
        short = replace(record, values=dict(list(record.values.items())[1:]))
        assert short.weighed(trials) == trials

    def test_a_long_front_is_judged_in_part(self):
        costs = range(1000, 1000 + 30)
        trials = [trial(i, 3 - i / 20, flops=c, params=c) for i, c in enumerate(costs)]
        trials = [replace(one, arch=ARCHS[0]) for one in trials]
        _, record = made_up(1, table=False)
        told = tell_fronts(trials, record, [], GROUND)
        assert told["fronts"][0]["of"] == 30
        assert len(told["fronts"][0]["points"]) == MOST
        rows = front_rows(trials, told)
        assert len(rows) == 30
        assert sum("report" in row for row in rows) == MOST


class TestConventions:
    @pytest.mark.parametrize("name", mixers.names())
    def test_flops_stay_as_they_are_counted(self, name):
        part = Part("mixer", (name, 64, ()), (64, 14, 14))
        found = unsaid(part)
        assert found.flops == count.flops(part)
        assert found.transforms <= found.flops

    def test_softmax_is_three_operations_a_weight(self):
        dim, side = 64, 14
        module = mixers.create("attention", dim=dim)
        heads = dim // module.head_width if hasattr(module, "head_width") else None
        found = unsaid(Part("mixer", ("attention", dim, ()), (dim, side, side)))
        weights = side**4
        assert found.softmax % (3 * weights) == 0
        if heads:
            assert found.softmax == 3 * weights * heads

    def test_the_spectrum_of_aff_is_counted_by_hand(self):
        """Two complex sums with a bias, one complex product with the mask; two transforms."""
        dim, side = 64, 16
        found = unsaid(Part("mixer", ("aff", dim, ()), (dim, side, side)))
        numbers = dim * side * (side // 2 + 1)
        assert found.spectrum == (2 + 2 + 4) * numbers
        assert found.transforms == 2 * dim * round(1.25 * side**2 * 8)
        assert found.softmax == 0
        # Two activations and a soft-shrink of real and imaginary parts, at most; a sum with x.
        assert 2 * 2 * numbers <= found.elementwise <= 4 * 2 * numbers + 4 * dim * side**2

    def test_a_network_is_the_sum_of_its_parts(self):
        look_up = Conventions(image=64, classes=10)
        for arch in ARCHS[:2]:
            taken = [p for s in walk(arch) for p in parts(s, image=64, classes=10)]
            assert look_up(arch) == sum(map(unsaid, taken), start=Unsaid())
            assert look_up(arch).flops == count.count_flops(arch, 64, classes=10)
        shares = look_up(ARCHS[0]).shares()
        assert shares["uncounted"] == pytest.approx(
            shares["softmax"] + shares["spectrum"] + shares["elementwise"]
        )
        used = {b.mixer for arch in ARCHS[:2] for s in arch.stages for b in s.blocks}
        assert set(look_up.mixers(ARCHS[:2])) == used

    def test_only_what_is_free_is_told_as_uncounted(self):
        assert set(ARITHMETIC) <= count.FREE

    def test_a_point_that_lives_by_the_convention_is_named(self):
        """Equal in FLOPs but for one, the dearer in what they leave out and the worse falls."""
        look_up = Conventions(image=32, classes=10)
        extra = {arch.id: look_up(arch).uncounted for arch in ARCHS[:4]}
        much, little = (pick(ARCHS[:4], key=lambda a: extra[a.id]) for pick in (max, min))
        flops = {arch.id: look_up(arch).flops for arch in (much, little)}
        gap = extra[much.id] - extra[little.id]
        assert gap > 0
        first, second = (ARCHS.index(arch) for arch in (much, little))
        by_flops = sorted((first, second), key=lambda i: flops[ARCHS[i].id])
        trials = [
            trial(i, 1.0 - 0.1 * place, flops=flops[ARCHS[i].id], params=1)
            for place, i in enumerate(by_flops)
        ]
        _, record = made_up(4, table=False)
        told = tell_fronts(trials, record, [], GROUND)["conventions"]
        total = [flops[ARCHS[i].id] + extra[ARCHS[i].id] for i in by_flops]
        assert [one["stands"] for one in told["points"]] == [total[0] < total[1], True]


class Stops(Silent):
    """Interrupts after so many networks."""

    def __init__(self, after):
        self.after = after

    def advance(self, by, **figures):
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def judging():
    """Return an evaluator of an untrained supernet, and batches to judge on."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = Network(SPACE, 10).eval()
    images = [torch.randn(20, 3, 32, 32, generator=generator) for _ in range(2)]
    labels = [torch.randint(0, 10, (20,), generator=generator) for _ in range(2)]
    evaluator = SupernetEvaluator(network, images[:1], [])
    return evaluator, list(zip(images, labels, strict=True))


class TestAnswers:
    def test_are_kept_as_they_were_given(self, judging, tmp_path):
        evaluator, batches = judging
        run = begun(tmp_path)
        begin(run, [], None)
        record = judge(run, ARCHS[:3], evaluator, batches, {}, Silent())
        assert list(record.judged) == [arch.id for arch in ARCHS[:3]]
        for arch in ARCHS[:3]:
            truth, kept = answers(evaluator.prepared(arch), batches), record.judged[arch.id].answers
            assert torch.equal(truth.right, kept.right)
            assert torch.equal(truth.losses, kept.losses)

    def test_survive_a_stop_and_a_torn_line(self, judging, tmp_path):
        evaluator, batches = judging
        whole, broken = begun(tmp_path, "whole"), begun(tmp_path, "broken")
        begin(whole, [], None)
        judge(whole, ARCHS[:4], evaluator, batches, {}, Silent())
        begin(broken, [], None)
        with pytest.raises(KeyboardInterrupt):
            judge(broken, ARCHS[:4], evaluator, batches, {}, Stops(2))
        path = broken.file(front_answers.LOG)
        assert len(path.read_bytes().splitlines()) == 3
        path.write_bytes(path.read_bytes()[:-10])
        begin(broken, [], None)
        judge(broken, ARCHS[:4], evaluator, batches, {}, Silent())
        assert path.read_bytes() == whole.file(front_answers.LOG).read_bytes()
        before = path.read_bytes()
        judge(broken, ARCHS[:4], evaluator, batches, {}, Stops(1))  # nobody is judged twice
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "change",
        [
            {"images": 7},
            {"losses": "AAAA"},
            {"right": "&"},
            {"losses": None},
            {"judged": ..., "images": ...},
        ],
    )
    def test_a_damaged_log_is_one_line_with_a_cure(self, judging, tmp_path, change):
        evaluator, batches = judging
        run = begun(tmp_path)
        begin(run, [], None)
        judge(run, ARCHS[:1], evaluator, batches, {}, Silent())
        path = run.file(front_answers.LOG)
        header, line = map(json.loads, path.read_text().splitlines())
        line = {k: v for k, v in (line | change).items() if v is not ...}
        path.write_text(f"{json.dumps(header)}\n{json.dumps(line)}\n")
        with pytest.raises(RunConflict, match=r"front\.jsonl is damaged; remove it and repeat"):
            read(run)

    def test_a_run_without_a_log_has_none(self, tmp_path):
        assert not read(begun(tmp_path)).judged

    def test_no_table_is_found_where_nothing_was_measured(self, tmp_path):
        begun(tmp_path)
        assert at_hand(SPACE, tmp_path) is None


@pytest.fixture
def judged_run(tmp_path, sample):
    """Return a finished run with fronts, and what they tell."""
    run, told = finished(tmp_path), deepcopy(sample[2])
    run.write("fronts.json", told)
    return run, told


class TestReport:
    def test_the_fronts_are_drawn_side_by_side(self, judged_run):
        run, told = judged_run
        figure = report.fronts_figure(run)
        assert len(figure.axes) == 2
        for axes, front in zip(figure.axes, told["fronts"], strict=True):
            assert axes.get_xlabel()
            assert len(front["points"]) == sum(
                len(bars.lines[0].get_xdata()) for bars in axes.containers
            )
        drawn = {path.name for path in report.figures(run)}
        assert "fronts.png" in drawn

    @pytest.mark.parametrize("place", [0, 1])
    def test_the_legend_names_what_any_of_them_shows(self, judged_run, place):
        run, told = judged_run
        for front in told["fronts"]:
            for point in front["points"]:
                point["told_apart"] = True
        told["fronts"][place]["points"][-1]["told_apart"] = False
        run.write("fronts.json", told)
        (legend,) = report.fronts_figure(run).legends
        named = [text.get_text() for text in legend.get_texts()]
        assert "not told apart from the cheaper" in named
        assert len(named) == len(set(named))

    def test_the_front_is_told_once_and_as_it_was_judged(self, judged_run):
        run, _ = judged_run
        report.figures(run)
        page = report.html(run).read_text()
        front = page[page.index("<h2>Front</h2>") : page.index("<h2>Fronts, judged afresh</h2>")]
        assert "<table" not in front

    def test_the_page_tells_of_them_and_trusts_nothing(self, judged_run):
        run, told = judged_run
        report.figures(run)
        page = report.html(run).read_text()
        assert "Fronts, judged afresh" in page
        assert "a<b>" not in page
        assert "a&lt;b&gt;" in page
        for text in report.HOW_TO_READ_FRONTS:
            assert text.split(":")[0].replace("'", "&#x27;") in page
        for point in told["fronts"][0]["points"]:
            assert f"{point['report']['loss']:.4f}" in page

    def test_what_was_chosen_and_what_was_judged_are_both_told(self, judged_run):
        _, told = judged_run
        rows = dict(report.fronts_rows(told))
        volume = told["fronts"][0]["hypervolume"]
        assert f"{volume['value']:.4f}" in rows["over FLOPs: hypervolume"]
        assert "reference point 5 MFLOPs and a loss of 2.303" in rows["over FLOPs: hypervolume"]
        assert f"on {IMAGES} others" in rows["over FLOPs: chosen"]
        assert "over latency" not in rows
        assert "Fourier" in rows["beside FLOPs"]

    def test_without_a_latency_the_cure_is_named(self):
        trials, record = made_up(1, table=False)
        rows = dict(report.fronts_rows(tell_fronts(trials, record, [], GROUND)))
        assert "mixnas measure" in rows["over latency"]

    def test_cells_say_who_is_not_told_apart(self, judged_run):
        _, told = judged_run
        front = told["fronts"][0]
        first, *others = front["points"]
        assert others, "the made-up front must have several points"
        others[0] |= {"chance": 0.41, "told_apart": False, "predicted": {}}
        others[-1] |= {"chance": 1.0, "told_apart": True} if len(others) > 1 else {}
        for point in front["points"]:
            point["measured"] = {}
        first["predicted"] = {"latency_ms@cpu": {"value": 2.0, "low": 1.5, "high": 2.5}}
        first["measured"] = {"latency_ms@cpu": {"median": 2.1, "lower": 2.0, "upper": 2.2}}
        rows = list(report.front_cells(front, first["number"], told["told_apart"]))
        heads = report.front_heads(front)
        assert {len(row) for row in rows} == {len(heads)}
        assert heads[-2:] == ["latency cpu, predicted", "latency cpu, measured"]
        assert rows[0][0].endswith(" *")
        assert rows[0][-2:] == ["2 ms (1.5 ms to 2.5 ms)", "2.1 ms (2 ms to 2.2 ms)"]
        assert rows[1][5:] == ["41%, not told apart", "-", "-"]
        if len(others) > 1:
            assert rows[-1][5] == ">99%"
        others[0] |= {"chance": 0.004}
        rows = list(report.front_cells(front, None, 0.8))
        assert rows[1][5] == "<1%, worse"

    def test_it_is_shown(self, judged_run, cli):
        run, told = judged_run
        assert show(run)["fronts"] == told
        code, out, _ = cli("show", run.name, "--runs", run.path.parent)
        assert code == 0
        assert "over FLOPs: hypervolume" in out
        assert "a<b>[red]$x$" in out
        code, out, _ = cli("show", run.name, "--runs", run.path.parent, "--json")
        assert json.loads(out)["fronts"] == told

    def test_a_run_of_long_ago_is_shown_as_it_was(self, tmp_path, cli):
        run = finished(tmp_path)
        assert "fronts" not in show(run)
        code, out, _ = cli("show", run.name, "--runs", tmp_path)
        assert code == 0
        assert "The front: the least loss at each cost" in out
        assert isinstance(Run.open(run.path), Run)


@pytest.fixture
def device(monkeypatch):
    found = Device()
    for module in (measuring, whole):
        monkeypatch.setattr(module, "stopwatch", found)
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_search_judges_its_fronts_over_a_table_at_hand(device, tmp_path):
    small = {"space": "micro", "image": 32, "runs": tmp_path, "device": "cpu"}
    mixnas.measure(**small, networks=40, threads=1, name="tiny")
    options = {**small, "epochs": 1, "trials": 10, "workers": 1, "name": "found"}
    run = mixnas.search("8MFLOPs", **options)
    told = run.read("fronts.json")
    flops, latency = told["fronts"]
    assert [flops["cost"], latency["cost"]] == ["flops", "latency@table:tiny"]
    for point in (*flops["points"], *latency["points"]):
        span = point["predicted"]["latency_ms@table:tiny"]
        assert 0 < span["low"] <= span["value"] <= span["high"]
    finalists = {entry["id"]: entry for entry in run.read("finalists.json")}
    for point in flops["points"]:
        if point["id"] in finalists:
            whole_network = finalists[point["id"]]["latency_ms"]
            assert point["measured"]["latency_ms"] == whole_network
            assert point["report"]["loss"] == finalists[point["id"]]["report"]["loss"]
    assert [row["number"] for row in run.read("front.json")] == [
        point["number"] for point in flops["points"]
    ]
    assert told["images"] == flops["points"][0]["report"]["images"]
    kept = {name: run.file(name).read_bytes() for name in ("fronts.json", "front.json")}
    for name in kept:
        run.file(name).unlink()
    shutil.rmtree(tmp_path / "tiny")  # what the trials were weighed by is in the log
    again = mixnas.search("8MFLOPs", **options)
    assert {name: again.file(name).read_bytes() for name in kept} == kept
    assert "over latency table:tiny: hypervolume" in dict(report.fronts_rows(told))
