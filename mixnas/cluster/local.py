"""A private Ray, quiet, on this machine alone, ended with all that it leaves; or a joined one."""

import gc
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook, ray_constants, worker
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.util.client import ray as client

from mixnas.cluster.crew import CLIENT, Crew, Node, Note
from mixnas.cluster.head import answers, watched
from mixnas.cluster.roll import roll
from mixnas.errors import EvaluationFailed, InvalidOption, MixnasError, StorageFull
from mixnas.storage import Held

STORE = 256 * 1024**2
"""Bytes of a private Ray's object store, beside what all workers share."""
SOCKET_ROOM = 35
"""Longest scratch path: Ray's socket names add 70 characters, and the kernel allows 107."""
CALLS = 3
"""How often a cluster is called through Ray's client before it counts as out of reach."""
KNOCKS = 3
"""How often somebody must be found not to listen at an address before nobody is there."""
AGAIN = 5.0
"""Seconds after which the room of a cluster is looked up again."""


@contextmanager
def connected(crew: Crew, *, carried: int = 0, note: Note | None = None) -> Iterator[Path]:
    """Have a Ray to run things on, unless there is one already, and a scratch folder.

    Args:
        crew: how many processes work at once, with what, and where.
        carried: bytes that all workers share.
        note: told of the cluster that was joined, or where the dashboard is.

    Raises:
        InvalidOption: if no machine has what one worker takes, or lacks what workers import, or
            this one lacks what Ray's client needs.
        EvaluationFailed: if Ray can be neither started nor joined, or the head of the cluster that
            was joined is lost.
    """
    if crew.address is None:
        _check_gpus(crew)
    _check_client(crew)
    _check_there(crew)
    own = bool(os.environ.get("RAY_AUTH_TOKEN"))
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        stack.enter_context(_calm(private=crew.address is None))
        if not ray.is_initialized():
            shown = stack.enter_context(_cluster(crew, folder, carried))
            if crew.dashboard and note is not None:
                note(_dashboard(shown, folder, own=own))
            if crew.address is not None:
                roll(crew, nodes(), note)
                if not crew.afar:
                    head = ray.get_runtime_context().gcs_address
                    stack.enter_context(watched(crew.address, head))
        yield folder


def visit(crew: Crew) -> None:
    """Join the cluster of a crew, if it has one, and leave it: what is wrong is told at once.

    Raises:
        InvalidOption, EvaluationFailed: as `connected` does.
    """
    if crew.address is not None:
        with connected(crew):
            pass


def nodes() -> list[Node]:
    """Return the machines of the cluster that are alive."""
    return [Node.of(told) for told in ray.nodes() if told["Alive"]]


def room(crew: Crew) -> Callable[[], int]:
    """Return what tells how many workers there is room for: all that was asked, or all that fit."""
    if crew.workers is not None:
        return partial(int, crew.workers)
    return _Room(crew)


class _Room:
    """Counts the workers that the machines of a cluster can hold; machines come and go."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._count, self._until = 0, -math.inf

    def __call__(self) -> int:
        if time.monotonic() > self._until:
            fitting = sum(self._crew.fitting(node.cpus, node.gpus) for node in nodes())
            self._count, self._until = max(1, fitting), time.monotonic() + AGAIN
        return self._count


@contextmanager
def plainly(crew: Crew) -> Iterator[None]:
    """Say in one line what ends the work of a whole crew, whatever Ray calls it.

    Raises:
        StorageFull: if Ray's object store, and the disk behind it, cannot hold what workers share.
        EvaluationFailed: if the cluster that was joined is gone.
    """
    try:
        yield
    except (ObjectStoreFullError, OutOfDiskError):
        where = "on this machine" if crew.address is None else f"of the cluster at {crew.address}"
        raise StorageFull(
            f"Ray's object store {where} is full, and so is the disk behind it: they cannot hold "
            "what the workers share; free some space there, or start Ray with a larger store (ray "
            "start --object-store-memory), then repeat the same command and it goes on"
        ) from None
    except Exception as error:  # of a cluster that is gone Ray raises whatever it likes
        if crew.address is None or ray.is_initialized():
            raise
        raise EvaluationFailed(
            f"the Ray cluster at {crew.address} was lost: {why(error)}; everything done before is "
            "kept: see that it runs (ray status), then repeat the same command and it goes on"
        ) from error


def _check_client(crew: Crew) -> None:
    """Refuse Ray's client where the packages that it needs are not installed."""
    if crew.afar and find_spec("grpc") is None:
        raise InvalidOption(
            f"address {crew.address}: Ray's client needs grpcio, which is not installed here: pip "
            "install 'mixnas[cluster]', or give HOST:PORT on a machine of the cluster"
        )


