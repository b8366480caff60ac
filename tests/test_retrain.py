"""`mixnas retrain`: from a description to weights, through kills, mistakes and processes."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mixnas
from mixnas import mixers
from mixnas.arch import Architecture, Block, Stage, Stem
from mixnas.data import load
from mixnas.errors import InvalidOption, RunConflict
from mixnas.jobs.retrain import retrain
from mixnas.jobs.retrain_settings import Conditions, RetrainSettings, command, words
from mixnas.jobs.retraining import carry_out, prepare, summary
from mixnas.jobs.settings import Silent
from mixnas.jobs.subject import resolve
from mixnas.model import Model
from mixnas.run import Run
from mixnas.train.world import World

ARCH = Architecture(
    Stem("conv8"),
    (
        Stage(16, (Block.of("xnorm", 2.0, head_width=8), Block.of("identity", 1.0))),
        Stage(24, (Block.of("attention", 2.0, head_width=8),)),
    ),
)
FAST = (
    "import sys; import mixnas.jobs.long_training as training; training.EVERY = {every}; "
    "from mixnas.cli import main; main()"
)


@pytest.fixture
def arch(tmp_path):
    path = tmp_path / "arch.json"
    path.write_text(ARCH.to_json())
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes of small pictures, 101 of them to test on."""
    return pictures(tmp_path / "photos", {"train": 30, "test": 51}, last=50)


