"""What is sent, made ahead and multiplied how; and that no hot loop waits for a device, on one that has no numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy import FIRST, RECIPE, SHAPE, config_of, generator, toy_blocks, toy_network
from waits import DEVICE, Waiting, Waits

from dasm_ray.config.keys import Experts, RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core import device
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.device import ahead, multiply_as, numbers, sent
from dasm_ray.core.matching.lane import walk_lane
from dasm_ray.core.matching.parallel import Moment, match_in_lane
from dasm_ray.core.matching.round import Assignment, RoundInputs, distil_round, matching_of
from dasm_ray.core.matching.setstate import SetState, whole
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks import training, zoo
from dasm_ray.core.networks.evaluate import evaluate_on, synthetic_samples
from dasm_ray.core.networks.expert import continued, expert_labels, train_expert
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy, mean_loss, right
from dasm_ray.core.networks.samples import RealSamples, TensorSamples
from dasm_ray.core.networks.training import Watch, train
from dasm_ray.core.scoring import features_of, score_range

# --- what the harness itself sees ------------------------------------------------------------------------------------


def there() -> torch.Tensor:
    return torch.zeros(3, 4, device=DEVICE)


WAITS: list[tuple[str, Callable[[torch.Tensor], Any]]] = [
    ("asks for a number", lambda x: x.sum().item()),
    ("asks for a number", lambda x: float(x.sum())),
    ("asks for a number", lambda x: bool((x > 0).any())),
    ("copies to the host", lambda x: x.cpu()),
    ("copies to the host", lambda x: x.tolist()),
    ("copies to the host", lambda x: torch.zeros(3, 4).copy_(x)),
    ("not pinned", lambda x: torch.zeros(3).to(DEVICE)),
    ("not pinned", lambda x: torch.zeros(3).to(DEVICE, non_blocking=True)),
    ("not pinned", lambda x: torch.zeros(3).pin_memory().to(DEVICE)),
    ("not pinned", lambda x: x.copy_(torch.zeros(3, 4))),
    ("not pinned", lambda x: torch.tensor([1.0, 2.0], device=DEVICE)),
    ("indices lie here", lambda x: x[torch.tensor([0, 2])]),
    ("indices lie here", lambda x: x[[0, 2]]),
    ("indices lie here", lambda x: x.__setitem__(torch.tensor([0, 2]), 1.0)),
    ("a mask", lambda x: x[x > 0]),
    ("a mask", lambda x: x.__setitem__(x > 0, torch.ones(2, device=DEVICE))),
    ("depends on values", lambda x: x.nonzero()),
    ("depends on values", lambda x: torch.unique(x)),
    ("depends on values", lambda x: torch.equal(x, x)),
    ("what is here", lambda x: x + torch.zeros(3, 4)),
]


@pytest.mark.parametrize(("why", "call"), WAITS)
def test_what_waits_for_a_device_is_seen(why: str, call: Callable[[torch.Tensor], Any]) -> None:
    with Waiting(), pytest.raises(Waits, match=why):
        call(there())


def test_what_does_not_wait_passes() -> None:
    with Waiting() as watched:
        x = there() * 2 + 1
        x[0] = 1.0
        x[1:, :2] = 0
        x[sent(torch.tensor([0, 2]), DEVICE)] += 1
        sent(torch.arange(12.0).view(3, 4), DEVICE).add_(x)
        assert torch.zeros(3).tolist() == [0, 0, 0], "what is here may be looked at"
    assert not watched.waited


# --- the parts -------------------------------------------------------------------------------------------------------


def test_on_the_processor_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert sent(tensor, "cpu") is tensor
    assert sent(tensor, torch.device("cpu")) is tensor
    assert numbers([1.5, 2], "cpu").tolist() == [1.5, 2]
    assert numbers([1, 2], "cpu", torch.float64).dtype == torch.float64


@pytest.mark.parametrize("place", ["cpu", DEVICE])
def test_items_made_ahead_keep_their_order(place: str) -> None:
    assert list(ahead(iter(range(20)), place)) == list(range(20))
    assert list(ahead([], place)) == []


def test_an_item_is_made_while_the_one_before_is_used() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        made.set()
        yield 1

    coming = ahead(items(), DEVICE)
    assert next(coming) == 0
    assert made.wait(60), "nobody asked for the second one, and it is made"
    assert list(coming) == [1]


def test_on_the_processor_no_item_is_made_before_it_is_asked_for() -> None:
    drawn: list[int] = []
    coming = ahead((drawn.append(number) or number for number in range(3)), "cpu")
    next(coming)
    assert drawn == [0]


def test_an_error_comes_where_its_item_would_have_come_and_no_thread_stays() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second one")

    before, coming = threading.active_count(), ahead(items(), DEVICE)
    assert next(coming) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(coming)
    given_up = ahead(iter(range(9)), DEVICE)
    next(given_up)
    given_up.close()
    assert threading.active_count() == before


@pytest.fixture
def _switches() -> Iterator[None]:
    """Puts torch's own back."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    yield
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.usefixtures("_switches")
def test_a_gpu_multiplies_as_the_precision_says() -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for precision, is_rounded in (("float32", False), ("bf16", True), ("float32", False)):
        multiply_as(precision, "cuda")
        assert (cuda.allow_tf32, cudnn.allow_tf32) == (is_rounded, is_rounded)
        assert cudnn.deterministic
        assert not cudnn.benchmark
    multiply_as("bf16", "cpu")
    assert not cuda.allow_tf32


