"""Distribution matching: synthetic images should lie where real ones of their class do, as a network sees them.

    dm      the mean of the last hidden layer, class by class (Zhao and Bilen 2023)
    cafe    the means of all layers, and real images told apart by where the synthetic classes lie (Wang et al. 2022)

A step has the form of `core.matching.gradient`: a pure function of fixed shapes from decoding to the pixels' SGD step,
compiled if the network's other steps are. The network is only run, so one derivative is enough.

What must stay true: both batches of a class get the same augmentation and are run apart, so equal ones are no distance
apart, also under batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, arange, cat, nn, zeros

from dasm_ray.core.augment import augment
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.derivatives import grad_and_value
from dasm_ray.core.matching.step import StepInputs, Stepped, descended
from dasm_ray.core.networks.compiled import maybe_compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import called

COMPARED = ("hidden", "blocks")
"""Which outputs of the network are compared: the last hidden layer (dm), or all blocks', that layer at the end (cafe).
With all blocks, real images are also told apart by the synthetic means."""

DISCRIMINATION = 0.01
"""The weight of cafe's second loss, a sum over the real batch as in the published code."""


LEAST = 1e-8
"""Added to a variance: one image alone has none, and the root of 0 no gradient."""


def spread(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (..., D) from means and means of squares (..., 2D)."""
    mean, square = moments.chunk(2, -1)
    return mean, ((square - mean.square()).clamp_min(0) + LEAST).sqrt()


class DistributionMatching:
    """Distribution matching of K classes a step, or of one: ``compared`` is one of COMPARED.

    All tensors may have a dimension K of classes in front. dm then adds up over classes that know nothing of each other
    (but under batch normalisation, where the published code also takes all classes at once); cafe needs it.
    """

    at_once = True
    """A step takes all classes of a group."""

    def __init__(
        self,
        network: Network,
        compared: str,
        augment: str,
        factor: int,
        momentum: float,
        discrimination: float = DISCRIMINATION,
        deviation: bool = False,
    ) -> None:
        assert compared in COMPARED, compared
        assert compared == "hidden" or not deviation, "real images are told apart by means alone"
        self.network, self.compared, self.augment, self.deviation = network, compared, augment, deviation
        self.momentum, self.discrimination = momentum, discrimination
        _, height, width = network.shape
        self.rows, self.columns = (enlargers(side, factor).to(network.device) for side in (height, width))
        self.step: Callable[[StepInputs], Stepped] = maybe_compiled(network.compile, self.reference_step, kind="match")
        self.mean: Callable[..., Tensor] = maybe_compiled(network.compile, self.means, kind="mean")

    def nothing(self, flat: Tensor) -> Tensor:
        """What earlier segments add where a segment stands alone: a scalar 0."""
        return zeros((), device=flat.device)

    def features(self, flat: Tensor, images: Tensor, draws: Tensor) -> Tensor:
        """What the network makes of ``images`` (..., n, C, H, W), uint8 or in [0, 1], augmented: (..., n, D).

        D is the width d of the last hidden layer (dm) or of all blocks' outputs together, that layer last (cafe).
        """
        *front, count = images.shape[:-3]
        seen = self.network.normalise(images.flatten(0, -4))
        if len(draws) > 1:
            draws = draws.repeat_interleave(count, 0)
        seen = augment(seen, draws, self.augment)
        values = self.network.layout.unflatten(flat)
        found = called(self.network.module, values, seen, **{self.compared: True})
        return found.view(*front, count, -1)

    def means(self, flat: Tensor, pixels: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """Mean features (..., D) of stored ``pixels`` (..., m, C, H, W): what earlier segments may add to a step's.

        With ``deviation`` (..., 2D), the means of their squares behind, since these too add up over segments.
        """
        rows, columns = self.rows.to(pixels.dtype), self.columns.to(pixels.dtype)
        decoded = decode(pixels.flatten(0, -4), rows, columns)
        front = pixels.shape[:-4]
        return self.moments(self.features(flat, decoded.view(*front, -1, *pixels.shape[-3:]), draws))

    def moments(self, features: Tensor) -> Tensor:
        """Means (..., D) of ``features`` (..., n, D); with ``deviation`` those of their squares behind (..., 2D)."""
        return (cat([features, features.square()], -1) if self.deviation else features).mean(-2)

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """From real features (..., b, D) to synthetic ``means``, summed over layers and classes: a scalar.

        With ``deviation`` the squared distance of standard deviations is added to that of means.
        """
        if self.deviation:
            pairs = zip(spread(self.moments(real)), spread(synthetic), strict=True)
            first, second = ((r - s).square().sum() for r, s in pairs)
            return first + second
        apart = (real.mean(-2) - synthetic).square().sum()
        return apart + self.discrimination * self.confusion(real, synthetic) if self.compared == "blocks" else apart

    def confusion(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Cross-entropy of real features (K, b, D) classified by synthetic means (K, D), last hidden layer: a scalar.

        The logit of a class is the inner product with its mean; summed over all K*b, as in the published code of CAFE.
        """
        last = self.network.module.linear
        assert isinstance(last, nn.Linear)
        width = last.in_features
        classes, count, _ = real.shape
        logits = real[..., -width:].flatten(0, 1) @ synthetic[:, -width:].T
        labels = arange(classes, device=logits.device).repeat_interleave(count)
        return F.cross_entropy(logits, labels, reduction="sum")

    def reference_step(self, inputs: StepInputs) -> Stepped:
        """One step for one class (dm), or for K classes at once; ``step`` is this, compiled if asked for."""
        flat, draws = inputs.flat, inputs.draws
        _, share = inputs.settings.unbind()
        real = self.features(flat, inputs.images, draws)

        def apart(pixels: Tensor) -> Tensor:
            return self.distance(real, share * self.means(flat, pixels, inputs.label, draws) + inputs.earlier)

        slope, found = grad_and_value(apart)(inputs.pixels)
        return descended(inputs, slope, self.momentum, found)
