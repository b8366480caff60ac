"""`World`: the processes that train one network together. The one user of torch.distributed.

torchrun and SLURM both start the same program several times and tell each process its place by
environment variables; each process joins the others here, or is alone where there are none.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from os import environ
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixnas.errors import InvalidOption, WorkerLost

SILENCE = timedelta(minutes=10)
"""How long a process waits for another before it gives up."""

SENT = 2**22
"""Numbers that are averaged at once, at least, as long as there are so many left."""

STEP = {"SLURM_STEP_ID", "SLURM_STEP_NODELIST"}
"""What srun sets, and a batch script has not: there the job's other processes never come."""

_LOST = re.compile(r"gloo|NCCL|connection|ProcessGroup|Store|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: on which this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device | str) -> "World":
        """Return the world of a single process."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def join(cls, device_type: str, silence: timedelta = SILENCE) -> "World":
        """Meet the processes that torchrun or SLURM started; be alone where neither did.

        Args:
            device_type: "cuda" (NCCL, a GPU each) or "cpu" (gloo).
            silence: how long to wait for another process, now and later.

        Raises:
            InvalidOption: if the environment does not say where to meet, or has too few GPUs.
            WorkerLost: if the others do not come.
        """
        place = _place(environ)
        if place is None:
            return cls.alone(device_type)
        device = torch.device(device_type)
        if device.type == "cuda":
            device = torch.device("cuda", _gpu(place.local))
            torch.cuda.set_device(device)
        if dist.is_available() and dist.is_initialized():  # Ray Train has joined them already
            return cls(dist.get_rank(), dist.get_world_size(), device)
        world = cls(place.rank, place.size, device)
        with world.watched():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=f"tcp://{place.address}:{place.port}" if place.address else "env://",
                rank=place.rank,
                world_size=place.size,
                timeout=silence,
            )
        return world

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and tells the user."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and size, as `Data.train` and `Data.batches` take them."""
        return self.rank, self.size

    @property
    def joined(self) -> bool:
        """Whether there is a group of processes, even if only of this one."""
        return dist.is_available() and dist.is_initialized()

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        return self.means([value])[0]

    def means(self, values: Sequence[float]) -> list[float]:
        """Return the means of several numbers over the processes."""
        if self.size == 1:
            return list(values)
        held = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.watched():
            dist.all_reduce(held)
        return (held / self.size).tolist()

    def any(self, value: bool) -> bool:
        """Tell whether something holds in one process at least; all get the same answer."""
        return self.mean(float(value)) > 0

    def told(self, data: bytes | None) -> bytes | None:
        """Return in every process what the main one says: bytes, or nothing.

        Of a file that the main process has just written, another machine may still see the one
        before: file systems over a network answer from what they remember.

        Args:
            data: what the main process says; that of another is not heard.
        """
        if self.size == 1:
            return data
        said = torch.tensor([-1 if data is None else len(data)], device=self.device)
        with self.watched():
            dist.broadcast(said, src=0)
            if (length := int(said)) <= 0:
                return None if length < 0 else b""
            held = torch.empty(length, dtype=torch.uint8, device=self.device)
            if self.main and data is not None:
                held.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(held, src=0)
        return held.cpu().numpy().tobytes()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors by their means over the processes, in place."""
        if self.size == 1:
            return
        for held in _together([tensor for tensor in tensors if tensor.is_floating_point()]):
            flat = torch.cat([tensor.detach().flatten().double() for tensor in held])
            with self.watched():
                dist.all_reduce(flat)
            parts = (flat / self.size).split([tensor.numel() for tensor in held])
            with torch.no_grad():
                for tensor, part in zip(held, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def gather(self, rows: Tensor) -> Tensor:
        """Return every process's rows ``(n, ...)``, n of its own, in the order of the ranks."""
        if self.size == 1:
            return rows
        own = torch.tensor([len(rows)], device=self.device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(counts, own)
            most = max(int(count) for count in counts)
            padded = torch.zeros(most, *rows.shape[1:], dtype=rows.dtype, device=self.device)
            padded[: len(rows)] = rows
            gathered = [torch.zeros_like(padded) for _ in range(self.size)]
            dist.all_gather(gathered, padded)
        whole = [part[: int(count)] for part, count in zip(gathered, counts, strict=True)]
        return torch.cat(whole).to(rows.device)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.mean(0.0)

    def share(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the main one."""
        if self.size == 1:
            return
        with self.watched():
            for tensor in module.state_dict().values():
                held = tensor.to(self.device).contiguous()
                dist.broadcast(held, src=0)
                tensor.copy_(held)

    def parallel(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are means over the processes (DDP)."""
        if self.size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        still: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        with self.watched():
            return DistributedDataParallel(network, device_ids=devices, **still)

    def close(self) -> None:
        """Leave the other processes."""
        if self.joined:
            dist.destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what a lost process causes in this one into a sentence.

        Raises:
            WorkerLost: says who noticed, and how to go on.
        """
        try:
            yield
        except RuntimeError as error:  # gloo raises no class of its own
            if self.size == 1 or not (
                isinstance(error, dist.DistError) or _LOST.search(str(error))
            ):
                raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkerLost(
                f"process {self.rank} of {self.size}: another process is lost ({line[:160]}); what "
                "it said itself tells why, and the same command goes on from the last checkpoint"
            ) from None


def _together(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in groups that are sent at once, none much larger than it need be."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        group.append(tensor)
        size += tensor.numel()
        if size >= SENT:
            yield group
            group, size = [], 0
    if group:
        yield group


def local(network: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which a `World.parallel` network keeps its gradients to itself."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


@dataclass(frozen=True)
class _Place:
    """Where a process belongs: its numbers, and where the group meets (None: torchrun knows)."""

    rank: int
    size: int
    local: int
    address: str | None = None
    port: int = 0


def _place(variables: Mapping[str, str]) -> _Place | None:
    """Read what torchrun or SLURM tells a process; None if neither started it."""
    try:
        if "RANK" in variables and "WORLD_SIZE" in variables:
            rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
            return _Place(rank, size, int(variables.get("LOCAL_RANK", rank)))
        if not {"SLURM_PROCID", "SLURM_NTASKS"} <= variables.keys() or not STEP & variables.keys():
            return None
        rank, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_NTASKS"])
        if size == 1:
            return None
        port = int(
            variables.get("MASTER_PORT", 20000 + int(variables.get("SLURM_JOB_ID", 0)) % 9973)
        )
        here = int(variables.get("SLURM_LOCALID", rank))
        return _Place(rank, size, here, _address(variables), port)
    except ValueError as error:
        raise InvalidOption(
            f"the environment of torchrun or SLURM does not say this process's place ({error}); "
            "start with torchrun, srun or --gpus"
        ) from None


def _address(variables: Mapping[str, str]) -> str:
    """Return the host where the processes of a SLURM job meet: the first of its list."""
    if address := variables.get("MASTER_ADDR"):
        return address
    hosts = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST") or ""
    if match := re.match(r"([^,\[]+)(?:\[([^,\]-]+))?", hosts):
        return match[1] + (match[2] or "")
    return "127.0.0.1"


def _gpu(index: int) -> int:
    """Return the number of a process's GPU; a process that sees only one has that one."""
    count = torch.cuda.device_count()
    if count == 1:
        return 0
    if index >= count:
        raise InvalidOption(
            f"process {index} of this machine has no GPU of its own ({count} here); start as many "
            "processes as there are GPUs"
        )
    return index
