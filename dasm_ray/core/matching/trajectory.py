"""Trajectory matching: a student trained on the synthetic set should go where an expert went on real data (mtt, datm).

The student takes N plain SGD steps from an expert's snapshot; the distance of where it ends to where the expert was
some epochs later is differentiated through all N steps. Two forms:

    unrolled    autograd through the whole walk: N graphs alive at once. The reference
    adjoint     the same gradient by one step backwards at a time. With lambda = dL/dtheta after a step and
                phi = <lambda, g(theta, x, y)>, the step theta - a g gives dL/da -= phi, dL/dx -= a dphi/dx,
                dL/dy -= a dphi/dy and lambda -= a dphi/dtheta: one graph alive at a time, and every step of one
                shape, so it is compiled once. Only parameter vectors are kept, some of them recomputed; phi is
                not computed anew, since a g is how far the step went. Both g and phi are sums over images, so a CPU
                takes a batch in pieces that its caches hold

What must stay true: both give the same gradients up to rounding, and keeping fewer vectors changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dasm_ray.core.augment import augment, draw
from dasm_ray.core.derivatives import grad, grads, vjp
from dasm_ray.core.networks.compiled import maybe_compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.window import exact

KEPT_BYTES = 1 << 27
"""Memory for parameter vectors along a walk: 100 of a ConvNet-3 of width 128."""


class Plan(NamedTuple):
    """All that is drawn for a walk of N steps, so that it can be walked twice."""

    batches: Tensor
    """int64 (N, B): which synthetic images each step sees, none twice in one batch."""
    draws: Tensor
    """(N, B, DRAWS): of the augmentation, an image a row."""
    strategies: Sequence[str]
    """N strategies; where only one augmentation is applied at a time, the one chosen for each step."""


def planned(count: int, batch: int, steps: int, strategy: str, single: bool, generator: torch.Generator) -> Plan:
    """Draws a walk of ``steps`` steps over ``count`` images: shuffled passes, cut at every ``batch``.

    ``single`` picks one of the augmentations of ``strategy`` for each step, as the published codes do. What is left of
    a pass when it no longer fills a batch is dropped, so that no image stands twice in one batch.
    """
    size = min(batch, count)
    chosen: list[Tensor] = []
    while len(chosen) < steps:
        chosen.extend(torch.randperm(count, generator=generator)[: count // size * size].view(-1, size))
    parts = strategy.split("_")
    picks = torch.randint(len(parts), (steps,), generator=generator).tolist()
    draws = torch.stack([draw(size, generator) for _ in range(steps)])
    strategies = [parts[pick] for pick in picks] if single else [strategy] * steps
    return Plan(torch.stack(chosen[:steps]), draws, strategies)


class Gradients(NamedTuple):
    """The normalised distance of student and expert, and its gradients."""

    distance: Tensor  # ()
    images: Tensor  # (n, C, H, W)
    labels: Tensor  # (n, K)
    log_step: Tensor  # ()


class Student:
    """A network that is trained on the synthetic set. ``soft``: labels are logits to learn; else probabilities."""

    def __init__(self, network: Network, soft: bool) -> None:
        self.network, self.soft = network, soft
        # Derivatives of a piece of a batch, compiled if asked for.
        self._gradient: Callable[..., Tensor] = maybe_compiled(network.compile_matching, grad(self.loss), kind="walk")
        self._second: Callable[..., tuple[Tensor, ...]] = maybe_compiled(
            network.compile_matching, grads(self._along, 3), kind="back"
        )

    def loss(self, flat: Tensor, images: Tensor, labels: Tensor, batch: int) -> Tensor:
        """What ``images`` (b, C, H, W), as the network sees them, add to the mean cross-entropy of ``batch`` images."""
        targets = labels.softmax(1) if self.soft else labels
        apart: Tensor = -(targets * self.network.logits(flat, images).log_softmax(1)).sum()
        return apart / batch

    def _along(self, flat: Tensor, images: Tensor, labels: Tensor, batch: int, adjoint: Tensor) -> Tensor:
        """What a piece adds to phi."""
        return torch.dot(adjoint, grad(self.loss)(flat, images, labels, batch))

    def _pieces(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.network.piece(len(images))
        return zip(torch.split(images, size), torch.split(labels, size), strict=True)

    def forward(self, flat: Tensor, images: Tensor, labels: Tensor, step: Tensor) -> Tensor:
        """One student step: parameters (P,) to parameters."""
        pieces = self._pieces(images, labels)
        return flat - step * sum(self._gradient(flat, *piece, len(images)) for piece in pieces)

    def backward(
        self, flat: Tensor, images: Tensor, labels: Tensor, step: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the adjoint: lambda before the step, and what the step adds to dL/dx and dL/dy."""
        pieces = self._pieces(images, labels)
        found = [self._second(flat, *piece, len(images), adjoint) for piece in pieces]
        by_flat, by_images, by_labels = zip(*found, strict=True)
        return adjoint - step * sum(by_flat), -step * torch.cat(by_images), -step * torch.cat(by_labels)


