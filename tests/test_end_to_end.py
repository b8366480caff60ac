"""The main job as a user runs it, through the command line, on the small space."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import mixnas

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SECRET = "correct-horse-battery"
SMALL = ["--space", "micro", "--epochs", "2", "--trials", "12", "--workers", "2", "--name", "run"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from mixnas.cli import main; main()", *words]


def call(folder: Path, *words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, check=False, **options
    )


def told(run: Path) -> dict[int, dict]:
    """Return the outcome of every trial, asserting that each was told once."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()[1:]]
    asks = [line["ask"] for line in lines if "ask" in line]
    outcomes = {line["tell"]: line for line in lines if "tell" in line}
    assert len(asks) == len(set(asks)) == len(outcomes) == len(lines) // 2
    assert len({json.dumps(line["arch"]) for line in lines if "ask" in line}) == len(asks)
    return outcomes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the folder of one finished search, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    secret = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, "API_TOKEN": SECRET}
    done = call(folder, "search", "--budget", "8MFLOPs", *SMALL, env=secret)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_nothing_of_the_environment_is_written_or_said(found):
    folder, done = found
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr


def test_a_search_names_a_winner_within_the_budget(found):
    folder, done = found
    run = folder / "runs" / "run"
    trials = pandas.read_csv(run / "trials.csv")
    assert len(trials) == 12
    assert trials["id"].is_unique
    assert (trials["flops"] <= 8_000_000).all()
    best = mixnas.Architecture.from_json((run / "best.json").read_text())
    row = trials[trials["id"] == best.id].iloc[0]
    assert mixnas.count_flops(best, image=64, classes=10) == row["flops"]
    assert mixnas.count_params(best, classes=10) == row["params"]
    assert best.id in done.stdout
    assert "not a trained network's accuracy" in done.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["winner"]["accuracy"] <= 1
    told = summary["winner"]["latency_ms"]
    assert told is None or told["median"] > 0  # on a busy machine the stopwatch refuses
    assert (run / "figures" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" not in (run / "report.html").read_text()
    network = mixnas.build(best, num_classes=10)
    network.load_state_dict(load_file(run / "best.safetensors"))


def test_the_same_command_again_changes_nothing(found):
    folder, _ = found
    before = {p: p.read_bytes() for p in (folder / "runs" / "run").glob("*.json*")}
    done = call(folder, "search", "--budget", "8MFLOPs", *SMALL)
    assert done.returncode == 0, done.stderr
    assert before == {p: p.read_bytes() for p in (folder / "runs" / "run").glob("*.json*")}


def test_other_settings_in_the_same_folder_are_refused(found):
    folder, _ = found
    done = call(folder, "search", "--budget", "7MFLOPs", *SMALL)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "budget" in done.stderr
    assert "--name" in done.stderr


@pytest.mark.parametrize(
    ("name", "junk"),
    [("plan.json", b"[1]"), ("plan.json", b"\x80junk"), ("stages.json", b"[1]")],
)
def test_a_damaged_file_of_the_run_is_one_line_with_a_cure(found, tmp_path, name, junk):
    folder, _ = found
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "run" / name).write_bytes(junk)
    done = call(tmp_path, "search", "--budget", "8MFLOPs", *SMALL)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("mixnas: ")
    assert "Traceback" not in done.stderr
    assert f"{name} is damaged; remove it and repeat" in done.stderr


def test_what_is_removed_from_a_finished_run_is_made_again(found, tmp_path):
    folder, _ = found
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for name in ("summary.json", "best.json"):
        (tmp_path / "runs" / "run" / name).unlink()
    assert call(tmp_path, "search", "--budget", "8MFLOPs", *SMALL).returncode == 0
    best = (folder / "runs" / "run" / "best.json").read_bytes()
    assert (tmp_path / "runs" / "run" / "best.json").read_bytes() == best


def test_too_short_a_time_leaves_nothing(tmp_path):
    done = call(tmp_path, "search", "--budget", "8MFLOPs", "--space", "micro", "--time", "1s")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "too short" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_show_and_runs_tell_of_it(found):
    folder, _ = found
    shown = call(folder, "show", "run", "--json")
    assert json.loads(shown.stdout)["winner"]["id"]
    assert "run" in call(folder, "runs").stdout


