"""Ten searches over one supernet, under latency limits from tight to loose: are they kept?

    python benchmarks/limits.py --runs /tmp/limits            # about half an hour on 2 quiet cores
    python benchmarks/limits.py --runs /tmp/limits --space micro --image 64 --trials 12 --epochs 2

The supernet is trained once, for the loosest limit. Each winner is timed whole twice, each time in
a new process and in turn with the reference network. A limit is kept if the lower quartile of the
first timing is within it, and the median within the limit widened by the noise floor: the median
difference of the two timings of a network. Both verdicts are told: as the clock read it, which
counts, and scaled to the reference's time when the table was measured, which says what the clock
would have read had the machine not changed its speed since (roughly: a network and the reference do
not slow down quite alike). It resumes: a finished search and a timing that is on record are not
repeated. Exit code 1 if the clock says that a limit is missed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixnas.arch import Architecture
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.jobs.finalists import name_winner
from mixnas.jobs.measuring import stopwatch
from mixnas.jobs.problem import PLAN, Plan, Problem, prepare
from mixnas.jobs.reuse import WEIGHTS
from mixnas.jobs.search import search
from mixnas.jobs.settings import Settings, Silent
from mixnas.jobs.stages import first_round, search_supernet
from mixnas.network import build
from mixnas.run import Run
from mixnas.timing.conditions import Conditions

TIMINGS = "timings.json"


class Told(Silent):
    """Says what the searches note."""

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)


def settings(options: argparse.Namespace, limit: float) -> Settings:
    """Return a search under one limit, in milliseconds."""
    return Settings(
        budget=(f"{limit:g}ms@{options.where}",),
        space=options.space,
        image=options.image,
        trials=options.trials,
        epochs=options.epochs,
        seed=0,
        device="cpu",
    )


def spread(problem: Problem, count: int) -> list[float]:
    """Return limits evenly spaced by their logarithm, between what the space reaches."""
    table = problem.tables[problem.limits[0].cost]
    everything = Feasible(problem.full, (Limit(problem.limits[0].cost, 0, 10**15),), problem.tables)
    low, high = table(everything.least()), table(everything.greatest())
    # Below 1.15 times the least there is next to nothing to choose; above half nothing is limited.
    return [float(f"{value / 1e6:.3g}") for value in np.geomspace(1.15 * low, 0.5 * high, count)]


def one(base: Problem, trained: Run, options: argparse.Namespace, limit: float) -> Run:
    """Search under a tighter limit by the base run's supernet."""
    name = f"limit-{limit:g}ms"
    problem = prepare(settings(options, limit), Path(options.runs), name, Silent())
    feasible = Feasible(base.space, problem.limits, problem.tables)
    problem = replace(problem, space=base.space, feasible=feasible)
    with problem.open_run() as run:
        if not run.done("training"):
            shutil.copy(trained.file(WEIGHTS), run.file(WEIGHTS))
            run.write(PLAN, trained.read(PLAN))
            run.mark("training", seconds=0.0)
        plan = Plan.of(run)
        trials = search_supernet(problem, run, options.workers, Told(), first_round(problem))
        name_winner(problem, plan, run, trials, options.workers, Told())
    return run


def timed(run: Run, options: argparse.Namespace) -> list[dict]:
    """Time a run's winner in two new processes, or return what is on record."""
    path = run.file(TIMINGS)
    if not path.is_file():
        words = [sys.executable, __file__, "--time", str(run.file("best.json")), "--runs", "-"]
        words += ["--classes", str(run.read("summary.json")["classes"])]
        words += ["--image", str(run.read("summary.json")["image"]), "--where", options.where]
        found = [json.loads(subprocess.check_output(words, text=True)) for _ in range(2)]
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def time_winner(options: argparse.Namespace) -> None:
    """Print the timing of one architecture, as a process of its own."""
    arch = Architecture.from_json(Path(options.time).read_text())
    network = build(arch, options.classes).eval()
    watch = stopwatch(Conditions.at(options.where), patience=60.0)
    (found,) = watch.interleave([network], (3, options.image, options.image), rounds=24)
    print(json.dumps(found.to_dict()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--space", default="default")
    parser.add_argument("--image", type=int)
    parser.add_argument("--where", default="cpu", help="cpu or cpu:onnxruntime")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--time", help="used by the script itself")
    parser.add_argument("--classes", type=int, help="used by the script itself")
    options = parser.parse_args()
    if options.time:
        time_winner(options)
        return 0
    runs = Path(options.runs)
    loosest = spread(prepare(settings(options, 1e6), runs, "probe", Silent()), options.count)
    print("limits in ms:", ", ".join(f"{limit:g}" for limit in loosest), flush=True)
    base = settings(options, loosest[-1])
    kept = {name: getattr(base, name) for name in ("space", "image", "trials", "epochs", "device")}
    trained = search(base.budget, **kept, name="base", runs=runs, workers=options.workers)
    assert isinstance(trained, Run)
    problem = prepare(base, runs, "base", Silent())
    reference = problem.devices[problem.limits[0].cost].reference
    rows = []
    for limit in loosest:
        run = one(problem, trained, options, limit)
        first, second = timed(run, options)
        rows.append((limit, run.read("summary.json"), first, second))
        print(f"{limit:g} ms searched and timed", flush=True)
    return verdict(rows, reference)


def verdict(rows: list, reference: float) -> int:
    """Print the table; return 1 if a limit is missed."""
    scaled = [[t["median"] * reference / t["reference"] for t in row[2:]] for row in rows]
    floor = statistics.median(abs(a - b) / ((a + b) / 2) for a, b in scaled)
    heads = ("limit", "predicted", "upper", "finalist", "lower", "median", "scaled l.", "scaled m.")
    print("".join(f"{head:>11}" for head in heads), " within")
    missed, apart = 0, 0
    for limit, summary, first, _ in rows:
        winner = summary["winner"]
        (told,) = winner["predicted"].values()
        (measured,) = (v for k, v in winner.items() if k.startswith("latency_ms@"))
        factor = reference / first["reference"]
        lower, median = first["lower"] * factor, first["median"] * factor
        by_clock = first["lower"] <= limit and first["median"] <= limit * (1 + floor)
        by_scale = lower <= limit and median <= limit * (1 + floor)
        missed += not by_clock
        apart += not by_scale
        finalist = measured["median"] if measured else float("nan")
        cells = (told["value"], told["high"], finalist, first["lower"], first["median"])
        print(
            f"{limit:>11g}" + "".join(f"{cell:>11.2f}" for cell in (*cells, lower, median)), end=""
        )
        print(f"  {'yes' if by_clock else 'NO'}{'' if by_scale else ' (not as scaled)'}")
    print(f"noise floor {floor:.1%} (two processes, scaled); reference {reference:.2f} ms")
    print(f"as scaled to the reference, {len(rows) - apart} of {len(rows)} limits are kept")
    print(f"by the clock, {len(rows) - missed} of {len(rows)}: {'FAIL' if missed else 'PASS'}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
