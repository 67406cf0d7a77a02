"""Sets that come as arrays: scikit-learn's digits, and the files of torchvision.

What must stay true: torchvision opens an archive that is a pickle only under the checksum of the published file.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.config.shown import escaped
from dasm_ray.errors import DataError
from dasm_ray.plain import Values
from dasm_ray.store.datasets.blockcache import cache_folder
from dasm_ray.store.datasets.found import Found, SplitFound
from dasm_ray.store.datasets.parquet import parquet_files, source_of
from dasm_ray.store.datasets.pixels import first_line
from dasm_ray.store.datasets.shards import ARRAY_ROWS, Rows, Shard, Source, check_counts, cut_rows
from dasm_ray.store.datasets.splits import cut_of
from dasm_ray.store.place import Place

DOWNLOAD_SECONDS = 30.0

DIGITS = tuple("0123456789")


def open_digits(data: Data) -> Source:
    """The 1797 scans that come with scikit-learn. DataError for a path, where other images would be meant."""
    if data.path is not None:
        raise DataError(
            f"data.path: {escaped(data.path, 100)} is not looked at, since digits are built in; leave it out, or say "
            f"by data.name what lies there, as folder or parquet"
        )
    _, labels = _digits()
    return _source(data, "built in", "scikit-learn digits", DIGITS, {"train": labels})


def _source(data: Data, form: str, path: str, class_names: tuple[str, ...], labels: Mapping[str, np.ndarray]) -> Source:
    """A set of arrays, by the labels (n,) of each split."""
    classes = len(class_names)
    splits = []
    for split, of_split in labels.items():
        beyond = np.flatnonzero(of_split >= classes)
        if len(beyond):
            raise DataError(
                f"{data.name}, {split}, image {beyond[0]}: its label is {of_split[beyond[0]]}, and the classes are 0 "
                f"to {classes - 1}; the file is damaged, or of another set"
            )
        per_class = np.bincount(of_split, minlength=classes)
        splits.append(SplitFound(split, split, "", tuple(map(int, per_class))))
    shards = {split: cut_rows(data.name, split, path, len(of), classes, ARRAY_ROWS) for split, of in labels.items()}
    found = Found(data.name, form, class_names, tuple(splits), cut=cut_of(labels, data))
    return Source(data.name, class_names, shards, found)


def read_digits(shard: Shard) -> Rows:
    """Its scans as grey images."""
    scans, labels = _digits()
    levels = np.rint(scans * (255 / 16)).astype(np.uint8)  # 0..16 as they are scanned
    yield from _array_rows(shard, levels, labels)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Scans (1797, 8, 8) and what they show (1797,): a file of scikit-learn, which takes two seconds to load."""
    rows = np.loadtxt(digits_file(), delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def digits_file() -> str:
    """The path of that file."""
    return str(importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"))


Loaded = Any
"""A set as torchvision has loaded it, each in a class of its own."""


@dataclass(frozen=True)
class Torchvision:
    """How to reach a set of torchvision: its class there, the argument for each split, and its arrays."""

    title: str
    files: str  # what lies in its root once it is there
    splits: Mapping[str, Values]
    pixels: Callable[[Loaded], np.ndarray]  # (n, H, W) or (n, H, W, 3) uint8
    labels: Callable[[Loaded], Sequence[int]]
    class_names: Callable[[Loaded], Sequence[str]]


_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}

TORCHVISION = {
    "mnist": Torchvision("MNIST", "MNIST/raw", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: DIGITS),
    "fashion_mnist": Torchvision(
        "FashionMNIST", "FashionMNIST/raw", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes
    ),
    "cifar10": Torchvision(
        "CIFAR10", "cifar-10-batches-py", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes
    ),
    "cifar100": Torchvision(
        "CIFAR100", "cifar-100-python", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes
    ),
    "svhn": Torchvision(
        "SVHN", "train_32x32.mat", _SPLIT, lambda d: d.data.transpose(0, 2, 3, 1), lambda d: d.labels, lambda d: DIGITS
    ),
}


def open_torchvision(name: str, data: Data) -> Source:
    """The set in Parquet under `data.path` if there is some, else in the files of torchvision.

    `data.path` unset: torchvision's files in `data` of this machine's folder of caches.
    """
    row, place = TORCHVISION[name], Place(data.path) if data.path else cache_folder(None).parent / "data"
    files = None if data.path is None else parquet_files(place)
    if files is not None and (files.is_at_top or not (place / row.files).exists()):
        return source_of(files, data)
    if place.local is None:
        raise DataError(f"data.path: {place} holds no Parquet, and the files of torchvision must be local")
    labels = {}
    for split in row.splits:
        found = _load_torchvision(name, split, str(place), data.download)
        labels[split] = np.asarray(row.labels(found))
        _check_lengths(str(place), len(row.pixels(found)), len(labels[split]))
    class_names = tuple(row.class_names(found))
    check_counts({"train": np.bincount(labels["train"], minlength=len(class_names))}, class_names)
    return _source(data, "the files of torchvision", str(place), class_names, labels)


def _load_torchvision(name: str, split: str, root: str, download: bool) -> Loaded:
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
    """Rows of the arrays that torchvision makes of its files."""
    row = TORCHVISION[shard.kind]
    found = _load_torchvision(shard.kind, shard.split, shard.path, download=False)
    yield from _array_rows(shard, np.asarray(row.pixels(found)), np.asarray(row.labels(found)))


def _array_rows(shard: Shard, images: np.ndarray, labels: np.ndarray) -> Rows:
    _check_lengths(shard.path, len(images), len(labels))
    for row in range(shard.first, shard.last):
        yield f"{shard.path}: {shard.split} row {row}", images[row], labels[row]


def _check_lengths(path: str, images: int, labels: int) -> None:
    if images != labels:
        raise DataError(f"{path}: {images} images have {labels} labels; fetch the files again")
