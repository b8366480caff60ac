"""`Run`: one folder in ``runs/``, what it was made with, and writes that a kill cannot break."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from mixnas.errors import InvalidOption, RunConflict, RunDamaged, did_you_mean
from mixnas.remote import Keeping, fetch, given, placed, rooted
from mixnas.storage import Held, check_entered, guarded, write

if TYPE_CHECKING:
    import pandas

FORMAT = 1
SETTINGS = "run.json"
STAGES = "stages.json"
LOCK = ".lock"
FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What a file that does not hold what it should makes its reader raise."""
PACKAGES = ("mixnas", "torch", "torchvision", "timm", "optuna", "ray", "fvcore", "numpy", "pandas")

Value: TypeAlias = "Mapping[str, Any] | list[Any] | str | bytes | pandas.DataFrame"


class Run:
    """A run's folder: settings, stages done, and files.

    Whoever writes holds the folder's lock (`create`, or `open` with ``lock=True``); the kernel
    releases it when the process ends, however it ends. Close the run, or use it as a context,
    to release it earlier.

    Attributes:
        path: the folder.
        settings: what the run was made with, as plain JSON data.
        made: the whole of ``run.json``: settings, time, versions, git commit, device.
    """

    def __init__(
        self,
        path: Path,
        made: Mapping[str, Any],
        lock: Held | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self._keeping = keeping
        self.path = path
        self.made = dict(made)
        self.settings: dict[str, Any] = self.made["settings"]
        self._lock = lock

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        device: str | None = None,
    ) -> Self:
        """Make the folder ``root/name``, or resume it if its settings are equal; lock it.

        Args:
            root: the folder of all runs; made where it is missing.
            name: the run's own folder, one plain name.
            settings: JSON data that decides what the run computes.
            device: description of the device; by default that of the host's processor.

        Raises:
            InvalidOption: if the name is not a plain one or the root cannot be written.
            RunConflict: if the folder was made with other settings, is no run, or is in use.
            StorageFull: if the disk is full.
        """
        path = rooted(root) / _plain(name)
        keeping = Keeping.begin(path)
        try:
            return cls._made(path, settings, device, keeping)
        except BaseException:
            if keeping is not None:
                keeping.abandon()
            raise

    @classmethod
    def _made(
        cls, path: Path, settings: Mapping[str, Any], device: str | None, keeping: Keeping | None
    ) -> Self:
        wanted = json.loads(json.dumps(dict(settings)))
        try:
            with guarded(path):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidOption(
                f"run folder {path}: cannot be made ({error.strerror}); choose another folder"
            ) from None
        _check_is_ours(path)
        lock = Held(path / LOCK, "run")
        _sweep(path)
        if (path / SETTINGS).exists():
            made = _read_settings(path)
            _compare(path, made["settings"], wanted)
            return cls(path, made, lock, keeping)
        made = {"format": FORMAT, "settings": wanted, **provenance(device)}
        run = cls(path, made, lock, keeping)
        run.write(SETTINGS, made)
        return run

    @classmethod
    def open(cls, path: str | Path, *, lock: bool = False) -> Self:
        """Open an existing run, to read it; with ``lock``, to add to it.

        Raises:
            InvalidOption: if the folder may not be entered or, with the lock, not be written.
            RunConflict: if there is no such run, or it is in use and the lock is wanted.
        """
        path = placed(path)
        fetch(path)
        _check_is_run(path)
        if not lock:
            return cls(path, _read_settings(path))
        keeping = Keeping.begin(path)
        try:
            held = Held(path / LOCK, "run")
            _sweep(path)
            return cls(path, _read_settings(path), held, keeping)
        except BaseException:
            if keeping is not None:
                keeping.abandon()
            raise

    @classmethod
    def lent(cls, path: str | Path) -> Self:
        """Open a run that another process holds, to write into it in that one's place.

        Of several processes that train together one writes, at any time; the one that started
        them holds the lock, or the lease at an address, and uploads.

        Raises:
            RunConflict: if there is no such run.
        """
        _check_is_run(Path(path))
        return cls(Path(path), _read_settings(Path(path)))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def file(self, name: str) -> Path:
        """Return the path of a file of the run (which need not exist), ``figures/front.png`` say.

        Raises:
            InvalidOption: if the name leads out of the run's folder.
        """
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise InvalidOption(f"file name {name!r}: must lie inside the run's folder")
        return self.path.joinpath(*parts)

    def write(self, name: str, value: Value) -> Path:
        """Write a file whole or not at all, by what the value is.

        Args:
            name: path inside the run's folder.
            value: a dictionary or list (written as JSON), text, bytes, or a DataFrame (as CSV).

        Raises:
            StorageFull: if the disk is full; what was there before is kept.
        """
        path = self.file(name)
        write(path, _encoded(value))
        return path

    def read(self, name: str) -> Any:
        """Read a file by its suffix: ``.json`` as data, ``.csv`` as DataFrame, others as text.

        Raises:
            RunConflict: if the run has no such file yet, or it cannot be read.
        """
        path = self.file(name)
        if not path.is_file():
            raise RunConflict(
                f"run '{self.name}' has no {name}: that stage has not finished; "
                "repeat the command that made the run, it goes on where it stopped"
            )
        if path.suffix == ".csv":
            import pandas

            return pandas.read_csv(path)
        try:
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if path.suffix == ".json" else text
        except ValueError:
            raise self.broken(name) from None

    def broken(self, name: str) -> RunConflict:
        """Return the error that says that a file of the run is damaged, with the cure."""
        if name == SETTINGS:  # nothing makes it again
            return _broken_settings(self.path)
        return RunDamaged(
            f"{self.file(name)} is damaged; remove it and repeat the command that made the run: "
            "what it held is made again"
        )

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """While a file's content is taken apart: say that it is damaged, if it is not as it should.

        Args:
            name: of the file. What is done meanwhile should be about it alone.

        Raises:
            RunDamaged: in place of `FAULTS`.
        """
        try:
            yield
        except FAULTS:
            raise self.broken(name) from None

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages that are done: when, and what `mark` was told about each."""
        stages = self.read(STAGES) if self.file(STAGES).exists() else {}
        if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
            raise self.broken(STAGES)
        return stages

    def done(self, stage: str) -> bool:
        """Tell whether a stage has been marked as done."""
        return stage in self.stages

    def mark(self, stage: str, **facts: Any) -> None:
        """Mark a stage as done, with what is worth keeping about it (seconds, counts)."""
        self.write(STAGES, {**self.stages, stage: {"at": _now(), **facts}})

    def close(self) -> None:
        """Release the lock; of a run at an address, upload what is left.

        Raises:
            RemoteFailed: if that fails; what was done is whole here.
        """
        keeping, self._keeping = self._keeping, None
        try:
            if keeping is not None:
                keeping.end()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def runs(root: str | Path) -> list[Run]:
    """Return the runs in a folder, by name; folders that cannot be read as a run are left out."""
    return opened(root)[0]


def opened(root: str | Path) -> tuple[list[Run], dict[Path, RunConflict]]:
    """Return the runs in a folder, and what is wrong with the folders that `runs` leaves out."""
    found, damaged = [], {}
    for folder in _folders(root):
        try:
            found.append(Run(folder, _read_settings(folder)))
        except RunConflict as error:
            damaged[folder] = error
    return found, damaged


def _folders(root: str | Path) -> list[Path]:
    return [path.parent for path in sorted(Path(root).glob(f"*/{SETTINGS}"))]


def provenance(device: str | None = None) -> dict[str, Any]:
    """Return when and with what a run is made: time, versions, git commit, device."""
    return {
        "made": _now(),
        "versions": {"python": platform.python_version(), **_versions()},
        "git": _commit(),
        "device": device or _processor(),
    }


def _plain(name: str) -> str:
    allowed = name and not set(name) & set("/\\\0\n") and not name.startswith(".")
    if not allowed or len(name.encode()) > 200:
        raise InvalidOption(
            f"run name {name!r}: must be one plain name of at most 200 bytes, "
            "without slashes and not beginning with a dot"
        )
    return name


def _check_is_ours(path: Path) -> None:
    """A folder may be a run's, or empty but for what a killed `create` left."""
    strangers = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    if strangers and SETTINGS not in strangers:
        raise RunConflict(
            f"{path} is not a run: it holds {strangers[0]} but no {SETTINGS}; "
            "give another --name or move the folder away"
        )


