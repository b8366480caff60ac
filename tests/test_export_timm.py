"""The forms of timm and of the Hugging Face Hub: made, loaded by timm, and hostile files."""

import importlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from timm.layers import DropPath
from torch import Tensor, nn

from mixnas.data.preprocessing import Preprocessing
from mixnas.errors import InvalidCheckpoint, InvalidOption
from mixnas.exports.hub import HF, LOCAL
from mixnas.exports.timm_model import TIMM, described
from mixnas.folding import fuse
from mixnas.model import Model
from mixnas.testing import randomise

LABELS = ("plain", "\"quoted\" 'twice'", "<b>|`*_[x](y)", "two\nlines\\", "ü€😀", 'x"""\u2028')
"""Class names that would break out of a string, a table or a page."""

SOURCES = {
    "affnet": {
        "zoo": "affnet_et",
        "widths": [16, 16, 16, 24, 32],
        "depths": [1, 2],
        "blocks": [1, 2, 1],
        "groups": 8,
    },
    "litv2": {"zoo": "litv2_s", "dim": 32, "heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1]},
    "shvit": {"zoo": "shvit_s1", "dims": [16, 24, 32], "depths": [1, 1, 2], "partials": [4, 6, 8]},
    "fvit": {"zoo": "fvit_b16", "dim": 48, "depth": 3, "heads": 4},
    "ufo_vit": {"zoo": "ufo_vit_t", "dim": 48, "depth": 3, "embed": 24, "heads": 2},
}

RELEASE = tuple(map(int, timm.__version__.split(".")[:3]))

FACTS = {
    "top1": 0.9712,
    "standard_error": 0.0088,
    "top5": None,
    "data": "my <data> | set",
    "recipe": "quick",
    "run": "a_run",
    "flops": 1.25e9,
    "flops_image": 64,
}


def classifier(source: dict[str, object], folded: bool = True) -> tuple[Model, nn.Module]:
    torch.manual_seed(0)
    given = Preprocessing(64, (0.5,), (0.25,), grey=True)
    model = Model(source, LABELS, given)
    network = model.build()
    randomise(network)
    return (model.folded(), fuse(network)) if folded else (model, network)


def searched(space, seed: int, folded: bool = True) -> tuple[Model, nn.Module]:
    rng = random.Random(seed)
    arch = next(arch for arch in iter(lambda: space.sample(rng), None) if len(arch.stages) > 1)
    return classifier({"arch": arch.to_dict()}, folded)


def images(channels: int = 3, side: int = 64) -> Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def imported(tmp_path, monkeypatch, micro) -> Iterator[tuple[str, Path, nn.Module]]:
    """Import an exported model as a user does; give its name, its weights and its source."""
    model, network = searched(micro, 9)
    TIMM.write(tmp_path / "timm", network, model, FACTS)
    monkeypatch.syspath_prepend(tmp_path / "timm")
    sys.modules.pop(model.name, None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Overwriting", UserWarning)  # by the test before this one
        importlib.import_module(model.name)
    yield model.name, tmp_path / "timm" / f"{model.name}.safetensors", network
    sys.modules.pop(model.name, None)


# Writing and loading


@pytest.mark.parametrize("form", [TIMM, HF], ids=lambda form: form.name)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("source", [*SOURCES, "searched"])
def test_what_was_written_comes_back(tmp_path, micro, form, folded, source):
    found = searched(micro, 0, folded) if source == "searched" else None
    model, network = found or classifier(SOURCES[source], folded)
    place = tmp_path / form.place
    form.write(place, network, model, FACTS)
    assert [other.name for other in (TIMM, HF) if other.holds(place)] == [form.name]
    exported = form.load(place)
    assert exported.model == model
    assert not exported.network.training
    with torch.no_grad():
        assert torch.equal(exported.network(images()), network(images()))


def test_a_folder_of_a_strange_name_loads(tmp_path, micro):
    model, network = searched(micro, 1)
    place = tmp_path / "a#b?c d%20" / "hf"
    HF.write(place, network, model, {})
    with torch.no_grad():
        assert torch.equal(HF.load(place).network(images()), network(images()))


def test_a_model_is_loaded_without_running_its_file(tmp_path, micro):
    model, network = searched(micro, 2)
    for form in (TIMM, HF):
        place = tmp_path / form.place
        form.write(place, network, model, {})
        (place / f"{model.name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
        form.load(place)
    assert not (tmp_path / "run").exists()


def test_loading_draws_nothing_from_the_callers_random_numbers(tmp_path, micro):
    model, network = searched(micro, 3)
    TIMM.write(tmp_path / "timm", network, model, {})
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    TIMM.load(tmp_path / "timm")
    assert torch.equal(torch.rand(1), wanted)


# timm


def test_timm_creates_it_with_its_weights(imported):
    name, weights, network = imported
    for settings in ({"checkpoint_path": str(weights)}, {"pretrained": True}):
        found = timm.create_model(name, **settings).eval()
        with torch.no_grad():
            assert torch.equal(found(images()), network(images()))


def test_timm_gives_it_another_head(imported):
    name, weights, network = imported
    for settings in ({"checkpoint_path": str(weights)}, {"pretrained": True}):
        found = timm.create_model(name, num_classes=7, **settings).eval()
        bare = timm.create_model(name, num_classes=0, **settings).eval()
        with torch.no_grad():
            assert found(images()).shape == (3, 7)
            wanted = network.forward_head(network.forward_features(images()), pre_logits=True)
            assert torch.equal(bare(images()), wanted)
            assert torch.equal(found.forward_features(images()), network.forward_features(images()))


def test_timm_gives_it_other_channels(imported):
    name, weights, network = imported
    grey = images(1)
    with torch.no_grad():
        wanted = network(grey.expand(-1, 3, -1, -1))
        for settings in ({"checkpoint_path": str(weights)}, {"pretrained": True}):
            found = timm.create_model(name, in_chans=1, **settings).eval()
            torch.testing.assert_close(
                found(grey), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max()
            )


def test_timm_makes_a_backbone_of_it(imported):
    name, weights, network = imported
    info = network.feature_info
    with torch.no_grad():
        wanted = network.forward_intermediates(images(), intermediates_only=True)
        for settings in ({"checkpoint_path": str(weights)}, {"pretrained": True}):
            for indices in ({}, {"out_indices": (1,)}, {"out_indices": (0, -1)}):
                found = timm.create_model(name, features_only=True, **indices, **settings).eval()
                taken = [i % len(info) for i in indices.get("out_indices", range(len(info)))]
                assert found.feature_info.channels() == [info[i]["num_chs"] for i in taken]
                assert found.feature_info.reduction() == [info[i]["reduction"] for i in taken]
                for index, each in zip(taken, found(images()), strict=True):
                    assert torch.equal(each, wanted[index])


@pytest.mark.parametrize(("source", "count"), [("shvit", 3), ("affnet", 5), ("fvit", 3)])
def test_a_backbone_has_every_stage_or_the_last_three_blocks(tmp_path, source, count):
    model, network = classifier({**SOURCES[source], **({"depth": 6} if source == "fvit" else {})})
    TIMM.write(tmp_path, network, model, {})
    TIMM.load(tmp_path)  # timm knows it now
    found = timm.create_model(model.name, features_only=True).eval()
    assert len(found(images())) == count


def test_a_backbone_keeps_weights_of_its_own_names(imported):
    """What was fine-tuned as a backbone loads into a backbone."""
    name, weights, _ = imported
    first = timm.create_model(name, features_only=True, checkpoint_path=str(weights))
    second = timm.create_model(name, features_only=True)
    second.load_state_dict(first.state_dict())
    for key, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[key])


def test_timm_sets_its_drop_path_and_refuses_what_it_has_not(imported):
    name, _, _ = imported
    network = timm.create_model(name, drop_path_rate=0.2, drop_rate=0.0)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates, default=0.2) == pytest.approx(0.2)
    assert network.training
    with pytest.raises(InvalidOption, match="no setting 'img_size'"):
        timm.create_model(name, img_size=96)


def test_timm_knows_what_its_images_are_like(imported):
    name, _, _ = imported
    found = timm.create_model(name)
    cfg = found.pretrained_cfg
    assert found.get_submodule(cfg["classifier"]) is found.get_classifier()
    assert cfg["label_names"] == LABELS
    assert found.get_submodule(cfg["first_conv"]).weight.shape[1] == 3
    data = resolve_data_config(cfg, model=found)
    assert (data["mean"], data["std"]) == ((0.5,) * 3, (0.25,) * 3)
    assert (data["input_size"], data["interpolation"]) == ((3, 64, 64), "bicubic")
    assert (data["crop_pct"], data["crop_mode"]) == (1.0, "squash")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", [TIMM, HF], ids=lambda form: form.name)
def test_a_user_imports_it_in_a_new_process(tmp_path, micro, form):
    model, network = searched(micro, 4)
    form.write(tmp_path / "it", network, model, FACTS)
    code = f"""
import sys
sys.path.insert(0, "it")
import timm, torch
import {model.name}
x = torch.load("x.pt", weights_only=True)
names = ["{model.name}"]
if {form.name == "hf" and RELEASE >= LOCAL}:
    names.append("local-dir:it")
with torch.no_grad():
    for name in names:
        logits = timm.create_model(name, pretrained=True).eval()(x)
        assert torch.equal(logits, torch.load("y.pt", weights_only=True)), name
        maps = timm.create_model(name, pretrained=True, features_only=True).eval()(x)
        print([list(each.shape) for each in maps])
"""
    torch.save(images(), tmp_path / "x.pt")
    with torch.no_grad():
        torch.save(network(images()), tmp_path / "y.pt")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shapes = [[3, i["num_chs"], *[-(-64 // i["reduction"])] * 2] for i in network.feature_info]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [shapes] * (
        done.stdout.count("\n")
    )


# The Hub's layout


def test_the_hubs_settings_are_what_timm_reads(tmp_path, micro):
    model, network = searched(micro, 5)
    HF.write(tmp_path / "hf", network, model, FACTS)
    found = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert found["architecture"] == model.name
    assert found["num_features"] == network.num_features
    assert tuple(found["label_names"]) == LABELS
    assert Model.from_dict(found["mixnas"]) == model
    fields = timm.models.PretrainedCfg.__dataclass_fields__
    assert set(found["pretrained_cfg"]) <= set(fields)
    assert described(tmp_path / "hf" / "model.safetensors") == model


def test_the_card_tells_the_figures_and_escapes_what_users_named(tmp_path, micro):
    model, network = searched(micro, 6)
    HF.write(tmp_path / "hf", network, model, FACTS)
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (97.12, "my <data> | set")
    assert card.data.library_name == "timm"
    assert "97.12 % (standard error 0.88)" in card.text
    assert "1.25 G multiply-adds at 64 x 64 pixels" in card.text
    assert "my \\<data\\> \\| set" in card.text
    assert "<b>" not in card.text.replace("\\<b\\>", "")
    assert "- Top-5 accuracy on the test images." in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def test_a_card_without_facts_says_what_is_not_known(tmp_path, micro):
    model, network = searched(micro, 7)
    HF.write(tmp_path / "hf", network, model, {})
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert not card.data.eval_results
    assert "| Top-1 accuracy on the test images | not known |" in card.text
    assert "- Trained on." in card.text


# Broken and hostile files


@pytest.fixture
def folders(tmp_path, micro) -> dict[str, Path]:
    model, network = searched(micro, 8)
    for form in (TIMM, HF):
        form.write(tmp_path / form.place, network, model, {})
    return {
        "timm": tmp_path / "timm" / f"{model.name}.safetensors",
        "hf": tmp_path / "hf" / "model.safetensors",
        "config": tmp_path / "hf" / "config.json",
    }


def refused(form, weights: Path, match: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=match) as caught:
        form.load(weights.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [TIMM, HF], ids=lambda form: form.name)
@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_weights_are_refused(folders, form, kept):
    weights = folders[form.name]
    weights.write_bytes(weights.read_bytes()[:kept])
    refused(form, weights, "cannot be read")


@pytest.mark.parametrize("form", [TIMM, HF], ids=lambda form: form.name)
def test_weights_of_another_network_are_refused(folders, form):
    weights = folders[form.name]
    model = described(weights)
    state = load_file(weights)
    state["head.bias"] = torch.zeros(1, 9)
    save_file(state, weights, metadata={"mixnas": json.dumps(model.to_dict())})
    refused(form, weights, r"'head.bias' is \[1, 9\]")
    del state["head.bias"]
    save_file(state, weights, metadata={"mixnas": json.dumps(model.to_dict())})
    refused(form, weights, "'head.bias' is missing")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({}, "without mixnas's description"),
        ({"mixnas": "no JSON"}, "no JSON"),
        ({"mixnas": "{}"}, "not a model of mixnas"),
        ({"mixnas": "[" * 100_000}, "no JSON"),
    ],
)
def test_weights_without_a_description_are_refused(folders, metadata, match):
    weights = folders["timm"]
    save_file(load_file(weights), weights, metadata=metadata)
    refused(TIMM, weights, match)


def test_a_description_that_makes_no_network_is_refused(folders):
    weights = folders["timm"]
    for change in (
        {"stages": []},
        {"stem": {"kind": "unheard"}},
        {"stages": [{"width": -8, "blocks": []}]},
        {"stages": [{"width": 8, "blocks": [{"mixer": "none", "knobs": {}, "ratio": 2}]}]},
    ):
        data = described(weights).to_dict()
        data["source"] = {"arch": {**data["source"]["arch"], **change}}
        other = weights.with_name(f"{Model.from_dict(data).name}.safetensors")
        other.with_suffix(".py").touch()
        save_file(load_file(weights), other, metadata={"mixnas": json.dumps(data)})
        weights.with_suffix(".py").unlink(missing_ok=True)
        refused(TIMM, other, "makes no network|not weights|not a model")
        other.unlink()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "resnet18"}, "says architecture 'resnet18'"),
        ({"mixnas": None}, "not a model of mixnas|not written by mixnas"),
        ({"model_args": {"num_classes": 3}}, "timm cannot load it|other weights"),
        ({"pretrained_cfg": {"unheard": 1}}, "timm cannot load it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders, change, match):
    if RELEASE < LOCAL and change.keys() <= {"model_args", "pretrained_cfg"}:
        pytest.skip("this timm does not read the settings")
    data = json.loads(folders["config"].read_text())
    folders["config"].write_text(json.dumps({**data, **change}))
    refused(HF, folders["config"], match)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\xff"])
def test_broken_settings_are_refused(folders, text):
    folders["config"].write_bytes(text.encode("latin-1"))
    refused(HF, folders["config"], "not written by mixnas")


def test_two_models_in_one_folder_are_refused(folders):
    weights = folders["timm"]
    for suffix in (".py", ".safetensors"):
        (weights.parent / f"mixnas_other{suffix}").write_bytes(b"")
    refused(TIMM, weights, "2 models")
