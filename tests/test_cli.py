"""The command line as a user meets it: words in, text, streams and exit codes out."""

import importlib
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from finished_run import SETTINGS, begun, curve, finished
from rich.console import Console

import mixnas
from mixnas import report
from mixnas.cli import main
from mixnas.jobs.mixers import mixers
from mixnas.jobs.runs import command, runs
from mixnas.jobs.settings import Settings
from mixnas.jobs.show import show
from mixnas.jobs.zoo import zoo
from mixnas.terminal import Bars, Lines, console, duration

OPTIONS = {
    "search": "--budget --data --space --trials --sampler --seed --workers --epochs --time "
    "--mixers --image --classes --device --batch --resolution --name --runs --dry-run --json "
    "--quiet",
    "show": "RUN --runs --json",
    "compare": "RUN --only --random --timm --seeds --epochs --workers --name --runs --dry-run "
    "--json --markdown --quiet",
    "audit": "RUN --architectures --inside --seeds --epochs --resolution --workers --name --runs "
    "--dry-run --json --quiet",
    "runs": "--runs --json",
    "mixers": "--json",
    "spaces": "--budget --space --mixers --image --classes --json",
    "zoo": "NAME --image --classes --width --json",
}
HEAVY = ("torch", "ray", "optuna", "pandas", "timm", "sklearn", "matplotlib", "numpy", "fvcore")

