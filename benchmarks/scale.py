"""What the driver costs: in virtual time with many workers, in Ray with few, and beside bare Tune.

    python benchmarks/scale.py simulate [--trials 20000] [--workers 256]
    python benchmarks/scale.py ray [--trials 10000] [--workers 2,4,8]
    python benchmarks/scale.py crew --trials 10000 --workers 2 --population 40
    python benchmarks/scale.py bare
    python benchmarks/scale.py speedup
    python benchmarks/scale.py record --run RUN

``simulate``: the search as it is, its log on disk included, against workers that exist in virtual
time only; an evaluation takes what one of ``scale-durations.csv`` took (recorded on digits, one
thread), its outcome comes from a table. Told are the workers' idle share, and in real time what the
driver spends on an architecture, early and late, and how its memory grows.

``ray``: real workers whose evaluations take no time, so that all that is measured is overhead: the
median over batches of the time from one answer to the next, an architecture; early (from trial
100) and late (up to the last), in a fresh process for each number of workers. Then the workers'
idle share when an evaluation takes 50 ms. Tune's bare figure comes first, in the same run. PASS if
no more than 20 ms an architecture, late no more than twice early, and memory grows by less than
100 MB per 10,000 trials. ``crew``: one number of workers of that alone.

``bare``: Tune alone, each trial reporting once: with an actor for each trial, and with actors used
again, which is how mixnas uses it.

``speedup``: the same architectures, judged by a real supernet's weights, by one bare process, by
two, and by two Ray workers, nine times in turn; PASS if the workers reach 0.9 of what the two
processes gain, in the median.

``record`` times the evaluations of a finished search anew, one thread, into the CSV.
"""

import argparse
import csv
import heapq
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from mixnas.arch import Architecture
from mixnas.asktell import Search
from mixnas.cluster import Crew, evaluate
from mixnas.cluster.desk import Desk
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import Limit
from mixnas.cost.table import CostTable
from mixnas.evaluate import Score
from mixnas.space import SearchSpace

DURATIONS = Path(__file__).parent / "scale-durations.csv"
SPACE = SearchSpace.load("default")
TURNS = 9
"""How often `speedup` measures each way: on shared cores one turn tells little."""


def digest(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") / 2**32


def judge(arch: Architecture, seconds: float = 0.0) -> Score:
    """A made-up truth: each choice has its worth, and the whole some noise of its own."""
    time.sleep(seconds)
    worths = [digest(f"{key} {value}") for key, value in SPACE.genotype(arch).items()]
    loss = statistics.fmean(worths) + 0.05 * digest(arch.id)
    return Score(1 - loss / 3, loss, 1000)


def make_judge(seconds: float = 0.0) -> Callable[[Architecture], Score]:
    return partial(judge, seconds=seconds)


def search(log: Path, trials: int, population: int, sampler: str) -> Search:
    limit = Limit.parse("1.5GFLOPs")
    table = CostTable(count.flops, image=SPACE.image, classes=SPACE.classes)
    feasible = Feasible(SPACE, [limit], {"flops": table})
    return Search(
        SPACE,
        feasible,
        costs={"flops": table},
        limits=[limit],
        sampler=sampler,
        trials=trials,
        population=population,
        log=log,
    )


def durations() -> list[float]:
    with DURATIONS.open() as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


@dataclass
class Simulation:
    """Workers in virtual time, served by a real desk.

    Attributes:
        desk: what hands out and takes in.
        workers: how many.
        seconds: what an evaluation takes.
        now: virtual time.
        busy: seconds that all workers together have worked.
        spent: real seconds of the driver and the trials told by then, one pair an answer.
    """

    desk: Desk
    workers: int
    seconds: list[float]
    now: float = 0.0
    busy: float = 0.0
    spent: list[tuple[int, float]] = field(default_factory=list)

    def run(self, told: Callable[[int], None]) -> None:
        """Serve all workers to the end; call `told` with the number of trials told so far."""
        idle, out, done, serial = list(range(self.workers)), [], 0, 0
        while True:
            began = time.perf_counter()
            handed = 0
            while idle and (batch := self.desk.next(f"w{serial}")):
                worker, name = idle.pop(), f"w{serial}"
                self.desk.started(name)
                serial, handed = serial + 1, handed + len(batch)
                took = sum(self.seconds[one.number % len(self.seconds)] for one in batch)
                self.busy += took
                heapq.heappush(out, (self.now + took, serial, worker, name, batch))
            if not out:
                break
            self.now, _, worker, name, batch = heapq.heappop(out)
            asked = time.perf_counter() - began
            outcomes = {one.number: judge(one.arch) for one in batch}
            began = time.perf_counter()
            self.desk.deliver(name, outcomes)
            self.desk.done(name)
            idle.append(worker)
            done += len(batch)
            self.spent.append((done, (asked + time.perf_counter() - began) / len(batch)))
            told(done)
        if self.desk.error:
            raise self.desk.error


def record(run: str) -> int:
    """Time the evaluation of every architecture of a search, as a worker does it."""
    import torch

    from mixnas.asktell import read_trials
    from mixnas.jobs.problem import reopen
    from mixnas.jobs.settings import Silent
    from mixnas.jobs.stages import supernet
    from mixnas.run import Run

    torch.set_num_threads(1)
    opened = Run.open(run)
    problem = reopen(opened, Silent())
    evaluator = problem.evaluator(supernet(problem, opened))
    archs = [trial.arch for trial in read_trials(opened.file("log.jsonl"))]
    evaluator(archs[0])
    with DURATIONS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "seconds"])
        for arch in archs:
            began = time.perf_counter()
            evaluator(arch)
            writer.writerow([arch.id, f"{time.perf_counter() - began:.4f}"])
    print(f"{len(archs)} evaluations, {statistics.median(durations()):.3f} s in the median")
    return 0


def memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


def between(spent: list[tuple[int, float]], low: int, high: int) -> float:
    return 1e3 * statistics.median(cost for done, cost in spent if low < done <= high)


def mean(spent: list[tuple[int, float]], low: int, high: int) -> float:
    return 1e3 * statistics.fmean(cost for done, cost in spent if low < done <= high)


def simulate(trials: int, workers: int, population: int, sampler: str) -> int:
    marks: dict[int, float] = {}
    begun = 2 * population  # the surrogate has been fitted, whatever that loads

    def told(done: int) -> None:
        for mark in (begun, trials):
            if done >= mark and mark not in marks:
                marks[mark] = memory()

    with tempfile.TemporaryDirectory() as folder:
        found = search(Path(folder) / "log.jsonl", trials, population, sampler)
        simulation = Simulation(Desk(found, lambda: workers, 5), workers, durations())
        began = time.perf_counter()
        simulation.run(told)
        wall = time.perf_counter() - began
        found.close()
    spent, late = simulation.spent, max(200, trials - 1000)
    idle = 1 - simulation.busy / (workers * simulation.now)
    grown = (marks[trials] - marks[begun]) * 10_000 / (trials - begun)
    print(f"{trials:,} trials, {workers} workers, generations of {population}, {sampler}")
    print(f"  virtual time {simulation.now:,.0f} s, workers idle {idle:.1%}; real {wall:,.0f} s")
    print(
        f"  driver, an architecture: median {between(spent, 100, 1100):.2f} ms from trial 100, "
        f"{between(spent, late, trials):.2f} ms at the end; "
        f"mean {mean(spent, 100, 1100):.2f} and {mean(spent, late, trials):.2f} ms"
    )
    print(f"  memory +{grown:.0f} MB per 10,000 trials ({marks[begun]:.0f} MB at {begun:,})")
    early, end = between(spent, 100, 1100), between(spent, late, trials)
    good = max(early, end) <= 20 and end <= 2 * early and grown < 100
    print(f"  {'PASS' if good else 'FAIL'}: 20 ms, 2 times and 100 MB are allowed")
    return 0 if good else 1


