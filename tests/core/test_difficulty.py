"""Scores against one sample at a time in plain Python floats, and grand against autograd of the layer it is about.

What must stay true: the twins here share no code with the fast versions.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dasm_ray.core.difficulty import SCORES, forgetting, thirds

CLASSES, WIDTH = 5, 7


def samples(n: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(n, CLASSES, generator=generator, dtype=dtype)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return logits, labels, torch.randn(n, WIDTH, generator=generator, dtype=dtype)


def slow_probabilities(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def slow_score(name: str, logits: list[float], label: int, features: list[float]) -> float:
    p = slow_probabilities(logits)
    error = math.sqrt(sum((p_k - (k == label)) ** 2 for k, p_k in enumerate(p)))
    return {
        "loss": -math.log(p[label]),
        "el2n": error,
        "margin": max(p_k for k, p_k in enumerate(p) if k != label) - p[label],
        "grand": error * math.sqrt(1 + sum(value**2 for value in features)),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCORES)
def test_score_agrees_with_one_sample_at_a_time(name: str, dtype: torch.dtype) -> None:
    logits, labels, features = samples(40, dtype)
    slow = [
        slow_score(name, row, label, h)
        for row, label, h in zip(logits.tolist(), labels.tolist(), features.tolist(), strict=True)
    ]
    fast = SCORES[name](logits, labels, features)
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_grand_is_the_gradient_norm_of_the_last_layer() -> None:
    logits, labels, features = samples(12)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    logits = features @ weight.T + bias
    fast = SCORES["grand"](logits, labels, features)
    for index in range(len(labels)):
        layer = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        out = layer[0] @ features[index] + layer[1]
        loss = torch.logsumexp(out, 0) - out[labels[index]]
        flat = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, layer)])
        torch.testing.assert_close(fast[index], flat.norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SCORES)
def test_score_does_not_depend_on_the_shard(name: str) -> None:
    logits, labels, features = samples(30, torch.float32)
    whole = SCORES[name](logits, labels, features)
    parts = [
        SCORES[name](logits[cut], labels[cut], features[cut]) for cut in (slice(0, 1), slice(1, 18), slice(18, 30))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", SCORES)
def test_confident_float32_samples_keep_their_order(name: str) -> None:
    """In float32 arithmetic all of these have probability 1 and would tie."""
    logits = torch.zeros(4, CLASSES)
    logits[:, 2] = torch.tensor([22.0, 24.0, 26.0, 28.0])
    score = SCORES[name](logits, torch.full((4,), 2), torch.ones(4, WIDTH))
    assert score.dtype == torch.float64
    assert (score[:-1] > score[1:]).all()


@pytest.mark.parametrize("name", SCORES)
def test_a_wrong_answer_is_harder_than_a_right_one(name: str) -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [5.0, 0.0, 1.0]])
    right, wrong = SCORES[name](logits, torch.tensor([1, 1]), torch.ones(2, WIDTH))
    assert wrong > right


@pytest.mark.parametrize(
    ("history", "times"),
    [
        ("1111", 0),
        ("0001", 0),
        ("0110", 1),
        ("1010", 2),
        ("0101", 1),
        ("1000", 1),
        ("0000", 4),  # never learned: more than any other history of 4 epochs
    ],
)
def test_forgetting_counts_learned_then_lost(history: str, times: int) -> None:
    correct = torch.tensor([[answer == "1"] for answer in history])
    assert forgetting(correct).tolist() == [times]


def test_forgetting_agrees_with_a_double_loop() -> None:
    correct = torch.rand(9, 25, generator=torch.Generator().manual_seed(5)) < 0.4
    slow = []
    for column in correct.T.tolist():
        events = sum(before and not after for before, after in itertools.pairwise(column))
        slow.append(events if any(column) else len(column))
    fast = forgetting(correct)
    assert fast.dtype == torch.int64
    assert fast.tolist() == slow


def test_thirds_are_cut_within_each_class() -> None:
    """Ranks by a double loop: how many of one's class are easier, or as easy and earlier."""
    generator = np.random.Generator(np.random.PCG64(1))
    labels = generator.integers(0, 3, 40)
    score = generator.integers(0, 6, 40).astype(np.float64)  # with ties
    slow = []
    for mine in range(40):
        of_class = [other for other in range(40) if labels[other] == labels[mine]]
        easier = sum((score[other], other) < (score[mine], mine) for other in of_class)
        slow.append(easier * 3 // len(of_class))
    assert thirds(score, labels).tolist() == slow
    assert set(slow) == {0, 1, 2}
