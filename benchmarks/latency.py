"""Held-out random networks, predicted against measured: is a predicted latency true?

    mixnas measure --device cpu
    python benchmarks/latency.py
    mixnas measure --device cpu --runtime onnxruntime
    python benchmarks/latency.py --runtime onnxruntime

Reads nothing but the `predictor.json` of a run of `mixnas measure`. Networks that its calibration
never saw are drawn from the space (seed 1000), and each is timed whole twice, by two processes, in
turn with the reference network; what the two processes differ by is the noise floor. The two passes
take the networks in different orders. A timing on record is not repeated, so it resumes. Exit code
1 if a bar is missed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from torch import nn

from mixnas.arch import Architecture
from mixnas.cost.predictor import Predictor
from mixnas.errors import TooNoisy
from mixnas.exports.placed import Written
from mixnas.jobs.graphs import Graphs
from mixnas.jobs.measuring import Bench, draws, sized, stopwatch
from mixnas.network import build
from mixnas.report.drawing import png
from mixnas.report.measured import calibration_figure, judged
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions

SEED = 1000
REFUSALS = 20
"""Timings in a row that the stopwatch may refuse before a pass gives up."""


def conditions_of(predictor: Predictor) -> Conditions:
    """Return the conditions under which a predictor's table was measured."""
    told = predictor.measured.conditions
    names = ("device", "runtime", "threads", "batch", "precision")
    return Conditions(**{name: told[name] for name in names})


