"""Kill a search five times at random moments; it must end as an undisturbed one does.

    python benchmarks/kill.py [--space micro] [--budget 8MFLOPs] [--trials 60] [--kills 5]

The whole process tree gets SIGKILL, then the same command runs again. The trials and the winner
are compared with those of an undisturbed run with the same seed, with one worker and with two.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

COMMAND = [sys.executable, "-c", "from mixnas.cli import main; main()", "search"]


def arguments(options: argparse.Namespace, workers: int, runs: Path) -> list[str]:
    return [
        *("--space", options.space, "--budget", options.budget, "--name", "run"),
        *("--trials", str(options.trials), "--epochs", str(options.epochs)),
        *("--seed", str(options.seed), "--workers", str(workers), "--runs", str(runs)),
        "--quiet",
    ]


def undisturbed(options: argparse.Namespace, workers: int, runs: Path) -> float:
    began = time.perf_counter()
    subprocess.run([*COMMAND, *arguments(options, workers, runs)], check=True, capture_output=True)
    return time.perf_counter() - began


def kill_tree(job: subprocess.Popen) -> int:
    root = psutil.Process(job.pid)
    victims = [*root.children(recursive=True), root]
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    job.wait()
    return len(victims)


def disturbed(options: argparse.Namespace, seconds: float, runs: Path) -> None:
    rng = random.Random(options.seed)
    log = runs / "run" / "log.jsonl"
    for number in range(options.kills):
        # Half of the kills come at any moment, half wait for the search to be under way.
        job = subprocess.Popen(
            [*COMMAND, *arguments(options, 2, runs)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.perf_counter() + rng.uniform(5, seconds)
        lines = _lines(log) + rng.randrange(2, max(3, options.trials // 2))
        while job.poll() is None and time.perf_counter() < deadline:
            if number % 2 and _lines(log) >= lines:
                break
            time.sleep(0.05)
        if job.poll() is None:
            stages = _stages(runs)
            print(
                f"kill {number + 1}: {kill_tree(job)} processes, done: {stages or 'nothing'}, "
                f"{_lines(log)} lines of log"
            )
        else:
            print(f"kill {number + 1}: came too late, the search had ended")
    undisturbed(options, 2, runs)


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _stages(runs: Path) -> str:
    path = runs / "run" / "stages.json"
    return ", ".join(json.loads(path.read_text())) if path.exists() else ""


def outcome(runs: Path) -> tuple[dict, str]:
    """Return every trial's outcome, told once each, and the winner."""
    told: dict[int, list] = {}
    asked = {}
    for line in (runs / "run" / "log.jsonl").read_text().splitlines()[1:]:
        entry = json.loads(line)
        if "ask" in entry:
            assert entry["ask"] not in asked, "asked twice"
            asked[entry["ask"]] = entry["arch"]
        else:
            assert entry["tell"] not in told, "told twice"
            told[entry["tell"]] = [entry["accuracy"], entry["loss"], entry["images"]]
    assert asked.keys() == told.keys(), "a trial is left pending"
    trials = {n: [asked[n], told[n]] for n in sorted(asked)}
    return trials, (runs / "run" / "best.json").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="micro")
    parser.add_argument("--budget", default="8MFLOPs")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = undisturbed(options, 2, folder / "two")
        print(f"undisturbed, two workers: {seconds:.0f} s")
        print(f"undisturbed, one worker: {undisturbed(options, 1, folder / 'one'):.0f} s")
        disturbed(options, seconds, folder / "killed")
        two, one, killed = (outcome(folder / which) for which in ("two", "one", "killed"))
        print(f"trials: {len(two[0])}, {len(one[0])}, {len(killed[0])}")
        print(f"one worker gives the same trials and winner: {one == two}")
        print(f"killed {options.kills} times gives the same trials and winner: {killed == two}")


if __name__ == "__main__":
    main()
