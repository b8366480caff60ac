"""The roll of a joined cluster: can its machines work for us, and with the same software?"""

from collections.abc import Callable

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mixnas.cluster.crew import Crew, Node, Note, told
from mixnas.errors import InvalidOption

ANSWER = 60.0
"""Seconds within which a machine must answer."""


def roll(crew: Crew, nodes: list[Node], note: Note | None) -> None:
    """Ask every machine of a cluster what it has; say what was found.

    A machine that does not answer is left to Ray; one of another mixnas would count or score
    differently, so it is refused.

    Args:
        crew: what each worker takes.
        nodes: the machines that are alive.
        note: told what the cluster has.

    Raises:
        InvalidOption: if no machine can hold a worker, or one lacks this mixnas.
    """
    if not any(crew.fitting(node.cpus, node.gpus) for node in nodes):
        raise InvalidOption(
            f"address {crew.address}: no machine of the cluster ({told(nodes)}) has the "
            f"{crew.each()} that each worker takes; give less by --cpus-per-worker or "
            "--gpus-per-worker, or add machines"
        )
    here = version()
    for node, found in _versions(nodes):
        if found != here:
            has = f"mixnas {found}" if found else "no mixnas"
            raise InvalidOption(
                f"address {crew.address}: the machine {node.host} has {has}, this one has "
                f"{here}; install the same on all, with the same Python environment"
            )
    if note:
        workers = sum(crew.fitting(node.cpus, node.gpus) for node in nodes)
        workers = min(workers, crew.workers or workers)
        note(f"joined a cluster of {told(nodes)}; {workers} workers with {crew.each()} each")


def version() -> str:
    """Return which mixnas this process has."""
    return str(_looker()())


def _versions(nodes: list[Node]) -> list[tuple[Node, str | None]]:
    """Return which mixnas each machine has; those that do not answer in time are left out."""
    look = ray.remote(num_cpus=0, max_retries=0)(_looker())
    asked = {
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(): node
        for node in nodes
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    answers = []
    for answer in ready:
        try:
            answers.append((asked[answer], ray.get(answer, timeout=ANSWER)))
        except (RayError, GetTimeoutError):  # it died meanwhile: nothing to hold against it
            continue
    return answers


def _looker() -> Callable[[], str | None]:
    """Return a function that travels by value: a machine without mixnas can call it too."""

    def look() -> str | None:
        from importlib import import_module

        try:
            return str(import_module("mixnas").__version__)
        except ImportError:
            return None

    return look
