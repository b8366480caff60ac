"""What a sweep is asked for: products, files, names, and one line for each mistake."""

import pytest

from mixnas.errors import InvalidBudget, InvalidOption, MixnasError
from mixnas.jobs.settings import Settings
from mixnas.jobs.sweep_settings import SweepSettings, crossed, named

COMMON = Settings(budget=(), trials=30)


def test_every_budget_with_every_seed_and_space():
    asked = SweepSettings((("1GFLOPs",), ("1.5GFLOPs", "20ms")), (3, 4), ("micro", "edge"), COMMON)
    asked.check()
    searches = asked.searches()
    assert len(searches) == 8
    assert len(set(searches)) == 8
    assert {settings.supernet_seed for settings in searches} == {3}
    assert {settings.trials for settings in searches} == {30}
    first = [(one.space, one.seed, one.budget) for one in searches[:3]]
    assert first == [
        ("micro", 3, ("1GFLOPs",)),
        ("micro", 3, ("1.5GFLOPs", "20ms")),
        ("micro", 4, ("1GFLOPs",)),
    ]


def test_a_budget_is_one_however_it_is_written():
    asked = SweepSettings((("0.5GFLOPs",), ("1000MFLOPs", "20 ms@CPU")), (0,), ("micro",), COMMON)
    kept = SweepSettings.of(asked.to_dict())
    assert asked.searches() == kept.searches()
    assert [named(one) for one in asked.searches()] == [
        "micro-500MFLOPs-seed0",
        "micro-1GFLOPs-20ms@cpu-seed0",
    ]


def test_what_is_kept_is_read_again():
    asked = SweepSettings((("1GFLOPs",), ("1-1.5GFLOPs", "20ms@cpu")), (3, 4), ("micro",), COMMON)
    assert SweepSettings.of(asked.to_dict()) == asked


def test_devices_are_for_measured_limits_that_name_none():
    budgets = [("20ms", "1GFLOPs"), ("8ms@cuda",)]
    assert crossed(budgets, ["cpu", "table:a.csv"]) == (
        ("20ms@cpu", "1GFLOPs"),
        ("20ms@table:a.csv", "1GFLOPs"),
        ("8ms@cuda",),
    )
    assert crossed(budgets) == tuple(budgets)
    with pytest.raises(InvalidOption, match=r"on cpu: no budget is measured .* leave --on out"):
        crossed([("1GFLOPs",)], ["cpu"])


