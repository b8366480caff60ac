"""FViT, a vision transformer with Fastformer's additive attention, and the plain ViT beside it.

FViT: Wen, Chen and Shrestha, IEEE CAI 2024, doi 10.1109/CAI59869.2024.00113. ViT: Dosovitskiy et
al., ICLR 2021, arXiv 2010.11929, as in timm (`vit_base_patch16_384`, `vit_base_patch32_384`).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from mixnas import mixers
from mixnas.elastic import grid, tokens
from mixnas.errors import InvalidOption
from mixnas.features import Size
from mixnas.zoo.layers import Classified
from mixnas.zoo.system import Options, State, System, Variant, rounded

EPS = 1e-6
"""Added to the variance by every norm of a vision transformer."""


class Mlp(nn.Module):
    """``W2 GELU(W1 x)`` on each token.

    Args:
        width: channels.
        hidden: channels between the two layers.
    """

    forward: Callable[..., Tensor]

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[no-redef]
        """Keep the shape ``(B, N, width)``."""
        return self.reduce(F.gelu(self.expand(x)))


class Block(nn.Module):
    """``x += mixer(norm(x)); x += MLP(norm(x))`` (ViT, equations 2 and 3).

    Args:
        width: channels.
        hidden: channels inside the MLP.
        mixer: blind to position: it gets the tokens as a ``(B, width, N, 1)`` map.
        drop_path: probability that a sample skips a branch in training.
    """

    forward: Callable[..., Tensor]

    def __init__(self, width: int, hidden: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(width, eps=EPS)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)
        self.drop = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[no-redef]
        """Keep the shape ``(B, N, width)``."""
        mixed = self.mixer(grid(self.mixer_norm(x), x.shape[1], 1))
        x = x + self.drop(tokens(mixed))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class FViT(Classified):
    """A vision transformer: class token, learnt positions, pre-norm blocks, head on the token.

    Published of FViT are its width, depth, heads and MLP, four counts, and that additive attention
    takes the place of self-attention; no code. All else is taken from ViT:

    * The image is 384 pixels: only there does plain ViT cost the 49.3 and 12.6 GFLOPs printed
      beside it (linear layers and convolutions, cut off after the first decimal); at 224 ViT-B/16
      would cost 16.8.
    * The value is the query and no projection follows, as in Fastformer's notebook: 79 and 81
      million parameters. With ``value="own"`` B/16 would have 86.86 million, with ``project=True``
      as well 93.95.
    * ``score="head"``: with one vector of the head width for the scores, B/16 has 79.774 million
      parameters and 45.27 GFLOPs and B/32 81.212 and 11.63, which cut off gives all four
      published numbers. The notebook's ``score="full"`` has 79.994 million and 45.39 GFLOPs (cut
      off 45.3, printed 45.2) and 81.432 and 11.66. The counts favour the first, they do not prove
      it.

    Any image will do whose sides are multiples of the patch, oblong ones too; at another size than
    the one that it was built for, the positions are resampled (bicubic, as timm does), so build it
    for the size that it is used at.

    Args:
        patch: side of a patch in pixels.
        dim: channels.
        depth: blocks.
        heads: heads of the mixer; they must divide `dim`.
        mlp_ratio: hidden channels of the MLP in multiples of `dim`.
        mixer: ``"additive"`` (FViT) or ``"attention"`` (ViT).
        score: of the additive mixer, see `mixnas.mixers.additive.Additive`.
        value: of the additive mixer.
        project: of the additive mixer.
        qkv_bias: whether query, key and value have a bias.
        drop_path: probability that a sample skips a branch of the last block in training; it
            rises linearly from 0 at the first.
        num_classes: classes of the head; 0 for features only.
        in_chans: channels of the images.
        image: side of the images in pixels, or height and width, that the positions are for.

    Raises:
        InvalidOption: if the mixer is another, the heads do not divide `dim`, or the sides
            are no multiples of the patch.
    """

    formats: ClassVar[tuple[str, ...]] = ("NCHW", "NLC")

    def __init__(
        self,
        *,
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        mixer: Literal["additive", "attention"] = "additive",
        score: Literal["full", "head"] = "head",
        value: Literal["query", "own"] = "query",
        project: bool = False,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        image: int | tuple[int, int] = 384,
    ) -> None:
        super().__init__()
        choices: dict[str, Any] = {"num_heads": heads, "qkv_bias": qkv_bias}
        if mixer == "additive":
            choices |= {"score": score, "value": value, "project": project}
        _check(mixer, dim, heads)
        self.num_features = dim
        self.patches = nn.Conv2d(in_chans, dim, patch, patch)
        self.size = self._positions((image, image) if isinstance(image, int) else tuple(image))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + self.size[0] * self.size[1], dim))
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.Sequential(
            *(
                Block(dim, int(dim * mlp_ratio), mixers.create(mixer, dim, **choices), rate)
                for rate in rates
            )
        )
        self.norm: nn.Module = nn.LayerNorm(dim, eps=EPS)
        self.feature_info = [
            {"num_chs": dim, "reduction": patch, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self._initialise()
        self.reset_classifier(num_classes)

    def _initialise(self) -> None:
        """Fill as timm does: N(0, 0.02), biases 0, patches torch's own; mixers already are."""
        nn.init.normal_(self.class_token, std=1e-6)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                _fill(layer)

    def classifier(self, classes: int) -> nn.Module:
        """Return a new linear classifier: N(0, 0.02), bias 0."""
        return _fill(nn.Linear(self.num_features, classes))

    def _positions(self, image: tuple[int, ...]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image.

        Raises:
            InvalidOption: if a side is no multiple of the patch.
        """
        patch, height, width = self.patches.kernel_size[0], *image
        if min(image) < patch or height % patch or width % patch:
            nearest = [max(1, round(side / patch)) * patch for side in image]
            raise InvalidOption(
                f"image {height}x{width}: its sides must be multiples of the patch, {patch} "
                f"pixels; take {nearest[0]}x{nearest[1]}"
            )
        return height // patch, width // patch

    def _table(self, size: tuple[int, int]) -> Tensor:
        """Return the positions for so many rows and columns of patches."""
        if size == self.size:
            return self.positions
        return resample_abs_pos_embed(self.positions, list(size), list(self.size))

    def begin(self, images: Tensor) -> Tensor:
        """Map images to the tokens ``(B, 1 + patches, width)``, the class token first.

        Raises:
            InvalidOption: if a side of the images is no multiple of the patch.
        """
        size = self._positions(tuple(images.shape[2:]))
        x = tokens(self.patches(images))
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self._table(
            size
        )

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Apply a block."""
        block = self.blocks[index]
        return self.recomputed(block, x) if self.recomputed else block(x)

    def finish(self, x: Tensor) -> Tensor:
        """Normalise the tokens."""
        return self.norm(x)

    def shown(self, x: Tensor, index: int, size: Size, norm: bool, output_fmt: str) -> Tensor:
        """Return a block's tokens but for the class token, as they are or as a map."""
        x = (self.norm(x) if norm else x)[:, 1:]
        return x if output_fmt == "NLC" else grid(x, *self._positions(size))

    def remaining(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)

    def cut(self, count: int, norm: bool) -> None:
        """Drop the blocks behind the first so many, and the last norm if told."""
        self.blocks = self.blocks[:count]
        if norm:
            self.norm = nn.Identity()

    def pool(self, x: Tensor) -> Tensor:
        """Return the class token, ``(B, width)``."""
        return x[:, 0]


def _check(mixer: str, dim: int, heads: int) -> None:
    if mixer not in ("additive", "attention"):
        raise InvalidOption(f"mixer '{mixer}': FViT has 'additive', ViT 'attention'; take either")
    if heads < 1 or dim < heads or dim % heads:
        fit = max(1, dim // 64)
        raise InvalidOption(
            f"heads={heads} must divide dim={dim}; take dim={64 * fit}, heads={fit}"
        )


def _fill(layer: nn.Linear) -> nn.Linear:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


NAMES = (
    ("cls_token", "class_token"),
    ("pos_embed", "positions"),
    ("patch_embed.proj.", "patches."),
    (".norm1.", ".mixer_norm."),
    (".norm2.", ".mlp_norm."),
    (".attn.qkv.", ".mixer.query_key_value."),
    (".attn.proj.", ".mixer.project."),
    (".mlp.fc1.", ".mlp.expand."),
    (".mlp.fc2.", ".mlp.reduce."),
)
"""What timm's ViT and this one call the same."""


def translate(state: State) -> State:
    """Turn a state dict of timm's `VisionTransformer` into one of `FViT` with attention.

    The fused projections get their group as a leading axis.
    """
    translated = {}
    for key, tensor in state.items():
        for theirs, ours in NAMES:
            key = key.replace(theirs, ours)
        if ".mixer." in key:
            groups = 3 if "query_key_value" in key else 1
            if tensor.ndim and len(tensor) % groups == 0:
                tensor = tensor.unflatten(0, (groups, -1))
        translated[key] = tensor
    return translated


def widen(options: Options, factor: float) -> dict[str, Any]:
    """Scale the channels to whole heads; the width of a head stays."""
    head = options["dim"] // options["heads"]
    dim = rounded(options["dim"] * factor, head)
    return {**options, "dim": dim, "heads": dim // head}


def _base(patch: int, **own: Any) -> dict[str, Any]:
    """Return the settings of a base-sized transformer."""
    size = {"patch": patch, "dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0}
    return {**size, "qkv_bias": True, "drop_path": 0.0, **own}


def _fvit(patch: int) -> dict[str, Any]:
    return _base(patch, mixer="additive", score="head", value="query", project=False)


CUT = "figures are cut off, not rounded; FLOPs of linear layers and convolutions only"
BASELINE = f"printed beside FViT as its baseline; {CUT}"

SYSTEM = System(
    title="FViT",
    mixer="additive",
    paper="Wen, Chen, Shrestha, IEEE CAI 2024, doi 10.1109/CAI59869.2024.00113",
    network=FViT,
    widen=widen,
    variants={
        "fvit_b16": Variant(_fvit(16), 384, 79e6, 45.2e9, 63, CUT),
        "fvit_b32": Variant(_fvit(32), 384, 81e6, 11.6e9, 65, CUT),
        "vit_b16": Variant(_base(16, mixer="attention"), 384, 86e6, 49.3e9, 77, BASELINE),
        "vit_b32": Variant(_base(32, mixer="attention"), 384, 88e6, 12.6e9, 73, BASELINE),
    },
    translate=translate,
)
