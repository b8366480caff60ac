"""The main job as a user runs it: time, memory, what the supernet learnt, the winner's count.

    python benchmarks/main_job.py [-- extra arguments of mixnas search]

Runs `mixnas search --budget 1.5GFLOPs` in a fresh folder, samples the summed PSS of the whole
process tree (Linux), then checks the run from outside with the count of benchmarks/laws.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas
import psutil
from laws import independent_count

from mixnas import Architecture, build

GIB = 2**30


def tree_memory(root: psutil.Process) -> int:
    """Return the summed proportional set size of a process and its descendants, in bytes."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run(arguments: list[str], folder: Path) -> tuple[int, float, int]:
    command = [sys.executable, "-c", "from mixnas.cli import main; main()", "search", *arguments]
    began = time.perf_counter()
    job = subprocess.Popen(command, cwd=folder)
    peak = 0
    while job.poll() is None:
        peak = max(peak, tree_memory(psutil.Process(job.pid)))
        time.sleep(2)
    return job.returncode, time.perf_counter() - began, peak


def check(folder: Path) -> None:
    (path,) = (folder / "runs").glob("*/summary.json")
    summary = json.loads(path.read_text())
    trials = pandas.read_csv(path.parent / "trials.csv")
    best = Architecture.from_json((path.parent / "best.json").read_text())
    row = trials[trials["id"] == best.id].iloc[0]
    counted = independent_count(build(best, summary["classes"]), summary["image"])
    print(f"trials: {summary['trials']}")
    print(f"random feasible subnets: {json.dumps(summary['supernet']['random'])}")
    print(f"winner {best.id}: counted {counted:,}, in trials.csv {int(row['flops']):,}")
    assert counted == int(row["flops"]), "the independent count differs"
    print(f"greatest evaluated FLOPs: {int(trials['flops'].max()):,}")
    for budget in summary["budget"]:
        print(f"budget {budget}; winner's latency {summary['winner']['latency_ms']} ms")
    if "latency_ms" in trials:
        spread = trials["latency_ms"].agg(["min", "median", "max"]).to_dict()
        print(f"latency by the table over all trials, ms: {spread}")
    print(f"seconds: {summary['seconds']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arguments", nargs="*", default=["--budget", "1.5GFLOPs"])
    arguments = parser.parse_args().arguments
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code, seconds, peak = run(arguments, folder)
        print(f"exit code {code}, {seconds:.0f} s, peak PSS of the tree {peak / GIB:.2f} GiB")
        if code == 0:
            check(folder)


if __name__ == "__main__":
    main()
