"""`mixnas mixers`: the token mixers that are registered."""

from typing import Any

from mixnas import mixers as registry


def mixers() -> list[dict[str, Any]]:
    """Describe each registered mixer, those of other packages included.

    Returns:
        For each: name, summary (system, idea, cost order), knobs (name to choices), norm, the
        names it is also known under, and the module that it comes from.
    """
    return [_describe(name) for name in registry.names()]


def _describe(name: str) -> dict[str, Any]:
    mixer = registry.get(name)
    return {
        "name": name,
        "summary": mixer.summary,
        "knobs": {knob: list(choices) for knob, choices in mixer.knobs.items()},
        "norm": mixer.norm,
        "aliases": sorted(alias for alias, known in registry.ALIASES.items() if known == name),
        "module": mixer.__module__,
    }
