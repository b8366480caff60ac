"""Adaptive frequency filter (AFFNet; Huang et al., ICCV 2023, arXiv 2307.14008)."""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas.arch import Knob
from mixnas.elastic import Table
from mixnas.mixers import Mixer, in_graph, register

GROUPS = 8
"""Blocks of the block-diagonal mask network."""

SHRINK = 0.01
"""Soft-shrink threshold of the mask."""

TINY = 128
"""Up to so many positions a transform is quicker as one matrix product (timed on CPUs)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}


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

    A channel keeps its group under slicing: channel f belongs to group ``f % 8``. The published
    grouping is contiguous, ``f // c``: the same function up to a fixed permutation of the
    channels, which a loader of published weights applies. Half precision is computed in
    float32, transforms and soft-shrink having no half kernels.

    Parameters C^2 / 2 + 4C; multiply-adds H Wf C^2 and two transforms: O(N log N). Small grids
    are transformed by one matrix product; a traced or compiled graph always holds the
    transform.

    Args:
        dim: channels C at most, a multiple of 8.
        activation: ``"relu"`` as in the paper, or ``"silu"``.
    """

    summary = "AFF (AFFNet): a learnt mask on the Fourier spectrum; O(N log N)"

    def __init__(self, dim: int, *, activation: Literal["relu", "silu"] = "relu") -> None:
        super().__init__(dim)
        self.activation = ACTIVATIONS[activation]
        width = dim // GROUPS
        init = partial(nn.init.normal_, std=0.02)
        self.weight_in = Table(2, GROUPS, width, width, init=init)
        self.bias_in = Table(2, GROUPS, width, init=init)
        self.weight_out = Table(2, GROUPS, width, width, init=init)
        self.bias_out = Table(2, GROUPS, width, init=init)

    @classmethod
    def check(cls, dim: int, **knobs: Knob) -> str | None:
        """Groups must divide the width."""
        return f"it is not a multiple of {GROUPS} (groups of channels)" if dim % GROUPS else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            full = x.to(torch.promote_types(x.dtype, torch.float32))
            grouped = full.unflatten(1, (-1, GROUPS))
            small = x.shape[2] * x.shape[3] <= TINY and not in_graph(x)
            mixed = self.by_product(grouped) if small else self.by_transform(grouped)
            return (grouped + mixed).flatten(1, 2).to(x.dtype)

    def by_transform(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, 8, H, W)``; the transform wants its planes contiguous anyway."""
        spectrum = torch.fft.rfft2(x.transpose(1, 2).contiguous(), norm="ortho")
        masked = self.mask(spectrum.flatten(3)).view_as(spectrum)
        return torch.fft.irfft2(masked, s=x.shape[3:], norm="ortho").transpose(1, 2)

    def by_product(self, x: Tensor) -> Tensor:
        """Filter ``(B, c, 8, H, W)`` on a small grid; groups first, so that products are few."""
        batch, width, _, *size = x.shape
        forth, back = transforms(*size, x.dtype, x.device)
        parts = torch.matmul(x.permute(2, 1, 0, 3, 4).flatten(3), forth)
        spectrum = torch.view_as_complex(parts.unflatten(-1, (-1, 2)))
        masked = torch.view_as_real(self.mask(spectrum.flatten(2)))
        y = torch.matmul(masked.view(GROUPS, width, batch, -1), back)
        return y.unflatten(3, size).permute(2, 1, 0, 3, 4)

    def mask(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum ``(..., 8, c, F)`` times its mask."""
        width = spectrum.shape[-2]
        real = spectrum.real.dtype

        def linear(z: Tensor, weight: Table, bias: Table) -> Tensor:
            """Map the channels of each group, as complex numbers."""
            matrix = torch.complex(*weight(2, GROUPS, width, width).to(real))
            return (
                torch.matmul(matrix, z) + torch.complex(*bias(2, GROUPS, width).to(real))[..., None]
            )

        hidden = self.activation(torch.view_as_real(linear(spectrum, self.weight_in, self.bias_in)))
        logits = linear(torch.view_as_complex(hidden), self.weight_out, self.bias_out)
        mask = F.softshrink(torch.view_as_real(logits), SHRINK)
        return torch.view_as_complex(mask) * spectrum
