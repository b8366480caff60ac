"""What FLOPs do not say: work that a convention stands for, and work that is counted as nothing.

Multiply-adds leave out activations, softmax and the products with a spectrum, and stand for a
Fourier transform by a formula (`mixnas.cost.count`). Two networks of equal FLOPs may differ in
both, so a mixer could win a budget by what the convention overlooks. Here that work is counted by
the same trace: one operation for each number that an element-wise operator takes or makes, three
for each of a softmax (exponential, sum, quotient), four for a product of complex numbers and two
for anything else that is done to one. Movement of data stays uncounted, as do the few sums
between the parts of a network.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from mixnas.arch import Architecture
from mixnas.cost.count import COMPLEX, RULES, Rule, traced, without_memory
from mixnas.network import Part, parts, walk

# fmt: off
ARITHMETIC = tuple(
    f"aten::{name}"
    for name in (
        "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "abs", "pow",
        "sqrt", "rsqrt", "square", "reciprocal", "exp", "log", "sin", "cos", "tanh", "sigmoid",
        "erf", "minimum", "maximum", "clamp", "clamp_min", "clamp_max", "where", "masked_fill",
        "relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "silu_", "hardswish", "hardswish_",
        "hardsigmoid", "hardtanh", "elu", "mish", "softplus", "prelu", "softshrink", "hardshrink",
        "sum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm", "norm",
        "frobenius_norm", "var", "std", "avg_pool1d", "avg_pool2d", "max_pool2d",
    )
)
# fmt: on
"""Operators that compute, though FLOPs take them for nothing."""

SOFTMAX = ("aten::softmax", "aten::_softmax", "aten::log_softmax")
ATTENTION = "aten::scaled_dot_product_attention"
TRANSFORMS = tuple(name for name in RULES if name.startswith("aten::fft_"))
PRODUCTS = ("aten::mul", "aten::mul_", "aten::div", "aten::div_")

SOFTMAX_EACH, PRODUCT_EACH, COMPLEX_EACH = 3, 4, 2
"""Operations for each number of a softmax, of a complex product, of other complex arithmetic."""


@dataclass(frozen=True)
class Unsaid:
    """A network's work, or a part's, beside what its FLOPs say of it.

    Attributes:
        flops: multiply-adds as they are counted.
        transforms: those of them that stand for Fourier transforms by a formula.
        softmax: operations of softmax, which FLOPs leave out.
        spectrum: operations on complex numbers, which they leave out.
        elementwise: other operations on single numbers, which they leave out.
    """

    flops: int = 0
    transforms: int = 0
    softmax: int = 0
    spectrum: int = 0
    elementwise: int = 0

    @property
    def uncounted(self) -> int:
        """Operations that FLOPs take for nothing."""
        return self.softmax + self.spectrum + self.elementwise

    def __add__(self, other: "Unsaid") -> "Unsaid":
        return Unsaid(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def shares(self) -> dict[str, float]:
        """Return each amount, and ``uncounted``, over the FLOPs."""
        amounts = {name: getattr(self, name) for name in (*NAMES, "uncounted")}
        return {name: value / self.flops if self.flops else 0.0 for name, value in amounts.items()}


NAMES = ("transforms", "softmax", "spectrum", "elementwise")
"""What an `Unsaid` tells beside its FLOPs."""


class Conventions:
    """Looks up what FLOPs do not say of architectures; each part is counted once.

    Args:
        image: side of the deployed image in pixels.
        classes: classes of the deployed network.

    Raises:
        UncountedOp: when asked for an architecture that uses an operator without a rule.
    """

    def __init__(self, *, image: int, classes: int) -> None:
        self.image, self.classes = image, classes
        self._parts: dict[Part, Unsaid] = {}

    def __call__(self, arch: Architecture) -> Unsaid:
        """Return what FLOPs do not say of an architecture's network."""
        return sum(map(self._part, self._taken(arch)), start=Unsaid())

    def mixers(self, archs: Iterable[Architecture]) -> dict[str, Unsaid]:
        """Return the same of the mixers alone, by name, summed over some architectures."""
        found: dict[str, Unsaid] = {}
        for arch in archs:
            for part in self._taken(arch):
                if part.kind == "mixer":
                    name = part.spec[0]
                    found[name] = found.get(name, Unsaid()) + self._part(part)
        return dict(sorted(found.items()))

    def _taken(self, arch: Architecture) -> list[Part]:
        sizes = {"image": self.image, "classes": self.classes}
        return [part for segment in walk(arch) for part in parts(segment, **sizes)]

    def _part(self, part: Part) -> Unsaid:
        if part not in self._parts:
            self._parts[part] = unsaid(part)
        return self._parts[part]


def unsaid(part: Part) -> Unsaid:
    """Count what FLOPs do not say of a part, for one image.

    Raises:
        UncountedOp: if it uses an operator without a rule.
    """
    return without_memory(part.build, lambda module: _counted(module, part.shape))


def _counted(module: nn.Module, shape: tuple[int, int, int]) -> Unsaid:
    tally: Counter[str] = Counter()
    beside = (*ARITHMETIC, *SOFTMAX, ATTENTION, *TRANSFORMS)
    rules = {name: _told(name, tally) for name in beside}
    flops = sum(traced(module, shape, rules).values())
    return Unsaid(flops, *(tally[name] for name in NAMES))


def _told(name: str, tally: Counter[str]) -> Rule:
    """Return an operator's own rule, which also tells a tally what FLOPs do not say of it."""

    def rule(inputs: list[Any], outputs: list[Any]) -> int:
        counted = RULES[name](inputs, outputs) if name in RULES else 0
        if name in TRANSFORMS:
            tally["transforms"] += counted
        elif name == ATTENTION:
            # A weight for every query and key: queries of all heads times the keys of one.
            queries = math.prod(_sizes(outputs[0])[:-1])
            tally["softmax"] += SOFTMAX_EACH * queries * _sizes(inputs[1])[-2]
        elif name in SOFTMAX:
            tally["softmax"] += SOFTMAX_EACH * math.prod(_sizes(outputs[0]))
        elif numbers := max(map(_numbers, (*inputs[:2], outputs[0]))):
            kind, each = _each(name, inputs, outputs)
            tally[kind] += each * numbers
        return counted

    return rule


def _each(name: str, inputs: list[Any], outputs: list[Any]) -> tuple[str, int]:
    """Return what kind of operation this is on each number, and how many it stands for."""
    if not any(_is_complex(value) for value in (*inputs[:2], outputs[0])):
        return "elementwise", 1
    return "spectrum", PRODUCT_EACH if name in PRODUCTS else COMPLEX_EACH


def _sizes(value: Any) -> list[int]:
    return list(value.type().sizes())


def _numbers(value: Any) -> int:
    """Return how many numbers a tensor holds; what is no tensor, or a single number, has none."""
    if not value.isCompleteTensor() or not _sizes(value):
        return 0
    return math.prod(_sizes(value))


def _is_complex(value: Any) -> bool:
    return bool(value.isCompleteTensor()) and value.type().dtype() in COMPLEX
