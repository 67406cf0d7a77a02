"""An expert is a training with its states kept: held against that training done step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import COUNTS, generator, toy_blocks, toy_network

from dasm_ray.config import Experts
from dasm_ray.core.expert import train_expert
from dasm_ray.core.train import RealSamples, accuracy, statistics_of, train

RECIPE = Experts(epochs=3, batch=8, lr=0.05, augment="color_crop", cutmix=0.5)
STEPS = sum(COUNTS) // 8


def trained(
    norm: str = "instance", seed: int = 0, **more: object
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]]]:
    network = toy_network(norm)
    told: list[tuple[int, float]] = []
    snapshots, accuracies = train_expert(
        network,
        RealSamples(network, toy_blocks()),
        RealSamples(network, toy_blocks((5, 5, 5, 5), seed=1)),
        RECIPE.model_copy(update=more),
        generator(seed),
        lambda epoch, accuracy: told.append((epoch, accuracy)),
    )
    return snapshots, accuracies, told


def test_snapshots_are_the_states_after_each_epoch_from_the_initialisation_on() -> None:
    snapshots, _, _ = trained()
    network, same = toy_network(), generator(0)
    flat = network.initial(same)
    states = [flat]
    samples = RealSamples(network, toy_blocks())
    for step, state, _ in train(network, samples, RECIPE, steps=3 * STEPS, generator=same, flat=flat):
        if step in (STEPS, 2 * STEPS, 3 * STEPS):
            states.append(state)
    assert snapshots.dtype == np.float32
    assert snapshots.shape == (4, sum(network.layout.sizes))
    np.testing.assert_array_equal(snapshots, torch.stack(states).numpy())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_accuracies_are_those_of_the_snapshots_on_validation(norm: str) -> None:
    snapshots, accuracies, told = trained(norm)
    network = toy_network(norm)
    samples, validation = RealSamples(network, toy_blocks()), RealSamples(network, toy_blocks((5, 5, 5, 5), seed=1))
    expected = []
    for snapshot in snapshots:
        flat = torch.tensor(snapshot)
        expected.append(accuracy(network, flat, statistics_of(network, flat, samples), validation))
    assert accuracies.dtype == np.float32
    assert accuracies.tolist() == pytest.approx(expected)
    assert told == [(epoch, expected[epoch]) for epoch in (1, 2, 3)]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (trained(seed=seed)[0] for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_batch_larger_than_the_set_makes_one_step_an_epoch() -> None:
    snapshots, accuracies, told = trained(batch=500, epochs=2)
    assert (len(snapshots), len(accuracies)) == (3, 3)
    assert [epoch for epoch, _ in told] == [1, 2]
    assert not np.array_equal(snapshots[1], snapshots[2])


def test_an_expert_learns() -> None:
    _, accuracies, _ = trained(epochs=12, augment="none", cutmix=0.0)
    assert accuracies[-1] > 0.7 > accuracies[0]