def test_killed_and_repeated_it_ends_as_if_undisturbed(found, tmp_path):
    """SIGKILL for the whole tree, in training and in the search; one worker at the end."""
    folder, _ = found
    words = ["search", "--budget", "8MFLOPs", *SMALL]
    run = tmp_path / "runs" / "run"
    for awaited in ("plan.json", "log.jsonl"):
        job = subprocess.Popen(
            command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while job.poll() is None and not _begun(run / awaited):
            time.sleep(0.02)
        for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
            process.send_signal(signal.SIGKILL)
        job.wait()
        assert not (run / "best.json").exists()
    words[words.index("--workers") + 1] = "1"
    done = call(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert told(run) == told(folder / "runs" / "run")
    for name in ("best.json", "trials.csv", "supernet.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (folder / "runs" / "run" / name).read_bytes(), name


def _begun(path: Path) -> bool:
    if path.suffix == ".jsonl":
        return path.exists() and path.read_bytes().count(b'"tell"') >= 2
    return path.exists()


def test_a_full_disk_is_one_line_and_the_command_goes_on(tmp_path):
    """No file may grow beyond 200 kB: the first checkpoint is refused."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    words = ["search", "--budget", "8MFLOPs", *SMALL, "--quiet"]
    done = call(tmp_path, *words, preexec_fn=small_files)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert call(tmp_path, *words).returncode == 0


SIXTH = '''
from mixnas.elastic import Linear, grid, tokens
from mixnas.mixers import Mixer, register


@register("mean")
class Mean(Mixer):
    """Add every position's projection of the mean token."""

    summary = "the mean token, projected; O(N)"

    def __init__(self, dim):
        super().__init__(dim)
        self.project = Linear(dim, dim)

    def forward(self, x):
        height, width = x.shape[2:]
        mean = tokens(x).mean(dim=1, keepdim=True)
        return grid(self.project(mean, x.shape[1]).expand(-1, height * width, -1), height, width)
'''


def test_a_sixth_mixer_is_one_file(tmp_path):
    """Found by the command line, searched, extracted and counted; the file is README's."""
    (tmp_path / "my_mixer.py").write_text(SIXTH)
    info = tmp_path / "my_mixer-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-mixer\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mixnas.mixers]\nmean = my_mixer\n")
    shipped = mixnas.SearchSpace.load("micro")
    source = Path(__file__).parent.parent / "search_spaces" / "micro.toml"
    text = source.read_text().replace("aff = {}", "aff = {}\nmean = {}")
    (tmp_path / "six.toml").write_text(text.replace('name = "micro"', 'name = "six"'))
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert "the mean token" in call(tmp_path, "mixers", env=env).stdout
    words = [*SMALL]
    words[words.index("micro")] = "six.toml"
    done = call(tmp_path, "search", "--budget", "8MFLOPs", *words, "--mixers", "mean", env=env)
    assert done.returncode == 0, done.stderr
    best = (tmp_path / "runs" / "run" / "best.json").read_text()
    assert '"mixer":"mean"' in best
    assert shipped.name == "micro"


def test_the_readme_shows_that_sixth_mixer():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert SIXTH.strip().split("\n\n\n")[1] in readme


def drawing(label: int, number: int, side: int = 28) -> np.ndarray:
    """Return an image of bars, lying or standing, at some place."""
    image = np.zeros((side, side), np.uint8)
    place = 2 + number % (side - 8)
    image[
        (slice(place, place + 4), slice(None)) if label else (slice(None), slice(place, place + 4))
    ] = 255
    return image


def test_a_folder_of_class_folders(tmp_path):
    for label, name in enumerate(("standing", "lying")):
        (tmp_path / "bars" / name).mkdir(parents=True)
        for number in range(60):
            picture = Image.fromarray(drawing(label, number)).convert("RGB")
            picture.save(tmp_path / "bars" / name / f"{number}.png")
    done = call(tmp_path, "search", "--budget", "8MFLOPs", "--data", "bars", *SMALL)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["classes"] == 2


def test_a_folder_of_idx_files(tmp_path):
    folder = tmp_path / "fashion"
    folder.mkdir()
    for part, count in (("train", 400), ("t10k", 100)):
        labels = np.arange(count, dtype=np.uint8) % 2
        images = np.stack([drawing(label, n) for n, label in enumerate(labels)])
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    done = call(tmp_path, "search", "--budget", "8MFLOPs", "--data", "fashion", *SMALL)
    assert done.returncode == 0, done.stderr
    assert len(told(tmp_path / "runs" / "run")) == 12


def test_two_limits_hold_together(tmp_path):
    both = ["--budget", "8MFLOPs", "--budget", "0.2Mparams"]
    done = call(tmp_path, "search", *both, *SMALL)
    assert done.returncode == 0, done.stderr
    trials = pandas.read_csv(tmp_path / "runs" / "run" / "trials.csv")
    assert (trials["flops"] <= 8_000_000).all()
    assert (trials["params"] <= 200_000).all()


def test_the_python_twin_finds_the_same(found, tmp_path):
    folder, _ = found
    options = {"space": "micro", "epochs": 2, "trials": 12, "workers": 2, "name": "run"}
    run = mixnas.search("8MFLOPs", runs=tmp_path, **options)
    again = (run.path / "best.json").read_bytes()
    assert again == (folder / "runs" / "run" / "best.json").read_bytes()


@pytest.fixture(scope="module")
def shipped(found):
    """Return the same folder after retraining the winner and exporting it in every form."""
    folder, _ = found
    for words in (
        ["retrain", "run", "--epochs", "3", "--quiet"],
        ["export", "run", "--to", "onnx,pt2,timm,hf", "--int8", "--quiet"],
    ):
        done = call(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_winner_is_retrained_exported_and_proved(shipped):
    kept = shipped / "runs" / "run" / "retrain"
    summary = json.loads((kept / "summary.json").read_text())
    assert summary["images"] == 359
    assert summary["of"] == "run"
    exports = json.loads((kept / "export" / "exports.json").read_text())
    assert list(exports) == ["onnx", "pt2", "timm", "hf", "int8"]
    for form in ("onnx", "pt2", "timm", "hf"):
        assert exports[form]["difference"] < 1e-4
        assert exports[form]["agreement"] == 1
        assert exports[form]["images"] == 359
        timed = exports[form]["milliseconds"]  # none where the machine was too busy
        assert set(timed) <= {"1", "32"}
        assert all(times["eager"]["median"] > 0 for times in timed.values())
    shown = call(shipped, "show", "run", "--json")
    assert json.loads(shown.stdout)["retrainings"][0]["top1"] == summary["top1"]


def test_every_form_predicts_the_same_from_a_file(shipped):
    digits = load_digits()
    pixels = np.round(digits.images[7] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(shipped / "seven.png")
    (shipped / "broken.png").write_bytes(b"\x89PNG and no more")
    kept = Path("runs/run/retrain/export")
    models = ["run", *(str(kept / place) for place in ("model.onnx", "model.pt2", "timm", "hf"))]
    answers = []
    for model in models:
        done = call(shipped, "predict", model, "seven.png", "broken.png", "--json")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "broken.png" in done.stderr
        answers.append(json.loads(done.stdout)[0]["classes"])
    for answer in answers[1:]:
        assert [one["label"] for one in answer] == [one["label"] for one in answers[0]]
        assert answer[0]["probability"] == pytest.approx(answers[0][0]["probability"], abs=1e-5)


def test_the_timm_export_is_a_timm_model_after_one_import(shipped):
    folder = shipped / "runs" / "run" / "retrain" / "export" / "timm"
    (module,) = folder.glob("mixnas_*.py")
    script = (
        f"import timm, torch, {module.stem} as name\n"
        f"weights = {str(module.with_suffix('.safetensors'))!r}\n"
        f"network = timm.create_model({module.stem!r}, checkpoint_path=weights).eval()\n"
        "assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)\n"
        f"name = {module.stem!r}\n"
        "pyramid = timm.create_model(name, features_only=True, checkpoint_path=weights)\n"
        "maps = pyramid(torch.zeros(1, 3, 64, 64))\n"
        "assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()\n"
        "assert [64 // m.shape[2] for m in maps] == pyramid.feature_info.reduction()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{folder}:{Path.cwd()}"},
    )
    assert done.returncode == 0, done.stderr
