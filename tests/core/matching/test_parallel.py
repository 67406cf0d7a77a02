"""Lanes of a group's matching step against plain loops: states, classes and steps one after another, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from toy import COUNTS, FIRST, SHAPE, WatchedBlocks, config_of, generator, toy_arrays, toy_network

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.augment import augment
from dasm_ray.core.matching.parallel import InLane, Moment, match_in_lane, moved_by, slots_of
from dasm_ray.core.matching.round import Assignment, RoundInputs, matching_of, pixel_rate
from dasm_ray.core.matching.step import StepInputs, Stepped
from dasm_ray.core.networks.network import Network
from dasm_ray.errors import NonFinite

CLASSES, SLOTS = (1, 3), 3
STARTS = np.cumsum(COUNTS) - COUNTS

METHODS: list[dict[str, Any]] = [
    {"name": "idc", "steps": 2},
    {"name": "idc", "network": "train", "steps": 3},
    {"name": "dc", "steps": 2, "inner_steps": 3},
    {"name": "dsa", "steps": 3, "inner_steps": 2},
    {"name": "idc", "context": "residual", "perturb": 0.3, "probe_share": 0.5, "steps": 2},
    {"name": "dm", "probe_share": 0.5, "context": "union", "steps": 2},
    {"name": "cafe", "steps": 2, "inner_steps": 3, "context": "residual"},
]


def pixels_of(count: int, images: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, images, *SHAPE)).astype(np.float32)


class Group:
    """A group before a round, and a round of it, lane by lane. ``steps``: what every matching step was given."""

    def __init__(self, config: RunConfig, segment: int = 0, network: Network | None = None) -> None:
        self.config, self.network = config, network or toy_network()
        self.where = Assignment(segment, 2, 1, CLASSES)
        states = [self.network.initial(generator(seed)).numpy() for seed in range(10)]
        self.blocks = WatchedBlocks(toy_arrays())
        self.inputs = RoundInputs(
            blocks=self.blocks,
            windows=[FIRST] * (segment + 1),
            earlier=pixels_of(4, 2 * segment, 50),
            current=pixels_of(4, SLOTS, 51),
            experts=[np.stack(states[:5]), np.stack(states[5:])],
            probes=states[:2],
        )
        self.pixels, self.velocity = pixels_of(2, SLOTS, 1), pixels_of(2, SLOTS, 2) - np.float32(0.5)
        for array in (self.pixels, self.velocity, self.inputs.earlier, self.inputs.current):
            array.setflags(write=False)  # as they come out of shared memory
        self.matching = matching_of(self.network, config, segment)
        self.steps: list[StepInputs] = []
        true_step = self.matching.step

        def step(inputs: StepInputs) -> Stepped:
            self.steps.append(StepInputs(*(value.clone() for value in inputs)))
            return true_step(inputs)

        self.matching.step = step

    def lane(self, at: Moment, lane: int, pixels: NDArray[np.float32], before: Any = None) -> InLane:
        return match_in_lane(self.matching, self.config, self.where, at, lane, self.inputs, pixels, before)

    def round(self, backwards: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The round, each step's lanes in their order or from the last to the first."""
        lanes = range(self.config.matcher.lanes)
        order = lanes[::-1] if backwards else lanes
        pixels, velocity = self.pixels, self.velocity
        at: Moment | None = Moment(0, 0)
        before: dict[int, Any] = {}
        while at is not None:
            found = {lane: self.lane(at, lane, pixels, before.get(lane)) for lane in order}
            slopes = [found[lane].slopes for lane in lanes]
            pixels, velocity = moved_by(self.config, self.where, at, pixels, velocity, slopes)
            before, at = {lane: found[lane].flat for lane in lanes}, at.after(self.config)
        return pixels, velocity


# --- against plain loops ---------------------------------------------------------------------------------------------


