"""UFO-ViT (Song, 2021, arXiv 2109.14382): XNorm attention, local interaction, class attention.

No code and no weights of the authors are known, and its table of variants could not be read
again: the networks here are a reconstruction, with the widths as recalled, whose parameters and
multiply-adds agree with the recalled figures (10.0, 20.7, 37.3, 63.7 M; 1.9, 3.7, 7.0, 11.9 G).
"""

import math
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, LayerScale, Mlp, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mixnas import mixers
from mixnas.elastic import Linear, grid, tokens
from mixnas.errors import InvalidOption, did_you_mean
from mixnas.features import Size
from mixnas.mixers import xnorm
from mixnas.zoo.layers import Classified, ConvNorm
from mixnas.zoo.system import Options, System, Variant, rounded, settings

EPS = 1e-6
"""Added to the variance by every layer norm, as in XCiT."""

KINDS = {"stem": ("conv", "patch"), "local": ("xcit", "stacked"), **xnorm.KINDS}


def conv_stem(in_chans: int, dim: int, patch: int) -> nn.Sequential:
    """Return ``log2(patch)`` 3x3 convolutions of stride 2 with batch norm, GELU between them.

    The channels double up to the width: D/8, D/4, D/2, D at patch 16 (XCiT, section 3.3).
    """
    layers: list[nn.Module] = []
    before = in_chans
    for halving in range(patch.bit_length() - 2, -1, -1):
        layers += [ConvNorm(before, dim >> halving, 3, 2), nn.GELU()]
        before = dim >> halving
    return nn.Sequential(*layers[:-1])


def local_interaction(dim: int, kind: str) -> nn.Sequential:
    """Return two depth-wise 3x3 convolutions: XCiT's, or each with batch norm and GELU."""
    if kind == "stacked":
        normed = [ConvNorm(dim, dim, 3, groups=dim) for _ in range(2)]
        return nn.Sequential(normed[0], nn.GELU(), normed[1], nn.GELU())
    plain = [nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2)]
    return nn.Sequential(plain[0], nn.GELU(), nn.BatchNorm2d(dim), plain[1])


