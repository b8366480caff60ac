"""`Network`: a supernet over a space, a stand-alone model over one architecture. One class.

The pyramid has stages at doubling strides; a stem enters at its own. The architecture is an
argument of `forward`: nothing is set, so nothing can stay set. `Network(space.only(arch))` is the
stand-alone model and `extract` fills it with the weights that the supernet would use.

For costs the network is a sequence of **segments** (`walk`) made of **parts** (`parts`), each a
module of its own that can be built, counted and timed alone; the same modules make the network.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixnas import mixers, stems
from mixnas.arch import STEM_STRIDES, Architecture, Block
from mixnas.checkpointing import recomputer
from mixnas.elastic import (
    BatchNorm,
    Conv,
    Depthwise,
    GroupNorm,
    LayerNorm,
    Linear,
    Scale,
    extract_weights,
    grid,
    tokens,
)
from mixnas.errors import InvalidOption, NotInSpace
from mixnas.features import Intermediates, Size
from mixnas.folding import fold
from mixnas.sharing import OneEach, Sharing, chosen, one_each
from mixnas.space import SearchSpace

Segment = tuple[Any, ...]

NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "layer": LayerNorm,
    "group": GroupNorm,
    "none": lambda _: nn.Identity(),
}


class Local(nn.Module):
    """``x + BN(dw3x3(x))``: position for the mixers that have none (SHViT, section 3.3).

    Args:
        dim: channels at most.
        mixers: those for each of which there is a norm; one for all by default.
    """

    forward: Callable[..., Tensor]

    def __init__(self, dim: int, mixers: Collection[str] = ()) -> None:
        super().__init__()
        self.conv = Depthwise(dim)
        self.norm = one_each(mixers, lambda: BatchNorm(dim))

    def forward(self, x: Tensor, mixer: str | None = None) -> Tensor:  # type: ignore[no-redef]
        """Keep the shape ``(B, C, H, W)``."""
        return x + chosen(self.norm, mixer)(self.conv(x))

    def folded(self) -> "Depthwise | Local":
        """Return the same as one convolution: the residual is a one in the kernel's middle."""
        if isinstance(self.norm, OneEach):
            return self
        conv = fold(self.conv, self.norm)
        middle = conv.weight.shape[-1] // 2
        conv.weight[:, :, middle, middle] += 1
        return conv


