"""Where a segment starts: real images of its window, packed into slots, or noise.

What must stay true: no real image starts two slots while its class has unused ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.decode import pack
from dasm_ray.core.seed import torch_generator


def initial_pixels(
    config: RunConfig,
    blocks: Blocks,
    windows: Sequence[NDArray[np.int64]],
    used: Sequence[NDArray[np.int64]],
    segment: int,
    chosen: Sequence[NDArray[np.int64]] | None = None,
    classes: Sequence[int] | None = None,
) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Where segment ``segment`` starts: float32 (k, m, C, H, W) in [0, 1], and the within-class indices it used.

    ``classes``: of which (unset: all); ``windows``, ``used`` and ``chosen`` are theirs, in their order. Real images
    come from the window as far as it has unused ones, then from the rest of the class; or they are those ``chosen``
    already, by within-class indices, in the order in which slots take them.
    """
    factor, many = config.start_factor, config.sizes[segment]
    stored, taken = [], []
    for place, label in enumerate(range(len(windows)) if classes is None else classes):
        generator = torch_generator(config.seed, "init", segment, label)
        if config.synthetic.init == "noise":
            stored.append(torch.rand((many, *blocks.shape), generator=generator).numpy())
            taken.append(np.empty(0, np.int64))
            continue
        if chosen is not None:
            indices = chosen[place]
        else:
            indices = _unused(windows[place], used[place], int(blocks.counts[label]), many * factor**2, generator)
        images = torch.from_numpy(blocks.take(indices + blocks.starts[label])).float() / 255
        stored.append(pack(images, factor).numpy())
        taken.append(indices)
    return np.stack(stored), taken


def _unused(
    window: NDArray[np.int64], used: NDArray[np.int64], count: int, wanted: int, generator: torch.Generator
) -> NDArray[np.int64]:
    free = np.setdiff1d(window, used)
    rest = np.setdiff1d(np.arange(count), np.concatenate([window, used]))
    order = [part[torch.randperm(len(part), generator=generator).numpy()] for part in (free, rest)]
    return np.concatenate(order)[:wanted]
