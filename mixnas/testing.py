"""`MixerContract`: the laws that every mixer must pass, ours and yours.

A package with a mixer of its own tests it so::

    import pytest
    from mixnas.testing import MixerContract

    @pytest.mark.parametrize("name", ["shift"])
    class TestShift(MixerContract):
        choices = {"shift": {"step": (1, 2, 3)}}
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixnas import mixers
from mixnas.arch import Knob
from mixnas.elastic import Elastic, corner, extract_weights

SIZES = ((7, 9), (13, 15), (8, 8), (1, 1), (1, 5))
"""Heights and widths at which a mixer must work: odd, oblong, and a single position."""


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and running statistic anew, so that no branch is shut.

    Initial values hide mistakes: a norm's weight of 0 or 1, a bias of 0, a running mean of 0.

    Args:
        module: changed in place and returned.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(std=0.3, generator=generator)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                assert norm.running_mean is not None
                norm.running_mean.normal_(std=0.3, generator=generator)
            weight = getattr(norm, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
    return module


def images(batch: int, width: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a random channels-last ``(batch, width, *size)`` map, the same at every call."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(memory_format=torch.channels_last)


def zero_active(module: nn.Module, x: Tensor, knobs: Mapping[str, Knob]) -> None:
    """Zero the gradients of what one call uses: the leading corners that its layers read."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        assert isinstance(layer, Elastic)
        for parameter, used in zip(layer.stored(), layer.narrow(*args, **kwargs), strict=True):
            if parameter.grad is not None:
                corner(parameter.grad, *used.shape).zero_()

    layers = [layer for layer in module.modules() if isinstance(layer, Elastic)]
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        module(x, **knobs)
    for handle in hooks:
        handle.remove()


