"""Whitening against its definition, image by image in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dasm_ray.core.whiten import Sums, Whitening, fit, normalise, sums_of

EPS = 0.1


def images(count: int = 60) -> torch.Tensor:
    """Correlated pictures (n, 2, 3, 4)."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator) / 5
    return (torch.randn(count, 24, generator=generator) @ mix + 0.3).view(count, 2, 3, 4)


def fitted(*sizes: int) -> Whitening:
    return fit([sums_of([part]) for part in images().split(sizes or (60,))], EPS)


def test_it_is_zca_as_defined() -> None:
    flat = images().double().flatten(1).numpy()
    mean = flat.mean(0)
    covariance = sum(np.outer(row - mean, row - mean) for row in flat) / (len(flat) - 1)
    u, s, _ = np.linalg.svd(covariance)
    expected = (flat - mean) @ (u @ np.diag(1 / np.sqrt(s + EPS)) @ u.T)
    found = fitted()
    np.testing.assert_allclose(found.apply(images()).flatten(1).numpy(), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.matrix.numpy(), found.matrix.numpy().T, atol=1e-6)


def test_whitened_pixels_are_no_longer_correlated() -> None:
    white = fit([sums_of([images()])], 1e-6).apply(images()).flatten(1)
    off = np.cov(white.T.numpy()) - np.eye(24)
    assert abs(off).max() < 1e-2
    before = np.corrcoef(images().flatten(1).T.numpy()) - np.eye(24)
    assert abs(before).max() > 0.5


@pytest.mark.parametrize("sizes", [(30, 30), (1, 59), (20, 20, 20)])
def test_parts_add_up(sizes: tuple[int, ...]) -> None:
    torch.testing.assert_close(fitted(*sizes).matrix, fitted().matrix, rtol=1e-5, atol=1e-5)
    whole, batches = sums_of([images()]), sums_of(images().split(7))
    assert isinstance(whole, Sums)
    assert whole.images == batches.images == 60
    torch.testing.assert_close(whole.products, batches.products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 2, 3, 4), (3, 5, 2, 3, 4)])
def test_normalised_by_channel_then_whitened_whatever_comes_before_the_channels(shape: tuple[int, ...]) -> None:
    pixels, mean, std = torch.rand(shape), (0.4, 0.6), (0.2, 0.5)
    plain = torch.empty(shape)
    for channel in range(2):
        plain[..., channel, :, :] = (pixels[..., channel, :, :] - mean[channel]) / std[channel]
    torch.testing.assert_close(normalise(pixels, mean, std, None), plain)
    white = fitted()
    rows = (plain.reshape(-1, 24) - white.mean) @ white.matrix
    torch.testing.assert_close(normalise(pixels, mean, std, white), rows.view(shape))


def test_levels_are_normalised_as_the_pixels_that_they_stand_for() -> None:
    levels = torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4)
    mean, std = (0.1, 0.2), (0.3, 0.4)
    assert torch.equal(normalise(levels, mean, std, None), normalise(levels.float() / 255, mean, std, None))
    before, pixels = levels.clone(), levels.float() / 255
    kept = pixels.clone()
    expected = normalise(pixels, mean, std, None)
    assert torch.equal(pixels, kept)  # the caller's, which stay as they are
    assert torch.equal(normalise(pixels, mean, std, None, is_own=True), expected)
    assert torch.equal(levels, before)


def test_a_constant_pixel_stays_finite() -> None:
    pictures = images()
    pictures[:, 0, 0, 0] = 1.0
    white = fit([sums_of([pictures])], EPS).apply(pictures)
    assert torch.isfinite(white).all()