def pictures(root, sizes, last):
    """Write class folders; the second class has `last` test pictures."""
    rng = np.random.default_rng(0)
    for part, number in sizes.items():
        for label, name in enumerate(("dark", "light")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(last if part == "test" and label else number):
                pixels = rng.integers(0, 120, (20, 24, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
    return root


def process(*words, cwd, every=30.0, launcher=(), **options):
    line = [*launcher, "-c", FAST.format(every=every), "retrain", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, *line], cwd=cwd, env=environment, **options)


def finished(*words, **options):
    running = process(*words, **options)
    out, err = running.communicate(timeout=280)
    return running.returncode, out, err


# One process


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_retraining_leaves_what_it_promises_and_reads_the_test_set_once(arch, tmp_path):
    run = retrain(arch, epochs=2, runs=tmp_path / "runs", listener=Silent())
    assert run.name == f"digits-{ARCH.id}-quick-seed0"
    found, figures = summary(run), run.read("metrics.json")
    assert found["images"] == figures["images"] == 359
    assert figures["top1"] == pytest.approx(np.trace(figures["confusion"]) / 359)
    assert len(run.read("metrics.csv")) == 2
    assert {"model.json", "model.safetensors", "report.html", "metrics.csv"} <= set(found["files"])
    model = Model.from_dict(run.read("model.json"))
    network = model.load(run.file("model.safetensors"))
    data = load("digits")
    right = total = 0
    with torch.no_grad():
        for images, labels in data.batches("test", batch=50):
            right += int((network(images).argmax(1) == labels).sum())
            total += len(labels)
    assert right / total == pytest.approx(found["top1"])
    assert not run.file("checkpoint.pt").exists()
    before = run.file("model.safetensors").stat().st_mtime_ns
    again = retrain(arch, epochs=2, runs=tmp_path / "runs")
    assert again.file("model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_five_random_moments_the_weights_are_those_of_the_undisturbed(arch, tmp_path):
    words = [arch, "--epochs", 40, "--recipe", recipe(tmp_path), "--name"]
    code, _, err = finished(*words, "whole", cwd=tmp_path, every=0.1)
    assert code == 0, err
    rng = random.Random(3)
    for kill in range(5):
        running = process(*words, "killed", cwd=tmp_path, every=0.1)
        wanted = rng.randint(6 * kill + 1, 6 * kill + 6)  # epochs on record
        while epochs(tmp_path / "runs" / "killed") < wanted and running.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        assert running.poll() is None, running.communicate()[1]
        running.send_signal(signal.SIGKILL)
        running.communicate()
    code, _, err = finished(*words, "killed", cwd=tmp_path, every=0.1)
    assert code == 0, err
    assert "training goes on at step" in err
    whole, killed = (load_file(tmp_path / "runs" / n / "model.safetensors") for n in NAMES)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    tables = [pandas.read_csv(tmp_path / "runs" / n / "metrics.csv") for n in NAMES]
    same = ["epoch", "step", "lr", "loss", "val_loss", "val_accuracy"]
    pandas.testing.assert_frame_equal(tables[0][same], tables[1][same])


def epochs(folder):
    """Count the epochs that a training has on record."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


NAMES = ("whole", "killed")


def recipe(folder):
    """Everything that draws random numbers, at once."""
    path = folder / "all.toml"
    path.write_text(
        'base = "quick"\nbatch = 128\nmixup = 0.8\ncutmix = 1.0\ndrop_path = 0.2\nema = 0.9\n'
        "[augmentation]\nshift = true\nerasing = 0.25\nrepeats = 2\n"
    )
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_last_whole_step_and_says_how_to_go_on(arch, tmp_path, number):
    words = [arch, "--epochs", 400, "--name", "stopped"]
    running = process(*words, cwd=tmp_path)
    folder = tmp_path / "runs" / "stopped"
    for _ in range(600):
        time.sleep(0.1)
        if (folder / "plan.json").exists():
            break
    time.sleep(4)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"mixnas retrain {arch} --epochs 400 --name stopped" in err
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["trainer"]["step"] > 0


def test_a_curve_that_was_not_written_behind_its_checkpoint_is_made_whole(arch, tmp_path):
    settings, alone = RetrainSettings(str(arch), epochs=2), World.alone("cpu")
    conditions = Conditions(device="cpu")
    task = prepare(settings, conditions, tmp_path, "run", alone, Silent(), processes=1)
    carry_out(task, Silent(), until=1)
    curve = tmp_path / "run" / "metrics.csv"
    whole = curve.read_bytes()
    assert len(whole.splitlines()) == 2
    curve.write_bytes(whole.splitlines(keepends=True)[0])
    carry_out(task, Silent(), until=1)
    assert curve.read_bytes() == whole


def test_a_damaged_checkpoint_and_one_of_another_training_are_one_line(arch, tmp_path, cli):
    runs = tmp_path / "runs"
    task = RetrainSettings(subject=str(arch), data="digits", epochs=1)
    run = begun(arch, runs)
    for content in (b"", b"PK\x03\x04 cut short", pickled()):
        run.file("checkpoint.pt").write_bytes(content)
        code, out, err = cli("retrain", arch, "--epochs", 1, "--runs", runs, "--quiet")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "checkpoint.pt is damaged; remove it and repeat" in err
    torch.save({"task": {"source": "another"}, "trainer": {}}, run.file("checkpoint.pt"))
    assert "checkpoint.pt" in cli("retrain", arch, "--epochs", 1, "--runs", runs, "-q")[2]
    assert words(run) == " ".join(map(str, command(task, runs, run.name)))


def begun(arch, runs):
    """Make a retraining's folder as if it had been stopped before its first step."""
    settings = RetrainSettings(subject=str(arch), epochs=1)
    task = prepare(settings, Conditions(), runs, None, World.alone("cpu"), Silent())
    run = Run.create(runs, task.name, task.kept)
    run.write("plan.json", {"step_seconds": 1.0, "memory": 1})
    run.close()
    return run


def pickled():
    """A file of PyTorch's that would call a function if it were unpickled."""
    buffer = io.BytesIO()
    torch.save({"a": os.system}, buffer)
    return buffer.getvalue()


# Mistakes

BAD = [
    (["nosuch"], "no run 'nosuch'.*ARCH.json or zoo:NAME"),
    (["shvit_s1"], "zoo:shvit_s1"),
    (["zoo:shvti_s1"], "did you mean 'shvit_s1'"),
    (["no/such.json"], "no/such.json: cannot be read"),
    (["ARCH", "--epochs", "0"], "epochs 0.*at least 1"),
    (["ARCH", "--epochs", "x"], "--epochs 'x'.*whole number"),
    (["ARCH", "--batch", "1"], "batch 1.*at least 2"),
    (["ARCH", "--batch", "5000"], "--batch 5000: 1,079 images.*up to 1079"),
    (["ARCH", "--rate", "0"], "rate 0: must be above 0"),
    (["ARCH", "--rate", "nan"], "rate nan"),
    (["ARCH", "--precision", "fp8"], "no precision 'fp8'"),
    (["ARCH", "--recipe", "diet"], "'diet'.*did you mean 'deit'"),
    (["ARCH", "--recipe", "no.toml"], "recipe no.toml: cannot be read"),
    (["ARCH", "--init", "supernet"], "comes from no search"),
    (["ARCH", "--init", "no.safetensors"], "no such file"),
    (["ARCH", "--teacher", "resnet18"], "teacher 'resnet18'.*timm:NAME"),
    (["ARCH", "--teacher", "timm:resnet99999"], "timm knows no 'resnet99999'"),
    (["ARCH", "--teacher", "supernet"], "comes from no search"),
    (["ARCH", "--teacher-weights", "x"], "--teacher-weights without --teacher"),
    (["ARCH", "--width", "2"], "only a published network"),
    (["zoo:shvit_s1", "--width", "-1"], "width"),
    (["ARCH", "--data", "no/such"], "no such folder"),
    (["ARCH", "--device", "tpu"], "no device 'tpu'"),
    (["ARCH", "--gpus", "0"], "gpus 0.*at least 1"),
    (["ARCH", "--accumulate", "0"], "accumulate 0.*at least 1"),
    (["ARCH", "--name", "a/b"], "run name"),
    (["ARCH", "--sync-norms"], "synchronised batch norms need CUDA"),
]


@pytest.mark.parametrize(("given", "pattern"), BAD)
def test_a_mistake_is_one_line_and_writes_nothing(cli, arch, tmp_path, monkeypatch, given, pattern):
    monkeypatch.chdir(tmp_path)
    line = [str(arch) if word == "ARCH" else word for word in given]
    code, out, err = cli("retrain", *line)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert re.search(pattern, last), last
    assert last.startswith("mixnas: ")
    assert not list(tmp_path.glob("runs/*/model*"))


def test_weights_of_another_architecture_are_refused_by_name(cli, arch, tmp_path):
    other = mixnas.build(ARCH, 10).state_dict() | {"head.bias": torch.zeros(10)}
    other.pop("norms.16.weight")
    path = tmp_path / "other.safetensors"
    save_file(other, path)
    code, _, err = cli("retrain", arch, "--init", path, "--runs", tmp_path / "runs", "-q")
    assert code == 2
    assert "not weights of architecture" in err
    assert "'norms.16.weight' is missing" in err
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = cli("retrain", arch, "--init", path, "--runs", tmp_path / "runs", "-q")
    assert code == 2
    assert "cannot be read" in err


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{", "not JSON"),
        ("[]", "not an architecture"),
        ('{"format": 1, "stem": {"kind": "conv9"}, "stages": []}', "no stem 'conv9'"),
        (ARCH.to_json().replace("xnorm", "xnrom"), "no mixer 'xnrom'; did you mean 'xnorm'"),
        (ARCH.to_json().replace("head_width", "head"), "no knob 'head'; did you mean 'head_"),
        (ARCH.to_json().replace('"width":24', '"width":20'), "stage 2: mixer .attention. at"),
        (ARCH.to_json().replace('"width":16', '"width":-4'), "width -4"),
    ],
)
def test_a_file_without_an_architecture_says_what_is_wrong(cli, tmp_path, text, pattern):
    path = tmp_path / "broken.json"
    path.write_text(text)
    code, _, err = cli("retrain", path, "--runs", tmp_path / "runs")
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(pattern, err), err


@pytest.mark.parametrize("mixer", mixers.names())
def test_a_file_may_hold_any_mixer(tmp_path, mixer):
    knobs = {knob: values[0] for knob, values in mixers.get(mixer).knobs.items()}
    arch = Architecture(Stem("conv8"), (Stage(64, (Block.of(mixer, 1.0, **knobs),)),))
    path = tmp_path / "arch.json"
    path.write_text(arch.to_json())
    assert resolve(str(path), tmp_path).source == {"arch": arch.to_dict()}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("epoch = 3", "no field 'epoch'; did you mean 'epochs'"),
        ('drop_path = "lots"', "drop_path 'lots': a number is needed"),
        ("optimizer = 3", "optimizer 3: a text is needed"),
        ("frozen_norms = 1", "frozen_norms 1: true or false is needed"),
        ("epochs = 0", "epochs 0"),
        ("epochs = 2.5", "epochs 2.5"),
        ('base = "diet"', "no base 'diet'; did you mean 'deit'"),
        ("mixup = -1", "mixup -1"),
        ("[augmentation]\nhflop = 1", "no field 'hflop'; did you mean 'hflip'"),
        ("[augmentation]\nerasing = 2", "erasing"),
        ("augmentation = 3", "augmentation"),
        ("epochs = [", "cannot be read"),
        ('optimizer = "nosuchopt"', "nosuchopt"),
    ],
)
def test_a_recipe_file_that_is_wrong_is_one_line_and_leaves_no_folder(
    cli, arch, tmp_path, text, pattern
):
    path = tmp_path / "own.toml"
    path.write_text(text)
    code, _, err = cli("retrain", arch, "--recipe", path, "--runs", tmp_path / "runs", "-q")
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(pattern, err), err
    assert not (tmp_path / "runs").exists()


