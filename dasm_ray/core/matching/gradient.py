"""Gradient matching: synthetic images should push a network the way real images of their class do (dc, dsa, idc).

One step is a pure function of fixed shapes: decode, normalise, one augmentation draw for both batches, both gradients,
their distance, its gradient with respect to the pixels, and the pixels' SGD step. It differentiates through the inner
gradient (autograd twice), as the published codes do, and has two forms:

    eager       the library's own kernels, one by one: the reference
    compiled    the same function as one piece. What both derivatives share is computed once; inside, the network lays
                its channels innermost and spells out normalisation and pooling (`core.networks.convnet`), so that the
                compiler fuses them, and their first and second derivatives, into few passes over memory

With ``micro``, the most images of a forward, both batches are taken in pieces (`core.matching.pieces`): what is eager
or compiled is then a piece's gradient, and a piece's part of the distance's.

What must stay true: all give the same pixels up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dasm_ray.core.augment import augment
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.derivatives import grad, grad_and_value
from dasm_ray.core.matching.pieces import Pieces
from dasm_ray.core.matching.step import StepInputs, Stepped, descended
from dasm_ray.core.networks.compiled import maybe_compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import Layout
from dasm_ray.core.window import exact

COMPARED: dict[str, Callable[[torch.Size], bool]] = {
    "convolutions": lambda shape: len(shape) == 4,
    "weights": lambda shape: len(shape) >= 2,
}
"""Which parameters' gradients are compared, by their shapes: convolutions alone (idc), or all but vectors (dc, dsa)."""


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


LEAST = 1e-12
"""Keeps a relative distance finite where the real gradient is 0."""

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _squares, "l1": _absolutes, "cos": _cosines}
"""Distances between the real and the synthetic gradient of one weight."""


