"""One step of SGD, what it is compiled for, and how images are normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import COUNTS, NO_MIX, RECIPE, batch_of, flat_of, generator, toy_blocks, toy_network, twin_of

from dasm_ray.config.keys import Compiles, Model
from dasm_ray.core.augment import DRAWS
from dasm_ray.core.matching.distribution import DistributionMatching
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks import network as network_module
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples, TensorSamples
from dasm_ray.core.networks.training import train

# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "none"])
def test_steps_are_those_of_sgd_with_momentum_and_weight_decay(norm: str) -> None:
    network = toy_network(norm, depth=2)
    flat = network.initial(generator()).double()
    module = twin_of(network, flat)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
    velocity = torch.zeros_like(flat)
    settings = torch.tensor([0.1, 0.9, 0.05, 0.0, 0.0], dtype=torch.float64)
    for number in range(4):
        images, labels = batch_of(number)
        flat, velocity, loss = network.train_step("none")(
            flat, velocity, images, labels, torch.zeros(6, DRAWS), torch.tensor(NO_MIX), settings
        )
        optimizer.zero_grad()
        expected = F.cross_entropy(module(images), labels)
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(flat, flat_of(network, module), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("is_soft", [False, True])
def test_a_mixed_step_mixes_the_losses_by_the_share_of_pixels(is_soft: bool) -> None:
    network = toy_network()
    flat = network.initial(generator()).double()
    images, labels = batch_of(0)
    if is_soft:  # no two rows are alike, even turned by some classes
        labels = torch.rand(6, network.classes, generator=generator(), dtype=torch.float64).softmax(1)
    box = torch.tensor([0.75, 0.5, 0.5, 1.0])  # a field of 4x4 in the middle comes from the image before
    _, _, loss = network.train_step("none")(
        flat, torch.zeros_like(flat), images, labels, torch.zeros(6, DRAWS), box, torch.zeros(5, dtype=torch.float64)
    )
    mixed = images.clone()
    mixed[:, :, 2:6, 2:6] = images[[5, 0, 1, 2, 3, 4], :, 2:6, 2:6]
    logits = twin_of(network, flat)(mixed)
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * F.cross_entropy(logits, labels[[5, 0, 1, 2, 3, 4]])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_step_that_mixes_nothing_is_that_of_an_empty_field_to_the_bit(is_flat: bool) -> None:
    """What is left out of it would be multiplied by 0."""
    network = toy_network()
    images, labels = batch_of(0)
    settings = torch.tensor([0.1, 0.9, 0.05, 0.1, 0.4])
    step, ends = network.train_step("color_crop", is_flat), []
    for box in (NO_MIX, [1.0, 0.5, 0.5, 1.0]):
        flat = network.initial(generator(3))
        velocity = torch.zeros_like(flat)
        for number in range(3):
            draws = torch.rand(6, DRAWS, generator=generator(number))
            flat, velocity, loss = step(flat, velocity, images.float(), labels, draws, torch.tensor(box), settings)
        ends.append((flat, velocity, loss))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("box", [NO_MIX, [0.75, 0.5, 0.5, 1.0]])
@pytest.mark.parametrize("is_soft", [False, True])
def test_a_step_on_large_images_takes_them_in_pieces_and_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, is_soft: bool, box: list[float], is_flat: bool
) -> None:
    """Six images in pieces of four and two: what is mixed in from the last image is in another piece."""
    images, labels = batch_of(0)
    if is_soft:
        labels = torch.rand(6, len(COUNTS), generator=generator(), dtype=torch.float64).softmax(1)
    settings = torch.tensor([0.1, 0.9, 0.05, 0.1, 0.4], dtype=torch.float64)
    ends, shown = [], []
    for large in (network_module.LARGE_BYTES, 0):
        monkeypatch.setattr(network_module, "LARGE_BYTES", large)
        monkeypatch.setattr(network_module, "LARGE_PIECE_BYTES", 4 * 4 * 4 * 8 * 8)
        network, seen = toy_network(), []
        monkeypatch.setattr(
            network, "logits", lambda *of, seen=seen, by=network.logits: seen.append(len(of[1])) or by(*of)
        )
        flat, draws = network.initial(generator()).double(), torch.rand(6, DRAWS, generator=generator(1))
        step = network.train_step("color_crop", is_flat)
        ends.append(step(flat, torch.ones_like(flat), images, labels, draws, torch.tensor(box), settings))
        shown.append(seen)
    assert shown == [[6] * (1 + is_flat), [4, 2] * (1 + is_flat)]
    for whole, pieces in zip(*ends, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "side", "options", "at_once"),
    [
        (Model(width=128), 32, {}, 256),
        (Model(width=128), 33, {}, 15),
        (Model(width=4), 224, {}, 10),
        (Model(width=128), 224, {}, 1),
        (Model(width=128, norm="batch"), 224, {}, 256),
        (Model(width=128), 224, {"compile": True}, 256),
    ],
)
def test_only_large_images_are_trained_on_in_pieces(
    model: Model, side: int, options: dict[str, Any], at_once: int
) -> None:
    """Nor where batch normalisation couples them, nor in compiled steps, which are of one shape."""
    network = Network(model, (3, side, side), 10, (0.5,) * 3, (0.5,) * 3, **{"compile": False, **options})
    assert network.train_at_once(256) == at_once


def test_a_step_augments_each_image_by_its_own_draw() -> None:
    network = toy_network()
    flat = network.initial(generator()).double()
    images, labels = batch_of(0, 2)
    draws = torch.full((2, DRAWS), 0.9)
    draws[1, 7] = 0.1  # only the second is flipped
    _, _, loss = network.train_step("flip")(
        flat, torch.zeros_like(flat), images, labels, draws, torch.tensor(NO_MIX), torch.zeros(5, dtype=torch.float64)
    )
    seen = torch.stack([images[0], images[1].flip(2)])
    torch.testing.assert_close(loss, F.cross_entropy(twin_of(network, flat)(seen), labels).detach())


def test_gsam_goes_as_its_authors_wrote_it() -> None:
    """One step spelled out as in the paper: ascend within an adaptive ball, take the gradient there, project."""
    network = toy_network()
    images, labels = RealSamples(network, toy_blocks()).take(np.arange(0, 40, 5))
    flat = network.initial(generator(2)).double()
    rho, alpha = 0.1, 0.4

    def gradient_at(there: Tensor) -> Tensor:
        leaf = there.clone().requires_grad_()
        loss = F.cross_entropy(network.logits(leaf, images.double()), labels)
        return torch.autograd.grad(loss, leaf)[0]

    here = gradient_at(flat)
    length = sum((abs(float(w)) * float(g)) ** 2 for w, g in zip(flat, here, strict=True)) ** 0.5
    moved = [float(w) + rho * float(w) ** 2 * float(g) / length for w, g in zip(flat, here, strict=True)]
    worst = gradient_at(torch.tensor(moved, dtype=torch.float64))
    cosine = float((here * worst).sum() / (here.norm() * worst.norm()))
    vertical = here - cosine * here.norm() * worst / worst.norm()
    expected = flat - 0.05 * (worst - alpha * vertical)
    settings = torch.tensor([0.05, 0.0, 0.0, rho, alpha], dtype=torch.float64)
    after, _, _ = network.train_step("none", is_flat=True)(
        flat, torch.zeros_like(flat), images.double(), labels, torch.zeros(8, DRAWS), torch.tensor(NO_MIX), settings
    )
    assert float((after - expected).norm() / (expected - flat).norm()) < 1e-9
    assert float(vertical.norm() / worst.norm()) > 1e-3, "the case must have a part to take off"


def test_labels_may_be_probabilities() -> None:
    network = toy_network()
    images, labels = RealSamples(network, toy_blocks()).take(np.arange(16))
    certain = F.one_hot(labels, len(COUNTS)).float()
    runs = [
        list(train(network, TensorSamples(images, given), RECIPE, steps=3, generator=generator()))[-1].flat
        for given in (labels, certain, certain.roll(1, 1))
    ]
    torch.testing.assert_close(runs[0], runs[1])
    assert float((runs[0] - runs[2]).norm()) > 1e-3


def test_floats_are_normalised_without_another_division() -> None:
    network = toy_network()
    bytes_ = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator())
    assert torch.equal(network.normalise(bytes_), network.normalise(bytes_.float() / 255))


@pytest.mark.parametrize(("width", "size", "compiles"), [(32, 8, False), (32, 28, True), (128, 32, True)])
def test_a_network_is_compiled_where_that_pays(width: int, size: int, compiles: bool) -> None:
    def network(compile: bool | None) -> Network:
        return Network(Model(width=width), (1, size, size), 10, (0.5,), (0.5,), compile=compile)

    assert network(None).compile is compiles
    assert network(True).compile
    assert not network(False).compile


@pytest.mark.parametrize(("said", "trainings", "matching"), [(True, 2, 2), ("trainings", 2, 0), (False, 0, 0)])
def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch, said: Compiles, trainings: int, matching: int) -> None:
    """A training step and a reading; a matching step and what earlier images add, or a student's two."""
    made: list[str] = []
    monkeypatch.setattr(compiled, "Compiled", lambda fast, eager, kind: made.append(kind) or fast)
    network = Network(Model(width=4, depth=2), (1, 8, 8), 10, (0.5,), (0.5,), compile=said)
    network.train_step("crop")
    assert len(made) == trainings
    for match in (
        lambda: GradientMatching(network, "convolutions", "mse", "crop", 2, 0.5),
        lambda: DistributionMatching(network, "blocks", "crop", 2, 0.5),
        lambda: Student(network, soft=True),
    ):
        made.clear()
        match()
        assert sum(" " not in kind for kind in made) == matching, made  # and parts of them
        assert bool(made) is bool(matching)


@pytest.mark.parametrize(
    ("norm", "batch", "piece"),
    [("instance", 20, 20), ("instance", 32, 32), ("instance", 100, 25), ("instance", 64, 32), ("instance", 97, 32),
     ("instance", 35, 32), ("none", 100, 25), ("batch", 100, 100)],
)  # fmt: skip
def test_pieces_fit_the_caches_and_are_even_parts_where_there_are_any(norm: str, batch: int, piece: int) -> None:
    model = Model(width=128, norm=norm)  # type: ignore[arg-type]
    assert Network(model, (3, 32, 32), 10, (0.5,) * 3, (0.5,) * 3).piece(batch) == piece
    assert Network(Model(width=1), (1, 8, 8), 10, (0.5,), (0.5,)).piece(batch) == batch
    assert Network(Model(width=128), (3, 1024, 1024), 10, (0.5,) * 3, (0.5,) * 3).piece(batch) == 1
