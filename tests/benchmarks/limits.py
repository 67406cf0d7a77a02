"""What this machine can do at most, on one thread: its processor, and convolutions, products and copies a second.

What must stay true: a limit is the best of several tries in CPU time, since neighbours only ever make one slower.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

TRIES = 5

TOLD = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
"""Flags of a processor that say how fast it can multiply."""

BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Those of arithmetic in bfloat16."""


def processor() -> dict[str, object]:
    """Name and flags of the processor as Linux tells them; elsewhere what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"name": platform.processor() or platform.machine(), "flags": [], "bf16": False}
    fields = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    named = {name.strip().lower(): value.strip() for name, value in fields.items()}
    flags = set((named.get("flags") or named.get("features") or "").split())
    return {
        "name": named.get("model name") or platform.machine(),
        "flags": [flag for flag in TOLD if flag in flags],
        "bf16": bool(flags & set(BF16)),
    }


def convolution(dtype: torch.dtype = torch.float32) -> float:
    """FLOP a CPU second of a 3x3 convolution, 128 channels to 128, channels innermost."""
    images = torch.randn(32, 128, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    return _rate(lambda: F.conv2d(images, weight, padding=1), 2 * 32 * 256 * 128 * 128 * 9)


def product(dtype: torch.dtype = torch.float32) -> float:
    """FLOP a CPU second of a product of two matrices of 1024 x 1024."""
    one, other = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    return _rate(lambda: one @ other, 2 * 1024**3)


def copying() -> float:
    """Bytes a CPU second, read and written, of a copy of 256 MiB."""
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    return _rate(lambda: target.copy_(source), 2 * 4 << 26)


@torch.no_grad()
def _rate(once: Callable[[], object], work: int) -> float:
    once()
    best = float("inf")
    for _ in range(TRIES):
        began = time.process_time()
        once()
        best = min(best, time.process_time() - began)
    return work / best


def limits() -> dict[str, float]:
    """All of them; in bfloat16 only where the processor has such arithmetic."""
    found = {"convolution_fp32": convolution(), "product_fp32": product(), "copying": copying()}
    if processor()["bf16"]:
        found |= {"convolution_bf16": convolution(torch.bfloat16), "product_bf16": product(torch.bfloat16)}
    return found
