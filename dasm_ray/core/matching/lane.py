"""One lane of a round of trajectory matching: a student, an expert and the whole synthetic set; and the set's own step.

What must stay true: a lane follows from (run seed, segment, round, lane) and its inputs, and the set moves by the mean
of the lanes in their order, so that who works on which lane changes no byte; no number that is none gets into a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.device import sent
from dasm_ray.core.matching.trajectory import Student, adjoint, planned
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import NonFinite

Array = NDArray[np.float32]

FAR = 1000.0
"""A normalised pixel or a logit beyond this is no longer near anything that a network is made for."""


class SetState(NamedTuple):
    """A segment on its way, and the velocity of each part, of SGD with momentum. A file holds them by these names."""

    pixels: Array
    """(K, m, C, H, W) normalised."""
    labels: Array
    """(K, m, K) logits or probabilities."""
    log_step: Array
    """(): logarithm of the student's rate."""
    velocity_pixels: Array
    velocity_labels: Array
    velocity_log_step: Array

    @classmethod
    def at_rest(cls, pixels: Array, labels: Array, log_step: float) -> SetState:
        """A state before its first step."""
        parts = (pixels, labels, np.array(log_step, np.float32))
        return cls(*parts, *(np.zeros_like(part) for part in parts))


class SetGradient(NamedTuple):
    """What one lane says of the set: the gradient by each part of its state that moves."""

    pixels: Array
    labels: Array
    log_step: Array


def draw_start(config: RunConfig, segment: int, round: int, lane: int, experts: int, shift: int) -> tuple[int, int]:
    """The expert and the start epoch that a lane draws; ``shift`` moves the segment's range of epochs later."""
    first, last = start_epochs(config, segment, round, shift)
    who, when = torch.rand(2, generator=torch_generator(config.seed, "start", segment, round, lane)).tolist()
    return int(who * experts), first + int(when * (last - first))


def draw_from_bank(config: RunConfig, segment: int, round: int, lane: int, members: int) -> tuple[int, int] | None:
    """The member of the bank and the start epoch that a lane draws; None where its student starts on an expert.

    With probability bank_share it is a member, and any epoch before the last start epoch of the segment.
    """
    choice, who, when = torch.rand(3, generator=torch_generator(config.seed, "bank", segment, round, lane)).tolist()
    if not members or choice >= config.bank_share_of(segment):
        return None
    _, _, last = config.starts_of(segment)
    return int(who * members), int(when * last)


def start_epochs(config: RunConfig, segment: int, round: int, shift: int) -> tuple[int, int]:
    """The start epochs [first, last) of a round: the range of the recipe as far as it has widened, shifted and cut off
    where no expert reaches M epochs further."""
    first, opened, last = config.starts_of(segment)
    upper = opened + (last - opened) * min(1.0, round / config.trajectory.expansion)
    end = config.experts.epochs - config.trajectory.epochs + 1
    return min(first + shift, end - 1), max(min(int(upper) + shift, end), min(first + shift, end - 1) + 1)


def walk_lane(
    student: Student,
    config: RunConfig,
    where: tuple[int, int, int],
    state: SetState,
    earlier: tuple[Array, Array],
    start: Array,
    target: Array,
) -> tuple[float, SetGradient]:
    """The distance of one student to one expert, and its gradient.

    ``where``: segment, round, lane. ``earlier``: pixels (K, n, C, H, W) and labels (K, n, K) of the frozen segments
    that stand in the student's batches (n may be 0). ``start``, ``target`` (P,): the expert's snapshots t and t+M.
    NonFinite where the distance or its gradient is no number.
    """
    device = student.network.device
    trajectory = config.trajectory
    joined = [np.concatenate(pair, axis=1) for pair in zip(earlier, state[:2], strict=True)]
    (classes, many), own = joined[0].shape[:2], state.pixels.shape[1]
    images, labels = (sent(torch.tensor(array.reshape(classes * many, *array.shape[2:])), device) for array in joined)
    generator = torch_generator(config.seed, "lane", *where)
    plan = planned(len(images), trajectory.batch, trajectory.steps, config.augment, trajectory.single, generator)
    plan = plan._replace(batches=sent(plan.batches, device), draws=sent(plan.draws, device))
    log_step, begin, end = (sent(torch.tensor(array), device) for array in (state.log_step, start, target))
    found = adjoint(
        student,
        plan,
        images,
        labels,
        log_step,
        begin,
        end,
        depth=config.depth_of(where[0]),
    )
    by_images, by_labels = (
        gradient.cpu().numpy().reshape(array.shape)[:, many - own :]
        for gradient, array in zip((found.images, found.labels), joined, strict=True)
    )
    by_log_step = found.log_step.cpu().numpy()
    distance = float(found.distance)
    gradient = SetGradient(np.ascontiguousarray(by_images), np.ascontiguousarray(by_labels), by_log_step)
    if not (np.isfinite(distance) and _are_finite(*gradient)):
        raise _exploded(config, where, state, distance)
    return distance, gradient