# --- no hot loop waits -----------------------------------------------------------------------------------------------

LOOKS = {"training:all_finite"}
"""A training looks every LOOK_EVERY steps whether it still holds numbers, and so does a round at each network state."""

AFTER_A_STATE = {*LOOKS, "round:match_at_one_network"}
AFTER_A_ROUND = {"round:distil_round"}
AFTER_A_LANE = {"lane:walk_lane"}
AT_THE_END_OF_A_LANE = {"parallel:match_in_lane"}
AFTER_ALL_BATCHES = {"reading:accuracy", "reading:mean_loss", "reading:right", "scoring:_scored", "scoring:features_of"}
AFTER_AN_EPOCH = {"expert:_grown", "expert:continued"}
AT_AN_EPOCH = {"expert:train_expert"}
"""An epoch begins from the snapshot that is kept, which lies on the host."""
AT_FIRST_USE = {"blocks:_resident"}
"""A block is brought to the device, and stays."""


@pytest.fixture
def no_number(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Waiting]:
    """Waiting, also in the threads that make batches ahead."""

    def made(*may: set[str]) -> Waiting:
        allowed = {*AT_FIRST_USE, *LOOKS}.union(*may)
        watched = Waiting(allowed, answer=LOOKS)

        def begin() -> None:
            inside = Waiting(allowed, answer=LOOKS)
            inside.waited = watched.waited
            inside.__enter__()

        monkeypatch.setattr(device, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=begin))
        return watched

    return made


METHODS: list[dict[str, Any]] = [
    {"name": "idc"},
    {"name": "idc", "network": "train"},
    {"name": "dsa", "inner_steps": 2},
    {"name": "idc", "context": "residual", "perturb": 0.3, "probe_share": 0.5},
    {"name": "dm", "probe_share": 0.5, "context": "residual"},
    {"name": "cafe", "inner_steps": 2, "context": "residual"},
]
CLASSES = (1, 3)


def pixels_of(count: int, images: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, images, *SHAPE)).astype(np.float32)


def round_inputs(segment: int) -> RoundInputs:
    network = toy_network()
    states = [network.initial(generator(seed)).numpy() for seed in range(6)]
    return RoundInputs(
        blocks=toy_blocks(),
        windows=[FIRST] * (segment + 1),
        earlier=pixels_of(4, 2 * segment, 50),
        current=pixels_of(4, 2, 51),
        experts=[np.stack(states)] * 2,
        probes=states[:2],
    )


def trajectories(name: str, steps: int) -> RunConfig:
    return parse_config(
        {
            "synthetic": {"ipc": 2, "segments": 1},
            "experts": {"epochs": 8},
            "matcher": {"name": name, "augment": "color_crop_rotate", "rounds": 3},
            "trajectory": {"steps": steps, "epochs": 2, "batch": 6, "starts": [[0, 2, 5]], "expansion": 10},
        }
    )


NoNumber = Callable[..., Waiting]


def but_first_uses(watched: Waiting) -> dict[str, int]:
    return {where: times for where, times in watched.waited.items() if where not in AT_FIRST_USE}


def numberless(**more: Any) -> Network:
    return toy_network(device=DEVICE, **more)


