"""A synthetic set in words and as one picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dasm_ray.config.shown import escaped
from dasm_ray.plain import Plain, Values
from dasm_ray.store.artifact import Artifact, digest

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


def draw_sheet(artifact: Artifact, most: int = 20) -> bytes:
    """A PNG of at most ``most`` stored images a class, a row a class."""
    rows = [np.flatnonzero(artifact.labels == label)[:most] for label in range(len(artifact.class_names))]
    return draw_rows(np.split(artifact.levels(np.concatenate(rows)), np.cumsum([len(row) for row in rows])[:-1]))


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
    enlarged = _times(levels) ** 2 * levels.shape[2] * levels.shape[3]
    most = max(1, min(MOST_IMAGES, MOST_PIXELS // enlarged) // shown)
    return draw_rows([levels[np.flatnonzero(labels == label)[:most]] for label in range(shown)])


def _times(pictures: NDArray[np.uint8]) -> int:
    """By how much pictures (n, C, H, W) are enlarged."""
    largest = int(max(pictures.shape[2:]))
    return max(2, -(-SIDE // largest))


def draw_rows(rows: Sequence[NDArray[np.uint8]]) -> bytes:
    """A PNG of images (n, C, H, W), each row of them on a line, enlarged until they can be seen."""
    times = _times(rows[0])
    rows = [np.repeat(np.repeat(row, times, axis=2), times, axis=3) for row in rows]
    _, channels, height, width = rows[0].shape
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + MARGIN), columns * (width + MARGIN), channels), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            top, left = y * (height + MARGIN), x * (width + MARGIN)
            sheet[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    data = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(data, "PNG")
    return data.getvalue()