class MixerContract:
    """Tests of one mixer; parametrise `name`.

    Attributes:
        choices: by mixer, choices of its knobs to try in place of its own `knobs`.
        options: by mixer, what else its constructor is given: options that are no knobs.
        widths: the widths to try; the greatest is the one that the others are cut from.
    """

    choices: ClassVar[Mapping[str, Mapping[str, tuple[Knob, ...]]]] = {}
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    widths: ClassVar[tuple[int, ...]] = (64, 32)

    def offered(self, name: str) -> dict[str, tuple[Knob, ...]]:
        """Return the knobs and their choices."""
        return {**mixers.get(name).knobs, **self.choices.get(name, {})}

    def settings(self, name: str) -> Iterator[tuple[int, dict[str, Knob]]]:
        """Yield every width with every setting of the knobs that fits it."""
        offered = self.offered(name)
        for width in sorted(set(self.widths)):
            for values in product(*offered.values()):
                knobs = dict(zip(offered, values, strict=True))
                if mixers.get(name).check(width, **knobs) is None:
                    yield width, knobs

    def build(self, name: str, width: int, **knobs: Any) -> mixers.Mixer:
        """Build the mixer at one width, each knob a value or a tuple of choices."""
        return mixers.get(name)(width, **knobs, **self.options.get(name, {}))

    def widest(self, name: str) -> mixers.Mixer:
        """Build the mixer at the greatest width with all choices, randomised, in float64."""
        mixer = self.build(name, max(self.widths), **self.offered(name))
        randomise(mixer)
        return mixer.double().eval()

    def test_says_what_it_is(self, name: str) -> None:
        """One line of summary, and a norm that the block knows."""
        mixer = mixers.get(name)
        assert mixer.summary
        assert "\n" not in mixer.summary
        assert mixer.norm in {"layer", "group", "none"}
        assert all(values for values in mixer.knobs.values())

    def test_keeps_shape_and_layout(self, name: str) -> None:
        """Any size and batch; channels-last in, channels-last out."""
        mixer = self.widest(name)
        for width, knobs in self.settings(name):
            for size, batch in product(SIZES, (1, 3)):
                x = images(batch, width, size, torch.float64)
                with torch.no_grad():
                    y = mixer(x, **knobs)
                assert y.shape == x.shape
                assert y.isfinite().all()
                assert y.stride(1) == 1, "the channels of a position must be adjacent"

    def test_layout_does_not_matter(self, name: str) -> None:
        """A contiguous input gives what a channels-last one gives."""
        mixer = self.widest(name)
        for width, knobs in self.settings(name):
            x = images(2, width, (7, 9), torch.float64)
            with torch.no_grad():
                difference = mixer(x, **knobs) - mixer(x.contiguous(), **knobs)
            assert difference.abs().max() < 1e-10

    def test_narrow_call_equals_extracted_mixer(self, name: str) -> None:
        """The shared weights at a width are those of the mixer of that width."""
        mixer = self.widest(name)
        for width, knobs in self.settings(name):
            x = images(2, width, (7, 9), torch.float64)
            alone = self.build(name, width, **knobs)
            randomise(alone, seed=1)
            alone.double().eval()
            extract_weights(mixer, alone, lambda x=x, knobs=knobs: mixer(x, **knobs))  # type: ignore[misc]
            with torch.no_grad():
                assert (alone(x) - mixer(x, **knobs)).abs().max() < 1e-10

    def test_every_parameter_learns(self, name: str) -> None:
        """A mixer of one setting has no parameter without a gradient, but for declared ones."""
        for width, knobs in self.settings(name):
            mixer = self.build(name, width, **knobs)
            randomise(mixer)
            mixer.double().train()
            x = images(3, width, (7, 9), torch.float64)
            (mixer(x.requires_grad_()) * x.detach().sin()).sum().backward()
            for parameter, tensor in mixer.named_parameters():
                assert tensor.grad is not None, parameter
                learns = bool(tensor.grad.abs().max() > 1e-9)
                assert learns is (parameter not in mixer.shift_invariant), parameter

    def test_what_is_not_used_has_no_gradient(self, name: str) -> None:
        """Outside the leading corners that a call reads, gradients are exactly zero."""
        mixer = self.widest(name)
        for width, knobs in self.settings(name):
            mixer.zero_grad()
            x = images(2, width, (7, 9), torch.float64)
            mixer(x.requires_grad_(), **knobs).square().sum().backward()
            zero_active(mixer, x, knobs)
            for parameter, tensor in mixer.named_parameters():
                assert tensor.grad is None or not tensor.grad.any(), parameter

    def test_samples_do_not_mix(self, name: str) -> None:
        """In evaluation a sample's output does not depend on its neighbours."""
        mixer = self.widest(name)
        for width, knobs in self.settings(name):
            x = images(3, width, (7, 9), torch.float64)
            with torch.no_grad():
                alone = torch.cat([mixer(sample, **knobs) for sample in x.split(1)])
                assert (mixer(x, **knobs) - alone).abs().max() < 1e-10

    def test_half_precision_is_finite(self, name: str) -> None:
        """Under bfloat16 autocast, forward and backward stay finite and near float32."""
        mixer = self.widest(name).float()
        for width, knobs in self.settings(name):
            x = images(2, width, (7, 9), torch.float32).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                y = mixer(x, **knobs)
            y.float().square().mean().backward()
            expected = mixer(x, **knobs)
            assert y.isfinite().all()
            assert x.grad is not None
            assert x.grad.isfinite().all()
            assert (y - expected).abs().mean() < 0.1 * expected.abs().mean()

    def test_exports(self, name: str) -> None:
        """`torch.export` takes it, at any batch."""
        width, knobs = next(self.settings(name))
        mixer = self.build(name, width, **knobs)
        randomise(mixer).eval()
        x = images(2, width, (7, 9), torch.float32)
        batch = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
        program = torch.export.export(mixer, (x,), dynamic_shapes=batch)
        other = images(5, width, (7, 9), torch.float32)
        with torch.no_grad():
            difference = program.module()(other) - mixer(other)
        assert difference.abs().max() < 1e-4
