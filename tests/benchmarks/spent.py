"""Where the time of a call goes: convolutions, their derivatives, products, compiled loops, copies, and the rest.

What must stay true: every operation counts once, by the time of its own and not of what it calls; shares add up to 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

KINDS = {
    "convolutions": r"convolution(?!_backward)|conv2d|conv_pointwise",
    "their derivatives": r"convolution_backward|_conv_transpose",
    "products": r"::(mm|bmm|addmm|baddbmm|dot|linear)|_linear_pointwise",
    "compiled loops": r"CompiledFxGraph",
    "copies": r"::(copy_|_to_copy|to|clone|contiguous|cat|stack|index|index_select|gather)$",
}
"""Names of operations, as torch's profiler has them; what none of these knows is the rest."""

REST = "rest"


def spent(call: Callable[[], Any]) -> dict[str, float]:
    """Shares of the CPU time of one call, by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return shares((event.key, event.self_cpu_time_total) for event in seen.key_averages())


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of operations and their own times, the shares of kinds."""
    found = dict.fromkeys((*KINDS, REST), 0.0)
    for name, took in times:
        found[kind_of(name)] += took
    total = sum(found.values()) or 1.0
    return {kind: took / total for kind, took in found.items()}


def kind_of(name: str) -> str:
    """Which kind an operation is of."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), REST)


def bound(found: Mapping[str, float], ratio: float) -> float:
    """What a ratio would be if all but convolutions and products cost nothing: more needs fewer or faster ones."""
    kept = sum(found[kind] for kind in ("convolutions", "their derivatives", "products"))
    return ratio / max(kept, 1e-9)
