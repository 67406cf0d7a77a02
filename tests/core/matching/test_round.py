"""One round of one group, watched from outside: which real images it takes, which states it sees, what it moves.

What must stay true: the residual step is held against plain autograd on the union of all segments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from toy import COUNTS, FIRST, SHAPE, WatchedBlocks, config_of, generator, toy_arrays, toy_blocks, toy_network

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.augment import augment
from dasm_ray.core.matching.round import Assignment, RoundInputs, distil_round, matching_of, pixel_rate
from dasm_ray.core.matching.step import StepInputs, Stepped
from dasm_ray.core.networks.network import Network
from dasm_ray.errors import NonFinite

CLASSES = (1, 3)
"""The group of most tests: not the first classes, so that a place in the group is no label."""

SECOND = [np.array([0, 2, 6])] * 4
THIRD = [np.array([3])] * 4
STARTS = np.cumsum(COUNTS) - COUNTS


def trajectories(network: Network) -> list[NDArray[np.float32]]:
    """Two trajectories of five different snapshots."""
    return [
        torch.stack([network.initial(generator(10 * expert + epoch)) for epoch in range(5)]).numpy()
        for expert in (1, 2)
    ]


def pixels_of(count: int, images: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, images, *SHAPE)).astype(np.float32)


def round_inputs(network: Network, segment: int = 0, ipc: int = 2) -> RoundInputs:
    return RoundInputs(
        blocks=WatchedBlocks(toy_arrays()),
        windows=[FIRST, SECOND, THIRD][: segment + 1],
        earlier=pixels_of(4, segment * ipc, 50),
        current=pixels_of(4, ipc, 51),
        experts=trajectories(network),
        probes=[network.initial(generator(seed)).numpy() for seed in (77, 78)],
    )


@dataclass
class Watched:
    """What a round did: its result, the arguments of every matching step, and the real images taken."""

    pixels: NDArray[np.float32]
    velocity: NDArray[np.float32]
    distances: list[float]
    steps: list[StepInputs]
    taken: list[list[int]]

    @property
    def flats(self) -> list[bytes]:
        """The different network states in the order in which they came."""
        return list(dict.fromkeys(flat.numpy().tobytes() for flat, *_ in self.steps))


def run(
    config: RunConfig,
    segment: int = 0,
    *,
    group: int = 0,
    round: int = 0,
    inputs: RoundInputs | None = None,
    pixels: NDArray[np.float32] | None = None,
    network: Network | None = None,
) -> Watched:
    network = network or toy_network()
    inputs = inputs or round_inputs(network, segment)
    pixels = pixels_of(2, 2, 1) if pixels is None else pixels
    velocity = np.zeros_like(pixels)
    for array in (pixels, velocity, inputs.earlier, inputs.current, *inputs.experts, *inputs.probes):
        array.setflags(write=False)  # as they come out of shared memory
    matching = matching_of(network, config)
    steps: list[StepInputs] = []
    true_step = matching.step

    def step(inputs: StepInputs) -> Stepped:
        steps.append(StepInputs(*(value.clone() for value in inputs)))
        return true_step(inputs)

    matching.step = step
    where = Assignment(segment, group, round, CLASSES)
    made, speed, distances = distil_round(matching, config, where, inputs, pixels, velocity)
    taken = inputs.blocks.taken if isinstance(inputs.blocks, WatchedBlocks) else []
    return Watched(made, speed, distances, steps, taken)


# --- a round is a function of its inputs and its name ----------------------------------------------------------------


METHODS: list[dict[str, Any]] = [
    {"name": "idc"},
    {"name": "idc", "network": "train", "steps": 2},
    {"name": "dc", "steps": 2, "inner_steps": 3},
    {"name": "dsa", "steps": 2, "inner_steps": 3},
    {"name": "idc", "context": "residual", "perturb": 0.3, "probe_share": 0.5},
    {"name": "dm", "probe_share": 0.5, "context": "residual"},
    {"name": "cafe", "steps": 2, "inner_steps": 3, "context": "residual"},
]


@pytest.mark.parametrize("method", METHODS)
def test_a_round_gives_the_same_bytes_again_and_touches_no_global_generator(method: dict[str, Any]) -> None:
    config = config_of(**method)
    state = torch.random.get_rng_state()
    first = run(config, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again = run(config, 1)
    torch.random.set_rng_state(state)
    assert again.pixels.tobytes() == first.pixels.tobytes()
    assert again.velocity.tobytes() == first.velocity.tobytes()
    assert again.distances == first.distances
    assert again.taken == first.taken


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_pixels_and_keeps_them_in_range(method: dict[str, Any]) -> None:
    before = pixels_of(2, 2, 1)
    made = run(config_of(lr_img=500.0, **method), 1, pixels=before)
    assert made.pixels.shape == before.shape
    assert made.pixels.dtype == made.velocity.dtype == np.float32
    assert (made.pixels != before).any(axis=(2, 3, 4)).all(), "every slot of every class"
    assert made.pixels.min() >= 0
    assert made.pixels.max() <= 1
    assert len(made.distances) == 2
    assert min(made.distances) > 0


def test_other_groups_rounds_segments_and_seeds_draw_otherwise() -> None:
    config, inputs = config_of(networks=1), round_inputs(toy_network(), 1)
    one = replace(inputs, windows=[FIRST])  # so that only the name of the work differs
    names: list[dict[str, Any]] = [{}, {"group": 1}, {"round": 1}, {"segment": 1}]
    runs = [run(config, inputs=replace(one, blocks=WatchedBlocks(toy_arrays())), **name) for name in names]
    runs.append(run(config_of(networks=1, seed=1), inputs=replace(one, blocks=WatchedBlocks(toy_arrays()))))
    draws = [tuple(made.steps[0].draws.flatten().tolist()) for made in runs]
    assert len(set(draws)) == len(runs)
    assert len({str(made.taken) for made in runs}) == len(runs)


def test_the_states_of_one_round_draw_otherwise_too() -> None:
    made = run(config_of(networks=4))
    assert len(made.steps) == 4 * len(CLASSES)
    assert len({tuple(step.draws.flatten().tolist()) for step in made.steps}) == len(made.steps)


def test_classes_of_the_group_are_matched_in_turn_each_with_its_own_label_and_slots() -> None:
    pixels = pixels_of(2, 2, 1)
    made = run(config_of(networks=1), pixels=pixels)
    assert [int(step.label) for step in made.steps] == list(CLASSES)
    for place, step in enumerate(made.steps):
        np.testing.assert_array_equal(step.pixels.numpy(), pixels[place])


def test_velocity_is_carried_from_round_to_round() -> None:
    """Two states in one round are as one state in each of two, but for their draws: so watch what the step is given."""
    made = run(config_of(networks=2))
    (_, _, first, *_), _, (_, _, second, *_), _ = made.steps
    assert torch.all(first == 0)
    assert torch.any(second != 0)
    assert made.velocity.any(axis=(1, 2, 3, 4)).all()


def test_matching_brings_the_distance_down() -> None:
    config = config_of(networks=25, snapshots=[[0, 1]], augment="none", batch_real=9, lr_img=20.0)
    inputs = round_inputs(toy_network())
    inputs = replace(inputs, experts=inputs.experts[:1], windows=[[np.arange(9)] * 4])
    distances = run(config, inputs=inputs).distances
    assert distances[-1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lr_img": 1e38, "steps": 4}, "lr_img (now 1e+38)"),
        ({"lr_img": 1e38, "steps": 4, "name": "dm"}, "lr_img (now 1e+38)"),
        ({"perturb": 1e38}, "perturb (now 1e+38)"),
        ({"network": "train", "steps": 3, "inner_lr": 1e38}, "inner_lr (now 1e+38)"),
        ({"name": "dc", "steps": 3, "inner_steps": 3, "inner_lr": 1e38}, "inner_lr (now 1e+38)"),
        ({"name": "dsa", "lr_img": 1e38, "steps": 4, "inner_steps": 3}, "lr_img (now 1e+38)"),
    ],
    ids=["pixels", "pixels of dm", "perturbed experts", "network on real", "network on the set", "pixels, then it"],
)
def test_numbers_that_are_none_end_the_round_where_they_began(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(NonFinite) as caught:
        run(config_of(**{"networks": 5, **changes}), round=2)
    assert str(caught.value).startswith("segment 1, group 0, round 2, network state ")
    assert f"; the last good state is kept; lower matcher.{key} in a new run" in str(caught.value)


def test_the_network_state_where_it_began_is_named() -> None:
    inputs = round_inputs(toy_network())
    inputs.experts[0][:] = np.nan
    inputs.experts[1][:] = np.nan
    with pytest.raises(NonFinite, match="network state 0: "):
        run(config_of(networks=5), inputs=inputs)


# --- network states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("segment", "first", "last"), [(0, 0, 2), (1, 3, 5), (2, 3, 5)])
def test_expert_states_are_snapshots_of_the_segments_range(segment: int, first: int, last: int) -> None:
    network = toy_network()
    inputs = round_inputs(network, segment)
    allowed = {snapshots[epoch].tobytes() for snapshots in inputs.experts for epoch in range(first, last)}
    made = run(config_of(segments=3, networks=30), segment, inputs=inputs)
    assert set(made.flats) == allowed, "each is reached, no other is"


@pytest.mark.parametrize("method", METHODS[:4])
def test_a_probe_share_of_one_starts_from_probes_alone(method: dict[str, Any]) -> None:
    inputs = round_inputs(toy_network())
    made = run(config_of(**(method | {"probe_share": 1.0, "networks": 12, "steps": 1})), inputs=inputs)
    assert set(made.flats) == {probe.tobytes() for probe in inputs.probes}


def test_a_probe_share_in_between_mixes_and_zero_never_asks() -> None:
    inputs = round_inputs(toy_network())
    probes = {probe.tobytes() for probe in inputs.probes}
    made = run(config_of(networks=60, probe_share=0.3, batch_real=1), inputs=inputs)
    share = sum(step.flat.numpy().tobytes() in probes for step in made.steps) / len(made.steps)
    assert 0.1 < share < 0.5
    assert not probes & set(run(config_of(networks=20), inputs=replace(inputs, probes=[])).flats)


def bank_of(network: Network) -> list[NDArray[np.float32]]:
    """Two members of the bank of three different snapshots."""
    return [
        torch.stack([network.initial(generator(500 + 10 * member + when)) for when in range(3)]).numpy()
        for member in range(2)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_the_states_is_of_the_bank(method: dict[str, Any]) -> None:
    network = toy_network()
    inputs = replace(round_inputs(network, 1), bank=bank_of(network))
    expected = {snapshot.tobytes() for member in inputs.bank for snapshot in member}
    few = method | {"batch_real": 2, "steps": 1}
    config = config_of(**(few | {"bank_share": 1.0, "probe_share": 0.0, "perturb": 0.0, "networks": 30}))
    assert set(run(config, 1, inputs=inputs).flats) == expected, "each is reached, no other is"
    half = run(config_of(**(few | {"bank_share": 0.5, "probe_share": 0.2, "networks": 60})), 1, inputs=inputs)
    probes = {probe.tobytes() for probe in inputs.probes}
    states = [step.flat.numpy().tobytes() for step in half.steps]
    assert 0.05 < sum(state in probes for state in states) / len(states) < 0.4
    if not config_of(**method).matcher.perturb:
        assert 0.3 < sum(state in expected for state in states) / len(states) < 0.7


def test_without_a_bank_its_share_of_the_states_is_the_base_matchers() -> None:
    inputs = round_inputs(toy_network())
    plain = run(config_of(networks=10), inputs=inputs)
    shared = run(config_of(networks=10, bank_share=0.7), inputs=inputs)
    assert shared.pixels.tobytes() == plain.pixels.tobytes()


def test_states_of_the_bank_are_perturbed_as_the_experts_are() -> None:
    network = toy_network()
    inputs = replace(round_inputs(network, 1), bank=bank_of(network))
    for state in run(config_of(networks=4, perturb=0.2, bank_share=1.0), 1, inputs=inputs).flats:
        near = min(
            float(np.linalg.norm(np.frombuffer(state, np.float32) - snapshot) / np.linalg.norm(snapshot))
            for member in inputs.bank
            for snapshot in member
        )
        assert 0 < near <= 0.2


def test_a_perturbed_state_lies_its_length_away_from_a_snapshot() -> None:
    network = toy_network()
    inputs = round_inputs(network)
    made = run(config_of(networks=4, perturb=0.2), inputs=inputs, network=network)
    assert len(made.flats) == 4
    for state in made.flats:
        near = min(
            float(np.linalg.norm(np.frombuffer(state, np.float32) - snapshot) / np.linalg.norm(snapshot))
            for snapshots in inputs.experts
            for snapshot in snapshots[:2]
        )
        assert 0 < near <= 0.2


def test_several_steps_at_one_expert_state_stay_there() -> None:
    made = run(config_of(networks=1, steps=3))
    assert len(made.flats) == 1
    assert len(made.steps) == 3 * len(CLASSES)


def is_fresh(network: Network, flat: bytes) -> bool:
    """Whether a state has the marks of an initialisation: a normalisation of ones and zeros, bounded filters."""
    parts = network.layout.unflatten(torch.tensor(np.frombuffer(flat, np.float32)))
    ones, zeros = parts["norms.0.weight"], parts["norms.0.bias"]
    bounded = float(parts["convs.0.weight"].abs().max()) <= 27**-0.5
    return bool(torch.all(ones == 1) and torch.all(zeros == 0)) and bounded


def watch_training(network: Network) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Writes down (strategy, images, box, settings) of every training step."""
    seen: list[tuple[str, Tensor, Tensor, Tensor]] = []
    make = network.train_step

    def train_step(strategy: str, is_flat: bool) -> Any:
        true_step = make(strategy, is_flat)

        def step(flat: Tensor, velocity: Tensor, images: Tensor, *rest: Tensor) -> Any:
            seen.append((strategy, images, rest[2], rest[3]))
            return true_step(flat, velocity, images, *rest)

        return step

    network.train_step = train_step  # type: ignore[assignment, method-assign]
    return seen


