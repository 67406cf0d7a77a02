"""What the tests of core hold on the processor, held on a GPU: exact gradients, the same bytes again, and no waiting.

Neither Ray nor anything of tests/conftest.py is needed: `make gpu`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import Model, RunConfig, TrainRecipe
from dasm_ray.config.parsing import load_config
from dasm_ray.core.augment import draw
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.device import multiply_as, sent
from dasm_ray.core.matching.distribution import DistributionMatching
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.round import Assignment, Loop, RoundInputs, distil_round, matching_of
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.matching.trajectory import Student, adjoint, planned
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here that it can compute on"),
]

CLASSES, SHAPE = 10, (3, 16, 16)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)
STRATEGY = "color_crop_cutout_flip_scale_rotate"

RECIPES = ["digits", "cifar10_ipc10_cpu"]
"""By features, and by gradients with two images in the place of one."""

CLOSE = 3e-4
"""Of float32 on a GPU from float64 on the processor, in the norm."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_on(device: str, precision: str = "float32", compile: bool = False, width: int = 16) -> Network:
    multiply_as(precision, device)
    model = Model(width=width, depth=2)
    return Network(model, SHAPE, CLASSES, MEAN, STD, device=device, compile=compile, precision=precision)


def blocks() -> Blocks:
    levels = np.random.default_rng(1).integers(0, 256, (CLASSES, 30, *SHAPE), dtype=np.uint8)
    return Blocks(list(levels))


