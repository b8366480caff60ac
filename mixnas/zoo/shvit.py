"""SHViT: single-head attention behind a 16x16 stem (Yun and Ro, CVPR 2024, arXiv 2401.16456)."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from timm.layers import SqueezeExcite
from torch import Tensor, nn

from mixnas.checkpointing import Blocks
from mixnas.errors import InvalidOption
from mixnas.features import Size
from mixnas.folding import affine
from mixnas.mixers.single_head import KEY_WIDTH, SingleHead
from mixnas.zoo.layers import Classified, ConvNorm
from mixnas.zoo.system import Options, State, System, Variant, rounded

LEAST = 8
"""The stem starts with an eighth of the first width, so no width is below this."""


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        return x + self.branch(x)

    def folded(self) -> nn.Module:
        """Return one convolution where the branch is one: x is a one in its kernel's middle."""
        conv = self.branch
        if not isinstance(conv, nn.Conv2d):
            return self
        middle = conv.kernel_size[0] // 2
        conv.weight[:, :, middle, middle] += 1
        return conv


def local(dim: int, gain: float = 1.0) -> Residual:
    """Return ``x + BN(depth-wise 3x3 (x))``, whose norm starts at the given weight."""
    return Residual(ConvNorm(dim, dim, 3, groups=dim, gain=gain))


def feed_forward(dim: int) -> Residual:
    """Return ``x + BN(W2 relu(BN(W1 x)))`` of twice the width; the last norm starts at 0."""
    steps = {
        "expand": ConvNorm(dim, 2 * dim),
        "act": nn.ReLU(),
        "reduce": ConvNorm(2 * dim, dim, gain=0.0),
    }
    return Residual(nn.Sequential(OrderedDict(steps)))


def halve(dim: int, out: int) -> nn.Sequential:
    """Return the bottleneck of four times the width that halves the map and sets its width.

    A norm stands behind each convolution. The gate is squeeze and excitation with a quarter of
    the channels, rounded up to a multiple of 8, and a sigmoid.
    """
    hidden = 4 * dim
    steps = {
        "expand": ConvNorm(dim, hidden),
        "act": nn.ReLU(),
        "halve": ConvNorm(hidden, hidden, 3, 2, groups=hidden),
        "act_halved": nn.ReLU(),
        "gate": SqueezeExcite(hidden, 0.25),
        "reduce": ConvNorm(hidden, out),
    }
    return nn.Sequential(OrderedDict(steps))


def merge(dim: int, out: int) -> Blocks:
    """Return what stands between two stages: local and feed-forward on either side of `halve`."""
    return Blocks(local(dim), feed_forward(dim), halve(dim, out), local(out), feed_forward(out))


def block(dim: int, partial: int, key_width: int, attends: bool) -> nn.Sequential:
    """Return a block: local, single-head attention if the stage has any, feed-forward.

    Every branch ends in a norm that starts at 0: a new block passes its input on.
    """
    steps: dict[str, nn.Module] = {"local": local(dim, gain=0.0)}
    if attends:
        mixer = SingleHead(dim, partial=partial / dim, key_width=key_width)
        for projection in (mixer.fused, mixer.project):  # torch's own for a 1x1 convolution
            bound = projection.weight.shape[-1] ** -0.5
            nn.init.uniform_(projection.weight, -bound, bound)
        steps["mix"] = Residual(mixer)
    steps["feed"] = feed_forward(dim)
    return nn.Sequential(OrderedDict(steps))


class NormLinear(nn.Module):
    """A linear classifier behind a batch norm; its weights start normal, of deviation 0.02.

    The published normal is cut off at a hundred deviations, which is no cut.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        self.linear = nn.Linear(features, classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, features)`` to ``(B, classes)``."""
        return self.linear(self.norm(x))

    def folded(self) -> nn.Linear:
        """Return one linear layer: the norm is folded forwards, into what reads it."""
        linear = self.linear
        scale, shift = affine(self.norm)
        weight = linear.weight.double()
        bias = linear.bias.double() + weight @ shift
        linear.weight = nn.Parameter((weight * scale).to(linear.weight.dtype))
        linear.bias = nn.Parameter(bias.to(linear.bias.dtype))
        return linear


