"""A first recipe that fits a set of one's own: what is chosen from what was found in it, each choice with its reason.

What must stay true: the recipe that is written is accepted as it stands, asks for no more images than the smallest
class has, and follows from the facts alone.
"""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dasm_ray.config import plain_yaml
from dasm_ray.config.keys import Data
from dasm_ray.config.parsing import parse_config
from dasm_ray.config.shown import escaped, several
from dasm_ray.errors import ConfigError

SMALL_SIDE = 64
"""Images up to so many pixels a side are taken as they are where all agree."""

FEW = 5000
"""Training images up to which 64 pixels a side cost little."""

MANY_CLASSES = 50
"""Classes above which distributions are matched, all of a group at once, instead of gradients class by class."""

EXPERT_STEPS, FULL_STEPS = 400, 800
"""Steps that an expert, and a network on the full data, is trained for at least."""


@dataclass(frozen=True)
class Facts:
    """What was found in a set. ``sizes``: (width, height) of the images that were looked at."""

    kind: str  # data.name
    path: str
    name: str
    colour: bool
    sizes: frozenset[tuple[int, int]]
    per_class: tuple[int, ...]  # images of the training split by class
    has_validation: bool
    has_test: bool
    found: tuple[str, ...]  # lines that say it

    @property
    def kept(self) -> float:
        """The share of the training split that is left to train on."""
        data = Data()
        return (1 if self.has_validation else 1 - data.val_share) * (1 if self.has_test else 1 - data.test_share)

    @property
    def images(self) -> int:
        """Training images, about."""
        return max(1, int(self.kept * sum(self.per_class)))

    @property
    def fewest(self) -> int:
        """Training images of the smallest class, with room for the chance of the cut."""
        return max(1, int(0.8 * self.kept * min(self.per_class)))


def image_size(facts: Facts) -> int | None:
    """The side that images are scaled to; None where they agree and are small."""
    shortest, longest = min(map(min, facts.sizes)), max(map(max, facts.sizes))
    if len(facts.sizes) == 1 and longest <= SMALL_SIDE:
        return None
    return 64 if shortest >= 64 and facts.images <= FEW else 32


def blocks(side: int) -> int:
    """The depth of a ConvNet that is not told any, which leaves about 4 pixels a side."""
    return max(1, round(math.log2(side)) - 2)


def shape_of_the_set(facts: Facts, side: int) -> tuple[int, int, int]:
    """Images per class, segments and factor: the largest up to 10 that use at most a third of the smallest class."""
    for ipc, segments, factor in ((10, 2, 2), (6, 2, 2), (10, 2, 1), (4, 2, 2), (6, 2, 1), (4, 2, 1), (2, 2, 1)):
        if side >= 16 * factor and 3 * ipc * factor**2 <= facts.fewest:
            return ipc, segments, factor
    return 1, 1, 1


def recipe_for(facts: Facts) -> str:
    """The recipe as text; raises ConfigError where what the set is called cannot stand in one."""
    text = "\n".join(_lines(facts)) + "\n"
    parse_config(plain_yaml.read_mapping(text, facts.name))
    return text


def name_for(folder: str) -> str:
    """A name of a run out of a folder's: of any script what the key ``name`` takes, letters with marks, and digits."""
    kinds = ((character, unicodedata.category(character)) for character in unicodedata.normalize("NFC", folder))
    kept = "".join(character if kind[0] in "LM" or kind == "Nd" else " " for character, kind in kinds)
    return "_".join(kept.split())[:60] or "mine"


def _lines(facts: Facts) -> Iterator[str]:
    size = image_size(facts)
    side = size or min(min(facts.sizes))
    ipc, segments, factor = shape_of_the_set(facts, side)
    batch = 64 if facts.images <= FEW else 128
    steps = math.ceil(facts.images / batch)
    epochs = max(4, min(100, math.ceil(EXPERT_STEPS / steps)))
    augment = "color_crop_flip" if facts.colour else "crop"
    yield from (f"# {line}" for line in facts.found)
    yield ""
    yield f"name: {plain_yaml.write(facts.name).splitlines()[0]}"
    yield "data:"
    yield f"  name: {facts.kind}"
    yield f"  path: {plain_yaml.write([facts.path]).removeprefix('- ').rstrip()}"
    if size is not None:
        why = "the images differ in size" if len(facts.sizes) > 1 else "the images are large"
        yield f"  image_size: {size} # {why}; twice as many pixels a side take about four times as long"
    deep = several(blocks(side), "blocks")
    yield f"model: {{width: 32}} # 128 on a GPU; {deep}, since images have {side} pixels a side"
    yield "synthetic:"
    yield f"  ipc: {ipc} # stored images a class; the smallest class has about {facts.fewest} to train on"
    yield f"  segments: {segments} # distilled one after another, easy images first"
    if factor > 1:
        yield f"  factor: {factor} # a stored image holds {factor**2} smaller ones"
    yield f"experts: {{count: 2, epochs: {epochs}, batch: {batch}, augment: {augment}, cutmix: 0.0}}"
    yield from _matcher(facts, epochs, augment, segments)
    if segments > 1:
        yield f"probe: {{epochs: 100, batch: 64, augment: {augment}}}"
    yield "score: {early: 2}"
    full = max(2, min(100, math.ceil(FULL_STEPS / steps)))
    of_set = 200 if len(facts.per_class) * ipc * factor**2 <= 64 else 100  # 200 steps at least
    yield f"evaluate: {{epochs: {of_set}, full_epochs: {full}, batch: 64, checkpoints: 3, augment: {augment}}}"
    yield "runtime:"
    yield "  compile: auto # only what gains more by it in a run of this length than it takes"
    if len(facts.per_class) > MANY_CLASSES:
        yield "  precision: auto # bf16 where this machine computes it, which costs features nothing"


def _matcher(facts: Facts, epochs: int, augment: str, segments: int) -> Iterator[str]:
    classes = len(facts.per_class)
    yield "matcher:"
    if classes > MANY_CLASSES:
        yield f"  name: dm # features, all classes of a group at once, since there are {classes} classes"
        yield "  rounds: 4"
        yield "  networks: 100"
    else:
        yield f"  name: idc # gradients, class by class; of more than {MANY_CLASSES} classes dm is quicker"
        yield "  rounds: 6 # more of them: a better set for a longer time"
        yield "  networks: 15"
        early = max(1, round(0.2 * epochs))
        yield f"  snapshots: [[0, {early}]] # epochs of the experts that are matched at: early, while they are wrong"
    yield "  lr_img: 0.1"
    yield "  scale_lr: false"
    yield f"  augment: {'color_crop_cutout_flip' if facts.colour else augment}" + (
        " # no flip: grey images are often letters or digits" if not facts.colour else ""
    )
    if segments > 1:
        yield "  context: residual"


def write_new(file: str, text: str) -> None:
    """Writes a recipe where there is none yet; ConfigError where there is one, or it cannot be written."""
    try:
        with Path(file).open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{escaped(file)}: is there already; name another file by --to") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{escaped(file)}: cannot be written ({escaped(why)})") from None


def next_steps(file: str) -> list[str]:
    """What to run once the recipe is there."""
    shown = shlex.quote(escaped(file))
    return [
        f"dasm-ray data {shown} --png sheet.png   # look at what was read",
        f"dasm-ray estimate {shown}               # what it will take",
        f"dasm-ray distill {shown}                # make the set",
    ]
