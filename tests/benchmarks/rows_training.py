"""Rows of trainings: experts, the network in IDC's loop, small sets, evaluation; and scoring, which only reads.

What must stay true: ours is the function that a worker calls, and the twin is told what that function draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import peers
import torch
from pairs import DSA, Pair, Sizes, World, gap

from dasm_ray.config.keys import TrainRecipe
from dasm_ray.core.augment import draw
from dasm_ray.core.matching.round import INNER
from dasm_ray.core.networks.evaluate import evaluate_on
from dasm_ray.core.networks.samples import Samples, TensorSamples
from dasm_ray.core.networks.training import DECAY, DECAY_AT, batches, train
from dasm_ray.core.scoring import score_range
from dasm_ray.core.seed import torch_generator

EXPERT = TrainRecipe(epochs=1, batch=256, momentum=0.0, weight_decay=0.0, augment=DSA, single=True, cutmix=0.0)
"""As MTT and DATM train their experts."""

SMALL = TrainRecipe(epochs=1, batch=256, augment=DSA, single=True, cutmix=0.0)
"""As DatasetCondensation trains on what it has made, which is less than a batch."""

SEED = ("benchmark", "training")


def drawn(
    count: int, recipe: TrainRecipe, steps: int, generator: torch.Generator, decay: bool = False
) -> Iterator[peers.Step]:
    """What `dasm_ray.core.networks.training.train` draws for its steps, for a twin to do the same."""
    size = min(recipe.batch, count)
    parts = recipe.augment.split("_")
    for done, indices in enumerate(batches(count, size, steps, generator)):
        draws, box = draw(size, generator), torch.rand(4, generator=generator)
        rate = recipe.lr * (DECAY ** sum(done >= share * steps for share in DECAY_AT) if decay else 1)
        is_one = recipe.single and len(parts) > 1
        strategy = parts[int(torch.randint(len(parts), (1,), generator=generator))] if is_one else recipe.augment
        mixes = bool(box[3] < recipe.cutmix)
        yield peers.Step(torch.from_numpy(indices), draws, strategy, box[:3].tolist() if mixes else None, rate)


def training(
    world: World,
    samples: Samples,
    plain: tuple[torch.Tensor, torch.Tensor],
    recipe: TrainRecipe,
    steps: int,
    decay: bool = False,
) -> Pair:
    """A training of ``steps`` steps of both; ``plain``: normalised images and labels for the twin."""

    def ours() -> list[torch.Tensor]:
        generator = torch_generator(*SEED)
        states = train(
            world.network, samples, recipe, steps=steps, generator=generator, flat=world.flat.clone(), decay=decay
        )
        for state in states:  # noqa: B007
            pass
        return [state.flat - world.flat]

    drawn_steps = list(drawn(len(samples), recipe, steps, torch_generator(*SEED), decay))
    net = world.net()

    def twin() -> list[torch.Tensor]:
        peers.filled(net, world.flat)
        peers.Training(net, recipe.momentum, recipe.weight_decay).over(*plain, drawn_steps)
        return [peers.flat_of(net) - world.flat]

    return Pair(ours, twin, steps * min(recipe.batch, len(samples)))


def expert(sizes: Sizes) -> Pair:
    """Steps of an expert's training, batches of 256, one augmentation a step."""
    world = World(sizes, "expert")
    samples, *plain = world.real(sizes.pick(500, 20))
    recipe = EXPERT.model_copy(update={"batch": sizes.pick(256, 32)})
    return training(world, samples, tuple(plain), recipe, sizes.pick(4, 2))


def update(sizes: Sizes) -> Pair:
    """The network in IDC's loop goes over 2000 real images, batches of 64, with CutMix."""
    world = World(sizes, "update")
    samples, *plain = world.real(sizes.pick(200, 13))
    return training(world, samples, tuple(plain), INNER, sizes.pick(2000, 130) // INNER.batch)


def small(sizes: Sizes) -> Pair:
    """Passes over a set of 100 images, one step each, the rate falling."""
    world = World(sizes, "small")
    _, images, labels = world.real(sizes.pick(10, 2))
    samples = TensorSamples(images, labels)
    return training(world, samples, (images, labels), SMALL, sizes.pick(10, 3), decay=True)


def evaluate(sizes: Sizes) -> Pair:
    """A training on a small set, two looks at validation images, and the test images once."""
    world = World(sizes, "evaluate")
    _, *plain = world.real(sizes.pick(10, 2))
    validation, *seen = world.real(sizes.pick(50, 4))
    test, *asked = world.real(sizes.pick(100, 4))
    recipe, steps, batch = SMALL, sizes.pick(10, 2), 500
    generator = torch_generator(*SEED)
    flat = world.network.initial(generator)
    drawn_steps, net = list(drawn(len(plain[0]), recipe, steps, generator, decay=True)), world.net()

    def ours() -> list[float]:
        outcome = evaluate_on(
            world.network,
            TensorSamples(*plain),
            recipe,
            steps=steps,
            checkpoints=2,
            validation=validation,
            test=test,
            generator=torch_generator(*SEED),
        )
        return [outcome.validation, outcome.test]

    def twin() -> list[float]:
        peers.filled(net, flat)
        best = -1.0, flat
        in_training = peers.Training(net, recipe.momentum, recipe.weight_decay)
        for part in (drawn_steps[: steps // 2], drawn_steps[steps // 2 :]):
            in_training.over(*plain, part)
            found = peers.tell_right(net, *seen, batch)
            best = (found, peers.flat_of(net)) if found >= best[0] else best
        peers.filled(net, best[1])
        return [best[0], peers.tell_right(net, *asked, batch)]

    return Pair(ours, twin, steps * len(plain[0]) + 2 * len(seen[0]) + len(asked[0]), apart=_most)


def _most(ours: list[float], twin: list[float]) -> float:
    """The largest difference of accuracies."""
    return max(abs(one - other) for one, other in zip(ours, twin, strict=True))


def score(sizes: Sizes) -> Pair:
    """EL2N of real images under one network, batches of 500."""
    world = World(sizes, "score")
    samples, images, labels = world.real(sizes.pick(200, 20))
    net, batch = world.net(), sizes.pick(500, 50)

    def ours() -> list[torch.Tensor]:
        found = score_range(world.network, samples.blocks, [world.flat], "el2n", 0, len(samples), batch)
        return [torch.from_numpy(found.score)]

    return Pair(ours, lambda: [peers.el2n(net, images, labels, batch)], len(samples), apart=gap)
