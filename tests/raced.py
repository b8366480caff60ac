"""Races over recorded answers: the made-up losses of `searching`, image by image."""

from random import Random

import numpy as np
import torch
from searching import loss

from mixnas.asktell import Search
from mixnas.evaluate import Answers, Score
from mixnas.racing import Race, Rival, run

IMAGES = 600


class Recorded:
    """Answers that were recorded, image by image."""

    def __init__(self, losses) -> None:
        self.losses = torch.as_tensor(np.array(losses), dtype=torch.float64)
        self.asked = 0

    def first(self, images: int) -> Answers:
        self.asked = max(self.asked, images)
        return Answers(self.losses[:images] < 0.7, self.losses[:images])

    def rival(self, arch) -> Rival:
        return Rival(arch, self.first(len(self.losses)).score())


class Judge:
    """Judges the made-up losses of `searching` image by image, as a race does."""

    def __init__(self) -> None:
        self.race = Race(IMAGES)

    def witness(self, arch) -> Recorded:
        rng = np.random.default_rng(int(arch.id, 16))
        shared = np.random.default_rng(0).gamma(2.0, 0.1, IMAGES)
        return Recorded(shared + 3 * loss(arch) + rng.normal(0, 0.3, IMAGES))

    def __call__(self, arch, against: Rival | None = None) -> Score:
        mine = self.witness(arch)
        if against is None:
            return mine.first(IMAGES).score()
        others = [self.witness(one.arch) for one in against.witnesses]
        return run(self.race, mine, self.witness(against.arch), against, others)


def raced(search: Search, order: Random | None = None):
    """Finish a search; with an order, whole generations are out and come back shuffled."""
    judge = Judge()
    while not search.finished:
        waiting = []
        while (candidate := search.ask()) is not None:
            waiting.append(candidate)
            if order is None:
                break
        if order:
            order.shuffle(waiting)
        for candidate in waiting:
            search.tell(candidate.number, judge(candidate.arch, candidate.rival))
    return search
