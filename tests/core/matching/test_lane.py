"""A lane against the unrolled reference, the set's step against plain loops, and the ranges on integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy import toy_network

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.matching.lane import (
    draw_from_bank,
    draw_start,
    moved,
    shift_of,
    stalled,
    start_epochs,
    walk_lane,
)
from dasm_ray.core.matching.setstate import Cut, SetGradient, SetState, SetValues, joined, whole
from dasm_ray.core.matching.trajectory import Student, planned, unrolled
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import NonFinite

K, M, OLD = 4, 3, 2
SHAPE = (3, 8, 8)


def config_of(name: str = "datm", **trajectory: Any) -> RunConfig:
    settings = {"steps": 4, "epochs": 2, "batch": 6, "starts": [[0, 2, 5]], "expansion": 10, **trajectory}
    return parse_config(
        {
            "seed": 3,
            "synthetic": {"ipc": M, "segments": 1},
            "experts": {"epochs": 8},
            "matcher": {"name": name, "augment": "color_crop_flip", "rounds": 3},
            "trajectory": settings,
        }
    )


def arrays(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape).astype(np.float32)


def state_of() -> SetState:
    return SetState.at_rest(arrays(K, M, *SHAPE), arrays(K, M, K, seed=1), -2.0)


def expert() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    start = toy_network().initial(torch_generator(0)).numpy()
    return start, start + 0.05 * arrays(len(start), seed=2)


@pytest.mark.parametrize("old", [0, OLD])
def test_a_lane_walks_over_the_union_and_gives_its_own_segments_gradient(old: int) -> None:
    config, student, state = config_of(), Student(toy_network(), soft=True), state_of()
    earlier = (arrays(K, old, *SHAPE, seed=4), arrays(K, old, K, seed=5))
    start, target = expert()
    distance, (found,) = walk_lane(student, config, (1, 7, 2), *whole(state, earlier), start, target)
    gradient = found.spread(state.values)

    images, labels = [], []
    own: list[int] = []
    for label in range(K):
        for place in range(old):
            images.append(earlier[0][label, place])
            labels.append(earlier[1][label, place])
        for place in range(M):
            own.append(len(images))
            images.append(state.pixels[label, place])
            labels.append(state.labels[label, place])
    plan = planned(len(images), 6, 4, "color_crop_flip", True, torch_generator(3, "lane", 1, 7, 2))
    reference = unrolled(
        student,
        plan,
        torch.tensor(np.array(images)),
        torch.tensor(np.array(labels)),
        torch.tensor(state.log_step),
        torch.tensor(start),
        torch.tensor(target),
    )
    assert distance == pytest.approx(float(reference.distance), rel=1e-5)
    for found, wanted in (
        (gradient.pixels, reference.images.numpy()[own].reshape(K, M, *SHAPE)),
        (gradient.labels, reference.labels.numpy()[own].reshape(K, M, K)),
        (gradient.log_step, reference.log_step.numpy()),
    ):
        assert found.shape == wanted.shape
        assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_a_lane_follows_from_its_place() -> None:
    config, student, state = config_of(), Student(toy_network(), soft=True), state_of()
    earlier = (arrays(K, 0, *SHAPE), arrays(K, 0, K))
    lanes = [
        walk_lane(student, config, where, *whole(state, earlier), *expert())[1][0]
        for where in ((0, 1, 0), (0, 1, 0), (0, 1, 1))
    ]
    assert lanes[0].pixels.tobytes() == lanes[1].pixels.tobytes()
    assert lanes[0].pixels.tobytes() != lanes[2].pixels.tobytes()


@pytest.mark.parametrize("edges", [(0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
@pytest.mark.parametrize("batch", [6, 2], ids=["all images are seen", "few are"])
def test_shards_change_no_byte_and_none_is_fetched_that_nothing_is_drawn_from(
    edges: tuple[int, ...], batch: int
) -> None:
    """Also those of images that no step has seen, against the unrolled reference over all images."""
    config, student, state = config_of(batch=batch, steps=2), Student(toy_network(), soft=True), state_of()
    state = state._replace(velocity_pixels=arrays(K, M, *SHAPE, seed=30))
    earlier, where = (arrays(K, OLD, *SHAPE, seed=4), arrays(K, OLD, K, seed=5)), (0, 1, 0)
    distance, (gradient,) = walk_lane(student, config, where, *whole(state, earlier), *expert())
    after = moved(config, (0, 1), state, [distance], [gradient.spread(state.values)])
    fetched = []

    def read(shard: int) -> tuple[SetValues, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        fetched.append(shard)
        first, last = edges[shard : shard + 2]
        return values[shard], (earlier[0][first:last], earlier[1][first:last])

    values, speeds = (list(part.shards(edges)) for part in (state.values, state.speeds))
    found = walk_lane(student, config, where, Cut(edges, M, OLD), read, *expert())
    assert found[0] == distance
    plan = planned(K * (OLD + M), batch, 2, "color_crop_flip", True, torch_generator(3, "lane", *where))
    seen = np.unique(plan.batches)
    assert fetched == [n for n in range(len(edges) - 1) if np.isin(seen // (OLD + M), range(*edges[n : n + 2])).any()]
    assert len(fetched) == len(edges) - 1 or batch == 2
    own = [image for image in seen if image % (OLD + M) >= OLD]
    assert sum(len(each.rows) for each in found[1]) == len(own)
    shards = []
    for shard, each in enumerate(found[1]):
        part = SetState(*values[shard], *speeds[shard])
        step = moved(config, (0, 1), part, [distance], [each.spread(values[shard])])
        shards.append((step.values, step.speeds))
    for one, other in zip(joined(shards), after, strict=True):
        assert one.tobytes() == other.tobytes()
    reference = unrolled(
        student,
        plan,
        torch.tensor(np.concatenate([earlier[0], state.pixels], 1).reshape(-1, *SHAPE)),
        torch.tensor(np.concatenate([earlier[1], state.labels], 1).reshape(-1, K)),
        *(torch.tensor(state.log_step), *map(torch.tensor, expert())),
    )
    wanted = reference.images.numpy().reshape(K, OLD + M, *SHAPE)[:, OLD:]
    dense = gradient.spread(state.values).pixels
    assert np.linalg.norm(dense - wanted) <= 1e-3 * np.linalg.norm(wanted)


# --- the step of the set ---------------------------------------------------------------------------------------------


def gradients(count: int) -> list[SetGradient]:
    return [
        SetGradient(
            pixels=arrays(K, M, *SHAPE, seed=10 + lane),
            labels=arrays(K, M, K, seed=20 + lane),
            log_step=np.array(lane + 1.0, np.float32),
        )
        for lane in range(count)
    ]


def test_the_set_moves_by_the_mean_of_the_lanes_within_the_threshold() -> None:
    config = config_of(lr_img=3.0, lr_label=0.5, label_momentum=0.8, lr_step=0.1, threshold=1.0)
    state, lanes = state_of(), gradients(3)
    state = state._replace(velocity_labels=arrays(K, M, K, seed=30), velocity_log_step=np.array(2.0, np.float32))
    after = moved(config, (0, 0), state, [0.9, 1.1, 1.0], lanes)
    for name, rate, momentum in (("pixels", 3.0, 0.5), ("labels", 0.5, 0.8), ("log_step", 0.1, 0.5)):
        mean = (getattr(lanes[0], name).astype(float) + getattr(lanes[2], name)) / 2
        before, found = getattr(state, name), getattr(after, name)
        velocity = momentum * getattr(state, f"velocity_{name}").astype(float) + mean
        np.testing.assert_allclose(getattr(after, f"velocity_{name}"), velocity, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found, before - rate * velocity, rtol=1e-5, atol=1e-5)
        assert found.dtype == np.float32
        assert found.shape == before.shape


def test_without_a_usable_lane_nothing_moves() -> None:
    state = state_of()._replace(velocity_pixels=arrays(K, M, *SHAPE, seed=30))
    after = moved(config_of(), (0, 0), state, [1.1, 5.0], gradients(2))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(after, state, strict=True))


def test_labels_that_are_not_learned_stay() -> None:
    state = state_of()
    after = moved(config_of("mtt"), (0, 0), state, [0.5], gradients(1))
    assert after.labels.tobytes() == state.labels.tobytes()
    assert after.pixels.tobytes() != state.pixels.tobytes()


def test_a_state_is_what_moves_and_its_velocities_by_the_names_of_its_file() -> None:
    moving = SetGradient._fields
    assert SetState._fields == (*moving, *(f"velocity_{name}" for name in moving))


# --- where students start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round", "shift", "expected"),
    [
        (0, 0, (0, 2)),
        (5, 0, (0, 3)),
        (10, 0, (0, 5)),
        (99, 0, (0, 5)),
        (0, 3, (3, 5)),
        (10, 3, (3, 7)),  # 8 epochs: a student that starts at 6 is held against the last
        (0, 6, (6, 7)),
        (0, 50, (6, 7)),
    ],
)
def test_the_range_of_start_epochs_widens_shifts_and_ends_with_the_experts(
    round: int, shift: int, expected: tuple[int, int]
) -> None:
    assert start_epochs(config_of(), 0, round, shift) == expected


def test_draws_cover_experts_and_epochs_and_follow_from_their_place() -> None:
    config = config_of()
    drawn = {draw_start(config, 0, 10, lane, 3, 0) for lane in range(200)}
    assert drawn == {(who, when) for who in range(3) for when in range(5)}
    assert draw_start(config, 0, 4, 1, 3, 0) == draw_start(config, 0, 4, 1, 3, 0)


def test_a_probe_is_placed_where_experts_are_as_good() -> None:
    losses = [[2.0, 1.0, 0.5, 0.2], [2.0, 1.4, 0.7, 0.4]]
    assert [shift_of(losses, probe) for probe in (3.0, 1.5, 1.2, 0.61, 0.1)] == [0, 1, 1, 2, 3]


def test_stretches_on_which_an_expert_does_not_learn_are_named() -> None:
    assert stalled([[2.0, 1.0, 1.1, 0.9], [2.0, 1.0, 0.5, 0.2]], 1) == [(0, 1)]
    assert stalled([[2.0, 1.0, 2.0, 0.9]], 2) == [(0, 0)]


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "changes", "key"),
    [
        ({"log_step": 80.0}, {"step_size": 1e38}, "trajectory.step_size (now 1e+38)"),
        ({"log_step": 80.0}, {"lr_step": 0.5}, "trajectory.lr_step (now 0.5)"),
        ({"pixels": 1e37}, {"step_size": 1, "lr_img": 2e37}, "trajectory.lr_img (now 2e+37)"),
        ({"labels": np.inf}, {"step_size": 1, "lr_label": 7}, "trajectory.lr_label (now 7)"),
    ],
    ids=["step size", "step size that was learned", "pixels", "soft labels"],
)
def test_a_student_that_explodes_stops_in_its_lane_by_the_key_that_did_it(
    state: dict[str, float], changes: dict[str, float], key: str
) -> None:
    start = state_of()
    (name, size) = next(iter(state.items()))
    spoiled = start._replace(**{name: np.asarray(np.full_like(getattr(start, name), size))})
    if name == "pixels":
        spoiled.pixels[:, :, :, ::2] *= -1
    nothing = (np.empty((K, 0, *SHAPE), np.float32), np.empty((K, 0, K), np.float32))
    with pytest.raises(NonFinite) as caught:
        walk_lane(
            Student(toy_network(), soft=True), config_of(**changes), (1, 2, 3), *whole(spoiled, nothing), *expert()
        )
    assert str(caught.value).startswith("segment 2, round 2, lane 3: a student at rate ")
    assert str(caught.value).endswith(f"the last good state is kept; lower {key} in a new run")


@pytest.mark.parametrize(("key", "rate"), [("lr_img", 3e38), ("lr_label", 3e38), ("lr_step", 3e38), ("lr_step", 1e3)])
def test_a_step_of_the_set_that_leads_to_no_number_names_its_rate(key: str, rate: float) -> None:
    changes = {"lr_img": 1.0, "lr_label": 1.0, "lr_step": 1e-3} | {key: rate}
    lanes = [SetGradient(*(-4 * np.abs(part) for part in gradients(1)[0]))]
    with pytest.raises(NonFinite, match=rf"segment 2, step of round 5: .*lower trajectory\.{key} \(now "):
        moved(config_of(**changes), (1, 5), state_of(), [0.5], lanes)


def test_a_rate_that_was_learned_to_be_nothing_is_none() -> None:
    lanes = [SetGradient(*(4 * np.abs(part) for part in gradients(1)[0]))]
    with pytest.raises(NonFinite, match=r"lower trajectory\.lr_step \(now 1000\)"):
        moved(config_of(lr_step=1000.0), (0, 0), state_of(), [0.5], lanes)


def test_a_share_of_the_students_starts_on_the_bank() -> None:
    plain = config_of()
    config = plain.model_copy(update={"matcher": plain.matcher.model_copy(update={"bank_share": 0.4})})
    drawn = [draw_from_bank(config, 0, round, lane, 2) for round in range(20) for lane in range(20)]
    from_bank = [each for each in drawn if each is not None]
    assert 0.3 < len(from_bank) / len(drawn) < 0.5
    _, _, last = config.starts_of(0)
    assert set(from_bank) == {(who, when) for who in range(2) for when in range(last)}
    assert {draw_from_bank(config, 0, 0, lane, 0) for lane in range(20)} == {None}, "there is no bank"
    assert {draw_from_bank(plain, 0, 0, lane, 2) for lane in range(20)} == {None}
