"""The laws at full size: costs of 300 architectures of `default`, extraction of 100, look-ups.

    python benchmarks/laws.py

The independent count is fvcore's own analysis of the whole stand-alone network, with the rules of
the README written here a second time; nothing of mixnas.cost takes part in it.
"""

import argparse
import math
import time
import warnings
from random import Random

import torch
from fvcore.nn import FlopCountAnalysis

from mixnas.cost import count
from mixnas.cost.table import CostTable
from mixnas.elastic import Elastic
from mixnas.network import Network, build
from mixnas.space import SearchSpace


def sizes(value) -> list[int]:
    return list(value.type().sizes())


def attention(inputs, outputs) -> int:
    """Queries (..., N, d) on keys (..., M, d) and values (..., M, v): N M (d + v) a head."""
    query, key, value = map(sizes, inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def transform(inputs, outputs) -> int:
    """A real 2-D transform, read off whichever side is real."""
    real = outputs[0] if inputs[0].type().dtype().is_complex else inputs[0]
    *others, height, width = sizes(real)
    return math.prod(others) * round(1.25 * height * width * math.log2(height * width))


def product(inputs, outputs) -> int:
    """A matrix product from its output's size; a complex multiply is 4 multiply-adds."""
    factor = 4 if inputs[0].type().dtype().is_complex else 1
    return factor * math.prod(sizes(outputs[0])) * sizes(inputs[0])[-1]


def independent_count(network: torch.nn.Module, image: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, 3, image, image))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none").set_op_handle(
            **{
                "aten::scaled_dot_product_attention": attention,
                "aten::fft_rfft2": transform,
                "aten::fft_irfft2": transform,
                "aten::matmul": product,
            }
        )
        return int(analysis.total())


def costs(space: SearchSpace, number: int) -> None:
    flops = CostTable(count.flops, image=space.image, classes=space.classes)
    params = CostTable(count.params, image=space.image, classes=space.classes)
    rng = Random(1)
    worst = worst_params = 0
    for _ in range(number):
        arch = space.sample(rng)
        network = build(arch, space.classes)
        worst = max(worst, abs(flops(arch) - independent_count(network, space.image)))
        counted = sum(p.numel() for p in network.parameters())
        worst_params = max(worst_params, abs(params(arch) - counted))
    print(f"{number} architectures: FLOPs differ by {worst}, parameters by {worst_params}")
    drawn = [space.sample(rng) for _ in range(5000)]
    for arch in drawn:
        flops(arch)
    began = time.perf_counter()
    for arch in drawn:
        flops(arch)
    rate = len(drawn) / (time.perf_counter() - began)
    print(f"table look-ups: {rate:,.0f} a second")


def extraction(space: SearchSpace, number: int) -> None:
    torch.manual_seed(0)
    network = Network(space, 10).double().eval()
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, Elastic) and all(t.dim() == 1 for t in layer.stored()):
            for tensor in layer.stored():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=generator)
    rng = Random(2)
    worst = 0.0
    with torch.no_grad():
        for _ in range(number):
            arch = space.sample(rng)
            difference = network(images, arch) - network.extract(arch)(images)
            worst = max(worst, difference.abs().max().item())
    print(f"{number} architectures in float64: supernet and extracted differ by {worst:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="default")
    parser.add_argument("--costs", type=int, default=300, help="architectures to count")
    parser.add_argument("--extractions", type=int, default=100, help="architectures to extract")
    options = parser.parse_args()
    space = SearchSpace.load(options.space)
    costs(space, options.costs)
    extraction(space, options.extractions)


if __name__ == "__main__":
    main()
