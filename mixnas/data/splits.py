"""Four disjoint parts of a labelled set: train, rank, report and test.

`rank` chooses among architectures, `report` says how good the chosen one is, and `test` is read
once, at the very end. The split is stratified by class and depends on the seed and the labels
alone, never on where the images lie or how large they are.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mixnas.errors import DataError

Indices: TypeAlias = NDArray[np.int64]
SplitName: TypeAlias = Literal["train", "rank", "report", "test"]

NAMES: Final[tuple[SplitName, ...]] = ("train", "rank", "report", "test")
LEAST_PER_CLASS: Final = 5
TEST_SHARE: Final = 0.2
SEARCH_SHARE: Final = 0.2
SEARCH_SHARE_WITH_TEST: Final = 0.1
SEARCH_MOST: Final = 10_000


def key_number(*key: object) -> int:
    """Hash a key to 63 bits: independent seeds for independent purposes, any integer allowed."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> np.random.Generator:
    """Return the random generator that belongs to a key."""
    return np.random.default_rng(key_number(*key))


def stratified(
    targets: Indices, labels: Sequence[str], own_test: int, seed: int
) -> dict[SplitName, Indices]:
    """Split image indices by class: 60/20/20 % without an own test set, else 90/10 %.

    Each part's order is shuffled and fixed, so that its first images are a fair sample of it.

    Args:
        targets: class of every image, shape (N,); the set's own test images come last.
        labels: class names.
        own_test: number of images at the end that are the set's own test set; 0 if it has none.
        seed: any integer.

    Raises:
        DataError: there are fewer than two classes, or a class has too few images.
    """
    choosable = targets[: len(targets) - own_test]
    counts = np.bincount(choosable, minlength=len(labels))
    _check_counts(counts, labels)
    test = _test_shares(counts) if own_test == 0 else np.zeros_like(counts)
    search = _search_shares(counts, test, own_test > 0)
    parts: dict[SplitName, list[Indices]] = {name: [] for name in NAMES}
    for label, rank in enumerate(_first_halves(search)):
        members = np.flatnonzero(choosable == label)
        members = generator(seed, "class", label).permutation(members)
        ends = np.cumsum([test[label], rank, search[label] - rank])
        cut = zip(("test", "rank", "report", "train"), np.split(members, ends), strict=True)
        for name, chosen in cut:
            parts[name].append(chosen)  # type: ignore[index]  # the tuple's strings are the names
    if own_test:
        parts["test"] = [np.arange(len(choosable), len(targets))]
    return {
        name: generator(seed, "order", name).permutation(np.concatenate(members)).astype(np.int64)
        for name, members in parts.items()
    }


def _check_counts(counts: Indices, labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise DataError(
            f"one class only ({', '.join(map(repr, labels)) or 'none'}); "
            "a classifier needs images of at least 2 classes"
        )
    scarce = int(np.argmin(counts))
    if counts[scarce] < LEAST_PER_CLASS:
        raise DataError(
            f"class {labels[scarce]!r} has {counts[scarce]} training images, and every class needs "
            f"at least {LEAST_PER_CLASS} (train, rank, report and test each take some); "
            "add images or remove the class"
        )


def _test_shares(counts: Indices) -> Indices:
    total = round(TEST_SHARE * int(counts.sum()))
    return _shares(counts, total, np.ones_like(counts), counts - LEAST_PER_CLASS + 1)


def _search_shares(counts: Indices, test: Indices, has_test: bool) -> Indices:
    """At least 1 image a class and half; 2 where the set's own test set leaves them to us."""
    share = SEARCH_SHARE_WITH_TEST if has_test else SEARCH_SHARE
    total = min(round(share * int(counts.sum())), SEARCH_MOST)
    least = np.full_like(counts, 4 if has_test else 2)
    return _shares(counts, total, least, counts - test - 1)


def _shares(counts: Indices, total: int, least: Indices, most: Indices) -> Indices:
    """Whole numbers in proportion to counts by largest remainder, within [least, most].

    They sum to total unless a bound moved one of them.
    """
    exact = counts * (total / counts.sum())
    shares = np.clip(np.floor(exact).astype(np.int64), least, most)
    for label in np.argsort(np.floor(exact) - exact, kind="stable"):
        if shares.sum() >= total:
            break
        if shares[label] < min(exact[label], most[label]):  # not what the lower bound raised
            shares[label] += 1
    return shares


def _first_halves(numbers: Indices) -> Indices:
    """Halve each number; of the odd ones, every other is rounded up: the totals differ by <= 1."""
    odd = numbers % 2
    return numbers // 2 + odd * (np.cumsum(odd) % 2)
