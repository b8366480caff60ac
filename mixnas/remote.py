"""Runs that live at an address such as ``s3://bucket/runs``: worked on here, kept there.

A log cannot be appended to an object store, so a run is worked on in a folder of this machine, and
what has changed is uploaded now and then, and at the end: whole files, in such an order that what
is there is always a run that can be gone on with. What a machine that dies can lose is what was
done since its last upload: half a minute, or three times what an upload takes, if that is longer.

An address is turned into its folder here by `rooted`; `mixnas.run.Run` does the rest. One process
at a time works on a run: it holds a lease there, which it renews, and which lapses when it is
silent.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mixnas.errors import InvalidOption, RemoteFailed, RunConflict
from mixnas.storage import Held, check_entered, write

EVERY = 30.0
"""Seconds between two uploads, at least."""
SHARE = 3.0
"""An upload begins so many times as long after the last one as that took, if that is later."""
LAPSE = 180.0
"""Seconds after which a silent lease is no longer held."""
SETTLE = 1.0
"""Seconds that a new lease is given to be overwritten by another process's."""

MARKER = ".remote.json"
"""In the folder of an address: which one it is."""
KNOWN = ".remote"
"""Beside it: what is known of each run there."""
HEAD = ".remote.json"
"""In a run, there: its version and its lease."""
LAST = "stages.json"
"""Read first and uploaded last: it says what is done, and what it says must be there."""
LOCK = ".lock"
"""In a run's folder, here: held by the process that works on it."""
LEFT_OUT = (LOCK, ".tmp", HEAD)
"""How names end that are of this machine only."""


