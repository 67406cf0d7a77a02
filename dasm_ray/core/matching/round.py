"""Distilling one group of one segment for one round: the loop around the matching step.

The network states come from one of four walks: snapshots of experts, fresh networks (dm), a network trained on real
data as it goes (idc), or one trained on the synthetic set as it goes (dc, dsa, cafe). What must stay true: a round is a
function of its inputs and of (run seed, segment, group, round), so that it gives the same bytes on any worker, at any
time; it gives finite numbers or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import RunConfig, TrainRecipe
from dasm_ray.core.augment import draw
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.device import numbers, sent
from dasm_ray.core.matching.batch import draw_from
from dasm_ray.core.matching.distribution import DistributionMatching
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.step import StepInputs, Stepped
from dasm_ray.core.networks.evaluate import synthetic_samples
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import perturb
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import all_finite, train
from dasm_ray.core.seed import torch_generator
from dasm_ray.core.window import exact
from dasm_ray.errors import NonFinite

Windows = Sequence[Sequence[NDArray[np.int64]]]
"""``windows[j][c]``: within-class indices that segment j may see of class c."""

Which = tuple[int | Tensor, Tensor]
"""An index of pixels (G, m, C, H, W): the place of one class or places (k, 1), and slots."""

OfClasses = Sequence[NDArray[np.int64]] | Mapping[int, NDArray[np.int64]]
"""Within-class indices or numbers by class; a mapping where only the classes of the group are there."""

INNER = TrainRecipe(epochs=1, batch=64, momentum=0.9, weight_decay=5e-4, augment="color_crop", cutmix=0.5)
"""How IDC trains the network inside its loop; the rate is matcher.inner_lr."""


TOO_LARGE = 1e6
"""A parameter beyond which a network's answers overflow sooner or later; trained ones are below 100."""


@dataclass(frozen=True)
class Assignment:
    """Which round of which group of which segment (all from 0), and the classes of the group."""

    segment: int
    group: int
    round: int
    classes: tuple[int, ...]


class States(Protocol):
    """States of a network (S, P), each of which may be read when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class RoundInputs:
    """What a round reads and never changes.

    ``windows`` of the segments up to this one; ``earlier`` float32 (K, n, C, H, W): all classes' pixels of the frozen
    segments (n may be 0); ``current`` float32 (K, m, C, H, W): this segment as it stood before the round, for the walks
    that train on the synthetic set; ``experts``: trajectories (E+1, P); ``probes``: parameters (P,);
    ``strata``: of each class of the group, which stratum each of its images is in (n_c,), where batches are stratified;
    ``bank``: snapshots (S, P) of networks that some states are drawn from (none: all are as the base matcher's);
    ``frontier``: of each class of the group, within-class indices that a share of a real batch is drawn from.
    """

    blocks: Blocks
    windows: Windows
    earlier: NDArray[np.float32]
    current: NDArray[np.float32]
    experts: Sequence[States]
    probes: Sequence[NDArray[np.float32]]
    strata: OfClasses = ()
    bank: Sequence[States] = ()
    frontier: OfClasses = ()


def pixel_rate(config: RunConfig, size: int, segment: int = 0) -> float:
    """The step on the pixels of a segment: lr_img, scaled by images per class and by image size as in IDC."""
    if not config.matcher.scale_lr:
        return config.matcher.lr_img
    images = config.size_up_to(segment) if config.matcher.union_rate else config.size_of(segment)
    base = 28 if size == 28 else 224 if size > 128 else 32
    return config.matcher.lr_img * (images / 10) * (size / base) ** 2


def inner_recipe(config: RunConfig) -> TrainRecipe:
    """How the network inside the loop is trained: on synthetic images with the matching augmentation alone."""
    of_set = {"augment": config.augment, "cutmix": 0.0} if config.states == "synthetic" else {}
    return INNER.model_copy(update={"lr": config.matcher.inner_lr, **of_set})


def slots_a_step(config: RunConfig) -> int:
    """The most stored images of one class that a matching step moves."""
    return max(1, config.matcher.batch_syn // config.synthetic.factor**2)


class Matching(Protocol):
    """A family's matching step for one network, as the loop of a round uses it."""

    network: Network
    at_once: bool
    """Whether a step takes all classes of a group, a dimension in front of all shapes, or one class."""
    step: Callable[[StepInputs], Stepped]
    mean: Callable[..., Tensor]
    """(flat, stored pixels, label, draws) to what pixels have on the synthetic side: a gradient, or mean features."""

    def nothing(self, flat: Tensor) -> Tensor:
        """What earlier segments add to the synthetic side where a segment stands alone."""
        ...


def _gradients(network: Network, config: RunConfig, segment: int) -> Matching:
    assert config.metric is not None
    factor, momentum = config.synthetic.factor, config.matcher.momentum
    depth, relative, micro = config.depth_of(segment), config.matcher.relative, config.matcher.micro
    return GradientMatching(
        network, config.base.compared, config.metric, config.augment, factor, momentum, depth, relative, micro
    )


def _distributions(network: Network, config: RunConfig, segment: int) -> Matching:
    factor, momentum = config.synthetic.factor, config.matcher.momentum
    deviation = config.matcher.deviation and config.base.compared == "hidden"
    return DistributionMatching(
        *(network, config.base.compared, config.augment, factor, momentum),
        deviation=deviation,
        micro=config.matcher.micro,
    )


FAMILIES: dict[str, Callable[[Network, RunConfig, int], Matching]] = {
    "gradient": _gradients,
    "distribution": _distributions,
}
"""The families whose rounds are distilled here. Trajectories have rounds of their own, see ``core.matching.lane``."""


def matching_of(network: Network, config: RunConfig, segment: int = 0) -> Matching:
    """The matching step that a configuration asks for at a segment."""
    return FAMILIES[config.base.family](network, config, segment)


def distil_round(
    matching: Matching,
    config: RunConfig,
    where: Assignment,
    inputs: RoundInputs,
    pixels: NDArray[np.float32],
    velocity: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float]]:
    """One round from ``pixels`` and ``velocity`` (classes of the group, m, C, H, W).

    Returns both anew, and the mean matching distance at each network state. NonFinite at the first network state where
    that, a pixel or a velocity is no number.
    """
    loop = Loop(matching, config, where, inputs, pixels, velocity)
    distances = [loop.match_at_one_network(outer) for outer in range(config.matcher.networks)]
    return loop.pixels.cpu().numpy(), loop.velocity.cpu().numpy(), distances