def _check_is_run(path: Path) -> None:
    """Refuse a folder that is no run's, naming the runs beside it."""
    if not (path / SETTINGS).is_file():
        known = [folder.name for folder in _folders(path.parent)]
        hint = did_you_mean(path.name, known) if known else "there are no runs there"
        raise RunConflict(f"no run '{path.name}' in {given(path.parent)}; {hint}")


def _sweep(path: Path) -> None:
    """Remove what a killed writer left half-written, but not in runs within: they have locks."""
    for folder, inner, files in os.walk(path):
        if Path(folder) != path and {SETTINGS, LOCK} & set(files):
            inner.clear()
            continue
        for name in files:
            if name.startswith(".") and name.endswith(".tmp"):
                (Path(folder) / name).unlink(missing_ok=True)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        made = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        if made["format"] != FORMAT:
            raise RunConflict(
                f"run {path}: format {made['format']!r}; this mixnas reads format {FORMAT}"
            )
        datetime.fromisoformat(made["made"])
        return dict(made, settings=dict(made["settings"]))
    except (ValueError, KeyError, TypeError):
        raise _broken_settings(path) from None


def _broken_settings(path: Path) -> RunDamaged:
    return RunDamaged(
        f"{path / SETTINGS} is damaged; put the file back from a copy of the run, or move the "
        "folder away"
    )