def conv_gradient(network: Network, flat: Tensor, seen: Tensor, label: int) -> Tensor:
    loss = F.cross_entropy(network.logits(flat, seen), torch.full((len(seen),), label))
    (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
    return network.layout.unflatten(gradient)["convs.0.weight"]


def slow_slope(group: Group, step: StepInputs, images: list[int], own: Tensor, label: int) -> tuple[float, Tensor]:
    """The distance of one class at one state, and its gradient by ``own`` slots, by autograd twice in float64."""
    network, own = group.network, own.clone().requires_grad_()
    flat = step.flat.double().requires_grad_()
    real = torch.tensor(group.blocks.blocks[label][np.array(images) - STARTS[label]]).double() / 255
    of_real, of_own = (
        conv_gradient(network, flat, augment(network.normalise(seen), step.draws, group.config.augment), label)
        for seen in (real, own)
    )
    distance = (of_real.detach() - of_own).square().sum()
    (slope,) = torch.autograd.grad(distance, own)
    return float(distance.detach()), slope


@pytest.mark.parametrize("batch_syn", [8, 2], ids=["all slots", "two of three"])
def test_a_round_in_lanes_is_a_plain_loop_over_states_lanes_and_classes(batch_syn: int) -> None:
    config = config_of(lanes=3, networks=2, steps=2, batch_syn=batch_syn, lr_img=8.0)
    group = Group(config)
    made, speed = group.round()
    taken, steps = iter(group.blocks.taken), iter(group.steps)
    pixels, velocity = torch.tensor(group.pixels).double(), torch.tensor(group.velocity).double()
    rate = pixel_rate(config, SHAPE[1])
    for state in range(2):
        for number in range(2):
            slots = slots_of(config, group.where, Moment(state, number), SLOTS)
            total = torch.zeros(2, slots.shape[1], *SHAPE, dtype=torch.float64)
            for _ in range(3):
                for place, label in enumerate(CLASSES):
                    _, slope = slow_slope(group, next(steps), next(taken), pixels[place, slots[place]], label)
                    total[place] += slope
            for place in range(2):
                for slot, mean in zip(slots[place], total[place] / 3, strict=True):
                    velocity[place, slot] = config.matcher.momentum * velocity[place, slot] + mean
                    pixels[place, slot] -= rate * velocity[place, slot]
        pixels.clamp_(0, 1)
    assert next(steps, None) is None
    np.testing.assert_allclose(made, pixels.numpy(), atol=2e-5)
    np.testing.assert_allclose(speed, velocity.numpy(), atol=2e-5)
    assert np.abs(made - group.pixels).max() > 0.01


def test_the_distance_of_a_lane_is_the_mean_over_the_classes() -> None:
    group = Group(config_of(lanes=2))
    found = group.lane(Moment(1, 0), 1, group.pixels)
    pairs = [
        slow_slope(group, step, images, torch.tensor(own).double(), label)
        for step, images, own, label in zip(group.steps, group.blocks.taken, group.pixels, CLASSES, strict=True)
    ]
    assert found.distance == pytest.approx(np.mean([distance for distance, _ in pairs]), rel=1e-4)
    for slope, (_, expected) in zip(found.slopes, pairs, strict=True):
        np.testing.assert_allclose(slope, expected.numpy(), atol=2e-4 * float(expected.abs().max()))


def test_features_of_all_classes_are_matched_in_a_lane_as_in_a_step_without_lanes() -> None:
    """dm and cafe: a lane's gradient is what a step of the whole group from rest makes of the velocity."""
    for name in ("dm", "cafe"):
        group = Group(config_of(name=name, lanes=2))
        found = group.lane(Moment(0, 0), 1, group.pixels)
        (step,) = group.steps
        np.testing.assert_array_equal(step.pixels.numpy(), group.pixels)
        stepped = matching_of(group.network, group.config).step(step._replace(velocity=torch.zeros_like(step.pixels)))
        assert found.slopes.tobytes() == stepped.velocity.numpy().tobytes()
        assert found.distance == float(stepped.distance)
        assert np.abs(found.slopes).max() > 0


# --- a lane is a function of its place -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_round_has_the_same_bytes_in_any_order_of_lanes_and_touches_no_global_generator(
    method: dict[str, Any],
) -> None:
    config, state = config_of(lanes=3, **method), torch.random.get_rng_state()
    first = Group(config, 1).round()
    assert torch.equal(torch.random.get_rng_state(), state)
    again = Group(config, 1).round(backwards=True)
    for one, other, before in zip(first, again, pixels_of(2, SLOTS, 1)[None], strict=False):
        assert one.tobytes() == other.tobytes()
        assert (one != before).any(axis=(2, 3, 4)).all(), "every slot of every class"
    assert 0 <= first[0].min() <= first[0].max() <= 1


