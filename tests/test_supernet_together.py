"""A supernet trained by two gloo processes against one: equal losses and weights, and no others.

Batch norms see a process's own images, so the laws hold for them as they stand; with norms that
learn nothing from the batch, in double precision, two processes are one.
"""

import pytest
import torch
from test_distributed import results, start

COMMON = """
import sys, torch
torch.set_num_threads(1)
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.limit import parse_all
from mixnas.cost.table import CostTable
from mixnas.network import Network
from mixnas.space import SearchSpace
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe
from mixnas.train.supernet import SupernetTrainer
from mixnas.train.world import World

SPACE = SearchSpace.load("micro")
TABLE = CostTable(count.flops, image=SPACE.image, classes=SPACE.classes)
FEASIBLE = Feasible(SPACE, parse_all(["8MFLOPs"]), {"flops": TABLE})
WAYS = {
    "plain": {},
    "alpha": {"lesson": "alpha", "spread": "stratified"},
    "attended": {"attention": "worst", "candidates": 2, "draws": 1},
    "projected": {"projection": "dearest"},
    "yielding": {"projection": "others", "draws": 1},
}

def learner(world, frozen=True, seed=0, **ways):
    torch.manual_seed(seed)
    network = Network(SPACE, 10).double()
    recipe = Recipe(steps=8, batch=16, rate=5e-4, ema=0.9, **ways)
    trainer = SupernetTrainer(network, Draws.by(recipe, SPACE, FEASIBLE, seed=0), recipe, world)
    if frozen:
        trainer.network.eval()
    return trainer

def batches(steps, world, start=0):
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(16, 3, 16, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 10, (16,), generator=generator)
        part = slice(world.rank * 16 // world.size, (world.rank + 1) * 16 // world.size)
        yield images[part], labels[part]

def told(trainer, start=0, until=8):
    rows = [trainer.train(*batch) for batch in batches(until, trainer.world, start)]
    return {
        "losses": [row.losses for row in rows],
        "accuracies": [row.accuracy for row in rows],
        "skipped": [row.skipped for row in rows],
        "tally": dict(trainer.tally),
        "weights": trainer.network.state_dict(),
        "ema": trainer.ema.module.state_dict(),
    }
"""

WAYS = ("plain", "alpha", "attended", "projected", "yielding")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Eight steps by two processes in each of several ways, and what this process learns."""
    folder = tmp_path_factory.mktemp("two")
    done = start(
        folder,
        """
        world = World.join("cpu")
        folder = sys.argv[1]
        def keep(name, what):
            torch.save(what, f"{folder}/{name}{world.rank}.pt")
        assert world.size == 2
        for name, ways in WAYS.items():
            keep(name, told(learner(world, seed=world.rank, **ways)))  # the first's are taken
        whole = learner(world, frozen=False)
        keep("norms", told(whole))
        cut = learner(world, frozen=False)
        begun = told(cut, until=3)
        kept = f"{folder}/state.pt"
        if world.main:
            torch.save(cut.state(), kept)
        world.barrier()
        second = learner(world, frozen=False, seed=5)
        second.restore(torch.load(kept, weights_only=True))
        rest = told(second, start=3)
        rest["losses"] = begun["losses"] + rest["losses"]
        keep("resumed", rest)
        bad = learner(world)
        images, labels = next(batches(1, world))
        result = bad.train(images * (float("nan") if world.rank else 1.0), labels)
        keep("skip", {"skipped": result.skipped, "bad": bad.guard.bad,
                      "weights": bad.network.state_dict()})
        world.barrier()
        world.close()
        """,
        before=COMMON,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    space = {}
    exec(COMMON, space)
    return folder, space


def the_same(one, two, tolerance=0.0):
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_does(trained, way):
    folder, space = trained
    one = space["told"](space["learner"](space["World"].alone("cpu"), **space["WAYS"][way]))
    for found in results(folder, way, 2):
        assert not any(found["skipped"])
        assert found["tally"] == one["tally"]
        assert found["accuracies"] == pytest.approx(one["accuracies"])
        for mine, theirs in zip(one["losses"], found["losses"], strict=True):
            assert theirs == pytest.approx(mine, abs=1e-8)
        the_same(one["weights"], found["weights"], 1e-8)
        the_same(one["ema"], found["ema"], 1e-8)
    assert one["losses"][-1] != one["losses"][0]


def test_one_process_cut_short_and_gone_on_by_two_is_the_same_training(trained, tmp_path):
    """A checkpoint knows nothing of how many there are."""
    _, space = trained
    alone = space["World"].alone("cpu")
    whole, cut = space["learner"](alone), space["learner"](alone)
    straight, _ = space["told"](whole), space["told"](cut, until=3)
    torch.save(cut.state(), tmp_path / "state.pt")
    done = start(
        tmp_path,
        """
        world = World.join("cpu")
        second = learner(world, seed=7)
        second.restore(torch.load(f"{sys.argv[1]}/state.pt", weights_only=True))
        torch.save(told(second, start=3), f"{sys.argv[1]}/rest{world.rank}.pt")
        world.close()
        """,
        before=COMMON,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found in results(tmp_path, "rest", 2):
        the_same(straight["weights"], found["weights"], 1e-8)
        assert found["tally"] == straight["tally"]


def test_with_norms_of_their_own_both_keep_the_same_weights(trained):
    """Running statistics are a process's own; everything that is learnt is not."""
    folder, space = trained
    first, second = results(folder, "norms", 2)
    learnt = dict(space["learner"](space["World"].alone("cpu")).network.named_parameters())
    for key in learnt:
        assert torch.equal(first["weights"][key], second["weights"][key]), key
    assert first["losses"] == second["losses"]
    assert any(not torch.equal(v, second["weights"][k]) for k, v in first["weights"].items())


def test_two_processes_go_on_bit_for_bit(trained):
    """What the first one keeps is all that a training is: no other's statistics are missed."""
    folder, _ = trained
    whole, resumed = results(folder, "norms", 1)[0], results(folder, "resumed", 1)[0]
    the_same(whole["weights"], resumed["weights"])
    the_same(whole["ema"], resumed["ema"])
    assert whole["losses"] == resumed["losses"]
    assert whole["tally"] == resumed["tally"]


def test_a_bad_loss_in_one_process_is_skipped_by_both(trained):
    folder, space = trained
    fresh = space["learner"](space["World"].alone("cpu")).network.state_dict()
    for found in results(folder, "skip", 2):
        assert "a loss of nan" in found["skipped"]
        assert found["bad"] == 1
        the_same(fresh, found["weights"])
