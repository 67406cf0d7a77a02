"""Gradient matching against a plain float64 double loop, and the forms of one step against each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import ALL, MEAN, SHAPE, STD, assert_compiled_alike, assert_same, assert_slope_of_distance, network_of
from torch import Tensor

from dasm_ray.config.keys import AUGMENTATIONS
from dasm_ray.core.augment import augment, draw
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.matching.gradient import COMPARED, METRICS, GradientMatching, distance, left_out
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import Layout
from dasm_ray.core.seed import torch_generator


def kept_of(network: Network, compared: str, depth: float) -> list[list[bool]]:
    """Of each parameter, which output channels are compared: counted one element after another."""
    is_compared = [len(shape) == 4 or (compared == "weights" and len(shape) == 2) for shape in network.layout.shapes]
    total = sum(shape.numel() for shape, yes in zip(network.layout.shapes, is_compared, strict=True) if yes)
    kept, seen = [], 0
    for shape, yes in zip(network.layout.shapes, is_compared, strict=True):
        kept.append([])
        for _ in range(shape[0]):
            seen += shape[1:].numel() * yes
            kept[-1].append(yes and seen > depth * total)
    return kept


def inputs_of(network: Network, dtype: torch.dtype = torch.float64, share: float = 1.0) -> StepInputs:
    """flat, pixels, velocity, images, label, draws, earlier, settings."""
    generator = torch_generator("matching", share)
    flat = network.initial(generator).to(dtype)
    pixels = torch.rand(3, *SHAPE, generator=generator, dtype=dtype)
    velocity = torch.rand(3, *SHAPE, generator=generator, dtype=dtype)
    images = torch.rand(5, *SHAPE, generator=generator, dtype=dtype)
    earlier = torch.randn(len(flat), generator=generator, dtype=dtype) * (0.01 if share < 1 else 0)
    settings = torch.tensor([0.3, share], dtype=dtype)
    return StepInputs(flat, pixels, velocity, images, torch.tensor(2), draw(1, generator).to(dtype), earlier, settings)


def by_double_loop(
    network: Network,
    compared: str,
    metric: str,
    strategy: str,
    factor: int,
    inputs: StepInputs,
    depth: float = 0.0,
    relative: bool = False,
) -> tuple[Tensor, float]:
    """The distance's gradient with respect to the pixels (m, C, H, W), image by image and weight by weight."""
    flat, pixels, _, images, label, draws, earlier, settings = inputs
    pixels = pixels.clone().requires_grad_()
    theta = flat.clone().requires_grad_()
    mean, std = (torch.tensor(v, dtype=flat.dtype).view(3, 1, 1) for v in (MEAN, STD))

    def mean_gradient(batch: list[Tensor], create_graph: bool) -> Tensor:
        total = torch.zeros_like(flat)
        for image in batch:
            seen = augment(((image - mean) / std)[None], draws, strategy)
            loss = F.cross_entropy(network.logits(theta, seen), label[None])
            total = total + torch.autograd.grad(loss, theta, create_graph=create_graph)[0] / len(batch)
        return total

    real = mean_gradient(list(images), False).detach()
    rows, columns = (enlargers(size, factor).to(flat.dtype) for size in SHAPE[1:])
    decoded = [image for slot in pixels for image in decode(slot[None], rows, columns)]
    synthetic = settings[1] * mean_gradient(decoded, True) + earlier
    total, length = torch.zeros((), dtype=flat.dtype), torch.zeros((), dtype=flat.dtype)
    place = 0
    for shape, kept in zip(network.layout.shapes, kept_of(network, compared, depth), strict=True):
        r, s = (g[place : place + shape.numel()].reshape(shape) for g in (real, synthetic))
        place += shape.numel()
        for row_r, row_s, is_kept in zip(r, s, kept, strict=True):
            if not is_kept:
                continue
            length = length + (row_r**2 if metric == "mse" else row_r.abs()).sum()
            row_r, row_s = row_r.flatten(), row_s.flatten()
            if metric == "mse":
                total = total + ((row_r - row_s) ** 2).sum()
            elif metric == "l1":
                total = total + (row_r - row_s).abs().sum()
            else:
                total = total + 1 - row_r @ row_s / (row_r.norm() * row_s.norm() + 1e-6)
    total = total / (length + 1e-12) if relative else total
    (slope,) = torch.autograd.grad(total, pixels)
    return slope, float(total.detach())


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("factor", "share"), [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_a_step_equals_the_double_loop(compared: str, metric: str, factor: int, share: float) -> None:
    network = network_of()
    inputs = inputs_of(network, share=share)
    matching = GradientMatching(network, compared, metric, ALL, factor, 0.5)
    slope, distance = by_double_loop(network, compared, metric, ALL, factor, inputs)
    pixels, velocity, found = matching.step(inputs)
    assert float(found) == pytest.approx(distance, rel=1e-9)
    expected = 0.5 * inputs.velocity + slope
    assert (velocity - expected).norm() <= 1e-6 * slope.norm()
    assert torch.equal(pixels, inputs.pixels - inputs.settings[0] * velocity)


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    ("metric", "relative"),
    [*((metric, False) for metric in METRICS), ("mse", True), ("l1", True)],  # cos is so anyway
)
def test_a_step_without_shallow_weights_in_units_of_the_real_gradient_equals_the_double_loop(
    compared: str, metric: str, depth: float, relative: bool
) -> None:
    network = network_of()
    inputs = inputs_of(network, share=0.5)
    matching = GradientMatching(network, compared, metric, ALL, 2, 0.0, depth, relative)
    slope, distance = by_double_loop(network, compared, metric, ALL, 2, inputs, depth, relative)
    _, velocity, found = matching.step(inputs)
    assert float(found) == pytest.approx(distance, rel=1e-9)
    assert (velocity - slope).norm() <= 1e-6 * slope.norm()


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.25, 0.5, 0.75, 0.999])
def test_what_is_left_out_is_the_first_share_in_whole_channels(depth: float) -> None:
    """Two convolutions of 4 x 27 and 4 x 36 elements, and a classifier of 4 x 36."""
    layout = network_of().layout
    skipped = left_out(layout, "weights", depth)
    total = sum(shape.numel() for shape in layout.shapes if len(shape) > 1)
    dropped = sum(
        count * shape[1:].numel() for count, shape in zip(skipped, layout.shapes, strict=True) if len(shape) > 1
    )
    assert depth * total - 36 <= dropped <= depth * total
    assert all(count == shape[0] for count, shape in zip(skipped, layout.shapes, strict=True) if len(shape) < 2)


