"""One lane of a round of trajectory matching: a student, an expert and the synthetic set; and the set's own step.

A lane reads what its plan draws and says of that alone. The set moves shard by shard, each as if it were the whole.
What must stay true: a lane follows from (run seed, segment, round, lane) and its inputs, and the set moves by the mean
of the lanes in their order, so that who works on which lane changes no byte; no number that is none gets into a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.device import sent
from dasm_ray.core.matching.setstate import Array, Cut, Read, RowGradient, SetGradient, SetState, SetValues
from dasm_ray.core.matching.trajectory import Plan, Student, adjoint, planned
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import NonFinite

FAR = 1000.0
"""A normalised pixel or a logit beyond this is no longer near anything that a network is made for."""


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
    cut: Cut,
    read: Read,
    start: Array,
    target: Array,
) -> tuple[float, list[RowGradient]]:
    """The distance of one student to one expert, and what it says of each shard.

    ``where``: segment, round, lane. ``read`` is asked for the shards of which the student sees an image. ``start``,
    ``target`` (P,): the expert's snapshots t and t+M. NonFinite where the distance or its gradient is no number.
    """
    device = student.network.device
    plan, rows = drawn(config, where, cut)
    values, parts = _seen(cut, read, rows)
    images, labels = (sent(torch.from_numpy(np.concatenate(each)), device) for each in zip(*parts, strict=True))
    plan = plan._replace(batches=sent(plan.batches, device), draws=sent(plan.draws, device))
    log_step, begin, end = (sent(torch.tensor(array), device) for array in (values.log_step, start, target))
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
    by_images, by_labels, by_log_step = (part.cpu().numpy() for part in found[1:])
    distance = float(found.distance)
    gradients = list(_by_shard(cut, rows, by_images, by_labels, by_log_step))
    if not (np.isfinite(distance) and all(_are_finite(*each[1:]) for each in gradients)):
        raise _exploded(config, where, parts, float(np.exp(values.log_step)), distance)
    return distance, gradients


def drawn(config: RunConfig, where: tuple[int, int, int], cut: Cut) -> tuple[Plan, NDArray[np.int64]]:
    """The plan of a lane, and the images that it draws (R,), in ascending order, by which its batches count."""
    trajectory, generator = config.trajectory, torch_generator(config.seed, "lane", *where)
    count = int(cut.rows_at_edges[-1])
    plan = planned(count, trajectory.batch, trajectory.steps, config.augment, trajectory.single, generator)
    rows, places = torch.unique(plan.batches, return_inverse=True)
    return plan._replace(batches=places), rows.numpy()


def _seen(cut: Cut, read: Read, rows: NDArray[np.int64]) -> tuple[SetValues, list[tuple[Array, Array]]]:
    """What the last shard that is read holds, and of each shard images and labels that are among ``rows``."""
    parts = []
    for shard, (places, first) in enumerate(_of_shards(cut, rows)):
        if not len(places):
            continue
        values, earlier = read(shard)
        label, slot = np.divmod(places - first, cut.old + cut.own)
        is_own = slot >= cut.old
        part = []
        for old, own in zip(earlier, values[:2], strict=True):
            taken = np.empty((len(places), *own.shape[2:]), np.float32)
            taken[is_own] = own[label[is_own], slot[is_own] - cut.old]
            taken[~is_own] = old[label[~is_own], slot[~is_own]]
            part.append(taken)
        parts.append((part[0], part[1]))
    return values, parts


def _of_shards(cut: Cut, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The ``rows`` of each shard, and the first that it has."""
    edges = cut.rows_at_edges
    return zip(np.split(rows, np.searchsorted(rows, edges[1:-1])), edges[:-1].tolist(), strict=True)


def _by_shard(
    cut: Cut, rows: NDArray[np.int64], by_images: Array, by_labels: Array, by_log_step: Array
) -> Iterator[RowGradient]:
    """The gradients of all ``rows``, shard by shard, of those of the segment itself."""
    begin = 0
    for places, first in _of_shards(cut, rows):
        label, slot = np.divmod(places - first, cut.old + cut.own)
        is_own = slot >= cut.old
        here = slice(begin, begin + len(places))
        begin = here.stop
        own = label[is_own] * cut.own + slot[is_own] - cut.old
        yield RowGradient(own, by_images[here][is_own], by_labels[here][is_own], by_log_step)


def _exploded(
    config: RunConfig, where: tuple[int, int, int], seen: Sequence[tuple[Array, Array]], rate: float, distance: float
) -> NonFinite:
    """The error for a student that exploded: the key is that of the part of the set that has left the usual."""
    segment, round, lane = where
    trajectory = config.trajectory
    signs = {
        f"trajectory.lr_step (now {trajectory.lr_step:g})": rate > 2 * trajectory.step_size,
        f"trajectory.lr_img (now {trajectory.lr_img:g})": max(np.abs(pixels).max() for pixels, _ in seen) > FAR,
        f"trajectory.lr_label (now {trajectory.lr_label:g})": max(np.abs(labels).max() for _, labels in seen) > FAR,
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
