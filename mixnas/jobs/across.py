"""One training by several processes of a Ray cluster, which share a run's folder.

Who starts them holds the run. Its folder must be the same for all: a mark that is written there
just before must be what each process reads.
"""

import secrets
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from mixnas.cluster import Crew
from mixnas.errors import InvalidOption
from mixnas.jobs.settings import Listener, cores
from mixnas.run import Run
from mixnas.train.world import World

MARK = ".shared.lock"
"""The file of the mark: hidden, and never uploaded."""


class Part(Protocol):
    """What each process does."""

    def __call__(self, run: Run, world: World, listener: Listener) -> None:
        """Train as one of the world's processes; only the first one writes."""


def trainers(number: int, cuda: bool, cpus: float | None, address: str | None) -> Crew:
    """Return the processes that train together: in a cluster, or sharing this machine's cores.

    Args:
        number: how many.
        cuda: whether each has a GPU.
        cpus: processor cores of each; by default one in a cluster, its share here.
        address: the Ray cluster; None for a private one on this machine.

    Raises:
        InvalidOption: for numbers that no process can have, more than there are GPUs here, or a
            cluster that is joined from elsewhere (``ray://``).
    """
    if (address or "").startswith("ray://"):
        raise InvalidOption(
            f"address {address}: processes that train together share files with the one that "
            "starts them; start on a machine of the cluster, with --address auto or HOST:PORT"
        )
    here = torch.cuda.device_count()
    if cuda and address is None and number > here:
        raise InvalidOption(
            f"{number} processes that train together, but {here} GPUs here; give at most {here}, "
            "--device cpu, or the --address of a cluster"
        )
    if cpus is None:
        cpus = 1.0 if address else float(max(1, cores() // number))
    return Crew(number, cpus, 1.0 if cuda else 0.0, address)


def across(run: Run, crew: Crew, listener: Listener, part: Part) -> None:
    """Do a part of a run's work in several processes that train together, through Ray Train.

    Args:
        run: held by this process; the first of the others writes into it meanwhile.
        crew: the processes.
        listener: hears what the first one tells.
        part: what each does; it travels to it, with all that is bound to it.

    Raises:
        InvalidOption: if a machine does not see the run's folder.
        WorkerLost: if processes are lost more often than they are begun again.
        MixnasError: whatever the part raises.
    """
    from mixnas.cluster.together import together  # Ray Train takes seconds to import

    mark = secrets.token_hex(8)
    run.write(MARK, mark)
    try:
        folder = str(run.path.absolute())
        together(partial(_part, folder, mark, crew.gpus > 0, part), crew, listener)
    finally:
        run.file(MARK).unlink(missing_ok=True)


def _part(folder: str, mark: str, cuda: bool, part: Callable[..., None], told: Listener) -> None:
    """Do one process's part."""
    _check_seen(Path(folder), mark)
    part(run=Run.lent(folder), world=World.join("cuda" if cuda else "cpu"), listener=told)


def _check_seen(folder: Path, mark: str) -> None:
    """Refuse to train where the run's folder is not seen, or another of its name.

    Raises:
        InvalidOption: names the machine, and the cure.
    """
    try:
        seen = (folder / MARK).read_text(encoding="utf-8") == mark
    except OSError:
        seen = False
    if not seen:
        raise InvalidOption(
            f"run folder {folder}: the machine {socket.gethostname()}, which shall train, does not "
            "see it; give --runs a folder that all machines share, or train where you are: leave "
            "out --trainers or --address"
        )
