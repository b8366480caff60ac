"""An append-only log: one JSON object a line, on disk before it counts."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixnas.errors import InvalidSpace, RunConflict
from mixnas.storage import Held, guarded

Line = dict[str, Any]

CURE = "mend that line, or put the file back from a copy of the run"
"""Of a damaged log that is only read."""
ANEW = "mend it, or give another --name to search anew"
"""Of one that a search goes on with."""


class Log:
    """The open log of one search: locked, read once, then only appended to.

    A last line without its newline was torn by a kill: it is cut off, as if never written.

    Raises:
        RunConflict: if another process holds the log, or a line inside it cannot be read.
        StorageFull: if the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with guarded(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = Held(path, "search log")
        self.lines, whole = parse(path, cure=ANEW)
        os.ftruncate(self._file.handle, whole)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write lines in one go and flush them to disk; none of them is kept if that fails."""
        data = "".join(f"{_compact(line)}\n" for line in lines).encode()
        handle = self._file.handle
        before = os.fstat(handle).st_size
        with guarded(self.path):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise

    def close(self) -> None:
        """Release the log."""
        self._file.close()


def parse(path: Path, *, cure: str = CURE) -> tuple[list[Line], int]:
    """Return a log's whole lines and how many bytes they take; an absent log has none.

    Args:
        path: the log.
        cure: what helps if a line is damaged.

    Raises:
        RunConflict: if a whole line is not JSON: then the file was changed by other hands.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise RunConflict(
                f"search log {path}, line {number}: not a line that mixnas wrote; {cure}"
            ) from None
    return lines, whole


@contextmanager
def reading(path: Path, number: int, *, cure: str = CURE) -> Iterator[None]:
    """Turn whatever a damaged line raises where it is read into an error that names the line.

    Args:
        path: the log.
        number: of the line, from 1.
        cure: what helps.

    Raises:
        RunConflict: says what is wrong with it.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, InvalidSpace) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else error
        raise RunConflict(
            f"search log {path}, line {number}: not a line that mixnas wrote ({why}); {cure}"
        ) from None


def _compact(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), allow_nan=False)
