"""Random architectures of a space as ONNX graphs: ONNX Runtime against PyTorch, batch 1 and 5.

    python benchmarks/exports.py
    python benchmarks/exports.py --first 0 --count 10    # in parts; the draws are the same
    python benchmarks/exports.py --zoo                   # the published networks instead

Every norm, layer scale and running statistic is drawn at random, so that no branch is shut and no
fold is trivial. Each architecture is exported folded, as `mixnas export` does, and compared with
the network before folding. The limit is 1e-4.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import nn

from mixnas import zoo
from mixnas.arch import Architecture
from mixnas.data import Preprocessing
from mixnas.elastic import Elastic
from mixnas.exports import FORMS
from mixnas.folding import fuse
from mixnas.model import Model
from mixnas.space import SearchSpace

LIMIT = 1e-4
LABELS = tuple(f"class {number}" for number in range(10))


def opened(network: nn.Module, seed: int) -> nn.Module:
    """Fill every vector (norms, scales, statistics) at random."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, Elastic | nn.BatchNorm2d | nn.LayerNorm):
            tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if all(tensor.dim() <= 1 for tensor in tensors):
                for tensor in tensors:
                    if tensor.dim() == 1:
                        tensor.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def described(source: dict, side: int) -> Model:
    return Model(source, LABELS, Preprocessing(side, (0.5,), (0.25,)), fused=True)


def drawn(space: str, first: int, count: int, sides: list[int]) -> Iterator[tuple]:
    """Yield the name, the mixers and the descriptions of random architectures."""
    rng = Random(0)
    draws: list[Architecture] = [SearchSpace.load(space).sample(rng) for _ in range(first + count)]
    for number, arch in enumerate(draws[first:], first):
        mixers = {block.mixer for stage in arch.stages for block in stage.blocks}
        for side in sides:
            yield f"{number:2} {arch.id}", mixers, described({"arch": arch.to_dict()}, side)


def published(first: int, count: int) -> Iterator[tuple]:
    for name in zoo.names()[first : first + count]:
        yield name, set(), described({"zoo": name}, zoo.get(name)[1].image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="default")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--side", type=int, action="append")
    parser.add_argument("--form", default="onnx", choices=sorted(FORMS))
    parser.add_argument("--zoo", action="store_true")
    options = parser.parse_args()
    sides = options.side or [224, 193]
    items = (
        published(options.first, options.count)
        if options.zoo
        else drawn(options.space, options.first, options.count, sides)
    )
    form, worst, seen, rows = FORMS[options.form], 0.0, set(), 0
    print(f"{'architecture':>24} {'side':>5} {'batch 1':>9} {'batch 5':>9} {'logit':>6} {'s':>5}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, mixers, model in items:
            began = time.perf_counter()
            torch.manual_seed(rows)
            source = opened(Model(model.source, LABELS, model.preprocessing).build(), rows)
            place = Path(folder) / f"{rows}" / form.place
            place.parent.mkdir()
            form.write(place, fuse(source), model, {})
            exported = form.load(place)
            found, largest = [], 0.0
            for batch in (1, 5):
                images = torch.randn(batch, 3, model.image, model.image)
                logits = source(images)
                found.append(float((exported.network(images) - logits).abs().max()))
                largest = max(largest, float(logits.abs().max()))
            worst, seen, rows = max(worst, *found), seen | mixers, rows + 1
            print(
                f"{name:>24} {model.image:>5} {found[0]:>9.1e} {found[1]:>9.1e} {largest:>6.2f} "
                f"{time.perf_counter() - began:>5.1f}",
                flush=True,
            )
            assert max(found) < LIMIT, name
    print(f"{rows} exports, largest difference {worst:.1e}; mixers: {', '.join(sorted(seen))}")


if __name__ == "__main__":
    main()
