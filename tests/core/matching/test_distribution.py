"""Distribution matching against a plain float64 double loop, and the forms of one step against each other."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from steps import ALL, MEAN, SHAPE, STD, assert_compiled_alike, assert_same, assert_slope_of_distance, network_of
from torch import Tensor
from torch.func import functional_call

from dasm_ray.config.keys import AUGMENTATIONS
from dasm_ray.core.augment import augment, draw
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.matching.distribution import COMPARED, DistributionMatching
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.networks.network import Network
from dasm_ray.core.seed import torch_generator

WIDTHS = {"hidden": [4 * 3 * 3], "blocks": [4 * 6 * 6, 4 * 3 * 3]}
"""Features in each layer that is compared, for two blocks of four channels."""


def inputs_of(
    network: Network, compared: str, front: tuple[int, ...], share: float = 1.0, dtype: torch.dtype = torch.float64
) -> StepInputs:
    """flat, pixels, velocity, images, label, draws, earlier, settings; ``front`` is () or (K,)."""
    generator = torch_generator("distribution", share)
    flat = network.initial(generator).to(dtype)
    pixels = torch.rand(*front, 3, *SHAPE, generator=generator, dtype=dtype)
    velocity = torch.rand(*front, 3, *SHAPE, generator=generator, dtype=dtype)
    images = torch.randint(0, 256, (*front, 5, *SHAPE), generator=generator).to(torch.uint8)
    earlier = torch.randn(*front, sum(WIDTHS[compared]), generator=generator, dtype=dtype) * (0.1 if share < 1 else 0)
    draws = draw(front[0] if front else 1, generator).to(dtype)
    return StepInputs(
        flat, pixels, velocity, images, torch.tensor(2), draws, earlier, torch.tensor([0.3, share], dtype=dtype)
    )


def layers_of(network: Network, flat: Tensor, seen: Tensor, compared: str) -> list[Tensor]:
    """The compared outputs for one image, layer by layer, with torch's own functions."""
    parts = network.layout.unflatten(flat)
    x, outputs = seen[None], []
    for block in range(2):
        x = F.conv2d(x, parts[f"convs.{block}.weight"], parts[f"convs.{block}.bias"], padding=1)
        x = F.group_norm(x, 4, parts[f"norms.{block}.weight"], parts[f"norms.{block}.bias"], 1e-5)
        x = F.avg_pool2d(F.relu(x), 2)
        outputs.append(x.flatten())
    return outputs if compared == "blocks" else outputs[-1:]


def by_double_loop(
    network: Network, compared: str, strategy: str, factor: int, inputs: StepInputs, weight: float
) -> tuple[Tensor, float]:
    """The distance's gradient with respect to pixels (K, m, C, H, W), class by class, image by image."""
    flat, pixels, _, images, _, draws, earlier, settings = inputs
    pixels = pixels.clone().requires_grad_()
    mean, std = (torch.tensor(v, dtype=flat.dtype).view(3, 1, 1) for v in (MEAN, STD))
    rows, columns = (enlargers(size, factor).to(flat.dtype) for size in SHAPE[1:])

    def layers(image: Tensor, label: int) -> list[Tensor]:
        own = draws[label : label + 1] if len(draws) > 1 else draws
        return layers_of(network, flat, augment(((image - mean) / std)[None], own, strategy)[0], compared)

    total = torch.zeros((), dtype=flat.dtype)
    real_hidden: list[list[Tensor]] = []
    centres: list[Tensor] = []
    for label in range(len(pixels)):
        real = [layers(network_pixels(image, flat), label) for image in images[label]]
        decoded = [image for slot in pixels[label] for image in decode(slot[None], rows, columns)]
        synthetic = [layers(image, label) for image in decoded]
        parts = torch.split(earlier[label], WIDTHS[compared])
        for layer, part in enumerate(parts):
            from_real = sum(one[layer] for one in real) / len(real)
            from_synthetic = settings[1] * sum(one[layer] for one in synthetic) / len(synthetic) + part
            for r, s in zip(from_real, from_synthetic, strict=True):
                total = total + (r - s) ** 2
        real_hidden.append([one[-1] for one in real])
        centres.append(from_synthetic)
    if compared == "blocks":
        for label, members in enumerate(real_hidden):
            for one in members:
                scores = torch.stack([(one * centre).sum() for centre in centres])
                total = total + weight * (
                    torch.log(torch.exp(scores - scores.max()).sum()) + scores.max() - scores[label]
                )
    (slope,) = torch.autograd.grad(total, pixels)
    return slope, float(total.detach())