@contextmanager
def nobody_waits() -> Iterator[None]:
    """torch raises where the host would wait."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings(action="ignore"):  # that it may not see all waiting
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def apart(one: Tensor, other: Tensor) -> float:
    one, other = (each.detach().double().cpu().flatten() for each in (one, other))
    return float((one - other).norm() / other.norm())


# --- exactness -------------------------------------------------------------------------------------------------------


def step_of(family: str, network: Network, dtype: torch.dtype) -> Tensor:
    """The way that pixels go in one matching step."""
    drawing = generator(3)
    front = (CLASSES,) if family == "dm" else ()
    pixels = torch.rand(*front, 4, *SHAPE, generator=drawing).to(dtype)
    images = torch.randint(0, 256, (*front, 12, *SHAPE), generator=drawing, dtype=torch.uint8)
    flat = network.initial(generator(5)).to(dtype)
    matching: Any = (
        DistributionMatching(network, "hidden", STRATEGY, 2, 0.5)
        if family == "dm"
        else GradientMatching(network, "weights", "mse", STRATEGY, 2, 0.5)
    )
    device = network.device
    inputs = StepInputs(
        flat=flat,
        pixels=pixels.to(device),
        velocity=torch.zeros_like(pixels, device=device),
        images=images.to(device) if dtype == torch.float32 else images,
        label=torch.tensor(3, device=device),
        draws=draw(1, drawing).to(dtype).to(device),
        earlier=matching.nothing(flat),
        settings=torch.tensor([1.0, 1.0], dtype=dtype, device=device),
    )
    if dtype == torch.float64:
        inputs = inputs._replace(images=inputs.images.double() / 255)
    velocity: Tensor = matching.step(inputs).velocity
    return velocity


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("family", ["idc", "dm"])
def test_a_matching_step_moves_pixels_as_in_float64_on_the_processor(family: str, compile: bool) -> None:
    found = step_of(family, network_on(DEVICE, compile=compile), torch.float32)
    assert apart(found, step_of(family, network_on("cpu"), torch.float64)) < CLOSE


def walk_of(network: Network, dtype: torch.dtype) -> list[Tensor]:
    drawing, device = generator(4), network.device
    images, labels = torch.randn(20, *SHAPE, generator=drawing), torch.randn(20, CLASSES, generator=drawing)
    flat = network.initial(generator(5))
    target = flat + 0.01 * torch.randn(flat.shape, generator=drawing).to(device)
    plan = planned(20, 10, 5, STRATEGY, True, drawing)
    plan = plan._replace(batches=plan.batches.to(device), draws=plan.draws.to(dtype).to(device))
    given = [each.to(dtype).to(device) for each in (images, labels, torch.tensor(-4.0), flat, target)]
    student = Student(network, soft=True)
    adjoint(student, plan, *given)
    with nobody_waits():
        found = adjoint(student, plan, *given)
    return list(found)


def test_a_walk_and_its_gradients_are_those_of_float64_on_the_processor_and_nobody_waits() -> None:
    exact = walk_of(network_on("cpu"), torch.float64)
    for ours, true in zip(walk_of(network_on(DEVICE), torch.float32), exact, strict=True):
        assert apart(ours, true) < 10 * CLOSE


def test_bf16_convolutions_point_the_same_way() -> None:
    exact = step_of("idc", network_on(DEVICE), torch.float32).flatten().double()
    rounded = step_of("idc", network_on(DEVICE, "bf16"), torch.float32).flatten().double()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert not torch.equal(exact, rounded)


# --- the same bytes again --------------------------------------------------------------------------------------------


def like(recipe: str) -> tuple[RunConfig, RoundInputs, NDArray[np.float32]]:
    """A recipe that ships, with fewer network states and all augmentations, on images of noise."""
    config = load_config(Path(__file__).parents[2] / f"configs/{recipe}.yaml")
    matcher = config.matcher.model_copy(update={"networks": 3, "augment": STRATEGY, "batch_real": 20})
    synthetic = config.synthetic.model_copy(update={"segments": 2})
    config = config.model_copy(update={"matcher": matcher, "synthetic": synthetic})
    drawn = np.random.default_rng(2)
    states = [network_on("cpu").initial(generator(seed)).numpy() for seed in range(9)]
    inputs = RoundInputs(
        blocks=blocks(),
        windows=[[np.arange(30)] * CLASSES] * 2,
        earlier=drawn.random((CLASSES, 1, *SHAPE), dtype=np.float32),
        current=drawn.random((CLASSES, 1, *SHAPE), dtype=np.float32),
        experts=[np.stack(states)] * 2,
        probes=states[:2],
    )
    return config, inputs, drawn.random((5, 1, *SHAPE), dtype=np.float32)


def a_round(recipe: str, compile: bool, precision: str = "float32") -> bytes:
    config, inputs, pixels = like(recipe)
    matching = matching_of(network_on(DEVICE, precision, compile), config, 1)
    where = Assignment(1, 0, 0, tuple(range(5)))
    return distil_round(matching, config, where, inputs, pixels, np.zeros_like(pixels))[0].tobytes()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_round_of_a_recipe_gives_the_same_bytes_again(recipe: str, compile: bool, precision: str) -> None:
    assert a_round(recipe, compile, precision) == a_round(recipe, compile, precision)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_captured_round_gives_the_bytes_of_a_compiled_one(recipe: str) -> None:
    expected = a_round(recipe, compile=True)
    compiled.capture(True)
    try:
        assert a_round(recipe, compile=True) == expected
    finally:
        compiled.capture(False)


@pytest.mark.parametrize("compile", [False, True])
def test_a_walk_gives_the_same_bytes_again(compile: bool) -> None:
    first, again = (walk_of(network_on(DEVICE, compile=compile), torch.float32) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


RECIPE = TrainRecipe(epochs=1, batch=32, augment=STRATEGY, cutmix=0.5)


def trained(steps: int, blocks: Blocks) -> Tensor:
    network = network_on(DEVICE)
    samples = RealSamples(network, blocks)
    for state in train(network, samples, RECIPE, steps=steps, generator=generator()):
        flat = state.flat
    return flat


def test_a_training_gives_the_same_bytes_again_wherever_its_images_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    from dasm_ray.core import blocks as module

    first = trained(12, blocks())
    assert torch.equal(first, trained(12, blocks()))
    monkeypatch.setattr(module, "room_on", lambda device: 0)  # nothing stays on the device
    assert torch.equal(first, trained(12, blocks()))


def test_what_is_sent_arrives_whole_though_its_memory_is_used_again_at_once() -> None:
    sources = [torch.full((1 << 16,), float(number)) for number in range(50)]
    found = [sent(source, DEVICE) for source in sources]
    assert [float(each.double().mean()) for each in found] == list(range(50))


# --- nobody waits ----------------------------------------------------------------------------------------------------


def test_a_training_does_not_wait_between_its_steps() -> None:
    network = network_on(DEVICE)
    samples = RealSamples(network, blocks())
    samples.take(np.arange(300))  # all blocks are there
    with nobody_waits():
        states = list(train(network, samples, RECIPE, steps=12, generator=generator()))
    assert len(states) == 12


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("segment", [0, 1])
def test_a_round_does_not_wait_between_its_steps(segment: int, recipe: str) -> None:
    config, inputs, pixels = like(recipe)
    if segment == 0:
        inputs = RoundInputs(**{**vars(inputs), "earlier": inputs.earlier[:, :0], "windows": inputs.windows[:1]})
    matching = matching_of(network_on(DEVICE), config, segment)
    where = Assignment(segment, 0, 0, tuple(range(5)))
    inputs.blocks.take_to(DEVICE, np.arange(300))
    loop = Loop(matching, config, where, inputs, pixels, np.zeros_like(pixels))
    with nobody_waits():
        for flat, _ in loop._walk(generator()):
            for places in loop.together:
                loop._match(flat, places, loop.anchor(flat, places, generator()), generator())
    assert not np.array_equal(loop.pixels.cpu().numpy(), pixels)


def test_torch_raises_where_somebody_waits() -> None:
    x = torch.ones(3, device=DEVICE)
    with nobody_waits(), pytest.raises(RuntimeError, match="synchron"):
        x.sum().item()
