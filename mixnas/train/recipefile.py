"""A recipe of one's own: a TOML file that says in what it differs from a known course."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mixnas.data.augment import Augmentation
from mixnas.errors import InvalidOption, MixnasError, did_you_mean
from mixnas.train.recipe import AloneRecipe
from mixnas.train.recipes import COURSES, Course, course

OWN = ("base", "epochs", "batch")
DERIVED = ("steps",)
"""What follows from epochs, batch and data."""


KINDS: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"),
    (str, "a text"),
    ((int, float), "a number"),
)
"""What a field may be, by its default."""


def find(text: str) -> Course:
    """Return a course by its name, or read one from a TOML file.

    The file names its ``base`` (one of the courses) and whatever differs: ``epochs``, ``batch``,
    any field of `AloneRecipe`, and a table ``augmentation`` of fields of `Augmentation`.

    Raises:
        InvalidOption: if there is no such course or file, or the file cannot be read; the field
            is named.
    """
    path = Path(text)
    if path.suffix != ".toml":
        return course(text)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidOption(
            f"recipe {text}: cannot be read ({error}); give a TOML file, or one of "
            f"{', '.join(COURSES)}"
        ) from None
    return _read(content, path)


def _read(content: Mapping[str, Any], path: Path) -> Course:
    base = content.get("base", "quick")
    if base not in COURSES:
        raise InvalidOption(f"recipe {path}: no base {base!r}; {did_you_mean(str(base), COURSES)}")
    known = [field.name for field in fields(AloneRecipe) if field.name not in (*OWN, *DERIVED)]
    for name in content:
        if name not in (*known, *OWN):
            hint = did_you_mean(name, (*known, *OWN))
            raise InvalidOption(f"recipe {path}: no field '{name}'; {hint}")
        _check_type(name, content[name], path)
    start = COURSES[base]
    values = {name: content[name] for name in known if name in content}
    if "augmentation" in values:
        values["augmentation"] = _augmentation(values["augmentation"], path)
    try:
        return replace(
            start,
            name=path.stem,
            summary=f"{base}, changed by {path.name}",
            epochs=_whole(content, "epochs", start.epochs),
            batch=_whole(content, "batch", start.batch),
            values=replace(start.values, **values),
        )
    except (TypeError, ValueError, MixnasError) as error:
        raise InvalidOption(f"recipe {path}: {error}") from None


def _check_type(name: str, value: Any, path: Path) -> None:
    """Refuse a text where a number belongs, and the other way round."""
    if name in ("augmentation", "betas", *OWN):
        return
    default = getattr(COURSES["quick"].values, name)
    kind, words = next(
        (k, w) for k, w in KINDS if isinstance(0.0 if default is None else default, k)
    )
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise InvalidOption(f"recipe {path}: {name} {value!r}: {words} is needed")


def _augmentation(values: Any, path: Path) -> dict[str, Any]:
    known = [field.name for field in fields(Augmentation)]
    if not isinstance(values, Mapping):
        raise InvalidOption(f"recipe {path}: augmentation {values!r}: a table is needed")
    for name in values:
        if name not in known:
            raise InvalidOption(
                f"recipe {path}, augmentation: no field '{name}'; {did_you_mean(name, known)}"
            )
    try:
        Augmentation.from_dict(values)
    except (TypeError, ValueError, LookupError, AttributeError, MixnasError) as error:
        raise InvalidOption(f"recipe {path}, augmentation: {error}") from None
    return dict(values)


def _whole(content: Mapping[str, Any], name: str, default: int) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOption(f"{name} {value!r}: a whole number of at least 1 is needed")
    return value
