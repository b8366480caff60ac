"""A folder to take to a phone or a board: the parts of a space as ONNX files, a table to fill in.

What stands in ``table.csv``'s column ``file`` is timed there, its milliseconds are written beside
it, and the table comes back with ``mixnas measure --from table.csv``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixnas import storage
from mixnas.arch import Architecture
from mixnas.cost import count
from mixnas.cost.measured import items, template
from mixnas.cost.table import CostTable
from mixnas.errors import InvalidOption, RunConflict
from mixnas.exports.placed import graph
from mixnas.jobs.measuring import draws
from mixnas.jobs.settings import Listener, Silent
from mixnas.network import Part, build
from mixnas.run import differences
from mixnas.space import SearchSpace

TABLE = "table.csv"
SETTINGS = "template.json"
FORMAT = 1


def write_parts(
    folder: str | Path,
    space: SearchSpace,
    networks: int = 60,
    seed: int = 0,
    listener: Listener | None = None,
) -> Path:
    """Write one ONNX file for each part and for some whole networks, and the table beside them.

    The files hold float32 networks at batch 1, every size fixed, batch norms folded, with random
    weights. A call that was cut off goes on: files that stand there are whole, and are kept, as
    is a table that has been filled in.

    Args:
        folder: made where it is not there.
        space: at the image and classes of deployment.
        networks: whole networks, which teach the predictor what parts do not tell.
        seed: of the draw of the networks and of the weights.
        listener: is told how it gets on.

    Returns:
        The table's path.

    Raises:
        InvalidOption: if the folder cannot be made, or onnx is not installed.
        RunConflict: if it holds another space's files, or other things.
        ExportMismatch: if a mixer has no ONNX form.
        StorageFull: if the disk is full; the files written before are kept.
    """
    folder, listener = Path(folder), listener or Silent()
    drawn = draws(space, networks, seed)
    _claim(folder, {"space": space.to_dict(), "networks": networks, "seed": seed})
    if not (folder / TABLE).exists():
        storage.write(folder / TABLE, template(space, drawn).encode())
    rows = list(items(space, drawn))
    waiting = [(item, name) for item, name in rows if not (folder / name).exists()]
    if waiting:
        size = _bytes(space, [item for item, _ in waiting])
        listener.note(f"{len(waiting)} ONNX files, about {size / 1e6:,.0f} MB, in {folder}")
    listener.stage("parts", len(rows), len(rows) - len(waiting))
    for item, name in waiting:
        storage.write(folder / name, _written(item, space, Path(name).stem, seed))
        listener.advance(1)
    listener.end()
    return folder / TABLE


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or see that it was made for the same."""
    path, wanted = folder / SETTINGS, json.loads(json.dumps({"format": FORMAT, **settings}))
    try:
        with storage.guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
        there = [file.name for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    except OSError as error:
        raise InvalidOption(
            f"folder {folder}: cannot be made ({error.strerror}); choose another folder"
        ) from None
    if SETTINGS in there:
        if differing := differences(_kept(path), wanted):
            raise RunConflict(
                f"folder {folder} was made otherwise: {'; '.join(differing)}; give another folder"
            )
    elif there:
        raise RunConflict(
            f"folder {folder} holds {there[0]} but no {SETTINGS}; give an empty or a new folder"
        )
    else:
        storage.write(path, (json.dumps(wanted, indent=1) + "\n").encode())
    for left in folder.rglob(".*.tmp"):  # of a killed writer
        left.unlink(missing_ok=True)


def _kept(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise RunConflict(f"{path} is damaged; give another folder, or remove this one") from None
    return found


def _bytes(space: SearchSpace, waiting: Sequence[Part | Architecture]) -> int:
    """Return about how large the files will be: four bytes a parameter."""
    table = CostTable(count.params, image=space.image, classes=space.classes)
    return 4 * sum(
        table(item) if isinstance(item, Architecture) else table.part(item) for item in waiting
    )


def _written(item: Part | Architecture, space: SearchSpace, name: str, seed: int) -> bytes:
    """Return a part or a network as the bytes of an ONNX file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(item, Part):
            return graph(item.build(), item.shape, name, batch=1).SerializeToString()
        network, shape = build(item, space.classes), (3, space.image, space.image)
        return graph(network, shape, name, batch=1).SerializeToString()