def test_idc_trains_a_fresh_network_on_real_data_between_its_steps() -> None:
    network = toy_network()
    trained, inputs = watch_training(network), round_inputs(network)
    config = config_of(network="train", networks=2, steps=3, inner_samples=16, inner_lr=0.25)
    made = run(config, inputs=inputs, network=network)
    assert len(made.flats) == 6
    assert [is_fresh(network, flat) for flat in made.flats] == [True, False, False] * 2
    assert [strategy for strategy, *_ in trained] == ["color_crop"] * 4
    assert all(settings.tolist() == pytest.approx([0.25, 0.9, 5e-4, 0, 0]) for *_, settings in trained)
    passes = [indices for indices in made.taken if len(indices) == 16]
    assert len(passes) == 4
    assert all(len(set(indices)) == 16 for indices in passes)
    assert len({frozenset(indices) for indices in passes}) == 4
    assert {place for indices in passes for place in indices} > set(range(5)), "all real data, not the window alone"


def test_idc_takes_a_small_set_whole() -> None:
    network = toy_network()
    trained = watch_training(network)
    made = run(config_of(network="train", networks=1, steps=2, inner_samples=500), network=network)
    assert [len(images) for _, images, *_ in trained] == [sum(COUNTS)]
    assert sorted(made.taken[2]) == list(range(sum(COUNTS)))


