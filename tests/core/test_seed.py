"""Seeds as names of work: pinned numbers, because another machine must draw the same."""

from __future__ import annotations

import random

import numpy as np
import torch

from dasm_ray.core.seed import numpy_generator, seed_of, torch_generator


def test_the_numbers_are_the_same_everywhere_and_for_ever() -> None:
    """A change here changes every result: it must be meant."""
    assert seed_of(0, "distil", 1, 2, 3) == 3039449205026210203
    assert torch_generator(0, "distil", 1, 2, 3).initial_seed() == 3039449205026210203
    drawn = torch.randint(0, 1000, (4,), generator=torch_generator(0, "distil", 1, 2, 3))
    assert drawn.tolist() == [84, 955, 29, 342]
    assert numpy_generator(0, "distil", 1, 2, 3).integers(0, 1000, 4).tolist() == [172, 873, 49, 42]


def test_every_other_name_gives_other_numbers() -> None:
    names = [
        (run, stage, *rest)
        for run in (0, 1, 11)
        for stage in ("distil", "probe")
        for rest in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (11,), (1, 11), (11, 1))
    ]
    seeds = {seed_of(*name) for name in names}
    assert len(seeds) == len(names)
    first = {float(torch.rand((), generator=torch_generator(*name), dtype=torch.float64)) for name in names}
    assert len(first) == len(names)


def test_seeds_fit_a_generator() -> None:
    seeds = [seed_of(number) for number in range(2000)]
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_global_generators_are_left_alone() -> None:
    before = (random.getstate(), str(np.random.get_state()), torch.random.get_rng_state())  # noqa: NPY002
    torch.rand(3, generator=torch_generator(1, "x"))
    numpy_generator(1, "x").random(3)
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[2])
