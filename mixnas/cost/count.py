"""FLOPs and parameters: the only door to fvcore.

One fused multiply-add is one FLOP, the convention of fvcore and of the papers. fvcore counts the
operators of a traced forward pass; what it does not know is counted here or is an error:

* fused attention reads 0 in fvcore: ``N * M * (dk + dv)`` a head, for N queries and M keys;
* a Fourier transform reads 0: ``2.5 n log2 n`` real operations for n real values (half that in
  multiply-adds), twice as much for complex values;
* a product of complex numbers reads a quarter: one complex multiply is 4 multiply-adds;
* a matrix product whose left side is broadcast reads too little, an einsum is read from rounded
  text: the first is counted from its output, the second is refused;
* `FREE` operators (element-wise arithmetic, activations, softmax, pooling, movement of data) cost
  nothing by convention, and every other operator raises `UncountedOp`.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixnas.arch import Architecture
from mixnas.errors import UncountedOp
from mixnas.network import Part, build

with warnings.catch_warnings():  # importing fvcore calls torch.jit.script, which is deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


Rule = Callable[[list[Any], list[Any]], int]
Counted = TypeVar("Counted")

# fmt: off
FREE = frozenset(
    f"aten::{name}"
    for name in (
        "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "abs", "pow",
        "sqrt", "rsqrt", "square", "reciprocal", "exp", "log", "sin", "cos", "tanh", "sigmoid",
        "erf", "sign", "floor", "ceil", "round", "minimum", "maximum", "clamp", "clamp_min",
        "clamp_max", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
        "logical_or", "logical_not", "bitwise_and", "bitwise_or", "relu", "relu_", "relu6",
        "leaky_relu", "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardsigmoid", "hardtanh",
        "elu", "mish", "softplus", "prelu", "softshrink", "hardshrink", "softmax", "log_softmax",
        "_softmax", "dropout", "feature_dropout", "sum", "mean", "amax", "amin", "max", "min",
        "argmax", "linalg_vector_norm", "norm", "frobenius_norm", "var", "std", "avg_pool1d",
        "avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "pad", "constant_pad_nd",
        "reflection_pad2d", "replication_pad2d", "view", "view_as", "reshape", "reshape_as",
        "flatten", "unflatten", "permute", "transpose", "transpose_", "t", "mT", "swapaxes",
        "movedim", "moveaxis", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "expand",
        "expand_as", "repeat", "tile", "repeat_interleave", "contiguous", "clone", "detach",
        "alias", "cat", "concat", "stack", "chunk", "split", "split_with_sizes", "tensor_split",
        "unbind", "select", "slice", "narrow", "index", "index_select", "gather", "index_put",
        "index_put_", "scatter", "roll", "flip", "diagonal", "tril", "triu", "unfold", "im2col",
        "col2im", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "copy_", "fill_",
        "zero_", "view_as_real", "view_as_complex", "complex", "real", "imag", "conj", "_conj",
        "conj_physical", "resolve_conj", "resolve_neg", "polar", "angle", "fft_fftshift",
        "fft_ifftshift", "zeros", "ones", "full", "empty", "arange", "linspace", "zeros_like",
        "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
        "scalar_tensor", "lift_fresh", "to", "type_as", "size", "numel", "dim", "Int", "Float",
        "Bool", "ScalarImplicit", "IntImplicit", "FloatImplicit", "item", "__and__", "__or__",
        "__not__", "floor_divide", "remainder", "detach_", "is_complex", "_cast_Float"
    )
)
# fmt: on
"""Operators that cost nothing by convention."""

REFUSED = ("aten::einsum", "prim::If", "prim::Loop", "prim::CallMethod")
"""fvcore would misread the first and pass over the others with all that is inside them."""

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
"""Functions whose sizes the meta device cannot work out within a trace."""

OPERATORS = {"_convolution": "conv", "addmm": "linear"}
"""Names of operators for people, where torch's own say less."""

COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def flops(part: Part) -> int:
    """Count the multiply-adds of a network's part for one image.

    Raises:
        UncountedOp: if it uses an operator without a rule.
    """
    return without_memory(part.build, lambda module: count_flops(module, part.shape))


def params(part: Part) -> int:
    """Count the parameters of a network's part."""
    with torch.device("meta"):
        return count_params(part.build())


def count_params(model: nn.Module | Architecture, *, classes: int = 1000) -> int:
    """Count the parameters of a module, or of an architecture's network, each once."""
    return sum(parameter.numel() for parameter in _module(model, classes, 3).parameters())