TINY = """
name = "tiny"
image = 32
classes = 10
stems = ["conv8", "patch16"]
ratio = [1, 2]
[mixers]
additive = { head_width = [16] }
single_head = { partial = [0.25] }
[[stages]]
stride = 8
width = [16, 32]
depth = [1]
[[stages]]
stride = 16
width = [32]
depth = [1, 2]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run, named sample."""
    root = tmp_path_factory.mktemp("runs")
    run = finished(root)
    report.figures(run)
    report.html(run)
    return root


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def process(*words, **options):
    line = [sys.executable, "-c", "from mixnas.cli import main; main()", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


def plain(text):
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# Help


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option(cli, name):
    code, out, err = cli(name, "--help")
    assert (code, err) == (0, "")
    for option in OPTIONS[name].split():
        assert re.search(rf"(?<!\S){option}(?!\S)", plain(out)), option
    assert f"mixnas {name}" in plain(out)


def test_help_of_search_teaches_units_and_defaults(cli):
    text = plain(cli("search", "--help")[1])
    settings = Settings(budget=())
    for words in ("1.5GFLOPs", "20ms", "10Mparams", "1.2-1.5GFLOPs", "90s", "1h30m", "digits"):
        assert words in text
    for name in ("data", "space", "trials", "sampler", "seed", "device", "batch"):
        assert f"[default: {getattr(settings, name)}]" in text, name


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_and_examples(cli, words):
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    for name in OPTIONS:
        assert re.search(rf"(?<!\S){name}(?!\S)", plain(out))
    assert "mixnas search --budget 1.5GFLOPs" in plain(out)


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["--version"], ["search"]])
def test_quick_answers_import_nothing_heavy(words):
    code = (
        "import sys\nfrom mixnas.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write('heavy:' + ','.join(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.endswith("heavy:")


def test_version(cli):
    assert cli("--version") == (0, f"mixnas {mixnas.__version__}\n", "")


# One line, exit code 2

BAD = [
    (["search"], "no budget given.*--budget 1.5GFLOPs"),
    (["search", "--budget", ""], "budget"),
    (["search", "--budget", "fast"], "fast.*write 1.5GFLOPs"),
    (["search", "--budget", "1.5GFLIPs"], "no unit 'GFLIPs'.*did you mean 'GFLOPs'"),
    (["search", "--budget", "-1GFLOPs"], "above 0"),
    (["search", "--budget", "1GFLOPs\nrm [red]"], "budget"),
    (["search", "--budget", "1GFLOPs", "--budget", "2GFLOPs"], "both limit flops"),
    (["search", "--budget", "1GFLOPs", "--trials", "0"], "trials 0.*at least 1"),
    (["search", "--budget", "1GFLOPs", "--trials", "-3"], "trials -3.*at least 1"),
    (["search", "--budget", "1GFLOPs", "--trials", "many"], "--trials 'many'.*whole number"),
    (["search", "--budget", "1GFLOPs", "--trials", "1.5"], "--trials '1.5'.*whole number"),
    (["search", "--budget", "1GFLOPs", "--workers", "0"], "workers 0.*at least 1"),
    (["search", "--budget", "1GFLOPs", "--epochs", "0"], "epochs 0.*at least 1"),
    (["search", "--budget", "1GFLOPs", "--seed", "-1"], "seed -1.*at least 0"),
    (["search", "--budget", "1GFLOPs", "--seed", "9" * 23], "seed 9*: give at most"),
    (["search", "--budget", "1GFLOPs", "--time", "9" * 400 + "h"], "more than a year"),
    (["show", "a" * 300], "run 'a{60}': cannot be opened"),
    (["search", "--budget", "1GFLOPs", "--batch", "0"], "batch 0"),
    (["search", "--budget", "1GFLOPs", "--image", "3"], "image 3.*at least 16"),
    (["search", "--budget", "1GFLOPs", "--image", "100000"], "image 100000: give at most 1024"),
    (["search", "--budget", "1GFLOPs", "--resolution", "15"], "resolution 15.*at least 16"),
    (["search", "--budget", "1GFLOPs", "--resolution", "1025"], "resolution 1025.*most 1024"),
    (["retrain", "zoo:shvit_s1", "--resolution", "1025"], "resolution 1025: give at most 1024"),
    (["export", "nosuch", "--image", "1025"], "image 1025: give at most 1024"),
    (["measure", "--space", "micro", "--image", "1025"], "image 1025: give at most 1024"),
    (["search", "--budget", "1GFLOPs", "--classes", "1"], "classes 1.*at least 2"),
    (["search", "--budget", "1GFLOPs", "--resolution", "x"], "--resolution 'x'.*whole number"),
    (["search", "--budget", "1GFLOPs", "--sampler", "nsga"], "sampler 'nsga'.*mean 'nsga2'"),
    (["search", "--budget", "1GFLOPs", "--device", "tpu"], "device 'tpu'.*known: auto, cpu, cuda"),
    (["search", "--budget", "1GFLOPs", "--time", "soon"], "time 'soon'.*1h30m"),
    (["search", "--budget", "1GFLOPs", "--time", "0s"], "time '0s'"),
    (["search", "--budget", "1GFLOPs", "--mixers", ","], "--mixers ','.*such as a,b"),
    (["search", "--budget", "1GFLOPs", "--time", "1h", "--epochs", "3"], "time and epochs"),
    (["search", "--budget"], "--budget.*see mixnas.*--help"),
    (["search", "--bugdet", "1GFLOPs"], "--bugdet.*see mixnas search --help"),
    (["search", "1GFLOPs"], "1GFLOPs.*see mixnas search --help"),
    (["search", "--json", "--budget", "1GFLOPs", "--trials", "0"], "trials 0"),
    (["serach"], "serach.*see mixnas --help"),
    (["--verbose"], "--verbose.*see mixnas --help"),
    (["show"], "RUN.*see mixnas show --help"),
    (["show", "nosuch"], "no run 'nosuch'"),
    (["show", "nosuch", "--json"], "no run 'nosuch'"),
    (["show", ""], "run '': the name is empty; give the name of a run in runs .*none yet"),
    (["show", "."], r"run '\.': the folder /.* is no run's; give the name of a run in runs"),
    (["show", ".."], r"run '\.\.': the folder /.* is no run's"),
    (["spaces", "--space", "defualt"], "'defualt'.*did you mean 'default'"),
    (["spaces", "--space", "no/such.toml"], "no/such.toml.*shipped: default, micro"),
    (["spaces", "--space", "micro", "--budget", "20ms"], "20ms.*mixnas search --dry-run"),
    (["spaces", "--space", "micro", "--budget", "1KFLOPs"], "1KFLOPs.*cheapest.*raise the budget"),
    (["spaces", "--space", "micro", "--mixers", "fastfomer"], "no mixer 'fastfomer'"),
    (["spaces", "--space", "micro", "--image", "big"], "--image 'big'"),
    (["spaces", "--space", "micro", "--image", "1025"], "image 1025: give at most 1024"),
    (["spaces", "--space", "micro", "--classes", "0"], "classes 0.*at least 2"),
    (["zoo", "shvti_s4"], "no network 'shvti_s4'; did you mean 'shvit_s4'.*known: affnet"),
    (["zoo", "shvit_s1", "--image", "big"], "--image 'big'.*whole number"),
    (["zoo", "shvit_s1", "--image", "8"], "image 8.*at least 32"),
    (["zoo", "shvit_s1", "--classes", "0"], "classes 0.*at least 1"),
    (["zoo", "shvit_s1", "--width", "wide"], "--width 'wide'.*a number"),
    (["zoo", "shvit_s1", "--width", "0"], "width=0.0 must be above 0"),
    (["zoo", "fvit_b16", "--image", "100"], "100x100.*multiples of the patch.*96x96"),
    (["zoo", "--width", "2"], "--width without NAME.*mixnas zoo shvit_s4"),
]


@pytest.mark.parametrize(("words", "pattern"), BAD, ids=[" ".join(words)[:60] for words, _ in BAD])
def test_a_mistake_is_one_line_and_exit_code_2(cli, tmp_path, monkeypatch, words, pattern):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("mixnas: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert re.search(pattern, err), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("additive = {", "fastfomer = {", "no mixer 'fastfomer'.*known: additive"),
        ("additive = {", "fastformer = {", "no mixer 'fastformer'.*did you mean 'additive'"),
        ("width = [16, 32]", "width = [32, 16]", "stage 1, width.*does not increase"),
        ("depth = [1, 2]", "depht = [1, 2]", "stage 2.*no field 'depht'.*did you mean 'depth'"),
        ('name = "tiny"', "name = ", "not a TOML file"),
    ],
)
def test_a_bad_space_file_is_one_line_that_names_the_place(cli, tiny, old, new, pattern):
    tiny.write_text(TINY.replace(old, new, 1))
    code, out, err = cli("spaces", "--space", tiny)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(tiny) in err
    assert re.search(pattern, err), err


def test_a_mistake_in_a_real_process():
    done = process("search", "--budget", "1.5GFLIPs")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def broken(folder):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("mixnas.jobs.runs.runs", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["runs"])


def test_a_reader_that_leaves_early_is_no_error():
    call = f"{shlex.quote(sys.executable)} -c 'from mixnas.cli import main; main()' mixers"
    done = subprocess.run(
        ["bash", "-c", f"{call} --json | true; {call} | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


# show and runs


def test_show_of_a_finished_run(cli, folder):
    code, out, err = cli("show", "sample", "--runs", folder)
    assert (code, err) == (0, "")
    found = show("sample", folder)
    winner = found["winner"]
    for expected in (
        winner["id"],
        "87.5% +- 3.7% (standard error)",
        "180 images",
        "98.8% used",
        "50.0% used",
        "22 of 24 architectures, 2 failed",
        "training 1 min 2 s, search 45 s, finalists 12 s",
        f"mixnas show sample --runs {folder}",
        "it is not a trained network's accuracy",
        "report.html",
    ):
        assert expected in out
    for stage in found["architecture"]["stages"]:
        for block in stage["blocks"]:
            assert block["mixer"] in out
    assert len(re.findall(r"^ +\d+( \*)? .*FLOPs", out, re.M)) == len(found["front"])
    assert out.count(" * ") == 1


def test_show_by_path_and_json_equal_the_twin(cli, folder, monkeypatch):
    code, out, err = cli("show", folder / "sample", "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data == json.loads(json.dumps(show(folder / "sample")))
    assert data["state"] == "finished"
    assert Path(data["files"]["figures/front.png"]).is_file()
    monkeypatch.chdir(folder / "sample")
    assert show(".")["run"] == "sample"


def test_the_winner_is_loaded_by_the_lines_that_are_printed(folder):
    lines = show("sample", folder)["load"]
    check = (
        "\nimport torch\nfrom safetensors.torch import load_file\n"
        "assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)\n"
        "kept = load_file(folder / 'best.safetensors')\n"
        "assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines + check],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_unfinished_run_says_where_it_is_and_how_to_go_on(cli, tmp_path):
    run = begun(tmp_path, "half")
    assert show("half", tmp_path)["state"] == "planned"
    run.write("supernet.csv", curve(7))
    assert "state       not finished: training" in cli("show", "half", "--runs", tmp_path)[1]
    assert show("half", tmp_path)["progress"] == "step 7 on record"
    run.mark("training", seconds=1.0)
    run.write("log.jsonl", '{"format":1}\n{"ask":0}\n{"tell":0,"loss":1}\n{"ask":1}\n{"tell":1,"l')
    code, out, err = cli("show", "half", "--runs", tmp_path)
    assert (code, err) == (0, "")
    assert "not finished: search" in out
    assert "1 of 24 architectures evaluated" in out
    run.mark("search", seconds=1.0)
    assert show("half", tmp_path)["state"] == "finalists"
    assert command(run) in out
    assert json.loads(cli("show", "half", "--runs", tmp_path, "--json")[1])["command"] == command(
        run
    )


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Settings(budget=("1.2-1.5GFLOPs",)),
        replace(SETTINGS, mixers=("aff", "hilo"), time="1h30m", device="cpu", resolution=48),
        replace(SETTINGS, population=64, supernet_seed=3),
        replace(SETTINGS, data="my photos/it's $HOME", epochs=3, image=96, classes=7, batch=32),
    ],
)
def test_the_command_that_goes_on_asks_for_the_same_run(cli, tmp_path, monkeypatch, settings):
    run = begun(tmp_path / "all runs", "a name", settings)
    asked = {}

    def spy(**options):
        asked.update(options)
        raise KeyboardInterrupt

    pipeline = importlib.import_module("mixnas.jobs.search")
    monkeypatch.setattr(pipeline, "search", spy)
    words = shlex.split(command(run))
    assert words[:2] == ["mixnas", "search"]
    assert cli(*words[1:])[0] == 130
    assert Settings(**{field.name: asked[field.name] for field in fields(Settings)}) == settings
    assert (asked["name"], asked["runs"]) == ("a name", str(tmp_path / "all runs"))


def test_a_broken_summary_is_one_line(cli, tmp_path):
    run = finished(tmp_path)
    run.write("summary.json", {"format": 1})
    code, out, err = cli("show", "sample", "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert command(run) in err
    assert cli("runs", "--runs", tmp_path)[0] == 0


def test_runs_are_listed_latest_first(cli, tmp_path):
    for name, made in (("old", "2020-01-01T00:00:00+00:00"), ("new", "2024-05-01T00:00:00+00:00")):
        run = (finished if name == "new" else begun)(tmp_path, name)
        run.write("run.json", run.made | {"made": made})
    (tmp_path / "no run").mkdir()
    code, out, err = cli("runs", "--runs", tmp_path)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "3MFLOPs" in line]
    assert [line.split()[0] for line in lines] == ["new", "old"]
    assert "finished" in lines[0]
    assert "87.5%" in lines[0]
    assert "planned" in lines[1]
    data = json.loads(cli("runs", "--runs", tmp_path, "--json")[1])
    assert [row["run"] for row in data] == ["new", "old"]
    assert data[0]["age"] > 10**7
    assert data[1]["accuracy"] is None
    assert [row["run"] for row in runs(tmp_path)] == ["new", "old"]


@pytest.mark.parametrize(
    ("file", "text", "cure"),
    [
        ("run.json", None, "put the file back from a copy"),
        ("run.json", '{"format": 1}', "put the file back from a copy"),
        ("summary.json", None, "remove it and repeat"),
        ("summary.json", "[]", "remove it and repeat"),
        ("summary.json", '{"format": 1}', "remove it and repeat"),
    ],
)
def test_damaged_runs_are_listed_with_the_cure(cli, tmp_path, file, text, cure):
    finished(tmp_path, "whole")
    path = finished(tmp_path, "torn").file(file)
    path.write_text(path.read_text()[: path.stat().st_size // 2] if text is None else text)
    code, out, err = cli("runs", "--runs", tmp_path)
    assert (code, err) == (0, "")
    states = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "damaged" in states["torn"]
    assert "finished" in states["whole"]
    assert "damaged" not in states["whole"]
    assert f"{path} is damaged; {cure}" in " ".join(out.split())
    rows = {row["run"]: row for row in json.loads(cli("runs", "--runs", tmp_path, "--json")[1])}
    assert rows["torn"]["state"] == "damaged"
    assert cure in rows["torn"]["damage"]
    assert rows["torn"].keys() == rows["whole"].keys()
    assert (rows["whole"]["state"], rows["whole"]["damage"]) == ("finished", None)
    code, out, err = cli("show", "torn", "--runs", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "damaged" in err
    assert "Error" not in err
    assert "--name" not in err.partition("go on with")[0]


def test_a_run_of_another_format_and_damaged_stages_are_listed(cli, tmp_path):
    newer, torn = finished(tmp_path, "newer"), begun(tmp_path, "torn")
    newer.write("run.json", newer.made | {"format": 2})
    torn.write("stages.json", "[1]")
    rows = {row["run"]: row for row in runs(tmp_path)}
    assert rows["newer"]["state"] == "unreadable"
    assert "format 2" in rows["newer"]["damage"]
    assert rows["torn"]["state"] == "damaged"
    assert "stages.json" in rows["torn"]["damage"]
    assert "unreadable" in cli("runs", "--runs", tmp_path)[1]


def test_no_runs_yet(cli, tmp_path):
    code, out, _ = cli("runs", "--runs", tmp_path / "none")
    assert code == 0
    assert "mixnas search --budget" in out
    assert f"no folder {tmp_path / 'none'} yet" in " ".join(out.split())
    assert "no runs yet; begin with" in cli("runs", "--runs", tmp_path)[1]
    assert cli("runs", "--runs", tmp_path / "none", "--json")[1] == "[]\n"


def test_names_are_printed_whole_and_literally(cli, tmp_path):
    name = "[red]x[bold] [nothing " + "long-" * 30 + "[link=file:x]"
    finished(tmp_path, name, replace(SETTINGS, data="[bold]/data[/bold]" + "d" * 100))
    for words in (["runs"], ["show", name]):
        code, out, err = cli(*words, "--runs", tmp_path)
        assert (code, err) == (0, "")
        assert name in out
        assert "\x1b" not in out
    assert "[bold]/data[/bold]" + "d" * 100 in cli("runs", "--runs", tmp_path)[1]


# mixers and spaces


def test_mixers_are_described(cli):
    from mixnas import mixers as registry

    code, out, err = cli("mixers")
    assert (code, err) == (0, "")
    for name in registry.names():
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert registry.get(name).summary in line
    assert json.loads(cli("mixers", "--json")[1]) == json.loads(json.dumps(mixers()))
    assert {"additive", "aff", "hilo", "single_head", "xnorm"} <= {row["name"] for row in mixers()}


def test_a_sixth_mixer_is_found(tmp_path):
    package = tmp_path / "sixth"
    package.mkdir()
    (package / "sixth.py").write_text(
        "from mixnas.mixers import Mixer, register\n"
        "@register('sixth')\nclass Sixth(Mixer):\n"
        "    summary = 'passes its input on'\n    knobs = {'step': (1, 2)}\n"
    )
    info = package / "sixth-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sixth\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mixnas.mixers]\nsixth = sixth\n")
    done = process("mixers", "--json", env={"PYTHONPATH": f"{package}:{Path.cwd()}"})
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert found["sixth"]["summary"] == "passes its input on"
    assert found["sixth"]["knobs"] == {"step": [1, 2]}
    assert found["sixth"]["module"] == "sixth"


def everything(space):
    """Every architecture of a small space, by answering the one walk in every way."""

    def answers(prefix):
        asked = []

        def choose(key, choices):
            value = choices[prefix[len(asked)] if len(asked) < len(prefix) else 0]
            asked.append(choices)
            return value

        return space.pick(choose), asked

    waiting = [()]
    while waiting:
        prefix = waiting.pop()
        arch, asked = answers(prefix)
        yield arch
        tail = asked[len(prefix) :]
        for place, choices in enumerate(tail):
            zeros = (0,) * place
            waiting += [(*prefix, *zeros, other) for other in range(1, len(choices))]


def test_zoo_lists_what_is_published(cli):
    code, out, err = cli("zoo")
    assert (code, err) == (0, "")
    for words in ("shvit_s4", "single_head", "16.5 Mparams", "986 MFLOPs", "79.4%", "recalled"):
        assert words in plain(out)
    assert json.loads(cli("zoo", "--json")[1]) == json.loads(json.dumps(zoo()))


def test_zoo_counts_one_network(cli):
    words = ("zoo", "shvit_s1", "--image", "96", "--classes", "10", "--width", "0.5")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    (found,) = json.loads(cli(*words, "--json")[1])
    assert (found["image"], found["classes"], found["width"]) == (96, 10, 0.5)
    for kind in ("counted", "folded"):
        for figure in ("params", "flops"):
            assert f"{found[kind][figure]:,}" in out
    for operator in found["counted"]["operators"]:
        assert operator in out
    assert "6.3 Mparams, 241 MFLOPs, 72.8% top-1, at 224 pixels" in out


def test_spaces_under_a_budget_agree_with_counting_all(cli, tiny):
    from mixnas.cost import count
    from mixnas.cost.table import CostTable
    from mixnas.space import SearchSpace

    space = SearchSpace.load(tiny)
    archs = list(everything(space))
    assert len(set(archs)) == len(archs) == space.size()
    flops = CostTable(count.flops, image=32, classes=10)
    params = CostTable(count.params, image=32, classes=10)
    costs = sorted(flops(arch) for arch in archs)
    budget = f"{costs[len(costs) // 3]}FLOPs"
    fitting = [arch for arch in archs if flops(arch) <= costs[len(costs) // 3]]

    code, out, err = cli("spaces", "--space", tiny, "--budget", budget, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert found["architectures"] == len(archs)
    assert found["cheapest"] == {"flops": costs[0], "params": min(map(params, archs))}
    assert found["dearest"] == {"flops": costs[-1], "params": max(map(params, archs))}
    bounds = found["fitting"]
    assert bounds["lower"] <= len(fitting) <= bounds["upper"]
    assert bounds["lower"] <= bounds["count"] <= bounds["upper"]
    assert found["share"] == pytest.approx(len(fitting) / len(archs), rel=0.02)
    for stem, share in found["stem_shares"].items():
        having = sum(arch.stem.kind == stem for arch in fitting)
        assert share == pytest.approx(having / len(fitting), abs=0.02)
    made = set(itertools.chain.from_iterable(space.genotype(arch).items() for arch in fitting))
    for line in found["dropped"]:
        key, _, choices = line.partition(" ")
        assert not {(key, choice) for choice in choices.split(", ")} & {
            (k, str(v)) for k, v in made
        }

    text = cli("spaces", "--space", tiny, "--budget", budget)[1]
    assert f"fit {found['budget'][0]}" in text
    assert "stem conv8" in text
    assert "not a judgement" in text
    assert "less than 100%" in text  # a stem may skip a stage
    assert not re.search(r"e-\d+%", text)


@pytest.mark.slow
def test_a_budget_that_one_shipped_space_cannot_meet_is_told_beside_the_others(cli):
    code, out, err = cli("spaces", "--budget", "10MFLOPs", "--json")
    assert (code, err) == (0, "")
    found = {space["name"]: space for space in json.loads(out)}
    assert found["default"]["fitting"]["upper"] == 0
    assert "cheapest" in found["default"]["reason"]
    assert found["micro"]["fitting"]["lower"] == found["micro"]["architectures"]


def test_image_classes_and_mixers_change_what_is_described(cli, tiny):
    whole = json.loads(cli("spaces", "--space", tiny, "--json")[1])[0]
    words = ("--image", "64", "--classes", "20", "--mixers", "additive")
    code, out, _ = cli("spaces", "--space", tiny, *words, "--json")
    assert code == 0
    (narrow,) = json.loads(out)
    assert (narrow["image"], narrow["classes"]) == (64, 20)
    assert narrow["architectures"] < whole["architectures"]
    assert narrow["cheapest"]["flops"] > 3 * whole["cheapest"]["flops"]
    assert {mixer for stage in narrow["stages"] for mixer in stage["mixers"]} == {"additive"}


# Progress


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(cli, monkeypatch, tmp_path):
    def interrupted(listener, **options):
        listener.plan({"run": str(tmp_path), "time": "about 3 s"})
        listener.stage("training", 10, 2)
        listener.advance(1, loss=1.0)
        raise KeyboardInterrupt

    pipeline = importlib.import_module("mixnas.jobs.search")
    monkeypatch.setattr(pipeline, "search", interrupted)
    words = ["search", "--budget", "1GFLOPs", "--data", "my photos"]
    code, out, err = cli(*words)
    assert (code, out) == (130, "")
    assert "about 3 s" in err
    assert "training: 3/10 (30%), loss 1" in err
    assert f"kept in {tmp_path}." in err
    assert err.endswith("  mixnas search --budget 1GFLOPs --data 'my photos'\n")
    code, out, err = cli(*words, "--json")
    assert (code, out) == (130, "")
    assert err.count("\n") == 2


def test_a_search_prints_its_result_and_progress_apart(cli, monkeypatch, folder):
    from mixnas.run import Run

    def done(listener, **options):
        listener.plan({"run": "runs/here"})
        listener.stage("search", 2)
        listener.note("a note")
        listener.advance(2, best_loss=0.5)
        listener.end()
        return Run.open(folder / "sample")

    pipeline = importlib.import_module("mixnas.jobs.search")
    monkeypatch.setattr(pipeline, "search", done)
    words = ["search", "--budget", "1GFLOPs"]
    code, out, err = cli(*words)
    assert code == 0
    assert out == cli("show", folder / "sample")[1]
    assert "search: 2/2 (100%), best loss 0.5, took 0 s" in err
    assert "a note" in err
    assert cli(*words, "--quiet")[1:] == (out, "")
    code, out, err = cli(*words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["winner"]["number"] == show(folder / "sample")["winner"]["number"]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_progress_speaks_at_start_and_end_and_now_and_then():
    clock, said = Clock(), []
    lines = Lines(said.append, said.append, clock=clock, every=10)
    lines.end()
    lines.stage("training", 100, 40)
    for _ in range(30):
        clock.now += 1
        lines.advance(1, loss=1.23456, accuracy=0.5)
    lines.note("an evaluation failed")
    clock.now += 100
    lines.end()
    lines.end()
    assert said == [
        "training: 100 steps, going on at 40",
        "training: 50/100 (50%), loss 1.235, accuracy 50.0%, 50 s left",
        "training: 60/100 (60%), loss 1.235, accuracy 50.0%, 40 s left",
        "training: 70/100 (70%), loss 1.235, accuracy 50.0%, 30 s left",
        "an evaluation failed",
        "training: 70/100 (70%), loss 1.235, accuracy 50.0%, took 2 min 10 s",
    ]


def test_bars_on_a_terminal():
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=120), lambda plan: None)
    bars.advance(1)
    bars.note("[red]literal[/red]")
    for name in ("training", "search"):
        bars.stage(name, 10, 4)
        bars.advance(3, loss=0.5, origin="[bold]")
        bars.end()
        bars.end()
    shown = plain(screen.getvalue())
    assert "[red]literal[/red]" in shown
    assert "training" in shown
    assert "7/10 architectures" in shown
    assert "loss 0.5, origin [bold]" in shown
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h")  # cursor


def test_a_console_for_a_file_neither_wraps_nor_colours():
    file = io.StringIO()
    console(file).print("[bold red]" + "word " * 150 + "[/]")
    assert file.getvalue() == "word " * 150 + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (356_400, "4 d 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
