"""What a network makes of samples, batch by batch, with the statistics that batch normalisation needs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toy import COUNTS, generator, toy_blocks, toy_network, twin_of

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import (
    FEWEST,
    STATISTICS_SAMPLES,
    accuracy,
    fewest_pixels,
    filled,
    mean_loss,
    read_all,
    statistics_of,
)
from dasm_ray.core.networks.reading import right as right_ones
from dasm_ray.core.networks.samples import RealSamples, TensorSamples

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


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_last_batch_that_is_not_filled_up_has_the_same_bytes(norm: str) -> None:
    network = toy_network(norm, width=8)
    flat = network.initial(generator())
    real = RealSamples(network, toy_blocks())
    statistics = statistics_of(network, flat, real)
    for count in (1, 3, FEWEST, FEWEST + 1, len(real)):
        sizes, read = [], network.read

        def watch(*inputs: Any, sizes: list[int] = sizes, read: Any = read) -> tuple[Tensor, Tensor]:
            sizes.append(len(inputs[2]))
            return read(*inputs)

        network.read = watch
        samples = RealSamples(network, real.blocks, np.arange(count))
        (found,) = read_all(network, flat, statistics, samples)
        network.read = read
        assert sizes == [max(count, FEWEST)]
        filled = samples.take(np.minimum(np.arange(500), count - 1))[0]
        for got, expected in zip(found, read(flat, statistics, filled), strict=False):
            assert torch.equal(got, expected[:count])


@pytest.mark.parametrize(
    ("width", "side", "device", "batch", "expected"),
    [
        (128, 32, "cpu", 500, 500),  # as much as there ever was
        (128, 33, "cpu", 500, 30),
        (32, 224, "cpu", 500, 2),
        (128, 224, "cpu", 40, 1),
        (32, 224, "cpu", 40, 40),
        (128, 224, "cuda", 500, 10),
    ],
)
def test_as_many_are_read_at_once_as_fit(width: int, side: int, device: str, batch: int, expected: int) -> None:
    network = toy_network(width=width)
    network.shape, network.device = (3, side, side), device
    assert network.read_at_once(batch) == expected


def test_parts_of_columns_are_put_together_in_order() -> None:
    numbers, truths = torch.rand(7, 3, generator=generator()).double(), torch.rand(7, generator=generator()) < 0.5
    parts = [(numbers[first : first + 3], truths[first : first + 3]) for first in (0, 3, 6)]
    found = filled(iter(parts), 7)
    for column, whole in zip(found, (numbers, truths), strict=True):
        assert column.dtype == whole.dtype
        assert torch.equal(column, whole)
    with pytest.raises(AssertionError, match="6 rows of 7"):
        filled(iter(parts[:2]), 7)


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell what memory is whose"
)
def test_what_a_reading_takes_does_not_grow_with_its_batches() -> None:
    """In a process of its own, whose C library keeps what is freed, as a worker's does."""
    kept = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    done = subprocess.run(
        [sys.executable, "-c", READING], env=kept, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    few, many = map(int, done.stdout.split())
    assert many < few + (128 << 20), f"{few >> 20} MiB after 6 batches, {many >> 20} after 40"


READING = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd().parent))
import numpy as np
import torch
from toy import generator

from dasm_ray.config.keys import Model
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy, mean_loss, right
from dasm_ray.core.networks.samples import RealSamples

torch.set_num_threads(1)
# So large that they are read some at a time, as many as a CPU's caches hold.
network = Network(Model(width=2, depth=2), (3, 448, 448), 4, (0.5,) * 3, (0.2,) * 3, "cpu", False)
at_once, flat = network.read_at_once(500), network.initial(generator())
blocks = Blocks([np.zeros((1, 3, 448, 448), dtype=np.uint8)] * 4)


def taken(batches):
    samples = RealSamples(network, blocks, np.arange(batches * at_once) % len(blocks))
    accuracy(network, flat, {}, samples)
    mean_loss(network, flat, {}, samples)
    right(network, flat, {}, samples)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10


print(taken(6), taken(40))
"""


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


def test_who_is_right_is_told_image_by_image() -> None:
    network = toy_network()
    flat = network.initial(generator())
    samples = RealSamples(network, toy_blocks())
    module = twin_of(network, flat)
    slow = []
    for place in range(len(samples)):
        images, labels = samples.take(np.array([place]))
        slow.append(bool(module(images.double()).argmax() == labels[0]))
    assert right_ones(network, flat, {}, samples).tolist() == slow
    assert sum(slow) / len(slow) == accuracy(network, flat, {}, samples)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_have_no_accuracy(bad: float) -> None:
    """The largest of several NaN is the first: such a network would seem to answer class 0."""
    network = toy_network()
    flat, samples = network.initial(generator()), RealSamples(network, toy_blocks())
    everything, one = torch.full_like(flat, bad), flat.clone()
    one[-1] = bad  # the bias of the last class
    for spoiled in (everything, one):
        assert math.isnan(accuracy(network, spoiled, {}, samples))
        assert not math.isfinite(mean_loss(network, spoiled, {}, samples))


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


@pytest.mark.parametrize(
    ("model", "shape", "pixels"),
    [
        (Model(width=4, depth=2, norm="batch"), (3, 8, 8), 16),
        (Model(width=4, depth=3, norm="batch"), (1, 8, 12), 6),
        (Model(arch="resnet18", norm="batch"), (1, 8, 8), 1),
        (Model(arch="resnet18", norm="batch"), (1, 9, 8), 2),
    ],
)
def test_the_fewest_pixels_that_batch_normalisation_sees(
    model: Model, shape: tuple[int, int, int], pixels: int
) -> None:
    assert fewest_pixels(model, shape, 10) == pixels
