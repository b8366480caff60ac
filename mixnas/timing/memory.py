"""Peak memory of one inference, as the device's allocator tells it."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mixnas.timing.conditions import Conditions
from mixnas.timing.reference import Shape
from mixnas.timing.runtimes import RUNTIMES_HERE, Call, images


def peak_memory(module: nn.Module, shape: Shape, conditions: Conditions) -> int | None:
    """Return the bytes that one inference takes at its peak, measured.

    Parameters, buffers and the input, and the greatest number of bytes that torch's allocator
    had given out beside them at one moment of the second run: activations and what kernels take
    from it as scratch. What libraries allocate for themselves is not seen.

    Args:
        module: it is moved, and may be converted, by the runtime.
        shape: the input without the batch, ``(C, H, W)``.
        conditions: device, runtime, batch and precision.

    Returns:
        ``None`` where the device or the runtime cannot tell (mps, ONNX Runtime).
    """
    tellers = {"cpu": _on_cpu, "cuda": _on_cuda}
    tell = tellers.get(conditions.place.type)
    if tell is None or conditions.runtime not in RUNTIMES_HERE:
        return None
    call = RUNTIMES_HERE[conditions.runtime].place(module, shape, conditions)
    stored = [*module.parameters(), *module.buffers(), images(shape, conditions)]
    with torch.inference_mode():
        call()
        return sum(tensor.nbytes for tensor in stored) + tell(call, conditions.place)


def _on_cuda(call: Call, device: torch.device) -> int:
    """Return the bytes allocated at the peak of a call, beyond those allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Call, device: torch.device) -> int:
    """Return the same of the CPU's allocator, of the profiler's record of each request."""
    with (
        _hushed(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
    ):
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    return highest(trace["traceEvents"])


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep the log lines of the profiler's library (Kineto) from the user's terminal."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


def highest(events: Sequence[Mapping[str, Any]]) -> int:
    """Return the greatest running total of the CPU's allocations and frees in a profiler's trace.

    Args:
        events: of the trace; those named ``[memory]`` carry ``Bytes``, negative for a free.
    """
    requests = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0
    ]
    total = peak = 0
    for _, size in sorted(requests, key=lambda request: request[0]):
        total += size
        peak = max(peak, total)
    return peak