def test_lanes_share_slots_and_pixels_and_nothing_that_is_drawn_for_a_network() -> None:
    group = Group(config_of(lanes=3, batch_syn=2, snapshots=[[0, 5]]))
    for lane in range(3):
        group.lane(Moment(0, 0), lane, group.pixels)
    lanes = [group.steps[2 * lane : 2 * lane + 2] for lane in range(3)]
    for place, slots in enumerate(slots_of(group.config, group.where, Moment(0, 0), SLOTS)):
        for steps in lanes:
            np.testing.assert_array_equal(steps[place].pixels.numpy(), group.pixels[place, slots])
    assert len({tuple(step.draws.flatten().tolist()) for step in group.steps}) == 6
    assert len({str(taken) for taken in group.blocks.taken}) == 6
    assert len({steps[0].flat.numpy().tobytes() for steps in lanes}) > 1


def test_other_groups_rounds_segments_states_steps_and_seeds_draw_otherwise() -> None:
    config = config_of(lanes=2, steps=2)
    places = [{}, {"segment": 1}, {"group": 0}, {"round": 0}]
    draws = []
    for seed, changes, at, lane in [
        *((0, changes, Moment(0, 0), 0) for changes in places),
        *((0, {}, at, lane) for at in (Moment(0, 1), Moment(1, 0)) for lane in (0, 1)),
        *((0, {}, Moment(0, 0), 1), (1, {}, Moment(0, 0), 0)),
    ]:
        group = Group(config.model_copy(update={"seed": seed}))
        group.where = replace(group.where, **changes)
        group.lane(at, lane, group.pixels)
        draws.append(tuple(group.steps[0].draws.flatten().tolist()))
    assert len(set(draws)) == len(draws)


def test_slots_are_drawn_without_repetition_and_otherwise_at_each_step() -> None:
    config, where = config_of(lanes=2, batch_syn=4, steps=2), Assignment(0, 0, 0, CLASSES)
    drawn = [slots_of(config, where, Moment(state, step), 9) for state in range(4) for step in range(2)]
    assert {slots.shape for slots in drawn} == {(2, 4)}
    assert all((np.diff(slots) > 0).all() for slots in drawn)
    assert len({slots.tobytes() for slots in drawn}) == len(drawn)
    assert set(np.concatenate(drawn).ravel()) == set(range(9))
    np.testing.assert_array_equal(slots_of(config, where, Moment(0, 0), 3), [[0, 1, 2]] * 2)


def test_moments_go_through_all_steps_of_all_states() -> None:
    config, found = config_of(networks=2, steps=3), [Moment(0, 0)]
    while (after := found[-1].after(config)) is not None:
        found.append(after)
    assert found == [(state, step) for state in range(2) for step in range(3)]


# --- the network of a lane -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["residual", "union"])
def test_all_steps_at_one_state_have_its_network_and_its_part_of_earlier_segments(context: str) -> None:
    group = Group(config_of(context=context, lanes=2, steps=3), 1)
    found = [group.lane(Moment(0, step), lane, group.pixels) for lane in range(2) for step in range(3)]
    assert all(each.flat is None for each in found)
    parts = []
    for lane in range(2):
        here = [step for step in group.steps[6 * lane : 6 * lane + 6] if int(step.label) == CLASSES[0]]
        assert len({step.flat.numpy().tobytes() for step in here}) == 1
        assert len({tuple(step.draws.flatten().tolist()) for step in here}) == 1
        assert all(torch.equal(step.earlier, here[0].earlier) for step in here)
        parts.append(here[0].earlier)
    assert bool(parts[0].any())
    assert not torch.equal(*parts)


