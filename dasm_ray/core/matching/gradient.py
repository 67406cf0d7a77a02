"""Gradient matching: synthetic images should push a network the way real images of their class do (dc, dsa, idc).

One step is a pure function of fixed shapes: decode, normalise, one augmentation draw for both batches, both gradients,
their distance, its gradient with respect to the pixels, and the pixels' SGD step. Two forms of the same mathematics:

    reference   differentiates through the inner gradient (autograd twice), as the published codes do
    fast        d/dx <grad_theta L(theta, x), v> = d/de grad_x L(theta + e v, x) at e = 0: once v, the distance's
                gradient, is known, the outer derivative is a forward derivative of the image gradient along v, which
                needs no graph of the inner gradient and shares its convolutions; compiled, it is one piece

What must stay true: both give the same pixels up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp

from dasm_ray.core.augment import augment
from dasm_ray.core.compiled import maybe_compiled
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.params import Layout
from dasm_ray.core.train import Network

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
    lengths = real.norm(dim=1) * (synthetic.square().sum(1) + 1e-12).sqrt() + 1e-6
    return (1 - (real * synthetic).sum(1) / lengths).sum()


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _squares, "l1": _absolutes, "cos": _cosines}
"""Distances between the real and the synthetic gradient of one weight."""


def distance(layout: Layout, matcher: str, metric: str, real: Tensor, synthetic: Tensor) -> Tensor:
    """The distance of two flat gradients (P,), summed over the compared parameters: a scalar."""
    compared, measure = MATCHERS[matcher], METRICS[metric]
    pairs = zip(real.split(layout.sizes), synthetic.split(layout.sizes), layout.shapes, strict=True)
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
        step = maybe_compiled(self.network.compile, self.fast_step, self.reference_step)
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
        return grad(self.loss)(flat, self.decoded(pixels, draws), label)

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
        """One matching step for one class, by differentiating twice.

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

    def fast_step(
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
        """The same step by a forward derivative of the pixel gradient; see the head of this file."""
        rate, share = settings.unbind()
        real = grad(self.loss)(flat, self.seen(images, draws), label)
        decoded, pull_back = vjp(lambda pixels: self.decoded(pixels, draws), pixels)
        own = grad(self.loss)(flat, decoded, label)

        def apart(own: Tensor) -> Tensor:
            return distance(self.network.layout, self.matcher, self.metric, real, share * own + earlier)

        direction, loss = grad_and_value(apart)(own)

        def image_gradient(flat: Tensor) -> Tensor:
            return grad(self.loss, argnums=1)(flat, decoded, label)

        _, tangent = jvp(image_gradient, (flat,), (direction,))
        (slope,) = pull_back(tangent)
        velocity = self.momentum * velocity + slope
        return pixels - rate * velocity, velocity, loss
