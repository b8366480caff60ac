"""A search on a cluster of several nodes on this machine: ``python joined.py FOLDER WHAT``.

Told as JSON at the end: how the trials stand, and which nodes have worked. As a process of its own,
since what Ray knows of tokens and addresses lasts as long as a process.
"""

import json
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from searching import Toy, evaluate

from mixnas import cluster
from mixnas.cluster import Crew
from mixnas.errors import MixnasError

CLIENT = 20001
"""Where the cluster's server for clients listens."""


def judge(arch, folder, seconds):
    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"node-{node}").touch()
    return evaluate(arch, seconds)


def judges(folder, seconds=0.05):
    return partial(judge, folder=folder, seconds=seconds)


def killed(nodes, folder, told):
    """Kill a node that has worked, in the middle of the search, as if its power had failed."""
    worked = {path.name.removeprefix("node-") for path in Path(folder).glob("node-*")}
    if len(told) == 15:
        node = next(node for node in nodes if node.node_id in worked)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        (Path(folder) / "killed").write_text(node.node_id)


def main(folder, what, *spill):
    """Serve a cluster of one machine, or search on one of several."""
    if what == "serve":
        serve(*spill)
    else:
        search(folder, what)


def serve(spill):
    """Start a cluster of one machine; tell its address; end it when told to.

    Args:
        spill: where a small object store overflows into; empty for a store of the usual size.
    """
    small = {"object_store_memory": 80 * 1024**2, "object_spilling_directory": spill}
    served = {"ray_client_server_port": CLIENT} if find_spec("grpc") else {}
    head = {"num_cpus": 2, **served, **(small if spill else {})}
    started = Cluster(initialize_head=True, head_node_args=head)
    print(json.dumps({"address": started.address}), flush=True)
    sys.stdin.read()
    started.shutdown()


def search(folder, what):
    """Search on a cluster of several machines, or of one without room."""
    head = {"num_cpus": 0, **({"ray_client_server_port": CLIENT} if "client" in what else {})}
    started = Cluster(initialize_head=True, head_node_args=head)
    nodes = [started.add_node(num_cpus=1) for _ in range(3)]
    started.wait_for_nodes()
    told, notes = [], []
    search = Toy().search(Path(folder) / "log", trials=60, population=10)

    def progress(trial):
        told.append(trial.number)
        if what in ("kill", "client"):
            killed(nodes, folder, told)

    crew = {
        "kill": Crew(address=started.address),
        "two": Crew(2, cpus=0.5, address=started.address),
        "gpu": Crew(gpus=0.5, address=started.address),
        "client": Crew(address=f"ray://127.0.0.1:{CLIENT}"),
    }[what]
    error, began = "", time.monotonic()
    try:
        cluster.visit(crew)  # as the command line does, before anything long
        cluster.evaluate(
            search, partial(judges, folder), crew, batch=2, progress=progress, note=notes.append
        )
    except MixnasError as raised:
        error = str(raised)
    found = {
        "seconds": time.monotonic() - began,
        "complete": search.complete,
        "numbers": [trial.number for trial in search.trials],
        "losses": [trial.loss for trial in search.trials],
        "reasons": [trial.reason for trial in search.trials if trial.reason],
        "told": told,
        "notes": notes,
        "error": error,
        "nodes": [node.node_id for node in nodes],
        "worked": [path.name.removeprefix("node-") for path in Path(folder).glob("node-*")],
        "connected": ray.is_initialized(),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()  # who started this may look at the processes first
    started.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
