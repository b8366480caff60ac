"""A search's trials shown live in an Optuna storage, for its dashboard: one way, never read back.

The driver hands trials over and goes on; a thread writes them. A storage that fails is told of
once and tried again now and then; no search ever waits for it, or ends by it.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mixnas.asktell.export import frozen
from mixnas.asktell.trial import Trial
from mixnas.errors import InvalidOption
from mixnas.space import SearchSpace

NUMBER = "trial"
"""User attribute of an Optuna trial: the number that the search's own log gives it."""
IDENTITY = "mixnas"
"""User attribute of a study: what tells the search that it shows."""
DIRECTIONS = [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
METRICS = ["loss", "cost"]
AGAIN = 30.0
"""Seconds after which a storage that failed is tried again."""
PATIENCE = 15.0
"""Seconds that a search's end waits for a storage that takes nothing."""
FORMS = (
    "give an address such as sqlite:///study.db or postgresql://USER@HOST/NAME, or the path of a "
    "journal file such as study.journal"
)


def identity(settings: Mapping[str, Any], number: int = 0) -> str:
    """Return what tells a search's study from another's: a digest of its settings and round."""
    text = json.dumps([settings, number], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_storage(address: str) -> None:
    """Refuse what is no address of an Optuna storage, without touching it.

    Raises:
        InvalidOption: in one line, with the cure.
    """
    if not address.strip():
        raise InvalidOption(f"--storage {address!r}: it is empty; {FORMS}")
    if "://" in address:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError

        try:
            make_url(address).get_dialect()
        except (SQLAlchemyError, ValueError, ImportError) as error:
            raise _refused(address, error) from None
        return
    if Path(address).suffix in (".db", ".sqlite", ".sqlite3"):
        raise InvalidOption(
            f"--storage {address}: a bare path is a journal file's; for an SQLite database write "
            f"sqlite:///{address}"
        )


def begin_study(address: str, name: str, told: str) -> None:
    """Make the study that shall show a search, or see that the one there is that search's.

    Args:
        address: of the storage.
        name: of the study.
        told: the search's `identity`.

    Raises:
        InvalidOption: if the storage cannot be used, or has another search's study of that name.
    """
    check_storage(address)
    try:
        _Shelf(address, name, told).close()
    except _Foreign as error:
        raise InvalidOption(
            f"--storage {masked(address)}: {error}; give another --storage or another --name, or "
            "remove that study"
        ) from None
    except (Exception, SystemExit) as error:  # drivers of databases raise whatever they like
        raise _refused(address, error) from None


def masked(text: str) -> str:
    """Return a text without the passwords of addresses in it."""
    text = re.sub(r"(://[^\s:/@]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"(?i)(password|passwd|pwd|token)=[^\s&;]*", r"\1=***", text)


class Mirror:
    """Shows the trials of one search in a storage, as they are asked and told.

    Args:
        address: of the storage: an RDB's URL, or a journal file's path.
        name: of the study.
        told: the search's `identity`.
        space: names the parameters.
        trials: those of earlier; what the storage lacks of them is added.
        note: told once if the storage fails.
    """

    def __init__(
        self,
        address: str,
        name: str,
        told: str,
        space: SearchSpace,
        trials: Iterable[Trial],
        note: Callable[[str], None],
    ) -> None:
        self._address, self._name, self._told, self._space = address, name, told, space
        self._note = note
        self._waiting = {trial.number: trial for trial in trials}
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._shelf: _Shelf | None = None
        self._fault = ""
        self._noted = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mixnas-mirror")
        self._wake.set()
        self._thread.start()

    def show(self, trial: Trial) -> None:
        """Show a trial as it is now; returns at once."""
        with self._lock:
            self._waiting[trial.number] = trial
        self._wake.set()
        self._tell()

    def close(self) -> None:
        """Wait until all is shown, but not for a storage that takes nothing."""
        self._stop.set()
        self._wake.set()
        left = len(self._waiting) + 1
        while self._thread.is_alive() and len(self._waiting) < left:
            left = len(self._waiting)
            self._thread.join(PATIENCE)
        if self._thread.is_alive() and not self._fault:
            self._fault = f"no answer within {PATIENCE:g} s"
        self._tell()

    def _tell(self) -> None:
        """Tell of a failure, once; here, in the search's own thread."""
        if self._fault and not self._noted:
            self._noted = True
            self._note(
                f"storage {masked(self._address)} does not show all trials: {self._fault}; the "
                "search goes on, its own log has them; the same command later adds what is missing"
            )

    def _work(self) -> None:
        while not self._stop.is_set() or self._wake.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                self._write()
            except _Foreign as error:
                self._fault = str(error)
                break
            except (Exception, SystemExit) as error:  # drivers of databases raise what they like
                self._fault = _why(error)
                self._forget()
                if not self._stop.wait(AGAIN):
                    self._wake.set()
        self._forget()

    def _write(self) -> None:
        """Write what waits, the lowest number first, so that Optuna's numbers are ours."""
        self._shelf = self._shelf or _Shelf(self._address, self._name, self._told)
        while self._waiting:
            with self._lock:
                number = min(self._waiting)
                trial = self._waiting[number]
            self._shelf.put(trial, self._space)
            with self._lock:
                if self._waiting[number] is trial:
                    del self._waiting[number]

    def _forget(self) -> None:
        """Leave the storage: when it is tried again, what it holds is read again."""
        shelf, self._shelf = self._shelf, None
        if shelf is not None:
            with suppress(Exception):
                shelf.close()


class _Foreign(Exception):
    """A study that shows another search."""


class _Shelf:
    """A study in a storage, and which trials it has."""

    def __init__(self, address: str, name: str, told: str) -> None:
        self._storage = _opened(address)
        try:
            self._study = _study(self._storage, name, told)
            kept = self._storage.get_all_trials(self._study, deepcopy=False)
        except BaseException:
            self.close()
            raise
        self._there = {each.user_attrs.get(NUMBER): each for each in kept}

    def put(self, trial: Trial, space: SearchSpace) -> None:
        """Have the study show a trial as it is now; one that it shows so already is left.

        Raises:
            _Foreign: if it has another trial of that number.
        """
        now = frozen(trial, space)
        now.user_attrs[NUMBER] = trial.number
        there = self._there.get(trial.number)
        if there is None:
            now._trial_id = self._storage.create_new_trial(self._study, now)
        elif there.user_attrs.get("id") != trial.arch.id or _differs(there, now):
            raise _Foreign(f"the study there has another trial {trial.number}")
        elif there.state == TrialState.RUNNING and now.state.is_finished():
            now._trial_id = there._trial_id
            for key, value in now.user_attrs.items():
                if there.user_attrs.get(key) != value:
                    self._storage.set_trial_user_attr(there._trial_id, key, value)
            self._storage.set_trial_state_values(there._trial_id, now.state, now.values)
        else:
            return
        self._there[trial.number] = now

    def close(self) -> None:
        """Leave the storage."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()


def _differs(there: FrozenTrial, now: FrozenTrial) -> bool:
    """Tell whether two finished trials are not the same."""
    if not (there.state.is_finished() and now.state.is_finished()):
        return False
    return (there.state, there.values) != (now.state, now.values)


def _opened(address: str) -> BaseStorage:
    with _quietly():
        if "://" in address:
            return RDBStorage(address)
        _check_journal(Path(address))
        return JournalStorage(JournalFileBackend(address))


def _check_journal(path: Path) -> None:
    """Refuse a file of another kind: Optuna would write into it."""
    if path.exists():
        with path.open("rb") as file:
            first = file.readline(10**6)
        if first and "op_code" not in json.loads(first):
            raise ValueError("not a journal of Optuna")


def _study(storage: BaseStorage, name: str, told: str) -> int:
    """Return the study of that name, a new one if there is none.

    Raises:
        _Foreign: if it shows another search.
    """
    with _quietly():
        try:
            study = storage.create_new_study(DIRECTIONS, name)
        except optuna.exceptions.DuplicatedStudyError:
            study = storage.get_study_id_from_name(name)
            attributes = storage.get_study_user_attrs(study)
            if attributes.get(IDENTITY) != told and (
                attributes or storage.get_n_trials(study) or _other_directions(storage, study)
            ):
                raise _Foreign(f"its study '{name}' is of another search") from None
        if storage.get_study_user_attrs(study).get(IDENTITY) != told:
            # What Study.set_metric_names writes; that method warns that it is experimental.
            storage.set_study_system_attr(study, "study:metric_names", METRICS)
            storage.set_study_user_attr(study, IDENTITY, told)
    return study


def _other_directions(storage: BaseStorage, study: int) -> bool:
    return list(storage.get_study_directions(study)) != DIRECTIONS


def _refused(address: str, error: BaseException) -> InvalidOption:
    return InvalidOption(
        f"--storage {masked(address)}: cannot be used ({_why(error)}); see that it is written "
        f"right, there and reachable: {FORMS}"
    )


def _why(error: BaseException) -> str:
    """Return an error's kind and text on one short line, without passwords."""
    cause = error.__cause__ or error  # Optuna's own error says less than the driver's
    text = " ".join(f"{type(cause).__name__}: {cause}".split())
    return masked(text.partition("[SQL:")[0].partition("(Background on")[0].strip())[:300]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Optuna's notices off the terminal; in any thread, so warnings are left alone."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