def _exploded(config: RunConfig, where: tuple[int, int, int], state: SetState, distance: float) -> NonFinite:
    """The error for a student that exploded: the key is that of the part of the set that has left the usual."""
    segment, round, lane = where
    trajectory, rate = config.trajectory, float(np.exp(state.log_step))
    signs = {
        f"trajectory.lr_step (now {trajectory.lr_step:g})": rate > 2 * trajectory.step_size,
        f"trajectory.lr_img (now {trajectory.lr_img:g})": np.abs(state.pixels).max() > FAR,
        f"trajectory.lr_label (now {trajectory.lr_label:g})": np.abs(state.labels).max() > FAR,
    }
    keys = [key for key, is_seen in signs.items() if is_seen]
    what = f"its distance to the expert is {distance:g}" + ", but its gradient is not finite" * bool(
        np.isfinite(distance)
    )
    return NonFinite(
        f"segment {segment + 1}, round {round}, lane {lane}: a student at rate {rate:g} exploded ({what}); the "
        f"last good state is kept; lower "
        f"{' or '.join(keys or [f'trajectory.step_size (now {trajectory.step_size:g})'])} in a new run"
    )


@np.errstate(over="ignore", invalid="ignore")  # what comes of it is checked, and said once
def moved(
    config: RunConfig,
    where: tuple[int, int],
    state: SetState,
    distances: Sequence[float],
    gradients: Sequence[SetGradient],
) -> SetState:
    """The state after one step of SGD by the mean gradient of the lanes that are within the threshold.

    Without any such lane the state stays what it is, velocities included. NonFinite where the step leads to a number
    that is none; ``where`` it was: segment, round.
    """
    trajectory, momentum = config.trajectory, config.matcher.momentum
    rates = (trajectory.lr_img, trajectory.lr_label * config.learns_labels, trajectory.lr_step)
    momenta = (momentum, trajectory.label_momentum, momentum)
    used = [g for distance, g in zip(distances, gradients, strict=True) if distance <= trajectory.threshold]
    if not used:
        return state
    values, velocities = list(state[:3]), list(state[3:])
    for place, (rate, kept) in enumerate(zip(rates, momenta, strict=True)):
        if rate == 0:
            continue
        mean = np.sum([g[place] for g in used], axis=0, dtype=np.float32) / np.float32(len(used))
        velocity = np.float32(kept) * velocities[place] + mean
        velocities[place] = np.asarray(velocity, np.float32)
        values[place] = np.asarray(values[place] - np.float32(rate) * velocity, np.float32)
    after = SetState(*values, *velocities)
    _check_moved(config, where, after)
    return after


def _are_finite(*arrays: NDArray[np.floating]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _check_moved(config: RunConfig, where: tuple[int, int], after: SetState) -> None:
    """NonFinite, naming the rate of the first part that is no number, or a student's rate of 0 or infinity."""
    rate = np.exp(after.log_step)
    good = {
        "lr_img": _are_finite(after.pixels, after.velocity_pixels),
        "lr_label": _are_finite(after.labels, after.velocity_labels),
        "lr_step": _are_finite(after.log_step, after.velocity_log_step, rate) and rate > 0,
    }
    for key, is_good in good.items():
        if not is_good:
            segment, round = where
            raise NonFinite(
                f"segment {segment + 1}, step of round {round}: the step leads to numbers that are not finite; the "
                f"last good state is kept; lower trajectory.{key} (now {getattr(config.trajectory, key):g}) in a new "
                f"run"
            )


def shift_of(expert_losses: Sequence[Sequence[float]], probe_loss: float) -> int:
    """The first epoch at which experts, on average, know the training set as well as a probe does; else the last."""
    mean = np.mean(np.asarray(expert_losses, np.float64), axis=0)
    reached = np.flatnonzero(mean <= probe_loss)
    return int(reached[0]) if len(reached) else len(mean) - 1


def stalled(expert_losses: Sequence[Sequence[float]], epochs: int) -> list[tuple[int, int]]:
    """(expert, start epoch) of every stretch of ``epochs`` epochs over which an expert's own loss does not fall.

    Matching such a stretch teaches nothing, a known cause of failure.
    """
    return [
        (expert, start)
        for expert, losses in enumerate(expert_losses)
        for start in range(len(losses) - epochs)
        if losses[start + epochs] >= losses[start]
    ]