@pytest.mark.parametrize(("name", "strategy"), [("dc", "none"), ("dsa", "color_crop_flip")])
@pytest.mark.parametrize("factor", [1, 2])
def test_dc_and_dsa_train_a_fresh_network_on_the_synthetic_set(name: str, strategy: str, factor: int) -> None:
    network = toy_network()
    trained = watch_training(network)
    config = config_of(name=name, networks=2, steps=2, inner_steps=3, factor=factor)
    made = run(config, 1, network=network)
    assert [is_fresh(network, flat) for flat in made.flats] == [True, False] * 2
    assert [strategy_ for strategy_, *_ in trained] == [strategy] * 6
    assert all(float(box[3]) < 0 for _, _, box, _ in trained), "no CutMix"
    assert {len(images) for _, images, *_ in trained} == {len(COUNTS) * 4 * factor**2}
    assert {place for indices in made.taken for place in indices} <= windowed(SECOND)


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_the_synthetic_set_is_earlier_segments_this_one_beside_and_the_group_as_it_stands(name: str) -> None:
    network = toy_network()
    inputs, config = round_inputs(network, 1), config_of(name=name, networks=1, steps=2, inner_steps=3)
    plain = run(config, 1, inputs=inputs)
    own = inputs.current.copy()
    own[list(CLASSES)] = np.nan  # stale: the group's own pixels have moved since
    assert run(config, 1, inputs=replace(inputs, current=own)).pixels.tobytes() == plain.pixels.tobytes()
    for name_ in ("current", "earlier"):
        other = getattr(inputs, name_).copy()
        other[0] = 0.5
        moved = run(config, 1, inputs=replace(inputs, **{name_: other}))
        assert moved.flats[0] == plain.flats[0]
        assert moved.flats[1] != plain.flats[1], f"the network is trained on {name_} too"


