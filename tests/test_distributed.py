"""Two gloo processes against one: equal losses and weights, every row once, no waiting for ever."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mixnas.errors import InvalidOption
from mixnas.train.world import World, _place

HERE = Path(__file__).parent.parent

COMMON = """
import random, sys, torch
torch.set_num_threads(1)
from mixnas.network import build
from mixnas.space import SearchSpace
from mixnas.train.alone import AloneTrainer
from mixnas.train.execution import Execution
from mixnas.train.recipe import AloneRecipe
from mixnas.train.world import World

def learner(world, frozen=True, accumulate=1, seed=0, checkpointing=False):
    torch.manual_seed(seed)
    arch = SearchSpace.load("micro").sample(random.Random(3))
    network = build(arch, 10).double()
    recipe = AloneRecipe(steps=20, batch=8, rate=5e-4, frozen_norms=frozen, ema=0.9)
    execution = Execution(accumulate=accumulate, checkpointing=checkpointing)
    return AloneTrainer(network, recipe, execution=execution, world=world)

def batches(steps, world):
    generator = torch.Generator().manual_seed(9)
    for _ in range(steps):
        images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 10, (8,), generator=generator)
        part = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
        yield images[part], labels[part]

def told(trainer, steps=20):
    rows = [trainer.train(*batch) for batch in batches(steps, trainer.world)]
    return {
        "losses": [row.losses.get("labels") for row in rows],
        "accuracies": [row.accuracy for row in rows],
        "skipped": [row.skipped for row in rows],
        "weights": trainer.network.state_dict(),
        "judged": trainer.judged.state_dict(),
    }