def a_round(no_number: NoNumber, method: dict[str, Any], segment: int, **more: Any) -> dict[str, int]:
    """Where a round at one network state waited, and how often, but for blocks that it used first."""
    config, inputs = config_of(networks=1, **method), round_inputs(segment)
    matching = matching_of(numberless(**more), config)
    pixels = pixels_of(2, 2, 1)
    with no_number(AFTER_A_STATE, AFTER_A_ROUND) as watched:
        found, velocity, distances = distil_round(
            matching, config, Assignment(segment, 0, 0, CLASSES), inputs, pixels, np.zeros_like(pixels)
        )
    assert found.shape == velocity.shape == pixels.shape
    assert len(distances) == config.matcher.networks
    return but_first_uses(watched)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_waits_after_a_network_state_and_at_its_end_however_many_steps_it_takes(
    no_number: NoNumber, method: dict[str, Any]
) -> None:
    expected = {"training:all_finite": 1, "round:match_at_one_network": 1, "round:distil_round": 2}
    segment = int("context" in method)
    for steps in (1, 2):
        assert a_round(no_number, {**method, "steps": steps}, segment) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_lane_of_a_group_waits_at_its_end(no_number: NoNumber, method: dict[str, Any]) -> None:
    """For what is finite, the distance, the gradient and, where that is trained on, the network."""
    config, segment = config_of(networks=1, lanes=2, steps=2, **method), int("context" in method)
    matching, where, pixels = matching_of(numberless(), config), Assignment(segment, 0, 0, CLASSES), pixels_of(2, 2, 1)
    goes_on, before = config.states in ("real", "synthetic"), np.zeros(sum(toy_network().layout.sizes), np.float32)
    for step in (0, 1):
        inputs = round_inputs(segment)
        with no_number(AT_THE_END_OF_A_LANE) as watched:
            found = match_in_lane(matching, config, where, Moment(0, step), 0, inputs, pixels, before)
        assert found.slopes.shape == pixels.shape
        expected = {"training:all_finite": 1, "parallel:match_in_lane": 3 if goes_on and step == 0 else 2}
        assert but_first_uses(watched) == expected


def test_a_round_of_multi_formation_under_all_earlier_images_does_not_wait_either(no_number: NoNumber) -> None:
    method = {"name": "dsa", "factor": 2, "context": "union", "steps": 2, "inner_steps": 1}
    assert set(a_round(no_number, method, 1)) == AFTER_A_STATE | AFTER_A_ROUND


