"""Training against torch's own modules and optimiser, and what feeds it against plain counting."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import RECIPE, generator, toy_blocks, toy_network

from dasm_ray.config.keys import Experts, TrainRecipe
from dasm_ray.core.augment import DRAWS
from dasm_ray.core.networks import training
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Samples, TensorSamples
from dasm_ray.core.networks.training import LOOK_EVERY, Trained, Watch, all_finite, batches, steps_for, train
from dasm_ray.errors import NonFinite

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


# --- numbers that are none -------------------------------------------------------------------------------------------


def watched_training(samples: Samples | None = None, rho: float = 0.0, **changes: float) -> None:
    network, recipe = toy_network(), Experts(**{**RECIPE.model_dump(), "rho": rho, **changes})
    made = train(
        network,
        samples or RealSamples(network, toy_blocks()),
        recipe,
        steps=20,
        generator=generator(),
        flatness=(rho, 0.3),
    )
    for _ in Watch("expert 3, epoch 1", "experts", recipe).over(made, 20):
        pass


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"lr": 1e30}, "lower experts.lr (now 1e+30)"),
        ({"weight_decay": 1e30}, "lower experts.weight_decay (now 1e+30) or experts.lr (now 0.05)"),
        ({"momentum": 0.999, "lr": 1e20}, "lower experts.momentum (now 0.999) or experts.lr (now 1e+20)"),
        ({"rho": 1e38}, "lower experts.rho (now 1e+38) or experts.lr (now 0.05)"),
    ],
    ids=["rate", "weight decay", "momentum", "sharpness"],
)
def test_a_watched_training_that_diverges_names_when_and_the_keys_that_rule_it(
    changes: dict[str, float], keys: str
) -> None:
    with pytest.raises(NonFinite) as caught:
        watched_training(**changes)
    assert str(caught.value).startswith("expert 3, epoch 1, between steps 0 and 20: the training diverged")
    assert str(caught.value).endswith(keys)


@pytest.mark.parametrize("where", ["images", "labels"])
def test_infinity_in_images_and_nan_in_soft_labels_are_found(where: str) -> None:
    images, labels = torch.randn(12, 3, 8, 8, generator=generator()), torch.full((12, 4), 0.25)
    (images if where == "images" else labels)[5] = float("inf" if where == "images" else "nan")
    with pytest.raises(NonFinite, match="between steps 0 and 20"):
        watched_training(TensorSamples(images, labels))


def test_a_training_is_looked_at_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def noted(flat: Tensor, *_: Tensor) -> bool:
        looks.append(int(flat))
        return all_finite(flat)

    monkeypatch.setattr(training, "all_finite", noted)
    nothing = torch.zeros(())
    states = [Trained(step, torch.tensor(float(step)), nothing, nothing) for step in range(1, 121)]
    assert list(Watch("one", "probe", RECIPE).over(states, 120)) == states
    assert looks == [LOOK_EVERY, 2 * LOOK_EVERY, 120]


def test_the_steps_between_which_it_began_are_named_and_the_state_is_not_given_out() -> None:
    flats = [1.0] * 69 + [float("nan")] * 60
    nothing = torch.zeros(())
    states = [Trained(step + 1, torch.tensor(flat), nothing, nothing) for step, flat in enumerate(flats)]
    given = Watch("one", "probe", RECIPE).over(states, 129)
    assert [next(given).steps for _ in range(99)] == list(range(1, 100))
    with pytest.raises(NonFinite, match=r"one, between steps 50 and 100: .*; lower probe\.lr \(now 0\.05\)"):
        next(given)


@pytest.mark.parametrize("part", ["flat", "velocity", "loss"])
def test_any_part_of_a_state_counts(part: str) -> None:
    state = Trained(1, torch.zeros(3), torch.zeros(3), torch.zeros(()))
    spoiled = state._replace(**{part: getattr(state, part) + float("inf")})
    with pytest.raises(NonFinite):
        list(Watch("one", "probe", RECIPE).over([spoiled], 1))