def test_expert_states_alone_do_not_depend_on_other_segments() -> None:
    network = toy_network()
    inputs, config = round_inputs(network, 1), config_of()
    other = replace(inputs, earlier=inputs.earlier * 0, current=inputs.current * 0, windows=[THIRD, SECOND])
    assert run(config, 1, inputs=inputs).pixels.tobytes() == run(config, 1, inputs=other).pixels.tobytes()


# --- real batches ----------------------------------------------------------------------------------------------------


def windowed(*windows: list[NDArray[np.int64]]) -> set[int]:
    """Global indices of the group's classes in these windows."""
    return {int(STARTS[label] + index) for window in windows for label in CLASSES for index in window[label]}


@pytest.mark.parametrize(
    ("segment", "context", "windows"),
    [(0, "alone", [FIRST]), (1, "alone", [SECOND]), (0, "residual", [FIRST]), (1, "residual", [FIRST, SECOND])],
)
def test_real_images_come_from_the_windows_alone(segment: int, context: str, windows: list[Any]) -> None:
    made = run(config_of(networks=12, context=context), segment)
    assert {place for indices in made.taken for place in indices} == windowed(*windows), "every one, and no other"
    assert all(len(indices) == 4 for indices in made.taken)


def test_each_batch_is_of_one_class() -> None:
    made = run(config_of(networks=3))
    labels = [set(np.searchsorted(STARTS, indices, side="right") - 1) for indices in made.taken]
    assert labels == [{1}, {3}] * 3


