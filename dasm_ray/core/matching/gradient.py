"""Gradient matching: synthetic images should push a network the way real images of their class do (dc, dsa, idc).

One step is a pure function of fixed shapes: decode, normalise, one augmentation draw for both batches, both gradients,
their distance, its gradient with respect to the pixels, and the pixels' SGD step. It differentiates through the inner
gradient (autograd twice), as the published codes do, and has two forms:

    eager       the library's own kernels, one by one: the reference
    compiled    the same function as one piece. What both derivatives share is computed once; inside, the network lays
                its channels innermost and spells out normalisation and pooling (`core.networks.convnet`), so that the
                compiler fuses them, and their first and second derivatives, into few passes over memory

What must stay true: both give the same pixels up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from dasm_ray.core.augment import augment
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.networks.compiled import maybe_compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import Layout

MATCHERS: dict[str, Callable[[torch.Size], bool]] = {
    "idc": lambda shape: len(shape) == 4,
    "dsa": lambda shape: len(shape) >= 2,
    "dc": lambda shape: len(shape) >= 2,
}
"""Which parameters' gradients are compared: idc convolution weights only; dc and dsa all weights, no vectors."""


def _squares(real: Tensor, synthetic: Tensor) -> Tensor:
    return (real - synthetic).square().sum()


def _absolutes(real: Tensor, synthetic: Tensor) -> Tensor:
    return (real - synthetic).abs().sum()


def _cosines(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over output channels of one minus the cosine (DC, eq. 10)."""
    real, synthetic = real.flatten(1), synthetic.flatten(1)
    lengths = torch.linalg.vector_norm(real, dim=1) * (synthetic.square().sum(1) + 1e-12).sqrt() + 1e-6
    apart: Tensor = 1 - (real * synthetic).sum(1) / lengths
    return apart.sum()


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _squares, "l1": _absolutes, "cos": _cosines}
"""Distances between the real and the synthetic gradient of one weight."""


def distance(layout: Layout, matcher: str, metric: str, real: Tensor, synthetic: Tensor) -> Tensor:
    """The distance of two flat gradients (P,), summed over the compared parameters: a scalar."""
    compared, measure = MATCHERS[matcher], METRICS[metric]
    pairs = zip(torch.split(real, layout.sizes), torch.split(synthetic, layout.sizes), layout.shapes, strict=True)
    return torch.stack([measure(r.view(shape), s.view(shape)) for r, s, shape in pairs if compared(shape)]).sum()


@dataclass(frozen=True)
class Matching:
    """What one matching step needs to know beside its tensors."""

    network: Network
    matcher: str
    metric: str
    augment: str
    factor: int
    momentum: float

    def __post_init__(self) -> None:
        _, height, width = self.network.shape
        object.__setattr__(self, "rows", enlargers(height, self.factor).to(self.network.device))
        object.__setattr__(self, "columns", enlargers(width, self.factor).to(self.network.device))
        step = maybe_compiled(self.network.compile, self.reference_step)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "mean_gradient", maybe_compiled(self.network.compile, self.gradient))

    # Set above: constants and functions that follow from the fields.
    rows: Tensor = None  # type: ignore[assignment]
    columns: Tensor = None  # type: ignore[assignment]
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] = None  # type: ignore[assignment]
    mean_gradient: Callable[..., Tensor] = None  # type: ignore[assignment]

    def seen(self, images: Tensor, draws: Tensor) -> Tensor:
        """What the network sees of ``images`` (n, C, H, W), uint8 or in [0, 1]: normalised and augmented."""
        return augment(self.network.normalise(images), draws, self.augment)

    def decoded(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """What the network sees of stored ``pixels`` (m, C, H, W): (m*f*f, C, H, W)."""
        return self.seen(decode(pixels, self.rows.to(pixels.dtype), self.columns.to(pixels.dtype)), draws)

    def loss(self, flat: Tensor, images: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy of seen ``images`` (n, C, H, W) of class ``label``: a scalar."""
        return F.cross_entropy(self.network.logits(flat, images), label.expand(len(images)))

    def gradient(self, flat: Tensor, pixels: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """The gradient (P,) of the loss of stored ``pixels`` with respect to the parameters."""
        gradient: Tensor = grad(self.loss)(flat, self.decoded(pixels, draws), label)
        return gradient

    def reference_step(
        self,
        flat: Tensor,
        pixels: Tensor,
        velocity: Tensor,
        images: Tensor,
        label: Tensor,
        draws: Tensor,
        earlier: Tensor,
        settings: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One matching step for one class, by differentiating twice; `step` is this, compiled if asked for.

        flat (P,); pixels, velocity (m, C, H, W); images (b, C, H, W) uint8; label (); draws (1, DRAWS); earlier (P,):
        what earlier segments add to the synthetic gradient (0 where a segment stands alone); settings (2,): pixel rate
        and the share of this segment in the synthetic gradient. Returns new pixels, velocity and the distance.
        """
        rate, share = settings.unbind()
        real = grad(self.loss)(flat, self.seen(images, draws), label)

        def apart(pixels: Tensor) -> Tensor:
            synthetic = share * self.gradient(flat, pixels, label, draws) + earlier
            return distance(self.network.layout, self.matcher, self.metric, real, synthetic)

        slope, loss = grad_and_value(apart)(pixels)
        velocity = self.momentum * velocity + slope
        return pixels - rate * velocity, velocity, loss
