"""LITv2: HiLo attention in a pyramid (Pan, Cai and Zhuang, NeurIPS 2022, arXiv 2205.13213)."""

from collections.abc import Sequence
from math import gcd, lcm, sqrt
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

from mixnas import elastic, mixers
from mixnas.checkpointing import Blocks
from mixnas.errors import InvalidOption, InvalidSpace
from mixnas.features import Size
from mixnas.folding import fold
from mixnas.zoo.layers import Classified
from mixnas.zoo.system import Options, State, System, Variant, rounded


class ConvMlp(nn.Module):
    """``W2 GELU(dw3x3(W1 x))``: the depth-wise convolution gives position to every stage.

    Args:
        dim: channels.
        hidden: channels in between.
        dropout: share of the numbers dropped in training, behind GELU and behind W2.
    """

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.local.parameters():
            nn.init.zeros_(parameter)
        nn.init.normal_(self.local.weight, std=sqrt(2 / 9))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        x = self.local(self.expand(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = self.dropout(F.gelu(x)).permute(0, 2, 3, 1)
        return self.dropout(self.reduce(x)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """``x += HiLo(LN x)``, if the stage has attention, and ``x += ConvMlp(LN x)``."""

    def __init__(
        self, dim: int, mixer: nn.Module | None, hidden: int, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.mixer = mixer
        if mixer is not None:
            self.mixer_norm = elastic.LayerNorm(dim)
        self.mlp_norm = elastic.LayerNorm(dim)
        self.mlp = ConvMlp(dim, hidden, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, H, W)``."""
        if self.mixer is not None:
            x = x + self.drop_path(self.mixer(self.mixer_norm(x)))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class PatchEmbed(nn.Module):
    """One linear map of each non-overlapping patch, then layer norm if told.

    A last patch that the image does not fill is padded with zeros, as in the authors'
    dense-prediction code.
    """

    def __init__(self, channels: int, dim: int, patch: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(channels, dim, patch, patch)
        self.norm = elastic.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, dim, ceil(H / patch), ceil(W / patch))``."""
        bottom, right = (-size % self.patch for size in images.shape[2:])
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom))
        return self.norm(self.project(images))


class Merge(nn.Module):
    """Deformable token merging: a 2x2 deformable convolution of stride 2, batch norm, GELU.

    It reads where its input tells it to (one offset for each of the four taps, from a 2x2
    convolution that starts at zero), samples bilinearly and takes zeros outside the map. An odd
    last row or column merges with nothing and is left out, as in the authors' dense-prediction
    code; offsets may still reach into it.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 8, 2, 2)
        self.sample = DeformConv2d(dim, out, 2, 2)
        self.norm: nn.Module = nn.BatchNorm2d(out)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, out, H // 2, W // 2)``."""
        # Sampled places need float32, so half precision ends here for a while, as published.
        full = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.sample.weight, self.sample.bias
        inputs = (t.to(full) for t in (x, self.offset(x), weight, bias))
        x = deform_conv2d(*inputs, stride=2).to(x.dtype)
        return F.gelu(self.norm(x)).contiguous(memory_format=torch.channels_last)

    def folded(self) -> "Merge":
        """Fold the norm into the sampling convolution, which is linear in its weight."""
        fold(self.sample, self.norm)
        self.norm = nn.Identity()
        return self


class Stage(nn.Module):
    """Blocks, whose map is the stage's feature, and a merge behind all but the last stage's."""

    def __init__(self, blocks: Sequence[nn.Module], merge: nn.Module) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.merge = merge


class LITv2(Classified):
    """Patches, stages of blocks that double their width, layer norm, mean, linear.

    Oblong and odd images will do. The authors' classification code takes only square ones whose
    every map is even and divides by its window; for the others this follows their
    dense-prediction code: a last patch is padded, a last odd row or column is left out by the
    merge, HiLo pads to whole windows and crops. Refusing them would be the other choice; on the
    sizes that the classification code takes, both are the same.

    Args:
        dim: width of the first stage, doubled at each next.
        depths: blocks of each stage.
        heads: of HiLo in each stage; they must divide its width.
        windows: side of HiLo's windows in each stage. 1 is plain attention; 0 is no attention at
            all, only the convolutional MLP (the authors' `has_msa` 0).
        alpha: share of the heads that attend to the windows' means, truncated to whole heads.
        mlp_ratio: hidden channels of the MLP in multiples of the width.
        qkv_bias: whether queries, keys and values have a bias.
        scale: factor of the scores, ``head_width ** -0.5`` by default (and for 0).
        patch: side of a patch in pixels.
        patch_norm: whether a layer norm follows the patches.
        dropout: share of the numbers dropped in the MLPs in training.
        drop_path: share of the samples that skip the last block's branches in training, from 0
            at the first block in equal steps; published 0.2, 0.3, 0.5 for S, M, B.
        num_classes: classes of the head; 0 for features only.
        in_chans: channels of the images.
        image: not used: no layer depends on it.

    Raises:
        InvalidOption: if the settings do not make a network.
    """

    def __init__(
        self,
        *,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[int],
        alpha: float = 0.9,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        scale: float | None = None,
        patch: int = 4,
        patch_norm: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        image: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__()
        count = len(depths)
        _check(count, dim, {"heads": heads, "windows": windows})
        dims = [dim * 2**i for i in range(count)]
        attention = {"alpha": alpha, "qkv_bias": qkv_bias, "scale": scale or None}
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.num_features = dims[-1]
        self.least = patch * (2 ** (count - 1) - 1) + 1
        self.stem = PatchEmbed(in_chans, dim, patch, patch_norm)
        self.stages = nn.Sequential()
        for i, width in enumerate(dims):
            hidden = int(width * mlp_ratio)
            blocks = []
            for _ in range(depths[i]):
                mixer = _mixer(width, heads[i], windows[i], attention)
                blocks.append(Block(width, mixer, hidden, dropout, next(rates)))
            last = i == count - 1
            self.stages.append(Stage(blocks, nn.Identity() if last else Merge(width, 2 * width)))
        self.norm: nn.Module = elastic.LayerNorm(self.num_features)
        self.feature_info = [
            {"num_chs": width, "reduction": patch << i, "module": f"stages.{i}.blocks"}
            for i, width in enumerate(dims)
        ]
        self.reset_classifier(num_classes)
        self.apply(_initialise)

    def begin(self, images: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, dim, H / patch, W / patch)``, rounded up.

        Raises:
            InvalidOption: if the last stage would have nothing left.
        """
        height, width = images.shape[2:]
        if min(height, width) < self.least:
            raise InvalidOption(
                f"LITv2: images of {height} x {width} pixels leave nothing to the last stage; give "
                f"{self.least} pixels a side at least"
            )
        return self.stem(images)

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Apply the merge before a stage, and its blocks."""
        if index:
            x = cast(Stage, self.stages[index - 1]).merge(x)
        return cast(Stage, self.stages[index]).blocks(x)

    def finish(self, x: Tensor) -> Tensor:
        """Normalise the last stage's map, ``(B, num_features, H / 32, W / 32)``."""
        return self.norm(x)

    def remaining(self) -> int:
        """Return the number of stages."""
        return len(self.stages)

    def cut(self, count: int, norm: bool) -> None:
        """Drop the stages behind the first so many, and the last norm if told."""
        self.stages = self.stages[:count]
        self.stages[-1].merge = nn.Identity()
        if norm:
            self.norm = nn.Identity()

    def classifier(self, classes: int) -> nn.Module:
        """Return a new classifier."""
        head = super().classifier(classes)
        _initialise(head)
        return head


def _mixer(dim: int, heads: int, window: int, settings: dict[str, Any]) -> mixers.Mixer | None:
    """Return a stage's attention, if it has any."""
    if not window:
        return None
    try:
        return mixers.create("hilo", dim, num_heads=heads, window=window, **settings)
    except InvalidSpace as error:
        raise InvalidOption(f"LITv2: {error}") from None


def _initialise(module: nn.Module) -> None:
    """Fill a linear layer as published; convolutions keep torch's own or their module's.

    The published normal is cut off at a hundred deviations, which is no cut; timm's way of
    drawing it rounds one weight in some ten million to -2.
    """
    if isinstance(module, nn.Linear | elastic.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(count: int, dim: int, rows: dict[str, Sequence[int]]) -> None:
    """Every stage needs its own settings."""
    if not count or dim < 1:
        raise InvalidOption(f"LITv2: dim={dim} and {count} stages; both must be at least 1")
    for name, values in rows.items():
        if len(values) != count:
            raise InvalidOption(
                f"LITv2: {name} has {len(values)} entries, depths {count}; one each"
            )


def widen(options: Options, factor: float) -> dict[str, Any]:
    """Return options of that many times the width; heads keep their width, so there are fewer.

    The first stage's width is such that heads of that width divide every stage with attention.
    """
    dim, heads, windows = (options[name] for name in ("dim", "heads", "windows"))
    head_widths = [max(1, dim * 2**i // count) for i, count in enumerate(heads)]
    attending = [i for i, window in enumerate(windows) if window]
    multiple = lcm(*(head_widths[i] // gcd(head_widths[i], 2**i) for i in attending))
    dim = rounded(dim * factor, multiple)
    heads = tuple(max(1, dim * 2**i // each) for i, each in enumerate(head_widths))
    return {**options, "dim": dim, "heads": heads}


NAMES = {
    "patch_embed": "stem",
    "proj": "project",
    "layers": "stages",
    "attn": "mixer",
    "norm1": "mixer_norm",
    "norm2": "mlp_norm",
    "fc1": "expand",
    "fc2": "reduce",
    "downsample": "merge",
    "dconv": "sample",
    "norm_layer": "norm",
    "l_q": "low_query",
    "l_kv": "low_key_value",
    "l_proj": "low_project",
    "h_qkv": "high_query_key_value",
    "h_proj": "high_project",
}
"""The authors' names of layers, and ours."""

GROUPS = {
    "low_query": 1,
    "low_key_value": 2,
    "low_project": 1,
    "high_query_key_value": 3,
    "high_project": 1,
}
"""HiLo's linear layers, and how many projections each of them holds, one below the other."""


def translate(state: State) -> State:
    """Turn a state dict in the authors' names (``layers.2.blocks.0.attn.l_q``...) into ours."""
    translated = {}
    for key, tensor in state.items():
        key = key.replace("dwconv.dwconv", "local").replace("dconv.conv_offset", "offset")
        path = [NAMES.get(part, part) for part in key.split(".")]
        groups = GROUPS.get(path[-2] if path[1:] else "")
        if groups and tensor.dim() and len(tensor) % groups == 0:
            tensor = tensor.unflatten(0, (groups, -1))
        translated[".".join(path)] = tensor
    return translated


def _variant(dim: int, depth: int, **published: Any) -> Variant:
    options = {
        "dim": dim,
        "depths": (2, 2, depth, 2),
        "heads": tuple(dim * 2**i // 32 for i in range(4)),
        "windows": (0, 0, 2, 1),
        "alpha": 0.9,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "scale": None,
        "patch": 4,
        "patch_norm": True,
        "dropout": 0.0,
        "drop_path": 0.0,
    }
    return Variant(options, image=224, **published)


SYSTEM = System(
    title="LITv2",
    mixer="hilo",
    paper="Pan, Cai and Zhuang, NeurIPS 2022, arXiv 2205.13213",
    network=LITv2,
    widen=widen,
    variants={
        "litv2_s": _variant(96, 6, params=28e6, flops=3.7e9, accuracy=82.0),
        "litv2_m": _variant(96, 18, params=49e6, flops=7.5e9, accuracy=83.3),
        "litv2_b": _variant(
            128,
            18,
            params=87e6,
            flops=13.2e9,
            accuracy=83.6,
            note="at 384 pixels: 39.7e9 FLOPs, 84.7 % after fine-tuning",
        ),
    },
    translate=translate,
)
