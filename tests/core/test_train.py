"""Training against torch's own modules and optimiser, and what feeds it against plain counting."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from toy import COUNTS, MEAN, RECIPE, STD, generator, toy_blocks, toy_network

from dasm_ray.config import Model, TrainRecipe
from dasm_ray.core.augment import DRAWS
from dasm_ray.core.train import (
    STATISTICS_SAMPLES,
    Network,
    RealSamples,
    TensorSamples,
    Trained,
    accuracy,
    batches,
    read_all,
    statistics_of,
    steps_for,
    train,
)

NO_MIX = [0.5, 0.5, 0.5, -1.0]


def twin_of(network: Network, flat: Tensor) -> nn.Module:
    """The network as an ordinary float64 module that holds ``flat``."""
    module = copy.deepcopy(network.module).double()
    module.load_state_dict(network.layout.unflatten(flat.double()), strict=False)
    return module.requires_grad_(True)


def flat_of(network: Network, module: nn.Module) -> Tensor:
    return network.layout.flatten(dict(module.named_parameters())).detach()


def batch_of(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(COUNTS), (count,), generator=generator(seed))
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator(seed + 1)), labels


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


def test_a_mixed_step_mixes_the_losses_by_the_share_of_pixels() -> None:
    network = toy_network()
    flat = network.initial(generator()).double()
    images, labels = batch_of(0)
    box = torch.tensor([0.75, 0.5, 0.5, 1.0])  # a field of 4x4 in the middle comes from the image before
    _, _, loss = network.train_step("none")(
        flat, torch.zeros_like(flat), images, labels, torch.zeros(6, DRAWS), box, torch.zeros(5, dtype=torch.float64)
    )
    mixed = images.clone()
    mixed[:, :, 2:6, 2:6] = images[[5, 0, 1, 2, 3, 4], :, 2:6, 2:6]
    logits = twin_of(network, flat)(mixed)
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * F.cross_entropy(logits, labels[[5, 0, 1, 2, 3, 4]])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)


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


# --- what feeds it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "steps"), [(10, 4, 20), (7, 7, 3), (12, 5, 12), (3, 2, 6)])
def test_each_pass_is_a_permutation_and_every_batch_full(count: int, size: int, steps: int) -> None:
    made = list(batches(count, size, steps, generator()))
    assert [len(batch) for batch in made] == [size] * steps
    stream = np.concatenate(made)
    assert stream.dtype == np.int64
    passes = [stream[first : first + count].tolist() for first in range(0, len(stream) - count + 1, count)]
    assert len(passes) >= 2
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert any(one != passes[0] for one in passes[1:])


def test_batches_do_not_share_memory() -> None:
    first, second = batches(4, 2, 2, generator())
    kept = second.copy()
    first[:] = 99
    np.testing.assert_array_equal(second, kept)


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "steps"),
    [(100, 10, 3, 30), (105, 10, 2, 21), (5, 64, 7, 7), (1, 8, 1, 1), (9, 8, 1, 1)],
)
def test_steps_for_so_many_passes(count: int, batch: int, epochs: int, steps: int) -> None:
    recipe = TrainRecipe(epochs=epochs, batch=batch)
    assert steps_for(count, recipe) == steps
    assert steps_for(count, TrainRecipe(epochs=50, batch=batch), epochs) == steps


Seen = list[tuple[Any, ...]]


def watched(network: Network, strategy: str) -> Seen:
    """Makes the step of ``strategy`` do nothing but write down (images, labels, draws, box, settings)."""
    seen: Seen = []

    def step(flat: Tensor, velocity: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(rest)
        return flat, velocity, torch.zeros(())

    network._train_steps[strategy, False] = step
    return seen


def run(network: Network, recipe: TrainRecipe, steps: int, **more: Any) -> list[Trained]:
    return list(train(network, RealSamples(network, toy_blocks()), recipe, steps=steps, generator=generator(), **more))


def test_the_rate_falls_to_a_fifth_at_two_thirds_and_again_at_five_sixths() -> None:
    network = toy_network()
    seen = watched(network, "none")
    run(network, RECIPE, 12, decay=True)
    rates = [float(settings[0]) for *_, settings in seen]
    assert rates == pytest.approx([0.05] * 8 + [0.01] * 2 + [0.002] * 2)
    seen.clear()
    run(network, RECIPE, 12)
    assert [settings.tolist() for *_, settings in seen] == [pytest.approx([0.05, 0.9, 5e-4, 0, 0])] * 12


def test_every_step_has_its_own_draws_one_row_an_image() -> None:
    network = toy_network()
    seen = watched(network, "color")
    run(network, RECIPE.model_copy(update={"augment": "color"}), 5)
    rows = torch.cat([draws for _, _, draws, _, _ in seen])
    assert rows.shape == (5 * 8, DRAWS)
    assert len(torch.unique(rows, dim=0)) == 5 * 8


def test_one_augmentation_a_step_where_that_is_asked_for() -> None:
    network = toy_network()
    seen = {name: watched(network, name) for name in ("color", "crop", "flip", "color_crop_flip")}
    recipe = RECIPE.model_copy(update={"augment": "color_crop_flip"})
    run(network, recipe, 30)
    assert [len(steps) for steps in seen.values()] == [0, 0, 0, 30]
    run(network, recipe.model_copy(update={"single": True}), 30)
    assert len(seen["color_crop_flip"]) == 30
    assert all(3 < len(seen[name]) < 20 for name in ("color", "crop", "flip"))


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0.0, 0, 0), (0.5, 160, 240), (0.1, 20, 60), (1.0, 400, 400)]
)
def test_cutmix_happens_with_its_probability(probability: float, least: int, most: int) -> None:
    network = toy_network()
    seen = watched(network, "none")
    run(network, RECIPE.model_copy(update={"cutmix": probability}), 400)
    mixed = [box for *_, box, _ in seen if box[3] >= 0]
    assert least <= len(mixed) <= most
    if mixed:
        assert 0.35 < float(torch.stack(mixed)[:, 0].mean()) < 0.65, "the share is uniform whether or not it is used"


def test_cutmix_of_probability_zero_never_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the draw 0 itself, which comes once in millions of steps."""
    network = toy_network()
    seen = watched(network, "none")
    rand: Callable[..., Tensor] = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **more: rand(*size, **more) * 0)
    run(network, RECIPE, 1)
    assert float(seen[0][3][3]) < 0


