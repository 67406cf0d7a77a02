"""The plain twins of the benchmarks compute what the package computes, at tiny sizes: so the benchmarks are honest."""

from __future__ import annotations

import peers
import pytest
import torch
from pairs import CLASSES, DSA, MEAN, STD, Pair, Sizes, World, gap
from rows import ROWS
from rows_training import SEED, drawn

from dasm_ray.config.keys import TrainRecipe
from dasm_ray.core.augment import augment, cutmix, draw
from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.matching.distribution import DistributionMatching
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.matching.trajectory import Student, adjoint, planned
from dasm_ray.core.networks.samples import TensorSamples
from dasm_ray.core.networks.training import train
from dasm_ray.core.seed import torch_generator

TINY = Sizes(width=4, quick=True)
EXACT = 1e-9
"""In float64; a constant or a draw that differs shows in the first digits."""


@pytest.fixture
def world() -> World:
    world = World(TINY, "test")
    world.flat = world.flat.double()
    return world


def normal(world: World, *front: int) -> torch.Tensor:
    return torch.randn(*front, *world.network.shape, generator=world.generator, dtype=torch.float64)


def test_networks_agree(world: World) -> None:
    images = normal(world, 5)
    assert gap([world.network.logits(world.flat, images)], [world.net()(images)]) < EXACT
    assert torch.equal(peers.flat_of(world.net()), world.flat)


@pytest.mark.parametrize("part", [*DSA.split("_"), DSA])
@pytest.mark.parametrize("count", [1, 6])
def test_augmentations_agree(world: World, part: str, count: int) -> None:
    for _ in range(5):
        images, draws = normal(world, 6), draw(count, world.generator).double()
        assert gap([augment(images, draws, part)], [peers.augment(images, draws, part)]) < EXACT


def test_cutmix_agrees(world: World) -> None:
    images = normal(world, 4)
    kept_shares = set()
    for box in torch.rand(20, 4, generator=world.generator, dtype=torch.float64):
        ours, kept = cutmix(images, images.roll(1, 0), box)
        twin, kept_by_twin = peers._cutmix(images, box[:3].tolist())
        assert torch.equal(ours, twin)
        assert float(kept) == pytest.approx(kept_by_twin)
        kept_shares.add(round(kept_by_twin, 3))
    assert len(kept_shares) > 5
    assert peers._cutmix(images, None)[0] is images


def test_multi_formation_agrees(world: World) -> None:
    pixels = normal(world, 3)
    rows, columns = (enlargers(size, 2).double() for size in world.network.shape[1:])
    ours = decode(pixels, rows, columns).view(3, 4, -1)
    twin = peers.enlarged(pixels, 2).view(4, 3, -1).transpose(0, 1)  # the package keeps the tiles of an image together
    assert gap([ours], [twin]) < EXACT


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_trainings_agree(world: World, single: bool, decay: bool) -> None:
    # Rates of few bits, so that their float32 is they themselves.
    recipe = TrainRecipe(
        batch=6, lr=1 / 32, momentum=0.5, weight_decay=1 / 1024, augment="color_crop_flip", single=single, cutmix=0.5
    )
    samples, steps, start = TensorSamples(normal(world, 20), torch.arange(20) % CLASSES), 2 if decay else 7, world.flat
    steps_drawn = list(drawn(20, recipe, steps, torch_generator(*SEED)))
    assert decay or {step.box is None for step in steps_drawn} == {False, True}
    for state in train(world.network, samples, recipe, steps=steps, generator=torch_generator(*SEED), flat=start):
        ours = state.flat
    net = world.net()
    peers.Training(net, recipe.momentum, recipe.weight_decay).over(samples.images, samples.labels, steps_drawn)
    assert gap([ours - start], [peers.flat_of(net) - start]) < EXACT


def test_the_falling_rate_is_drawn_as_it_is_trained(world: World) -> None:
    rates = [step.rate for step in drawn(20, TrainRecipe(batch=6, lr=1.0), 6, torch_generator(*SEED), decay=True)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.2, 0.04])


def step_inputs(world: World, pixels: torch.Tensor, images: torch.Tensor, matching: object, draws: torch.Tensor):
    return StepInputs(
        flat=world.flat,
        pixels=pixels,
        velocity=torch.zeros_like(pixels),
        images=images,
        label=torch.tensor(3),
        draws=draws,
        earlier=matching.nothing(world.flat),
        settings=torch.tensor([0.5, 1.0]),
    )


def test_gradient_matching_agrees(world: World) -> None:
    pixels, images = normal(world, 3).sigmoid(), normal(world, 5).sigmoid()
    draws = draw(1, world.generator).double()
    matching = GradientMatching(world.network, "convolutions", "mse", "color_crop_cutout", 2, 0.5)
    ours = matching.step(step_inputs(world, pixels, images, matching, draws))
    recipe = peers.Recipe("color_crop_cutout", 2, MEAN, STD, 0.5, 0.5)
    real = peers.normalised(images, MEAN, STD)
    twin, distance = peers.match(world.net(), pixels, real, 3, draws, recipe)
    assert gap([ours.pixels - pixels], [twin - pixels]) < EXACT
    assert float(ours.distance) == pytest.approx(distance, rel=EXACT)


def test_distribution_matching_agrees(world: World) -> None:
    pixels, images = normal(world, CLASSES, 2).sigmoid(), normal(world, CLASSES, 5).sigmoid()
    draws = draw(1, world.generator).double()
    matching = DistributionMatching(world.network, "hidden", DSA, 1, 0.5)
    ours = matching.step(step_inputs(world, pixels, images, matching, draws))
    real = peers.normalised(images.flatten(0, 1), MEAN, STD).view(images.shape)
    twin, distance = peers.match_means(world.net(), pixels, real, draws, peers.Recipe(DSA, 1, MEAN, STD, 0.5, 0.5))
    assert gap([ours.pixels - pixels], [twin - pixels]) < EXACT
    assert float(ours.distance) == pytest.approx(distance, rel=EXACT)


def test_walks_agree(world: World) -> None:
    images, count, rate = normal(world, 12), 12, torch.tensor(0.125, dtype=torch.float64)
    labels = torch.randn(count, CLASSES, generator=world.generator, dtype=torch.float64)
    target = world.flat + 0.01 * torch.randn(world.flat.shape, generator=world.generator, dtype=torch.float64)
    plan = planned(count, 5, 6, DSA, True, world.generator)
    plan = plan._replace(draws=plan.draws.double())
    ours = adjoint(Student(world.network, soft=True), plan, images, labels, rate.log(), world.flat, target)
    plain = peers.Reparametrised(world.net())
    distance, *slopes = peers.walk(plain, peers.Walk(*plan), images, labels, rate, world.flat, target)
    assert float(ours.distance) == pytest.approx(distance, rel=EXACT)
    assert gap([ours.images], [slopes[0]]) < EXACT
    assert gap([ours.labels], [slopes[1]]) < EXACT
    assert float(ours.log_step) == pytest.approx(float(slopes[2] * rate), rel=EXACT)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow(40)] * row.is_cold) for name, row in ROWS.items()]
)
def test_each_row_does_the_same_work_twice(name: str) -> None:
    """In float32, as it is timed; every call starts anew."""
    pair: Pair = ROWS[name].build(TINY)
    assert pair.units > 0
    most = {"evaluate": 1e-6, "k_center": 0, "herding": 0}.get(name, 1e-3)
    for _ in range(2):
        assert pair.apart(pair.ours(), pair.twin()) <= most
    assert ROWS[name].what
