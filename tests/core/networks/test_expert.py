"""An expert is a training with its states kept: held against that training done step by step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from toy import COUNTS, toy_blocks, toy_network

from dasm_ray.config.keys import Experts
from dasm_ray.core.networks.expert import Trajectory, continued, spread, train_expert
from dasm_ray.core.networks.reading import accuracy, mean_loss, statistics_of
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import train
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import NonFinite

RECIPE = Experts(epochs=3, batch=8, lr=0.05, augment="color_crop", cutmix=0.5)
STEPS = sum(COUNTS) // 8


def trained(
    norm: str = "instance", seed: int = 0, so_far: Trajectory | None = None, **more: object
) -> list[Trajectory]:
    """The trajectory after each epoch."""
    network = toy_network(norm)
    real, validation = RealSamples(network, toy_blocks()), RealSamples(network, toy_blocks((5, 5, 5, 5), seed=1))
    recipe = RECIPE.model_copy(update=more)
    return list(train_expert(network, real, validation, recipe, partial(torch_generator, seed), so_far))


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_snapshots_are_the_states_after_each_epoch_from_the_initialisation_on(rho: float) -> None:
    *_, expert = trained(rho=rho, alpha=0.4)
    network = toy_network()
    state = (network.initial(torch_generator(0, 0)), None)
    states = [state[0]]
    samples = RealSamples(network, toy_blocks())
    for epoch in (1, 2, 3):
        *_, (_, flat, velocity, _) = train(
            network, samples, RECIPE, steps=STEPS, generator=torch_generator(0, epoch), flat=state[0],
            velocity=state[1], flatness=(rho, 0.4),
        )  # fmt: skip
        state = (flat, velocity)
        states.append(flat)
    assert expert.snapshots.dtype == np.float32
    assert expert.snapshots.shape == (4, sum(network.layout.sizes))
    np.testing.assert_array_equal(expert.snapshots, torch.stack(states).numpy())
    np.testing.assert_array_equal(expert.velocity, state[1].numpy())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_accuracies_and_losses_are_those_of_the_snapshots(norm: str) -> None:
    *_, expert = trained(norm)
    network = toy_network(norm)
    samples, validation = RealSamples(network, toy_blocks()), RealSamples(network, toy_blocks((5, 5, 5, 5), seed=1))
    right, nats = [], []
    for snapshot in expert.snapshots:
        flat = torch.tensor(snapshot)
        statistics = statistics_of(network, flat, samples)
        right.append(accuracy(network, flat, statistics, validation))
        nats.append(mean_loss(network, flat, statistics, samples))
    assert expert.accuracy.tolist() == pytest.approx(right)
    assert expert.loss.tolist() == pytest.approx(nats)
    assert nats[-1] < nats[0]


def test_the_loss_is_taken_over_the_whole_set_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = RealSamples(toy_network(), toy_blocks())
    assert spread(samples).chosen.tolist() == list(range(sum(COUNTS)))
    monkeypatch.setattr("dasm_ray.core.networks.expert.LOSS_SAMPLES", 4)
    assert spread(samples).chosen.tolist() == [0, 13, 27, 41]


@pytest.mark.parametrize("rho", [0.0, 0.05])
@pytest.mark.parametrize("stop", [1, 2])
def test_going_on_from_any_epoch_gives_the_same_bytes(stop: int, rho: float) -> None:
    whole = trained(rho=rho)
    *_, resumed = trained(so_far=whole[stop - 1], rho=rho)
    for name, array in vars(whole[-1]).items():
        assert array.tobytes() == getattr(resumed, name).tobytes(), name
    assert [expert.epochs for expert in whole] == [1, 2, 3]
    assert trained(so_far=whole[-1]) == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (trained(seed=seed)[-1].snapshots for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_batch_larger_than_the_set_makes_one_step_an_epoch() -> None:
    *_, expert = trained(batch=500, epochs=2)
    assert (len(expert.snapshots), len(expert.accuracy)) == (3, 3)
    assert not np.array_equal(expert.snapshots[1], expert.snapshots[2])


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_an_expert_learns(rho: float) -> None:
    *_, expert = trained(epochs=12, augment="none", cutmix=0.0, rho=rho)
    assert expert.accuracy[-1] > 0.7 > expert.accuracy[0]


def test_an_epoch_that_diverges_is_named_and_not_given_out() -> None:
    first = trained()[0]
    with pytest.raises(NonFinite, match=r"an expert, epoch 1, .*; lower experts\.lr \(now 1e\+30\)"):
        trained(lr=1e30)
    with pytest.raises(NonFinite, match="an expert, epoch 2, "):
        trained(lr=1e30, so_far=first)


def test_parameters_that_are_finite_but_answer_nan_are_refused_too() -> None:
    """After a single step parameters are as large as the rate, and no logit is a number."""
    with pytest.raises(NonFinite, match="an expert, epoch 1, at its end: "):
        trained(lr=1e36, batch=sum(COUNTS), momentum=0.0)


def test_whether_a_trajectory_holds_numbers() -> None:
    whole = trained()[-1]
    assert whole.is_finite
    for name, array in vars(whole).items():
        spoiled = array.copy()
        spoiled.flat[-1] = np.inf
        assert not replace(whole, **{name: spoiled}).is_finite


# --- a probe goes on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_probe_goes_on_by_the_recipe_of_experts_and_is_kept_on_its_way(rho: float) -> None:
    """One epoch is 5 steps: an eighth of it is 1 step, a quarter 1, a half 2."""
    network, recipe = toy_network(), RECIPE.model_copy(update={"rho": rho, "alpha": 0.4})
    samples, probe = RealSamples(network, toy_blocks()), network.initial(torch_generator("probe"))
    found = continued(network, samples, recipe, probe, (0, 0.125, 0.25, 0.5, 1, 2), torch_generator("on"))
    states = [probe, *(state.flat for state in train(
        network, samples, recipe, steps=2 * STEPS, generator=torch_generator("on"), flat=probe, flatness=(rho, 0.4),
    ))]  # fmt: skip
    assert STEPS == 5
    np.testing.assert_array_equal(found, torch.stack([states[step] for step in (0, 1, 1, 2, 5, 10)]).numpy())


def test_a_probe_that_diverges_on_its_way_is_named() -> None:
    network = toy_network()
    samples, recipe = RealSamples(network, toy_blocks()), RECIPE.model_copy(update={"lr": 1e20})
    with pytest.raises(NonFinite, match=r"^probe 1, between steps 0 and 45: the training diverged .*lower experts.lr"):
        continued(network, samples, recipe, network.initial(torch_generator(0)), (0, 9), torch_generator(1), "probe 1")