class Loop:
    """The state of a round: pixels and velocity (G, m, C, H, W) on the device."""

    def __init__(
        self,
        matching: Matching,
        config: RunConfig,
        where: Assignment,
        inputs: RoundInputs,
        pixels: NDArray[np.float32],
        velocity: NDArray[np.float32],
    ) -> None:
        self.matching, self.config, self.where, self.inputs = matching, config, where, inputs
        self.network = matching.network
        self.pixels, self.velocity = self._sent(torch.tensor(pixels)), self._sent(torch.tensor(velocity))
        self.classes = self._sent(torch.tensor(where.classes))
        self.labels = [self._sent(torch.tensor(label)) for label in where.classes]
        self.frozen: Tensor | None = None
        of_union = config.size_of(where.segment) / config.size_up_to(where.segment)
        share = of_union if self.is_residual else 1.0
        rate = pixel_rate(config, self.network.shape[1], where.segment)
        self.settings = numbers([rate, share], self.network.device)
        self.slots = slots_a_step(config)

    def _sent(self, tensor: Tensor) -> Tensor:
        return sent(tensor, self.network.device)

    @property
    def is_residual(self) -> bool:
        """Whether earlier segments take part in what is matched."""
        return self.config.matcher.context != "alone" and self.inputs.earlier.shape[1] > 0

    @property
    def is_union(self) -> bool:
        """Whether all earlier images take part, so that the whole set is held against this segment's own target."""
        return self.config.matcher.context == "union"

    def match_at_one_network(self, outer: int) -> float:
        """All matching steps of one outer iteration; the mean distance."""
        where = self.where
        generator = torch_generator(self.config.seed, "distil", where.segment, where.group, where.round, outer)
        self.pixels.clamp_(0, 1)
        total = torch.zeros((), device=self.network.device)
        began_in_network = torch.zeros((), dtype=torch.bool, device=self.network.device)
        steps = 0
        for flat, is_new in self._walk(generator):
            if is_new:
                began_in_network |= self.overflows(flat)
                anchors = [self.anchor(flat, places, generator) for places in self.together]
            for places, anchor in zip(self.together, anchors, strict=True):
                total += self._match(flat, places, anchor, generator)
                steps += 1
        self.pixels.clamp_(0, 1)
        if not all_finite(total, self.pixels, self.velocity):
            raise self.exploded(f"network state {outer}", bool(began_in_network))
        return float(total) / steps

    def overflows(self, flat: Tensor) -> Tensor:
        """Whether numbers that are none begin in a network state (P,), not in pixels: a scalar."""
        return ~(flat.abs().max() < TOO_LARGE) & self.pixels.isfinite().all()

    def exploded(self, state: str, began_in_network: bool) -> NonFinite:
        """The error for numbers that are none at a network ``state``: they began in that network or outside."""
        where, matcher = self.where, self.config.matcher
        key, what = "lr_img", "the matching distance or a pixel"
        if began_in_network:
            key = "inner_lr" if self.moves else "perturb"
            what = "the network in the loop"
        return NonFinite(
            f"segment {where.segment + 1}, group {where.group}, round {where.round}, {state}: {what} "
            f"is no longer finite; the last good state is kept; lower matcher.{key} (now {getattr(matcher, key):g}) in "
            f"a new run"
        )

    @property
    def together(self) -> list[list[int]]:
        """The classes (by their place in the group) of each matching step: one, or all of the group."""
        places = list(range(len(self.where.classes)))
        return [places] if self.matching.at_once else [[place] for place in places]

    # --- network states ------------------------------------------------------------------------------------------

    def _walk(self, generator: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
        """The states to match at, each with whether it differs from the one before."""
        matcher = self.config.matcher
        start = self.start(generator)
        if not self.moves:
            for step in range(matcher.steps):
                yield start, step == 0
            return
        flat = start
        for step in range(matcher.steps):
            yield flat, True
            if step + 1 < matcher.steps:
                flat = self.trained_on(flat, generator)

    @property
    def moves(self) -> bool:
        """Whether the network is trained between two matching steps."""
        return self.config.states in ("real", "synthetic")

    def start(self, generator: torch.Generator) -> Tensor:
        """A probe or a state of the bank with their probabilities; else an expert snapshot, or a fresh initialisation.

        Snapshots of the bank and of experts are perturbed.
        """
        matcher, inputs = self.config.matcher, self.inputs
        choice, who, when = torch.rand(3, generator=generator).tolist()
        probe_share = self.config.probe_share_of(self.where.segment)
        if choice < probe_share:
            return self._sent(torch.tensor(inputs.probes[int(who * len(inputs.probes))]))
        bank_share = self.config.bank_share_of(self.where.segment)
        if inputs.bank and choice < probe_share + bank_share:
            snapshots = inputs.bank[int(who * len(inputs.bank))]
            snapshot = snapshots[int(when * len(snapshots))]
        elif self.config.states == "experts":
            first, last = self.config.snapshots_of(self.where.segment)
            snapshot = inputs.experts[int(who * len(inputs.experts))][first + int(when * (last - first))]
        else:
            return self.network.initial(generator)
        flat = self._sent(torch.tensor(snapshot))
        return perturb(flat, self.network.layout, matcher.perturb, generator)

    def trained_on(self, flat: Tensor, generator: torch.Generator) -> Tensor:
        """The network after a little training between two matching steps."""
        matcher = self.config.matcher
        recipe = inner_recipe(self.config)
        if self.config.states == "real":
            count = min(matcher.inner_samples, len(self.inputs.blocks))
            chosen = torch.randperm(len(self.inputs.blocks), generator=generator)[:count].numpy()
            samples = RealSamples(self.network, self.inputs.blocks, chosen)
            steps = max(1, count // min(recipe.batch, count))
            trained = train(self.network, samples, recipe, steps=steps, generator=generator, flat=flat)
        else:
            present = self._whole_set()
            labels = np.repeat(np.arange(len(present)), present.shape[1])
            synthetic = synthetic_samples(self.network, present.flatten(0, 1), labels, self.config.synthetic.factor)
            trained = train(self.network, synthetic, recipe, steps=matcher.inner_steps, generator=generator, flat=flat)
        for state in trained:
            flat = state.flat
        return flat

    def _whole_set(self) -> Tensor:
        """All classes' pixels (K, n+m, C, H, W): frozen segments, this one as it stood, and this group as it stands."""
        if self.frozen is None:
            both = np.concatenate([self.inputs.earlier, self.inputs.current], axis=1)
            self.frozen = self._sent(torch.from_numpy(both))
        present = self.frozen.clone()
        present[self.classes, self.inputs.earlier.shape[1] :] = self.pixels.clamp(0, 1)
        return present

    # --- some classes at one state -------------------------------------------------------------------------------

    def anchor(self, flat: Tensor, places: list[int], generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """What stays fixed at one network state: one draw, and the earlier segments' part of the match.

        The part is computed once per state; keeping its draw for every step there keeps all batches siamese. Under
        `residual` it is estimated from as many slots as a batch holds; under `union` it is that of all, a batch at a
        time.
        """
        if not self.is_residual:
            return None, self.matching.nothing(flat)
        stored = self.inputs.earlier[[self.where.classes[place] for place in places]]
        count = stored.shape[1]
        if self.is_union:
            chunks = torch.split(torch.arange(count), self.slots)
            draws = self._sent(draw(1, generator))
        else:
            chunks = (torch.randperm(count, generator=generator)[: self.slots].sort().values,)
            draws = self._sent(draw(1, generator))
        means = [self._mean_of(stored[:, chunk.numpy()], flat, places, draws) for chunk in chunks]
        if len(means) == 1:
            return draws, (1 - self.settings[1]) * means[0]
        part = sum(len(chunk) / count * mean for chunk, mean in zip(chunks, means, strict=True))
        return draws, (1 - self.settings[1]) * part

    def _mean_of(self, stored: NDArray[np.float32], flat: Tensor, places: list[int], draws: Tensor) -> Tensor:
        """What ``stored`` pixels (classes of ``places``, n, C, H, W) have on the synthetic side."""
        return self.matching.mean(flat, self.as_taken(self._sent(torch.from_numpy(stored))), self._label(places), draws)

    def _match(
        self, flat: Tensor, places: list[int], anchor: tuple[Tensor | None, Tensor], generator: torch.Generator
    ) -> Tensor:
        """One matching step for one class of the group (gradients), or for all; the distance."""
        which = self.which(places, self._slots(generator))
        stepped = self.stepped(flat, places, which, anchor, generator)
        self.pixels[which], self.velocity[which] = stepped.pixels, stepped.velocity
        return stepped.distance

    def _slots(self, generator: torch.Generator) -> Tensor:
        """The slots that move: as many as a batch holds."""
        slots = self.pixels.shape[1]
        if slots > self.slots:
            return torch.randperm(slots, generator=generator)[: self.slots].sort().values
        return torch.arange(slots)

    def which(self, places: list[int], slots: Tensor) -> Which:
        """Where these ``slots`` of some classes are in pixels and velocities: (s,), or a row a class."""
        slots = self._sent(slots)
        return (self._sent(torch.tensor(places))[:, None], slots) if self.matching.at_once else (places[0], slots)

    def stepped(
        self,
        flat: Tensor,
        places: list[int],
        which: Which,
        anchor: tuple[Tensor | None, Tensor],
        generator: torch.Generator,
    ) -> Stepped:
        """What one matching step makes of some slots; nothing moves yet."""
        chosen_real = [self._real_batch(self.where.classes[place], generator) for place in places]
        images = torch.stack([self.inputs.blocks.take_to(self.network.device, batch) for batch in chosen_real])
        draws, earlier = anchor
        if draws is None:
            draws = self._sent(draw(1, generator))
        return self.matching.step(
            StepInputs(
                flat,
                self.pixels[which],
                self.velocity[which],
                self.as_taken(images),
                self._label(places),
                draws,
                earlier,
                self.settings,
            )
        )

    def as_taken(self, of_classes: Tensor) -> Tensor:
        """What a step takes of (K, ...): all of it, or its only class."""
        return of_classes if self.matching.at_once else of_classes[0]

    def _real_batch(self, label: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Global indices (batch_real,) of one class from the window, or in equal parts from all windows so far.

        The frontier's share of them is drawn from that, as far as it has images.
        """
        is_mixed = self.is_residual and not self.is_union
        windows = self.inputs.windows[: self.where.segment + 1] if is_mixed else self.inputs.windows[-1:]
        total, parts = self.config.matcher.batch_real, len(windows)
        picked = []
        if self.config.matcher.frontier_share and len(self.inputs.frontier[label]):
            frontier = self.inputs.frontier[label]
            hard = min(math.floor(exact(self.config.matcher.frontier_share) * total), len(frontier))
            picked.append(draw_from(frontier, hard, generator))
            total -= hard
        for place, window in enumerate(windows):
            count = total * (place + 1) // parts - total * place // parts
            picked.append(draw_from(window[label], count, generator, self._strata_of(label)))
        first = int(self.inputs.blocks.starts[label])
        return np.concatenate(picked) + first

    def _strata_of(self, label: int) -> NDArray[np.int64] | None:
        return self.inputs.strata[label] if self.config.matcher.strata else None

    def _label(self, places: list[int]) -> Tensor:
        return self.labels[places[0]]