class Mix(nn.Module):
    """``x + s * mixer(norm(x))``, with the norm, the gain and the mixer of one system.

    Args:
        name: the mixer's registered name.
        dim: channels at most.
        knobs: each knob's choices.
        drop_path: probability that a sample skips the mixer in training.
        scaled: whether it has a layer scale of its own; else each call brings one.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        knobs: Mapping[str, tuple[Any, ...]],
        drop_path: float = 0.0,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        kind = mixers.get(name)
        self.skipped = kind.skipped
        if not self.skipped:
            self.gain = kind.gain
            self.norm = NORMS[kind.norm](dim)
            self.mixer = kind(dim, **knobs)
            self.scale = Scale(dim, kind.gain) if scaled else None
            self.drop = dropped(drop_path)

    def forward(self, x: Tensor, shared: nn.Module | None = None, **knobs: Any) -> Tensor:
        """Keep the shape ``(B, C, H, W)``; the scale is `shared` where there is one."""
        if self.skipped:
            return x
        y = self.mixer(self.norm(x), **knobs)
        y = cast(Scale, self.scale)(y) if shared is None else shared(y, self.gain)
        return x + self.drop(y)


def dropped(rate: float) -> nn.Module:
    """Return what lets a sample skip a branch in training (Huang et al. 2016, stochastic depth)."""
    if not rate:
        return nn.Identity()
    from timm.layers import DropPath  # timm takes a second to import, and a search needs no drops

    return DropPath(rate)


class Mlp(nn.Module):
    """``x + s * W2 GELU(W1 norm(x))`` at each position (ViT, equation 3).

    Args:
        dim: channels at most.
        ratio: hidden channels at most, in multiples of the channels.
        drop_path: probability that a sample skips the branch in training.
        norms: the mixers for each of which there is a norm; one for all by default.
        scales: the mixers for each of which there is a layer scale; likewise.
    """

    def __init__(
        self,
        dim: int,
        ratio: float,
        drop_path: float = 0.0,
        norms: Collection[str] = (),
        scales: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.norm = one_each(norms, lambda: LayerNorm(dim))
        self.expand = Linear(dim, int(dim * ratio))
        self.reduce = Linear(int(dim * ratio), dim)
        self.scale = one_each(scales, lambda: Scale(dim, 1.0))
        self.drop = dropped(drop_path)

    def forward(self, x: Tensor, ratio: float | None = None, mixer: str | None = None) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        channels, height, width = x.shape[1:]
        hidden = int(channels * (self.ratio if ratio is None else ratio))
        y = tokens(chosen(self.norm, mixer)(x))
        y = self.reduce(F.gelu(self.expand(y, hidden)), channels)
        return x + self.drop(chosen(self.scale, mixer)(grid(y, height, width)))


class Merge(nn.Module):
    """A 3x3 convolution of stride 2 and batch norm, between two stages.

    Args:
        dim: input channels at most.
        out: output channels at most.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = Conv(dim, out, 3, stride=2)
        self.norm = BatchNorm(out)

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, width, ceil(H / 2), ceil(W / 2))``."""
        return self.norm(self.conv(x, width))

    def folded(self) -> Conv:
        """Return the same as one convolution."""
        return fold(self.conv, self.norm)


SHARED = Sharing()
"""What is shared by default."""


class Classifier(Linear):
    """The last linear layer, in the form that timm's users expect of a classifier."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.in_features = features
        self.out_features = classes


class MixBlock(nn.Module):
    """One block: `Local`, then one of several mixers, then `Mlp`.

    Args:
        dim: channels at most.
        offered: each mixer's knobs with their choices.
        ratio: the MLP's ratio at most.
        drop_path: probability that a sample skips the mixer, or the MLP, in training.
        sharing: what the mixers have in common.
    """

    def __init__(
        self,
        dim: int,
        offered: Mapping[str, Mapping[str, tuple[Any, ...]]],
        ratio: float,
        drop_path: float = 0.0,
        sharing: Sharing = SHARED,
    ) -> None:
        super().__init__()
        several = tuple(offered) if len(offered) > 1 else ()
        norms = several if sharing.norms == "mixer" else ()
        scales = several if sharing.scale == "switchable" else ()
        self.scale = Scale(dim, 1.0) if several and sharing.scale == "shared" else None
        self.local = Local(dim, norms)
        self.mix = nn.ModuleDict(
            {
                name: Mix(name, dim, knobs, drop_path, self.scale is None)
                for name, knobs in offered.items()
            }
        )
        self.mlp = (
            one_each(several, lambda: Mlp(dim, ratio, drop_path))
            if sharing.feed_forward == "mixer"
            else Mlp(dim, ratio, drop_path, norms, scales)
        )
        self.apart = bool(norms or scales)

    def forward(self, x: Tensor, block: Block) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        named = (block.mixer,) if self.apart else ()
        scale = () if self.scale is None else (self.scale,)
        x = self.mix[block.mixer](self.local(x, *named), *scale, **block.options)
        return cast(Tensor, chosen(self.mlp, block.mixer)(x, block.ratio, *named))

    def origins(self, mixer: str) -> dict[str, str]:
        """Return where a mixer finds what others have in one place: a layer's name, ours."""
        found = {
            name: f"{name}.{mixer}"
            for name, layer in self.named_modules()
            if isinstance(layer, OneEach)
        }
        return found if self.scale is None else found | {f"mix.{mixer}.scale": "scale"}