def test_the_step_is_given_what_was_taken() -> None:
    made = run(config_of(networks=1))
    for indices, step in zip(made.taken, made.steps, strict=True):
        np.testing.assert_array_equal(step.images.numpy(), toy_blocks().take(np.array(indices)))


@pytest.mark.parametrize(("batch", "parts"), [(6, (2, 2, 2)), (7, (2, 2, 3)), (2, (0, 1, 1))])
def test_a_residual_batch_is_an_equal_mixture_of_all_windows_so_far(batch: int, parts: tuple[int, ...]) -> None:
    config = config_of(segments=3, networks=3, context="residual", batch_real=batch)
    made = run(config, 2)
    for indices, label in zip(made.taken, CLASSES * 3, strict=True):
        inside = [index - STARTS[label] for index in indices]
        assert tuple(sum(index in window[label] for index in inside) for window in (FIRST, SECOND, THIRD)) == parts


@pytest.mark.parametrize(("share", "hard"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.74, 2), (1.0, 3)])
def test_a_share_of_a_batch_is_of_the_frontier_as_far_as_it_has_images(share: float, hard: int) -> None:
    frontier = [np.array([0, 2, 6])] * 2 + [np.empty(0, np.int64), np.array([0, 2, 6])]  # apart from the window
    made = run(
        config_of(networks=9, frontier_share=share), inputs=replace(round_inputs(toy_network()), frontier=frontier)
    )
    for indices, label in zip(made.taken, CLASSES * 9, strict=True):
        inside = [index - STARTS[label] for index in indices]
        assert len(inside) == 4
        assert sum(index in frontier[label] for index in inside) == hard
        assert len(set(inside)) == 4
    none = replace(round_inputs(toy_network()), frontier=[np.empty(0, np.int64)] * 4)
    plain = run(config_of(networks=2)).pixels
    assert run(config_of(networks=2, frontier_share=share), inputs=none).pixels.tobytes() == plain.tobytes()


def test_stratified_batches_hold_one_image_of_each_stratum_of_the_window() -> None:
    strata = [np.arange(count) % 4 for count in COUNTS]
    inputs = replace(round_inputs(toy_network()), strata=strata)
    made = run(config_of(networks=12, strata=True, batch_real=4), inputs=inputs)
    for indices, label in zip(made.taken, CLASSES * 12, strict=True):
        inside = [index - STARTS[label] for index in indices]
        assert set(inside) <= set(FIRST[label])
        assert sorted(strata[label][inside]) in ([0, 0, 1, 3], [0, 1, 1, 3], [0, 1, 3, 3]), "2 is not in the window"
    assert len({tuple(indices) for indices in made.taken}) > 6