def count_flops(
    model: nn.Module | Architecture,
    image: int | tuple[int, int, int] = 224,
    *,
    classes: int = 1000,
    in_chans: int = 3,
) -> int:
    """Count the multiply-adds of a module, in evaluation mode, for one input.

    Args:
        model: called as ``model(x)``, its mode, device and weights stay as they are; or an
            architecture, whose network is built for it.
        image: side of the image in pixels, or the input without the batch, ``(C, H, W)``.
        classes: of an architecture's network.
        in_chans: channels of an image of that side.

    Raises:
        UncountedOp: if it uses an operator without a rule; names operator, module and cure.
    """
    return sum(operators(model, image, classes=classes, in_chans=in_chans).values())


def operators(
    model: nn.Module | Architecture,
    image: int | tuple[int, int, int] = 224,
    *,
    classes: int = 1000,
    in_chans: int = 3,
) -> dict[str, int]:
    """Count the multiply-adds as `count_flops` does, and tell which operators they are of.

    Publications leave out one operator or another (norms, Fourier transforms, the products of
    attention): this is what to compare them with.

    Returns:
        Multiply-adds by operator, the dearest first: ``linear`` (a matrix product with a weight),
        ``conv``, ``matmul`` (of two activations), ``batch_norm``, ``fft_rfft2`` and so on, after
        torch's names for them.

    Raises:
        UncountedOp: if the model uses an operator without a rule.
    """
    module = _module(model, classes, in_chans)
    shape = (in_chans, image, image) if isinstance(image, int) else image
    named: Counter[str] = Counter()
    for name, count in traced(module, shape, {}).items():
        named[OPERATORS.get(name, name)] += count
    return {name: count for name, count in named.most_common() if count}