@pytest.mark.parametrize("method", [{"network": "train"}, {"name": "dsa", "inner_steps": 2}])
def test_a_network_in_the_loop_goes_on_from_the_step_before_in_its_own_lane(method: dict[str, Any]) -> None:
    group = Group(config_of(lanes=2, steps=3, **method), 1)
    flats = []
    for lane in range(2):
        before = None
        for step in range(3):
            group.steps.clear()
            before = group.lane(Moment(0, step), lane, group.pixels, before).flat
            (flat,) = {step.flat.numpy().tobytes() for step in group.steps}
            assert before is None if step == 2 else before.tobytes() == flat
            flats.append(flat)
    assert len(set(flats)) == 6
    again = Group(group.config, 1)
    again.lane(Moment(0, 2), 1, again.pixels, np.frombuffer(flats[4], np.float32))
    assert again.steps[0].flat.numpy().tobytes() == flats[5], "all that it needs is the network of the step before"


def test_a_network_that_is_trained_on_the_set_sees_the_group_as_it_stands() -> None:
    group = Group(config_of(name="dsa", lanes=2, steps=2, inner_steps=2))
    before = group.lane(Moment(0, 0), 0, group.pixels).flat
    found = [group.lane(Moment(0, 1), 0, pixels, before) for pixels in (group.pixels, 1 - group.pixels)]
    assert group.steps[2].flat.numpy().tobytes() != group.steps[4].flat.numpy().tobytes()
    assert found[0].distance != found[1].distance


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lr_img": 1e38}, "network state 0, lane 0: the matching distance or a pixel is no longer finite"),
        ({"perturb": 1e38}, "network state 0, lane 0: the network in the loop is no longer finite"),
        ({"network": "train", "inner_lr": 1e38}, "network state 0, lane 0: the network in the loop is no longer"),
        ({"name": "dm", "lr_img": 1e38}, "network state 0, lane 0: the matching distance or a pixel is no longer"),
    ],
)
def test_numbers_that_are_none_end_the_round_where_they_began(changes: dict[str, Any], key: str) -> None:
    group = Group(config_of(lanes=2, steps=4, **changes))
    with pytest.raises(NonFinite) as caught:
        group.round()
    (name,) = {"lr_img", "perturb", "inner_lr"} & set(changes)
    assert str(caught.value).startswith(f"segment 1, group 2, round 1, {key}")
    assert f"the last good state is kept; lower matcher.{name} (now 1e+38) in a new run" in str(caught.value)


def test_a_step_that_leads_to_numbers_that_are_none_keeps_nothing_of_it() -> None:
    group, at = Group(config_of(lanes=2, lr_img=1e38)), Moment(1, 0)
    slopes = [np.full_like(group.pixels, 1e4)] * 2
    with pytest.raises(
        NonFinite, match=r"^segment 1, group 2, round 1, network state 1: the step leads to a pixel .*1e\+38"
    ):
        moved_by(group.config, group.where, at, group.pixels, group.velocity, slopes)


@pytest.mark.parametrize("union_rate", [False, True])
def test_lanes_move_a_segment_by_its_own_rate(union_rate: bool) -> None:
    config = config_of(lanes=2, ipc=5, segments=2, sizes=(2, SLOTS), lr_img=8.0, union_rate=union_rate)
    group = Group(config, segment=1)
    slopes = [np.full_like(group.pixels, value) for value in (1e-3, 3e-3)]
    pixels, velocity = moved_by(config, group.where, Moment(0, 0), group.pixels, np.zeros_like(group.pixels), slopes)
    rate = pixel_rate(config, SHAPE[1], 1)
    assert rate != pixel_rate(config, SHAPE[1], 0)
    np.testing.assert_allclose(pixels, np.clip(group.pixels - np.float32(rate) * velocity, 0, 1), atol=1e-7)
