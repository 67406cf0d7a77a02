"""A small world for tests: four classes of tiny pictures that a tiny network can learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config import Model, TrainRecipe
from dasm_ray.core.real import Blocks
from dasm_ray.core.train import Network

COUNTS, SHAPE = (12, 9, 10, 11), (3, 8, 8)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)
RECIPE = TrainRecipe(epochs=2, batch=8, lr=0.05, augment="none", cutmix=0.0)


def toy_network(norm: str = "instance", **more: Any) -> Network:
    """One block of four channels, eager."""
    model = Model(width=more.pop("width", 4), depth=more.pop("depth", 1), norm=norm)
    return Network(model, SHAPE, len(COUNTS), MEAN, STD, compile=False, **more)


def toy_arrays(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Each class is one random picture under noise. Arrays that may not be written to, as in shared memory."""
    patterns = np.random.default_rng(7).uniform(40, 215, (len(counts), *SHAPE))
    generator = np.random.default_rng(seed)
    made = []
    for pattern, count in zip(patterns, counts, strict=True):
        block = np.clip(pattern + generator.normal(0, 40, (count, *SHAPE)), 0, 255).astype(np.uint8)
        block.setflags(write=False)
        made.append(block)
    return made


def toy_blocks(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> Blocks:
    """The same as a split."""
    return Blocks(toy_arrays(counts, seed))


@dataclass(frozen=True)
class WatchedBlocks(Blocks):
    """Blocks that write down which global indices are taken, call by call."""

    taken: list[list[int]] = field(default_factory=list)

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.taken.append(indices.tolist())
        return super().take(indices)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
