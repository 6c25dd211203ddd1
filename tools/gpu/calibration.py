"""Rates of this device, from which the limits in ``atoms/shard.py`` and plans are to be set."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped
from tools.gpu.timing import seconds

LAUNCHES = 1000


def run(record: Record, how: How) -> None:
    """Measure each rate on its own: one that fails is recorded as an error."""
    size, rows = (64, 256) if how.tiny else (4096, 65536)
    half = torch.bfloat16
    a, b = (normal(size, size, how).to(half) for _ in range(2))
    one, other = (normal(size, size, how) for _ in range(2))
    table = normal(rows, size, how).to(half)
    chosen = torch.randint(rows, (size * 8,), device=how.device)
    flops, moved = 2 * size**3, 2 * chosen.numel() * size * half.itemsize
    rates: dict[str, tuple[Callable[[], Any], float, str]] = {
        "bf16 product": (lambda: a @ b, flops, "FLOP"),
        "bf16 product to fp32": (lambda: to_fp32(a, b), flops, "FLOP"),
        "fp32 product": (lambda: one @ other, flops, "FLOP"),
        "fp32 by two bf16 products": (lambda: split(one, b), flops, "FLOP"),
        "thin bf16 product, 16 rows": (lambda: a[:16] @ b, flops * 16 / size, "FLOP"),
        "copy": (lambda: table.clone(), 2 * table.nbytes, "byte"),
        "gather of rows": (lambda: table[chosen], moved, "byte"),
        "top 16 of a row": (lambda: one.topk(16), one.nbytes, "byte"),
    }
    for name, (call, amount, unit) in rates.items():
        if how.left() < 1:
            raise Stopped(f"no time for {name} and the following")
        try:
            found = seconds({name: call}, how.device, repeats=3 if how.tiny else 20)[name]
            record.put(**{name: {**found, f"{unit}s a second": amount / found["least"]}})
        except Exception as error:
            record.put(**{name: {"error": f"{type(error).__name__}: {error}"}})
    record.put(split_error=split_error(one, other))
    record.put(launches=launches(how))


def normal(rows: int, columns: int, how: How) -> Tensor:
    """Random numbers in float32."""
    generator = torch.Generator(how.device).manual_seed(rows)
    return torch.randn(rows, columns, generator=generator, device=how.device)


def to_fp32(a: Tensor, b: Tensor) -> Tensor:
    """As scores are computed; CPUs have no such product."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def split(one: Tensor, b: Tensor) -> Tensor:
    """A float32 matrix times a bf16 one, by the high and the low halves of the former."""
    high = one.to(b.dtype)
    low = (one - high).to(b.dtype)
    return to_fp32(high, b) + to_fp32(low, b)


def split_error(one: Tensor, other: Tensor) -> float:
    """Largest error of ``split``, relative to the largest number."""
    b = other.to(torch.bfloat16)
    exact = one.double() @ b.double()
    return float((split(one, b).double() - exact).abs().max() / exact.abs().max())


def launches(how: How) -> dict[str, float]:
    """Host seconds of a launch, of torch and of Triton, and device seconds of a launch in line."""
    x = torch.zeros(1, device=how.device)
    found = host_seconds(lambda: x.add_(1), how)
    out = {"torch, host": found[0], "torch, host and device": found[1]}
    if how.device == "cuda" and importlib.util.find_spec("triton"):
        from moram_dist.atoms.kernels import launch

        numbers_TN = torch.zeros(16, 64, device="cuda")
        row_TK = torch.zeros(16, 1, dtype=torch.int16, device="cuda")
        ours = host_seconds(lambda: launch.pick(numbers_TN, row_TK, None, torch.float32), how)
        out |= {"kernel pick, host": ours[0], "kernel pick, host and device": ours[1]}
    return out


def host_seconds(call: Callable[[], Any], how: How) -> tuple[float, float]:
    """Of a call, until the last one is launched and until it has ended."""
    wait = torch.cuda.synchronize if how.device == "cuda" else lambda: None
    call()
    wait()
    begun = time.perf_counter()
    for _ in range(LAUNCHES):
        call()
    launched = time.perf_counter()
    wait()
    ended = time.perf_counter()
    return (launched - begun) / LAUNCHES, (ended - begun) / LAUNCHES
