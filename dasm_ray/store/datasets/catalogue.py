"""Real images: a table of sets, each opened on the driver as a list of shards that workers decode.

What must stay true: class names keep the order of their labels, and a set is found without decoding it.

The first training image sets the shape of a set: one channel if it is grey, else RGB, to which all others are
converted; its size too, which all others must have unless `data.image_size` is given (then each image is scaled and
centre-cropped to that square).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from functools import partial

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.store.datasets.builtin import TORCHVISION, open_digits, open_torchvision, read_digits, read_torchvision
from dasm_ray.store.datasets.folders import open_folder, open_tiny_imagenet, read_images
from dasm_ray.store.datasets.parquet import open_parquet, read_parquet
from dasm_ray.store.datasets.shards import Rows, Shard, Source, open_image


def open_source(data: Data) -> Source:
    """Finds the files of a set, its class names, and the shape of its images; decodes one image.

    Raises DataError if the set is not known, not there, or not laid out as it should be.
    """
    row = DATASETS.get(data.name)
    if row is None:
        near = difflib.get_close_matches(data.name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sets are {', '.join(DATASETS)}"
        raise DataError(f"data.name: there is no set {data.name!r}; {hint}")
    try:
        return _with_shape(row(data), data)
    except RunDirError as error:
        raise DataError(str(error)) from None


def rows_of(shard: Shard) -> Rows:
    """The encoded rows of a shard, in its order."""
    return READERS[shard.kind](shard)


def _with_shape(source: Source, data: Data) -> Source:
    """Sets the shape of every shard from the first training image."""
    train = source.shards["train"]
    if not train:
        raise DataError(f"data.path: {data.path} holds no training image")
    where, raw, _ = next(rows_of(train[0]))
    image = open_image(raw, where)
    channels = 1 if image.mode in ("1", "L", "LA") else 3
    size = (data.image_size, data.image_size) if data.image_size else (image.height, image.width)
    shards = {
        split: tuple(dataclasses.replace(shard, shape=(channels, *size)) for shard in of_split)
        for split, of_split in source.shards.items()
    }
    return dataclasses.replace(source, shards=shards)


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
