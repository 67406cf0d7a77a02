"""A synthetic set in words and as one picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.config.shown import escaped, several
from dasm_ray.plain import Plain, Values
from dasm_ray.store.artifact import Artifact, digest
from dasm_ray.store.datasets.catalogue import first_pictures
from dasm_ray.store.datasets.shards import Source

MARGIN = 4
"""Pixels between two images of the sheet."""

SIDE = 64
"""Pixels that an image is enlarged to at least, by a whole number."""


def describe(artifact: Artifact) -> str:
    """What the set is, a line a fact; what the set does not say is left out."""
    count, channels, height, width = artifact.pixels.shape
    segments, sizes = np.unique(artifact.segments, return_counts=True)
    facts = {
        "images": f"{count} stored of {channels}x{height}x{width}, {count * artifact.factor**2} for training "
        f"(factor {artifact.factor})",
        "classes": ", ".join(escaped(name) for name in artifact.class_names),
        "segments": ", ".join(f"{size} images in {segment + 1}" for segment, size in zip(segments, sizes, strict=True)),
        "labels": "hard" if artifact.soft_labels is None else "soft",
        "mean, std": f"{_rounded(artifact.mean)}, {_rounded(artifact.std)}",
        "evaluated by": ", ".join(_evaluation(artifact.recipe)),
        "made with": ", ".join(f"{escaped(name)} {escaped(of)}" for name, of in _part(artifact.provenance, "versions")),
        "digest": digest(artifact),
    }
    return "\n".join(f"{name:13} {fact}" for name, fact in facts.items() if fact)


def _evaluation(recipe: Values) -> Iterator[str]:
    """What a recipe says of the network and its training: it may leave out what has its usual value."""
    settings = dict(_part(recipe, "model")) | dict(_part(recipe, "training"))
    for key, words in {"arch": "{}", "width": "width {}", "epochs": "{} epochs", "lr": "rate {}"}.items():
        if key in settings:
            yield words.format(escaped(settings[key], 40))


def _part(values: Values, name: str) -> list[tuple[str, Plain]]:
    """What stands under a name, where that has parts."""
    part = values.get(name)
    return list(part.items()) if isinstance(part, Mapping) else []


def _rounded(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


SHEET_PIXELS = 40_000_000
"""Of a sheet that is drawn to a file: what a viewer opens, and a small part of a machine's memory."""


def draw_sheet(artifact: Artifact, most: int = 20) -> tuple[bytes, str]:
    """A PNG of at most ``most`` stored images a class, a row a class; and what it leaves out for room, if anything."""
    per_class = np.bincount(artifact.labels, minlength=len(artifact.class_names)).tolist()
    classes, many, says = _on_sheet(per_class, artifact.pixels.shape[1:], most)
    rows = [np.flatnonzero(artifact.labels == label)[:many] for label in range(classes)]
    levels = artifact.levels(np.concatenate(rows))
    return draw_rows(np.split(levels, np.cumsum([len(row) for row in rows])[:-1])), says


def draw_first(source: Source, data: Data, most: int = 10) -> tuple[bytes, str]:
    """The same of the first training images of a set. Raises DataError for what cannot be read."""
    classes, many, says = _on_sheet(source.found.of_train.per_class, source.shape, most)
    return draw_rows(first_pictures(source, data, many, classes)), says


def _on_sheet(per_class: Sequence[int], shape: tuple[int, ...], most: int) -> tuple[int, int, str]:
    """Of how many classes a sheet shows images (C, H, W), how many of each, and what to say of the rest."""
    times = _times(shape)
    height, width = (times * side + MARGIN for side in shape[1:])
    places, classes = max(1, SHEET_PIXELS // (height * width)), len(per_class)
    shown = min(classes, places)
    many = min(most, places // shown)
    if shown < classes:
        return shown, many, f"the first {shown} of {classes} classes, {several(many, 'images')} of each"
    says = f"the first {several(many, 'images')} of each class" if many < min(most, max(per_class)) else ""
    return shown, many, says


MOST_CLASSES, MOST_IMAGES, MOST_PIXELS = 20, 200, 4_000_000
"""Of a picture that is looked at as a whole."""


def draw_few(artifact: Artifact) -> tuple[bytes, int]:
    """A PNG of some images of every class, or of the first ones where there are many; and of how many classes."""
    shown = min(len(artifact.class_names), MOST_CLASSES)
    rows = np.flatnonzero(artifact.labels < shown)
    return draw_classes(artifact.levels(rows), artifact.labels[rows], shown), shown


def draw_classes(levels: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> bytes:
    """A PNG of some images (n, C, H, W) of every class, a row a class, or of the first ones where there are many."""
    shown = min(classes, MOST_CLASSES)
    enlarged = _times(levels.shape) ** 2 * levels.shape[2] * levels.shape[3]
    most = max(1, min(MOST_IMAGES, MOST_PIXELS // enlarged) // shown)
    return draw_rows([levels[np.flatnonzero(labels == label)[:most]] for label in range(shown)])


def _times(shape: tuple[int, ...]) -> int:
    """By how much pictures of a shape (..., H, W) are enlarged."""
    largest = max(shape[-2:])
    return max(2, -(-SIDE // largest))


def draw_rows(rows: Sequence[NDArray[np.uint8]]) -> bytes:
    """A PNG of images (n, C, H, W), each row of them on a line, enlarged until they can be seen."""
    times, channels = _times(rows[0].shape), rows[0].shape[1]
    height, width = (times * side for side in rows[0].shape[2:])
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + MARGIN), columns * (width + MARGIN), channels), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            top, left = y * (height + MARGIN), x * (width + MARGIN)
            enlarged = pixels.transpose(1, 2, 0).repeat(times, axis=0).repeat(times, axis=1)
            sheet[top : top + height, left : left + width] = enlarged
    data = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(data, "PNG")
    return data.getvalue()
