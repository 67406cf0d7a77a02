"""What one matching step takes and gives, the same for gradients and for distributions.

What must stay true: a step is a pure function of fixed shapes, so that it is compiled once and reused for all classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepInputs(NamedTuple):
    """All that a matching step reads, for one class; for distributions a dimension of K classes may stand in front."""

    flat: Tensor
    """(P,): the network state that is matched at."""
    pixels: Tensor
    """(m, C, H, W) in [0, 1]: stored synthetic images."""
    velocity: Tensor
    """(m, C, H, W): of SGD with momentum on the pixels."""
    images: Tensor
    """(b, C, H, W) uint8: real images."""
    label: Tensor
    """(): the class; of no use to distributions."""
    draws: Tensor
    """(1, DRAWS): one augmentation for both batches; distributions may have one a class, (K, DRAWS)."""
    earlier: Tensor
    """What earlier segments add to the synthetic side, of its shape; 0 where a segment stands alone."""
    settings: Tensor
    """(2,): the rate of the pixels, and the share of this segment in the synthetic side."""


class Stepped(NamedTuple):
    """What a matching step gives."""

    pixels: Tensor
    velocity: Tensor
    distance: Tensor
    """()"""


def descended(inputs: StepInputs, slope: Tensor, momentum: float, distance: Tensor) -> Stepped:
    """The pixels one step of SGD with ``momentum`` against ``slope``, the gradient of ``distance`` by them."""
    rate, _ = inputs.settings.unbind()
    velocity = momentum * inputs.velocity + slope
    return Stepped(inputs.pixels - rate * velocity, velocity, distance)