def test_a_batch_is_never_larger_than_the_set() -> None:
    network = toy_network()
    seen = watched(network, "none")
    samples = RealSamples(network, toy_blocks(), np.array([3, 20, 30]))
    list(train(network, samples, RECIPE, steps=3, generator=generator()))
    assert [len(labels) for _, labels, *_ in seen] == [3, 3, 3]
    assert all(sorted(labels.tolist()) == [0, 1, 2] for _, labels, *_ in seen)


# --- a whole training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_training_follows_from_its_generator_and_touches_no_global_one(norm: str) -> None:
    recipe = TrainRecipe(batch=8, augment="color_crop_cutout_flip_scale_rotate", cutmix=0.5)
    before = (random.getstate(), str(np.random.get_state()), torch.random.get_rng_state())  # noqa: NPY002
    first = run(toy_network(norm), recipe, 6)
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[2])
    torch.manual_seed(123)
    again = run(toy_network(norm), recipe, 6)
    assert [step for step, *_ in first] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(first, again, strict=True))
    torch.random.set_rng_state(before[2])


def test_training_starts_where_it_is_told_and_changes_nothing_that_it_was_given() -> None:
    network = toy_network()
    start = network.initial(generator(5))
    kept = start.clone()
    (_, first, *_), *_ = run(network, RECIPE, 2, flat=start)
    assert torch.equal(start, kept)
    assert 0 < float((first - start).abs().max()) < 0.5
    fresh = run(network, RECIPE, 1)[0][1]
    assert not torch.equal(fresh, first)


def test_training_learns() -> None:
    network = toy_network(width=8)
    samples = RealSamples(network, toy_blocks())
    unseen = RealSamples(network, toy_blocks(seed=1))
    states = run(network, RECIPE, 60, decay=True)
    assert float(states[-1].loss) < 0.5 * float(states[0].loss)
    assert accuracy(network, states[-1].flat, statistics_of(network, states[-1].flat, samples), unseen) > 0.8


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


