"""The stopwatch beside two busy processes: the same figure within a tenth, or none.

Times some parts and whole networks of a space on a quiet machine, then again while processes that
do nothing but compute run beside it, and prints both. Ends with 1 if any figure was given that is
off by more than a tenth. Run it alone: `python benchmarks/disturbed.py`.
"""

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixnas.errors import TooNoisy
from mixnas.network import Part, build, parts, walk
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions
from mixnas.timing.stopwatch import Stopwatch, Timing

WITHIN = 0.10
"""Share by which a figure may differ."""

Subject = tuple[str, Callable[[Stopwatch], Timing]]


def compute() -> None:
    """Use one processor until the process ends."""
    number = 0
    while True:
        number = (number * 1_103_515_245 + 12_345) % 2**31


@contextmanager
def disturbing(count: int) -> Iterator[None]:
    """Let so many processes compute beside this one."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2.0)  # until they have started
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def subjects(space: SearchSpace, count: int) -> list[Subject]:
    """Return so many parts of different sizes, and a third as many whole networks."""
    rng = random.Random(1)
    archs = [space.sample(rng) for _ in range(20)]
    sizes = {"image": space.image, "classes": space.classes}
    found = {part for arch in archs for segment in walk(arch) for part in parts(segment, **sizes)}
    timed = rng.sample(sorted(found, key=str), min(count, len(found)))
    networks = [(f"network {arch.id}", arch) for arch in archs[: max(1, count // 3)]]
    shape = (3, space.image, space.image)
    return [
        *((_name(part), lambda w, p=part: w.time(p.build(), p.shape)) for part in timed),
        *((name, lambda w, a=arch: w.time(build(a), shape)) for name, arch in networks),
    ]


def _name(part: Part) -> str:
    what = part.spec[0] if part.kind in ("mixer", "stem") else ""
    return f"{part.kind} {what} {'x'.join(map(str, part.shape))}"


def attempt(timed: Callable[[Stopwatch], Timing], watch: Stopwatch) -> Timing | TooNoisy:
    """Return a figure, or why there is none."""
    try:
        return timed(watch)
    except TooNoisy as refusal:
        return refusal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="default")
    parser.add_argument("--count", type=int, default=9, help="parts to time")
    parser.add_argument("--processes", type=int, default=2, help="that disturb")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--patience", type=float, default=10.0, help="seconds a figure")
    options = parser.parse_args()
    watch = Stopwatch(Conditions.of("cpu", threads=options.threads), patience=options.patience)
    try:
        print(f"reference: {watch.calibrate():.3f} ms")
    except TooNoisy as refusal:
        print(f"not quiet enough to begin: {refusal}")
        return 1
    chosen = subjects(SearchSpace.load(options.space), options.count)
    quiet = [attempt(timed, watch) for _, timed in chosen]
    with disturbing(options.processes):
        beside = [attempt(timed, watch) for _, timed in chosen]
    wrong = 0
    for (name, _), truth, found in zip(chosen, quiet, beside, strict=True):
        wrong += report(name, truth, found)
    unknown = sum(isinstance(truth, TooNoisy) for truth in quiet)
    refused = sum(isinstance(found, TooNoisy) for found in beside)
    print(
        f"{len(chosen)} timed beside {options.processes} busy processes: {refused} refused, "
        f"{wrong} wrong by more than {WITHIN:.0%}; {unknown} could not be timed quiet either"
    )
    return int(wrong > 0 or unknown == len(chosen))


def report(name: str, truth: Timing | TooNoisy, found: Timing | TooNoisy) -> bool:
    """Print a line, and say whether a wrong figure was given."""
    if isinstance(truth, TooNoisy):
        print(f"{name}: not timed quiet ({truth})")
        return False
    before = f"{name}: {truth.median:.3f} ms quiet (+-{truth.spread:.1%}, {truth.runs} runs)"
    if isinstance(found, TooNoisy):
        print(f"{before}, refused ({found})")
        return False
    off = found.median / truth.median - 1
    wrong = abs(off) > WITHIN
    print(f"{before}, {found.median:.3f} ms beside ({off:+.1%}){' WRONG' if wrong else ''}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