class Network(Intermediates):
    """The network of a space: a supernet, or a stand-alone model if the space holds one.

    It follows timm's conventions: `forward_features`, `forward_head`, `num_classes`,
    `reset_classifier`, `get_classifier`, `num_features`; a stand-alone network also has one
    feature a stage (`mixnas.features`).

    Args:
        space: the search space.
        num_classes: classes of the head, the space's by default; 0 for features only.
        in_chans: channels of the images.
        drop_path: probability that a sample skips a branch of the last block in training; it
            rises linearly from 0 at the first (Huang et al. 2016, equation 4, as in DeiT). For
            stand-alone networks: a supernet's depth is the draw's.
        sharing: what the mixers of a supernet's block have in common.

    Raises:
        InvalidOption: if the probability is not in [0, 1).
    """

    forward: Callable[..., Tensor]

    recomputed: Callable[..., Tensor] | None = None

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int | None = None,
        in_chans: int = 3,
        drop_path: float = 0.0,
        sharing: Sharing = SHARED,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise InvalidOption(f"drop_path={drop_path!r} must be at least 0 and below 1")
        self.space = space
        self._sole = space.sole
        self.sharing = sharing
        self.in_chans = in_chans
        self.num_classes = space.classes if num_classes is None else num_classes
        width = {stride: max(space.genes[f"s{stride}.width"]) for stride in space.strides}
        self.stems = nn.ModuleDict(
            {
                kind: stems.create(kind, width[STEM_STRIDES[kind]], in_chans)
                for kind in space.genes["stem"]
            }
        )
        self.merges = nn.ModuleDict(
            {str(coarse): Merge(width[fine], width[coarse]) for fine, coarse in pairwise(width)}
        )
        blocks = sum(space.blocks(stride) for stride in width)
        rates = iter([drop_path * index / max(1, blocks - 1) for index in range(blocks)])
        self.stages = nn.ModuleDict({str(stride): self._stage(stride, rates) for stride in width})
        last = [stride for stride in width if 2 * stride not in width or _optional(space, stride)]
        self.norms = nn.ModuleDict({str(stride): LayerNorm(width[stride]) for stride in last})
        self.num_features = max(width[stride] for stride in last)
        self.head = self._classifier()
        self.feature_info = [] if self._sole is None else _feature_info(self._sole)

    def _stage(self, stride: int, rates: Iterator[float]) -> nn.ModuleList:
        genes = self.space.genes
        width = max(genes[f"s{stride}.width"])
        return nn.ModuleList(
            MixBlock(
                width,
                {m: self.space.knobs(at, m) for m in genes[f"{at}.mixer"]},
                max(genes[f"{at}.ratio"]),
                next(rates),
                self.sharing,
            )
            for at in (f"s{stride}.b{i}" for i in range(self.space.blocks(stride)))
        )

    def _classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return Classifier(self.num_features, self.num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, untrained classifier in place (0: features only)."""
        self.num_classes = num_classes
        reference = next(self.parameters())
        self.head = self._classifier().to(reference.device, reference.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's activations again in the backward pass, to save memory."""
        self.recomputed = recomputer() if enable else None

    def _arch(self, arch: Architecture | None) -> Architecture:
        arch = arch or self._sole
        if arch is None:
            raise NotInSpace(
                f"the network of space '{self.space.name}' holds many architectures: "
                "give one, network(images, arch)"
            )
        return arch

    def forward_features(self, images: Tensor, arch: Architecture | None = None) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to the last stage's ``(B, C, h, w)``, normalised."""
        arch = self._arch(arch)
        x = self.begin(images, arch)
        for index in range(self.remaining(arch)):
            for module, choice in self._passed(index, arch):
                x = self._step(module, x, choice)  # a map is freed as soon as the next is there
        return self.finish(x, arch)

    def begin(self, images: Tensor, arch: Architecture | None = None) -> Tensor:
        """Compute the stem's map."""
        arch = self._arch(arch)
        x = images.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.stems[arch.stem.kind](x, arch.stages[0].width))

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Compute a stage's map from the one before it."""
        for module, choice in self._passed(index, self._arch(None)):
            x = self._step(module, x, choice)
        return x

    def _passed(self, index: int, arch: Architecture) -> list[tuple[nn.Module, Block | int]]:
        """Return the merge before a stage, and its blocks, each with what it is told."""
        stage, stride = arch.stages[index], str(arch.stem.stride << index)
        blocks = cast(nn.ModuleList, self.stages[stride])
        merge = [(self.merges[stride], stage.width)] if index else []
        return [*merge, *zip(blocks, stage.blocks, strict=False)]

    def _step(self, module: nn.Module, x: Tensor, choice: Block | int) -> Tensor:
        again = self.recomputed if isinstance(choice, Block) else None
        return again(module, x, choice) if again else cast(Tensor, module(x, choice))

    def finish(self, x: Tensor, arch: Architecture | None = None) -> Tensor:
        """Normalise the last stage's map."""
        arch = self._arch(arch)
        stride = str(arch.stem.stride << len(arch.stages) - 1)
        return cast(Tensor, self.norms[stride](x)) if stride in self.norms else x

    def remaining(self, arch: Architecture | None = None) -> int:
        """Return how many stages there are, of those that an architecture has."""
        arch = self._arch(arch)
        return sum(str(arch.stem.stride << i) in self.stages for i in range(len(arch.stages)))

    def cut(self, count: int, norm: bool) -> None:
        """Drop the stages behind the first so many, and the last norm if told."""
        first = self._arch(None).stem.stride
        kept = {str(first << index) for index in range(count)}
        for parts in (self.stages, self.merges):
            for stride in set(parts) - kept:
                del parts[stride]
        if norm:
            self.norms = nn.ModuleDict()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Average ``(B, C, h, w)`` over space and classify it into ``(B, num_classes)``."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor, arch: Architecture | None = None) -> Tensor:  # type: ignore[no-redef]
        """Classify ``(B, in_chans, H, W)`` by one architecture into ``(B, num_classes)``.

        Args:
            images: a batch of images.
            arch: one architecture of the space; may be left out where there is only one.

        Raises:
            NotInSpace: if no architecture is given and there are several.
        """
        return self.forward_head(self.forward_features(images, arch))

    def extract(self, arch: Architecture) -> "Network":
        """Return the stand-alone network of an architecture, with copies of its weights.

        Raises:
            NotInSpace: if the architecture is not of this space.
        """
        reference = next(self.parameters())
        with torch.device("meta"):
            small = Network(self.space.only(arch), self.num_classes, self.in_chans)
        small = small.to(reference.dtype).to_empty(device=reference.device)
        for buffer in small.buffers():
            buffer.zero_()
        image = torch.zeros(
            1, self.in_chans, 32, 32, device=reference.device, dtype=reference.dtype
        )
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            extract_weights(self, small, lambda: self(image, arch), _origins(self, arch))
        finally:
            for module, training in modes:
                module.training = training
        return small.train(self.training)