def left_out(layout: Layout, compared: str, depth: float) -> list[int]:
    """How many of each parameter's output channels, its first, are not compared.

    All of a parameter that is not, and of those that are the first share ``depth`` of all their elements together,
    rounded down to whole channels, since a cosine is one channel's.
    """
    is_compared = COMPARED[compared]
    left = math.floor(exact(depth) * sum(shape.numel() for shape in layout.shapes if is_compared(shape)))
    counts = []
    for shape in layout.shapes:
        channel = shape[1:].numel()
        count = min(shape[0], left // channel) if is_compared(shape) else shape[0]
        left -= count * channel if is_compared(shape) else 0
        left = 0 if count < shape[0] else left  # the cut has been reached
        counts.append(count)
    return counts


def distance(
    layout: Layout, skipped: Sequence[int], metric: str, relative: bool, real: Tensor, synthetic: Tensor
) -> Tensor:
    """The distance of two flat gradients (P,), summed over the compared parameters: a scalar.

    ``skipped``: see ``left_out``. ``relative`` to the length of the real one: sum |d|^2 / (sum |g|^2 + 1e-12) for mse.
    """
    measure = METRICS[metric]
    pairs = zip(torch.split(real, layout.sizes), torch.split(synthetic, layout.sizes), layout.shapes, strict=True)
    parts = [
        (r.view(shape)[count:], s.view(shape)[count:])
        for (r, s, shape), count in zip(pairs, skipped, strict=True)
        if count < shape[0]
    ]
    apart = torch.stack([measure(r, s) for r, s in parts]).sum()
    if not relative:
        return apart
    return apart / (torch.stack([measure(r, torch.zeros_like(r)) for r, _ in parts]).sum() + LEAST)


class GradientMatching:
    """Gradient matching of one class a step: ``compared`` and ``metric`` are rows of COMPARED and METRICS.

    ``depth``: the first share of what is compared that is left out; ``relative``: see ``distance``. ``micro``: the most
    images of a forward; unset: all. No layer may couple the images of a batch then.
    """

    at_once = False
    """A step takes one class."""

    def __init__(
        self,
        network: Network,
        compared: str,
        metric: str,
        augment: str,
        factor: int,
        momentum: float,
        depth: float = 0.0,
        relative: bool = False,
        micro: int | None = None,
    ) -> None:
        assert micro is None or network.model.norm != "batch", "batch normalisation couples the images of a batch"
        self.network, self.metric, self.relative = network, metric, relative
        self.skipped = left_out(network.layout, compared, depth)
        self.augment, self.momentum = augment, momentum
        _, height, width = network.shape
        self.rows, self.columns = (enlargers(side, factor).to(network.device) for side in (height, width))
        whole: Callable[[StepInputs], Stepped] = maybe_compiled(
            network.compile_matching, self.reference_step, kind="match"
        )
        mean: Callable[..., Tensor] = maybe_compiled(network.compile_matching, self.gradient, kind="mean")
        self.step = whole if micro is None else partial(self.step_in_pieces, micro, whole)
        self.mean = mean if micro is None else partial(self.gradient_in_pieces, micro)
        # Of a piece of a batch.
        self._given: Callable[..., Tensor] = maybe_compiled(
            network.compile_matching, grad(self.loss), kind="mean piece"
        )
        self._along: Callable[..., Tensor] = maybe_compiled(
            network.compile_matching, grad(self._part), kind="back piece"
        )

    def nothing(self, flat: Tensor) -> Tensor:
        """What earlier segments add where a segment stands alone: (P,) zeros."""
        return torch.zeros_like(flat)

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

    def reference_step(self, inputs: StepInputs) -> Stepped:
        """One matching step for one class, by differentiating twice; ``step`` is this, compiled if asked for."""
        flat, label, draws = inputs.flat, inputs.label, inputs.draws
        _, share = inputs.settings.unbind()
        real = grad(self.loss)(flat, self.seen(inputs.images, draws), label)

        def apart(pixels: Tensor) -> Tensor:
            synthetic = share * self.gradient(flat, pixels, label, draws) + inputs.earlier
            return distance(self.network.layout, self.skipped, self.metric, self.relative, real, synthetic)

        slope, found = grad_and_value(apart)(inputs.pixels)
        return descended(inputs, slope, self.momentum, found)

    # --- in pieces -----------------------------------------------------------------------------------------------

    def gradient_in_pieces(self, micro: int, flat: Tensor, pixels: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """``gradient``, no more than ``micro`` images at once."""
        return self._decoded_by(micro, draws).mean(lambda images: self._given(flat, images, label), pixels)

    def step_in_pieces(self, micro: int, whole: Callable[[StepInputs], Stepped], inputs: StepInputs) -> Stepped:
        """``reference_step``, no more than ``micro`` images at once; a step that needs no more is taken ``whole``."""
        flat, label, draws = inputs.flat, inputs.label, inputs.draws
        of_real = Pieces(micro, 1, partial(self.seen, draws=draws))
        of_synthetic = self._decoded_by(micro, draws)
        if of_real.holds(len(inputs.images)) and of_synthetic.holds(len(inputs.pixels)):
            return whole(inputs)
        _, share = inputs.settings.unbind()
        real = of_real.mean(lambda images: self._given(flat, images, label), inputs.images)

        def apart(synthetic: Tensor) -> Tensor:
            return distance(self.network.layout, self.skipped, self.metric, self.relative, real, synthetic)

        synthetic = of_synthetic.mean(lambda images: self._given(flat, images, label), inputs.pixels)
        toward, found = grad_and_value(apart)(share * synthetic + inputs.earlier)
        slope = of_synthetic.slope(lambda images: self._along(images, flat, label, toward), inputs.pixels)
        return descended(inputs, share * slope, self.momentum, found)

    def _decoded_by(self, micro: int, draws: Tensor) -> Pieces:
        return Pieces(micro, len(self.rows) ** 2, partial(self.decoded, draws=draws))

    def _part(self, images: Tensor, flat: Tensor, label: Tensor, toward: Tensor) -> Tensor:
        """The gradient of a piece of seen images along ``toward`` (P,): a scalar."""
        return torch.dot(toward, grad(self.loss)(flat, images, label))
