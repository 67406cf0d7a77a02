"""Evaluation with networks that always give one answer, so that every accuracy is known beforehand.

What must stay true: nothing that is learned from the test split can reach a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import COUNTS, MEAN, RECIPE, SHAPE, STD, WatchedBlocks, generator, toy_arrays, toy_blocks, toy_network

from dasm_ray.core.decode import decode_all
from dasm_ray.core.networks import evaluate
from dasm_ray.core.networks.evaluate import Outcome, evaluate_on, synthetic_samples
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import Trained, steps_for
from dasm_ray.errors import NonFinite

VALIDATION, TEST = (1, 5, 3, 1), (1, 1, 2, 6)
"""Images per class: answering always with class 1 is best on validation, always with class 3 on the test split."""


def always(network: Network, label: int) -> Tensor:
    """Parameters with which the network answers ``label`` to everything."""
    values = network.layout.unflatten(torch.zeros(sum(network.layout.sizes)))
    values["linear.bias"][label] = 1.0
    return network.layout.flatten(values)


def judge(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], checkpoints: int, spoiled: Sequence[int] = ()
) -> tuple[Outcome, list[list[int]], list[list[int]], list[str]]:
    """Evaluates a training whose step ``t`` answers ``answers[t]``: outcome, reads of both splits, order.

    The states of ``spoiled`` steps (from 1) are NaN.
    """
    network = toy_network()
    order: list[str] = []

    def scripted(*_: Any, steps: int, **__: Any) -> Iterator[Trained]:
        for step in range(steps):
            order.append("step")
            flat = always(network, answers[step])
            flat = torch.full_like(flat, math.nan) if step + 1 in spoiled else flat
            yield Trained(step + 1, flat, torch.zeros(()), torch.zeros(()))

    class Noted(WatchedBlocks):
        name = "validation"

        def take(self, indices: np.ndarray) -> np.ndarray:
            order.append(self.name)
            return super().take(indices)

    class NotedTest(Noted):
        name = "test"

    monkeypatch.setattr(evaluate, "train", scripted)
    validation, test = Noted(toy_arrays(VALIDATION)), NotedTest(toy_arrays(TEST))
    outcome = evaluate_on(
        network,
        RealSamples(network, toy_blocks()),
        RECIPE,
        steps=len(answers),
        checkpoints=checkpoints,
        validation=RealSamples(network, validation),
        test=RealSamples(network, test),
        generator=generator(),
    )
    return outcome, validation.taken, test.taken, order


def test_validation_chooses_and_the_test_split_only_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, _, _ = judge(monkeypatch, [0, 3, 1, 3, 2], checkpoints=5)
    assert outcome == Outcome(validation=0.5, test=0.1, step=3)


def test_the_test_split_is_read_once_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, test, order = judge(monkeypatch, [0, 3, 1, 3, 2], checkpoints=5)
    assert len(test) == 1
    assert set(test[0]) == set(range(sum(TEST)))
    assert order.count("test") == 1
    assert order[-1] == "test"


def test_of_equal_checkpoints_the_latest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, _, _ = judge(monkeypatch, [1, 2, 1, 0], checkpoints=4)
    assert (outcome.step, outcome.validation) == (3, 0.5)


@pytest.mark.parametrize(
    ("steps", "checkpoints", "looks"),
    [(10, 1, [10]), (10, 2, [5, 10]), (9, 3, [3, 6, 9]), (10, 3, [3, 7, 10]), (2, 5, [1, 2]), (1, 5, [1])],
)
def test_validation_is_read_at_even_places_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, steps: int, checkpoints: int, looks: list[int]
) -> None:
    _, validation, _, order = judge(monkeypatch, [1] * steps, checkpoints)
    assert len(validation) == len(looks)
    steps_before = [order[:place].count("step") for place, event in enumerate(order) if event == "validation"]
    assert steps_before == looks


def test_a_better_state_between_two_looks_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, _, _ = judge(monkeypatch, [1, 2, 1, 2], checkpoints=2)
    assert outcome == Outcome(validation=0.3, test=0.2, step=4)


@pytest.mark.parametrize(
    ("spoiled", "when"), [([2], "by step 2"), ([3, 4], "by step 4"), ([6], "between steps 0 and 6")]
)
def test_a_training_that_diverged_has_no_figure_whatever_was_seen_before(
    monkeypatch: pytest.MonkeyPatch, spoiled: list[int], when: str
) -> None:
    with pytest.raises(NonFinite, match=f"a training, {when}: the training diverged .* lower evaluate.lr"):
        judge(monkeypatch, [1] * 6, 3, spoiled)


# --- with a true training --------------------------------------------------------------------------------------------


def evaluated(seed: int, norm: str = "instance", reads_test: bool = True, reads_each: bool = False) -> Outcome:
    network = toy_network(norm, width=8)
    samples = RealSamples(network, toy_blocks())
    return evaluate_on(
        network,
        samples,
        RECIPE,
        steps=steps_for(len(samples), RECIPE, 8),
        checkpoints=3,
        validation=RealSamples(network, toy_blocks((4, 4, 4, 4), seed=1)),
        test=RealSamples(network, toy_blocks((20, 20, 20, 20), seed=2)) if reads_test else None,
        generator=generator(seed),
        reads_each=reads_each,
    )


@pytest.mark.parametrize("reads_test", [True, False])
def test_each_validation_image_is_told_of_the_same_training(reads_test: bool) -> None:
    outcome, plain = evaluated(0, "batch", reads_test, reads_each=True), evaluated(0, "batch", reads_test)
    assert outcome.right is not None
    assert len(outcome.right) == 16
    assert float(outcome.right.mean()) == outcome.validation
    assert (outcome.validation, outcome.test, outcome.step) == (plain.validation, plain.test, plain.step)
    assert plain.right is None


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_true_training_learns_and_follows_from_its_generator(norm: str) -> None:
    outcome = evaluated(0, norm)
    assert outcome == evaluated(0, norm)
    assert outcome.test > 0.6
    assert 1 <= outcome.step <= 42


def test_without_a_test_split_it_is_the_same_training() -> None:
    alone, whole = evaluated(0, reads_test=False), evaluated(0)
    assert alone.test is None
    assert (alone.validation, alone.step) == (whole.validation, whole.step)


# --- synthetic sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2])
def test_synthetic_samples_are_decoded_normalised_and_labelled_slot_by_slot(factor: int) -> None:
    network = toy_network()
    pixels = np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32)
    labels = np.array([3, 0, 0, 2, 1])
    for array in (pixels, labels):
        array.setflags(write=False)
    samples = synthetic_samples(network, pixels, labels, factor)
    assert len(samples) == 5 * factor**2
    images, found = samples.take(np.arange(len(samples)))
    assert found.tolist() == [label for label in labels for _ in range(factor**2)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = (decode_all(pixels, factor) - mean) / std
    torch.testing.assert_close(images, expected)
    assert len(COUNTS) == network.classes


def test_a_rate_by_which_nothing_is_learned_but_nan_is_refused() -> None:
    network = toy_network()
    samples = RealSamples(network, toy_blocks())
    with pytest.raises(NonFinite, match=r"row x, seed 1, .*; lower evaluate\.lr \(now 1e\+30\)"):
        evaluate_on(
            network,
            samples,
            RECIPE.model_copy(update={"lr": 1e30}),
            steps=10,
            checkpoints=2,
            validation=samples,
            test=samples,
            generator=generator(),
            name="row x, seed 1",
        )
