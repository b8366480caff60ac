"""Racing on recorded answers: does it find the winner of whole evaluations, and for how much less?

    python benchmarks/racing.py --data FASHION_MNIST_FOLDER --records RECORDS_FOLDER

A supernet over the space `tabular` is trained for 300 steps; then 240 random architectures answer
all the images that rank, and their losses are recorded, image by image, in ``racing-SEED.npz``
(with ``--records`` alone an existing record is read, and nothing is trained). Method and bounds
were chosen on the record of seed 0; ``--seed`` makes a fresh one, with another split of the images,
another supernet, other candidates. Twenty times candidates and images are put in another order, and
the candidates race as in a search: in generations of 20, the first of which is judged whole, each
later one against the best of earlier generations that is no dearer, the first twelve being
witnesses. PASS if in at least 19 of the 20 orders the winner is within one standard error (of the
paired difference, the stricter one) of the winner of whole evaluations, and not more than 40 % of
the images were judged. What is also told: how often a candidate was stopped that was in truth
better than its rival on all the images (the stated rate is 1 %), over pairs that are near each
other and over neighbours by rank, with all the images and with 350 of them. What workers judge
once more for rivals of others is not in these figures.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch

from mixnas.arch import Architecture
from mixnas.asktell import Trial, best, images
from mixnas.asktell.trial import WITNESSES, rival
from mixnas.evaluate import Answers
from mixnas.jobs.problem import prepare
from mixnas.jobs.settings import Settings, Silent
from mixnas.racing import Race, RacingEvaluator, Rival, run

CANDIDATES, STEPS, GENERATION, ORDERS = 240, 300, 20, 20
MOST, LEAST_RIGHT = 0.4, 19
RACES, FEW = 100, 350


def record(data: str, path: Path, seed: int) -> None:
    """Train a supernet, let random architectures answer every ranking image, keep all of it."""
    settings = Settings(budget=("1GFLOPs",), data=data, space="tabular", resolution=16, seed=seed)
    problem = prepare(settings, path.parent, "racing", Silent())
    trainer = problem.trainer(problem.recipe(STEPS))
    for result in trainer.run(problem.data.train(batch=trainer.recipe.batch, seed=seed)):
        if result.step % 50 == 0:
            print(f"step {result.step}", flush=True)
    evaluator = RacingEvaluator(problem.evaluator(trainer.ema.module))
    rng, archs = Random(seed), {}
    while len(archs) < CANDIDATES:
        arch = problem.feasible.sample(rng)
        archs[arch.id] = arch
    answered = []
    for number, arch in enumerate(archs.values(), 1):
        answered.append(evaluator.answering(arch).first(evaluator.race.images))
        if number % 20 == 0:
            print(f"{number} of {CANDIDATES} candidates", flush=True)
    np.savez_compressed(
        path,
        archs=[arch.to_json() for arch in archs.values()],
        flops=[problem.tables["flops"](arch) for arch in archs.values()],
        losses=torch.stack([each.losses for each in answered]).float().numpy(),
        right=torch.stack([each.right for each in answered]).numpy(),
    )


@dataclass(frozen=True)
class Recorded:
    """The answers of one candidate in one order of the images."""

    answers: Answers

    def first(self, images: int) -> Answers:
        return Answers(self.answers.right[:images], self.answers.losses[:images])


@dataclass(frozen=True)
class Records:
    """All candidates: what they are, what they cost, what they answered (candidates, images)."""

    archs: list[Architecture]
    flops: list[int]
    losses: torch.Tensor
    right: torch.Tensor

    @classmethod
    def read(cls, path: Path) -> "Records":
        with np.load(path) as kept:
            archs = [Architecture.from_json(str(text)) for text in kept["archs"]]
            losses, right = (torch.from_numpy(kept[name]) for name in ("losses", "right"))
            return cls(archs, kept["flops"].tolist(), losses.double(), right)

    @property
    def images(self) -> int:
        return self.losses.shape[1]

    def part(self, images: torch.Tensor) -> "Records":
        """Return the answers on some of the images, in the order given."""
        return replace(self, losses=self.losses[:, images], right=self.right[:, images])

    def witness(self, candidate: int, order: torch.Tensor) -> Recorded:
        return Recorded(Answers(self.right[candidate][order], self.losses[candidate][order]))

    def raced(self, seed: int) -> list[tuple[int, Trial]]:
        """Race all candidates in one order: each with its place in the record."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(self.losses.shape[1]))
        turns = Random(seed).sample(range(len(self.archs)), len(self.archs))
        race, place = Race(len(order)), {arch.id: p for p, arch in enumerate(self.archs)}
        done: list[tuple[int, Trial]] = []
        for begin in range(0, len(turns), GENERATION):
            earlier = [trial for _, trial in done]
            for candidate in turns[begin : begin + GENERATION]:
                mine = self.witness(candidate, order)
                cost = {"flops": self.flops[candidate]}
                trial = Trial(len(done), self.archs[candidate], cost, begin // GENERATION)
                against = rival(earlier, trial.cost)
                if against is None:
                    score = mine.first(len(order)).score()
                else:
                    theirs = self.witness(place[against.arch.id], order)
                    others = [self.witness(place[one.arch.id], order) for one in against.witnesses]
                    score = run(race, mine, theirs, against, others)
                done.append((candidate, trial.told(score)))
        return done


def wrong_stops(records: Records, apart: int, count: int) -> int:
    """Race the better of two against the worse, twelve others being witnesses; count its stops.

    Args:
        records: all candidates.
        apart: how many places the two are apart at most; a stop is most likely among neighbours.
        count: images in all: a part of the record, another one in each of the orders.
    """
    stopped = 0
    for seed in range(ORDERS):
        order = np.random.default_rng(1000 + seed).permutation(records.losses.shape[1])
        part = records.part(torch.from_numpy(order[:count]))
        stopped += _wrong_stops(part, apart, Random(seed))
    return stopped


def tell_wrong_stops(records: Records) -> None:
    """Print how often a better one was stopped, of all the images and of few, by nearness."""
    for count in (records.images, FEW):
        for gap, named in ((WITNESSES, f"within {WITNESSES} places"), (1, "rank neighbours")):
            stopped, races = wrong_stops(records, gap, count), ORDERS * RACES
            told = f"{stopped} of {races} races ({stopped / races:.2%})"
            print(f"better and yet stopped, {count} images, {named}: {told}")


def _wrong_stops(records: Records, apart: int, rng: Random) -> int:
    """Count the wrong stops of `RACES` races over all the images, in their order."""
    ranked, order = records.losses.mean(1).argsort().tolist(), torch.arange(records.images)
    known = [
        Rival(arch, Answers(records.right[one], records.losses[one]).score())
        for one, arch in enumerate(records.archs)
    ]
    stopped = 0
    for _ in range(RACES):
        begin = rng.randrange(len(ranked) - apart)
        better, worse = ranked[begin], ranked[begin + rng.randint(1, apart)]
        others = rng.sample([one for one in ranked if one not in (better, worse)], WITNESSES)
        mine, theirs, *rest = (records.witness(one, order) for one in (better, worse, *others))
        against = replace(known[worse], witnesses=tuple(known[one] for one in others))
        stopped += run(Race(records.images), mine, theirs, against, rest).beaten_by is not None
    return stopped


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of Fashion-MNIST's IDX files, to make the record")
    parser.add_argument("--records", required=True, help="folder of the records")
    parser.add_argument("--seed", type=int, default=0, help="of the record")
    options = parser.parse_args()
    path = Path(options.records) / f"racing-{options.seed}.npz"
    if not path.exists():
        if not options.data:
            parser.error(f"{path} is not there; give --data to make it")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        record(options.data, path, options.seed)
    return judge(Records.read(path))


def judge(records: Records) -> int:
    """Race in twenty orders, print what came out; return 1 if the bar is missed."""
    means = records.losses.mean(1)
    winner, total = int(means.argmin()), records.losses.shape[1]
    print(
        f"{len(means)} candidates, {total} images; losses {means.min():.4f} to {means.max():.4f}, "
        f"looks at {', '.join(map(str, Race(total).looks))}"
    )
    print(f"{'order':>5}{'images':>9}{'stopped':>9}{'winner':>8}{'behind':>9}{'error':>9}")
    near, good, shares = 0, 0, []
    for seed in range(ORDERS):
        done = records.raced(seed)
        chosen = best(trial for _, trial in done)
        place = next(candidate for candidate, trial in done if trial is chosen)
        apart = records.losses[place] - records.losses[winner]
        error = float(apart.std(correction=1)) / total**0.5
        behind, found = float(apart.mean()), images(trial for _, trial in done)
        shares.append(found["judged"] / (found["judged"] + found["saved"]))
        near += behind <= error
        good += behind <= error and shares[-1] <= MOST
        same = "same" if place == winner else f"{place}"
        print(
            f"{seed:>5}{shares[-1]:>9.1%}{found['stopped']:>9}{same:>8}{behind:>9.4f}{error:>9.4f}"
        )
    middle, mean = statistics.median(shares), statistics.fmean(shares)
    print(f"images: median {middle:.1%}, mean {mean:.1%}, most {max(shares):.1%}")
    tell_wrong_stops(records)
    print(f"within one standard error in {near} of {ORDERS} orders")
    verdict = "PASS" if good >= LEAST_RIGHT else "FAIL"
    print(f"and with at most {MOST:.0%} of the images in {good} of {ORDERS}: {verdict}")
    return int(good < LEAST_RIGHT)


if __name__ == "__main__":
    sys.exit(main())
