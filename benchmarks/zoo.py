"""The zoo's table: published and counted parameters and FLOPs, and why they differ.

    python benchmarks/zoo.py

Prints Markdown. Nothing is trained or timed; weights are needed only where an operator cannot be
traced without. Each network is counted twice: by its authors' own convention, beside what they
printed, and whole, as `mixnas.count_flops` does (with norms, transforms and the products of
attention). The difference of the two is named operator by operator.
"""

from dataclasses import dataclass, replace
from math import ceil

from mixnas import zoo
from mixnas.cost.count import count_params, operators, without_memory
from mixnas.folding import fuse


@dataclass(frozen=True)
class Convention:
    """How a system's authors counted and printed.

    Attributes:
        said: in words.
        folded: whether of the network with its batch norms folded.
        only: the operators that they counted; empty for all but `not_counted`.
        not_counted: operators that they left out.
        pooled: whether they counted the mean over the last map, one a number.
        params: the last printed digit of parameters.
        flops: the last printed digit of FLOPs.
    """

    said: str
    folded: bool = False
    only: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()
    pooled: bool = False
    params: float = 1e5
    flops: float = 1e8

    def counts(self, operator: str) -> bool:
        return operator not in self.not_counted and (not self.only or operator in self.only)


CONVENTIONS = {
    "affnet": Convention(
        "as fvcore counts the authors' code: norms are counted, Fourier transforms are not. The "
        "profiler in their repository leaves norms out and says 0.362, 0.794 and 1.462 G, which "
        "is the same in the digits printed. Parameters are cut off",
        not_counted=("fft_rfft2", "fft_irfft2"),
    ),
    "fvit": Convention(
        "linear layers and convolutions only, which is what the printed figures of ViT are; all "
        "figures are cut off (86.86 is printed as 86, 12.66 as 12.6). The scores of the keys, a "
        "linear layer in Fastformer's code, are a product of activations here (0.005 and 0.001 G)",
        only=("linear", "conv"),
        params=1e6,
    ),
    "litv2": Convention(
        "all operators, the deformable convolutions included. The authors' own counter adds those "
        "by hand, with 12 channels of offsets where there are 8, counts norms once a number, and "
        "gets 3.734, 7.479 and 13.194 G: 0.03 to 0.07 % less",
        params=1e6,
    ),
    "shvit": Convention(
        "as fvcore counts the network whose batch norms are folded, with one operation for each "
        "number of the last map, which is averaged. Parameters are cut off",
        folded=True,
        pooled=True,
        flops=1e6,
    ),
    "ufo_vit": Convention(
        "all operators. No code of the authors is known, the published figures are recalled and "
        "were not read again, and the network is reconstructed; where the printed digits do not "
        "explain a difference it stays open. Layer scale and one of the two local convolutions "
        "make up 0.06 M (T, S), 0.12 M (M) and 0.16 M (B) of it, were they not in the original"
    ),
}

ELSEWHERE = {"litv2_b": {384: 39.7e9}}
"""FLOPs published at another image than the network's own, by its side."""

HEADS = (
    "network",
    "pixels",
    "parameters published",
    "counted",
    "FLOPs published",
    "counted alike",
    "counted whole",
    "of which the authors left out",
)


def printed(counted: float, published: float, digit: float) -> str:
    """Say by how much a count is above the printed figure, and whether printing explains it."""
    rounded = abs(counted - published) <= digit / 2
    cut = 0 <= counted - published < digit
    why = {
        (True, True): "printed so",
        (True, False): "rounded",
        (False, True): "cut off",
        (False, False): "open",
    }[rounded, cut]
    return f"{counted / published - 1:+.2%}, {why}"


def operations(number: float) -> str:
    return f"{number / 1e9:.3f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def row(file: str, name: str, variant: zoo.Variant) -> tuple[str, ...]:
    convention = CONVENTIONS[file]
    last = {}

    def count(network):
        last["map"] = network.num_features * ceil(variant.image / 64) ** 2
        return count_params(network), operators(network, variant.image)

    params, whole = without_memory(lambda: zoo.create(name, image=variant.image), count)
    by = whole
    if convention.folded:
        params, by = without_memory(lambda: fuse(zoo.create(name, image=variant.image)), count)
    alike = sum(number for operator, number in by.items() if convention.counts(operator))
    missed = {
        operator: number - by.get(operator, 0) * convention.counts(operator)
        for operator, number in whole.items()
    }
    assert alike + sum(missed.values()) == sum(whole.values())
    alike += last["map"] * convention.pooled
    unit = "M" if convention.flops == 1e6 else "G"
    return (
        f"`{name}`",
        str(variant.image),
        f"{variant.params / 1e6:.{0 if convention.params == 1e6 else 1}f} M",
        f"{params / 1e6:.3f} M ({printed(params, variant.params, convention.params)})",
        f"{variant.flops / 1e6:.0f} M" if unit == "M" else f"{variant.flops / 1e9:.1f} G",
        f"{operations(alike)} ({printed(alike, variant.flops, convention.flops)})",
        operations(sum(whole.values())),
        ", ".join(f"{o.replace('_', ' ')} {operations(n)}" for o, n in missed.items() if n) or "-",
    )


def main() -> None:
    print(f"| {' | '.join(HEADS)} |")
    print("|" + " --- |" * len(HEADS))
    for file, system in zoo.systems().items():
        for name, variant in system.variants.items():
            sizes = {variant.image: variant.flops, **ELSEWHERE.get(name, {})}
            for image, flops in sizes.items():
                cells = row(file, name, replace(variant, image=image, flops=flops))
                print(f"| {' | '.join(cells)} |", flush=True)
    print(
        "\nRounded, or cut off, the count gives the printed digits; printed so: either way; open: "
        "neither. Counted alike is by the authors' convention:\n"
    )
    for file, system in zoo.systems().items():
        print(f"* {system.title}: {CONVENTIONS[file].said}.")


if __name__ == "__main__":
    main()