def is_address(text: object) -> bool:
    """Tell whether runs are given by an address, ``s3://bucket/runs``, and not by a folder."""
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def rooted(runs: str | Path, cache: Path | None = None) -> Path:
    """Return the folder on this machine for the runs at an address; of a folder, itself.

    Args:
        runs: a folder, or an address that fsspec knows.
        cache: where such folders are made; by default in the user's cache folder.

    Raises:
        InvalidOption: if the address is of no kind that is known here (says what to install), or
            its folder cannot be made, or is another user's; if a folder may not be entered.
    """
    if not str(runs).strip():
        raise InvalidOption("runs '': it is empty; give a folder, or an address")
    if not is_address(runs):
        check_entered(Path(runs))
        return Path(runs)
    address = str(runs).rstrip("/")
    if address.endswith(":"):
        raise InvalidOption(f"address {runs}: names no place; give one such as s3://bucket/runs")
    _check(address)
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixnas"
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", re.sub(r"//[^/]*@", "//", address)).strip("-")
    root = cache / f"{plain[-80:]}{_ending(address)}"
    try:
        root.mkdir(0o700, parents=True, exist_ok=True)  # an address may hold a password
        write(root / MARKER, json.dumps({"format": 1, "address": address}).encode())
    except OSError as error:
        raise InvalidOption(
            f"runs {_shown(address)}: {root}, where they are worked on here, cannot be made "
            f"({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    if _address(root) != address:
        raise InvalidOption(
            f"runs {_shown(address)}: {root / MARKER} belongs to another user; set XDG_CACHE_HOME "
            "to a folder of your own"
        )
    return root


def placed(run: str | Path) -> Path:
    """Return the folder on this machine of a run that is given by its folder or its address."""
    if not is_address(run):
        return Path(run)
    folder, name = split(str(run))
    return rooted(folder) / name


def given(root: Path) -> str:
    """Return how a folder of runs was given: by its address, or as it stands."""
    address = _address(root)
    return str(root) if address is None else _shown(address)


def fetch(path: Path) -> None:
    """Bring a run here to be read, if it has a copy at an address that is newer.

    Raises:
        InvalidOption: if the folder may not be entered.
        RemoteFailed: if the address cannot be reached.
    """
    mirror = Mirror.of(path)
    if mirror is not None and not Keeping.works_on(mirror.path):
        with suppress(RunConflict):  # a process works on what is here: it is read as it is
            mirror.pull()


SMALL = ("run.json", "stages.json", "plan.json", "summary.json", "best.json", "status.json")
"""What is brought of a run that is only listed."""


def glimpse(root: Path) -> None:
    """Bring the small files of all runs at a folder's address that are not here, to list them.

    Raises:
        RemoteFailed: if the address cannot be reached.
    """
    whole = Mirror.of(root / "any")
    if whole is None or _address(root) is None:
        return
    for name in whole.siblings():
        mirror = Mirror.of(root / name)
        if mirror is not None and not mirror.path.exists():
            mirror.peep()


def split(run: str) -> tuple[str, str]:
    """Split a run's address into that of its folder and its name."""
    folder, _, name = run.rstrip("/").rpartition("/")
    return folder, name


def _address(root: Path) -> str | None:
    """Return the address of a folder that `rooted` made for this user; None of any other.

    A marker that another user left in a folder above would lead runs to an address of theirs.
    """
    with suppress(OSError, ValueError, LookupError, TypeError):
        if (root / MARKER).is_file():
            with (root / MARKER).open(encoding="utf-8") as file:
                owner = os.fstat(file.fileno()).st_uid
                address = str(json.load(file)["address"])
            if owner == os.geteuid() and root.name.endswith(_ending(address)):
                return address
    return None


def _ending(address: str) -> str:
    """Return how the name of an address's folder ends."""
    return f"-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _check(address: str) -> None:
    """Refuse an address whose kind cannot be reached from here."""
    import fsspec

    kind = address.partition("://")[0]
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        extra = "pip install 'mixnas[s3]'" if kind in ("s3", "s3a") else f"{error}"
        raise InvalidOption(
            f"address {_shown(address)}: {kind} cannot be reached here; {extra}"
        ) from None
    except ValueError:
        raise InvalidOption(
            f"address {_shown(address)}: no kind '{kind}' is known; give a folder, or an address "
            "such as s3://bucket/runs, gs://bucket/runs or memory://runs"
        ) from None


@dataclass
class Mirror:
    """A run of this machine, and its copy at an address.

    Attributes:
        path: its folder here.
        known: the file here that tells which versions of it what is here is as new as.
        address: of its copy.
        owner: who takes the lease: this object.
        host: this machine.
    """

    path: Path
    known: Path
    address: str
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=lambda: socket.gethostname())
    _sent: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _version: int = 0
    _coming: int = 0
    _files: Any = None
    _where: str = ""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, path: Path) -> "Mirror | None":
        """Return the mirror of a run's folder, or of what lies in one; None if it has none.

        Raises:
            InvalidOption: if the folder may not be entered.
        """
        check_entered(path)
        path = path.absolute()
        for root in path.parents:
            if (address := _address(root)) is not None:
                name = path.relative_to(root).parts[0]
                return cls(root / name, root / KNOWN / f"{name}.json", f"{address}/{name}")
        return None

    def pull(self) -> bool:
        """Bring the run here, unless what is here is as new; tell whether there is one.

        What is here and older makes way; it is moved aside, if some of it was never uploaded.

        Raises:
            RunConflict: if it is older, and a process of this machine works on it.
            RemoteFailed: if the address cannot be reached, or the copy cannot be read.
        """
        with self._reaching("read"), self._alone():
            head = self._head()
            if head is None:
                return self.path.is_dir()
            version, seen = int(head.get("version", 0)), self._seen()
            if version in seen and self.path.is_dir():
                self._version, self._coming = version, seen[-1]
                return True
            if self.path.is_dir():
                self._make_way()
            self._download()
            self._saw(version)
        return True

    def siblings(self) -> list[str]:
        """Return the names of the runs at the same address."""
        with self._reaching("read"):
            above = self._where.rpartition("/")[0]
            if not self._files.exists(above):
                return []
            found = (str(path).rstrip("/") for path in self._files.ls(above, detail=False))
            names = [path.rpartition("/")[2] for path in found]
            names = [name for name in names if not name.startswith(".")]  # ``..`` leads elsewhere
            return [name for name in names if self._files.exists(f"{above}/{name}/{HEAD}")]

    def peep(self) -> None:
        """Bring the run's small files only, unless it is here; whoever opens it brings the rest."""
        with self._reaching("read"), self._alone():
            if self.path.exists():
                return
            for name in SMALL:
                with suppress(FileNotFoundError):
                    write(self.path / name, self._files.cat_file(f"{self._where}/{name}"))
            self._sent = {name: self._state(name) for name in self._local()}
            self._saw(-1)

    def take(self) -> None:
        """Take the lease, so that no other machine works on the run.

        Raises:
            RunConflict: if another process holds it.
            RemoteFailed: if the address cannot be reached.
        """
        with self._reaching("write"):
            self._refuse(self._head())
            self.path.mkdir(parents=True, exist_ok=True)
            self._saw(self._version, self._coming)  # first: who looks now knows it is from here
            self._lease(self._version)
            time.sleep(SETTLE)
            self._refuse(self._head())

    def push(self) -> int:
        """Upload what has changed; return how many files.

        Raises:
            RunConflict: if another process has taken the lease meanwhile.
            RemoteFailed: if the address cannot be reached.
        """
        with self._reaching("write"):
            self._refuse(self._head())
            lasts = [name for name in self._local() if name.endswith(LAST)]
            lasts.sort(key=lambda name: name.count("/"))  # a run's tells of those of runs within
            last = {name: (self._state(name), self._read(name)) for name in lasts}
            names = [name for name in self._local() if not name.endswith(LAST)]  # now, not before
            files = {name: self._state(name) for name in names}
            files |= {name: last[name][0] for name in reversed(lasts)}
            changed = [name for name, state in files.items() if self._sent.get(name) != state]
            for name in changed:
                data = last[name][1] if name in last else self._read(name)
                if data is not None:
                    self._files.pipe_file(f"{self._where}/{name}", data)
                    self._sent[name] = files[name]
            gone = [name for name in self._there() if name not in files]
            for name in gone:
                self._files.rm_file(f"{self._where}/{name}")
                self._sent.pop(name, None)
            if changed or gone:
                self._coming = max(self._version + 1, time.time_ns() // 1_000_000)
            self._saw(self._version, self._coming)  # a lease that fails may have gone up
            with self._turn:
                self._lease(self._coming)
        return len(changed)

    def renew(self) -> None:
        """Renew the lease, unless it has been taken over meanwhile: `push` tells of that.

        Raises:
            RemoteFailed: if the address cannot be reached.
        """
        with self._reaching("write"), self._turn:
            lease = (self._head() or {}).get("lease") or {}
            if lease.get("owner") == self.owner:
                self._lease(self._version)

    def release(self) -> None:
        """Give the lease back."""
        with self._reaching("write"):
            self._put({"version": self._version})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for other processes of this machine that bring the run: it is brought once."""
        self.known.parent.mkdir(parents=True, exist_ok=True)
        lock = Held(self.known.with_suffix(LOCK), "run", wait=True)
        try:
            yield
        finally:
            lock.close()

    def _connect(self) -> None:
        if self._files is None:
            import fsspec

            self._files, where = fsspec.core.url_to_fs(self.address)
            self._where = str(where).rstrip("/")

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Turn whatever a file system raises into one line; its kinds of errors are its own."""
        try:
            self._connect()
            self._files.invalidate_cache()
            yield
        except (RunConflict, InvalidOption):
            raise
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            kept = f"what was done is whole in {self.path}: " if self.path.is_dir() else ""
            raise RemoteFailed(
                f"{_shown(self.address)}: cannot {what} there ({said}); {kept}see to the address "
                "and its credentials, then repeat the same command"
            ) from error

    def _head(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._files.cat_file(f"{self._where}/{HEAD}")))
        except FileNotFoundError:
            return None

    def _put(self, head: Mapping[str, Any]) -> None:
        data = json.dumps({"format": 1, **head}).encode()
        self._files.pipe_file(f"{self._where}/{HEAD}", data)

    def _lease(self, version: int) -> None:
        who = {"owner": self.owner, "host": self.host, "process": os.getpid()}
        self._put({"version": version, "lease": {**who, "at": time.time()}})
        self._version = version

    def _refuse(self, head: Mapping[str, Any] | None) -> None:
        """Refuse to work on what another process works on, or has changed meanwhile."""
        head = head or {}
        if int(head.get("version", self._version)) not in (self._version, self._coming):
            raise RunConflict(
                f"run {_shown(self.address)} was taken over by another machine meanwhile, and has "
                f"changed there; what was done here is whole in {self.path} until the same command "
                "is repeated: that moves it aside, and goes on from what is there"
            )
        lease = head.get("lease")
        if not lease or lease.get("owner") == self.owner:
            return
        silent = time.time() - float(lease.get("at", 0))
        same = lease.get("host") == self.host
        if silent < LAPSE and not (same and not _lives(int(lease.get("process", 0)))):
            raise RunConflict(
                f"run {_shown(self.address)} is in use by process {lease.get('process')} on "
                f"{lease.get('host')}, last heard of {silent:.0f} s ago; wait for it, or give "
                f"another --name (a lease lapses after {LAPSE:.0f} s of silence)"
            )

    def _seen(self) -> list[int]:
        """Return which versions are here, and remember which files have been uploaded."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self.known.read_text(encoding="utf-8"))
            for name, (size, changed, number) in known["sent"].items():
                self._sent[name] = (int(size), int(changed), str(number))
            return [int(version) for version in known["versions"]]
        return []

    def _saw(self, version: int, coming: int | None = None) -> None:
        """Write down that what is here is a version, or the one that it is about to become.

        No two uploads make the same one, wherever they are made.
        """
        self._version, self._coming = version, version if coming is None else coming
        known = {"format": 1, "versions": [version, self._coming], "sent": self._sent}
        write(self.known, json.dumps(known).encode())

    def _local(self) -> list[str]:
        """Return the names of the files here that belong to the run."""
        found = (path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())
        names = (path.relative_to(self.path).as_posix() for path in found)
        return sorted(name for name in names if not name.endswith(LEFT_OUT))

    def _there(self) -> list[str]:
        """Return the names of the files there that belong to the run."""
        begin = len(self._where) + 1
        found = [str(path)[begin:] for path in self._files.find(self._where)]
        return [name for name in found if not name.endswith(LEFT_OUT)]

    def _state(self, name: str) -> tuple[int, int, str]:
        """Return what tells whether a file has changed."""
        try:
            stat = (self.path / name).stat()
        except FileNotFoundError:
            return (-1, -1, "")
        return stat.st_size, stat.st_mtime_ns, str(stat.st_ino)

    def _read(self, name: str) -> bytes | None:
        """Return a file's content, of a log its whole lines; None if it has gone meanwhile."""
        try:
            data = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        return data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data

    def _make_way(self) -> None:
        """Remove what is here if all of it has been uploaded once; else move it aside."""
        aside = self.path.with_name(f".{self.path.name}.before-{time.time_ns()}")
        with ExitStack() as held:
            for lock in {self.path / LOCK, *self.path.rglob(LOCK)}:  # runs in it have their own
                held.callback(Held(lock, "run").close)
            unsent = any(self._sent.get(name) != self._state(name) for name in self._local())
            self.path.rename(aside)
            if not unsent:
                shutil.rmtree(aside)

    def _download(self) -> None:
        """Bring all files here, beside their place, then put them there in one go."""
        fresh = self.path.with_name(f".{self.path.name}.coming-{self.owner}")
        for name in self._there():
            path = fresh.joinpath(*_inside(name))
            write(path, self._files.cat_file(f"{self._where}/{name}"))
        fresh.mkdir(parents=True, exist_ok=True)
        fresh.rename(self.path)
        self._sent = {name: self._state(name) for name in self._local()}