class Branch(nn.Module):
    """What ends a residual branch: layer scale, if there is one, and drop path."""

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, N, dim)``."""
        dropped: Tensor = self.drop_path(self.scale(x))
        return dropped


class Block(nn.Module):
    """``x += XNorm(norm(x)); x += local(norm(x)); x += MLP(norm(x))``, each scaled.

    Args:
        dim: channels.
        hidden: channels inside the MLP.
        mixer: XNorm attention.
        local: ``"xcit"`` or ``"stacked"``.
        layer_scale: initial scale of each branch; None: no scale.
        drop_path: rate at which a branch is dropped in training.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        mixer: nn.Module,
        *,
        local: str,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.mixer_norm, self.local_norm, self.mlp_norm = (
            nn.LayerNorm(dim, eps=EPS) for _ in range(3)
        )
        self.mixer_end, self.local_end, self.mlp_end = (
            Branch(dim, layer_scale, drop_path) for _ in range(3)
        )
        self.mixer = mixer
        self.local = local_interaction(dim, local)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Keep the shape ``(B, N, dim)``, N = height times width."""
        x = x + self.mixer_end(tokens(self.mixer(grid(self.mixer_norm(x), height, width))))
        x = x + self.local_end(tokens(self.local(grid(self.local_norm(x), height, width))))
        updated: Tensor = x + self.mlp_end(self.mlp(self.mlp_norm(x)))
        return updated


class ClassBlock(nn.Module):
    """Class attention (CaiT, equations 5 to 7): the class token reads all tokens, itself too.

    The patches stay as they are; XCiT's version of it adds their norm to them as well.

    Args:
        dim: channels.
        hidden: channels inside the MLP.
        mixer: XNorm attention, called with the class token as its only query.
        layer_scale: initial scale of each branch; None: no scale.
    """

    def __init__(
        self, dim: int, hidden: int, mixer: xnorm.XNorm, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = (nn.LayerNorm(dim, eps=EPS) for _ in range(2))
        self.mixer_end, self.mlp_end = (Branch(dim, layer_scale) for _ in range(2))
        self.mixer = mixer
        self.mlp = Mlp(dim, hidden)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        """Update a ``(B, 1, dim)`` class token by ``(B, N, dim)`` patches."""
        context = self.mixer_norm(torch.cat([token, patches], dim=1))
        token = token + self.mixer_end(self.mixer.attend(context[:, :1], context))
        updated: Tensor = token + self.mlp_end(self.mlp(self.mlp_norm(token)))
        return updated


class UFOViT(Classified):
    """A vision transformer of one width with XNorm attention in place of softmax attention.

    A convolutional stem, a learnt table of positions, blocks of XNorm attention, local
    interaction and MLP; then class attention by the same mixer; layer norm and a linear layer on
    the class token. Sides of images must be multiples of the patch; at another size than `image`
    the table of positions is resampled (bicubic).

    Reconstructed. The paper gives the list of parts: convolutional patch embedding, learnt
    positions, gamma for every head, local interaction after attention "as in XCiT", an MLP of
    ratio 4, CaiT's class attention made of XNorm. What it leaves open, or could not be read
    again, is an option; the defaults take XCiT's (Ali et al., NeurIPS 2021), whose parts it
    names:

    * `embed`: a bottleneck in the attention. Evidence: with it the totals are 10.22, 20.79,
      37.48, 63.99 M, within 2.2 % of those recalled; without it (``embed=dim``) 12.1, 26.3,
      47.7, 84.5 M.
    * `local`: ``"xcit"``: convolution, GELU, batch norm, convolution, with biases. A summary of
      the paper says two stacked convolution, batch norm, GELU: ``"stacked"``, whose parameters
      are equal and whose branch ends in a GELU.
    * `layer_scale`: XCiT's initial values, 1 at depth 12 and 1e-5 at depth 24; None for none
      (fewer parameters by three widths a block).
    * `class_depth`: 2, as in CaiT and XCiT; 0: the mean over the patches is classified.
    * `axis`, `value`, `gammas`, `gamma_init`, `qkv_bias`, `project_bias`, `eps`: see
      `mixnas.mixers.xnorm`.

    Initialisation is not known; as XCiT's: truncated normal (0.02) for linear layers, positions
    and class token, biases 0, PyTorch's own for convolutions.

    Args:
        dim: channels D.
        depth: blocks.
        embed: channels inside the attention, a multiple of `heads`.
        heads: of the attention.
        class_depth: class attention blocks.
        ratio: hidden channels of the MLPs over D.
        stem: ``"conv"``, XCiT's stack of 3x3 convolutions, or ``"patch"``, one linear map of
            each patch (fewer parameters at small D, no overlap).
        patch: side of a patch in pixels; a power of two for the convolutional stem.
        local: ``"xcit"`` or ``"stacked"``.
        layer_scale: initial scale of each branch; None: no scale.
        axis: of the matrix of keys and values that is normalised: ``"key"`` or ``"value"``.
        value: ``"bottleneck"`` or ``"full"``.
        gammas: 1 or 2 for each head.
        gamma_init: initial gamma, or ``"normal"``.
        qkv_bias: whether query, key and value have a bias.
        project_bias: whether the attention's output has one.
        eps: added to the sums of squares of XNorm.
        drop_path: rate at which a block's branch is dropped in training, equal for all.
        num_classes: of the classifier; 0 for features only.
        in_chans: channels of the images.
        image: side of the images in pixels, or height and width: the size of the table.

    Raises:
        InvalidOption: if a setting is unknown or impossible.
    """

    formats: ClassVar[tuple[str, ...]] = ("NCHW", "NLC")

    def __init__(
        self,
        *,
        dim: int = 384,
        depth: int = 12,
        embed: int = 128,
        heads: int = 8,
        class_depth: int = 2,
        ratio: float = 4.0,
        stem: str = "conv",
        patch: int = 16,
        local: str = "xcit",
        layer_scale: float | None = 1.0,
        axis: str = "key",
        value: str = "bottleneck",
        gammas: int = 1,
        gamma_init: float | str = 1.0,
        qkv_bias: bool = True,
        project_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        image: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__()
        if isinstance(gamma_init, str) and gamma_init != "normal":
            raise InvalidOption(f"ufo_vit: gamma_init='{gamma_init}' must be a number or 'normal'")
        check_kinds(stem=stem, local=local, axis=axis, value=value, gammas=gammas)
        check_widths(dim, embed, heads, patch, stem)
        hidden = int(dim * ratio)
        attention: dict[str, Any] = {
            "head_width": embed // heads,
            "bottleneck": embed / dim,
            "axis": axis,
            "value": value,
            "gammas": gammas,
            "gamma_init": gamma_init,
            "qkv_bias": qkv_bias,
            "project_bias": project_bias,
            "eps": eps,
        }
        self.patch = patch
        self.grid = self.patches(*((image, image) if isinstance(image, int) else image))
        self.stem = (
            conv_stem(in_chans, dim, patch)
            if stem == "conv"
            else nn.Conv2d(in_chans, dim, patch, stride=patch)
        )
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                hidden,
                mixers.create("xnorm", dim, **attention),
                local=local,
                layer_scale=layer_scale,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        self.class_blocks = nn.ModuleList(
            ClassBlock(dim, hidden, xnorm.XNorm(dim, **attention), layer_scale)
            for _ in range(class_depth)
        )
        if class_depth:
            self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.norm: nn.Module = nn.LayerNorm(dim, eps=EPS)
        self.num_features = dim
        self.feature_info = [
            {"num_chs": dim, "reduction": patch, "module": f"blocks.{i}"} for i in range(depth)
        ]
        initialise(self)
        self.reset_classifier(num_classes)

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches an image has each way.

        Raises:
            InvalidOption: if it is not whole patches.
        """
        if min(height, width) < 1 or height % self.patch or width % self.patch:
            nearest = "x".join(str(rounded(side, self.patch)) for side in (height, width))
            raise InvalidOption(
                f"ufo_vit: an image of {height}x{width} is not whole patches of {self.patch}; "
                f"use multiples of {self.patch}, {nearest} say"
            )
        return height // self.patch, width // self.patch

    def begin(self, images: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to the patches with their positions, ``(B, N, D)``.

        Raises:
            InvalidOption: if the images are not whole patches.
        """
        height, width = self.patches(*images.shape[-2:])
        positions = self.positions
        if (height, width) != self.grid:
            positions = resample_abs_pos_embed(
                positions, [height, width], list(self.grid), num_prefix_tokens=0
            )
        return tokens(self.stem(images)) + positions

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Apply a block."""
        block, (height, width) = self.blocks[index], self.patches(*size)
        if self.recomputed:
            return self.recomputed(block, x, height, width)
        updated: Tensor = block(x, height, width)
        return updated

    def finish(self, x: Tensor) -> Tensor:
        """Map to the normalised class token and patches ``(B, 1 + N, D)``.

        Without class attention to the patches alone.
        """
        if self.class_blocks:
            token = self.class_token.expand(x.shape[0], -1, -1)
            for block in self.class_blocks:
                token = block(token, x)
            x = torch.cat([token, x], dim=1)
        features: Tensor = self.norm(x)
        return features

    def shown(self, x: Tensor, index: int, size: Size, norm: bool, output_fmt: str) -> Tensor:
        """Return a block's tokens, as they are or as a map."""
        x = self.norm(x) if norm else x
        return x if output_fmt == "NLC" else grid(x, *self.patches(*size))

    def remaining(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)

    def cut(self, count: int, norm: bool) -> None:
        """Drop the blocks behind the first so many, and the last norm if told."""
        self.blocks = self.blocks[:count]
        if norm:
            self.norm = nn.Identity()

    def drop_head(self) -> None:
        """Drop the classifier and class attention, which reads the patches for it."""
        super().drop_head()
        if self.class_blocks:
            self.class_blocks = nn.ModuleList()
            del self.class_token

    def pool(self, x: Tensor) -> Tensor:
        """Return the class token of the features, or their mean where there is none."""
        return x[:, 0] if self.class_blocks else x.mean(dim=1)

    def classifier(self, classes: int) -> nn.Linear:
        """Return a new classifier: truncated normal (0.02), bias 0."""
        head = nn.Linear(self.num_features, classes)
        initialise(head)
        return head


def check_kinds(**kinds: str | int) -> None:
    """Refuse a setting that is none of `KINDS`.

    Raises:
        InvalidOption: naming what there is.
    """
    for setting, kind in kinds.items():
        if kind not in KINDS[setting]:
            known = did_you_mean(str(kind), map(str, KINDS[setting]))
            raise InvalidOption(f"ufo_vit: no {setting} '{kind}'; {known}")


def check_widths(dim: int, embed: int, heads: int, patch: int, stem: str) -> None:
    """Refuse widths that do not divide.

    Raises:
        InvalidOption: naming the first that does not.
    """
    if heads < 1 or embed < 1 or embed % heads:
        raise InvalidOption(f"ufo_vit: embed={embed} must be a multiple of heads={heads}")
    if stem != "conv":
        return
    if patch < 2 or patch & (patch - 1):
        raise InvalidOption(
            f"ufo_vit: patch={patch} must be a power of two for the convolutional stem; "
            "or take stem='patch'"
        )
    if dim % (patch // 2):
        raise InvalidOption(
            f"ufo_vit: dim={dim} must be a multiple of {patch // 2}, since the stem of patch "
            f"{patch} starts with so small a part of it"
        )


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Fill linear layers and bare parameters as XCiT does; leave convolutions and norms."""
    for module in network.modules():
        if isinstance(module, nn.Linear | Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in network.parameters(recurse=False):
        if parameter.dim() == 3:  # positions and class token
            trunc_normal_(parameter, std=0.02)


def widen(options: Options, factor: float) -> dict[str, Any]:
    """Scale the width to what the stem can have, the attention's to whole heads of its width."""
    head_width = options["embed"] // options["heads"]
    embed = rounded(options["embed"] * factor, head_width)
    heads = embed // head_width
    shared = heads if options["value"] == "full" else 1
    dim = rounded(options["dim"] * factor, math.lcm(shared, max(8, options["patch"] // 2)))
    return {**options, "dim": dim, "embed": embed, "heads": heads}


DEFAULTS = settings(UFOViT)

NOTE = "recalled, not read again; the network is a reconstruction"

SYSTEM = System(
    title="UFO-ViT",
    mixer="xnorm",
    paper="Song, UFO-ViT: High Performance Linear Vision Transformer without Softmax, 2021, "
    "arXiv 2109.14382",
    network=UFOViT,
    widen=widen,
    variants={
        "ufo_vit_t": Variant(
            {**DEFAULTS, "dim": 192, "depth": 24, "embed": 96, "heads": 4, "layer_scale": 1e-5},
            image=224,
            params=10.0e6,
            flops=1.9e9,
            accuracy=78.8,
            note=NOTE,
        ),
        "ufo_vit_s": Variant(
            {**DEFAULTS, "dim": 384, "depth": 12, "embed": 128, "heads": 8},
            image=224,
            params=20.7e6,
            flops=3.7e9,
            accuracy=82.0,
            note=NOTE,
        ),
        "ufo_vit_m": Variant(
            {**DEFAULTS, "dim": 384, "depth": 24, "embed": 128, "heads": 8, "layer_scale": 1e-5},
            image=224,
            params=37.3e6,
            flops=7.0e9,
            accuracy=82.8,
            note=NOTE,
        ),
        "ufo_vit_b": Variant(
            {**DEFAULTS, "dim": 512, "depth": 24, "embed": 128, "heads": 8, "layer_scale": 1e-5},
            image=224,
            params=63.7e6,
            flops=11.9e9,
            accuracy=83.3,
            note=NOTE,
        ),
    },
)
