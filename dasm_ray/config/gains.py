"""Whether compiling pays: the steps of a run, what each gains by being compiled, and what compiling costs.

What must stay true: the answer follows from the configuration and the size of the set alone, never from how busy or how
fast a machine is, since compiled steps differ from eager ones in the last bits of a result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from typing import NamedTuple

from dasm_ray.config.keys import Compiles, RunConfig

TRAININGS, MATCHING = ("train", "read"), ("match", "mean", "walk", "back")
"""Kinds of steps: of networks that are trained and read, and of matching at them."""

FIXED = {"train": 1.6e-3, "match": 6e-3, "mean": 1.6e-3, "read": 0.0, "walk": 1.6e-3, "back": 4e-3}
"""Seconds that a step of each kind gains by being compiled, however small it is: what its single operations cost."""

A_VALUE = {"train": 5e-9, "match": 10e-9, "mean": 5e-9, "read": 1.8e-9, "walk": 5e-9, "back": 16e-9}
"""Seconds that it gains a value of the first block's output (images x width x height x width of an image): what fewer
passes over memory save, the same in float32 and bf16. CPU seconds of one thread of an AMD EPYC with AVX-512 under
torch 2.14, by `make bench BENCH='--rows compiled_train,...'`; a mean and a walk count as the training step that they
are but for its update. A processor of another kind has other figures (one with AVX2 twice these), and is given the same
answer."""

COLD = {"train": 25.0, "match": 45.0, "mean": 20.0, "read": 8.0, "walk": 15.0, "back": 25.0}
"""Seconds to compile a step of each kind where nothing of it is on disk, in a worker of the same machine."""

WARM = {"train": 4.0, "match": 6.0, "mean": 4.0, "read": 2.0, "walk": 4.0, "back": 5.0}
"""Seconds in each process that finds it there."""

TIMES = 2.0
"""How many times its cost compiling has to gain: one process compiles while the others, on most machines one, wait."""

READ_BATCH = 500
"""Images that a trained network reads at once, see `core.networks.reading`."""


class Size(NamedTuple):
    """What a set is, as far as the number of steps depends on it: images by role, classes, and (C, H, W)."""

    train: int
    val: int
    test: int
    classes: int
    shape: tuple[int, int, int]


class Steps(NamedTuple):
    """``calls`` of a step with ``images`` each. ``variants``: forms of it, each of which is compiled apart."""

    kind: str
    calls: int
    images: int
    variants: int = 1


class Verdict(NamedTuple):
    """Seconds that steps gain by being compiled, and that compiling them costs: the first time, and from disk."""

    gain: float
    cold: float
    warm: float

    @property
    def pays(self) -> bool:
        """Whether steps are to be compiled."""
        return self.gain > TIMES * self.cold


def what_pays(config: RunConfig, size: Size) -> Compiles:
    """Which steps of a run are to be compiled: all, those of trainings, or none."""
    trainings, matching = verdict(config, size, TRAININGS), verdict(config, size, MATCHING)
    if trainings.pays and not matching.pays:
        return "trainings"
    return verdict(config, size).pays


def verdict(config: RunConfig, size: Size, kinds: Container[str] = FIXED) -> Verdict:
    """What compiling the steps of these kinds gives and takes in a run."""
    _, height, width = size.shape
    values = config.model.width * height * width
    steps = [each for each in steps_of(config, size) if each.kind in kinds]
    gain = sum(each.calls * (FIXED[each.kind] + A_VALUE[each.kind] * each.images * values) for each in steps)
    forms: dict[tuple[str, int], int] = {}
    for each in steps:
        if each.calls:
            key = each.kind, each.images
            forms[key] = max(each.variants, forms.get(key, 0))
    cold, warm = (sum(cost[kind] * variants for (kind, _), variants in forms.items()) for cost in (COLD, WARM))
    return Verdict(gain, cold, warm)


def steps_of(config: RunConfig, size: Size) -> Iterator[Steps]:
    """The steps of a whole run that can be compiled, kind by kind."""
    yield from _of_experts(config, size)
    yield from _of_probes(config, size)
    yield from _of_walks(config, size) if config.is_trajectory else _of_matching(config, size)
    yield from _of_table(config, size)


def images_of(config: RunConfig, classes: int, stage: int) -> int:
    """Images of all matching steps of a segment, or of the polish."""
    if config.is_trajectory:
        return _walked(config, stage) * min(config.trajectory.batch, classes * config.synthetic.ipc)
    return _matched(config, classes, stage) * images_a_step(config, stage)


def images_a_step(config: RunConfig, stage: int) -> int:
    """Images of one class, real and decoded, that a matching step of a segment works on."""
    tiles, most = config.synthetic.factor**2, max(1, config.matcher.batch_syn // config.synthetic.factor**2)
    return config.matcher.batch_real + min(most, config.size_of(stage)) * tiles


def together(config: RunConfig, classes: int) -> int:
    """Classes that a matching step takes at once: those of a group (`runtime.groups`), or one."""
    if config.base.couples == "class":
        return 1
    return group_size(config, classes)


def group_size(config: RunConfig, classes: int) -> int:
    """Classes of a group, as a run that begins now has them."""
    if config.base.couples == "set":
        return classes
    return min(classes, config.for_classes(classes).synthetic.group_size or _batches(classes, 2))


def earlier_parts(config: RunConfig, classes: int, stage: int) -> int:
    """How often a batch of what earlier segments hold is shown, to so many classes as a step takes at once.

    Once for all steps at one network state: where it is trained between them, each is one. A lane finds it again.
    """
    matcher = config.matcher
    if config.is_trajectory or matcher.context == "alone" or stage in (0, config.synthetic.segments):
        return 0
    states = _states(config, stage) * (matcher.steps if _moves(config) or matcher.lanes > 1 else 1)
    few = max(1, matcher.batch_syn // config.synthetic.factor**2)
    shown = _batches(config.size_up_to(stage - 1), few) if matcher.context == "union" else 1
    return states * shown * _batches(classes, together(config, classes))


def inner_steps(config: RunConfig, size: Size, stage: int) -> int:
    """Training steps of the networks in the loop of a segment, in all groups and lanes."""
    matcher = config.matcher
    if not _moves(config):
        return 0
    walks = _states(config, stage) * (matcher.steps - 1) * _batches(size.classes, group_size(config, size.classes))
    seen = min(matcher.inner_samples, size.train)
    return walks * (max(1, seen // min(INNER_BATCH, seen)) if config.states == "real" else matcher.inner_steps)


def probe_steps(config: RunConfig, classes: int, segment: int) -> int:
    """Training steps of all probes before a segment: none before the first, whose probes are experts."""
    seen = classes * config.images_up_to(segment - 1) if segment else 0
    return config.probe.members * config.probe.steps_over(seen) if segment else 0


def bank_steps(config: RunConfig, train: int, segment: int) -> int:
    """Training steps by which the probes before a segment go on along ``train`` real images, see `method.probes`."""
    if not segment or not config.bank_share_of(segment):
        return 0
    epochs = config.starts_of(segment)[-1] + config.trajectory.epochs - 1 if config.is_trajectory else BANK_EPOCHS
    return config.probe.members * epochs * max(1, train // min(config.experts.batch, train))


def _states(config: RunConfig, stage: int) -> int:
    """Network states that each class is matched at in a segment, over all lanes."""
    return config.rounds_of(stage) * config.matcher.networks * config.matcher.lanes


def _moves(config: RunConfig) -> bool:
    """Whether the network is trained between two matching steps."""
    return config.states in ("real", "synthetic")


def _matched(config: RunConfig, classes: int, stage: int) -> int:
    """Matching steps of a segment, of one class in one lane each."""
    return _states(config, stage) * config.matcher.steps * classes


def _walked(config: RunConfig, stage: int) -> int:
    """Steps of students of a segment."""
    return config.rounds_of(stage) * config.trajectory.lanes * config.trajectory.steps


# --- by stage ----------------------------------------------------------------------------------------------------


def _of_experts(config: RunConfig, size: Size) -> Iterator[Steps]:
    recipe = config.experts
    variants = len(recipe.augment.split("_")) if recipe.single else 1
    batch = min(recipe.batch, size.train)
    yield Steps("train", recipe.count * recipe.steps_over(size.train), batch, variants)
    looks = recipe.count * (recipe.epochs + 1)
    yield Steps("read", looks * _batches(size.val, READ_BATCH), READ_BATCH)


def _of_probes(config: RunConfig, size: Size) -> Iterator[Steps]:
    """Probes before every segment but the first, and the bank that they become; and the scores of all real images
    before each, and static ones."""
    recipe, read = config.probe, _batches(size.train, config.score.batch)
    for segment in range(1, config.synthetic.segments):
        seen = size.classes * config.images_up_to(segment - 1)
        yield Steps("train", probe_steps(config, size.classes, segment), min(recipe.batch, seen))
        yield Steps("train", bank_steps(config, size.train, segment), min(config.experts.batch, size.train))
    networks = config.synthetic.segments * recipe.members + config.experts.count * (config.score.early + 1)
    yield Steps("read", networks * read, config.score.batch)


def _of_walks(config: RunConfig, size: Size) -> Iterator[Steps]:
    """A step of a student there, once more on the way back, and back; a CPU takes the batch in pieces, of one shape."""
    batch = min(config.trajectory.batch, size.classes * config.synthetic.ipc)
    count = sum(_walked(config, stage) for stage in range(config.synthetic.segments + 1))
    yield Steps("walk", 2 * count, batch)
    yield Steps("back", count, batch)


def _of_matching(config: RunConfig, size: Size) -> Iterator[Steps]:
    """Matching steps, what earlier segments add to them, and trainings of the network in the loop."""
    for stage in range(config.synthetic.segments + 1):
        yield from _of_steps(config, size.classes, stage)
        yield from _of_earlier(config, size.classes, stage)
        yield Steps("train", inner_steps(config, size, stage), INNER_BATCH)


def _of_steps(config: RunConfig, classes: int, stage: int) -> Iterator[Steps]:
    """The matching steps of a segment, of so many classes as are taken together; or in pieces, each class apart.

    Real images are then shown once, decoded ones there and back.
    """
    matcher, at_once, images = config.matcher, config.base.family == "distribution", images_a_step(config, stage)
    decoded, many, count = images - matcher.batch_real, together(config, classes), _matched(config, classes, stage)
    if matcher.micro is None or max(matcher.batch_real, decoded) * many <= matcher.micro:
        kind = "mean" if at_once else "match"  # of features one derivative is taken, as in a training
        yield Steps(kind, count // classes * _batches(classes, many), images * many)
        return
    synthetic = _pieces(decoded // config.synthetic.factor**2, config.synthetic.factor**2, matcher.micro)
    shown = Counter(_pieces(matcher.batch_real, 1, matcher.micro) + synthetic)
    there, back = ("read", "mean") if at_once else ("mean", "back")
    yield from (Steps(there, count * calls, of) for of, calls in shown.items())
    yield from (Steps(back, count * calls, of) for of, calls in Counter(synthetic).items())


def _of_earlier(config: RunConfig, classes: int, stage: int) -> Iterator[Steps]:
    """What earlier segments add to the steps of one."""
    matcher, tiles, count = config.matcher, config.synthetic.factor**2, earlier_parts(config, classes, stage)
    if not count:
        return
    stored, many = min(max(1, matcher.batch_syn // tiles), config.size_up_to(stage - 1)), together(config, classes)
    if matcher.micro is None:
        yield Steps("mean", count, stored * tiles * many)
        return
    kind = "read" if config.base.family == "distribution" else "mean"
    parts = Counter(_pieces(stored, tiles, matcher.micro))  # each class apart
    yield from (Steps(kind, count // _batches(classes, many) * classes * calls, of) for of, calls in parts.items())


def _pieces(stored: int, tiles: int, most: int) -> list[int]:
    """The pieces in which `core.matching.pieces` shows ``stored`` images, decoded to so many ``tiles`` each."""
    return [piece for few in _even(stored, max(1, most // tiles)) for piece in _even(few * tiles, most)]


def _even(count: int, most: int) -> list[int]:
    size = _batches(count, _batches(count, most))
    return [min(size, count - first) for first in range(0, count, size)]


def _of_table(config: RunConfig, size: Size) -> Iterator[Steps]:
    """Trainings on sets and on as many real images, for as many steps, and on all; and their readings."""
    recipe, stored = config.evaluate, size.classes * config.synthetic.ipc
    rows, decoded = set(recipe.rows), stored * config.synthetic.factor**2
    for images, named in ((decoded, rows & DECODED), (stored, rows - DECODED - {"full"})):
        trainings = len(named) + len(named & {*DECODED, "random"}) * config.learns_labels
        yield Steps("train", recipe.seeds * trainings * recipe.steps_over(decoded), min(recipe.batch, images))
    if "full" in recipe.rows:
        whole = recipe.steps_over(size.train, recipe.full_epochs)
        yield Steps("train", recipe.seeds * whole, min(recipe.batch, size.train))
    a_training = recipe.checkpoints * _batches(size.val, READ_BATCH) + _batches(size.test, READ_BATCH)
    yield Steps("read", recipe.seeds * len(recipe.rows) * a_training, READ_BATCH)


def _batches(images: int, batch: int) -> int:
    return -(-images // batch)


DECODED = {"distilled", "initial", "patches"}
"""Rows whose stored images hold several; those of other small sets are whole."""

BANK_EPOCHS = 1
"""Epochs that a probe goes on for gradients and distributions: the last of `method.probes.WALK`."""

INNER_BATCH = 64
"""Images a step of the network in the loop, see `core.matching.round`."""
