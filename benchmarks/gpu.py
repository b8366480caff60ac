"""Everything that needs a GPU, in one script: agreement with the CPU, training, latency.

    python benchmarks/gpu.py                   # on a machine with CUDA
    python benchmarks/gpu.py --device cpu --steps 2 --batch 4 --image 64   # to try the script
    torchrun --nproc-per-node 2 benchmarks/gpu.py --synchronised    # where there are two GPUs

Needs torch, timm and fvcore, neither ray nor optuna.
"""

import argparse
import random
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mixnas import data, mixers
from mixnas.cost import count
from mixnas.cost.feasible import Feasible
from mixnas.cost.table import CostTable, parse_all
from mixnas.errors import MixnasError
from mixnas.network import Network, build
from mixnas.space import SearchSpace
from mixnas.timing.conditions import Conditions
from mixnas.timing.stopwatch import Stopwatch
from mixnas.train.alone import AloneTrainer
from mixnas.train.draws import Draws
from mixnas.train.execution import Execution
from mixnas.train.recipe import AloneRecipe, Recipe
from mixnas.train.supernet import SupernetTrainer
from mixnas.train.world import World


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
    watch = Stopwatch(Conditions.of(str(device)))
    for name, times in zip(
        ("least", "greatest"), watch.interleave(ends, (3, 224, 224)), strict=True
    ):
        print(f"{name}: {times.median:.2f} ms (lower quartile {times.lower:.2f} ms)")


WAYS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32, contiguous": {"precision": "fp32", "channels_last": False},
    "bf16": {"precision": "bf16"},
    "bf16, contiguous": {"precision": "bf16", "channels_last": False},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "bf16, checkpointed": {"precision": "bf16", "checkpointing": True},
    "bf16, in 2 parts": {"precision": "bf16", "accumulate": 2},
    "fp16": {"precision": "fp16"},
}


def alone(seed: int = 0) -> nn.Module:
    """Return a network of the default space that uses each mixer, at its first weights."""
    space = SearchSpace.load("default")
    rng = random.Random(seed)
    arch = max(
        (space.sample(rng) for _ in range(200)),
        key=lambda a: len({block.mixer for stage in a.stages for block in stage.blocks}),
    )
    torch.manual_seed(seed)
    return build(arch, 10)


def batch_of(batch: int, image: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, image, image, generator=generator)
    return images, torch.randint(0, 10, (batch,), generator=generator)


def retraining(device: torch.device, steps: int, batch: int, image: int, compiled: bool) -> None:
    """Print images/s and peak memory of a stand-alone training in each way to compute it."""
    data = [batch_of(batch, image, seed) for seed in range(4)]
    for name, way in WAYS.items():
        if way.get("compile") and not compiled:
            continue
        network = alone().to(device)
        recipe = AloneRecipe(steps=steps + 5, batch=batch, mixup=0.8, cutmix=1.0, ema=0.99)
        try:
            trainer = AloneTrainer(network, recipe, execution=Execution(**way))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for step in range(5):
                trainer.train(*data[step % 4])
            began = time.perf_counter()
            for step in range(steps):
                loss = trainer.train(*data[step % 4]).losses.get("labels", float("nan"))
            seconds = time.perf_counter() - began
        except MixnasError as error:
            print(f"retraining, {name}: {error}")
            continue
        memory = (
            f", peak {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
            if device.type == "cuda"
            else ""
        )
        print(
            f"retraining, {name}: {steps * batch / seconds:.1f} images/s{memory}, loss {loss:.3f}"
        )


def precisions(device: torch.device, batch: int, image: int) -> None:
    """Print how far bf16's logits are from fp32's, and how often the best class is the same."""
    network = alone().to(device).eval()
    images = batch_of(batch, image, 0)[0].to(device)
    with torch.no_grad():
        exact = network(images)
        with torch.autocast(device.type, torch.bfloat16):
            near = network(images).float()
    same = (exact.argmax(1) == near.argmax(1)).float().mean().item()
    print(
        f"fp32/bf16 logits differ by {(exact - near).abs().max().item():.2e} "
        f"(largest {exact.abs().max().item():.2e}), best class the same for {100 * same:.1f} %"
    )


def scaler(device: torch.device, image: int) -> None:
    """Print whether a training in fp16 goes on from its state as it would have, with its scale."""

    def trainer() -> AloneTrainer:
        recipe = AloneRecipe(steps=8, batch=16)
        return AloneTrainer(alone().to(device), recipe, execution=Execution(precision="fp16"))

    data = [batch_of(16, image, seed) for seed in range(8)]
    first, second = trainer(), trainer()
    for pair in data[:4]:
        first.train(*pair)
    second.restore(first.state())
    for pair in data[4:]:
        losses = [one.train(*pair).losses.get("labels", float("nan")) for one in (first, second)]
    print(
        f"fp16 resumed: scale {first.scaler.get_scale():g} and {second.scaler.get_scale():g}, "
        f"last losses differ by {abs(losses[0] - losses[1]):.1e}"
    )


def synchronised(image: int) -> None:
    """Print the difference of losses and statistics between several processes and one.

    Run it by torchrun with as many processes as there are GPUs.
    """
    world = World.join("cuda")
    recipe = AloneRecipe(steps=10, batch=16 * world.size)
    execution = Execution(precision="fp32", synchronised=True)
    whole = [batch_of(16 * world.size, image, seed) for seed in range(10)]
    together = AloneTrainer(alone().to(world.device), recipe, execution=execution, world=world)
    for images, labels in whole:
        part = slice(16 * world.rank, 16 * (world.rank + 1))
        shared = together.train(images[part], labels[part]).losses["labels"]
    if world.main:
        single = AloneTrainer(alone().to(world.device), recipe, execution=Execution("fp32"))
        for images, labels in whole:
            lonely = single.train(images, labels).losses["labels"]
        found, wanted = together.network.state_dict(), single.network.state_dict()
        assert found.keys() == wanted.keys()
        off = max(
            ((found[key] - wanted[key]).abs().max().item() for key in found if "running" in key),
            default=0.0,
        )
        print(
            f"{world.size} processes with synchronised norms: last loss {shared:.6f}, alone "
            f"{lonely:.6f}, statistics differ by {off:.1e}"
        )
    world.barrier()
    world.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--only", choices=["retraining"], help="leave the rest out")
    parser.add_argument("--synchronised", action="store_true", help="under torchrun")
    options = parser.parse_args()
    if options.synchronised:
        synchronised(options.image)
        return
    device = torch.device(options.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), "torch", torch.__version__)
    if options.only != "retraining":
        agreement(device)
        training(device, options.steps, options.batch)
        latency(device)
    retraining(device, options.steps, options.batch, options.image, options.compile)
    precisions(device, options.batch, options.image)
    scaler(device, options.image)


if __name__ == "__main__":
    main()
