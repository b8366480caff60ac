"""AFFNet (Huang et al., ICCV 2023): MobileNetV2 blocks and adaptive frequency filters."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from timm.layers import DropPath, make_divisible
from torch import Tensor, nn

from mixnas.checkpointing import Blocks
from mixnas.elastic import GroupNorm
from mixnas.errors import InvalidOption, did_you_mean
from mixnas.features import Size
from mixnas.mixers.aff import ACTIVATIONS, AFF, GROUPS, SLOPE
from mixnas.zoo.layers import Classified, ConvNorm
from mixnas.zoo.system import Options, State, System, Variant, rounded, settings


class Pointwise(nn.Module):
    """An activation without weights, by its name in `mixnas.mixers.aff.ACTIVATIONS`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Activate each number."""
        return ACTIVATIONS[self.name](x)


def activate(name: str, channels: int) -> nn.Module:
    """Return an activation; ``"prelu"`` has one slope for each channel."""
    return nn.PReLU(channels, init=SLOPE) if name == "prelu" else Pointwise(name)


def convolution(
    channels: int, out: int, kernel: int = 1, stride: int = 1, activation: str = "", **form: int
) -> nn.Sequential:
    """Return a convolution with batch norm, and an activation if one is named."""
    layer = ConvNorm(channels, out, kernel, stride, **form)
    return nn.Sequential(layer, *([activate(activation, out)] if activation else []))


class DeviationNorm(nn.Module):
    """``(x - mean) / (deviation + eps)`` over the channels of each position, then an affine map.

    A layer norm but for its eps, which is added to the deviation and not to the variance: the
    ``layer_norm`` of the authors' code on maps.

    Args:
        channels: of the map.
        eps: added to the standard deviation.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)``; a position of equal channels has a finite gradient."""
        x = x - x.mean(dim=1, keepdim=True)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = x / (length * x.shape[1] ** -0.5 + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer_norm_2d": GroupNorm,
    "layer_norm": DeviationNorm,
    "batch_norm": nn.BatchNorm2d,
    "identity": lambda channels: nn.Identity(),
}
"""Norms of the filter blocks, by the names of the authors' options."""

STRIDES = {32: ((2, 2), (1, 1)), 16: ((2, 1), (1, 1)), 8: ((1, 1), (1, 2))}
"""By output stride: strides and dilations of the convolutions that open stages 4 and 5."""