def _origins(network: Network, arch: Architecture) -> dict[str, str]:
    """Return what the supernet calls those layers that the stand-alone network names otherwise."""
    found: dict[str, str] = {}
    for index, stage in enumerate(arch.stages):
        stride = str(arch.stem.stride << index)
        for i, block in enumerate(stage.blocks):
            at = f"stages.{stride}.{i}"
            ours = cast(MixBlock, network.get_submodule(at)).origins(block.mixer)
            found |= {f"{at}.{plain}": f"{at}.{own}" for plain, own in ours.items()}
    return found


def _feature_info(arch: Architecture) -> list[dict[str, Any]]:
    """Describe the map of each stage; a stage without blocks passes its merge's on."""
    info = []
    for index, stage in enumerate(arch.stages):
        stride = arch.stem.stride << index
        module = f"merges.{stride}" if index else f"stems.{arch.stem.kind}"
        if stage.blocks:
            module = f"stages.{stride}.{len(stage.blocks) - 1}"
        info.append({"num_chs": stage.width, "reduction": stride, "module": module})
    return info


def _optional(space: SearchSpace, stride: int) -> bool:
    """Say whether the stage after this one may be absent."""
    return 0 in space.genes[f"s{2 * stride}.depth"]


def build(
    arch: Architecture, num_classes: int = 1000, in_chans: int = 3, drop_path: float = 0.0
) -> Network:
    """Build the stand-alone network of an architecture, untrained.

    Args:
        arch: the architecture.
        num_classes: classes of the head; 0 for features only.
        in_chans: channels of the images.
        drop_path: of the last block, as in `Network`.

    Raises:
        InvalidOption: if `drop_path` is not in [0, 1).
    """
    genes: dict[str, tuple[Any, ...]] = {"stem": (arch.stem.kind,)}
    for index, stage in enumerate(arch.stages):
        at = f"s{arch.stem.stride << index}"
        genes |= {f"{at}.depth": (len(stage.blocks),), f"{at}.width": (stage.width,)}
        for i, block in enumerate(stage.blocks):
            genes[f"{at}.b{i}.mixer"] = (block.mixer,)
            genes |= {f"{at}.b{i}.{block.mixer}.{k}": (v,) for k, v in block.knobs}
            genes[f"{at}.b{i}.ratio"] = (block.ratio,)
    space = SearchSpace(arch.id, 224, num_classes, genes)
    return Network(space, num_classes, in_chans, drop_path)