# --- samples ---------------------------------------------------------------------------------------------------------


def test_real_samples_are_normalised_pixels_by_global_index() -> None:
    network, blocks = toy_network(), toy_blocks()
    images, labels = RealSamples(network, blocks).take(np.array([40, 0, 13]))
    assert labels.tolist() == [3, 0, 1]
    raw = [blocks.blocks[3][9], blocks.blocks[0][0], blocks.blocks[1][1]]
    expected = [(image / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)) for image in raw]
    np.testing.assert_allclose(images.numpy(), np.stack(expected), atol=1e-5)
    assert images.dtype == torch.float32


def test_chosen_samples_are_counted_from_zero() -> None:
    network, blocks = toy_network(), toy_blocks()
    chosen = RealSamples(network, blocks, np.array([30, 2, 15, 41]))
    assert (len(chosen), len(RealSamples(network, blocks))) == (4, sum(COUNTS))
    some, all_of_them = chosen.take(np.array([3, 0])), RealSamples(network, blocks).take(np.array([41, 30]))
    assert torch.equal(some[0], all_of_them[0])
    assert torch.equal(some[1], all_of_them[1])


def test_tensor_samples_are_real_samples_held_in_memory() -> None:
    network, blocks = toy_network(), toy_blocks()
    real = RealSamples(network, blocks)
    held = TensorSamples(*real.take(np.arange(len(real))))
    assert len(held) == len(real)
    runs = [
        [state.flat for state in train(network, samples, RECIPE, steps=5, generator=generator())]
        for samples in (real, held)
    ]
    assert torch.equal(runs[0][-1], runs[1][-1])


