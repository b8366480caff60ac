"""Where measured limits hold: on a device that is here, or in a table measured elsewhere."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixnas.cost.limit import MEASURED, Limit
from mixnas.cost.measured import Measured
from mixnas.cost.predictor import Predictor
from mixnas.errors import InvalidTable, MixnasError, RunConflict, TableMissing
from mixnas.jobs.measure_space import measure_space
from mixnas.jobs.measured_run import JOB, PREDICTOR, TABLE
from mixnas.jobs.measuring import Bench, kept
from mixnas.jobs.settings import Listener
from mixnas.run import SETTINGS, Run, differences
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions

ELSEWHERE = "table:"
FORMAT = 1


@dataclass(frozen=True)
class Device:
    """Where a measured limit holds.

    Attributes:
        predictor: what an architecture takes there, with an interval.
        conditions: under which a whole network is measured here; None if it cannot be.
        reference: milliseconds that the stopwatch's own network takes, to which times are scaled.
    """

    predictor: Predictor
    conditions: Conditions | None
    reference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, by which a run goes on with the same figures."""
        here = self.conditions
        return {
            "format": FORMAT,
            "conditions": None if here is None else asdict(here),
            "found": None if here is None else here.to_dict(),
            "reference_ms": self.reference,
            "predictor": self.predictor.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> "Device":
        """Read what `to_dict` wrote.

        Args:
            data: plain data.
            where: the file, for an error.

        Raises:
            TableMissing: if it is damaged, or the machine is not what it was.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            predictor = Predictor.from_dict(data["predictor"])
            here = data["conditions"]
            conditions = None if here is None else Conditions(**here)
            differing = [] if conditions is None else changed(data["found"], conditions)
        except (KeyError, TypeError, ValueError, InvalidTable) as error:
            raise TableMissing(
                f"{where}: cannot be read ({type(error).__name__}: {error}); remove it and repeat "
                "the command: it is made again"
            ) from None
        if differing:
            raise TableMissing(
                f"{where}: measured under other conditions ({'; '.join(differing)}); go on where "
                "it was measured, or search under another --name"
            )
        return cls(predictor, conditions, data.get("reference_ms"))


def changed(found: Mapping[str, Any], conditions: Conditions) -> list[str]:
    """Return in what the conditions of a measurement differ from those here and now."""
    now = conditions.to_dict()
    return differences({key: found.get(key) for key in now}, now)


def file_of(cost: str) -> str:
    """Return the name of the file that keeps a limited cost's device in a run."""
    plain = re.sub(r"[^A-Za-z0-9@.]+", "-", cost)
    digest = "" if plain == cost else f"-{hashlib.sha256(cost.encode()).hexdigest()[:6]}"
    return f"{plain[-80:]}{digest}.json"


def devices(
    limits: Iterable[Limit],
    space: SearchSpace,
    device: str,
    folder: Path,
    runs: Path,
    listener: Listener,
) -> dict[str, Device]:
    """Return where each measured limit holds, by the limit's cost.

    Args:
        limits: of any kind.
        space: at its deployed image and classes.
        device: where a limit holds that names no device.
        folder: the run's, which keeps the devices that it was begun with.
        runs: the folder of runs in which what is measured is kept, for other runs too.
        listener: is told how the measuring gets on.

    Raises:
        MixnasError: if a device or a table is not there, or is unfit.
    """
    found = {}
    for limit in limits:
        if limit.kind in MEASURED:
            path = folder / file_of(limit.cost)
            if path.is_file():
                known = Device.from_dict(Run.open(folder).read(path.name), str(path))
                _unchanged(known, limit, space, folder, runs)
                found[limit.cost] = known
            else:
                found[limit.cost] = _device(limit, space, device, runs, listener)
    return found


def _unchanged(known: Device, limit: Limit, space: SearchSpace, folder: Path, runs: Path) -> None:
    """Refuse a table whose figures are others than when the run began; one that is gone is fine."""
    if not limit.where.startswith(ELSEWHERE):
        return
    try:
        now = tabled(limit.where.removeprefix(ELSEWHERE), limit.kind, space, runs)
    except MixnasError:
        return
    was, here = known.predictor.measured, now.predictor.measured
    if (was.parts, was.networks) != (here.parts, here.networks):
        raise RunConflict(
            f"budget {limit}: the table has changed since run {folder} began; give another --name "
            "to search with the new figures, or put the old ones back"
        )


def _device(
    limit: Limit, space: SearchSpace, device: str, runs: Path, listener: Listener
) -> Device:
    if limit.where.startswith(ELSEWHERE):
        found = tabled(limit.where.removeprefix(ELSEWHERE), limit.kind, space, runs)
    else:
        where = Conditions.at(limit.where) if limit.where else Conditions.of(device)
        run = measure_space(Bench(space, where, limit.kind), runs, None, listener)
        predictor = _predictor(run)
        reference = predictor.measured.conditions.get("reference_ms")
        found = Device(predictor, where, reference)
    if not found.predictor.calibrated:
        listener.note(
            f"budget {limit}: too few whole networks were measured to know how far the sum of "
            "parts is off; the limit holds for the sum"
        )
    return found


def _predictor(run: Run) -> Predictor:
    """Return what a measured run's networks taught.

    Raises:
        RunConflict: if its file is damaged.
    """
    try:
        return Predictor.from_dict(run.read(PREDICTOR))
    except (InvalidTable, AttributeError, TypeError):
        raise run.broken(PREDICTOR) from None


def tabled(name: str, kind: str, space: SearchSpace, runs: Path) -> Device:
    """Return the device of a table: a file, or a run of `mixnas measure` (name or folder).

    Raises:
        TableMissing: if there is none, or it lacks parts of the space.
        InvalidTable: if a row of a file is wrong; it is named.
    """
    folder = next((path for path in (Path(name), runs / name) if (path / SETTINGS).is_file()), None)
    if folder is None:
        measured, here = Measured.load(name), None
    else:
        measured, here = _of_run(Run.open(folder))
    if measured.quantity != kind:
        raise TableMissing(
            f"{name}: a table of {measured.quantity}, not of {kind}; give a table of {kind}"
        )
    measured.check(space, name)
    reference = measured.conditions.get("reference_ms") if here else None
    return Device(Predictor.fit(measured), here, reference)


def _of_run(run: Run) -> tuple[Measured, Conditions | None]:
    """Return what a run measured, and its conditions if they are those of this machine."""
    measured = kept(run) if run.settings.get("job") == JOB else None
    if measured is None:
        raise TableMissing(f"{run.path}: holds no {TABLE}; give a run of mixnas measure")
    try:
        chosen = {key: run.settings["conditions"][key] for key in Conditions.__annotations__}
        conditions = Conditions.of(**chosen)
    except (KeyError, TypeError, MixnasError):  # measured elsewhere, or on what is not here now
        return measured, None
    return measured, None if changed(measured.conditions, conditions) else conditions
