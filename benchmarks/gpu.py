"""Everything that needs a GPU, in one script: agreement with the CPU, training speed, latency.

    python benchmarks/gpu.py                   # on a machine with CUDA
    python benchmarks/gpu.py --device cpu      # the same steps without one, to try the script

Needs torch, timm and fvcore, neither ray nor optuna.
"""

import argparse
import time
from itertools import islice

import torch

from mixnas import data, mixers
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.latency import Stopwatch
from mixnas.cost.table import CostTable, parse_all
from mixnas.network import Network, build
from mixnas.space import SearchSpace
from mixnas.train.draws import Draws
from mixnas.train.recipe import Recipe
from mixnas.train.supernet import SupernetTrainer


def agreement(device: torch.device) -> None:
    """Print each mixer's greatest difference between the CPU and the device, in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for name in mixers.names():
        torch.manual_seed(0)
        mixer = mixers.create(name, 128).eval()
        for size in ((14, 14), (13, 15), (8, 8), (32, 32)):
            x = torch.randn(2, 128, *size)
            with torch.no_grad():
                here = mixer.cpu()(x)
                there = mixer.to(device)(x.to(device)).cpu()
            difference = (here - there).abs().max().item()
            print(f"{name:12} {size[0]:>2}x{size[1]:<2} differs by {difference:.2e}")


def training(device: torch.device, steps: int, batch: int) -> None:
    """Print the seconds of a supernet step on the embedded digits, and its memory."""
    space = SearchSpace.load("default")
    table = CostTable(count.flops, image=space.image, classes=space.classes)
    feasible = Feasible(space, parse_all(["1.5GFLOPs"]), {"flops": table})
    digits = data.load("digits")
    network = Network(space, 10).to(memory_format=torch.channels_last).to(device)
    draws = Draws(space, feasible, seed=0, random=2, edge=0.1)
    trainer = SupernetTrainer(network, draws, Recipe(steps=steps + 5, batch=batch))
    stream = digits.train(batch=batch, seed=0)
    for images, labels in islice(stream, 5):
        trainer.train(images, labels)
    began = time.perf_counter()
    losses = [trainer.train(*next(stream)).losses["dearest"] for _ in range(steps)]
    seconds = (time.perf_counter() - began) / steps
    print(f"supernet step, batch {batch}: {1000 * seconds:.1f} ms, last loss {losses[-1]:.3f}")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def latency(device: torch.device) -> None:
    """Print the whole time of the least and the greatest network of the default space."""
    space = SearchSpace.load("default")
    table = CostTable(count.flops, image=space.image, classes=space.classes)
    feasible = Feasible(space, parse_all(["99GFLOPs"]), {"flops": table})
    ends = [build(arch).eval() for arch in (feasible.least(), feasible.greatest())]
    watch = Stopwatch(str(device))
    for name, times in zip(
        ("least", "greatest"), watch.interleave(ends, (3, 224, 224)), strict=True
    ):
        print(f"{name}: {times['median']:.2f} ms (lower quartile {times['lower']:.2f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), "torch", torch.__version__)
    agreement(device)
    training(device, options.steps, options.batch)
    latency(device)


if __name__ == "__main__":
    main()
