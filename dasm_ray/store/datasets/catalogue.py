"""Real images: a table of sets, each opened on the driver as a list of shards that workers decode.

What must stay true: class names keep the order of their labels, and a set is found, and what is wrong with its layout
refused, before it is decoded.

A look at a few training images sets the shape of a set: the size that most of them have, which all others must have
unless `data.image_size` is given (then each image is scaled and centre-cropped to that square); RGB if any of them is
in colour. Where none is, the set is grey if decoding finds all training images to be so (see runtime/decoding.py).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.plain import Plain
from dasm_ray.store.datasets.builtin import TORCHVISION, open_digits, open_torchvision, read_digits, read_torchvision
from dasm_ray.store.datasets.folders import open_folder, open_tiny_imagenet, read_images
from dasm_ray.store.datasets.parquet import open_parquet, read_parquet
from dasm_ray.store.datasets.pixels import Opened, Raw, open_image, quietly, to_pixels
from dasm_ray.store.datasets.shards import Rows, Shard, Source, check_classes
from dasm_ray.store.datasets.splits import CALLED

LOOKED_AT = 64
"""Training images that are decoded when a set is opened."""

PIXELS_LOOKED_AT = 16_000_000
"""Pixels after which no more of them are: half a second of photographs."""


def open_source(data: Data) -> Source:
    """Finds the files of a set, its class names, and the shape of its images; decodes a few of them.

    Raises DataError if the set is not known, not there, or not laid out as it should be.
    """
    row = DATASETS.get(data.name)
    if row is None:
        near = difflib.get_close_matches(data.name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sets are {', '.join(DATASETS)}"
        raise DataError(f"data.name: there is no set {data.name!r}; {hint}")
    try:
        source = row(data)
        check_classes(source.class_names, data.path or data.name)
        return _with_notes(_with_shape(source, data), data)
    except RunDirError as error:
        raise DataError(str(error)) from None


def rows_of(shard: Shard) -> Rows:
    """The encoded rows of a shard, in its order."""
    return READERS[shard.kind](shard)


def first_pictures(source: Source, data: Data, most: int = 10, classes: int | None = None) -> list[np.ndarray]:
    """For each of the first ``classes``, or of all, its first training images, at most ``most``, as (n, C, H, W) uint8.

    Read until all have theirs.
    """
    wanted: list[list[np.ndarray]] = [[] for _ in source.class_names[:classes]]
    left = sum(min(most, count) for count in source.found.of_train.per_class[:classes])
    with quietly():
        for shard in source.shards["train"]:
            for where, raw, label in rows_of(_first_of_classes(shard, most, len(wanted))):
                if label < len(wanted) and len(wanted[label]) < most:
                    wanted[label].append(to_pixels(open_image(raw, where), where, shard.shape, data)[0])
                    left -= 1
                    if not left:
                        return [np.stack(images) for images in wanted]
    raise DataError(f"{source.name} changed while it was read; run again")


def _first_of_classes(shard: Shard, most: int, classes: int) -> Shard:
    """Of a shard of files, those that may be among the first of the first classes; other shards as they are."""
    if not shard.files:
        return shard
    seen: Counter[int] = Counter()
    rows = []
    for row, label in enumerate(shard.labels):
        seen[label] += 1
        if seen[label] <= most and label < classes:
            rows.append(row)
    files, labels = tuple(shard.files[row] for row in rows), tuple(shard.labels[row] for row in rows)
    return dataclasses.replace(shard, last=shard.first + len(rows), files=files, labels=labels)


def _with_shape(source: Source, data: Data) -> Source:
    """Sets the shape of every shard from a few training images, none of which may differ in size from the others."""
    with quietly():
        looked_at = list(_looked_at(source.shards["train"]))
        sizes = Counter(opened.image.size for _, opened in looked_at)
        width, height = (data.image_size, data.image_size) if data.image_size else sizes.most_common(1)[0][0]
        shape = (1 if all(opened.is_grey for _, opened in looked_at) else 3, height, width)
        for where, opened in looked_at:
            to_pixels(opened, where, shape, data)  # refuses what does not fit
    return source.with_shape(shape)


def _looked_at(shards: tuple[Shard, ...]) -> Iterator[tuple[str, Opened]]:
    """A few images and where they lie; fewer of large ones."""
    pixels = 0
    for where, raw, _ in _few(shards):
        opened = open_image(raw, where)
        yield where, opened
        pixels += opened.image.width * opened.image.height
        if pixels > PIXELS_LOOKED_AT:
            return


def sizes_looked_at(source: Source) -> set[tuple[int, int]]:
    """(width, height) of a few training images, upright."""
    with quietly():
        return {opened.image.size for _, opened in _looked_at(source.shards["train"])}


def _with_notes(source: Source, data: Data) -> Source:
    """Says which keys have no effect on the set."""
    usual, notes = Data(), []
    for role in ("val", "test"):
        key = f"{role}_share"
        if role in source.shards and getattr(data, key) != getattr(usual, key):
            notes.append(f"data.{key} has no effect, since images of the set serve as {CALLED[role]} split")
    return dataclasses.replace(source, found=source.found.with_notes(notes))


def _few(shards: tuple[Shard, ...]) -> Iterator[tuple[str, Raw, Plain]]:
    """Rows from the beginning, the middle and the end of a split, as far as they cost little to reach."""
    wanted = {"images": 8, "parquet": 4}.get(shards[0].kind, 1)
    chosen = [shards[i * (len(shards) - 1) // max(wanted - 1, 1)] for i in range(min(wanted, len(shards)))]
    for shard in dict.fromkeys(chosen):
        yield from rows_of(_part_of(shard, LOOKED_AT // len(chosen)))


def _part_of(shard: Shard, most: int) -> Shard:
    """A shard of some of its rows: the first ones, or where each is a file of its own, some evenly spread."""
    count = min(most, len(shard))
    if not shard.files:
        return dataclasses.replace(shard, last=shard.first + count)
    rows = [i * (len(shard) - 1) // max(count - 1, 1) for i in range(count)]
    files, labels = tuple(shard.files[row] for row in rows), tuple(shard.labels[row] for row in rows)
    return dataclasses.replace(shard, last=shard.first + count, files=files, labels=labels)


# --- the tables --------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Shard], Rows]] = {
    "digits": read_digits,
    **dict.fromkeys(TORCHVISION, read_torchvision),
    "parquet": read_parquet,
    "images": read_images,
}

DATASETS: dict[str, Callable[[Data], Source]] = {
    "digits": open_digits,
    **{name: partial(open_torchvision, name) for name in TORCHVISION},
    "tiny_imagenet": open_tiny_imagenet,
    "folder": open_folder,
    "parquet": open_parquet,
}