def _inside(name: str) -> tuple[str, ...]:
    """Return the parts of a file's name, refusing one that would lead out of the run's folder."""
    parts = tuple(name.split("/"))
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise InvalidOption(f"file name {name!r}: leads out of the run's folder; it is not fetched")
    return parts


def _shown(address: str) -> str:
    """Return an address without the name and the password in it."""
    return re.sub(r"//[^/@]*@", "//", address)


def _lives(process: int) -> bool:
    """Tell whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Keeping:
    """Keeps the copy of a run up to date, and its lease, while this process works on it.

    Args:
        mirror: of the run.
        clock: seconds that only rise.
    """

    _active: ClassVar[dict[Path, "Keeping"]] = {}

    def __init__(self, mirror: Mirror, clock: Callable[[], float] = time.monotonic) -> None:
        self.mirror = mirror
        self.failed: RemoteFailed | RunConflict | None = None
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="mixnas-upload")
        self._over = threading.Event()
        self._timer = threading.Thread(target=self._renew, daemon=True, name="mixnas-lease")

    @classmethod
    def begin(cls, path: Path) -> "Keeping | None":
        """Begin to keep the copy of a run up to date; None if it has none, or that is done already.

        Raises:
            RunConflict: if another process works on the run.
            RemoteFailed: if its address cannot be reached.
        """
        mirror = Mirror.of(path)
        if mirror is None or mirror.path in cls._active:
            return None
        mirror.pull()
        mirror.take()
        keeping = cls(mirror)
        cls._active[mirror.path] = keeping
        keeping._thread.start()
        keeping._timer.start()
        return keeping

    @classmethod
    def works_on(cls, path: Path) -> bool:
        """Tell whether this process keeps a run's copy up to date."""
        return path in cls._active

    def abandon(self) -> None:
        """Give up without an upload: nothing was done."""
        self._rest()
        self._hush()
        with suppress(RemoteFailed, RunConflict):
            self.mirror.release()

    def end(self) -> None:
        """Upload what is left and give the lease back.

        Raises:
            RemoteFailed: if that fails; what was done is whole here.
            RunConflict: if another process has taken the run over.
        """
        self._rest()
        try:
            self.mirror.push()
        finally:
            self._hush()
        self.mirror.release()

    def _rest(self) -> None:
        """Upload nothing more by itself."""
        self._stop.set()
        self._thread.join()
        self._active.pop(self.mirror.path, None)

    def _hush(self) -> None:
        """Renew the lease no more."""
        self._over.set()
        self._timer.join()

    def _keep(self) -> None:
        wait = EVERY
        while not self._stop.wait(wait):
            began = self._clock()
            try:
                self.mirror.push()
                self.failed = None
            except (RemoteFailed, RunConflict) as error:  # tried again, and told at the end
                self.failed = error
            wait = max(EVERY, SHARE * (self._clock() - began))

    def _renew(self) -> None:
        while not self._over.wait(LAPSE / 4):  # an upload can take longer than a lease lasts
            with suppress(RemoteFailed):
                self.mirror.renew()