def unrolled(
    student: Student,
    plan: Plan,
    images: Tensor,
    labels: Tensor,
    log_step: Tensor,
    start: Tensor,
    target: Tensor,
    depth: float = 0.0,
) -> Gradients:
    """The reference: autograd through all steps, eagerly. Arguments as in ``adjoint``."""
    first = left_out(depth, len(start))
    leaves = [tensor.detach().requires_grad_() for tensor in (images, labels, log_step)]
    images, labels, log_step = leaves
    flat = start.detach().requires_grad_()
    for chosen, draws, strategy in zip(*plan, strict=True):
        seen = augment(images[chosen], draws, strategy)
        loss = student.loss(flat, seen, labels[chosen], len(chosen))
        (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
        flat = flat - log_step.exp() * gradient
    distance = (flat - target)[first:].square().sum() / (start - target)[first:].square().sum()
    found = torch.autograd.grad(distance, leaves, allow_unused=True)
    return Gradients(
        distance.detach(),
        *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)),
    )


def adjoint(
    student: Student,
    plan: Plan,
    images: Tensor,
    labels: Tensor,
    log_step: Tensor,
    start: Tensor,
    target: Tensor,
    kept: int | None = None,
    depth: float = 0.0,
) -> Gradients:
    """The distance of a student to an expert after the steps of ``plan``, and its gradients.

    images (n, C, H, W) as the network sees them, before augmentation; labels (n, K); log_step (): logarithm of the
    student's learning rate; start, target (P,): the expert's snapshots t and t+M. ``kept`` bounds the parameter
    vectors that are alive at once (unset: as many as KEPT_BYTES hold); the steps between two are taken once more.
    ``depth``: the first share of the parameters, which the distance leaves out.
    """
    step = log_step.exp()
    steps = len(plan.strategies)
    spacing = spacing_for(steps, kept or KEPT_BYTES // (start.numel() * start.element_size()))

    def batch(t: int) -> tuple[Tensor, Tensor]:
        chosen = plan.batches[t]
        return augment(images[chosen], plan.draws[t], plan.strategies[t]), labels[chosen]

    kept_flats, flat = [], start
    for t in range(steps):
        if t % spacing == 0:
            kept_flats.append(flat)
        flat = student.forward(flat, *batch(t), step)
    first = left_out(depth, len(start))
    length = (start - target)[first:].square().sum()
    distance = (flat - target)[first:].square().sum() / length
    multiplier = 2 * (flat - target) / length
    multiplier[:first] = 0

    by_images, by_labels, by_log_step = torch.zeros_like(images), torch.zeros_like(labels), torch.zeros_like(step)
    for begin in reversed(range(0, steps, spacing)):
        flats = [kept_flats.pop()]
        for t in range(begin, min(begin + spacing, steps) - 1):
            flats.append(student.forward(flats[-1], *batch(t), step))
        for t in reversed(range(begin, begin + len(flats))):
            before = flats.pop()
            by_log_step -= (multiplier * (before - flat)).sum()  # a dL/da = -a phi
            chosen, draws, strategy = plan.batches[t], plan.draws[t], plan.strategies[t]
            seen, pull_back = vjp(partial(augment, draws=draws, strategy=strategy), images[chosen])
            multiplier, slope, by_label = student.backward(before, seen, labels[chosen], step, multiplier)
            by_images.index_add_(0, chosen, pull_back(slope))
            by_labels.index_add_(0, chosen, by_label)
            flat = before
    return Gradients(distance, by_images, by_labels, by_log_step)


def left_out(depth: float, parameters: int) -> int:
    """How many parameters, the first, a distance of trajectories leaves out."""
    return math.floor(exact(depth) * parameters)


def spacing_for(steps: int, kept: int) -> int:
    """The least distance c of kept parameter vectors for which the kept ones and the c between two fit in ``kept``.

    If no distance is small enough, the one that needs the least memory, about the root of ``steps``.
    """
    if steps <= max(kept, 1):
        return 1
    need = {c: math.ceil(steps / c) + c for c in range(2, steps + 1)}
    return next((c for c, vectors in need.items() if vectors <= kept), min(need, key=lambda c: need[c]))
