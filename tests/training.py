"""A supernet's training by several processes, with accidents: what each process is told to do.

Imported by the processes too; as a program (``python training.py FOLDER WHAT``) it trains on a
cluster of several nodes on this machine and tells as JSON how it went.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random

import ray
from ray.cluster_utils import Cluster

from mixnas.cluster import Crew, together
from mixnas.errors import DataError, MixnasError
from mixnas.jobs import across as sharing
from mixnas.jobs import long_training, retrain, stages
from mixnas.jobs.across import across
from mixnas.jobs.problem import PLAN, Plan, prepare
from mixnas.jobs.retrain_settings import Conditions, RetrainSettings
from mixnas.jobs.retraining import prepare as make_ready
from mixnas.jobs.settings import Settings, Silent
from mixnas.run import Run
from mixnas.space import SearchSpace
from mixnas.train.world import World

STEPS = 24
ACCIDENT = 12


@dataclass
class Heard:
    """A listener that remembers."""

    said: list = field(default_factory=list)

    def plan(self, plan):
        self.said.append(("plan",))

    def stage(self, name, total, done=0):
        self.said.append(("stage", name, total, done))

    def advance(self, by, **figures):
        self.said.append(("advance", by))

    def note(self, text):
        self.said.append(("note", text))

    def end(self):
        self.said.append(("end",))

    def of(self, kind):
        return [line[1:] for line in self.said if line[0] == kind]


def begun(root, name="run"):
    """Make a run of the smallest search that there is, with a plan."""
    settings = Settings(
        budget=("8MFLOPs",), space="micro", epochs=1, resolution=16, device="cpu", batch=32
    )
    problem = prepare(settings, Path(root), name, Silent())
    plan = Plan(STEPS, 1.0, 1000, 1, 1, 0.1, 0.1, 10**6, 2)
    run = problem.open_run()
    run.write(PLAN, plan.to_dict())
    return problem, plan, run


def part(what, problem, plan, run, world, listener):
    """Train, with an accident in the middle, and checkpoints after every step."""
    stages.EVERY = 0.0
    folder = run.path.parent
    (folder / f"rank-{world.rank}").write_text(ray.get_runtime_context().get_node_id())
    original = stages.SupernetTrainer.train

    def train(trainer, *batch):
        if trainer.step == ACCIDENT:
            accident(what, folder, world.rank)
        if what == "crawl":
            time.sleep(0.5)
        return original(trainer, *batch)

    stages.SupernetTrainer.train = train
    try:
        stages._train_part(problem, plan, run, world, listener)
    finally:
        stages.SupernetTrainer.train = original


def accident(what, folder, rank):
    first = not (folder / "killed").exists()
    if (what == f"kill {rank}" and first) or (what == "always" and rank == 1):
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "mistake" and rank == 1:
        raise DataError("photos/cat.png: cannot be decoded")
    if what == "bug" and rank == 1:
        raise ZeroDivisionError("of a programmer")
    if what == "node" and first:
        (folder / f"waits-{rank}").touch()
        time.sleep(60 if rank else 0)


def part_again(what, task, run, world, listener):
    """Retrain, likewise."""
    long_training.EVERY = 0.0
    original = long_training.AloneTrainer.train

    def train(trainer, *batch):
        if trainer.step == ACCIDENT:
            accident(what, run.path.parent, world.rank)
        return original(trainer, *batch)

    long_training.AloneTrainer.train = train
    try:
        retrain._part(task, run, world, listener)
    finally:
        long_training.AloneTrainer.train = original


def retrained(root, what, crew, listener):
    """Retrain an architecture for an epoch, and return what the weights are."""
    root.mkdir()
    arch = root / "arch.json"
    arch.write_text(SearchSpace.load("micro").sample(Random(0)).to_json())
    settings, conditions = RetrainSettings(str(arch), epochs=1), Conditions("cpu")
    task = make_ready(settings, conditions, root, "run", World.alone("cpu"), Silent(), processes=2)
    with Run.create(task.root, task.name, task.kept) as run:
        across(run, crew, listener, partial(part_again, what, task))
    return sha256(run.file("model.safetensors").read_bytes()).hexdigest()


def trained(root, what, crew, listener=None, failures=None):
    """Train, and return what the weights are."""
    problem, plan, run = begun(root)
    before = together.AGAIN
    together.AGAIN = before if failures is None else failures
    try:
        with run:
            across(run, crew, listener or Silent(), partial(part, what, problem, plan))
    finally:
        together.AGAIN = before
    return digest(run)


def digest(run):
    return sha256(run.file("supernet.safetensors").read_bytes()).hexdigest()


def killing(nodes, folder):
    """Kill the node of the second process as soon as that is in the middle."""
    while not (folder / "waits-1").exists():
        time.sleep(0.1)
    held = (folder / "rank-1").read_text()
    (folder / "killed").write_text(held)
    node = next(node for node in nodes if node.node_id == held)
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def unseen(original, folder, mark, *rest):
    original(folder, f"not {mark}", *rest)


def main(folder, what):
    folder = Path(folder)
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [started.add_node(num_cpus=1) for _ in range(3)]
    started.wait_for_nodes()
    if what == "node":
        threading.Thread(target=killing, args=(nodes, folder), daemon=True).start()
    heard, error, weights = Heard(), "", ""
    crew = Crew(2, 1.0, 0.0, started.address)
    if what == "unseen":  # as on a machine that has another folder there
        sharing._part = partial(unseen, sharing._part)
    try:
        weights = trained(folder, what, crew, heard)
    except MixnasError as raised:
        error = str(raised)
    found = {
        "error": error,
        "weights": weights,
        "nodes": [path.read_text() for path in sorted(folder.glob("rank-*"))],
        "notes": [line[0] for line in heard.of("note")],
        "stages": heard.of("stage"),
        "steps": sum(line[0] for line in heard.of("advance")),
        "lock": isinstance(Run.open(folder / "run", lock=True), Run),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()  # who started this may look at the processes first
    started.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