class Stage(nn.Module):
    """What comes before the blocks (nothing, or a `merge`), and the blocks."""

    def __init__(self, before: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge = before
        self.blocks = Blocks(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the stage's width and size."""
        return self.blocks(self.merge(x))


class SHViT(Classified):
    """A stem of four 3x3 convolutions of stride 2, stages of blocks, mean, norm and linear.

    Images of any size will do: every stride-2 step rounds up. Folded (`mixnas.fuse`) it has the
    published parameters and FLOPs.

    Args:
        dims: width of each stage; at least 8.
        depths: blocks of each stage.
        partials: channels of each stage that attend; without effect where none do.
        attends: whether each stage's blocks have attention (the authors' types "s" and "i").
        key_widths: channels of query and key in each stage, 16 by default.
        merges: whether the map is halved between each two stages; where not, their widths are
            the same. True by default.
        distillation: a second classifier, `head_dist`, for a teacher's labels. In evaluation the
            mean of both is returned, in training both, as a pair.
        num_classes: classes of the head; 0 for features only.
        in_chans: channels of the images.
        image: not used: no layer depends on it.

    Raises:
        InvalidOption: if the settings do not make a network.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        partials: Sequence[int],
        attends: Sequence[bool],
        key_widths: Sequence[int] | None = None,
        merges: Sequence[bool] | None = None,
        distillation: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        image: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__()
        stages = len(dims)
        key_widths = [KEY_WIDTH] * stages if key_widths is None else key_widths
        merges = [True] * (stages - 1) if merges is None else merges
        rows = {"depths": depths, "partials": partials, "attends": attends}
        _check_lengths(stages, {**rows, "key_widths": key_widths}, merges)
        _check_widths(dims, partials, attends, key_widths, merges)
        self.num_features = dims[-1]
        self.distillation = distillation
        self.stem = stem(in_chans, dims[0])
        self.stages = nn.Sequential()
        before: nn.Module = nn.Identity()
        for i, dim in enumerate(dims):
            if i:
                before = merge(dims[i - 1], dim) if merges[i - 1] else nn.Identity()
            settings = dim, partials[i], key_widths[i], bool(attends[i])
            self.stages.append(Stage(before, [block(*settings) for _ in range(depths[i])]))
        self.feature_info = [
            {"num_chs": dim, "reduction": 16 << sum(merges[:i]), "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]
        self.reset_classifier(num_classes)

    def begin(self, images: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, dims[0], H / 16, W / 16)``, rounded up."""
        return self.stem(images)

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Apply a stage."""
        return self.stages[index](x)

    def finish(self, x: Tensor) -> Tensor:
        """Keep the last stage's map, ``(B, dims[-1], H / 64, W / 64)``: the norm is the head's."""
        return x

    def remaining(self) -> int:
        """Return the number of stages."""
        return len(self.stages)

    def cut(self, count: int, norm: bool) -> None:
        """Drop the stages behind the first so many."""
        self.stages = self.stages[:count]

    def forward_head(  # type: ignore[override]
        self, x: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool and classify; with distillation, the mean of both heads or, training, a pair."""
        x = self.pool(x)
        if pre_logits or not self.distillation:
            return x if pre_logits else self.head(x)
        both = self.head(x), self.head_dist(x)
        return both if self.training else (both[0] + both[1]) / 2

    def classifier(self, classes: int) -> NormLinear:
        """Return a new classifier."""
        return NormLinear(self.num_features, classes)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer of the classifier."""
        return self.head.linear if isinstance(self.head, NormLinear) else self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put new, untrained classifiers in place (0: features only)."""
        if self.distillation:
            super().reset_classifier(num_classes)
            self.head_dist = self.head
        super().reset_classifier(num_classes)


def stem(channels: int, width: int) -> nn.Sequential:
    """Return four 3x3 convolutions of stride 2, ReLU between, the width doubling to the last."""
    widths = [channels, width // 8, width // 4, width // 2, width]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [ConvNorm(narrow, wide, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _check_lengths(stages: int, rows: dict[str, Sequence[Any]], merges: Sequence[bool]) -> None:
    """Every stage needs its own settings."""
    for name, values in rows.items():
        if len(values) != stages or not stages:
            raise InvalidOption(f"SHViT: {name} has {len(values)} entries, dims {stages}; one each")
    if len(merges) != stages - 1:
        raise InvalidOption(
            f"SHViT: merges has {len(merges)} entries; {stages} stages have {stages - 1} between"
        )


def _check_widths(
    dims: Sequence[int],
    partials: Sequence[int],
    attends: Sequence[bool],
    key_widths: Sequence[int],
    merges: Sequence[bool],
) -> None:
    """Widths must be possible, and the same where no merge changes them."""
    if min(dims) < LEAST:
        raise InvalidOption(f"SHViT: dims={tuple(dims)}: a width below {LEAST} is too narrow")
    for i, dim in enumerate(dims):
        if attends[i] and not 1 <= partials[i] <= dim:
            raise InvalidOption(f"SHViT: partials[{i}]={partials[i]} must lie in 1..{dim}")
        if attends[i] and key_widths[i] < 1:
            raise InvalidOption(f"SHViT: key_widths[{i}]={key_widths[i]} must be at least 1")
        if i and not merges[i - 1] and dims[i - 1] != dim:
            raise InvalidOption(
                f"SHViT: dims[{i}]={dim} differs from dims[{i - 1}]={dims[i - 1]} without a merge "
                f"between; set merges[{i - 1}] or equal widths"
            )


def widen(options: Options, factor: float) -> dict[str, Any]:
    """Return options of that many times the width; the key width, one head's, stays."""
    dims = [rounded(dim * factor, LEAST) for dim in options["dims"]]
    partials = [
        min(rounded(partial * factor, 1), dim)
        for partial, dim in zip(options["partials"], dims, strict=True)
    ]
    return {**options, "dims": tuple(dims), "partials": tuple(partials)}


NAMES = {
    "patch_embed": "stem",
    "downsample": "merge",
    "m": "branch",
    "c": "conv",
    "bn": "norm",
    "l": "linear",
    "conv": "local",
    "mixer": "mix",
    "ffn": "feed",
    "pw1": "expand",
    "pw2": "reduce",
    "conv1": "expand",
    "conv2": "halve",
    "conv3": "reduce",
    "se": "gate",
    "pre_norm": "part_norm",
}
"""The authors' and timm's names of layers, and ours."""

PROJECTIONS = (("qkv", "fused"), ("proj.1", "project"))
"""Convolutions with norms that are a mixer's linear layers here."""

MERGE = {"0.0": "0", "0.1": "1", "1": "2", "2.0": "3", "2.1": "4"}
"""Where the authors' first three modules of a stage stand in a merge."""


def translate(state: State) -> State:
    """Turn a state dict in the authors' names, or in timm's, into ours.

    The authors' stages are ``blocks1`` to ``blocks3``, the merge being the first three modules of
    a stage; timm's are ``stages.0`` to ``stages.2`` with a ``downsample``. Matrices that were
    saved as linear layers' serve as 1x1 convolutions', as in the authors' own loader.
    """
    translated = {}
    for key, tensor in state.items():
        name = ".".join(NAMES.get(part, part) for part in _staged(key, state).split("."))
        for theirs, ours in PROJECTIONS:
            name = name.replace(f".{theirs}.conv.", f".{ours}.")
            name = name.replace(f".{theirs}.norm.", f".{ours}_norm.")
        translated[name] = _shaped(name, tensor)
    return translated


def _staged(key: str, state: State) -> str:
    """Name a layer of the authors' stages by timm's."""
    found = re.match(r"blocks(\d+)\.((\d+)(?:\.\d+)?)\.(.*)", key)
    if found is None:
        return key
    number, path, place, rest = found.groups()
    stage = f"stages.{int(number) - 1}"
    if f"blocks{number}.1.conv1.c.weight" not in state:
        return f"{stage}.blocks.{place}.{rest}"
    if path in MERGE:
        return f"{stage}.merge.{MERGE[path]}.{rest}"
    return f"{stage}.blocks.{int(place) - 3}.{rest}"


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """Give a matrix the shape that our layer keeps it in."""
    if name.endswith((".fused.weight", ".project.weight")) and tensor.dim() > 1:
        return tensor.flatten(1)[None]
    if name.startswith(("stem", "stages")) and tensor.dim() == 2:
        return tensor[:, :, None, None]
    return tensor


def _variant(
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    partials: tuple[int, ...],
    **published: Any,
) -> Variant:
    options = {
        "dims": dims,
        "depths": depths,
        "partials": partials,
        "attends": (False, True, True),
        "key_widths": (KEY_WIDTH,) * 3,
        "merges": (True, True),
        "distillation": False,
    }
    note = "published figures are those of the folded network; parameters are truncated"
    return Variant(options, note=note, **published)


SYSTEM = System(
    title="SHViT",
    mixer="single_head",
    paper="Yun and Ro, CVPR 2024, arXiv 2401.16456",
    network=SHViT,
    widen=widen,
    variants={
        "shvit_s1": _variant(
            (128, 224, 320),
            (2, 4, 5),
            (32, 48, 68),
            image=224,
            params=6.3e6,
            flops=241e6,
            accuracy=72.8,
        ),
        "shvit_s2": _variant(
            (128, 308, 448),
            (2, 4, 5),
            (32, 66, 96),
            image=224,
            params=11.4e6,
            flops=366e6,
            accuracy=75.2,
        ),
        "shvit_s3": _variant(
            (192, 352, 448),
            (3, 5, 5),
            (48, 75, 96),
            image=224,
            params=14.2e6,
            flops=601e6,
            accuracy=77.4,
        ),
        "shvit_s4": _variant(
            (224, 336, 448),
            (4, 7, 6),
            (48, 72, 96),
            image=256,
            params=16.5e6,
            flops=986e6,
            accuracy=79.4,
        ),
    },
    translate=translate,
)