def test_a_relative_distance_to_a_real_gradient_of_nothing_is_finite() -> None:
    layout = network_of().layout
    nothing = torch.zeros(sum(layout.sizes), dtype=torch.float64)
    skipped = left_out(layout, "convolutions", 0.0)
    apart = distance(layout, skipped, "mse", True, nothing, nothing + 1)
    assert float(apart) == pytest.approx((4 * 27 + 4 * 36) / 1e-12)


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_every_normalisation_can_be_differentiated_twice(norm: str) -> None:
    network = network_of(norm)
    inputs = inputs_of(network)
    matching = GradientMatching(network, "convolutions", "mse", "color_crop", 2, 0.0)
    assert_slope_of_distance(matching, inputs)


@pytest.mark.parametrize("strategy", ["none", *AUGMENTATIONS, ALL])
def test_siamese_augmentation_treats_both_batches_alike(strategy: str) -> None:
    """The same images as real and as synthetic batch: nothing but rounding is left to match, whatever was drawn."""
    network = network_of()
    flat, pixels, _, _, label, draws, earlier, settings = inputs_of(network)
    matching = GradientMatching(network, "weights", "mse", strategy, 1, 0.5)
    after, velocity, distance = matching.step(
        StepInputs(flat, pixels, torch.zeros_like(pixels), pixels, label, draws, earlier, settings)
    )
    assert float(distance) < 1e-24
    assert float(velocity.abs().max()) < 1e-12
    assert torch.allclose(after, pixels, rtol=0, atol=1e-12)


def test_earlier_gradient_is_that_of_the_loss() -> None:
    network = network_of()
    flat, pixels, _, _, label, draws, _, _ = inputs_of(network)
    matching = GradientMatching(network, "convolutions", "mse", "color", 2, 0.5)
    theta = flat.clone().requires_grad_()
    loss = matching.loss(theta, matching.decoded(pixels, draws), label)
    (expected,) = torch.autograd.grad(loss, theta)
    assert torch.allclose(matching.mean(flat, pixels, label, draws), expected, rtol=1e-12, atol=1e-14)


