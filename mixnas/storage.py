"""Files that a kill or a full disk cannot break: atomic writes, and locks that die with us."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EMLINK, ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path
from pickle import UnpicklingError
from threading import get_native_id

from mixnas.errors import InvalidOption, RunConflict, StorageFull


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to disk, then renamed.

    Raises:
        InvalidOption: if a file stands where the folder has to be.
        StorageFull: if the disk is full; what was there before is kept.
    """
    temporary = path.with_name(f".{path.name}.{get_native_id()}.tmp")
    with guarded(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InvalidOption(
                f"{path.parent}: cannot be made a folder, since a file stands there or above; "
                "move it away, then repeat the same command"
            ) from None
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


def link(source: Path, target: Path) -> None:
    """Put a file's content at another place, whole or not at all: as a second name of the file.

    Files are never changed in place here (`write` renames), so what holds for one name holds for
    the other until it is written anew. Where the disk has no second names, the file is copied.
    Of a symbolic link it is the file behind it that gets the second name: a relative one would
    lead nowhere from another folder.

    Raises:
        StorageFull: if the disk is full.
    """
    temporary = target.with_name(f".{target.name}.{get_native_id()}.tmp")
    with guarded(target):
        try:
            temporary.unlink(missing_ok=True)
            os.link(source.resolve(), temporary)
            temporary.replace(target)
        except OSError as error:
            if error.errno not in (EXDEV, EPERM, EMLINK, EOPNOTSUPP):
                raise
            write(target, source.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)  # two names of one file are not renamed
        _flush_folder(target.parent)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn the system's "no space", "file too large" and "over quota" into `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EFBIG, EDQUOT):
            raise
        raise StorageFull(
            f"{path}: cannot be written ({error.strerror}); everything written before is kept: "
            "free some space, then repeat the same command and it goes on"
        ) from None


def check_entered(folder: Path) -> None:
    """Refuse a folder that may not be entered; one that is not there may be.

    Raises:
        InvalidOption: naming it.
    """
    try:
        (folder / "any").exists()
    except PermissionError as error:
        raise InvalidOption(
            f"folder {folder}: it, or one above it, may not be entered ({error.strerror}); "
            "give another folder, or have its permissions changed"
        ) from None


UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    UnpicklingError,
    struct.error,
    LookupError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
)
"""What `torch.load` with ``weights_only=True`` raises if a file is missing or damaged."""


class Held:
    """A file open to append to, locked for its holder until closed, forgotten or killed.

    With ``wait``, another holder is waited for.

    Attributes:
        handle: the file's descriptor.

    Raises:
        InvalidOption: if it cannot be written, or its file system has no locks.
        RunConflict: if another holds it.
        StorageFull: if it has to be made and the disk is full.
    """

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        self.handle = -1
        try:
            with guarded(path):
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self.handle = os.open(path, flags, 0o666)
        except PermissionError as error:
            raise InvalidOption(
                f"{what} {path.parent}: cannot be written ({error.strerror}); copy it to a folder "
                "of your own, or change its permissions"
            ) from None
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self.close()
            raise RunConflict(
                f"{what} {path.parent} is in use by another process; "
                "wait for it or give another --name"
            ) from None
        except OSError as error:
            self.close()
            if error.errno not in (ENOSYS, ENOLCK, EOPNOTSUPP):
                raise
            raise InvalidOption(
                f"{what} {path.parent}: its file system has no locks ({error.strerror}); mount it "
                "with locks (Lustre: -o flock), or give a --runs folder on a local disk (for an "
                "address, by XDG_CACHE_HOME)"
            ) from None

    def close(self) -> None:
        """Release the file; a second time does nothing."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __del__(self) -> None:
        self.close()


def _flush_folder(folder: Path) -> None:
    """Make a rename in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
