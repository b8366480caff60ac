"""The Hugging Face form: a folder in the layout that timm reads from the Hub.

After the import of its one Python file, which makes timm know the model,
`timm.create_model("local-dir:<folder>", pretrained=True)` loads it, and ``hf-hub:<name>`` once it
is uploaded.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from mixnas import storage
from mixnas.errors import InvalidCheckpoint
from mixnas.exports.forms import Exported
from mixnas.exports.timm_model import created, packed, pretrained_cfg, source
from mixnas.model import Model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"

UNKNOWN = "not known"

PLAIN = re.compile(r"[\w/.+,~ -]+")
"""Folders that timm reads as they are; in others (``#``, ``?``) older releases see a fragment."""

LOCAL = (1, 0, 26)
"""The first release of timm that reads safetensors from a local folder of this layout."""

MARKED = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")
"""What Markdown and HTML would take for more than a letter."""

SHOWN = 30
"""So many class names are listed in the card; all of them stand in ``config.json``."""


class HuggingFace:
    """``config.json``, ``model.safetensors``, a model card, and the file for timm; run by timm."""

    name = "hf"
    place = "hf"

    def write(self, path: Path, network: nn.Module, model: Model, facts: Mapping[str, Any]) -> None:
        """Write the four files."""
        storage.write(path / WEIGHTS, packed(network, model))
        storage.write(path / f"{model.name}.py", source(model).encode())
        storage.write(path / CARD, card(model, network, facts).encode())
        storage.write(path / CONFIG, json.dumps(config(model, network), indent=2).encode())

    def holds(self, path: Path) -> bool:
        """Say whether both the settings and the weights are in the folder."""
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()

    def load(self, path: Path) -> Exported:
        """Let timm load the folder as it loads the Hub's; its Python file is not run.

        Raises:
            InvalidCheckpoint: if a file is broken, or they do not belong together.
        """
        where = path / CONFIG
        try:
            found = json.loads(where.read_text(encoding="utf-8"))
            model = Model.from_dict(found["mixnas"], str(where))
            name = found["architecture"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InvalidCheckpoint(
                f"{where}: not written by mixnas ({type(error).__name__}: {error}); give a folder "
                "that mixnas export wrote"
            ) from None
        if name != model.name:
            raise InvalidCheckpoint(
                f"{where}: says architecture {str(name)!r} but describes {model.name}; give a "
                "folder that mixnas export wrote"
            )
        asked, settings = _asked(path, model)
        network = created(model, path / WEIGHTS, asked, **settings)
        return Exported(model, network)


def _asked(path: Path, model: Model) -> tuple[str, dict[str, Any]]:
    """Return what to ask timm for: the folder, or where timm would misread it, the weights."""
    folder = str(path.resolve())
    release = tuple(int(number) for number in re.findall(r"\d+", timm.__version__)[:3])
    if release >= LOCAL and PLAIN.fullmatch(folder):
        return f"local-dir:{folder}", {"pretrained": True}
    return model.name, {"checkpoint_path": str(path / WEIGHTS)}


def config(model: Model, network: nn.Module) -> dict[str, Any]:
    """Return what timm and the Hub read, and the description under ``mixnas``."""
    cfg = pretrained_cfg(model, network)
    labels = list(cfg.pop("label_names"))
    return {
        "architecture": model.name,
        "num_classes": len(labels),
        "num_features": network.num_features,
        "label_names": labels,
        "pretrained_cfg": cfg,
        "mixnas": model.to_dict(),
    }


def card(model: Model, network: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return the model card: what it is, its figures, how to use it, and what is not known.

    Whatever a user named (classes, data, runs) is escaped.
    """
    rows = _figures(model, network, facts)
    labels = [marked(label) for label in model.labels[:SHOWN]]
    if len(model.labels) > SHOWN:
        labels.append(f"... ({len(model.labels)} in all, in `{CONFIG}`)")
    return "\n".join(
        [
            "---",
            *_front(model, facts),
            "---",
            "",
            f"# {model.name}",
            "",
            f"An image classifier of {len(model.labels)} classes, {_origin(model, facts)}. Written "
            "by `mixnas export`.",
            "",
            "## Figures",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "## Use",
            "",
            *_usage(model),
            "",
            "## Input",
            "",
            _input(model),
            "",
            "## Classes",
            "",
            ", ".join(labels),
            "",
            "## What is not known",
            "",
            *_open(rows),
            "",
        ]
    )


def plain(text: object) -> str:
    """Return a text on one line, of printable characters."""
    words = " ".join(str(text).split())
    return "".join(letter for letter in words if letter.isprintable())


def marked(text: object) -> str:
    """Return a text on one line that Markdown shows as it is."""
    return MARKED.sub(r"\\\1", plain(text))


def _origin(model: Model, facts: Mapping[str, Any]) -> str:
    if "zoo" in model.source:
        return f"the published network {marked(model.source['zoo'])}"
    found = f" (run {marked(facts['of'])})" if facts.get("of") else ""
    return f"whose architecture mixnas composed of token mixers{found}"


def _front(model: Model, facts: Mapping[str, Any]) -> list[str]:
    """Return the card's metadata, as YAML: a JSON string is one of YAML's too."""
    lines = [
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("image-classification", "timm", "mixnas")),
    ]
    top1, data = _number(facts.get("top1")), facts.get("data")
    if top1 is None or data is None:
        return lines
    name = json.dumps(plain(data), ensure_ascii=False)
    return [
        *lines,
        "model-index:",
        f"- name: {model.name}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      name: {name}",
        f"      type: {name}",
        "    metrics:",
        "    - type: accuracy",
        f"      value: {round(100 * top1, 4)}",
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _percent(value: object, spread: object = None) -> str:
    """Say a share of 1, and its standard error if it is known."""
    number, error = _number(value), _number(spread)
    if number is None:
        return UNKNOWN
    return f"{100 * number:.2f} %" + (
        "" if error is None else f" (standard error {100 * error:.2f})"
    )


def _figures(model: Model, network: nn.Module, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the card's table: what is not among the facts is said to be not known."""
    flops, side = _number(facts.get("flops")), facts.get("flops_image", model.image)
    cost = UNKNOWN
    if flops is not None:
        cost = f"{flops / 1e9:.4g} G multiply-adds at {marked(side)} x {marked(side)} pixels"
    params = sum(parameter.numel() for parameter in network.parameters())

    def said(key: str) -> str:
        return UNKNOWN if facts.get(key) is None else marked(facts[key])

    return [
        (
            "Top-1 accuracy on the test images",
            _percent(facts.get("top1"), facts.get("standard_error")),
        ),
        ("Top-5 accuracy on the test images", _percent(facts.get("top5"))),
        ("Test images", said("images")),
        ("Expected calibration error", _percent(facts.get("calibration_error"))),
        ("Parameters in this file", f"{params / 1e6:.4g} M"),
        ("Cost of one image", cost),
        ("Trained on", said("data")),
        ("Recipe", said("recipe")),
        ("Epochs", said("epochs")),
        ("Initial weights", said("init") if "weights" not in facts else marked(facts["weights"])),
        (
            "Teacher",
            said("teacher") if "recipe" not in facts else marked(facts.get("teacher") or "none"),
        ),
        ("Run", said("run")),
        ("Batch norms", "folded into the layers before them" if model.fused else "not folded"),
    ]


def _usage(model: Model) -> list[str]:
    name = model.name
    return [
        f"It needs the packages mixnas and timm. With this folder at `hf`, `import {name}` makes "
        "timm know the network:",
        "",
        "```python",
        "import sys",
        "import timm",
        "",
        'sys.path.insert(0, "hf")',
        f"import {name}",
        "",
        f'model = timm.create_model("{name}", pretrained=True).eval()',
        f'backbone = timm.create_model("{name}", pretrained=True, features_only=True)',
        "```",
        "",
        "timm 1.0.26 and newer also finds it as `local-dir:hf`, uploaded as `hf-hub:NAME`.",
        "Or, with the training's own preprocessing: `mixnas predict hf IMAGE`.",
    ]


def _input(model: Model) -> str:
    given = model.preprocessing
    side = f"{given.image} x {given.image}"
    shape = f"squeezed to {side} pixels"
    if given.crop is not None:
        shape = f"cropped to the central {100 * given.crop:g} % and resized to {side} pixels"
    grey = "made grey, " if given.grey else ""
    mean, deviation = (
        ", ".join(f"{value:.6g}" for value in values) for values in (given.mean, given.deviation)
    )
    return (
        f"Pictures are {grey}{shape} (bicubic), divided by 255, and normalised by the mean {mean} "
        f"and the standard deviation {deviation}; the network takes three channels."
    )


def _open(rows: list[tuple[str, str]]) -> list[str]:
    """List what nobody measured or stated."""
    missing = [name for name, value in rows if value == UNKNOWN]
    return [
        *(f"- {name}." for name in missing),
        "- Accuracy on other pictures than the test images, and how it differs between groups.",
        "- A licence of these weights, and the terms of the data that they were trained on.",
    ]


HF = HuggingFace()
"""The form that timm loads from a folder or from the Hub."""
