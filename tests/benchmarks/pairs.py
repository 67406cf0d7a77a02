"""What a row of the benchmarks is: the package's own call and its plain twin on the same inputs.

What must stay true: both calls start from the same inputs whenever they are made and change none of them, so that any
call may be timed, and their results compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import peers
import torch
from torch import Tensor

from dasm_ray.config.keys import Model
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.seed import torch_generator

DSA = "color_crop_cutout_flip_scale_rotate"
"""The augmentations of the published recipes."""

CLASSES, MEAN, STD = 10, (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)


@dataclass(frozen=True)
class Sizes:
    """How large the problems are: the ConvNet's ``width``; ``quick`` takes small ones, to see that all works.

    ``precision``: what the package's own convolutions take in, see `runtime.precision`; the twin's take float32.
    """

    width: int
    quick: bool = False
    precision: str = "float32"

    def pick(self, usual: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else usual

    @property
    def size(self) -> int:
        """Rows and columns of an image."""
        return self.pick(32, 16)

    @property
    def depth(self) -> int:
        """Blocks of the network."""
        return self.pick(3, 2)


def gap(ours: Any, twin: Any) -> float:
    """The relative difference of two results: tensors, or sequences of them, as one vector each; in their norm."""
    one, other = (
        torch.cat([torch.as_tensor(part).detach().double().flatten() for part in each]) for each in (ours, twin)
    )
    return float((one - other).norm() / other.norm())


@dataclass(frozen=True)
class Pair:
    """``ours`` and ``twin`` do the same work on ``units`` ``unit``; ``apart`` says how far their results differ."""

    ours: Callable[[], Any]
    twin: Callable[[], Any]
    units: int
    unit: str = "images"
    apart: Callable[[Any, Any], float] = gap


class World:
    """A network of both kinds with the same values, and random images that both may read."""

    def __init__(self, sizes: Sizes, seed: str, compile: bool | None = None) -> None:
        self.sizes, self.generator = sizes, torch_generator("benchmark", seed)
        shape = (3, sizes.size, sizes.size)
        # Compiled or not as a run of this size would have it: `Network` decides.
        model = Model(width=sizes.width, depth=sizes.depth)
        self.network = Network(model, shape, CLASSES, MEAN, STD, compile=compile, precision=sizes.precision)
        self.flat = self.network.initial(self.generator)

    def net(self, flat: Tensor | None = None) -> peers.ConvNet:
        """The plain network with the values of the package's, or others."""
        plain = peers.ConvNet(3, self.sizes.size, CLASSES, self.sizes.width, self.sizes.depth)
        return peers.filled(plain, self.flat if flat is None else flat)

    def levels(self, *front: int) -> Tensor:
        """Random pixels, uint8 (..., C, H, W)."""
        shape = (*front, *self.network.shape)
        return torch.randint(0, 256, shape, generator=self.generator, dtype=torch.uint8)

    def real(self, each: int) -> tuple[RealSamples, Tensor, Tensor]:
        """Real images, ``each`` of a class: as the package holds them, and normalised with labels as its peers do."""
        images = self.levels(CLASSES, each)
        samples = RealSamples(self.network, Blocks(list(images.numpy())))
        plain = peers.normalised(images.flatten(0, 1).float() / 255, MEAN, STD)
        return samples, plain, torch.arange(CLASSES).repeat_interleave(each)


def share_of_other_picks(ours: Any, twin: Any) -> float:
    """Of several selections, the share of places at which they differ."""
    return float(np.mean(np.asarray(ours) != np.asarray(twin)))
