"""Several processes of one training on this machine: torchrun's own launcher, told in our words."""

import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mixnas.errors import InvalidOption, Reported, WorkerLost

USAGE = 2


def processes(asked: int | None, device: torch.device) -> int:
    """Return how many processes to start.

    Raises:
        InvalidOption: if there are fewer GPUs.
    """
    asked = 1 if asked is None else asked
    there = torch.cuda.device_count() if device.type == "cuda" else asked
    if asked > there:
        raise InvalidOption(
            f"--gpus {asked}: torch finds {there} here; give --gpus {there}, or --device cpu for "
            f"{asked} processes on the CPU"
        )
    return asked


def launch(words: Sequence[str], number: int) -> None:
    """Run a command of mixnas in so many processes, and wait for them.

    The first writes to the terminal; what another says is kept, and told if it fails.

    Args:
        words: of the command, without ``mixnas``.
        number: of processes.

    Raises:
        KeyboardInterrupt: if they were interrupted.
        Reported: if the first one ended with a mistake, of which it has told.
        WorkerLost: if another did, or one died; says which and how to go on.
    """
    with TemporaryDirectory(prefix="mixnas-") as folder, _muted():
        quiet = dict.fromkeys(range(1, number), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=quiet),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mixnas", *words)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            raise _failure(error, Path(folder), number) from None


@contextmanager
def _muted() -> Iterator[None]:
    """Keep the launcher's own log out of the terminal: what matters of it is told by us."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    handled = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        logging.disable(before)
        for number, handler in handled.items():
            signal.signal(number, handler)


def _failure(error: ChildFailedError, folder: Path, number: int) -> BaseException:
    """Turn the launcher's account of the first failure into a sentence."""
    rank, first = error.get_first_failure()
    if first.exitcode == USAGE and rank == 0:
        return Reported("the training ended with the mistake that its first process told of")
    said = _last_line(folder, rank)
    if first.exitcode == USAGE and said:
        return WorkerLost(said.removeprefix("mixnas: "))
    if first.exitcode in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        return KeyboardInterrupt()
    how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else "failed"
    told = f" ({said})" if said else ""
    return WorkerLost(
        f"process {rank + 1} of {number} {how}{told}; everything up to the last checkpoint is "
        "kept: repeat the same command and it goes on"
    )


def _last_line(folder: Path, rank: int) -> str:
    """Return the last line that a process wrote to its standard error, if it was kept."""
    for path in sorted(folder.rglob(f"{rank}/stderr.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return ""
