"""Several network states that a group is matched at side by side, each in a lane, and the step by their mean gradient.

A matching step takes as many lanes as `matcher.lanes` says. All see the group as it stands and the same slots of it;
each has a network, real images and augmentations of its own, and gives the gradient of its distance by those slots.
The group then moves once, by the mean. What must stay true: a lane follows from (run seed, segment, group, round,
network state, step, lane) and its inputs, and lanes are added up in their order, so that who works on which changes no
byte; no number that is none gets into a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.device import sent
from dasm_ray.core.matching.round import Assignment, Loop, Matching, RoundInputs, pixel_rate, slots_a_step
from dasm_ray.core.networks.training import all_finite
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import NonFinite

Array = NDArray[np.float32]


class Moment(NamedTuple):
    """Where a round stands: at which of its network states, and at which matching step of that, both from 0."""

    state: int
    step: int

    def after(self, config: RunConfig) -> Moment | None:
        """The next one; None at the end of the round."""
        if self.step + 1 < config.matcher.steps:
            return Moment(self.state, self.step + 1)
        return Moment(self.state + 1, 0) if self.state + 1 < config.matcher.networks else None


class InLane(NamedTuple):
    """What one lane makes of a group."""

    distance: float
    """Over the classes of the group, as a round without lanes has it."""
    slopes: Array
    """(G, s, C, H, W): the gradient of each class's distance by the slots that move."""
    flat: Array | None
    """(P,): the network, where it is trained on before the next step; else None."""


def match_in_lane(
    matching: Matching,
    config: RunConfig,
    where: Assignment,
    at: Moment,
    lane: int,
    inputs: RoundInputs,
    pixels: Array,
    before: Array | None = None,
) -> InLane:
    """One lane of a matching step of a group as it stands, ``pixels`` (G, m, C, H, W).

    ``before`` (P,): the lane's network at the step before, where networks are trained between two steps. NonFinite
    where the distance or its gradient is no number.
    """
    loop = Loop(matching, config, where, inputs, pixels, np.zeros_like(pixels))
    chosen = torch.from_numpy(slots_of(config, where, at, pixels.shape[1]))
    flat, anchors = _network(loop, at, lane, before)
    generator = _generator(config, "match", where, at, lane)
    began_in_network = loop.overflows(flat)
    distances, slopes = [], []
    for places, anchor in zip(loop.together, anchors, strict=True):
        which = loop.which(places, loop.as_taken(chosen[places]))
        stepped = loop.stepped(flat, places, which, anchor, generator)
        distances.append(stepped.distance)
        slopes.append(stepped.velocity)  # from rest: the gradient itself
    distance = torch.stack(distances).mean()
    found = slopes[0] if matching.at_once else torch.stack(slopes)
    if not all_finite(distance, found):
        raise loop.exploded(f"network state {at.state}, lane {lane}", bool(began_in_network))
    goes_on = loop.moves and at.step + 1 < config.matcher.steps
    return InLane(float(distance), found.cpu().numpy(), flat.cpu().numpy() if goes_on else None)


def _network(
    loop: Loop, at: Moment, lane: int, before: Array | None
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor]]]:
    """A lane's network, and what stays fixed for each part of the group while it is the same.

    One that is not trained between steps is found again by what was drawn before the first of them.
    """
    begins = at if loop.moves else at._replace(step=0)
    generator = _generator(loop.config, "network", loop.where, begins, lane)
    if begins.step == 0:
        flat = loop.start(generator)
    else:
        assert before is not None, "a network that is trained on between two steps comes from the step before"
        flat = loop.trained_on(sent(torch.tensor(before), loop.network.device), generator)
    return flat, [loop.anchor(flat, places, generator) for places in loop.together]


def _generator(config: RunConfig, what: str, where: Assignment, at: Moment, lane: int) -> torch.Generator:
    return torch_generator(config.seed, "side by side", what, where.segment, where.group, where.round, *at, lane)


def slots_of(config: RunConfig, where: Assignment, at: Moment, many: int) -> NDArray[np.int64]:
    """Which of ``many`` slots of each class of a group move, in every lane alike: (G, s)."""
    generator = torch_generator(config.seed, "slots", where.segment, where.group, where.round, *at)
    count = min(many, slots_a_step(config))
    drawn = [
        torch.randperm(many, generator=generator)[:count].sort().values if count < many else torch.arange(many)
        for _ in where.classes
    ]
    return torch.stack(drawn).numpy()


@np.errstate(over="ignore", invalid="ignore")  # what comes of it is checked, and said once
def moved_by(
    config: RunConfig, where: Assignment, at: Moment, pixels: Array, velocity: Array, slopes: Sequence[Array]
) -> tuple[Array, Array]:
    """Pixels and velocity (G, m, C, H, W) anew, after one step of SGD by the mean of the lanes' ``slopes``.

    After the last step at a network state pixels are cut off to [0, 1]. NonFinite where the step leads to a number that
    is none.
    """
    total = slopes[0].copy()
    for slope in slopes[1:]:
        total += slope
    which = np.arange(len(pixels))[:, None], slots_of(config, where, at, pixels.shape[1])
    pixels, velocity = pixels.copy(), velocity.copy()
    velocity[which] = np.float32(config.matcher.momentum) * velocity[which] + total / np.float32(len(slopes))
    pixels[which] -= np.float32(pixel_rate(config, pixels.shape[3], where.segment)) * velocity[which]
    if not (np.isfinite(pixels).all() and np.isfinite(velocity).all()):
        raise NonFinite(
            f"segment {where.segment + 1}, group {where.group}, round {where.round}, network state {at.state}: the "
            f"step leads to a pixel that is no longer finite; the last good state is kept; lower matcher.lr_img (now "
            f"{config.matcher.lr_img:g}) in a new run"
        )
    return np.clip(pixels, 0, 1) if at.step + 1 == config.matcher.steps else pixels, velocity
