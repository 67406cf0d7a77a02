"""ZCA whitening: images whose pixels are no longer correlated, turned as little as possible (MTT, DATM; eps 0.1).

What must stay true: fitting adds up over parts of the data, so any workers can share it; images are normalised here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dasm_ray.core.device import numbers


class Sums(NamedTuple):
    """What fitting needs of some images, flattened to D values each."""

    images: int
    total: Tensor  # (D,) float64
    products: Tensor  # (D, D) float64: the sum of x x^T


@dataclass(frozen=True)
class Whitening:
    """``x -> (x - mean) matrix`` on flattened images; float32."""

    mean: Tensor  # (D,)
    matrix: Tensor  # (D, D), symmetric

    def to(self, device: str) -> Whitening:
        """The same on a device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def apply(self, images: Tensor) -> Tensor:
        """Normalised ``images`` (..., C, H, W), whitened."""
        mean, matrix = self.mean.to(images.dtype), self.matrix.to(images.dtype)
        flat: Tensor = (images.reshape(-1, len(mean)) - mean) @ matrix
        return flat.view(images.shape)


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], whitening: Whitening | None, is_own: bool = False
) -> Tensor:
    """Pixels (..., C, H, W) in [0, 1], or uint8, to zero mean and unit variance a channel; then whitened if so.

    ``is_own``: nobody else needs ``images``, which may be worked on in place.
    """
    if images.dtype == torch.uint8:  # a copy is needed anyway
        images, is_own = images.to(torch.float32).div_(255), True
    means, stds = (numbers(v, images.device, images.dtype).view(-1, 1, 1) for v in (mean, std))
    images = images.sub_(means).div_(stds) if is_own else (images - means) / stds
    return images if whitening is None else whitening.apply(images)


CHUNK = 500
"""Images that are multiplied at once: fixed, since the last bits of the sums, and of all after them, depend on it."""


def sums_of(batches: Iterable[Tensor]) -> Sums:
    """The sums over batches of normalised images (n, C, H, W), in the order of the batches."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for images in batches:
        flat = images.flatten(1)
        count += len(flat)
        total = total + flat.sum(0, dtype=torch.float64)
        products = products + (flat.T @ flat).double()
    return Sums(count, total, products)


def fit(parts: Iterable[Sums], eps: float) -> Whitening:
    """The whitening of all images behind ``parts``: U (S + eps)^(-1/2) U^T with the covariance U S U^T (over n - 1)."""
    every = list(parts)
    count = sum(part.images for part in every)
    products = torch.stack([part.products for part in every]).sum(0)
    mean = torch.stack([part.total for part in every]).sum(0) / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = vectors * (values.clamp_min(0) + eps).rsqrt() @ vectors.T
    return Whitening(mean.float(), matrix.float())