def _check_there(crew: Crew) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes, and say so at length."""
    if crew.address in (None, "auto") or ray.is_initialized():
        return
    for left in reversed(range(KNOCKS)):
        if answers(crew.address.removeprefix(CLIENT)):
            return
        if left:
            time.sleep(1)
    raise EvaluationFailed(
        f"no Ray cluster could be joined at {crew.address}: nobody listens there; see that it runs "
        "(ray status) and that this machine reaches it, then repeat the same command"
    )


def _check_gpus(crew: Crew) -> None:
    """Refuse a share of GPUs that this machine does not have."""
    if not crew.gpus:
        return
    import torch

    if crew.gpus > torch.cuda.device_count():
        raise InvalidOption(
            f"gpus={crew.gpus:g} for each worker, but there are {torch.cuda.device_count()} here; "
            "give less"
        )


def why(error: BaseException) -> str:
    """Return an error's kind and text on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


@contextmanager
def _cluster(crew: Crew, folder: Path, carried: int) -> Iterator[str]:
    """Start a private Ray, or join one; leave it, with all its processes, at the end.

    Yields:
        Where its dashboard is: host and port, or nothing.
    """
    before = signal.getsignal(signal.SIGTERM)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    started = {} if crew.address else _private(crew, folder, carried)
    try:
        try:
            joined = _init(crew, **started, **quietly)
        except Exception as error:  # Ray raises whatever it likes, a bare Exception included
            raise EvaluationFailed(_unreachable(crew, error)) from error
        if crew.afar:
            # Ray's client prints what workers print, whatever `log_to_driver` says.
            client.get_context().client_worker.log_client.disable_logs()
        yield str(getattr(joined, "dashboard_url", None) or "")
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # Ray forgets the processes that it has ended, and Python would say so
        with suppress(ValueError):  # Ray takes SIGTERM for itself; in a thread nobody can
            signal.signal(signal.SIGTERM, before)


def _init(crew: Crew, **options: Any) -> Any:
    """Begin with Ray; again where Ray's server for clients failed to start what serves one."""
    for left in reversed(range(CALLS if crew.afar else 1)):
        try:
            return ray.init(address=crew.address or "local", **options)
        except ConnectionAbortedError:
            if not left:
                raise
    return None


def _private(crew: Crew, folder: Path, carried: int) -> dict[str, Any]:
    """Return what a Ray of our own is started with."""
    return {
        "num_cpus": math.ceil((crew.workers or 1) * crew.cpus),
        "num_gpus": None if crew.gpus else 0,
        "include_dashboard": crew.dashboard,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": STORE + 2 * carried,
        "_temp_dir": str(folder),
    }


def check_dashboard() -> None:
    """Refuse a dashboard where the packages that it needs are not installed.

    Raises:
        InvalidOption: says how to install them.
    """
    try:
        import ray.dashboard.optional_deps  # noqa: F401
    except ImportError as error:
        raise InvalidOption(
            f"--dashboard: Ray's dashboard needs packages that are missing ({error.name}); "
            "pip install 'mixnas[cluster]'"
        ) from None


def _dashboard(url: str, folder: Path, *, own: bool) -> str:
    """Say where the private cluster's dashboard is, and where the token is that it asks for."""
    if not url:
        return "Ray's dashboard did not start; the search goes on without it"
    if own:
        where = "yours, of RAY_AUTH_TOKEN"
    else:
        file = folder / "token"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
            out.write(_token())
        where = f"in the file {file}"
    return (
        f"Ray's dashboard, on this machine and while this goes on: http://{url} (if it asks for a "
        f"token: {where})"
    )


def _unreachable(crew: Crew, error: Exception) -> str:
    """Say that Ray could not be had, and what helps."""
    if crew.address is None:
        return (
            f"Ray could not be started: {why(error)}; is there memory enough, is the machine "
            "busy? Repeat the same command to go on from there"
        )
    return (
        f"no Ray cluster could be joined at {crew.address}: {why(error)}; see that it runs (ray "
        "status), that this machine reaches it and, if it asks for a token, has it "
        "(RAY_AUTH_TOKEN), then repeat the same command"
    )


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
            having(worker, "_worker_logs_enabled", False),
            # Ray's own switch, read when it was imported, to listen on this machine only.
            having(ray_constants, "ENABLE_RAY_CLUSTER", joinable),
            # A cluster that is lost is lost: Ray would start another, somewhere, by itself.
            having(auto_init_hook, "enable_auto_connect", False),
            # Ray's client sets this logger's level anew; a lost connection we report ourselves.
            having(logging.getLogger("ray.util.client.logsclient"), "disabled", True),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def having(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module another value for a while."""
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
        with suppress(MixnasError, OSError):  # in use, or another user's
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
