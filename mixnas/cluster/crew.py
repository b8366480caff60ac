"""`Crew`: how many processes work, what each may use, and in which Ray cluster."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixnas.errors import InvalidOption

LEAST_CPUS = 0.01
"""The smallest share of a processor or a GPU that Ray can lend, but for none."""
CLIENT = "ray://"
"""What the address of a cluster begins with that is joined through Ray's client, from elsewhere."""


@dataclass(frozen=True)
class Crew:
    """Processes that work, each with its share of a machine; any crew finds the same.

    Attributes:
        workers: how many at once; None for as many as the cluster that is joined
            has room for, now and later (in a private one, one).
        cpus: processor cores of each, or a fraction of one; its whole part is torch's threads.
        gpus: GPUs of each, or a fraction of one.
        address: the Ray cluster to join: ``auto``, ``HOST:PORT`` on a machine of the cluster, or
            ``ray://HOST:PORT`` from elsewhere; None for a private one on this machine.
        limit: seconds that one evaluation may take; a worker that takes longer is ended, and the
            evaluation has failed. None for any.
        dashboard: whether the private cluster shows Ray's dashboard, on this machine only.

    Raises:
        InvalidOption: for numbers that no worker can have, or a dashboard of a joined cluster.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    limit: float | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InvalidOption(f"workers={self.workers} is not allowed; give at least 1")
        if self.limit is not None and not self.limit > 0:
            raise InvalidOption(f"limit={self.limit:g} s for an evaluation: give more than nothing")
        _share("cpus", self.cpus, "CPUs")
        _share("gpus", self.gpus, "GPUs")
        if self.address is not None:
            _check_address(self.address)
            if self.dashboard:
                raise InvalidOption(
                    f"--dashboard with --address {self.address}: that cluster has its own "
                    "dashboard (ray status and the machine that leads it tell where); leave "
                    "--dashboard out"
                )

    @property
    def afar(self) -> bool:
        """Whether the cluster is joined through Ray's client, from a machine outside it."""
        return self.address is not None and self.address.startswith(CLIENT)

    @property
    def threads(self) -> int:
        """Torch threads of each worker."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """What Ray shall set apart for each worker."""
        return {"cpu": self.cpus, "gpu": self.gpus}

    def fitting(self, cpus: float, gpus: float) -> int:
        """Return how many workers fit into one machine."""
        rooms = [int(cpus / self.cpus + 1e-6)] if self.cpus else []
        rooms += [int(gpus / self.gpus + 1e-6)] if self.gpus else []
        return min(rooms)

    def each(self) -> str:
        """Say what a worker takes: ``1 CPU``, ``0.5 CPUs and 0.25 GPUs``."""
        parts = [_amount(self.cpus, "CPU")] if self.cpus else []
        parts += [_amount(self.gpus, "GPU")] if self.gpus else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: Ray's own.
        host: its address.
        cpus: processor cores that it lends.
        gpus: GPUs that it lends.
    """

    id: str
    host: str
    cpus: float
    gpus: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Node":
        """Read what Ray tells of a machine."""
        lent = told["Resources"]
        host = str(told["NodeManagerAddress"])
        return cls(str(told["NodeID"]), host, lent.get("CPU", 0.0), lent.get("GPU", 0.0))


def told(nodes: list[Node]) -> str:
    """Say what a cluster has: ``3 nodes, 24 CPUs, 2 GPUs``."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    count = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    return ", ".join([count, _amount(cpus, "CPU"), *([_amount(gpus, "GPU")] if gpus else [])])


Note = Callable[[str], None]
"""Takes one line worth saying."""


def _share(name: str, value: float, what: str) -> None:
    """Refuse a share that Ray cannot lend: negative, tiny, or 1.5 machines."""
    if value < 0 or not math.isfinite(value):
        raise InvalidOption(f"{name}={value:g} for each worker: give a number, 0 or more")
    if 0 < value < LEAST_CPUS:
        raise InvalidOption(f"{name}={value:g} for each worker: give at least {LEAST_CPUS:g}")
    if name == "cpus" and value == 0:
        raise InvalidOption("cpus=0 for each worker: give at least 0.01")
    if value > 1 and value != int(value):
        raise InvalidOption(
            f"{name}={value:g} for each worker: Ray lends a fraction of one or whole {what}; give "
            f"{int(value)} or {int(value) + 1}"
        )


def _amount(value: float, unit: str) -> str:
    return f"{value:g} {unit}{'' if value == 1 else 's'}"


def _check_address(address: str) -> None:
    host = address.removeprefix(CLIENT)
    named, colon, port = host.rpartition(":")
    whole = (
        bool(named)
        and "/" not in named
        and bool(colon)
        and port.isdigit()
        and 0 < int(port) < 65536
    )
    if address != "auto" and not whole:
        raise InvalidOption(
            f"address {address!r}: give auto (a cluster on this machine), HOST:PORT (from a machine"
            " of the cluster; usually port 6379) or ray://HOST:PORT (from elsewhere; usually 10001)"
        )
