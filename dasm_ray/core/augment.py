"""Differentiable siamese augmentation (DSA, Zhao & Bilen 2021) and CutMix, as pure functions of images and a draw.

A draw is one tensor of uniform numbers (n, DRAWS): one row for all images (siamese: the same transformation for every
image of every batch it is given to) or one row per image. Shapes never depend on what was drawn, so a step that
augments is compiled once. Crop, flip and scale act on rows and columns apart, hence are products with small matrices;
a matrix of zeros and ones moves pixels without rounding.

What must stay true: all randomness is in the draw, and an augmentation that is not in the strategy changes no bit.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_PAD, CUTOUT, FLIP, SCALE, ROTATE = 0.125, 0.5, 0.5, 1.2, 15.0
"""The constants of DSA: shares of the image size, a probability, a ratio and degrees."""

DRAWS = 12
"""Numbers in a draw: brightness, saturation, contrast, crop y x, cutout y x, flip, scale y x, rotation, and one that
nothing reads (another width would change every draw)."""


def draw(count: int, generator: torch.Generator) -> Tensor:
    """``count`` independent draws (count, DRAWS), uniform in [0, 1); count 1 is a siamese draw."""
    return torch.rand(count, DRAWS, generator=generator)


def augment(images: Tensor, draws: Tensor, strategy: str) -> Tensor:
    """Normalised ``images`` (n, C, H, W) under ``draws`` (1 or n, DRAWS) and a strategy such as ``color_crop_cutout``.

    All parts are applied in the order written.
    """
    for part in [] if strategy == "none" else strategy.split("_"):
        images = AUGMENT[part](images, draws)
    return images


def color(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness shifted by ±0.5, saturation scaled by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = (draws[:, i, None, None, None] for i in range(3))
    images = images + (brightness - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    level = images.mean((1, 2, 3), keepdim=True)
    return (images - level) * (contrast + CONTRAST) + level


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Shifted by up to an eighth of the size each way; what comes in is 0."""
    height, width = images.shape[2:]
    return _apart(images, _shift(draws[:, 3], height), _shift(draws[:, 4], width))