def held_out(predictor: Predictor, space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Return random networks that the predictor was not calibrated on."""
    seen = {arch.id for arch in predictor.measured.networks}
    drawn = draws(space, count + len(seen), seed)
    return [arch for arch in drawn if arch.id not in seen][:count]


def records(path: Path) -> Iterator[dict]:
    """Yield the timings on record; a line that a kill cut short is none."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def one_pass(number: int, predictor: Predictor, archs: Sequence[Architecture], path: Path) -> None:
    """Time every network whole that has no timing of this pass, in an order of its own."""
    done = {record["id"] for record in records(path) if record["pass"] == number}
    waiting = deque(arch for arch in archs if arch.id not in done)
    Random(number).shuffle(waiting)
    told = predictor.measured.conditions
    conditions = conditions_of(predictor)
    watch = stopwatch(conditions, told["reference_ms"])
    refused = 0
    while waiting:
        arch = waiting.popleft()
        network = network_of(arch, conditions, told["classes"], path)
        try:
            found = watch.time(network, (3, told["image"], told["image"]))
        except TooNoisy as error:
            refused += 1
            if refused > REFUSALS:
                raise
            print(f"pass {number}, {arch.id}: later: {error}", flush=True)
            waiting.append(arch)
            time.sleep(2)
            continue
        refused = 0
        with path.open("a") as file:
            file.write(json.dumps({"pass": number, "id": arch.id, **found.to_dict()}) + "\n")
        print(
            f"pass {number}, {arch.id}: {found.median:.2f} ms as of the table's reference, "
            f"{found.raw:.2f} ms by the clock; {len(waiting)} to go",
            flush=True,
        )


def network_of(arch: Architecture, conditions: Conditions, classes: int, path: Path) -> nn.Module:
    """Return what is placed: the network, or the graph that `write_graphs` wrote of it."""
    if conditions.runtime == "onnxruntime":
        return Written(folder_of(path) / f"{arch.id}.onnx")
    return build(arch, classes).eval()


def folder_of(path: Path) -> Path:
    """Return the folder of the graphs, which stays until both passes are done."""
    return path.with_suffix(".graphs")


def write_graphs(archs: Sequence[Architecture], space: SearchSpace, path: Path) -> None:
    """Write what ONNX Runtime runs, by several processes, before anything is timed."""
    with Graphs(folder_of(path), space) as graphs:
        for number in range(0, len(archs), 4):
            graphs.write(archs[number : number + 4])
            print(f"{min(number + 4, len(archs))} of {len(archs)} graphs", flush=True)


def apart(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Return how far the two of each pair are apart, as a share of their mean."""
    return [abs(first - second) * 2 / (first + second) for first, second in pairs]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def verdict(predictor: Predictor, archs: Sequence[Architecture], path: Path) -> bool:
    """Print the figures beside their bars, draw the scatter; say whether all bars are kept."""
    by_pass: list[dict[str, dict]] = [{}, {}]
    for record in records(path):
        by_pass[record["pass"]][record["id"]] = record
    first, second = ([found[arch.id] for arch in archs] for found in by_pass)
    times = [(a["median"], b["median"]) for a, b in zip(first, second, strict=True)]
    clock = apart([(a["raw"], b["raw"]) for a, b in zip(first, second, strict=True)])
    noise = apart(times)
    floor = statistics.median(noise)
    points = []
    for arch, pair in zip(archs, times, strict=True):
        found = predictor.predict(arch)
        ends = {"predicted": found.value, "low": found.low, "high": found.high}
        measured = sum(pair) / 2
        points.append({"id": arch.id, "stem": arch.stem.kind, **ends, "measured": measured})
    errors = [abs(point["predicted"] / point["measured"] - 1) for point in points]
    told = judged(points)
    near = sum(error <= floor + 0.10 for error in errors) / len(errors)
    above = sum(point["measured"] > point["high"] for point in points)
    shortest, longest = min(map(min, times)), max(map(max, times))
    print(f"conditions: {json.dumps(dict(predictor.measured.conditions))}")
    print(f"predictor: {json.dumps(predictor.quality)}")
    print(f"{len(archs)} networks held out, {shortest:.1f} to {longest:.1f} ms, each timed twice")
    print(
        f"noise floor: two processes differ by {floor:.1%} (median; 90th percentile "
        f"{quantile(noise, 0.9):.1%}); by the raw clock {statistics.median(clock):.1%} and "
        f"{quantile(clock, 0.9):.1%}"
    )
    print(f"90th percentile of the error {told['ninetieth']:.1%}; beyond the upper end: {above}")
    bars = (
        ("median absolute error", told["error"], "at most", floor + 0.05, "{:.1%}"),
        ("within the floor + 10 points", near, "at least", 0.90, "{:.1%}"),
        ("rank correlation (Spearman)", told["spearman"] or 0.0, "at least", 0.97, "{:.3f}"),
        ("covered by the interval", told["coverage"], "at least", 0.88, "{:.1%}"),
    )
    kept = True
    for name, value, sense, bar, shown in bars:
        good = value <= bar if sense == "at most" else value >= bar
        kept &= good
        print(
            f"{name:<30}{shown.format(value):>8}   {sense} {shown.format(bar):>6}   "
            f"{'PASS' if good else 'FAIL'}"
        )
    picture = path.with_suffix(".png")
    picture.write_bytes(png(calibration_figure(points, predictor.quality)))
    print(f"{picture}: predicted against measured")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runtime", default="eager", choices=("eager", "compile", "onnxruntime"))
    parser.add_argument("--space", default="default")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--predictor", type=Path, help="a run of mixnas measure, or its file")
    parser.add_argument("--out", type=Path, help="JSON lines of the timings; a PNG beside it")
    parser.add_argument("--pass", type=int, dest="number", help="used by the script itself")
    options = parser.parse_args()
    space = SearchSpace.load(options.space)
    bench = Bench(space, Conditions.of("cpu", options.runtime))
    path = options.predictor or Path("runs") / bench.name
    path = path / "predictor.json" if path.is_dir() else path
    if not path.is_file():
        parser.error(f"{path}: not there; first mixnas measure --runtime {options.runtime}")
    predictor = Predictor.from_dict(json.loads(path.read_text()))
    told, made = predictor.measured.conditions, conditions_of(predictor)
    here = made.to_dict() | {"runtime": options.runtime}
    if differing := [key for key, value in here.items() if told.get(key) != value]:
        parser.error(f"{path} was measured under other conditions ({', '.join(differing)})")
    space = sized(space, told["image"], told["classes"])
    archs = held_out(predictor, space, options.count, SEED)
    out = options.out or path.with_name("held_out.jsonl")
    if options.number is not None:
        one_pass(options.number, predictor, archs, out)
        return 0
    if options.runtime == "onnxruntime" and len(list(records(out))) < 2 * len(archs):
        write_graphs(archs, space, out)
    for number in (0, 1):
        words = [*sys.argv[1:], "--pass", str(number)]
        subprocess.run([sys.executable, __file__, *words], check=True)
    shutil.rmtree(folder_of(out), ignore_errors=True)
    return 0 if verdict(predictor, archs, out) else 1


if __name__ == "__main__":
    sys.exit(main())