@dataclass(frozen=True)
class Part:
    """A module of a network that can be built, counted and timed alone.

    Attributes:
        kind: stem, local, mixer, mlp, merge or head.
        spec: what `build` needs, hashable.
        shape: its input without the batch, ``(C, H, W)``.
    """

    kind: str
    spec: tuple[Any, ...]
    shape: tuple[int, int, int]

    def build(self) -> nn.Module:
        """Return the module, freshly initialised; call it on ``(B, C, H, W)``."""
        return _BUILDERS[self.kind](*self.spec)


class _Stem(nn.Module):
    """A stem at its one width."""

    def __init__(self, kind: str, width: int, in_chans: int) -> None:
        super().__init__()
        self.width = width
        self.stem = stems.create(kind, width, in_chans)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images, self.width)


class _Head(nn.Module):
    """The last norm, the mean and the classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.head = Classifier(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(dim=(2, 3)))


_BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "stem": _Stem,
    "local": Local,
    "mixer": lambda name, dim, knobs: Mix(name, dim, {knob: (value,) for knob, value in knobs}),
    "mlp": Mlp,
    "merge": Merge,
    "head": _Head,
}


def walk(arch: Architecture) -> tuple[Segment, ...]:
    """Return the segments of an architecture, in order; `parts` takes each apart."""
    return tuple(_walk(arch))


def _walk(arch: Architecture) -> Iterator[Segment]:
    stride = arch.stem.stride
    yield ("stem", arch.stem.kind, arch.stages[0].width)
    for index, stage in enumerate(arch.stages):
        if index:
            stride *= 2
            yield ("merge", stride, arch.stages[index - 1].width, stage.width)
        for block in stage.blocks:
            yield ("block", stride, stage.width, block)
    yield ("head", stride, arch.stages[-1].width)


def parts(segment: Segment, *, image: int, classes: int, in_chans: int = 3) -> tuple[Part, ...]:
    """Return the parts of a segment at a given image, classes and image channels."""
    kind, *rest = segment
    if kind == "stem":
        return (Part("stem", (*rest, in_chans), (in_chans, image, image)),)
    stride, width = rest[:2]
    if kind == "merge":
        side = -(-image // (stride // 2))
        return (Part("merge", (width, rest[2]), (width, side, side)),)
    side = -(-image // stride)
    shape = (width, side, side)
    if kind == "head":
        return (Part("head", (width, classes), shape),)
    block: Block = rest[2]
    return (
        Part("local", (width,), shape),
        Part("mixer", (block.mixer, width, block.knobs), shape),
        Part("mlp", (width, block.ratio), shape),
    )
