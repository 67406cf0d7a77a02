"""Every augmentation against a slow twin that works on one image, one pixel at a time.

What must stay true: the twins are written from the definition of DSA and share nothing with the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dasm_ray.config import keys
from dasm_ray.core.augment import AUGMENT, DRAWS, ROTATE, Turned, _turned, augment, cutmix, draw

LAST = 1 - 2**-24
"""The largest number that a uniform float32 draw can give."""

ALL = "color_crop_cutout_flip_scale_rotate"


def images_of(count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def draws_of(count: int, seed: int = 1) -> Tensor:
    """Random rows, then the two ends of the range."""
    rows = draw(count, torch.Generator().manual_seed(seed))
    return torch.cat([rows, torch.zeros(1, DRAWS), torch.full((1, DRAWS), LAST)])


# --- slow twins: image (C, H, W), one draw (DRAWS,) of Python floats -----------------------------------------------


def slow_color(image: np.ndarray, u: list[float]) -> np.ndarray:
    image = image.astype(np.float64) + (u[0] - 0.5)
    grey = image.mean(axis=0)
    image = np.stack([(channel - grey) * 2 * u[1] + grey for channel in image])
    changed: np.ndarray = (image - image.mean()) * (u[2] + 0.5) + image.mean()
    return changed


def slow_crop(image: np.ndarray, u: list[float]) -> np.ndarray:
    _, height, width = image.shape
    pads = [math.floor(size / 8 + 0.5) for size in (height, width)]
    top, left = (math.floor(u[3 + axis] * (2 * pad + 1)) for axis, pad in enumerate(pads))
    padded = np.pad(image, [(0, 0), (pads[0], pads[0]), (pads[1], pads[1])])
    return padded[:, top : top + height, left : left + width]


def slow_cutout(image: np.ndarray, u: list[float]) -> np.ndarray:
    image = image.copy()
    _, height, width = image.shape
    half_h, half_w = (math.floor(size / 2 + 0.5) for size in (height, width))
    centre_y = math.floor(u[5] * (height + 1 - half_h % 2))
    centre_x = math.floor(u[6] * (width + 1 - half_w % 2))
    for y in range(centre_y - half_h // 2, centre_y - half_h // 2 + half_h):
        for x in range(centre_x - half_w // 2, centre_x - half_w // 2 + half_w):
            # DSA clamps a place outside to the border, which the field then covers anyway.
            image[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)] = 0
    return image


def slow_flip(image: np.ndarray, u: list[float]) -> np.ndarray:
    return image[:, :, ::-1] if u[7] < 0.5 else image


def sampled(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear value (C,) at a place counted in pixels; 0 outside."""
    value = np.zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def warped(image: np.ndarray, place: Callable[[float, float], tuple[float, float]]) -> np.ndarray:
    """Each pixel taken from ``place`` of its own position, both counted from the centre."""
    _, height, width = image.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    out = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            y, x = place(row - middle_y, column - middle_x)
            out[:, row, column] = sampled(image, y + middle_y, x + middle_x)
    return out


def slow_scale(image: np.ndarray, u: list[float]) -> np.ndarray:
    tall, wide = (u[8 + axis] * (1.2 - 1 / 1.2) + 1 / 1.2 for axis in range(2))
    return warped(image, lambda y, x: (y * tall, x * wide))


def slow_rotate(image: np.ndarray, u: list[float]) -> np.ndarray:
    angle = math.radians((u[10] - 0.5) * 30)
    sine, cosine = math.sin(angle), math.cos(angle)
    return warped(image, lambda y, x: (sine * x + cosine * y, cosine * x - sine * y))


SLOW = {
    "color": slow_color,
    "crop": slow_crop,
    "cutout": slow_cutout,
    "flip": slow_flip,
    "scale": slow_scale,
    "rotate": slow_rotate,
}
MOVES_ONLY = ("crop", "cutout", "flip")


def test_the_table_holds_every_augmentation_of_the_configuration() -> None:
    assert tuple(AUGMENT) == keys.AUGMENTATIONS == tuple(SLOW)


SQUARE, OBLONG = ((3, 8, 8), (1, 9, 9)), ((2, 6, 11),)
"""Shapes. Only squares are turned: what a turn is elsewhere depends on how the sides are counted."""


@pytest.mark.parametrize(
    ("part", "shape"), [(part, shape) for part in SLOW for shape in SQUARE + (() if part == "rotate" else OBLONG)]
)
def test_each_part_is_its_slow_twin_on_every_image(part: str, shape: tuple[int, ...]) -> None:
    draws = draws_of(20)
    images = images_of(len(draws), shape)
    made = augment(images, draws, part).numpy()
    for image, row, result in zip(images.numpy(), draws.tolist(), made, strict=True):
        expected = SLOW[part](image, row)
        if part in MOVES_ONLY:
            np.testing.assert_array_equal(result, expected)
        else:
            np.testing.assert_allclose(result, expected, atol=2e-5)