def cutout(images: Tensor, draws: Tensor) -> Tensor:
    """A field of half the size, centred anywhere, set to 0."""
    height, width = images.shape[2:]
    covered = _field(draws[:, 5], height)[:, :, None] & _field(draws[:, 6], width)[:, None, :]
    return images * (~covered)[:, None].to(images.dtype)


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Left and right exchanged with probability one half."""
    return torch.where((draws[:, 7] < FLIP)[:, None, None, None], images.flip(3), images)


def scale(images: Tensor, draws: Tensor) -> Tensor:
    """Each axis stretched by 1/1.2 to 1.2 about the centre, bilinearly; what comes in is 0."""
    height, width = images.shape[2:]
    return _apart(images, _stretch(draws[:, 8], height), _stretch(draws[:, 9], width))


def rotate(images: Tensor, draws: Tensor) -> Tensor:
    """Turned by up to 15 degrees about the centre, bilinearly; what comes in is 0.

    Images that share a draw are turned as channels of one image, whose places are found once: the same bits, in half of
    the time.
    """
    shape = images.shape
    images = images.reshape(1, -1, *shape[2:]) if len(draws) == 1 else images
    angle = (draws[:, 10] - 0.5) * 2 * ROTATE * (torch.pi / 180)
    turn = _turned if images.device.type == "cpu" else Turned.apply
    turned: Tensor = turn(images, angle)
    return turned.view(shape)


AUGMENT = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    """``images`` (n, C, H, W) turned by ``angle`` (1 or n), in radians."""
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = F.affine_grid(matrices.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


class _Kept(Protocol):
    """What torch gives a function to keep tensors in for its gradient."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class Turned(torch.autograd.Function):
    """``_turned``, its gradient added up in one order: the same bits again, also on a GPU.

    torch's own gradient there lets each pixel of the result add to those it was taken from, in whatever order threads
    come. Here each pixel of an image looks up who took from it; the processor has one order and keeps torch's.
    """

    @staticmethod
    def forward(images: Tensor, angle: Tensor) -> Tensor:
        """As a module's: ``_turned``."""
        return _turned(images, angle)

    @staticmethod
    def setup_context(ctx: _Kept, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps what the gradient needs: no image."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: _Kept, slope: Tensor) -> tuple[Tensor, None]:
        """The gradient by images; angles have none."""
        return _taken(slope, ctx.saved_tensors[0].to(slope.dtype)), None


def _taken(slope: Tensor, angle: Tensor) -> Tensor:
    """The gradient by images of what ``slope`` (n, C, H, W) is the gradient by, their images turned by ``angle``.

    Who took from a pixel lies about where the pixel itself is turned to, no further than a pixel's square, turned,
    reaches. What each took is the share that bilinear sampling gives.
    """
    height, width = slope.shape[-2:]
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    row = torch.arange(height, device=slope.device, dtype=slope.dtype)[None, :, None]
    column = torch.arange(width, device=slope.device, dtype=slope.dtype)[None, None, :]

    def turned(row: Tensor, column: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Where a place is taken from, as rows and columns; with the other sign of ``sine``, who takes from it."""
        x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
        return ((sine * x + cosine * y + 1) * height - 1) / 2, ((cosine * x - sine * y + 1) * width - 1) / 2

    flat, total = slope.flatten(2), torch.zeros_like(slope)
    middle, centre = (place.round() for place in turned(row, column, -sine))
    for down, across in product(_reach(height, width), _reach(width, height)):
        taker, aside = middle + down, centre + across
        found, beside = turned(taker, aside, sine)
        share = (1 - (found - row).abs()).clamp_min(0) * (1 - (beside - column).abs()).clamp_min(0)
        is_inside = (taker >= 0) & (taker < height) & (aside >= 0) & (aside < width)
        place = (taker.clamp(0, height - 1) * width + aside.clamp(0, width - 1)).long().flatten(1)[:, None]
        took = flat.gather(2, place.expand(*flat.shape[:2], -1)).view(slope.shape)
        total = total + took * torch.where(is_inside, share, 0)[:, None]
    return total


def _reach(size: int, other: int) -> range:
    """How far from the rounded middle, along an axis of ``size``, a pixel's square reaches when it is turned."""
    far = int(1 + math.sin(math.radians(ROTATE)) * size / other + 0.5)
    return range(-far, far + 1)


def _apart(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ image @ columns.T`` with matrices (1 or n, H, H) and (1 or n, W, W)."""
    return rows.to(images.dtype)[:, None] @ images @ columns.to(images.dtype).mT[:, None]


def _shift(uniform: Tensor, size: int) -> Tensor:
    """Matrices (n, size, size) that move rows by a whole number in ±pad."""
    pad = int(size * CROP_PAD + 0.5)
    by = (uniform * (2 * pad + 1)).floor() - pad
    place = torch.arange(size, device=uniform.device)
    return place[None, None, :] == place[None, :, None] + by[:, None, None]


def _field(uniform: Tensor, size: int) -> Tensor:
    """Rows (n, size) that a field of half the size covers, its centre anywhere in the image."""
    length = int(size * CUTOUT + 0.5)
    first = (uniform * (size + 1 - length % 2)).floor() - length // 2
    place = torch.arange(size, device=uniform.device)[None]
    return (place >= first[:, None]) & (place < first[:, None] + length)


def _stretch(uniform: Tensor, size: int) -> Tensor:
    """Matrices (n, size, size) that sample rows bilinearly at stretched places."""
    factor = uniform * (SCALE - 1 / SCALE) + 1 / SCALE
    place = torch.arange(size, device=uniform.device)
    centre = (size - 1) / 2
    source = (place - centre)[None] * factor[:, None] + centre
    return (1 - (source[:, :, None] - place[None, None, :]).abs()).clamp_min(0)


def cutmix(images: Tensor, other: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): a box of ``other`` pasted into ``images`` (n, C, H, W).

    ``box`` (4,) uniform: share of the area kept, centre y and x, and (below 0: no mix) a switch. Returns the mixed
    images and the share of each image that is still its own, a scalar tensor.
    """
    height, width = images.shape[2:]
    side = torch.where(box[3] < 0, torch.zeros_like(box[0]), (1 - box[0]).clamp_min(0).sqrt())
    rows = _span(box[1], side, height, images.device)
    columns = _span(box[2], side, width, images.device)
    inside = rows[:, None] & columns[None, :]
    mixed = torch.where(inside, other, images)
    return mixed, 1 - inside.to(images.dtype).mean()


def _span(centre: Tensor, side: Tensor, size: int, device: torch.device) -> Tensor:
    middle, half = (centre * size).floor(), (side * size).floor() / 2
    place = torch.arange(size, device=device)
    return (place >= (middle - half).floor()) & (place < (middle + half).floor())
