"""Time each mixer against a naive reference with the same weights and against fused attention.

    python benchmarks/mixers.py --rounds 11 --sizes 14,28,56 --threads 2 --json mixers.json

Width 256, batch 8, float32. The references below are written straight from the equations of the
papers, each in the layout that its authors use; outputs are compared first (1e-4). Then every
round times, one after another, our mixer, its reference and timm's fused attention (8 heads), so
that a disturbance strikes all alike; a ratio is formed within a round, and its median and
quartiles over the rounds are printed. "slower" means that even the lower quartile of ours over
the reference is above 1.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from mixnas import mixers

WIDTH, BATCH, HEADS = 256, 8, 8


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make an ordinary linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def unfuse(layer: nn.Module) -> list[nn.Linear]:
    """Make one ordinary linear layer of each group of a fused projection."""
    biases = [None] * layer.groups if layer.bias is None else list(layer.bias)
    return [linear(w, b) for w, b in zip(layer.weight, biases, strict=True)]


def materialised(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention with its whole matrix in memory; ``(..., N, C)`` each."""

    def by_head(tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:-1], heads, -1).transpose(-3, -2)

    query, key, value = by_head(query), by_head(key), by_head(value)
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights @ value).transpose(-3, -2).flatten(-2)


class NaiveAttention(nn.Module):
    """Multi-head attention on ``(B, N, C)``."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        self.heads = WIDTH // mixer.choices["head_width"][0]
        self.query, self.key, self.value = unfuse(mixer.query_key_value)
        self.project = unfuse(mixer.project)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        return self.project(materialised(query, key, value, self.heads))


class NaiveHiLo(nn.Module):
    """HiLo on ``(B, N, C)`` of a square grid that the window divides."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        self.side, self.window = side, mixer.choices["window"][0]
        self.high_heads = mixer.high_project.weight.shape[1] // mixer.choices["head_width"][0]
        self.low_heads = mixer.low_project.weight.shape[1] // mixer.choices["head_width"][0]
        self.high_query, self.high_key, self.high_value = unfuse(mixer.high_query_key_value)
        self.high_project = unfuse(mixer.high_project)[0]
        self.low_query = unfuse(mixer.low_query)[0]
        self.low_key, self.low_value = unfuse(mixer.low_key_value)
        self.low_project = unfuse(mixer.low_project)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        batch, tokens, channels = x.shape
        side, window = self.side, self.window
        count = side // window
        windows = x.reshape(batch, count, window, count, window, channels).transpose(2, 3)
        windows = windows.reshape(batch, count * count, window * window, channels)
        high = materialised(
            self.high_query(windows),
            self.high_key(windows),
            self.high_value(windows),
            self.high_heads,
        )
        high = high.reshape(batch, count, count, window, window, -1).transpose(2, 3)
        high = self.high_project(high.reshape(batch, tokens, -1))
        pooled = F.avg_pool2d(x.transpose(1, 2).reshape(batch, channels, side, side), window)
        pooled = pooled.flatten(2).transpose(1, 2)
        low = materialised(
            self.low_query(x), self.low_key(pooled), self.low_value(pooled), self.low_heads
        )
        return torch.cat([high, self.low_project(low)], dim=-1)