def test_images_that_changed_are_refused_by_a_training_begun_before(arch, tmp_path, photos, cli):
    runs = tmp_path / "runs"
    line = ["retrain", arch, "--data", photos, "--epochs", 1, "--batch", 10, "--runs", runs, "-q"]
    assert cli(*line)[0] == 0
    (run,) = (Run.open(path) for path in runs.iterdir())
    described = run.file("model.json").read_bytes()
    run.file("model.json").write_bytes(described[:50])
    assert cli(*line)[0] == 0
    assert run.file("model.json").read_bytes() == described
    (photos / "train" / "dark" / "000.png").unlink()
    code, _, err = cli(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "the images are not those that it was begun with" in err
    code, _, err = cli("export", run.path, "--to", "pt2", "--runs", runs, "-q")
    assert code == 2
    assert "is not what" in err


def test_other_settings_are_refused_and_named(arch, tmp_path):
    runs = tmp_path / "runs"
    run = begun(arch, runs)
    with pytest.raises(RunConflict, match="epochs: was 1, now 2"):
        retrain(arch, epochs=2, runs=runs, name=run.name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_images_that_break_or_vanish_in_training_are_named_and_lose_nothing(arch, tmp_path, photos):
    words = [arch, "--data", photos, "--epochs", 3, "--batch", 10, "--workers", 0]
    words += ["--resolution", 32, "--name", "lost"]
    broken = photos / "train" / "dark" / "000.png"
    kept = broken.read_bytes()
    running = process(*words, cwd=tmp_path, every=0.0)
    folder = tmp_path / "runs" / "lost"
    for _ in range(1200):
        time.sleep(0.02)
        if (folder / "plan.json").exists():
            break
    broken.write_bytes(kept[:60])
    _, err = running.communicate(timeout=100)
    assert running.returncode == 2, err
    last = err.splitlines()[-1]
    assert "000.png" in last
    assert "goes on" in last
    broken.write_bytes(kept)
    code, _, err = finished(*words, cwd=tmp_path)
    assert code == 0, err
    assert json.loads((folder / "metrics.json").read_text())["images"] == 101


# Several processes


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_test_every_image_once_by_either_launcher(arch, tmp_path, photos):
    words = [arch, "--data", photos, "--epochs", 1, "--batch", 10, "--resolution", 32]
    words += ["--device", "cpu"]
    code, out, err = finished(*words, "--gpus", 2, "--name", "ours", cwd=tmp_path)
    assert code == 0, err
    assert out.count("test top-1") == 1
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "mixnas", "retrain", *map(str, words), "--name", "theirs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, *line],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = [
        json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
        for name in ("ours", "theirs")
    ]
    assert figures[0]["images"] == figures[1]["images"] == 101
    assert np.sum(figures[0]["confusion"], axis=1).tolist() == [51, 50]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_is_told_in_one_line_and_the_command_goes_on(arch, tmp_path):
    words = [arch, "--epochs", 300, "--device", "cpu", "--gpus", 2, "--name", "killed"]
    running = process(*words, cwd=tmp_path, every=0.5)
    folder = tmp_path / "runs" / "killed"
    for _ in range(1200):
        time.sleep(0.1)
        if (folder / "run.json").exists():
            break
    time.sleep(5)
    children = subprocess.run(
        ["pgrep", "-f", "launched.*|mixnas retrain"], capture_output=True, text=True, check=False
    )
    mine = [int(p) for p in children.stdout.split() if _is_child(int(p), running.pid)]
    assert mine
    os.kill(max(mine), signal.SIGKILL)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 2, err
    assert "killed by signal 9" in err.splitlines()[-1] or "lost" in err.splitlines()[-1], err


def _is_child(pid, parent):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
    except OSError:
        return False


def test_more_gpus_than_there_are_is_one_line(arch, tmp_path, cli):
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    code, _, err = cli("retrain", arch, "--gpus", 2, "--device", "cuda", "--runs", tmp_path)
    assert code == 2
    assert "no GPU" in err


def test_the_command_of_settings_asks_for_the_same():
    settings = RetrainSettings(
        subject="zoo:shvit_s1", epochs=3, rate=0.001, all_images=True, teacher="supernet"
    )
    line = command(settings, Path("elsewhere"), "name")
    assert " ".join(line) == (
        "mixnas retrain zoo:shvit_s1 --epochs 3 --rate 0.001 --teacher supernet --all-images "
        "--name name --runs elsewhere"
    )
    with pytest.raises(InvalidOption, match="precision"):
        RetrainSettings(subject="x", precision="int4").check()