def agree(root: str | Path, name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that differ from those of the run that stands there, if one does.

    Raises:
        InvalidOption: if the name is not a plain one, or the folder cannot be made or entered.
        RunConflict: naming the fields that differ.
    """
    path = Path(root) / _plain(name)
    check_entered(path)
    standing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise InvalidOption(
            f"run folder {path}: {standing} is no folder that can be written; give another --runs"
        )
    if (path / SETTINGS).is_file():
        wanted = json.loads(json.dumps(dict(settings)))
        _compare(path, _read_settings(path)["settings"], wanted)


def _compare(path: Path, was: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if was.get("job") != wanted.get("job"):
        raise RunConflict(
            f"run {path} was made by mixnas {was.get('job', 'search')}, not by mixnas "
            f"{wanted.get('job', 'search')}; give another --name"
        )
    differing = differences(was, wanted)
    # What was resolved follows from what was asked: it is named only where it alone differs.
    asked = [line for line in differing if not line.startswith(("found.", "inlined."))]
    if differing := asked or differing:
        raise RunConflict(
            f"run {path} was made with other settings: {'; '.join(differing)}; "
            "give another --name, or the same settings to go on"
        )


def differences(was: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 5) -> list[str]:
    """Return ``field: was A, now B`` for each differing field, nested ones with dots."""
    old, new = dict(_flat(was)), dict(_flat(wanted))
    fields = [field for field in {**old, **new} if old.get(field, ()) != new.get(field, ())]
    lines = [f"{field}: was {_brief(old, field)}, now {_brief(new, field)}" for field in fields]
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return lines[:limit] + more


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _brief(values: Mapping[str, Any], field: str) -> str:
    if field not in values:
        return "not set"
    text = json.dumps(values[field], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encoded(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Mapping | list):
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    return value.to_csv(index=False).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _commit() -> str | None:
    """The commit of mixnas' own checkout, or None where it is installed without one."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor() -> str:
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} logical cores, {platform.system()}"