def test_a_wait_in_a_step_is_told(no_number: NoNumber, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: a step that looks at its own distance."""
    from dasm_ray.core.matching import gradient

    true_distance = gradient.distance

    def looked_at(*inputs: Any) -> torch.Tensor:
        found = true_distance(*inputs)
        found.item()
        return found

    monkeypatch.setattr(gradient, "distance", looked_at)
    with pytest.raises(Waits, match="test_device:looked_at waits for the device: it asks for a number"):
        a_round(no_number, {"name": "idc"}, 0)


def test_a_wait_in_the_thread_that_makes_batches_is_told(no_number: NoNumber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "sent", lambda tensor, place: tensor.to(place))
    network = numberless()
    with no_number(), pytest.raises(Waits, match="not pinned"):
        list(train(network, RealSamples(network, toy_blocks()), RECIPE, steps=3, generator=generator()))


def test_a_round_with_bf16_convolutions_does_not_wait(no_number: NoNumber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "computes_bf16", lambda place: True)
    a_round(no_number, {"name": "idc"}, 0, precision="bf16")


DSA = "color_crop_cutout_flip_scale_rotate"

TRAININGS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"augment": DSA, "cutmix": 0.5}, {}, "instance"),
    ({"augment": DSA, "single": True}, {"decay": True}, "batch"),
    ({}, {"flatness": (0.1, 0.5)}, "instance"),
]


@pytest.mark.parametrize(("recipe", "more", "norm"), TRAININGS)
def test_a_training_waits_for_its_looks_alone(
    no_number: NoNumber, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], more: dict[str, Any], norm: str
) -> None:
    monkeypatch.setattr(training, "LOOK_EVERY", 4)
    network, whole, steps = numberless(norm=norm), RECIPE.model_copy(update=recipe), 6
    samples = RealSamples(network, toy_blocks(), np.arange(3, 40))
    with no_number() as watched:
        states = train(network, samples, whole, steps=steps, generator=generator(), **more)
        for state in Watch("a training", "evaluate", whole).over(states, steps):
            assert state.flat.device.type == DEVICE
    assert watched.waited["training:all_finite"] == 2
    assert set(watched.waited) <= LOOKS | AT_FIRST_USE


def test_a_block_without_room_on_the_device_is_read_on_the_host_and_nobody_waits(
    no_number: NoNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dasm_ray.core import blocks

    monkeypatch.setattr(blocks, "room_on", lambda place: 0)
    network = numberless()
    with no_number() as watched:
        list(train(network, RealSamples(network, toy_blocks()), RECIPE, steps=3, generator=generator()))
    assert not watched.waited


def test_reading_waits_once_however_many_batches(no_number: NoNumber) -> None:
    network = numberless(norm="batch")
    flat = torch.zeros(sum(network.layout.sizes), device=DEVICE)
    for each in (30, 300):
        samples = RealSamples(network, Blocks([np.zeros((each, *network.shape), np.uint8)] * 4))
        with no_number(AFTER_ALL_BATCHES) as watched:
            statistics = network.statistics(flat, samples.take(np.arange(20))[0])
            assert accuracy(network, flat, statistics, samples) == 0
            assert mean_loss(network, flat, statistics, samples) == 0
            assert right(network, flat, statistics, samples).shape == (4 * each,)
            score_range(network, samples.blocks, [flat, flat], "el2n", 0, len(samples), 300)
            features_of(network, samples.blocks, flat, 1, 200)
        waited = but_first_uses(watched)
        assert all(times == 1 for where, times in waited.items() if where.startswith("reading"))
        assert waited["scoring:features_of"] == 1
        assert set(waited) == AFTER_ALL_BATCHES


def test_an_evaluation_waits_for_its_looks(no_number: NoNumber) -> None:
    network = numberless()
    real = RealSamples(network, toy_blocks())
    stored, labels = pixels_of(8, 1, 3)[:, 0], np.arange(8) % 4
    found = []
    for steps in (2, 4):
        with no_number(AFTER_ALL_BATCHES) as watched:
            samples = synthetic_samples(network, stored, labels, 2)
            evaluate_on(
                network,
                samples,
                RECIPE,
                steps=steps,
                checkpoints=2,
                validation=real,
                test=real,
                generator=generator(),
            )
        found.append(but_first_uses(watched))
    assert found[0] == found[1]
    assert found[0]["reading:accuracy"] == 3


def test_an_expert_waits_after_an_epoch_alone(no_number: NoNumber) -> None:
    network = numberless()
    real, found = RealSamples(network, toy_blocks()), []
    for batch in (14, 21):
        recipe = Experts(epochs=2, batch=batch, augment="crop", cutmix=0.0)
        with no_number(AFTER_ALL_BATCHES, AFTER_AN_EPOCH, AT_AN_EPOCH) as watched:
            *_, last = train_expert(network, real, real, recipe, generator)
            flat = torch.zeros(last.snapshots.shape[1], device=DEVICE)
            continued(network, real, recipe, flat, [0, 1], generator())
            expert_labels(network, [flat, flat], real, TensorSamples(*real.take(np.arange(4))))
        found.append(but_first_uses(watched))
    assert found[0] == found[1]
    assert found[0]["reading:accuracy"] == 3, "at the beginning, and after each epoch"


@pytest.mark.parametrize("name", ["mtt", "datm"])
def test_a_lane_waits_at_its_end_however_many_steps_it_takes(no_number: NoNumber, name: str) -> None:
    network = numberless()
    flat = np.zeros(sum(network.layout.sizes), np.float32)
    pixels, labels = pixels_of(4, 2, 1), np.zeros((4, 2, 4), np.float32)
    state, found = SetState.at_rest(pixels, labels, -4.0), []
    for steps in (1, 3):
        config = trajectories(name, steps)
        student = Student(network, soft=True)
        with no_number(AFTER_A_LANE) as watched:
            earlier = pixels[:, :0], labels[:, :0]
            _, (gradient,) = walk_lane(student, config, (0, 0, 0), *whole(state, earlier), flat, flat)
        assert gradient.pixels.shape[1:] == SHAPE
        found.append(dict(watched.waited))
    assert found[0] == found[1]
    assert set(found[0]) == AFTER_A_LANE
