"""Adaptive frequency filter (AFFNet; Huang et al., ICCV 2023, arXiv 2307.14008)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.elastic import Table
from mixnas.errors import InvalidSpace, did_you_mean
from mixnas.mixers import Mixer, for_onnx, in_graph, register
from mixnas.mixers.fourier import analysed, synthesised

GROUPS = 8
"""Blocks of the published block-diagonal mask network."""

TINY = 128
"""Up to so many positions a transform is quicker as one matrix product (timed on CPUs)."""

LEAK = 0.1
"""Slope of the leaky ReLU below 0."""

SLOPE = 0.25
"""Initial slope of the learnt ReLU (PReLU) below 0."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hard_swish": F.hardswish,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=LEAK),
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}
"""Activations without weights; ``"prelu"`` has some."""

Grouping = Literal["interleaved", "contiguous"]


@cache
def transforms(
    height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return `rfft2` and `irfft2` (orthonormal) as matrices: what they do to unit vectors.

    Their shapes are ``(H W, 2 H Wf)`` and ``(2 H Wf, H W)`` with Wf = W // 2 + 1, real and
    imaginary parts side by side. The cache holds at most one pair for each size up to `TINY`.
    """
    half = width // 2 + 1
    with torch.inference_mode(False), torch.no_grad():
        units = torch.eye(height * width, dtype=torch.float64, device="cpu")
        forth = torch.fft.rfft2(units.view(-1, height, width), norm="ortho")
        units = torch.eye(2 * height * half, dtype=torch.float64, device="cpu")
        spectra = torch.view_as_complex(units.view(-1, height, half, 2))
        back = torch.fft.irfft2(spectra, s=(height, width), norm="ortho")
        return (
            torch.view_as_real(forth).flatten(1).to(device, dtype),
            back.flatten(1).to(device, dtype),
        )


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Return what turns autocast off; an exported graph knows of none, so holds no trace of it."""
    if torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@register("aff")
class AFF(Mixer):
    """Multiply the spectrum by a mask that a small network computes from the spectrum itself.

    With X = rfft2(x), orthonormal, over H x Wf frequencies (Wf = W // 2 + 1), the channels in
    8 groups of c = C / 8, and every frequency under the same complex weights::

        A   = relu(Re Z) + i relu(Im Z),  Z = W1 X + b1     block-diagonal: a group sees itself
        M   = shrink(Re Y) + i shrink(Im Y),  Y = W2 A + b2      soft-shrink by 0.01
        out = irfft2(M X) + x                               X as it was before the activation

    The real parts alone of frequency 0 (and of Nyquist, W even) enter the last synthesis over
    W, since M X has not the symmetry of a real signal's spectrum there.

    Half precision is computed in float32, transforms and soft-shrink having no half kernels.

    With G groups and expansion r the parameters are 4r C^2 / G + 2(r + 1) C (as published
    C^2 / 2 + 4C) and the multiply-adds 8r H Wf C^2 / G and two transforms: O(N log N). Small
    grids are transformed by one matrix product; a traced or compiled graph always holds the
    transform, but for ONNX: there real matrices stand for it and for the complex products.

    Args:
        dim: channels C at most, a multiple of the groups.
        activation: ``"relu"`` as in the paper, ``"silu"`` or another of `ACTIVATIONS`, or
            ``"prelu"``, which learns one slope for real and one for imaginary parts.
        grouping: ``"interleaved"``: channel f belongs to group ``f % G`` and so keeps its group
            at every width, which shared weights want. ``"contiguous"``: to group ``f // c``, as
            published, for a fixed width: a network of the authors' weights, whose other layers
            see the channels in that order. At one width the two are the same function up to a
            fixed permutation of the channels.
        groups: G, blocks of the mask network; fewer see more channels, at more cost.
        expansion: r, hidden channels of the mask network over C (published: 1).
        threshold: of the soft-shrink; 0 keeps the mask as it is, more make it sparser.

    Raises:
        InvalidSpace: if the groups do not divide the width, or an option is unknown.
    """

    summary = "AFF (AFFNet): a learnt mask on the Fourier spectrum; O(N log N)"

    def __init__(
        self,
        dim: int,
        *,
        activation: str = "relu",
        grouping: Grouping = "interleaved",
        groups: int = GROUPS,
        expansion: int = 1,
        threshold: float = 0.01,
    ) -> None:
        super().__init__(dim)
        reason = self.check(dim, groups=groups, activation=activation, grouping=grouping)
        if reason:
            raise InvalidSpace(f"mixer 'aff' at width {dim}: {reason}")
        self.activation = ACTIVATIONS.get(activation)
        self.contiguous = grouping == "contiguous"
        self.groups, self.expansion, self.threshold = groups, expansion, threshold
        width = dim // groups
        hidden = width * expansion
        init = partial(nn.init.normal_, std=0.02)
        self.weight_in = Table(2, groups, hidden, width, init=init)
        self.bias_in = Table(2, groups, hidden, init=init)
        self.weight_out = Table(2, groups, width, hidden, init=init)
        self.bias_out = Table(2, groups, width, init=init)
        if self.activation is None:
            self.slopes = Table(2, init=partial(nn.init.constant_, val=SLOPE))

    @classmethod
    def check(cls, dim: int, **knobs: Any) -> str | None:
        """Groups must divide the width; activation and grouping must be known."""
        groups, activation = knobs.get("groups", GROUPS), knobs.get("activation", "prelu")
        if groups < 1 or dim % groups:
            return f"it is not a multiple of {groups} (groups of channels)"
        if activation not in {*ACTIVATIONS, "prelu"}:
            known = did_you_mean(str(activation), {*ACTIVATIONS, "prelu"})
            return f"no activation '{activation}'; {known}"
        if knobs.get("grouping", "contiguous") not in ("interleaved", "contiguous"):
            return f"no grouping '{knobs['grouping']}'; known: interleaved, contiguous"
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        with full_precision(x):
            full = x.to(torch.promote_types(x.dtype, torch.float32))
            grouped = self.grouped(full)
            y = grouped + self.filtered(grouped)
            return (y.transpose(1, 2) if self.contiguous else y).flatten(1, 2).to(x.dtype)

    def grouped(self, x: Tensor) -> Tensor:
        """View ``(B, C, H, W)`` as ``(B, c, groups, H, W)``."""
        if self.contiguous:
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2)
        return x.unflatten(1, (-1, self.groups))

    def filtered(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, G, H, W)`` in the way that suits its size and who asks."""
        if not in_graph(x):
            small = x.shape[3] * x.shape[4] <= TINY
            return self.by_product(x) if small else self.by_transform(x)
        return self.by_real_parts(x) if for_onnx() else self.by_transform(x)

    def by_transform(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, G, H, W)``; the transform wants its planes contiguous anyway."""
        spectrum = torch.fft.rfft2(x.transpose(1, 2).contiguous(), norm="ortho")
        masked = self.mask(spectrum.flatten(3)).view_as(spectrum)
        return torch.fft.irfft2(masked, s=x.shape[3:], norm="ortho").transpose(1, 2)

    def by_product(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, G, H, W)`` on a small grid; groups first, so that products are few."""
        batch, width, _, *size = x.shape
        forth, back = transforms(*size, x.dtype, x.device)
        parts = torch.matmul(x.permute(2, 1, 0, 3, 4).flatten(3), forth)
        spectrum = torch.view_as_complex(parts.unflatten(-1, (-1, 2)))
        masked = torch.view_as_real(self.mask(spectrum.flatten(2)))
        y = torch.matmul(masked.view(self.groups, width, batch, -1), back)
        return y.unflatten(3, size).permute(2, 1, 0, 3, 4)

    def by_real_parts(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, G, H, W)`` without a complex number, for graphs that know none."""
        width, hidden = x.shape[1], x.shape[1] * self.expansion
        spectrum = analysed(x.transpose(1, 2)).transpose(2, 3).flatten(4)  # (B, G, 2, c, F)

        def linear(z: Tensor, weight: Table, bias: Table, out: int) -> Tensor:
            """Map the channels of each group: one real matrix holds the complex one."""
            real, imaginary = weight(2, self.groups, out, z.shape[3]).to(z.dtype)
            upper, lower = (real, -imaginary), (imaginary, real)
            matrix = torch.cat([torch.cat(upper, 2), torch.cat(lower, 2)], 1)
            shift = bias(2, self.groups, out).to(z.dtype).transpose(0, 1).flatten(1)
            y = torch.matmul(matrix, z.flatten(2, 3)) + shift[..., None]
            return y.unflatten(2, (2, out))

        z = linear(spectrum, self.weight_in, self.bias_in, hidden)
        active = self.activate(z.movedim(2, -1)).movedim(-1, 2)
        logits = linear(active, self.weight_out, self.bias_out, width)
        (a, b), (c, d) = F.softshrink(logits, self.threshold).unbind(2), spectrum.unbind(2)
        masked = torch.stack([a * c - b * d, a * d + b * c], dim=3)  # (B, G, c, 2, F)
        return synthesised(masked.unflatten(4, (x.shape[3], -1)), x.shape[4]).transpose(1, 2)

    def mask(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum ``(..., G, c, F)`` times its mask."""
        width = spectrum.shape[-2]
        hidden = width * self.expansion

        def linear(z: Tensor, weight: Table, bias: Table, out: int) -> Tensor:
            """Map the channels of each group, as complex numbers."""
            real = spectrum.real.dtype
            matrix = torch.complex(*weight(2, self.groups, out, z.shape[-2]).to(real))
            shift = torch.complex(*bias(2, self.groups, out).to(real))
            return torch.matmul(matrix, z) + shift[..., None]

        z = torch.view_as_real(linear(spectrum, self.weight_in, self.bias_in, hidden))
        logits = linear(
            torch.view_as_complex(self.activate(z)), self.weight_out, self.bias_out, width
        )
        mask = F.softshrink(torch.view_as_real(logits), self.threshold)
        return torch.view_as_complex(mask) * spectrum

    def activate(self, z: Tensor) -> Tensor:
        """Activate real and imaginary parts ``(..., 2)``, each on its own."""
        if self.activation is not None:
            return self.activation(z)
        return torch.where(z > 0, z, z * self.slopes(2).to(z.dtype))