def in_ray(trials: int, workers: int, population: int, batch: int) -> tuple[float, float, float]:
    """Return the median overhead an architecture, early and late, and the growth of memory."""
    times: list[float] = []
    marks: dict[int, float] = {}

    def progress(_: Any) -> None:
        times.append(time.perf_counter())
        if len(times) in (100, trials):
            marks[len(times)] = memory()

    with tempfile.TemporaryDirectory() as folder:
        found = search(Path(folder) / "log.jsonl", trials, population, "random")
        evaluate(found, make_judge, Crew(workers), batch=batch, progress=progress)
        found.close()
    grown = (marks[trials] - marks[100]) * 10_000 / (trials - 100)
    window = min(1000, trials // 4)
    early, late = times[100 : 100 + window], times[-window:]
    return 1e3 * pace(early, batch), 1e3 * pace(late, batch), grown


def pace(times: list[float], batch: int) -> float:
    """Return the median over groups of batches of the seconds an architecture takes."""
    step = 4 * batch
    groups = [times[at + step] - times[at] for at in range(0, len(times) - step, step)]
    return statistics.median(groups) / step


def idle_in_ray(workers: int, population: int, batch: int, seconds: float, trials: int) -> float:
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        found = search(Path(folder) / "log.jsonl", trials, population, "random")
        evaluate(
            found,
            partial(make_judge, seconds),
            Crew(workers),
            batch=batch,
            progress=lambda _: times.append(time.perf_counter()),
        )
        found.close()
    begin = len(times) // 5  # workers start one after the other
    spent = (times[-1] - times[begin]) * workers
    return 1 - (len(times) - 1 - begin) * seconds / spent


def each_in_ray(trials: int, workers: list[int], population: int, batch: int) -> int:
    """Tune's bare figure, then each number of workers in a process of its own."""
    bare()
    words = ["--trials", trials, "--population", population, "--batch", batch]
    good = True
    for number in workers:
        line = [sys.executable, __file__, "crew", "--workers", number, *words]
        good &= subprocess.run([str(word) for word in line], check=False).returncode == 0
    print(f"{'PASS' if good else 'FAIL'}: 20 ms, 2 times and 100 MB are allowed")
    return 0 if good else 1


def crew_in_ray(trials: int, number: int, population: int, batch: int) -> int:
    early, late, grown = in_ray(trials, number, population, batch)
    idle = idle_in_ray(number, population, batch, 0.05, 400)
    print(
        f"{number} workers, {trials:,} trials, generations of {population}, batches of {batch} "
        f"at most: {early:.1f} ms an architecture from trial 100, {late:.1f} ms at the end "
        f"({late / early:.2f} times); memory +{grown:.0f} MB per 10,000; "
        f"idle at 50 ms an evaluation: {idle:.1%}",
        flush=True,
    )
    return 0 if max(early, late) <= 20 and late <= 2 * early and grown < 100 else 1


def bare() -> int:
    for reused, trials in ((False, 40), (True, 200)):
        each = bare_pace(trials, reused)
        how = "actors used again" if reused else "an actor for each trial"
        print(
            f"Tune alone, 2 workers, {how}: {1e3 * each:.1f} ms a trial in the median of {trials}"
        )
    sys.stdout.flush()
    return 0


def bare_pace(trials: int, reused: bool) -> float:
    """Return the median seconds that one of Tune's own trials takes, reporting once."""
    from ray import tune

    from mixnas.cluster.local import connected

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.value = config["value"]

        def step(self) -> dict[str, Any]:
            return {"value": self.value, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.value = new_config["value"]
            return True

    times: list[float] = []

    class Told(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with connected(Crew(2)) as folder:
        tune.Tuner(
            tune.with_resources(Trivial, {"cpu": 1}),
            param_space={"value": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=reused),
            run_config=tune.RunConfig(
                storage_path=str(folder / "tune"),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[Told()],
                verbose=0,
            ),
        ).fit()
    if len(times) < trials:
        raise RuntimeError(f"{trials - len(times)} of {trials} trials failed")
    half = times[trials // 5 :]
    return statistics.median(b - a for a, b in zip(half[::4], half[4::4], strict=False)) / 4


@dataclass(frozen=True)
class Real:
    """Judges by a real supernet's weights (untrained: it takes as long), on digits."""

    images: int = 512

    def __call__(self) -> Callable[[Architecture], Score]:
        import torch

        from mixnas.evaluate import SupernetEvaluator
        from mixnas.network import Network

        torch.set_num_threads(1)
        torch.manual_seed(0)
        images = torch.randn(self.images, 3, 32, 32)
        labels = torch.randint(0, 10, (self.images,))
        batches = [(images[i : i + 256], labels[i : i + 256]) for i in range(0, len(images), 256)]
        network = Network(SearchSpace.load("tabular"), 10).eval()
        return SupernetEvaluator(network, [images[:64], images[64:128]], batches)


def tabular(log: Path, trials: int) -> Search:
    space = SearchSpace.load("tabular")
    table = CostTable(count.flops, image=space.image, classes=space.classes)
    feasible = Feasible(space, [], {"flops": table})
    return Search(
        space,
        feasible,
        costs={"flops": table},
        limits=[],
        sampler="random",
        trials=trials,
        population=40,
        log=log,
    )


def work(archs: list[str], start: Any, done: Any) -> None:
    evaluator = Real()()
    evaluator(Architecture.from_json(archs[0]))  # what is done once in a process is not timed
    start.wait()
    began = time.perf_counter()
    for text in archs:
        evaluator(Architecture.from_json(text))
    done.put(time.perf_counter() - began)


def bare_seconds(archs: list[str], processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(processes + 1), context.Queue()
    parts = [archs[i::processes] for i in range(processes)]
    crew = [context.Process(target=work, args=(part, start, done)) for part in parts]
    for process in crew:
        process.start()
    start.wait()
    began = time.perf_counter()
    for _ in crew:
        done.get()
    spent = time.perf_counter() - began
    for process in crew:
        process.join()
    return spent


def ray_seconds(trials: int) -> tuple[float, list[str]]:
    """Return seconds an architecture of two Ray workers at work, and what they were asked."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        found = tabular(Path(folder) / "log.jsonl", trials)
        evaluate(
            found,
            Real(),
            Crew(2),
            batch=5,
            progress=lambda _told: times.append(time.perf_counter()),
        )
        archs = [json.dumps(trial.arch.to_dict()) for trial in found.trials]
        found.close()
    skipped = trials // 5  # workers start one after the other
    return (times[-1] - times[skipped]) / (trials - 1 - skipped), archs


def speedup(trials: int) -> int:
    ratios = []
    _, archs = ray_seconds(trials)
    ways: dict[str, Callable[[], float]] = {
        "one": lambda: bare_seconds(archs, 1) / trials,
        "two": lambda: bare_seconds(archs, 2) / trials,
        "ray": lambda: ray_seconds(trials)[0],
    }
    for turn in range(TURNS):
        names = list(ways)
        names = names[turn % 3 :] + names[: turn % 3]  # a core that warms or slows serves all alike
        spent = {name: ways[name]() for name in names}
        ratios.append(spent["two"] / spent["ray"])
        print(
            f"{1e3 * spent['one']:.1f} ms an architecture in one bare process, "
            f"{1e3 * spent['two']:.1f} in two ({spent['one'] / spent['two']:.2f} times), "
            f"{1e3 * spent['ray']:.1f} in two Ray workers ({spent['one'] / spent['ray']:.2f} "
            f"times): {ratios[-1]:.3f} of the gain",
            flush=True,
        )
    share = statistics.median(ratios)
    print(f"{'PASS' if share >= 0.9 else 'FAIL'}: {share:.3f} in the median of {TURNS}, 0.9 needed")
    return 0 if share >= 0.9 else 1


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "--trials", {"type": int}
    yield "--workers", {"type": numbers}
    yield "--population", {"type": int}
    yield "--batch", {"type": int, "default": 5}
    yield "--sampler", {"default": "surrogate"}
    yield "--run", {}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("simulate", "ray", "crew", "bare", "speedup", "record"))
    for name, settings in options():
        parser.add_argument(name, **settings)
    asked = parser.parse_args()
    if asked.what == "simulate":
        workers = (asked.workers or [256])[0]
        population = asked.population or 5 * workers
        return simulate(asked.trials or 20_000, workers, population, asked.sampler)
    if asked.what == "ray":
        trials, workers = asked.trials or 10_000, asked.workers or [2, 4, 8]
        return each_in_ray(trials, workers, asked.population or 40, asked.batch)
    if asked.what == "crew":
        return crew_in_ray(asked.trials, asked.workers[0], asked.population, asked.batch)
    if asked.what == "record":
        return record(asked.run)
    return bare() if asked.what == "bare" else speedup(asked.trials or 100)


if __name__ == "__main__":
    sys.exit(main())