POOLS = ("mean", "abs", "rms")


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depth-wise 3x3, 1x1 projection without activation.

    The hidden width is a multiple of 8; a ratio of 1 has no expansion. There is a residual where
    the shape stays.

    Args:
        channels: input channels.
        out: output channels.
        stride: of the depth-wise convolution.
        ratio: hidden channels over input channels.
        activation: behind the first two convolutions.
        dilation: of the depth-wise convolution.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int = 1,
        *,
        ratio: float,
        activation: str,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        hidden = int(make_divisible(round(channels * ratio), 8))
        self.residual = stride == 1 and channels == out
        if ratio != 1:
            self.expand = convolution(channels, hidden, activation=activation)
        elif hidden != channels:
            raise InvalidOption(
                f"affnet: an expansion of 1 takes multiples of 8 channels, not {channels}; "
                "round the widths"
            )
        else:
            self.expand = nn.Sequential()
        self.depthwise = convolution(
            hidden, hidden, 3, stride, activation, groups=hidden, dilation=dilation
        )
        self.project = convolution(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, out, ceil(H / stride), ceil(W / stride))``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class FilterBlock(nn.Module):
    """Channels, then tokens: ``x + AFF(norm(u + convs(u)))`` with u = norm(x).

    The inverted residual has its own residual around u and the filter one around what it reads
    (`mixnas.mixers.aff`), so that x itself is added once (the paper, figure 2, and the code).

    Args:
        channels: of the map.
        ratio: hidden channels of the inverted residual over C.
        activation: of the inverted residual.
        norm: a key of `NORMS`.
        double_skip: adds x after the inverted residual too (off in the authors' networks).
        drop_path: rate at which the branch is dropped in training.
        mixer: options of the filter.
    """

    def __init__(
        self,
        channels: int,
        *,
        ratio: float,
        activation: str,
        norm: str,
        double_skip: bool,
        drop_path: float,
        mixer: Options,
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[norm](channels)
        self.convs = InvertedResidual(channels, channels, ratio=ratio, activation=activation)
        self.norm2 = NORMS[norm](channels)
        self.mixer = AFF(channels, grouping="contiguous", **mixer)
        self.double_skip = double_skip
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        y = self.convs(self.norm1(x))
        x = x + y if self.double_skip else x
        return x + self.drop_path(self.mixer(self.norm2(x if self.double_skip else y)))


class FilterStage(nn.Module):
    """Filter blocks and a norm, projected, and fused with the stage's input.

    Args:
        channels: of the map.
        depth: number of blocks.
        fusion: whether the input is concatenated and projected with them.
        norm: a key of `NORMS`.
        activation: of the network.
        block: the other options of `FilterBlock`.
    """

    def __init__(
        self, channels: int, depth: int, *, fusion: bool, norm: str, activation: str, **block: Any
    ) -> None:
        super().__init__()
        self.blocks = Blocks(
            *(
                FilterBlock(channels, norm=norm, activation=activation, **block)
                for _ in range(depth)
            )
        )
        self.norm = NORMS[norm](channels)
        self.project = convolution(channels, channels)
        self.fusion = convolution(2 * channels, channels, activation=activation) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        y: Tensor = self.project(self.norm(self.blocks(x)))
        return y if self.fusion is None else self.fusion(torch.cat([x, y], dim=1))


class AFFNet(Classified):
    """A MobileViT-like pyramid whose global blocks are adaptive frequency filters.

    A 3x3 convolution of stride 2; stages 1 and 2 of inverted residuals (the second of stride 2);
    stages 3 to 5, each an inverted residual of stride 2 and a filter stage; a 1x1 convolution;
    the mean over space; a linear layer. Any image size and shape works: maps are
    ``ceil(size / 2)`` at each step, and the filters' weights are those of channels alone.

    The authors' settings file was not available, and their code leaves two choices to it:

    * `activation`: ``"silu"`` here. Evidence: the code base is that of MobileViT, whose settings
      say swish, and its counts carry no sign of the choice. The code's own default is
      ``"relu"``, which the paper's text describes for the mask network. The weights fit either;
      the outputs do not.
    * `norm`: ``"layer_norm_2d"`` here, one group norm over a sample's channels and positions.
      Evidence: the network's fallback, MobileViTv2's settings and a port have it. The other,
      ``"layer_norm"``, is the default of the code's argument parser: at each position over
      channels, eps added to the deviation. Equal parameters, other outputs.

    Initialisation as the code's, whose initialising loop does not reach any layer: PyTorch's own
    for convolutions, N(0, 0.02) for all of the filters, Xavier uniform for the classifier.

    Args:
        widths: channels of the five stages; the last three are multiples of `groups`.
        depths: inverted residuals in stages 1 and 2.
        blocks: filter blocks in stages 3, 4 and 5.
        expansion: hidden over input channels of the inverted residuals outside filter blocks.
        ratio: the same inside filter blocks (the code's ``ffn_dim`` over the width).
        stem: channels of the first convolution.
        head_factor: the last convolution's channels over the last stage's...
        head_limit: ...and their limit.
        activation: of the whole network: ``"silu"``, ``"relu"`` or another of
            `mixnas.mixers.aff.ACTIVATIONS`, or ``"prelu"``.
        mask_activation: of the filters' mask networks alone; None: the network's.
        norm: of the filter blocks: a key of `NORMS`.
        fusion: whether each filter stage is fused with its input (not so in stages 4 and 5 of
            the code's unpublished larger networks).
        groups: of channels in the mask networks.
        mask_expansion: hidden channels of the mask networks over their input's.
        threshold: of the masks' soft-shrink.
        double_skip: a second residual in each filter block, which the code has and leaves off.
        pool: ``"mean"``; or the code's ``"abs"``, the mean of absolute values, and ``"rms"``,
            one over the root mean square.
        output_stride: 32; 16 or 8 keep the maps of stage 5, or 4 and 5, larger, as the code does
            for dense prediction: stride 1, and behind it dilation.
        dropout: before the classifier, in training.
        drop_path: rate at which filter branches are dropped in training, equal for all; the
            code has it and leaves it at 0.
        num_classes: of the classifier; 0 for features only.
        in_chans: channels of the images.
        image: not used: the network is the same at every size.

    Raises:
        InvalidOption: if a setting is unknown or impossible.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 320),
        depths: Sequence[int] = (1, 3),
        blocks: Sequence[int] = (2, 4, 3),
        expansion: float = 4.0,
        ratio: float = 2.0,
        stem: int = 16,
        head_factor: float = 4.0,
        head_limit: int = 960,
        activation: str = "silu",
        mask_activation: str | None = None,
        norm: str = "layer_norm_2d",
        fusion: Sequence[bool] = (True, True, True),
        groups: int = GROUPS,
        mask_expansion: int = 1,
        threshold: float = 0.01,
        double_skip: bool = False,
        pool: str = "mean",
        output_stride: int = 32,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        image: int | tuple[int, int] = 256,
    ) -> None:
        super().__init__()
        mask_activation = activation if mask_activation is None else mask_activation
        check(widths, depths, blocks, fusion, groups)
        for setting, value, known in (
            ("activation", activation, (*ACTIVATIONS, "prelu")),
            ("mask_activation", mask_activation, (*ACTIVATIONS, "prelu")),
            ("norm", norm, NORMS),
            ("pool", pool, POOLS),
            ("output_stride", output_stride, STRIDES),
        ):
            if value not in known:
                cure = did_you_mean(str(value), map(str, known))
                raise InvalidOption(f"affnet: no {setting} '{value}'; {cure}")
        self.pooling = pool
        outer: dict[str, Any] = {"ratio": expansion, "activation": activation}
        inner: dict[str, Any] = {
            "norm": norm,
            "activation": activation,
            "ratio": ratio,
            "double_skip": double_skip,
            "drop_path": drop_path,
            "mixer": {
                "activation": mask_activation,
                "groups": groups,
                "expansion": mask_expansion,
                "threshold": threshold,
            },
        }
        self.stem = convolution(in_chans, stem, 3, 2, activation)
        last, strides, dilations = widths[-1], *STRIDES[output_stride]
        pairs = list(zip((stem, *widths), widths, strict=False))
        shallow = (
            Blocks(
                InvertedResidual(before, width, stride, **outer),
                *(InvertedResidual(width, width, **outer) for _ in range(depth - 1)),
            )
            for (before, width), depth, stride in zip(pairs[:2], depths, (1, 2), strict=True)
        )
        forms = zip(pairs[2:], blocks, fusion, (2, *strides), (1, *dilations), strict=True)
        deep = (
            nn.Sequential(
                InvertedResidual(before, width, stride, dilation=dilation, **outer),
                FilterStage(width, depth, fusion=fused, **inner),
            )
            for (before, width), depth, fused, stride, dilation in forms
        )
        self.stages = nn.Sequential(*shallow, *deep)
        reductions = accumulate((2, 1, 2, 2, *strides), mul)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{index}"}
            for index, (width, reduction) in enumerate(
                zip(widths, list(reductions)[1:], strict=True)
            )
        ]
        self.num_features = min(int(head_factor * last), head_limit)
        self.expand: nn.Module = convolution(last, self.num_features, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def begin(self, images: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to the stem's ``(B, C, ceil(H / 2), ceil(W / 2))``."""
        features: Tensor = self.stem(images)
        return features

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Apply a stage."""
        features: Tensor = self.stages[index](x)
        return features

    def finish(self, x: Tensor) -> Tensor:
        """Map the last stage's output to ``(B, num_features, ceil(H / 32), ceil(W / 32))``."""
        features: Tensor = self.expand(x)
        return features

    def shown(self, x: Tensor, index: int, size: Size, norm: bool, output_fmt: str) -> Tensor:
        """Return the feature: there is no last norm."""
        return x

    def remaining(self) -> int:
        """Return the number of stages."""
        return len(self.stages)

    def cut(self, count: int, norm: bool) -> None:
        """Drop the stages behind the first so many."""
        self.stages = self.stages[:count]

    def drop_head(self) -> None:
        """Drop the classifier and the convolution before it."""
        super().drop_head()
        self.expand = nn.Identity()

    def pool(self, x: Tensor) -> Tensor:
        """Reduce the features to ``(B, num_features)``, with dropout in training."""
        if self.pooling == "rms":
            y = x.square().mean(dim=(2, 3)).rsqrt()
        else:
            y = (x if self.pooling == "mean" else x.abs()).mean(dim=(2, 3))
        dropped: Tensor = self.dropout(y)
        return dropped

    def classifier(self, classes: int) -> nn.Linear:
        """Return a new classifier: Xavier uniform, bias 0."""
        head = nn.Linear(self.num_features, classes)
        nn.init.xavier_uniform_(head.weight)
        nn.init.zeros_(head.bias)
        return head


def check(
    widths: Sequence[int],
    depths: Sequence[int],
    blocks: Sequence[int],
    fusion: Sequence[bool],
    groups: int,
) -> None:
    """Refuse shapes that no network of this system has.

    Raises:
        InvalidOption: naming the first setting that does not fit.
    """
    counts = {"widths": (widths, 5), "depths": (depths, 2), "blocks": (blocks, 3)}
    for name, (values, count) in {**counts, "fusion": (fusion, 3)}.items():
        if len(values) != count:
            raise InvalidOption(f"affnet: {name}={values} must be {count} values, one a stage")
    for name, (values, _) in counts.items():
        if min(values) < 1:
            raise InvalidOption(f"affnet: {name}={values} must all be at least 1")
    if groups < 1 or any(width % groups for width in widths[2:]):
        raise InvalidOption(
            f"affnet: widths={widths}: the last three must be multiples of groups={groups}"
        )


KEYS = (
    (r"^conv_1\.", "stem."),
    (r"^layer_(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"^conv_1x1_exp\.", "expand."),
    (r"^classifier\.fc\.", "head."),
    (r"\.block\.exp_1x1\.", ".expand."),
    (r"\.block\.conv_3x3\.", ".depthwise."),
    (r"\.block\.red_1x1\.", ".project."),
    (r"\.conv_proj\.", ".project."),
    (r"\.block\.(conv|norm)\.", r".0.\1."),
    (r"\.block\.act\.", ".1."),
    (r"\.global_rep\.(\d+)\.(norm1|norm2|filter|mlp)\.", r".blocks.\1.\2."),
    (r"\.global_rep\.\d+\.", ".norm."),
    (r"\.mlp\.", ".convs."),
    (r"\.filter\.w1$", ".mixer.weight_in.value"),
    (r"\.filter\.b1$", ".mixer.bias_in.value"),
    (r"\.filter\.w2$", ".mixer.weight_out.value"),
    (r"\.filter\.b2$", ".mixer.bias_out.value"),
)
"""The authors' names, and ours: applied one after the other."""


def translate(state: State) -> State:
    """Turn the authors' state dict (microsoft/TokenMixers, classification) into ours.

    Their mask weights are ``(re/im, group, in, out)``, ours ``(re/im, group, out, in)``; the two
    slopes of a learnt activation of a mask network are one table here.
    """
    ours: State = {}
    for key, tensor in state.items():
        if key.endswith(".filter.act2.weight"):
            continue
        if key.endswith(".filter.act.weight"):
            other = state.get(key.replace(".act.", ".act2."), tensor)
            key, tensor = key.replace("act.weight", "slopes"), torch.cat([tensor, other])
        elif key.endswith((".filter.w1", ".filter.w2")):
            tensor = tensor.transpose(-2, -1)
        for pattern, replacement in KEYS:
            key = re.sub(pattern, replacement, key)
        ours[key.replace(".filter.slopes", ".mixer.slopes.value")] = tensor
    return ours


def widen(options: Options, factor: float) -> dict[str, Any]:
    """Scale every width to a multiple of 8 and of the groups, the head's limit with them."""
    multiple = math.lcm(8, options["groups"])
    return {
        **options,
        "stem": rounded(options["stem"] * factor, 8),
        "head_limit": rounded(options["head_limit"] * factor, 8),
        "widths": tuple(rounded(width * factor, multiple) for width in options["widths"]),
    }


DEFAULTS = settings(AFFNet)
"""What the three published networks have in common."""

SYSTEM = System(
    title="AFFNet",
    mixer="aff",
    paper="Huang et al., Adaptive Frequency Filters As Efficient Global Token Mixers, ICCV 2023, "
    "arXiv 2307.14008; code: microsoft/TokenMixers",
    network=AFFNet,
    widen=widen,
    variants={
        "affnet_et": Variant(
            {**DEFAULTS, "widths": (32, 48, 64, 104, 144), "expansion": 2.0},
            image=256,
            params=1.4e6,
            flops=0.4e9,
            accuracy=73.0,
            note="activation and norm of the published weights unverified",
        ),
        "affnet_t": Variant(
            {**DEFAULTS, "widths": (32, 48, 96, 160, 192), "expansion": 4.0},
            image=256,
            params=2.6e6,
            flops=0.8e9,
            accuracy=77.0,
            note="parameters published truncated; activation and norm unverified",
        ),
        "affnet": Variant(
            {**DEFAULTS, "widths": (32, 64, 128, 256, 320), "expansion": 4.0},
            image=256,
            params=5.5e6,
            flops=1.5e9,
            accuracy=79.8,
            note="parameters published truncated; activation and norm unverified",
        ),
    },
    translate=translate,
)
