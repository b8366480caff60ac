"""`Intermediates`: a network's features at every depth, in the form that timm's users expect.

timm makes a backbone of any network that has `feature_info`, `forward_intermediates` and
`prune_intermediate_layers` (its `FeatureGetterNet`).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mixnas.errors import InvalidOption, did_you_mean

Indices = int | Sequence[int] | None
"""Which features: all (None), the last so many (a number), or these (from the end if negative)."""

Size = tuple[int, int]


class Intermediates(nn.Module):
    """A network whose features are made one after the other.

    A subclass defines `begin`, `advance` and `finish`, and `cut`, which drops what makes the
    features behind one.

    Attributes:
        feature_info: of each feature its channels ``num_chs``, its ``reduction`` (pixels of the
            image a position, each way) and the ``module`` whose output it is.
    """

    feature_info: list[dict[str, Any]]

    formats: ClassVar[tuple[str, ...]] = ("NCHW",)

    forward_features: Callable[..., Tensor]
    reset_classifier: Callable[[int], None]

    def begin(self, images: Tensor) -> Tensor:
        """Compute what the first feature is made of."""
        raise TypeError(f"{type(self).__name__} must define begin")

    def advance(self, x: Tensor, index: int, size: Size) -> Tensor:
        """Compute a feature from the one before it; `size` is the images' height and width."""
        raise TypeError(f"{type(self).__name__} must define advance")

    def finish(self, x: Tensor) -> Tensor:
        """Compute the output of `forward_features` from the last feature."""
        raise TypeError(f"{type(self).__name__} must define finish")

    def remaining(self) -> int:
        """Return how many features can still be computed."""
        raise TypeError(f"{type(self).__name__} must define remaining")

    def cut(self, count: int, norm: bool) -> None:
        """Drop what makes the features behind the first `count`, and the last norm if told."""
        raise TypeError(f"{type(self).__name__} must define cut")

    def shown(self, x: Tensor, index: int, size: Size, norm: bool, output_fmt: str) -> Tensor:
        """Turn a feature into what the caller asked for: a map, after the last norm if told."""
        last = index == len(self.feature_info) - 1
        return self.finish(x) if norm and last else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute features at several depths.

        Args:
            x: images ``(B, in_chans, H, W)``.
            indices: which features.
            norm: applies the network's last norm: to the last feature of a pyramid, to every
                feature of a network of one width.
            stop_early: computes no more than the features asked for.
            output_fmt: ``"NCHW"``; networks of tokens know ``"NLC"`` too.
            intermediates_only: leaves out the last features of the network.

        Returns:
            The features in order of depth; before them, unless left out, the output of
            `forward_features` (the last feature computed where that was not the last of all).

        Raises:
            AssertionError: if there is no such feature, as timm does.
            InvalidOption: if the format is another.
        """
        if output_fmt not in self.formats:
            raise InvalidOption(
                f"output_fmt: no format '{output_fmt}'; {did_you_mean(output_fmt, self.formats)}"
            )
        taken, last = taken_indices(self.remaining(), indices)
        size = (x.shape[2], x.shape[3])
        x = self.begin(x)
        maps = []
        for index in range(last + 1 if stop_early else self.remaining()):
            x = self.advance(x, index, size)
            if index in taken:
                maps.append(self.shown(x, index, size, norm, output_fmt))
        if intermediates_only:
            return maps
        whole = index == len(self.feature_info) - 1
        return (self.finish(x) if whole else x), maps

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that given features do not need.

        Args:
            indices: which features are wanted.
            prune_norm: drops the last norm.
            prune_head: drops the classifier, and what stands between it and the features.

        Returns:
            The wanted features, counted from the first.

        Raises:
            AssertionError: if there is no such feature, as timm does.
        """
        taken, last = taken_indices(self.remaining(), indices)
        self.cut(last + 1, prune_norm)
        if prune_head:
            self.drop_head()
        return taken

    def drop_head(self) -> None:
        """Drop the classifier."""
        self.reset_classifier(0)


def taken_indices(count: int, indices: Indices) -> tuple[list[int], int]:
    """Return which of so many features are asked for, and the last of them, as timm does.

    Raises:
        AssertionError: if there is no such feature.
    """
    from timm.models._features import feature_take_indices  # timm's models take a second to import

    wanted = indices if indices is None or isinstance(indices, int) else list(indices)
    taken, last = feature_take_indices(count, wanted)
    return list(taken), int(last)
