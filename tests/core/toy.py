"""A small world for tests: four classes of tiny pictures that a tiny network can learn."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dasm_ray.config.keys import Model, RunConfig, TrainRecipe
from dasm_ray.config.matchers import MATCHERS, keys_without_meaning
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.networks.network import Network

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


NO_MIX = [0.5, 0.5, 0.5, -1.0]


def twin_of(network: Network, flat: Tensor) -> nn.Module:
    """The network as an ordinary float64 module that holds ``flat``."""
    module = copy.deepcopy(network.module).double()
    module.load_state_dict(network.layout.unflatten(flat.double()), strict=False)
    return module.requires_grad_(True)


def flat_of(network: Network, module: nn.Module) -> Tensor:
    return network.layout.flatten(dict(module.named_parameters())).detach()


def batch_of(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(COUNTS), (count,), generator=generator(seed))
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator(seed + 1)), labels


FIRST = [np.array([1, 4, 5, 7, 8])] * 4


def config_of(segments: int = 2, ipc: int | None = None, **matcher: Any) -> RunConfig:
    synthetic = {name: matcher.pop(name) for name in ("factor", "init", "sizes") if name in matcher}
    seed = matcher.pop("seed", 0)
    defaults = {
        "networks": 2,
        "batch_real": 4,
        "batch_syn": 8,
        "augment": "color_crop_flip",
        "snapshots": [[0, 2], [3, 5]],
        "lr_img": 1.0,
    }
    base = MATCHERS[matcher.get("name", "idc")]
    for key in keys_without_meaning(base, matcher.get("network"), [f"matcher.{name}" for name in defaults]):
        defaults.pop(key.partition(".")[2], None)
    return parse_config(
        {
            "seed": seed,
            "synthetic": {"ipc": ipc or 2 * segments, "segments": segments, "init": "real", **synthetic},
            "experts": {"epochs": 4},
            "matcher": defaults | matcher,
        }
    )
