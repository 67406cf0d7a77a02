"""Sets that come as arrays: scikit-learn's digits, and the files of torchvision.

What must stay true: torchvision opens an archive that is a pickle only under the checksum of the published file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.parquet import open_parquet, parquet_files
from dasm_ray.store.datasets.shards import ARRAY_ROWS, Rows, Shard, Source, cut, first_line
from dasm_ray.store.place import Place

CACHE = "~/.cache/dasm_ray/data"
"""Where torchvision sets are looked for when `data.path` is unset."""

DOWNLOAD_SECONDS = 30.0

DIGITS = tuple("0123456789")


def open_digits(_: Data) -> Source:
    return Source("digits", DIGITS, {"train": cut("digits", "train", "scikit-learn digits", 1797, 10, ARRAY_ROWS)})


def read_digits(shard: Shard) -> Rows:
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 0..16 as they are scanned
    yield from _array_rows(shard, levels, found.target)


@dataclass(frozen=True)
class Torchvision:
    """How to reach a set of torchvision: its class there, the argument for each split, and its arrays."""

    title: str
    splits: Mapping[str, Mapping[str, Any]]
    pixels: Callable[[Any], Any]  # (n, H, W) or (n, H, W, 3) uint8
    labels: Callable[[Any], Any]
    class_names: Callable[[Any], Sequence[str]]


_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}

TORCHVISION = {
    "mnist": Torchvision("MNIST", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: DIGITS),
    "fashion_mnist": Torchvision("FashionMNIST", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "cifar10": Torchvision("CIFAR10", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "cifar100": Torchvision("CIFAR100", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "svhn": Torchvision("SVHN", _SPLIT, lambda d: d.data.transpose(0, 2, 3, 1), lambda d: d.labels, lambda d: DIGITS),
}


def open_torchvision(name: str, data: Data) -> Source:
    """The set in Parquet under `data.path` if there is some, else in the files of torchvision."""
    if data.path is not None and parquet_files(Place(data.path)):
        return dataclasses.replace(open_parquet(data), name=name)
    root = Place(data.path or CACHE)
    if root.local is None:
        raise DataError(f"data.path: {root} holds no Parquet, and the files of torchvision must be local")
    row, shards = TORCHVISION[name], {}
    for split in row.splits:
        found = _load_torchvision(name, split, str(root), data.download)
        class_names = tuple(row.class_names(found))
        shards[split] = cut(name, split, str(root), len(row.pixels(found)), len(class_names), ARRAY_ROWS)
    return Source(name, class_names, shards)


def _load_torchvision(name: str, split: str, root: str, download: bool) -> Any:
    """The dataset object of torchvision, all its pixels in memory (200 MB at most).

    The CIFAR archives are pickles; torchvision opens them only if their MD5 is that of the published files.
    """
    import torchvision.datasets

    row = TORCHVISION[name]
    make = getattr(torchvision.datasets, row.title)
    try:
        with _patience(DOWNLOAD_SECONDS), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what old archives make new versions of numpy say is not for the user
            return make(root, download=download, **row.splits[split])
    except Exception as error:  # torchvision, urllib and the parsers of five formats
        if download:
            why = f"could not be fetched into {root} ({first_line(error)})"
            raise DataError(f"data.download: {name} {why}; set data.path to a folder that holds it") from None
        raise DataError(
            f"data.name: {name} is not in {root} ({first_line(error)}); "
            f"set data.path to the folder that holds it, or data.download to fetch it"
        ) from None


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """No connection made inside waits longer than this for its next byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_torchvision(shard: Shard) -> Rows:
    row = TORCHVISION[shard.kind]
    found = _load_torchvision(shard.kind, shard.split, shard.path, download=False)
    yield from _array_rows(shard, np.asarray(row.pixels(found)), np.asarray(row.labels(found)))


def _array_rows(shard: Shard, images: np.ndarray, labels: np.ndarray) -> Rows:
    if len(images) != len(labels):
        raise DataError(f"{shard.path}: {len(images)} images have {len(labels)} labels; fetch the files again")
    for row in range(shard.first, shard.last):
        yield f"{shard.path}: {shard.split} row {row}", images[row], labels[row]