# --- in pieces -------------------------------------------------------------------------------------------------------

IN_PIECES = [
    *METHODS,
    {"name": "idc", "context": "union", "factor": 2},
    {"name": "dsa", "context": "union", "steps": 2, "inner_steps": 3},
    {"name": "dm", "context": "union", "deviation": True},
]


@pytest.mark.parametrize("method", IN_PIECES)
@pytest.mark.parametrize("micro", [1, 3])
def test_a_round_in_pieces_is_that_of_whole_batches(method: dict[str, Any], micro: int) -> None:
    """The same real images under the same draws, held against the same earlier part, for nearly the same pixels."""
    whole, pieces = (run(config_of(micro=most, lr_img=0.1, **method), 1) for most in (None, micro))
    assert pieces.taken == whole.taken
    for ours, theirs in zip(pieces.steps, whole.steps, strict=True):
        assert torch.equal(ours.draws, theirs.draws)
        torch.testing.assert_close(ours.earlier, theirs.earlier, rtol=1e-3, atol=1e-5)
    assert np.abs(pieces.pixels - whole.pixels).max() < 1e-3
    assert pieces.distances == pytest.approx(whole.distances, rel=1e-3)
    assert (pieces.pixels != pixels_of(2, 2, 1)).any()


# --- synthetic batches, residual -------------------------------------------------------------------------------------


def test_a_step_moves_no_more_slots_than_the_batch_holds() -> None:
    pixels = pixels_of(2, 5, 1)
    config = config_of(ipc=10, networks=1, batch_syn=8, factor=2)  # two slots of four images
    made = run(config, pixels=pixels, inputs=round_inputs(toy_network(), ipc=5))
    assert (made.pixels != pixels).any(axis=(2, 3, 4)).sum(axis=1).tolist() == [2, 2]
    many = run(
        config_of(ipc=10, networks=20, batch_syn=8, factor=2), pixels=pixels, inputs=round_inputs(toy_network(), ipc=5)
    )
    assert (many.pixels != pixels).any(axis=(2, 3, 4)).all(), "in time every slot has its turn"


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("batch_syn", [8, 12, 200], ids=["chunks", "a chunk left over", "one chunk"])
def test_a_union_step_matches_all_segments_by_their_size_to_its_own_target(factor: int, batch_syn: int) -> None:
    """Segments of 3, 2 and 2 images: distance and gradient by autograd twice through all of them, in float64."""
    network = toy_network()
    config = config_of(
        ipc=7, segments=3, sizes=(3, 2, 2), networks=1, context="union", factor=factor, batch_syn=batch_syn
    )
    inputs, pixels = replace(round_inputs(network, 2), earlier=pixels_of(4, 5, 50)), pixels_of(2, 2, 1)
    made = run(config, 2, inputs=inputs, pixels=pixels)
    for place, label in enumerate(CLASSES):
        assert {index - STARTS[label] for index in made.taken[place]} <= set(THIRD[label])
        flat, draws = made.steps[place].flat.double().requires_grad_(), made.steps[place].draws
        own = torch.tensor(pixels[place]).double().requires_grad_()
        tiles = _tiles(torch.cat([torch.tensor(inputs.earlier[label]).double(), own]), factor)
        real = torch.tensor(toy_blocks().take(np.array(made.taken[place])))
        gradients = [
            _conv_gradient(
                network, flat, augment(network.normalise(images.double() / scale), draws, config.augment), label
            )
            for images, scale in ((real, 255), (tiles, 1))
        ]
        distance = (gradients[0].detach() - gradients[1]).square().sum()
        (slope,) = torch.autograd.grad(distance, own)
        np.testing.assert_allclose(made.velocity[place], slope.numpy(), atol=2e-4 * float(slope.abs().max()))