class NaiveAFF(nn.Module):
    """AFF on ``(B, C, H, W)``: real and imaginary parts apart, an einsum for each product."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        for name in ("weight_in", "bias_in", "weight_out", "bias_out"):
            self.register_parameter(name, nn.Parameter(getattr(mixer, name).value.data.clone()))

    def complex_linear(
        self, real: Tensor, imaginary: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map the channels of each group, ``(B, 8, c, H, Wf)``, as complex numbers."""
        product = partial(torch.einsum, "goi,bighw->boghw")
        shift = bias.transpose(1, 2)[:, None, :, :, None, None]
        return (
            product(weight[0], real) - product(weight[1], imaginary) + shift[0],
            product(weight[0], imaginary) + product(weight[1], real) + shift[1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        spectrum = torch.fft.rfft2(x, norm="ortho")
        grouped = spectrum.reshape(x.shape[0], -1, 8, *spectrum.shape[2:])
        real, imaginary = self.complex_linear(
            grouped.real, grouped.imag, self.weight_in, self.bias_in
        )
        real, imaginary = self.complex_linear(
            real.relu(), imaginary.relu(), self.weight_out, self.bias_out
        )
        mask = torch.view_as_complex(F.softshrink(torch.stack([real, imaginary], -1), 0.01))
        masked = (mask * grouped).reshape(spectrum.shape)
        return torch.fft.irfft2(masked, s=x.shape[2:], norm="ortho") + x


class NaiveSingleHead(nn.Module):
    """SHSA on ``(B, C, H, W)`` with ordinary convolutions and norms."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        self.part = mixer.part_norm.weight.shape[0]
        self.norm = nn.GroupNorm(1, self.part)
        self.fused = nn.Conv2d(self.part, self.part + 32, 1, bias=False)
        self.fused_norm = nn.BatchNorm2d(self.part + 32)
        self.project = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(WIDTH)
        self.norm.load_state_dict(mixer.part_norm.state_dict())
        for name in ("fused", "project"):
            weight = getattr(mixer, name).weight[0, :, :, None, None]
            getattr(self, name).weight.data.copy_(weight)
            norm = f"{name}_norm"
            getattr(self, norm).load_state_dict(getattr(mixer, norm).state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        attending, rest = x.split((self.part, x.shape[1] - self.part), dim=1)
        fused = self.fused_norm(self.fused(self.norm(attending))).flatten(2)
        query, key, value = fused.split((16, 16, self.part), dim=1)
        weights = (query.transpose(1, 2) @ key * 16**-0.5).softmax(-1)
        mixed = (value @ weights.transpose(1, 2)).view_as(attending)
        return self.project_norm(self.project(torch.cat([mixed, rest], dim=1).relu()))


class NaiveAdditive(nn.Module):
    """Fastformer on ``(B, N, C)``, step by step."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        self.heads = WIDTH // mixer.choices["head_width"][0]
        self.query, self.key = unfuse(mixer.query_key)
        self.query_score = unfuse(mixer.query_score)[0]
        self.key_score = linear(mixer.key_score.value, mixer.key_score_bias.value)
        self.transform = unfuse(mixer.transform)[0]

    def pool(self, score: Tensor, values: Tensor) -> Tensor:
        """Sum over the tokens, each head by its own weights."""
        weights = (score.transpose(1, 2) / (WIDTH // self.heads) ** 0.5).softmax(-1).unsqueeze(2)
        split = values.reshape(*values.shape[:2], self.heads, -1).transpose(1, 2)
        return (weights @ split).transpose(1, 2).reshape(-1, 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        query, key = self.query(x), self.key(x)
        global_query = self.pool(self.query_score(query), query).expand(-1, x.shape[1], -1)
        mixed = global_query * key
        global_key = self.pool(self.key_score(mixed), mixed).expand(-1, x.shape[1], -1)
        return self.transform(global_key * query) + query


class NaiveXNorm(nn.Module):
    """UFO's attention on ``(B, N, C)``: K^T V, then two norms."""

    def __init__(self, mixer: nn.Module, side: int) -> None:
        super().__init__()
        self.query, self.key, self.value = unfuse(mixer.query_key_value)
        self.project = unfuse(mixer.project)[0]
        self.gamma = nn.Parameter(mixer.gamma.value.data.clone()[:, None, None])

    def xnorm(self, x: Tensor, axis: int) -> Tensor:
        """Bring each vector along an axis to length gamma."""
        return self.gamma * x / x.norm(dim=axis, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""

        def by_head(tokens: Tensor) -> Tensor:
            return tokens.reshape(*tokens.shape[:2], len(self.gamma), -1).transpose(1, 2)

        query, key, value = by_head(self.query(x)), by_head(self.key(x)), by_head(self.value(x))
        mixed = self.xnorm(query, -1) @ self.xnorm(key.transpose(-2, -1) @ value, -2)
        return self.project(mixed.transpose(1, 2).flatten(2))


class Case(NamedTuple):
    """A mixer, its reference, and the authors' code over fused attention by size."""

    mixer: str
    options: dict[str, object]
    naive: type[nn.Module]
    authors: dict[int, tuple[float, float]]


CASES = {
    "attention": Case("attention", {"num_heads": 8}, NaiveAttention, {}),
    "hilo a0.9": Case(
        "hilo",
        {"num_heads": 8, "alpha": 0.9},
        NaiveHiLo,
        {14: (0.71, 0.64), 28: (0.82, 0.75), 56: (1.14, 0.77)},
    ),
    "hilo a0.5": Case(
        "hilo",
        {"num_heads": 8, "alpha": 0.5},
        NaiveHiLo,
        {14: (0.78, 0.72), 28: (0.47, 0.44), 56: (0.74, 0.51)},
    ),
    "aff": Case("aff", {}, NaiveAFF, {14: (0.99, 0.76), 28: (0.43, 0.35), 56: (0.17, 0.09)}),
    "single_head": Case(
        "single_head", {}, NaiveSingleHead, {14: (0.55, 0.47), 28: (0.29, 0.32), 56: (0.72, 0.66)}
    ),
    "additive": Case(
        "additive",
        {"num_heads": 8},
        NaiveAdditive,
        {14: (0.85, 0.61), 28: (0.27, 0.32), 56: (0.14, 0.10)},
    ),
    "xnorm e256": Case(
        "xnorm",
        {"num_heads": 8},
        NaiveXNorm,
        {14: (0.79, 0.81), 28: (0.35, 0.41), 56: (0.16, 0.14)},
    ),
    "xnorm e128": Case(
        "xnorm",
        {"num_heads": 8, "bottleneck": 0.5},
        NaiveXNorm,
        {14: (0.49, 0.48), 28: (0.22, 0.25), 56: (0.09, 0.07)},
    ),
}
BY_PLANES = {"aff", "single_head"}
"""Mixers whose authors work on ``(B, C, H, W)``; the others work on ``(B, N, C)``."""

TOO_LARGE = {("attention", 56)}
"""A matrix of 2.5 GB, several times over: the reference is left out."""


def randomise(module: nn.Module) -> None:
    """Draw norms and biases anew, so that no branch is shut when outputs are compared."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    for name, parameter in module.named_parameters():
        if "norm.weight" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)


def prepare(case: Case, side: int) -> tuple[Callable[[bool], None], Callable[[bool], None] | None]:
    """Return a call of our mixer and one of its reference, having compared their outputs."""
    mixer = mixers.create(case.mixer, WIDTH, **case.options)
    randomise(mixer)
    x = torch.randn(BATCH, WIDTH, side, side).to(memory_format=torch.channels_last)
    ours = partial(call, mixer, x.requires_grad_())
    if (case.mixer, side) in TOO_LARGE:
        return ours, None
    naive = case.naive(mixer, side)
    planes = case.mixer in BY_PLANES
    y = x.detach().contiguous() if planes else x.detach().flatten(2).transpose(1, 2).contiguous()
    with torch.no_grad():
        expected = naive.eval()(y)
        expected = expected if planes else expected.transpose(1, 2).unflatten(2, (side, side))
        error = (mixer.eval()(x) - expected).abs().max().item()
    if error > 1e-4:
        sys.exit(f"{case.mixer} {case.options} at {side}x{side}: differs by {error:.1e}")
    return ours, partial(call, naive, y.requires_grad_())


def call(module: nn.Module, x: Tensor, backward: bool) -> None:
    """Run a module forward, or forward and backward in training mode."""
    module.train(backward)
    with torch.set_grad_enabled(backward):
        y = module(x)
    if backward:
        y.backward(x.detach().view_as(y))


def timed(run: Callable[[], None], repeats: int) -> float:
    """Return the seconds of one call, averaged over some."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


class Row(NamedTuple):
    """One line of the table: times in milliseconds, ratios as quartiles (25, 50, 75 %)."""

    case: str
    side: int
    backward: bool
    milliseconds: float
    naive: list[float] | None
    mhsa: list[float]
    authors: float | None


def quartiles(values: list[float]) -> list[float]:
    """Return the three quartiles."""
    return statistics.quantiles(values, n=4, method="inclusive")


def measure(names: list[str], side: int, backward: bool, rounds: int) -> list[Row]:
    """Time the named cases at one size, round-robin."""
    attention = Attention(WIDTH, num_heads=HEADS, qkv_bias=True)
    x = torch.randn(BATCH, side * side, WIDTH).requires_grad_()
    pairs = {name: prepare(CASES[name], side) for name in names}
    runs = {(name, i): run for name, pair in pairs.items() for i, run in enumerate(pair) if run}
    runs["mhsa", 0] = partial(call, attention, x)
    calls = {key: partial(run, backward) for key, run in runs.items()}
    repeats = {key: max(1, int(0.02 / timed(run, 2))) for key, run in calls.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, run in calls.items():
            seconds[key].append(timed(run, repeats[key]))

    def ratio(over: tuple[str, int], name: str) -> list[float]:
        pairs = zip(seconds[name, 0], seconds[over], strict=True)
        return quartiles([ours / theirs for ours, theirs in pairs])

    return [
        Row(
            name,
            side,
            backward,
            1e3 * statistics.median(seconds[name, 0]),
            ratio((name, 1), name) if (name, 1) in seconds else None,
            ratio(("mhsa", 0), name),
            CASES[name].authors[side][backward] if side in CASES[name].authors else None,
        )
        for name in names
    ]


def show(row: Row) -> str:
    """Return one line of the table."""

    def ratio(quarters: list[float] | None) -> str:
        if quarters is None:
            return f"{'-':>18}"
        low, middle, high = quarters
        return f"{middle:6.2f} [{low:.2f}-{high:.2f}]"

    verdict = "" if row.naive is None else "slower" if row.naive[0] > 1 else "ok"
    authors = "-" if row.authors is None else f"{row.authors:.2f}"
    return (
        f"{row.case:<12} {row.milliseconds:9.2f} {ratio(row.naive):>18} {verdict:<7}"
        f"{ratio(row.mhsa):>18} {authors:>10}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="rounds of timing")
    parser.add_argument("--sizes", default="14,28,56", help="sides of the grids, by commas")
    parser.add_argument("--cases", default=",".join(CASES), help="lines of the table, by commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {options.threads} threads, width {WIDTH}, batch {BATCH}, "
        f"{options.rounds} rounds; ratios are medians [quartiles]"
    )
    rows = []
    for side in map(int, options.sizes.split(",")):
        for backward in (False, True):
            print(f"\n{side}x{side} tokens, forward{' and backward' if backward else ''}")
            print(
                f"{'mixer':<12} {'ms':>9} {'over its naive':>18} {'':<7}{'over fused MHSA':>18}"
                f" {'authors*':>10}"
            )
            part = measure(options.cases.split(","), side, backward, options.rounds)
            print("\n".join(show(row) for row in part), flush=True)
            rows += part
    print("\n* the authors' code over fused MHSA, timed apart, on another machine of 2 cores")
    slower = [
        f"{r.case} {r.side} backward={r.backward}" for r in rows if r.naive and r.naive[0] > 1
    ]
    print(f"slower than the naive reference beyond noise: {', '.join(slower) or 'none'}")
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