def test_a_file_says_all_of_it(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        """
        budget = ["0.5GFLOPs", ["1GFLOPs", "20ms"]]
        on = ["cpu", "table:phone.csv"]
        seed = [0, 1]
        space = "micro"
        data = "digits"
        trials = 50
        mixers = ["hilo", "xnorm"]
        racing = false
        """
    )
    asked = SweepSettings.load(path)
    asked.check()
    assert asked.budgets == (
        ("0.5GFLOPs",),
        ("1GFLOPs", "20ms@cpu"),
        ("1GFLOPs", "20ms@table:phone.csv"),
    )
    assert (asked.seeds, asked.spaces) == ((0, 1), ("micro",))
    common = asked.common
    assert (common.trials, common.mixers, common.racing) == (50, ("hilo", "xnorm"), False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bugdet = '1GFLOPs'", "no key 'bugdet'; did you mean 'budget'?"),
        ("supernet_seed = 3", "no key 'supernet_seed'"),
        ("budget = 'x'", "budget x: not an amount"),
        ("budget = [1.5]", "text such as '1.5GFLOPs' is needed"),
        ("trials = 5", "no budget given"),
        ("budget = '1GFLOPs'\nseed = [0, 0]", "seed 0: given twice; give each once"),
        ("budget = ['1GFLOPs', '1000MFLOPs']", "budget 1GFLOPs: given twice"),
        ("budget = '1GFLOPs'\nseed = -1", "seed -1: a whole number of at least 0"),
        ("budget = '1GFLOPs'\nseed = 'a'", "seed 'a': a whole number"),
        ("budget = '1GFLOPs'\nspace = []", "no space given"),
        ("budget = '1GFLOPs'\ntrials = 0", "trials 0: a whole number of at least 1"),
        ("budget = '1GFLOPs'\ntrials = 'many'", "trials 'many': a whole number"),
        ("budget = '1GFLOPs'\nsampler = 'nsga'", "no sampler 'nsga'; did you mean 'nsga2'?"),
        ("budget = '1GFLOPs'\nmixers = 3", "see mixnas sweep --help"),
        ("budget = '1GFLOPs'\nmixers = [1]", "mixers [1]: a name, or a list of names"),
        ("budget = '1GFLOPs'\nspace = ['a/edge.toml', 'b/edge.toml']", "space edge: given twice"),
        ("budget = '1GFLOPs'\nspace = 3", "space 3: a name, or a list of names"),
        ("budget = '20ms'\non = [1]", "on [1]: a name, or a list of names"),
        ("budget = '1GFLOPs'\ndata = 5", "data 5: text in quotation marks is needed"),
        ("budget = '1GFLOPs'\nsampler = 3", "sampler 3: text in quotation marks"),
        ("budget = '1GFLOPs'\nracing = 'yes'", "racing 'yes': true or false"),
        ("budget = '1GFLOPs'\nretrain = 0", "retrain 0: a whole number of at least 1"),
        ("budget = '1GFLOPs'\nretrain = 'long'", "retrain 'long': a whole number"),
        ("budget = '1GFLOPs'\nretrain = 3\nscheduler = 'ahsa'", "did you mean 'asha'?"),
        ("budget = '1GFLOPs'\nscheduler = 'asha'", "scheduler asha: there is nothing to schedule"),
        ("budget = ", "not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(MixnasError) as caught:
        SweepSettings.load(path).check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_too_many_searches(tmp_path):
    with pytest.raises(InvalidOption, match="can be read \\(No such file"):
        SweepSettings.load(tmp_path / "none.toml")
    asked = SweepSettings((("1GFLOPs",), ("2GFLOPs",)), tuple(range(501)))
    with pytest.raises(InvalidOption, match="a sweep of 1002 searches: give 1000 at most"):
        asked.check()
    with pytest.raises(InvalidBudget, match="no budget given"):
        SweepSettings(()).check()


def test_a_name_tells_what_is_swept_and_is_never_too_long():
    asked = SweepSettings((("1GFLOPs",), ("1.5GFLOPs", "20ms")), (0, 1))
    assert asked.name() == "sweep-digits-default-1GFLOPs,1.5GFLOPs+20ms-seed0,1"
    many = SweepSettings(tuple((f"{n}MFLOPs",) for n in range(100, 160)))
    assert len(many.name()) < 121
    assert many.name() != SweepSettings(tuple((f"{n}MFLOPs",) for n in range(100, 161))).name()


def test_retraining_is_kept_where_it_is_asked_for_and_only_there(tmp_path):
    assert not {"retrain", "scheduler"} & SweepSettings((("1GFLOPs",),)).to_dict().keys()
    path = tmp_path / "study.toml"
    path.write_text("budget = '1GFLOPs'\nretrain = 30\n")
    asked = SweepSettings.load(path)
    asked.check()
    assert (asked.retrain, asked.scheduling) == (30, "asha")
    again = SweepSettings.of(asked.to_dict())
    assert (again.retrain, again.scheduling) == (30, "asha")
    plain = SweepSettings((("1GFLOPs",),), retrain=30, scheduler="none")
    assert SweepSettings.of(plain.to_dict()) == plain


def test_a_population_is_a_searchs_own_and_runs_of_old_have_none():
    plain = Settings(("1GFLOPs",))
    assert "population" not in plain.to_dict()
    assert Settings.from_dict(plain.to_dict()) == plain
    large = Settings(("1GFLOPs",), population=64)
    assert Settings.from_dict(large.to_dict()) == large
    for wrong in (1, 0, 20_000):
        with pytest.raises(InvalidOption, match="population"):
            Settings(("1GFLOPs",), population=wrong).check()
    sweep = SweepSettings((("1GFLOPs",),), common=Settings((), population=64))
    assert [each.population for each in sweep.searches()] == [64]
