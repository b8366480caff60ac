"""What may stand in a ``.pt2``, so that `torch.export.load` runs nothing that a stranger wrote.

That loader unpickles (all tensors before torch 2.9, marked ones and sample inputs since), evaluates
strings (expressions of sizes, guards), loads compiled libraries, and resolves the names of
operators to anything that `torch`, `math` and `operator` hold. So an archive is read here first:
entries that are not known are refused; pickles must load with ``weights_only=True``; strings of
the graph must be plain names, sizes or operators of `aten`. What passed is packed anew and that is
what the loader sees, so that no other reading of the same zip file can differ from this one.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch.utils import _pytree as pytree

from mixnas import storage
from mixnas.errors import InvalidCheckpoint

Entries = dict[str, bytes]

EXTRA = "extra/"
DESCRIPTION = "mixnas.json"
FACTS = "facts.json"

GRAPH = "models/model.json"
BROKEN: tuple[type[Exception], ...] = (zipfile.BadZipFile, *storage.UNREADABLE)
"""What reading a damaged archive raises."""

PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PICKLES = tuple(f"data/{part}/model.pt" for part in ("weights", "constants", "sample_inputs"))
PLAIN = {
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
    EXTRA + DESCRIPTION,
    EXTRA + FACTS,
}
TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")

NAME = re.compile(r"[\w.+-]{0,200}", re.ASCII)
"""Strings that are only ever names: nothing to evaluate, nothing to find a file by."""

TARGET = re.compile(
    r"torch\.ops\.aten\.(?!set_|from_file|resize)(?:[a-z]\w*|_assert_tensor_metadata)\.\w+"
    r"|torch\.ops\.torchvision\.deform_conv2d\.default"
    r"|_operator\.(?:add|sub|mul|floordiv|mod|getitem)",
    re.ASCII,
)
"""Operators that compute from tensors alone."""

SIZE = re.compile(
    r"(?:Symbol\('[su]\d{1,4}', positive=True, integer=True\)"
    r"|(?:Add|Mul|Max|Min|Mod|FloorDiv|Integer)\(|s\d|\d|\*(?!\*)|[-+/(), ])*",
    re.ASCII,
)
"""Arithmetic of whole numbers and of the open batch, which the loader evaluates."""

TREES = {
    "in_spec": pytree.treespec_dumps(pytree.tree_structure(((torch.zeros(0),), {}))),
    "out_spec": pytree.treespec_dumps(pytree.tree_structure(torch.zeros(0))),
}
"""One tensor goes in, one comes out; other trees name classes, which the loader imports."""


def vetted(file: IO[bytes], where: str) -> Entries:
    """Read an archive of torch.export that may be loaded.

    Args:
        file: open for reading.
        where: named in the error.

    Returns:
        Its entries by name, without the folder that torch puts around them.

    Raises:
        InvalidCheckpoint: if it is broken, or holds what could run.
    """
    try:
        entries = _read(file)
        fault = next(_faults(entries), None)
    except BROKEN as error:
        fault = f"it is broken ({type(error).__name__}: {str(error).splitlines()[:1]})"
    if fault is not None:
        raise InvalidCheckpoint(f"{where}: not a .pt2 of mixnas: {fault}; export it again")
    return entries


def packed(entries: Mapping[str, bytes]) -> bytes:
    """Return an archive of the entries, as `torch.export.load` reads them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def _read(file: IO[bytes]) -> Entries:
    """Return the entries; stored, not packed, they are never larger than the file."""
    entries: Entries = {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) != len({info.filename for info in infos}):
            raise ValueError("two entries have one name")
        if sum(info.file_size for info in infos) > file.seek(0, io.SEEK_END):
            raise ValueError("its entries are larger than the file")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"entry {info.filename[:80]!r} is compressed")
            entries[info.filename.partition("/")[2]] = archive.read(info)
    return entries


def _faults(entries: Entries) -> Iterator[str]:
    """Say what must not be loaded."""
    if GRAPH not in entries or EXTRA + DESCRIPTION not in entries:
        yield "it has no graph, or no description"
    if entries.get("archive_format") != b"pt2" or entries.get("byteorder") != b"little":
        yield "it is of another format, or byte order"
    for name, data in entries.items():
        if name in PICKLES:
            yield from _pickle_faults(name, data)
        elif name in PAYLOADS:
            yield from _payload_faults(json.loads(data), name.rpartition("/")[0], entries)
        elif name == GRAPH:
            yield from _graph_faults(json.loads(data))
        elif name not in PLAIN and not TENSOR.fullmatch(name):
            yield f"entry {name[:80]!r} is not one that mixnas writes"


def _pickle_faults(name: str, data: bytes) -> Iterator[str]:
    """A pickle that loads with ``weights_only`` calls nothing but torch's own tensor builders."""
    if not data:
        return
    if not data.startswith(b"PK"):
        yield f"entry '{name}' is a pickle of another format"
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except UnpicklingError:
        yield f"entry '{name}' would run code"


def _payload_faults(payloads: Any, folder: str, entries: Entries) -> Iterator[str]:
    """Tensors must be raw bytes of this archive."""
    yield from _odd_strings(payloads)
    for key, payload in payloads["config"].items():
        if payload["use_pickle"] is not False:
            yield f"tensor {key!r} would be unpickled"
        place = f"{folder}/{payload['path_name']}"
        if not TENSOR.fullmatch(place) or not entries.get(place):
            yield f"tensor {key!r} is not in the archive"


def _graph_faults(graph: Any) -> Iterator[str]:
    """The graph must hold nothing to evaluate but arithmetic of sizes."""
    for call in graph["graph_module"]["module_call_graph"]:
        signature = call.get("signature") or {}
        for key, tree in TREES.items():
            if key in signature and json.loads(signature.pop(key)) != json.loads(tree):
                yield "it is not a network of one tensor"
    if graph.get("guards_code"):
        yield "it has guards, which would be evaluated"
    yield from _odd_strings(graph)


def _odd_strings(data: Any, key: str = "") -> Iterator[str]:
    """Say which string, key or value, is not what strings in its place may be."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _odd_strings(name)
            yield from _odd_strings(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _odd_strings(value, key)
    elif isinstance(data, str):
        rule = {"target": TARGET, "as_operator": TARGET, "expr_str": SIZE}.get(key, NAME)
        if not rule.fullmatch(data):
            yield f"{key or 'name'} {data[:80]!r} is not one that mixnas writes"