"""


def start(tmp_path, body, processes=2, before=COMMON):
    """Run a script under torchrun."""
    script = tmp_path / "script.py"
    script.write_text(before + textwrap.dedent(body))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--standalone", str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)


def results(tmp_path, name, count):
    return [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Twenty steps by two processes in each of several ways, and by this one."""
    folder = tmp_path_factory.mktemp("two")
    done = start(
        folder,
        """
        world = World.join("cpu")
        folder = sys.argv[1]
        def keep(name, what):
            torch.save(what, f"{folder}/{name}{world.rank}.pt")
        assert world.size == 2
        keep("plain", told(learner(world, seed=world.rank)))  # the second takes the first's
        keep("parts", told(learner(world, accumulate=2)))
        keep("checkpointed", told(learner(world, checkpointing=True)))
        keep("norms", told(learner(world, frozen=False), 6))
        own = torch.arange(world.rank, 101, 2)
        rows = world.gather(torch.stack([own, own * own], 1))
        keep("gathered", {"rows": rows, "mean": world.mean(float(world.rank)),
                          "any": world.any(world.rank == 1), "none": world.any(False),
                          "said": list(world.told(b"said" if world.main else b"not heard")),
                          "nothing": world.told(None if world.main else b"not heard") is None,
                          "empty": world.told(b"" if world.main else None) == b""})
        bad = learner(world)
        images, labels = next(batches(1, world))
        images = images * (float("nan") if world.rank else 1.0)
        result = bad.train(images, labels)
        keep("skip", {"skipped": result.skipped, "bad": bad.guard.bad,
                      "weights": bad.network.state_dict()})
        first = learner(world)
        state = None
        for number, batch in enumerate(batches(20, world)):
            if number == 7:
                state = first.state()
            first.train(*batch)
        second = learner(world)
        second.restore(state)
        for number, batch in enumerate(batches(20, world)):
            if number >= 7:
                second.train(*batch)
        same = all(torch.equal(v, second.network.state_dict()[k])
                   for k, v in first.network.state_dict().items())
        keep("resumed", {"same": same})
        world.barrier()
        world.close()
        """,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    space = {}
    exec(COMMON, space)
    one = space["told"](space["learner"](World.alone("cpu")))
    return folder, one, space


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["plain", "parts", "checkpointed"])
def test_two_processes_learn_what_one_does(trained, way):
    folder, one, _ = trained
    for found in results(folder, way, 2):
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-8)
        assert found["accuracies"] == pytest.approx(one["accuracies"])
        assert not any(found["skipped"])
        for kind in ("weights", "judged"):
            for key, value in one[kind].items():
                torch.testing.assert_close(found[kind][key], value, rtol=0, atol=1e-8)
    assert one["losses"][-1] != one["losses"][0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_statistics_of_norms_are_the_mean_of_the_processes(trained):
    """Every process keeps the same; the running mean is that of the whole batch."""
    folder, _, space = trained
    first, second = results(folder, "norms", 2)
    for kind in ("weights", "judged"):
        for key, value in first[kind].items():
            assert torch.equal(value, second[kind][key]), key
    fresh = space["learner"](World.alone("cpu")).network.state_dict()
    moved = [key for key in fresh if "running_mean" in key]
    assert moved
    assert all(not torch.equal(first["weights"][key], fresh[key]) for key in moved)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rows_are_gathered_each_once_in_the_order_of_the_ranks(trained):
    folder, _, _ = trained
    order = torch.cat([torch.arange(0, 101, 2), torch.arange(1, 101, 2)])
    for found in results(folder, "gathered", 2):
        assert torch.equal(found["rows"], torch.stack([order, order * order], 1))
        assert len(found["rows"]) == 101
        assert found["mean"] == 0.5
        assert found["any"]
        assert not found["none"]
        assert bytes(found["said"]) == b"said"
        assert found["nothing"]
        assert found["empty"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bad_loss_in_one_process_is_skipped_by_both(trained):
    folder, _, space = trained
    fresh = space["learner"](World.alone("cpu")).network.state_dict()
    for found in results(folder, "skip", 2):
        assert "a loss of nan" in found["skipped"]
        assert found["bad"] == 1
        assert all(torch.equal(found["weights"][key], fresh[key]) for key in fresh)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_go_on_bit_for_bit(trained):
    assert all(found["same"] for found in results(trained[0], "resumed", 2))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_process_that_dies_ends_the_other_with_a_sentence(tmp_path):
    done = start(
        tmp_path,
        """
        import os
        from mixnas.errors import WorkerLost
        world = World.join("cpu")
        trainer = learner(world)
        try:
            for number, batch in enumerate(batches(20, world)):
                if number == 3 and world.rank == 1:
                    os._exit(9)
                trainer.train(*batch)
        except WorkerLost as error:
            open(f"{sys.argv[1]}/told", "w").write(str(error))
            raise
        """,
    )
    assert done.returncode != 0
    told = (tmp_path / "told").read_text()
    assert told.startswith("process 0 of 2: another process is lost")
    assert "goes on from the last checkpoint" in told
    assert "\n" not in told


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_processes_that_slurm_starts_meet_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from mixnas.train.world import World\n"
        "world = World.join('cpu')\n"
        "print(world.rank, world.size, world.mean(world.rank))\n"
        "world.close()\n"
    )
    port = str(20000 + os.getpid() % 9000)
    known = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_"))}
    started = []
    for rank in range(2):
        place = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)}
        place |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
        started.append(
            subprocess.Popen(
                [sys.executable, str(script)],
                env=known | place | {"PYTHONPATH": str(HERE)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120)[0] for process in started]
    assert said == ["0 2 0.5\n", "1 2 0.5\n"]


def test_places_that_the_environment_tells():
    assert _place({}) is None
    assert _place({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    assert _place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}).local == 1
    for hosts, first in {"a[03-07,9],b1": "a03", "gpu1,gpu2": "gpu1", "n[4]": "n4"}.items():
        variables = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": hosts}
        assert _place(variables) is None  # a batch script: srun starts the processes
        variables |= {"SLURM_STEP_ID": "0"}
        place = _place(variables | {"SLURM_JOB_ID": "123456"})
        assert (place.rank, place.size, place.address) == (2, 4, first)
        assert 20000 <= place.port < 30000
    with pytest.raises(InvalidOption, match="does not say this process's place"):
        _place({"RANK": "x", "WORLD_SIZE": "2"})


def test_a_world_of_one_needs_nobody():
    world = World.alone("cpu")
    assert (world.main, world.shard, world.joined) == (True, (0, 1), False)
    assert (world.mean(3.0), world.any(True)) == (3.0, True)
    rows = torch.rand(3, 2)
    assert world.gather(rows) is rows
    assert (world.told(b"x"), world.told(None)) == (b"x", None)
    world.barrier()
    world.close()
