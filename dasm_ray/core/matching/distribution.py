"""Distribution matching: synthetic images should lie where real ones of their class do, as a network sees them.

    dm      the mean of the last hidden layer, class by class (Zhao and Bilen 2023)
    cafe    the means of all layers, and real images told apart by where the synthetic classes lie (Wang et al. 2022)

A step has the form of `core.matching.gradient`: a pure function of fixed shapes from decoding to the pixels' SGD step,
compiled if the network's other steps are. The network is only run, so one derivative is enough. With ``micro``, the
most images of a forward, both batches are taken class by class in pieces (`core.matching.pieces`).

What must stay true: both batches of a class get the same augmentation and are run apart, so equal ones are no distance
apart, also under batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, arange, cat, dot, nn, stack, zeros

from dasm_ray.core.augment import augment
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.derivatives import grad, grad_and_value
from dasm_ray.core.matching.pieces import Pieces
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
    (but under batch normalisation, where the published code also takes all classes at once); cafe needs it. ``micro``:
    the most images of a forward; unset: all. No layer may couple the images of a batch then.
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
        micro: int | None = None,
    ) -> None:
        assert compared in COMPARED, compared
        assert micro is None or network.model.norm != "batch", "batch normalisation couples the images of a batch"
        assert compared == "hidden" or not deviation, "real images are told apart by means alone"
        self.network, self.compared, self.augment, self.deviation = network, compared, augment, deviation
        self.momentum, self.discrimination = momentum, discrimination
        _, height, width = network.shape
        self.rows, self.columns = (enlargers(side, factor).to(network.device) for side in (height, width))
        compile_it = network.compile_matching
        whole: Callable[[StepInputs], Stepped] = maybe_compiled(compile_it, self.reference_step, kind="match")
        mean: Callable[..., Tensor] = maybe_compiled(compile_it, self.means, kind="mean")
        taken: Callable[[StepInputs], Stepped] = self.step_by_class if self.reads_by_class else whole
        self.step = taken if micro is None else partial(self.step_in_pieces, micro, whole)
        self.mean = mean if micro is None else partial(self.means_in_pieces, micro)
        # Of the real images of a class, and what is left of a step when those of all classes are known.
        self._real: Callable[..., Tensor] = maybe_compiled(compile_it, self.features, kind="read class")
        self._toward: Callable[..., Stepped] = maybe_compiled(compile_it, self.step_toward, kind="match rest")
        # Of a piece of a batch.
        self._given: Callable[..., Tensor] = maybe_compiled(compile_it, self.shown, kind="read piece")
        self._along: Callable[..., Tensor] = maybe_compiled(compile_it, grad(self._part), kind="mean piece")

    @property
    def reads_by_class(self) -> bool:
        """Whether real images, of which no gradient is asked for, are shown class by class, as published codes do.

        A CPU is no slower so, and holds one class's for all. A GPU takes all at once, and so does batch normalisation,
        which couples them.
        """
        return self.network.device == "cpu" and self.network.model.norm != "batch"

    def nothing(self, flat: Tensor) -> Tensor:
        """What earlier segments add where a segment stands alone: a scalar 0."""
        return zeros((), device=flat.device)

    def features(self, flat: Tensor, images: Tensor, draws: Tensor) -> Tensor:
        """What the network makes of ``images`` (..., n, C, H, W), uint8 or in [0, 1], augmented: (..., n, D).

        D is the width d of the last hidden layer (dm) or of all blocks' outputs together, that layer last (cafe).
        """
        *front, count = images.shape[:-3]
        if len(draws) > 1:
            draws = draws.repeat_interleave(count, 0)
        return self.shown(flat, self.seen(images.flatten(0, -4), draws)).view(*front, count, -1)

    def seen(self, images: Tensor, draws: Tensor) -> Tensor:
        """What the network sees of ``images`` (n, C, H, W), uint8 or in [0, 1]: normalised and augmented."""
        return augment(self.network.normalise(images), draws, self.augment)

    def shown(self, flat: Tensor, seen: Tensor) -> Tensor:
        """The features (n, D) of seen images (n, C, H, W)."""
        return called(self.network.module, self.network.layout.unflatten(flat), seen, **{self.compared: True})

    def means(self, flat: Tensor, pixels: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """Mean features (..., D) of stored ``pixels`` (..., m, C, H, W): what earlier segments may add to a step's.

        With ``deviation`` (..., 2D), the means of their squares behind, since these too add up over segments.
        """
        decoded = self.decoded(pixels.flatten(0, -4))
        front = pixels.shape[:-4]
        return self.moments(self.features(flat, decoded.view(*front, -1, *pixels.shape[-3:]), draws))

    def decoded(self, pixels: Tensor) -> Tensor:
        """Training images (m*f*f, C, H, W) of stored ``pixels`` (m, C, H, W)."""
        return decode(pixels, self.rows.to(pixels.dtype), self.columns.to(pixels.dtype))

    def moments(self, features: Tensor) -> Tensor:
        """Means (..., D) of ``features`` (..., n, D); with ``deviation`` those of their squares behind (..., 2D)."""
        return (cat([features, features.square()], -1) if self.deviation else features).mean(-2)

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """From real features (..., b, D) to synthetic ``means``, summed over layers and classes: a scalar."""
        return self.between(self.moments(real), self.last(real), synthetic)

    def between(self, real: Tensor, last: Tensor, synthetic: Tensor) -> Tensor:
        """The same from real ``moments``, and the last hidden layer (..., b, d) of the real images, which cafe needs.

        With ``deviation`` the squared distance of standard deviations is added to that of means.
        """
        if self.deviation:
            pairs = zip(spread(real), spread(synthetic), strict=True)
            first, second = ((r - s).square().sum() for r, s in pairs)
            return first + second
        apart = (real - synthetic).square().sum()
        return apart + self.discrimination * self.confusion(last, synthetic) if self.compared == "blocks" else apart

    def last(self, features: Tensor) -> Tensor:
        """The last hidden layer (..., d) of ``features`` (..., D)."""
        if self.compared == "hidden":
            return features
        linear = self.network.module.linear
        assert isinstance(linear, nn.Linear)
        return features[..., -linear.in_features :]

    def confusion(self, last: Tensor, synthetic: Tensor) -> Tensor:
        """Cross-entropy of the real images' last hidden layer (K, b, d) classified by synthetic means (K, D): a scalar.

        The logit of a class is the inner product with its mean; summed over all K*b, as in the published code of CAFE.
        """
        classes, count, width = last.shape
        logits = last.flatten(0, 1) @ synthetic[:, -width:].T
        labels = arange(classes, device=logits.device).repeat_interleave(count)
        return F.cross_entropy(logits, labels, reduction="sum")

    def reference_step(self, inputs: StepInputs) -> Stepped:
        """One step for one class (dm), or for K classes at once; ``step`` is this, compiled if asked for."""
        return self.step_toward(inputs, self.features(inputs.flat, inputs.images, inputs.draws))

    def step_by_class(self, inputs: StepInputs) -> Stepped:
        """``reference_step``, the real images of one class at once, where there are several."""
        of_class = inputs.images.reshape(-1, *inputs.images.shape[-4:])
        own = _by_class(inputs.draws, len(of_class))
        real = [self._real(inputs.flat, images, draws) for images, draws in zip(of_class, own, strict=True)]
        return self._toward(inputs, stack(real).view(*inputs.images.shape[:-3], -1))

    def step_toward(self, inputs: StepInputs, real: Tensor) -> Stepped:
        """One step toward real features (..., b, D)."""
        flat, draws = inputs.flat, inputs.draws
        _, share = inputs.settings.unbind()

        def apart(pixels: Tensor) -> Tensor:
            return self.distance(real, share * self.means(flat, pixels, inputs.label, draws) + inputs.earlier)

        slope, found = grad_and_value(apart)(inputs.pixels)
        return descended(inputs, slope, self.momentum, found)

    # --- in pieces -----------------------------------------------------------------------------------------------

    def means_in_pieces(self, micro: int, flat: Tensor, pixels: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """``means``, no more than ``micro`` images of one class at once."""
        of_class = pixels.reshape(-1, *pixels.shape[-4:])
        means = [
            pieces.mean(lambda images: self.moments(self._given(flat, images)), stored)
            for stored, pieces in zip(of_class, self._of_synthetic(micro, draws, len(of_class)), strict=True)
        ]
        return stack(means).view(*pixels.shape[:-4], -1)

    def step_in_pieces(self, micro: int, whole: Callable[[StepInputs], Stepped], inputs: StepInputs) -> Stepped:
        """``reference_step``, no more than ``micro`` images of one class at once; ``whole`` where it needs no more."""
        flat, draws, pixels = inputs.flat, inputs.draws, inputs.pixels
        of_class = pixels.reshape(-1, *pixels.shape[-4:])
        if max(inputs.images.shape[:-3].numel(), of_class.shape[:2].numel() * len(self.rows) ** 2) <= micro:
            return whole(inputs)
        _, share = inputs.settings.unbind()
        real, last = self._real_in_pieces(micro, flat, inputs.images, draws)
        synthetic = share * self.means_in_pieces(micro, flat, pixels, inputs.label, draws) + inputs.earlier
        toward, found = grad_and_value(partial(self.between, real, last))(synthetic)

        def along(of_this: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda images: self._along(images, flat, of_this)

        of_synthetic = self._of_synthetic(micro, draws, len(of_class))
        slopes = [
            pieces.slope(along(of_this), stored)
            for stored, of_this, pieces in zip(of_class, toward.view(len(of_class), -1), of_synthetic, strict=True)
        ]
        return descended(inputs, share * stack(slopes).view(pixels.shape), self.momentum, found)

    def _real_in_pieces(self, micro: int, flat: Tensor, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """``moments`` (..., D) of real ``images`` (..., b, C, H, W), and, for cafe, the last layer of each."""
        of_class, last = images.reshape(-1, *images.shape[-4:]), list[Tensor]()

        def given(shown: Tensor) -> Tensor:
            features = self._given(flat, shown)
            if self.compared == "blocks":
                last.append(self.last(features).clone())
            return self.moments(features)

        moments = stack(
            [
                Pieces(micro, 1, partial(self.seen, draws=own)).mean(given, of_this)
                for of_this, own in zip(of_class, _by_class(draws, len(of_class)), strict=True)
            ]
        ).view(*images.shape[:-4], -1)
        return moments, cat(last).view(*images.shape[:-3], -1) if last else moments

    def _of_synthetic(self, micro: int, draws: Tensor, classes: int) -> list[Pieces]:
        """How each class's stored images are cut."""

        def seen(pixels: Tensor, own: Tensor) -> Tensor:
            return self.seen(self.decoded(pixels), own)

        return [Pieces(micro, len(self.rows) ** 2, partial(seen, own=own)) for own in _by_class(draws, classes)]

    def _part(self, images: Tensor, flat: Tensor, toward: Tensor) -> Tensor:
        """The moments of a piece of seen images along ``toward`` (D,): a scalar."""
        return dot(toward, self.moments(self.shown(flat, images)))


def _by_class(draws: Tensor, classes: int) -> list[Tensor]:
    """A draw (1, DRAWS) for each class."""
    return [own[None] for own in draws] if len(draws) > 1 else [draws] * classes
