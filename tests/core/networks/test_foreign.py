"""Networks of the caller's own: trained as all others, the same each time, judged by statistics of their own images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import COUNTS, MEAN, SHAPE, STD, toy_arrays

from dasm_ray.config.keys import Model, OwnModel, TrainRecipe
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.networks.evaluate import evaluate_on
from dasm_ray.core.networks.foreign import initial, made
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import ConfigError

RECIPE = TrainRecipe(epochs=1, batch=16, lr=0.05, augment="none", cutmix=0.0)


def own(function: str) -> OwnModel:
    return OwnModel(**Model().model_dump(), function=f"own_networks:{function}", code="")


def trained(function: str, seed: int = 0) -> tuple[float, float | None]:
    network = Network(own(function), SHAPE, len(COUNTS), MEAN, STD)
    assert not network.compile
    train, test = (RealSamples(network, Blocks(toy_arrays(seed=number))) for number in (0, 1))
    torch.rand(seed + 3)  # whatever was drawn in this process before
    found = evaluate_on(
        network, train, RECIPE, steps=25, checkpoints=2, validation=test, test=test, generator=torch_generator(seed)
    )
    return found.validation, found.test


@pytest.mark.parametrize("function", ["with_batch_norm", "plain"])
def test_it_learns_and_two_trainings_from_one_seed_are_the_same(function: str) -> None:
    first = trained(function)
    assert first[0] > 0.8
    assert trained(function) == first


def test_its_first_parameters_follow_from_the_generator_alone() -> None:
    model = own("with_batch_norm")
    one = initial(model, SHAPE, 4, torch_generator("a"))
    torch.rand(5)
    assert torch.equal(initial(model, SHAPE, 4, torch_generator("a")), one)
    assert not torch.equal(initial(model, SHAPE, 4, torch_generator("b")), one)


def test_statistics_are_the_moments_of_the_images_that_it_is_given() -> None:
    network = Network(own("with_batch_norm"), SHAPE, len(COUNTS), MEAN, STD)
    samples = RealSamples(network, Blocks(toy_arrays()))
    flat = network.initial(torch_generator(0))
    statistics = statistics_of(network, flat, samples)
    images, _ = samples.take(np.arange(len(samples)))
    weight, bias = (network.layout.unflatten(flat)[f"module.0.{name}"] for name in ("weight", "bias"))
    seen = torch.nn.functional.conv2d(images, weight, bias, padding=1)
    torch.testing.assert_close(statistics["module.1.running_mean"], seen.mean((0, 2, 3)))
    torch.testing.assert_close(statistics["module.1.running_var"], seen.var((0, 2, 3)))
    kept = {name: value.clone() for name, value in statistics.items()}
    list(read_all(network, flat, statistics, samples))
    assert all(torch.equal(kept[name], value) for name, value in statistics.items()), "reading changes nothing"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("of_one_size", "cannot take images of 3x8x8"),
        ("features", "gives 2x192 for 2 images, not 2x4 logits"),
        ("no_module", "gave a Tensor, not a torch.nn.Module"),
        ("missing", "has no function missing"),
    ],
)
def test_what_is_no_such_network_is_said(function: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(own(function), SHAPE, len(COUNTS))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_networks_of_timm_take_images_of_this_size(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed; pip install 'dasm-ray[timm]'")
    model = OwnModel(**Model().model_dump(), function=f"timm:{name}", code="")
    assert made(model, (3, 32, 32), 7)(torch.zeros(3, 3, 32, 32)).shape == (3, 7)
    with pytest.raises(ConfigError, match="timm has no such network"):
        made(model.model_copy(update={"function": "timm:no_such_network"}), (3, 32, 32), 7)
