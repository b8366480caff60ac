"""A sweep, killed twice and restarted, beside as many separate searches, by the clock.

    python benchmarks/sweeping.py --runs RUNS [--budgets 0.5GFLOPs,1GFLOPs,1.5GFLOPs] [--seeds 0,1]
                                  [--epochs 8] [--trials 60] [--kills 2]

Both do the same on digits: every budget with every seed. The sweep is killed once while its
supernet trains and once while it searches (`--kills 0`: never), each time with all its processes;
what was lost by that is in its time. Then each search runs as a command of its own, which trains a
supernet of its own. PASS if the sweep trained one supernet, its table has a row for each search and
every search has each of its trials once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas
import psutil


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from mixnas.cli import main; main()", *words]


def finish(words: list[str], folder: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    began = time.monotonic()
    subprocess.run(command(*words), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def killed(words: list[str], folder: Path, ready: Callable[[], bool]) -> float:
    """Run a command until it is ready to be killed; return the seconds that it had."""
    began = time.monotonic()
    with subprocess.Popen(command(*words), cwd=folder, stdout=subprocess.DEVNULL) as process:
        while not ready():
            if process.poll() is not None:
                sys.exit(f"{' '.join(words)}: ended before it could be killed")
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    for child in family:
        if child.is_running():
            child.kill()
    return time.monotonic() - began


def told(log: Path) -> list[int]:
    if not log.is_file():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines()[1:] if line.endswith("}")]
    return [line["tell"] for line in lines if "tell" in line]


def logs(sweep: Path) -> list[Path]:
    return list(sweep.glob("*/log.jsonl"))


def trains(sweep: Path, steps: int) -> bool:
    path = sweep / "status.json"
    status = json.loads(path.read_text()) if path.is_file() else {}
    return status.get("stage") == "training" and status["done"] >= steps


def verdict(sweep: Path, searches: int, trials: int) -> str:
    table = pandas.read_csv(sweep / "sweep.csv")
    records = [json.loads(path.read_text()) for path in sweep.glob("*/supernet.json")]
    trained = len({record["weights"] for record in records})
    complete = [sorted(told(log)) == list(range(trials)) for log in logs(sweep)]
    whole = trained == 1 and len(table) == len(complete) == searches and all(complete)
    return (
        f"{'PASS' if whole else 'FAIL'}: {trained} supernet, {len(table)} rows, "
        f"{sum(complete)} of {searches} searches with each trial once"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="an empty folder")
    parser.add_argument("--space", default="default")
    parser.add_argument("--budgets", default="0.5GFLOPs,1GFLOPs,1.5GFLOPs")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, choices=(0, 1, 2), default=2)
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    if any(asked.runs.iterdir()):
        parser.error(f"{asked.runs} is not empty: what is there would not be timed")
    common = ["--space", asked.space, "--epochs", asked.epochs, "--trials", str(asked.trials)]
    common += ["--runs", str(asked.runs.absolute()), "--quiet"]
    words = ["sweep", "--budget", asked.budgets, "--seed", asked.seeds, *common, "--name", "study"]
    each = list(product(asked.budgets.split(","), asked.seeds.split(",")))
    sweep = asked.runs / "study"
    half = len(each) * asked.trials // 2
    moments = [
        lambda: trains(sweep, 50),
        lambda: sum(len(told(log)) for log in logs(sweep)) >= half,
    ]
    parts = [killed(words, asked.runs, moment) for moment in moments[: asked.kills]]
    together = sum(parts) + finish(words, asked.runs)
    print(f"the sweep, killed {asked.kills} times: {together:,.0f} s", flush=True)
    print(verdict(sweep, len(each), asked.trials), flush=True)
    apart = 0.0
    for budget, seed in each:
        words = ["search", "--budget", budget, "--seed", seed, "--fresh", *common]
        apart += finish(words, asked.runs)
        print(f"  {budget}, seed {seed}: {apart:,.0f} s in all so far", flush=True)
    ratio = apart / together
    print(f"{len(each)} separate searches: {apart:,.0f} s, {ratio:.2f} times as long as the sweep")
    return 0


if __name__ == "__main__":
    sys.exit(main())
