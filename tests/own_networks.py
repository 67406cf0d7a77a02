"""Networks as somebody else would write them: for tests of networks that the caller names."""

from __future__ import annotations

import torch
from torch import nn


def with_batch_norm(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Batch normalisation, work in place and dropout: all that the package's own networks do without."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * height * width, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(inplace=True),
        nn.Linear(32, classes),
    )


def plain(shape: tuple[int, int, int], classes: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def of_one_size(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))


def features(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Flatten()


def no_module(shape: tuple[int, int, int], classes: int) -> torch.Tensor:
    return torch.zeros(classes)


not_callable = 3