def traced(
    module: nn.Module, shape: tuple[int, int, int], rules: Mapping[str, Rule]
) -> dict[str, int]:
    """Count what a module does to one input, operator by operator, in evaluation mode.

    Args:
        module: its mode, device and weights stay as they are.
        shape: of the input without the batch, ``(C, H, W)``.
        rules: what an operator counts (``aten::mul``), where that is not its multiply-adds.

    Returns:
        Counts by torch's name without ``aten::``.

    Raises:
        UncountedOp: if it uses an operator without a rule.
    """
    reference = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    inputs = torch.zeros(1, *shape, device=reference.device, dtype=reference.dtype)
    analysis = FlopCountAnalysis(module, (inputs,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    handles = {**RULES, **dict.fromkeys(FREE), **rules}
    analysis.tracer_warnings("none").set_op_handle(**handles)
    with _evaluating(module), torch.no_grad(), _PlainSizes():
        counted = analysis.by_operator()
    _refuse_unknown(analysis, module)
    return {name: int(count) for name, count in counted.items()}


def without_memory(
    create: Callable[[], nn.Module], count: Callable[[nn.Module], Counted]
) -> Counted:
    """Count a module that is built without its weights, or, where that cannot be, with them.

    Args:
        create: builds the module.
        count: what to count of it, such as `operators`.

    Raises:
        UncountedOp: if it uses an operator without a rule.
    """
    try:
        with torch.device("meta"):
            module = create()
        return count(module)
    except (RuntimeError, TypeError, NotImplementedError):
        pass  # an operator that needs memory, or numbers: it gets them below
    return count(create())


def _module(model: nn.Module | Architecture, classes: int, in_chans: int) -> nn.Module:
    return model if isinstance(model, nn.Module) else build(model, classes, in_chans)


class _PlainSizes(TorchFunctionMode):
    """Gives sizes as integers: a trace's own are tensors, at which ``round(C / 2)`` fails.

    The meta device's convolutions fail at them too, where nothing can help them: those are
    computed on zeros in memory.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS and args[0].is_meta:
            return func(*map(_zeros, args), **(kwargs or {})).to("meta")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            return torch.Size(int(size) for size in result)
        if func in (Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__):
            return int(result)
        return result


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) else value


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode and every submodule back in its own mode afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _refuse_unknown(analysis: FlopCountAnalysis, module: nn.Module) -> None:
    unknown = _unknown(analysis, "")
    if not unknown:
        return
    owners = [name for name, _ in module.named_modules() if name and _unknown(analysis, name)]
    where = ".".join([type(module).__name__, *owners[-1:]])
    cure = (
        "write the einsum as a matmul"
        if unknown == ["aten::einsum"]
        else (
            "write it with operators that are counted (linear, matmul, conv2d, "
            "scaled_dot_product_attention, fft.rfft2), or add its rule to mixnas/cost/count.py"
        )
    )
    raise UncountedOp(f"{where}: no counting rule for {', '.join(unknown)}; {cure}")


def _unknown(analysis: FlopCountAnalysis, module: str) -> list[str]:
    """Return the operators of a submodule that have no rule, and those that are refused."""
    counted = analysis.by_operator(module)
    refused = [name for name in REFUSED if counted[name.split("::")[1]]]
    return sorted([*analysis.unsupported_ops(module), *refused])


def _sizes(value: Any) -> list[int]:
    return list(value.type().sizes())


def _times(value: Any) -> int:
    """Multiply-adds of one product of such numbers."""
    return 4 if value.type().dtype() in COMPLEX else 1


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Every number of the output is a sum over the left side's last axis."""
    return math.prod(_sizes(outputs[0])) * _sizes(inputs[0])[-1] * _times(inputs[0])


def _addmm(inputs: list[Any], outputs: list[Any]) -> int:
    return _matmul(inputs[1:], outputs)


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Every number of the output (input, if transposed) meets one kernel."""
    weight = _sizes(inputs[1])
    pivot = inputs[0] if inputs[6].toIValue() else outputs[0]
    return math.prod(_sizes(pivot)) * math.prod(weight[1:]) * _times(inputs[0])


def _deformable(inputs: list[Any], outputs: list[Any]) -> int:
    """As a plain convolution: the bilinear samples are data movement."""
    return math.prod(_sizes(outputs[0])) * math.prod(_sizes(inputs[1])[1:])


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """``N * M * (dk + dv)`` a head, without the zeros that only please a kernel."""
    query, key, value = inputs[:3]
    tokens = math.prod(_sizes(outputs[0])[:-1])
    width = min(_unpadded(query), _unpadded(key)) + _unpadded(value)
    return tokens * _sizes(key)[-2] * width


def _unpadded(value: Any) -> int:
    """Return the size of the last axis before it was padded, if it was."""
    node = value.node()
    if node.kind() in ("aten::pad", "aten::constant_pad_nd"):
        return _sizes(node.inputsAt(0))[-1]
    return _sizes(value)[-1]


def _fourier(*, inverse: bool = False, real: bool = False) -> Rule:
    """Return the rule of a transform over one axis or two.

    ``1.25 n log2 n`` multiply-adds for n real values, rounded, for each sample and channel;
    twice that for n complex ones.
    """

    def rule(inputs: list[Any], outputs: list[Any]) -> int:
        full = _sizes(inputs[0] if real and not inverse else outputs[0])
        axes = _integers(inputs[2]) or [-2, -1]
        others = math.prod(full) // math.prod(full[axis] for axis in axes)
        lengths = [full[axis] for axis in axes]
        if real and not inverse:  # the output's last axis is halved and does not tell its length
            lengths = _integers(inputs[1]) or lengths
        n = math.prod(lengths)
        return others * round((1.25 if real else 2.5) * n * math.log2(n))

    return rule


def _integers(value: Any) -> list[int]:
    """Return the constant integers of an argument; nothing if it is None or was computed."""
    if value.node().kind() == "prim::ListConstruct":
        numbers = [item.toIValue() for item in value.node().inputs()]
        return [] if None in numbers else numbers
    number = value.toIValue()
    return list(number) if isinstance(number, list) else [] if number is None else [number]


RULES: dict[str, Rule] = {
    **dict.fromkeys(REFUSED, lambda inputs, outputs: 1),  # seen, then refused by name
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::mv": _matmul,
    "aten::dot": _matmul,
    "aten::linear": _matmul,
    "aten::addmm": _addmm,
    "aten::baddbmm": _addmm,
    "aten::_convolution": _convolution,
    "torchvision::deform_conv2d": _deformable,
    "aten::scaled_dot_product_attention": _attention,
    "aten::fft_rfft2": _fourier(real=True),
    "aten::fft_irfft2": _fourier(real=True, inverse=True),
    "aten::fft_fft2": _fourier(),
    "aten::fft_ifft2": _fourier(inverse=True),
    "aten::fft_rfft": _fourier(real=True),
    "aten::fft_irfft": _fourier(real=True, inverse=True),
    "aten::fft_fft": _fourier(),
    "aten::fft_ifft": _fourier(inverse=True),
}
"""Operators that fvcore does not know, or reads wrongly in some case; in the others the same."""
