"""What `torch.export.load` would run of a stranger's .pt2, and that none of it is run."""

import io
import json
import os
import pickle
import random
import zipfile

import pytest
import torch

from mixnas import exports
from mixnas.data import Preprocessing
from mixnas.errors import InvalidCheckpoint
from mixnas.exports import archive
from mixnas.exports.program import PT2
from mixnas.folding import fuse
from mixnas.model import Model

pytestmark = pytest.mark.timeout(240)  # one export takes seconds, on a busy machine many

LABELS = tuple("abcdefg")


@pytest.fixture(scope="module")
def made(micro, tmp_path_factory):
    """A network as .pt2, with its description."""
    folder = tmp_path_factory.mktemp("export")
    source = {"arch": micro.sample(random.Random(0)).to_dict()}
    model = Model(source, LABELS, Preprocessing(33, (0.5,), (0.25,)), fused=True)
    network = Model(source, LABELS, model.preprocessing).build()
    PT2.write(folder / "model.pt2", fuse(network), model, {"flops": 12_345})
    return folder, model


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rewritten(source, target, change):
    """Copy an archive, every entry through `change(name, data)`, which may return None or more."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].partition("/")[0]
        entries = {name: change(name.partition("/")[2], old.read(name)) for name in old.namelist()}
    for name, data in change("", b"") or []:
        entries[name if name == "version" else f"{root}/{name}"] = data
    with zipfile.ZipFile(target, "w") as new:
        for name, data in entries.items():
            new.writestr(name, data)


def pickled(bomb):
    buffer = io.BytesIO()
    torch.save({"w": bomb}, buffer)
    return buffer.getvalue()


def graph_with(edit):
    """Return a change that edits the graph's JSON."""

    def change(name, data):
        if name != archive.GRAPH:
            return data
        graph = json.loads(data)
        edit(graph)
        return json.dumps(graph).encode()

    return change


def in_place(graph, key, value, replaced=None):
    """Set the first value under a key that is such a string, anywhere in the graph."""
    items = graph.items() if isinstance(graph, dict) else enumerate(graph)
    for name, child in items:
        if name == key and isinstance(child, str) and (replaced is None or replaced in child):
            graph[name] = value
            return True
        if isinstance(child, dict | list) and in_place(child, key, value, replaced):
            return True
    return False


def attacks(flag):
    """Every way that the loader would run something, each as a change of the archive."""
    code = f"__import__('pathlib').Path({str(flag)!r}).touch()"
    letters = "+".join(f"chr({ord(letter)})" for letter in code)

    def entry(name, data):
        return lambda given, old: [(name, data)] if given == "" else old

    def payload(key, value):
        def change(name, data):
            if not name.endswith("weights_config.json"):
                return data
            config = json.loads(data)
            next(iter(config["config"].values()))[key] = value
            return json.dumps(config).encode()

        return change

    def samples(name, data):
        return pickled(Bomb(flag)) if name.endswith("sample_inputs/model.pt") else data

    def legacy(name, data):
        return pickle.dumps(Bomb(flag)) if name.endswith("sample_inputs/model.pt") else data

    tree = json.dumps(
        [1, {"type": "collections.defaultdict", "context": code, "children_spec": []}]
    )
    return {
        "sample inputs": samples,
        "sample inputs, raw pickle": legacy,
        "pickled weights": entry("data/weights/model.pt", pickled(Bomb(flag))),
        "pickled constants": entry("data/constants/model.pt", pickled(Bomb(flag))),
        "opaque object": entry("data/constants/opaque_obj_0", pickle.dumps(Bomb(flag))),
        "library": entry("data/aotinductor/model/wrapper.so", b"\x7fELF"),
        "older format": entry("version", b"8.8"),
        "marked pickle": payload("use_pickle", True),
        "path": payload("path_name", "../../../etc/passwd"),
        "expression": graph_with(lambda g: in_place(g, "expr_str", code)),
        "expression of letters": graph_with(lambda g: in_place(g, "expr_str", f"eval({letters})")),
        "tower": graph_with(lambda g: in_place(g, "expr_str", "9**9**9")),
        "guard": graph_with(lambda g: g.update(guards_code=[code])),
        "target": graph_with(lambda g: in_place(g, "target", "torch.hub.load")),
        "target of files": graph_with(
            lambda g: in_place(g, "target", "torch.ops.aten.from_file.default")
        ),
        "operator": graph_with(lambda g: in_place(g, "target", "_operator.methodcaller")),
        "name": graph_with(lambda g: in_place(g, "name", f"x):\n {code}\n#")),
        "tree": graph_with(lambda g: in_place(g, "in_spec", tree)),
    }


@pytest.mark.parametrize("attack", sorted(attacks("flag")))
def test_no_archive_runs_code(made, tmp_path, attack):
    folder, _ = made
    flag = tmp_path / "flag"
    change, changed = attacks(flag)[attack], []

    def noted(name, data):
        new = change(name, data)
        changed.append(new is not data and new != data)
        return new

    rewritten(folder / "model.pt2", tmp_path / "model.pt2", noted)
    if attack in ("marked pickle", "path") and not any(changed):
        pytest.skip("this torch keeps weights in one pickle")
    assert any(changed)
    with pytest.raises(InvalidCheckpoint) as caught:
        exports.open_model(tmp_path / "model.pt2")
    assert not flag.exists()
    assert "\n" not in str(caught.value)


def test_the_attack_is_one(tmp_path):
    """Loaded without care, such an archive does create the folder."""
    flag = tmp_path / "flag"
    torch.load(io.BytesIO(pickled(Bomb(flag))), weights_only=False)
    assert flag.exists()


def test_an_archive_that_unpacks_to_more_is_refused(made, tmp_path):
    folder, _ = made
    with zipfile.ZipFile(folder / "model.pt2") as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, bytes(10_000_000) if name.endswith("facts.json") else data)
    with pytest.raises(InvalidCheckpoint, match=r"entr(y|ies)|one name"):
        exports.open_model(tmp_path / "model.pt2")


def test_an_unchanged_copy_passes(made, tmp_path):
    """What the attacks have in common is not what is refused."""
    folder, model = made
    rewritten(folder / "model.pt2", tmp_path / "model.pt2", lambda name, data: data)
    assert exports.open_model(tmp_path / "model.pt2").model == model


def test_a_description_of_another_network_is_refused(made, tmp_path):
    folder, model = made
    other = Model(model.source, LABELS[:-1], model.preprocessing, fused=True)

    def change(name, data):
        return json.dumps(other.to_dict()).encode() if name.endswith("mixnas.json") else data

    rewritten(folder / "model.pt2", tmp_path / "model.pt2", change)
    with pytest.raises(InvalidCheckpoint, match="6 classes"):
        exports.open_model(tmp_path / "model.pt2")