def test_floats_are_normalised_without_another_division() -> None:
    network = toy_network()
    bytes_ = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator())
    assert torch.equal(network.normalise(bytes_), network.normalise(bytes_.float() / 255))


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch"), [(7, 4), (8, 4), (3, 4), (9, 1)])
def test_read_all_gives_every_sample_once_through_batches_of_one_shape(count: int, batch: int) -> None:
    network = toy_network()
    flat = network.initial(generator())
    samples = RealSamples(network, toy_blocks(), np.arange(10, 10 + count))
    read, shapes, fed = network.read, [], []

    def watch(flat: Tensor, statistics: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(len(images))
        fed.append(images)
        return read(flat, statistics, images)

    network.read = watch
    logits, features, labels = (
        torch.cat(parts) for parts in zip(*read_all(network, flat, {}, samples, batch), strict=True)
    )
    images, expected_labels = samples.take(np.arange(count))
    assert shapes == [batch] * -(-count // batch)
    assert torch.equal(torch.cat(fed)[:count], images)
    assert all(torch.equal(row, images[-1]) for row in torch.cat(fed)[count:])
    assert torch.equal(labels, expected_labels)
    module = twin_of(network, flat)
    torch.testing.assert_close(logits, module(images.double()).detach().float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features, module(images.double(), hidden=True).detach().float(), atol=1e-5, rtol=1e-4)


def test_accuracy_is_the_share_of_right_answers() -> None:
    network = toy_network()
    flat = network.initial(generator())
    samples = RealSamples(network, toy_blocks())
    module = twin_of(network, flat)
    right = 0
    for place in range(len(samples)):
        images, labels = samples.take(np.array([place]))
        right += int(module(images.double()).argmax() == labels[0])
    assert 0 < right < len(samples)
    assert accuracy(network, flat, {}, samples) == right / len(samples)


# --- batch normalisation ---------------------------------------------------------------------------------------------


def torch_twin(network: Network, flat: Tensor) -> tuple[nn.Sequential, list[nn.BatchNorm2d]]:
    """Two blocks with torch's own BatchNorm2d holding ``flat``."""
    width = network.model.width
    norms = [nn.BatchNorm2d(width, momentum=1.0), nn.BatchNorm2d(width, momentum=1.0)]
    convs = [nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
    linear = nn.Linear(width * 4, len(COUNTS))
    values = network.layout.unflatten(flat)
    kinds: dict[str, Sequence[nn.Module]] = {"convs": convs, "norms": norms}
    for kind, layers in kinds.items():
        for number, layer in enumerate(layers):
            layer.load_state_dict(
                {name: values[f"{kind}.{number}.{name}"] for name in ("weight", "bias")}, strict=False
            )
    linear.load_state_dict({name: values[f"linear.{name}"] for name in ("weight", "bias")})
    blocks = [
        part for conv, norm in zip(convs, norms, strict=True) for part in (conv, norm, nn.ReLU(), nn.AvgPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.Flatten(), linear), norms


def test_batch_statistics_are_those_of_torch_in_training_and_used_as_in_evaluation() -> None:
    network = toy_network("batch", depth=2)
    flat = network.initial(generator())
    flat = flat + 0.1 * torch.randn(flat.shape, generator=generator(1))  # so that scales and shifts matter
    module, norms = torch_twin(network, flat)
    images = RealSamples(network, toy_blocks()).take(np.arange(20))[0]
    with torch.no_grad():
        module.train()(images)
    found = network.statistics(flat, images)
    assert sorted(found) == ["norms.0.mean", "norms.0.var", "norms.1.mean", "norms.1.var"]
    for number, (norm, side) in enumerate(zip(norms, (8, 4), strict=True)):
        seen = len(images) * side**2  # torch keeps the unbiased variance
        torch.testing.assert_close(found[f"norms.{number}.mean"], norm.running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found[f"norms.{number}.var"] * seen / (seen - 1), norm.running_var, atol=1e-5, rtol=1e-4
        )
        norm.running_var = found[f"norms.{number}.var"]
    others = RealSamples(network, toy_blocks()).take(np.arange(20, 42))[0]
    with torch.no_grad():
        expected = module.eval()(others)
    torch.testing.assert_close(network.read(flat, found, others)[0], expected, atol=1e-4, rtol=1e-3)


def test_reading_an_image_does_not_depend_on_its_neighbours() -> None:
    network = toy_network("batch")
    flat = network.initial(generator())
    images = RealSamples(network, toy_blocks()).take(np.arange(20))[0]
    found = network.statistics(flat, images)
    together = network.read(flat, found, images)[0]
    alone = torch.cat([network.read(flat, found, images[place : place + 1])[0] for place in range(len(images))])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network.logits(flat, images[:2]), together[:2], atol=1e-3), "training takes its own batch"


def test_statistics_come_from_evenly_spread_samples_and_leave_no_trace() -> None:
    network = toy_network("batch")
    flat = network.initial(generator())
    few = RealSamples(network, toy_blocks())
    found = statistics_of(network, flat, few)
    expected = network.statistics(flat, few.take(np.arange(len(few)))[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(not layer._forward_pre_hooks for layer in network.module.modules())
    many = TensorSamples(torch.randn(2000, 3, 8, 8, generator=generator()), torch.zeros(2000, dtype=torch.int64))
    asked: list[list[int]] = []
    take = many.take

    def watch(indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        asked.append(indices.tolist())
        return take(indices)

    object.__setattr__(many, "take", watch)
    statistics_of(network, flat, many)
    assert len(asked) == 1
    assert len(set(asked[0])) == STATISTICS_SAMPLES
    assert (asked[0][0], asked[0][-1]) == (0, 1999)
    assert set(np.diff(asked[0]).tolist()) <= {3, 4}


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_other_networks_need_no_statistics(norm: str) -> None:
    network = toy_network(norm)
    flat = network.initial(generator())
    assert statistics_of(network, flat, RealSamples(network, toy_blocks())) == {}
    assert network.statistics(flat, torch.zeros(2, 3, 8, 8)) == {}


@pytest.mark.parametrize(("width", "size", "compiles"), [(32, 8, False), (32, 28, True), (128, 32, True)])
def test_a_network_is_compiled_where_that_pays(width: int, size: int, compiles: bool) -> None:
    def network(compile: bool | None) -> Network:
        return Network(Model(width=width), (1, size, size), 10, (0.5,), (0.5,), compile=compile)

    assert network(None).compile is compiles
    assert network(True).compile
    assert not network(False).compile


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
