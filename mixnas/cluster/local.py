"""A private Ray, quiet, on this machine alone, ended with all that it leaves; or a joined one."""

import gc
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker

from mixnas.errors import EvaluationFailed, RunConflict
from mixnas.storage import Held

ATTEMPTS = 3
"""How often something is given to a worker, when workers die over it."""
STORE = 256 * 1024**2
"""Bytes of Ray's object store: it carries what all workers share, and nothing else."""
SOCKET_ROOM = 35
"""Longest scratch path: Ray's socket names add 70 characters, and the kernel allows 107."""


@contextmanager
def connected(workers: int, gpus: float, address: str | None) -> Iterator[Path]:
    """Have a Ray to run things on, unless there is one already, and a scratch folder.

    Args:
        workers: processes that work at once.
        gpus: share of a GPU for each.
        address: a running cluster to join; by default a private one is started and ended.

    Raises:
        EvaluationFailed: if Ray can be neither started nor joined.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        stack.enter_context(_calm(private=address is None))
        if not ray.is_initialized():
            stack.enter_context(_cluster(workers, gpus, folder, address))
        yield folder


def why(error: BaseException) -> str:
    """Return an error's kind and text on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def died(attempts: int) -> str:
    """Say that workers died over something."""
    return f"the worker process died, {attempts} times (out of memory?)"


@contextmanager
def _cluster(workers: int, gpus: float, folder: Path, address: str | None) -> Iterator[None]:
    """Start a private Ray, or join one; leave it, with all its processes, at the end."""
    before = signal.getsignal(signal.SIGTERM)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    private: dict[str, Any] = {
        "num_cpus": workers,
        "num_gpus": None if gpus else 0,
        "include_dashboard": False,
        "object_store_memory": STORE,
        "_temp_dir": str(folder),
    }
    try:
        try:
            ray.init(address=address or "local", **({} if address else private), **quietly)
        except Exception as error:  # Ray raises whatever it likes, a bare Exception included
            raise EvaluationFailed(
                f"Ray could not be {'joined' if address else 'started'}: {why(error)}; is there "
                "memory enough, is the machine busy? Repeat the same command to go on from there"
            ) from error
        yield
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # Ray forgets the processes that it has ended, and Python would say so
        with suppress(ValueError):  # Ray takes SIGTERM for itself; in a thread nobody can
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _calm(private: bool) -> Iterator[None]:
    """Set what Ray takes no argument for, and its loggers; put all back afterwards."""
    before = dict(os.environ)
    joinable = ray_constants.ENABLE_RAY_CLUSTER and not private
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_ENVIRONMENT)
    if private:
        os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        os.environ["RAY_AUTH_TOKEN"] = _token()
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            # Ray's own switch for what it prints about dead workers; we report those ourselves.
            _having(worker, "_worker_logs_enabled", False),
            # Ray's own switch, read when it was imported, to listen on this machine only.
            _having(ray_constants, "ENABLE_RAY_CLUSTER", joinable),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _having(module: Any, name: str, value: bool) -> Iterator[None]:
    """Give a setting of a module another value for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables however quiet it shall be
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # workers start side by side
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@cache
def _token() -> str:
    """A password for our private clusters, else Ray leaves one in the home folder.

    One for the whole process: Ray reads it once and keeps it for later clusters too.
    """
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


@contextmanager
def scratch() -> Iterator[Path]:
    """A short private folder for Ray's sockets and logs; those of killed runs are removed too."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) + len("/mixnas-12345678") > SOCKET_ROOM:
        root = Path("/tmp")
    for old in root.glob("mixnas-*/lock"):
        with suppress(RunConflict, OSError):
            left = Held(old, "scratch folder")
            shutil.rmtree(old.parent, ignore_errors=True)
            left.close()
    path = Path(tempfile.mkdtemp(prefix="mixnas-", dir=root))
    lock = Held(path / "lock", "scratch folder")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()
