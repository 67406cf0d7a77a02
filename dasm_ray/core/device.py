"""A device that is not the processor: what the host brings to it without waiting, and how it multiplies.

Whoever copies from ordinary memory, or asks a device for a number, waits for all that it has been given to do. What
must stay true: on the processor nothing here copies or changes anything; elsewhere nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def sent(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A ``tensor`` of the host on a device, by way of memory that the device reads itself; nobody waits for the copy.

    The host's own tensor may change or go at once: what is copied from is given back when the copy is over.
    """
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers(values: float | Sequence[float], device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Python numbers as a tensor on a device; inside a step that is being compiled they become part of it."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return sent(torch.tensor(values, dtype=dtype), device)


def ahead(items: Iterable[Item], device: str) -> Iterator[Item]:
    """The same items in the same order; off the processor each is made, by a thread, while the one before is used.

    ``items`` runs in that thread alone, one item ahead, and is asked for nothing beyond its end. What it raises is
    raised where its item would have come. An iterator that is given up leaves no thread behind.
    """
    if device == "cpu":
        yield from items
        return
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]  # not the end


def multiply_as(precision: str, device: str) -> None:
    """How this process's GPU multiplies from now on: float32 as it is, or with bf16 also all else in TF32.

    Algorithms are those that give the same bits again. The processor has no such switches.
    """
    if device == "cpu":
        return
    is_rounded = precision == "bf16"
    torch.backends.cuda.matmul.allow_tf32 = is_rounded
    torch.backends.cudnn.allow_tf32 = is_rounded
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