def test_the_compiled_step_is_the_same_mathematics() -> None:
    fast = GradientMatching(network_of(compile=True), "convolutions", "mse", ALL, 2, 0.5)
    plain = GradientMatching(network_of(), "convolutions", "mse", ALL, 2, 0.5)
    inputs = inputs_of(fast.network, torch.float32, share=0.5)
    assert_compiled_alike(fast, plain, inputs, 1e-5)


# --- in pieces -------------------------------------------------------------------------------------------------------


def watched(network: Network) -> list[int]:
    """How many images the network is shown, forward by forward, from now on."""
    shown: list[int] = []
    true_logits = network.logits

    def logits(flat: Tensor, images: Tensor) -> Tensor:
        shown.append(len(images))
        return true_logits(flat, images)

    network.logits = logits  # type: ignore[method-assign]
    return shown


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("factor", "micro", "depth"), [(1, 2, 0.0), (2, 1, 0.25), (2, 4, 0.0), (3, 5, 0.0), (3, 9, 0.5), (2, 11, 0.0)]
)
def test_a_step_in_pieces_equals_the_whole_one_and_the_double_loop(
    compared: str, metric: str, factor: int, micro: int, depth: float
) -> None:
    """Pieces that divide the batches of 5 real and 3 f^2 decoded images, that do not, and that hold one of them."""
    network = network_of()
    inputs = inputs_of(network, share=0.5)
    relative = metric == "l1"
    whole = GradientMatching(network, compared, metric, ALL, factor, 0.5, depth, relative).step(inputs)
    slope, distance = by_double_loop(network, compared, metric, ALL, factor, inputs, depth, relative)
    matching = GradientMatching(network, compared, metric, ALL, factor, 0.5, depth, relative, micro)
    shown = watched(network)
    found = matching.step(inputs)
    assert max(shown) <= micro
    assert sum(shown) == 5 + 2 * 3 * factor**2, "synthetic images are shown twice"
    assert_same(found, whole)
    assert float(found.distance) == pytest.approx(distance, rel=1e-9)
    assert (found.velocity - 0.5 * inputs.velocity - slope).norm() <= 1e-6 * slope.norm()


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("strategy", ["none", *AUGMENTATIONS])
def test_pieces_share_the_draw_under_every_normalisation(norm: str, strategy: str) -> None:
    network = network_of(norm)
    inputs = inputs_of(network, share=0.5)
    whole, pieces = (GradientMatching(network, "weights", "mse", strategy, 2, 0.5, micro=micro) for micro in (None, 3))
    assert_same(pieces.step(inputs), whole.step(inputs))


@pytest.mark.parametrize("micro", [1, 4, 12])
def test_earlier_gradient_in_pieces_is_that_of_the_whole(micro: int) -> None:
    network = network_of()
    flat, pixels, _, _, label, draws, _, _ = inputs_of(network)
    whole, pieces = (GradientMatching(network, "weights", "cos", ALL, 2, 0.5, micro=most) for most in (None, micro))
    expected = whole.mean(flat, pixels, label, draws)
    assert (pieces.mean(flat, pixels, label, draws) - expected).norm() <= 1e-12 * expected.norm()


def test_a_step_that_needs_no_pieces_is_the_whole_one() -> None:
    network = network_of()
    inputs = inputs_of(network)
    whole, fits = (GradientMatching(network, "weights", "cos", ALL, 2, 0.5, micro=micro) for micro in (None, 12))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fits.step(inputs), whole.step(inputs), strict=True))


def test_batch_normalisation_cannot_be_taken_in_pieces() -> None:
    with pytest.raises(AssertionError, match="couples"):
        GradientMatching(network_of("batch"), "weights", "cos", ALL, 2, 0.5, micro=4)


def test_the_compiled_step_in_pieces_is_the_same_mathematics() -> None:
    fast = GradientMatching(network_of(compile=True), "convolutions", "mse", ALL, 2, 0.5, micro=4)
    plain = GradientMatching(network_of(), "convolutions", "mse", ALL, 2, 0.5)
    inputs = inputs_of(fast.network, torch.float32, share=0.5)
    inputs = inputs._replace(images=inputs.images[:4])  # pieces of one size, to compile less
    assert_compiled_alike(fast, plain, inputs, 1e-5)


def test_what_follows_the_cut_is_compared_whole_though_its_channels_are_smaller() -> None:
    layout = Layout(("a", "b"), (torch.Size((2, 10)), torch.Size((4, 3))))
    assert left_out(layout, "weights", 19 / 32) == [1, 0]