def test_a_union_of_means_is_the_mean_of_the_union() -> None:
    """dm: real means against the mean features of all images of all segments, in float64."""
    network = toy_network()
    config = config_of(name="dm", ipc=7, segments=3, sizes=(3, 2, 2), networks=1, context="union", batch_syn=2)
    inputs, pixels = replace(round_inputs(network, 2), earlier=pixels_of(4, 5, 50)), pixels_of(2, 2, 1)
    made = run(config, 2, inputs=inputs, pixels=pixels)
    (step,) = made.steps
    matching = matching_of(network, config)
    total = 0.0
    for place, label in enumerate(CLASSES):
        union = torch.cat([torch.tensor(inputs.earlier[label]), torch.tensor(pixels[place])]).double()
        real = step.images[place].double() / 255
        means = [
            sum(matching.features(step.flat.double(), image[None], step.draws) for image in images) / len(images)  # type: ignore[attr-defined]
            for images in (real, union)
        ]
        total += float((means[0] - means[1]).square().sum())
    assert made.distances == pytest.approx([total], rel=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_residual_step_matches_the_union_of_segments_to_the_mixture(factor: int) -> None:
    """One state, one step: distance and new pixels by autograd twice through all images of all segments, in float64."""
    network = toy_network()
    config = config_of(segments=3, networks=1, context="residual", factor=factor, batch_syn=16, batch_real=6)
    inputs, pixels = round_inputs(network, 2), pixels_of(2, 2, 1)
    made = run(config, 2, inputs=inputs, pixels=pixels)
    expected = []
    for place, label in enumerate(CLASSES):
        flat, draws = made.steps[place].flat.double().requires_grad_(), made.steps[place].draws
        own = torch.tensor(pixels[place]).double().requires_grad_()
        union = torch.cat([torch.tensor(inputs.earlier[label]).double(), own])
        tiles = _tiles(union, factor)
        real = torch.tensor(toy_blocks().take(np.array(made.taken[place])))
        gradients = [
            _conv_gradient(
                network, flat, augment(network.normalise(images.double() / scale), draws, config.augment), label
            )
            for images, scale in ((real, 255), (tiles, 1))
        ]
        distance = (gradients[0].detach() - gradients[1]).square().sum()
        expected.append(float(distance.detach()))
        (slope,) = torch.autograd.grad(distance, own)
        np.testing.assert_allclose(made.velocity[place], slope.numpy(), atol=2e-4 * float(slope.abs().max()))
        moved = (own - pixel_rate(config, 8) * slope).clamp(0, 1).detach().numpy()
        np.testing.assert_allclose(made.pixels[place], moved, atol=1e-5)
    assert made.distances == pytest.approx([sum(expected) / 2], rel=1e-3)


def _tiles(pixels: Tensor, factor: int) -> Tensor:
    side = SHAPE[1] // factor
    tiles = [
        F.interpolate(slot[None, :, top : top + side, left : left + side], size=SHAPE[1:], mode="bilinear")
        for slot in pixels
        for top in range(0, SHAPE[1], side)
        for left in range(0, SHAPE[2], side)
    ]
    return torch.cat(tiles)


def _conv_gradient(network: Network, flat: Tensor, seen: Tensor, label: int) -> Tensor:
    loss = F.cross_entropy(network.logits(flat, seen), torch.full((len(seen),), label))
    (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
    return network.layout.unflatten(gradient)["convs.0.weight"]


def test_all_steps_at_one_residual_state_share_the_draw_of_the_earlier_segments() -> None:
    made = run(config_of(context="residual", networks=2, steps=3), 1)
    for place in range(2):
        for outer in range(2):
            here = [step for step in made.steps[6 * outer : 6 * outer + 6] if int(step.label) == CLASSES[place]]
            assert len({tuple(step.draws.flatten().tolist()) for step in here}) == 1
            assert all(torch.equal(step.earlier, here[0].earlier) for step in here)
            assert bool(here[0].earlier.any())


@pytest.mark.parametrize("method", [{"network": "train"}, {"name": "dsa", "inner_steps": 2}])
def test_a_network_that_moves_gives_the_earlier_segments_a_new_gradient_and_draw(method: dict[str, Any]) -> None:
    made = run(config_of(context="residual", networks=1, steps=3, **method), 1)
    here = [step for step in made.steps if int(step.label) == CLASSES[0]]
    assert len({tuple(step.draws.flatten().tolist()) for step in here}) == 3
    assert len({step.earlier.numpy().tobytes() for step in here}) == 3


@pytest.mark.parametrize(("context", "segment"), [("alone", 1), ("residual", 0)])
def test_a_segment_that_stands_alone_gets_nothing_from_others(context: str, segment: int) -> None:
    made = run(config_of(context=context), segment)
    assert all(not step.earlier.any() for step in made.steps)
    assert all(float(step.settings[1]) == 1 for step in made.steps)


# --- the rate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "segment_ipc", "times"),
    [
        (32, 10, 1),
        (28, 10, 1),
        (224, 10, 1),
        (32, 5, 0.5),
        (64, 10, 4),
        (16, 20, 0.5),
        (128, 10, 16),
        (256, 10, (256 / 224) ** 2),
    ],
)
def test_the_rate_is_scaled_by_images_a_class_and_image_size(size: int, segment_ipc: int, times: float) -> None:
    config = config_of(ipc=2 * segment_ipc, lr_img=0.005)
    assert pixel_rate(config, size) == pytest.approx(0.005 * times)
    assert pixel_rate(config_of(ipc=2 * segment_ipc, lr_img=0.005, scale_lr=False), size) == 0.005


@pytest.mark.parametrize(("segment", "alone", "union"), [(0, 0.3, 0.3), (1, 0.2, 0.5), (2, 0.5, 1.0)])
def test_the_rate_may_be_that_of_all_segments_so_far(segment: int, alone: float, union: float) -> None:
    sizes = {"ipc": 10, "segments": 3, "sizes": (3, 2, 5), "lr_img": 0.005}
    assert pixel_rate(config_of(**sizes), 32, segment) == pytest.approx(0.005 * alone)
    assert pixel_rate(config_of(union_rate=True, **sizes), 32, segment) == pytest.approx(0.005 * union)


def test_the_rate_reaches_the_step() -> None:
    made = run(config_of(networks=1, ipc=4, lr_img=8.0))
    assert float(made.steps[0].settings[0]) == pytest.approx(8.0 * (2 / 10) * (8 / 32) ** 2)


# --- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dm", "cafe"])
def test_distributions_are_matched_for_all_classes_of_the_group_at_once(name: str) -> None:
    pixels = pixels_of(2, 2, 1)
    made = run(config_of(name=name, networks=1), pixels=pixels)
    (step,) = made.steps
    np.testing.assert_array_equal(step.pixels.numpy(), pixels)
    assert step.images.shape == (2, 4, *SHAPE)
    blocks = toy_blocks()
    for place, label in enumerate(CLASSES):
        of_class = {image.tobytes() for image in blocks.blocks[label][FIRST[label]]}
        assert {image.numpy().tobytes() for image in step.images[place]} <= of_class


def test_dm_looks_through_fresh_networks_or_experts_or_probes() -> None:
    network = toy_network()
    fresh = run(config_of(name="dm", networks=6), network=network)
    assert len(fresh.flats) == 6
    known = {flat.tobytes() for way in trajectories(network) for flat in way}
    assert not known & set(fresh.flats)
    assert set(run(config_of(name="dm", networks=6, network="experts"), network=network).flats) <= known
    probes = {probe.tobytes() for probe in round_inputs(network).probes}
    assert set(run(config_of(name="dm", networks=6, probe_share=1.0), network=network).flats) == probes


def test_a_residual_step_of_dm_matches_the_union_of_segments_to_the_mixture() -> None:
    network = toy_network()
    made = run(config_of(name="dm", networks=1, context="residual", augment="none"), 1, network=network)
    flat, pixels, _, images, *_ = made.steps[0]
    earlier = torch.tensor(round_inputs(network, 1).earlier[list(CLASSES)])

    def mean(seen: Tensor) -> Tensor:
        values = network.normalise(seen.flatten(0, 1))
        return network.read(flat, {}, values)[1].view(*seen.shape[:2], -1).mean(1)

    union = mean(torch.cat([earlier, pixels], 1))
    expected = float((mean(images) - union).square().sum())
    assert made.distances[0] == pytest.approx(expected, rel=1e-4)


def test_the_rate_of_its_own_segment_reaches_the_step() -> None:
    made = run(config_of(ipc=5, segments=2, sizes=(3, 2), networks=1, lr_img=8.0), segment=1)
    assert float(made.steps[0].settings[0]) == pytest.approx(8.0 * (2 / 10) * (8 / 32) ** 2)
