"""Token mixers: a registry and one file for each.

A mixer maps a ``(B, C, H, W)`` map to one of the same shape, at any C up to its `dim` and any
H and W. It is written once with elastic layers and serves the supernet, the stand-alone network
and the zoo alike. To add one, write a file here (or a package with an entry point in the group
``mixnas.mixers``)::

    @register("shift")
    class Shift(Mixer):
        knobs = {"step": (1, 2)}

        def __init__(self, dim, *, step=(1,)):
            super().__init__(dim, step=step)
            self.out = elastic.Linear(dim, dim)

        def forward(self, x, *, step=None):
            step = self.pick("step", step)
            ...

No cost formula, no supernet code and no test of its own is needed: operators are counted, the
elastic layers are sliced, and `mixnas.testing.MixerContract` runs over `names()`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from inspect import signature
from itertools import product
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.errors import InvalidSpace, UnknownMixer, did_you_mean

Choices = Knob | tuple[Knob, ...]

ALIASES = {
    "fastformer": "additive",
    "fvit": "additive",
    "ufo": "xnorm",
    "ufo_vit": "xnorm",
    "litv2": "hilo",
    "affnet": "aff",
    "shvit": "single_head",
    "shsa": "single_head",
    "mhsa": "attention",
    "none": "identity",
}
"""Names under which the published systems are known."""


class Mixer(nn.Module):
    """A token mixer at any width up to `dim`, holding the union of what its choices need.

    A subclass sets:

    * `knobs`: what it offers, name to choices in increasing order; the first is the default.
    * `norm`: the norm that its system puts before it: ``"layer"``, ``"group"`` or ``"none"``.
    * `gain`: the initial value of the block's layer scale behind it.
    * `summary`: one line for ``mixnas mixers``: system, idea, cost order.
    * `skipped`: true of a control whose whole branch a block leaves out.
    * `shift_invariant`: biases whose gradient in training is zero by right, since what follows
      (a softmax over scores, a batch norm) undoes a constant shift: a parameter's name, with an
      index or a range along its first axis where only a part is (``"fused.bias[1]"``).
    """

    knobs: ClassVar[Mapping[str, tuple[Knob, ...]]] = {}
    norm: ClassVar[str] = "layer"
    gain: ClassVar[float] = 1.0
    summary: ClassVar[str] = ""
    skipped: ClassVar[bool] = False
    shift_invariant: ClassVar[tuple[str, ...]] = ()

    forward: Callable[..., Tensor]

    def __init__(self, dim: int, **choices: Choices) -> None:
        super().__init__()
        self.dim = dim
        self.choices: dict[str, tuple[Any, ...]] = {
            name: value if isinstance(value, tuple) else (value,) for name, value in choices.items()
        }

    def pick(self, name: str, value: Knob | None) -> Any:
        """Return the knob's value: the one given, or the only choice there is."""
        options = self.choices[name]
        if value is None and len(options) == 1:
            return options[0]
        if value not in options:
            raise ValueError(f"{type(self).__name__}: {name}={value!r} is not one of {options}")
        return value

    @classmethod
    def head_span(cls, dim: int, **knobs: Any) -> int:
        """Return the channels that all heads share at this width, when a mixer has heads."""
        return dim

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Say why these knobs cannot work at this width, or return None.

        Options that are no knobs come along where they were given.
        """
        return None


MixerType = TypeVar("MixerType", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[MixerType], MixerType]:
    """Register a mixer under a name, which is its name in search spaces and in JSON."""

    def decorate(mixer: MixerType) -> MixerType:
        known = _REGISTRY.setdefault(name, mixer)
        if (known.__module__, known.__qualname__) != (mixer.__module__, mixer.__qualname__):
            raise ValueError(f"two mixers are named {name!r}: {known} and {mixer}")
        _REGISTRY[name] = mixer
        return mixer

    return decorate


@cache
def _load() -> None:
    """Import every mixer of this package and of the entry points, once."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for point in entry_points(group="mixnas.mixers"):
        point.load()


def names() -> list[str]:
    """Return the registered names, sorted."""
    _load()
    return sorted(_REGISTRY)


def get(name: str) -> type[Mixer]:
    """Return the class of a mixer.

    Raises:
        UnknownMixer: if there is none; the message names the nearest and the known ones.
    """
    _load()
    if name not in _REGISTRY:
        raise UnknownMixer(f"no mixer '{name}'; {_nearest(name)}")
    return _REGISTRY[name]


def _nearest(name: str) -> str:
    """Say which mixer was meant: by its own name, or by its system's."""
    spelt = name.lower().replace("-", "_")
    alias = get_close_matches(spelt, ALIASES, n=1, cutoff=0.75)
    if alias and not get_close_matches(spelt, names(), n=1, cutoff=0.75):
        return f"did you mean '{ALIASES[alias[0]]}'? (known: {', '.join(names())})"
    return did_you_mean(name, names())


def create(name: str, dim: int, **options: Any) -> Mixer:
    """Build a mixer at one width.

    `num_heads=h` may be given in place of `head_width`: it is turned into the width of one head
    at this `dim`.

    Args:
        name: a registered name.
        dim: channels.
        options: the mixer's knobs, each a value or a tuple of choices, and whatever else its
            constructor takes.

    Raises:
        UnknownMixer: if no mixer has that name.
        InvalidSpace: if a knob is unknown or does not fit `dim`.
    """
    mixer = get(name)
    where = f"mixer '{name}' at width {dim}"
    if "num_heads" in options and "head_width" in mixer.knobs:
        heads = options.pop("num_heads")
        span = mixer.head_span(dim, **options)
        if heads < 1 or span % heads:
            raise InvalidSpace(f"{where}: num_heads={heads} does not divide {span} channels")
        options["head_width"] = span // heads
    known = set(signature(mixer).parameters) - {"dim"}
    for option in options:
        if option not in known:
            raise InvalidSpace(f"{where}: no knob '{option}'; {did_you_mean(option, known)}")
    choices = {k: options.get(k, values[0]) for k, values in mixer.knobs.items()}
    fixed = {k: value for k, value in options.items() if k not in choices}
    for values in product(*(v if isinstance(v, tuple) else (v,) for v in choices.values())):
        reason = mixer.check(dim, **fixed, **dict(zip(choices, values, strict=True)))
        if reason:
            raise InvalidSpace(f"{where}: {reason}")
    return mixer(dim, **options)


def heads_fit(dim: int, knobs: Mapping[str, Knob]) -> str | None:
    """Say that `head_width` does not divide the width, where it does not."""
    head_width = int(knobs["head_width"])
    if head_width >= 1 and dim % head_width == 0:
        return None
    return f"head_width={head_width} does not divide it"


def in_graph(x: Tensor) -> bool:
    """Whether the call is being traced, compiled or exported, not simply computed.

    A graph is what counters read and what is shipped, so it holds a mixer's equations as they
    are; shortcuts for one device or one size belong to plain calls.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return True
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def for_onnx() -> bool:
    """Whether the call is being exported to ONNX, whose graphs hold no complex numbers."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