def test_scale_is_the_bilinear_grid_sampling_of_torch() -> None:
    draws = draws_of(20)
    images = images_of(len(draws), (2, 7, 10))
    theta = torch.zeros(len(draws), 2, 3)
    theta[:, 0, 0] = draws[:, 9] * (1.2 - 1 / 1.2) + 1 / 1.2
    theta[:, 1, 1] = draws[:, 8] * (1.2 - 1 / 1.2) + 1 / 1.2
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(augment(images, draws, "scale"), expected, atol=1e-5, rtol=0)


def test_parts_are_applied_in_the_order_written() -> None:
    images, draws = images_of(6), draws_of(4)
    step_by_step = images
    for part in ("cutout", "color", "crop"):
        step_by_step = augment(step_by_step, draws, part)
    assert torch.equal(augment(images, draws, "cutout_color_crop"), step_by_step)
    assert not torch.equal(augment(images, draws, "color_crop_cutout"), step_by_step)


# --- one draw for two batches, or one for each image ---------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*SLOW, ALL])
def test_one_row_does_the_same_to_an_image_in_whatever_batch_it_stands(strategy: str) -> None:
    for seed, shape in enumerate([(3, 8, 8), (1, 9, 9), (3, 32, 32)]):
        one = draws_of(1, seed)[:1]
        big, small = images_of(7, shape, seed), images_of(3, shape, seed + 100)
        small[1] = big[4]
        in_big = augment(big, one, strategy)[4]
        assert torch.equal(augment(small, one, strategy)[1], in_big)
        assert torch.equal(augment(big[4:5], one, strategy)[0], in_big)


@pytest.mark.parametrize("strategy", [*SLOW, ALL])
def test_a_row_for_each_image_is_the_siamese_result_of_each(strategy: str) -> None:
    draws = draws_of(6)
    images = images_of(len(draws))
    together = augment(images, draws, strategy)
    for place in range(len(draws)):
        alone = augment(images[place : place + 1], draws[place : place + 1], strategy)
        assert torch.equal(together[place], alone[0])


@pytest.mark.parametrize("part", SLOW)
def test_a_part_that_is_not_asked_for_changes_no_bit(part: str) -> None:
    images, draws, others = images_of(8), draws_of(6), draws_of(6, seed=2)
    own = {"color": (0, 1, 2), "crop": (3, 4), "cutout": (5, 6), "flip": (7,), "scale": (8, 9), "rotate": (10,)}[part]
    others[:, own] = draws[:, own]
    assert torch.equal(augment(images, draws, part), augment(images, others, part))
    assert torch.equal(augment(images, draws, "none"), images)


# --- ranges ----------------------------------------------------------------------------------------------------------


def test_a_draw_is_uniform_and_follows_from_the_generator() -> None:
    drawn = draw(4000, torch.Generator().manual_seed(3))
    assert drawn.shape == (4000, DRAWS)
    assert 0 <= float(drawn.min()) < 0.01
    assert 0.99 < float(drawn.max()) < 1
    assert torch.equal(drawn, draw(4000, torch.Generator().manual_seed(3)))
    assert float((drawn.mean(0) - 0.5).abs().max()) < 0.03


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (32, 4), (28, 4)])
def test_crop_moves_by_every_whole_number_up_to_an_eighth_equally_often(size: int, pad: int) -> None:
    steps = 2 * pad + 1
    draws = torch.full((steps * 10, DRAWS), 0.5)
    draws[:, 3] = (torch.arange(steps * 10) + 0.5) / (steps * 10)
    rows = torch.arange(1.0, size + 1).view(1, 1, size, 1).expand(len(draws), 1, size, size).contiguous()
    moved = augment(rows, draws, "crop")[:, 0, size // 2, 0] - (size // 2 + 1)
    assert moved.tolist() == [float(by) for by in range(-pad, pad + 1) for _ in range(10)]


@pytest.mark.parametrize("size", [7, 8, 9, 10, 32])
def test_cutout_always_covers_something_and_at_most_half_of_each_side(size: int) -> None:
    axis = torch.linspace(0, LAST, 40)
    draws = torch.zeros(len(axis), DRAWS)
    draws[:, 5], draws[:, 6] = axis, axis
    covered = (augment(torch.ones(len(axis), 1, size, size), draws, "cutout")[:, 0] == 0).any(2).sum(1)
    half = math.floor(size / 2 + 0.5)
    assert int(covered.min()) >= half // 2 >= 1
    assert int(covered.max()) == half


def test_flip_takes_half_of_the_draws() -> None:
    draws = torch.zeros(4, DRAWS)
    draws[:, 7] = torch.tensor([0.0, 0.5 - 2**-24, 0.5, LAST])
    images = images_of(4)
    flipped = [
        bool(torch.equal(made, image.flip(2)))
        for made, image in zip(AUGMENT["flip"](images, draws), images, strict=True)
    ]
    assert flipped == [True, True, False, False]


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*SLOW, "color_crop_cutout", ALL])
def test_gradients_with_respect_to_the_images_are_right(strategy: str) -> None:
    draws = draw(2, torch.Generator().manual_seed(5))
    images = images_of(2, (2, 4, 4)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, strategy), (images,))
    assert torch.autograd.gradcheck(lambda x: augment(x, draws[:1], strategy), (images,))