def network_pixels(image: Tensor, like: Tensor) -> Tensor:
    """uint8 to [0, 1], through float32 as `Network.normalise` does."""
    return (image.to(torch.float32) / 255).to(like.dtype)


def in_double(inputs: StepInputs) -> StepInputs:
    """The same with the real images as float64 in [0, 1], so that no rounding to float32 is left."""
    return inputs._replace(images=network_pixels(inputs.images, inputs.flat))


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("strategy", ["none", ALL])
@pytest.mark.parametrize(("factor", "share"), [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_a_step_equals_the_double_loop(compared: str, strategy: str, factor: int, share: float) -> None:
    network = network_of()
    inputs = inputs_of(network, compared, (3,), share)
    matching = DistributionMatching(network, compared, strategy, factor, 0.5)
    slope, distance = by_double_loop(network, compared, strategy, factor, inputs, 0.01)
    pixels, velocity, found = matching.step(in_double(inputs))
    assert float(found) == pytest.approx(distance, rel=1e-9)
    expected = 0.5 * inputs.velocity + slope
    assert (velocity - expected).norm() <= 1e-9 * slope.norm()
    assert torch.equal(pixels, inputs.pixels - inputs.settings[0] * velocity)


def test_stored_bytes_are_the_same_images() -> None:
    network = network_of()
    inputs = inputs_of(network, "hidden", ())
    flat = inputs.flat.float()
    matching = DistributionMatching(network, "hidden", "none", 1, 0.5)
    draws = inputs.draws.float()
    assert torch.equal(
        matching.features(flat, inputs.images, draws), matching.features(flat, inputs.images.float() / 255, draws)
    )


def test_classes_of_dm_know_nothing_of_each_other() -> None:
    """One step over all classes, or a step for each: the same pixels, and the distances add up."""
    network = network_of()
    inputs = in_double(inputs_of(network, "hidden", (3,), 0.5))
    flat, pixels, velocity, images, label, draws, earlier, settings = inputs
    matching = DistributionMatching(network, "hidden", ALL, 2, 0.5)
    together = matching.step(inputs)
    total = 0.0
    for c in range(3):
        alone = matching.step(
            StepInputs(flat, pixels[c], velocity[c], images[c], label, draws[c : c + 1], earlier[c], settings)
        )
        total += float(alone.distance)
        torch.testing.assert_close(alone.pixels, together.pixels[c], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone.velocity, together.velocity[c], rtol=1e-9, atol=1e-12)
    assert total == pytest.approx(float(together.distance), rel=1e-12)


def test_one_draw_for_all_classes_is_that_draw_for_each() -> None:
    network = network_of()
    inputs = in_double(inputs_of(network, "blocks", (3,)))
    one = inputs.draws[:1]
    matching = DistributionMatching(network, "blocks", ALL, 1, 0.5)
    shared, each = (matching.step(inputs._replace(draws=draws)) for draws in (one, one.repeat(3, 1)))
    for ours, theirs in zip(shared, each, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("draws", [1, 3])
def test_real_images_are_shown_class_by_class(compared: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU never shows the network the real images of two classes at once, and comes to what it does with all."""
    network = network_of()
    inputs = in_double(inputs_of(network, compared, (3,), 0.5))
    inputs = inputs._replace(draws=inputs.draws[:draws])
    matching = DistributionMatching(network, compared, ALL, 2, 0.5)
    expected, shown = matching.reference_step(inputs), list[int]()

    def watched(flat: Tensor, seen: Tensor) -> Tensor:
        shown.append(len(seen))
        return DistributionMatching.shown(matching, flat, seen)

    monkeypatch.setattr(matching, "shown", watched)
    assert_same(matching.step(inputs), expected)
    assert shown == [5, 5, 5, 3 * 3 * 4]
    assert not DistributionMatching(network_of("batch"), compared, ALL, 2, 0.5).reads_by_class


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
@pytest.mark.parametrize("strategy", ["none", *AUGMENTATIONS, ALL])
def test_equal_batches_are_no_distance_apart(compared: str, norm: str, strategy: str) -> None:
    """The same images as real and as synthetic batch: nothing is left to match, whatever was drawn."""
    network = network_of(norm)
    flat, pixels, _, _, label, draws, earlier, settings = inputs_of(network, compared, (3,))
    matching = DistributionMatching(network, compared, strategy, 1, 0.5, discrimination=0.0)
    after, velocity, distance = matching.step(
        StepInputs(flat, pixels, torch.zeros_like(pixels), pixels, label, draws, earlier, settings)
    )
    assert float(distance) == 0
    assert not velocity.any()
    assert torch.equal(after, pixels)


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_slope_is_that_of_the_distance_under_every_normalisation(compared: str, norm: str) -> None:
    network = network_of(norm)
    inputs = in_double(inputs_of(network, compared, (2,), 0.5))
    matching = DistributionMatching(network, compared, "color_crop", 2, 0.0)
    assert_slope_of_distance(matching, inputs)


def test_cafe_moves_a_class_by_the_others() -> None:
    """By its second loss only: without it, other real images of one class leave the other's slope alone."""
    network = network_of()
    inputs = in_double(inputs_of(network, "blocks", (2,)))
    matching = DistributionMatching(network, "blocks", "none", 1, 0.0)
    first = matching.step(inputs).velocity[0]
    inputs = inputs._replace(images=torch.stack([inputs.images[0], inputs.images[1].flip(-1)]))
    assert not torch.allclose(matching.step(inputs).velocity[0], first)
    silent = DistributionMatching(network, "blocks", "none", 1, 0.0, discrimination=0.0)
    before = silent.step(inputs).velocity[0]
    inputs = inputs._replace(images=torch.stack([inputs.images[0], inputs.images[1].flip(-2)]))
    torch.testing.assert_close(silent.step(inputs).velocity[0], before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("compared", COMPARED)
def test_what_earlier_segments_add_makes_the_union_s_mean(compared: str) -> None:
    """A third of the images moves, two thirds stand still: together their mean is that of all images."""
    network = network_of()
    flat, pixels, velocity, images, label, draws, _, _ = in_double(inputs_of(network, compared, (2,)))
    frozen = torch.rand(2, 6, *SHAPE, generator=torch_generator(9), dtype=torch.float64)
    matching = DistributionMatching(network, compared, "color", 2, 0.5)
    earlier = 2 / 3 * matching.mean(flat, frozen, label, draws)
    settings = torch.tensor([0.3, 1 / 3], dtype=torch.float64)
    moved = matching.step(StepInputs(flat, pixels, velocity, images, label, draws, earlier, settings))
    whole = torch.cat([pixels, frozen], 1)
    together = matching.step(
        StepInputs(
            flat,
            whole,
            torch.cat([velocity, torch.zeros_like(frozen)], 1),
            images,
            label,
            draws,
            torch.zeros_like(earlier),
            torch.tensor([0.3, 1.0], dtype=torch.float64),
        )
    )
    assert float(moved.distance) == pytest.approx(float(together.distance), rel=1e-10)
    torch.testing.assert_close(moved.velocity, together.velocity[:, :3], rtol=1e-8, atol=1e-12)


def test_the_last_hidden_layer_stands_last() -> None:
    network = network_of()
    flat, _, _, images, _, draws, _, _ = in_double(inputs_of(network, "blocks", ()))
    every = DistributionMatching(network, "blocks", "none", 1, 0.5).features(flat, images, draws)
    last = DistributionMatching(network, "hidden", "none", 1, 0.5).features(flat, images, draws)
    assert every.shape == (5, sum(WIDTHS["blocks"]))
    assert torch.equal(every[:, -last.shape[1] :], last)
    values = network.layout.unflatten(flat)
    seen = network.normalise(images)
    assert torch.equal(functional_call(network.module, values, (last,), {"head": True}), network.logits(flat, seen))


def test_a_scalar_zero_will_do_where_nothing_came_earlier() -> None:
    network = network_of()
    inputs = in_double(inputs_of(network, "blocks", (3,)))
    matching = DistributionMatching(network, "blocks", "none", 1, 0.5)
    scalar = matching.step(inputs._replace(earlier=torch.zeros((), dtype=torch.float64)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(scalar, matching.step(inputs), strict=True))


@pytest.mark.parametrize(("compared", "front"), [("hidden", ()), ("blocks", (3,))])
def test_the_compiled_step_is_the_same_mathematics(compared: str, front: tuple[int, ...]) -> None:
    fast = DistributionMatching(network_of(compile=True), compared, "color_crop", 2, 0.5)
    plain = DistributionMatching(network_of(), compared, "color_crop", 2, 0.5)
    inputs = inputs_of(fast.network, compared, front, 0.5, torch.float32)
    assert_compiled_alike(fast, plain, inputs, 1e-4)


# --- deviations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("earlier", [0, 4])
def test_deviations_are_those_of_all_segments_together(factor: int, earlier: int) -> None:
    """Means and standard deviations over every training image of the union, feature by feature, image by image."""
    network = network_of()
    inputs = in_double(inputs_of(network, "hidden", (2,)))
    matching = DistributionMatching(network, "hidden", "color_crop_flip", factor, 0.0, deviation=True)
    frozen = torch.rand(2, earlier, *SHAPE, generator=torch_generator("frozen"), dtype=torch.float64)
    share = 3 / (3 + earlier)
    settings = torch.tensor([0.3, share], dtype=torch.float64)
    part = torch.zeros((), dtype=torch.float64)
    if earlier:
        part = (1 - share) * matching.means(inputs.flat, frozen, inputs.label, inputs.draws)
    stepped = matching.step(inputs._replace(earlier=part, settings=settings, velocity=torch.zeros_like(inputs.pixels)))

    rows, columns = (enlargers(size, factor).double() for size in SHAPE[1:])
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    pixels = inputs.pixels.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for label in range(2):

        def seen(image: Tensor, own: Tensor = inputs.draws[label : label + 1]) -> Tensor:
            view = augment(((image - mean) / std)[None], own, "color_crop_flip")[0]
            return layers_of(network, inputs.flat, view, "hidden")[0]

        slots = [*frozen[label], *pixels[label]]
        decoded = [image for slot in slots for image in decode(slot[None], rows, columns)]
        both = [[seen(image) for image in images] for images in (inputs.images[label], decoded)]
        for feature in range(sum(WIDTHS["hidden"])):
            found = []
            for images in both:
                average = sum(image[feature] for image in images) / len(images)
                variance = sum((image[feature] - average) ** 2 for image in images) / len(images)
                found.append((average, (variance + 1e-8) ** 0.5))
            total = total + sum((real - synthetic) ** 2 for real, synthetic in zip(*found, strict=True))
    (slope,) = torch.autograd.grad(total, pixels)
    assert float(stepped.distance) == pytest.approx(float(total.detach()), rel=1e-7)
    assert (stepped.velocity - slope).norm() <= 1e-5 * slope.norm()


def test_one_image_alone_has_no_deviation_and_a_finite_gradient() -> None:
    network = network_of()
    inputs = in_double(inputs_of(network, "hidden", (2,)))
    matching = DistributionMatching(network, "hidden", "none", 1, 0.0, deviation=True)
    stepped = matching.step(
        inputs._replace(
            pixels=inputs.pixels[:, :1],
            velocity=inputs.velocity[:, :1] * 0,
            earlier=torch.zeros((), dtype=torch.float64),
        )
    )
    assert bool(stepped.velocity.isfinite().all())
    assert bool(stepped.velocity.any())


# --- in pieces -------------------------------------------------------------------------------------------------------


def watched(matching: DistributionMatching) -> list[int]:
    """How many images the network is shown, forward by forward, from now on."""
    shown: list[int] = []
    matching.network.module.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    return shown


@pytest.mark.parametrize(
    ("compared", "deviation", "of_classes"),
    [
        *itertools.product(["hidden"], [False, True], ["one", "one draw", "a draw each"]),
        *itertools.product(["blocks"], [False], ["one draw", "a draw each"]),  # cafe tells classes apart
    ],
)
@pytest.mark.parametrize(("factor", "micro"), [(1, 2), (2, 1), (2, 4), (3, 5), (2, 11)])
def test_a_step_in_pieces_equals_the_whole_one(
    compared: str, deviation: bool, of_classes: str, factor: int, micro: int
) -> None:
    """Real classes of 5 images, stored ones of 3: pieces that divide them, that do not, and that hold a class."""
    network = network_of()
    front = () if of_classes == "one" else (3,)
    inputs = in_double(inputs_of(network, compared, front, 0.5))
    if deviation:
        earlier = torch.cat([0.1 * inputs.earlier, 0.1 * inputs.earlier.square() + 0.1], -1)
        inputs = inputs._replace(earlier=earlier)
    if of_classes == "one draw":
        inputs = inputs._replace(draws=inputs.draws[:1])
    whole, pieces = (
        DistributionMatching(network, compared, ALL, factor, 0.5, deviation=deviation, micro=most)
        for most in (None, micro)
    )
    expected = whole.step(inputs)
    shown = watched(pieces)
    found = pieces.step(inputs)
    assert max(shown) <= micro
    assert sum(shown) == (3 if front else 1) * (5 + 2 * 3 * factor**2), "synthetic images are shown twice"
    assert_same(found, expected)


@pytest.mark.parametrize("compared", COMPARED)
def test_a_step_in_pieces_equals_the_double_loop(compared: str) -> None:
    network = network_of()
    inputs = inputs_of(network, compared, (3,), 0.5)
    matching = DistributionMatching(network, compared, ALL, 2, 0.5, micro=3)
    slope, distance = by_double_loop(network, compared, ALL, 2, inputs, 0.01)
    found = matching.step(in_double(inputs))
    assert float(found.distance) == pytest.approx(distance, rel=1e-9)
    assert (found.velocity - 0.5 * inputs.velocity - slope).norm() <= 1e-9 * slope.norm()


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("front", [(), (2,)])
def test_earlier_means_in_pieces_are_those_of_the_whole(compared: str, front: tuple[int, ...]) -> None:
    network = network_of()
    flat, pixels, _, _, label, draws, _, _ = in_double(inputs_of(network, compared, front))
    whole, pieces = (DistributionMatching(network, compared, ALL, 2, 0.5, micro=micro) for micro in (None, 5))
    expected = whole.mean(flat, pixels, label, draws)
    found = pieces.mean(flat, pixels, label, draws)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_classes_that_fit_together_are_taken_whole(norm: str) -> None:
    network = network_of(norm)
    inputs = inputs_of(network, "blocks", (3,))
    whole, fits = (DistributionMatching(network, "blocks", ALL, 2, 0.5, micro=micro) for micro in (None, 36))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fits.step(inputs), whole.step(inputs), strict=True))


def test_batch_normalisation_cannot_be_taken_in_pieces() -> None:
    with pytest.raises(AssertionError, match="couples"):
        DistributionMatching(network_of("batch"), "hidden", ALL, 2, 0.5, micro=4)


@pytest.mark.slow(20)
def test_the_compiled_step_in_pieces_is_the_same_mathematics() -> None:
    fast = DistributionMatching(network_of(compile=True), "blocks", "color_crop", 2, 0.5, micro=4)
    plain = DistributionMatching(network_of(), "blocks", "color_crop", 2, 0.5)
    inputs = inputs_of(fast.network, "blocks", (3,), 0.5, torch.float32)
    inputs = inputs._replace(images=inputs.images[:, :4])  # pieces of one size, to compile less
    assert_compiled_alike(fast, plain, inputs, 1e-4)