# --- CutMix ----------------------------------------------------------------------------------------------------------


def slow_cutmix(images: np.ndarray, other: np.ndarray, box: list[float]) -> tuple[np.ndarray, float]:
    mixed, (height, width) = images.copy(), images.shape[2:]
    inside = 0
    for row in range(height):
        for column in range(width):
            within = True
            for place, centre, size in ((row, box[1], height), (column, box[2], width)):
                length, middle = math.floor(math.sqrt(1 - box[0]) * size), math.floor(centre * size)
                first = middle - math.ceil(length / 2)
                within &= first <= place < first + length
            if within:
                mixed[:, :, row, column] = other[:, :, row, column]
                inside += 1
    return mixed, 1 - inside / (height * width)


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_pastes_the_partner_inside_the_box_only(seed: int) -> None:
    images, other = images_of(4, (3, 8, 11), seed), images_of(4, (3, 8, 11), seed + 50)
    box = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    mixed, kept = cutmix(images, other, box)
    expected, share = slow_cutmix(images.numpy(), other.numpy(), box.tolist())
    np.testing.assert_array_equal(mixed.numpy(), expected)
    assert float(kept) == pytest.approx(share, abs=1e-6)
    assert float(kept) == pytest.approx(float((mixed == images).float().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("box", "share"),
    [
        ([0.0, 0.5, 0.5, 1.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.75),
        ([LAST, 0.5, 0.5, 1.0], 1.0),
        ([0.75, 0.5, 0.5, 1.0], 0.75),
    ],
)
def test_cutmix_at_the_ends_of_its_range(box: list[float], share: float) -> None:
    images, other = images_of(2), images_of(2, seed=9)
    mixed, kept = cutmix(images, other, torch.tensor(box))
    assert float(kept) == share
    assert float((mixed == images).float().mean()) == share


def test_cutmix_switched_off_changes_nothing() -> None:
    images, other = images_of(2), images_of(2, seed=9)
    mixed, kept = cutmix(images, other, torch.tensor([0.0, 0.5, 0.5, -1.0]))
    assert torch.equal(mixed, images)
    assert float(kept) == 1


def test_augmentation_leaves_its_input_and_the_global_generator_alone() -> None:
    images, draws = images_of(6), draws_of(4)
    before: tuple[Any, ...] = (images.clone(), draws.clone(), torch.random.get_rng_state())
    augment(images, draws, ALL)
    assert torch.equal(images, before[0])
    assert torch.equal(draws, before[1])
    assert torch.equal(torch.random.get_rng_state(), before[2])


# --- the gradient of a rotation, by who took from a pixel -----------------------------------------------------------


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 9, 22), (2, 30, 7)])
def test_a_rotation_whose_gradient_is_gathered_has_that_of_torch(shape: tuple[int, ...], compile: bool) -> None:
    """What a GPU uses so that it adds up in one order; torch's own is exact on the processor."""
    count, angles = 23, torch.linspace(-ROTATE, ROTATE, 23, dtype=torch.float64).deg2rad()
    images, slope = (images_of(count, shape, seed).double() for seed in (0, 1))

    def gradient(turn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def by_images(images: Tensor, angles: Tensor, slope: Tensor) -> Tensor:
            return torch.func.grad(lambda images: (turn(images, angles) * slope).sum())(images)

        return by_images

    expected = gradient(_turned)(images, angles, slope)
    found = gradient(Turned.apply)
    found = torch.compile(found, fullgraph=True, dynamic=False) if compile else found
    assert torch.equal(Turned.apply(images, angles), _turned(images, angles))
    torch.testing.assert_close(found(images, angles, slope), expected, rtol=0, atol=1e-12)
