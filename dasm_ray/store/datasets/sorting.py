"""Sorts a decoded set by split and class, through the disk: chunks sorted each for itself, then merged class by class.

A chunk is a decoded shard, written in the order of (split, class). A merge owns a range of classes and reads one range
of every chunk. What must stay true: the images of a class are in the order of the set, however it was cut into shards;
pixels are written twice and read once; and memory holds one chunk or one part, whatever the size of the set.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of
from dasm_ray.config.keys import Data
from dasm_ray.errors import StorageError
from dasm_ray.store.datasets.blockcache import Making, part_name
from dasm_ray.store.datasets.blockfile import Part, Shape, write_part
from dasm_ray.store.datasets.catalogue import rows_of
from dasm_ray.store.datasets.shards import Shard, decode, sides_of
from dasm_ray.store.datasets.splits import SPLITS, Cut
from dasm_ray.store.place import Place

PART_BYTES = 1 << 27
"""Pixels of one part, and of the classes that are merged at once."""

WRITTEN_ROWS = 64
"""Images of a chunk that are put in order at once."""

SUM_ROWS = 256
"""Images squared at a time: bounds the memory of the sums."""

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]


# --- a chunk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What there is to tell of a decoded shard: ``counts`` (3, K) of images, and their content ``keys`` (n,).

    ``sides`` (n,) says which split each key is in, ``done`` what was done to how many images, ``coloured`` how many
    are in colour.
    """

    counts: Indices
    keys: NDArray[np.float64]
    sides: NDArray[np.int8]
    done: Counter[str]
    coloured: int


def write_chunk(chunks: Place, number: int, shard: Shard, data: Data, cut: Cut) -> Facts:
    """Decodes a shard and writes chunk ``number`` into the folder of ``chunks``.

    Raises DataError for an image or a label that cannot be used, StorageError where the chunk cannot be written.
    """
    found = decode(shard, rows_of(shard), data)
    sides = np.array([SPLITS.index(name) for name in sides_of(shard, found.keys, cut)], dtype=np.int64)
    cells = sides * shard.classes + found.labels
    counts = np.bincount(cells, minlength=len(SPLITS) * shard.classes).reshape(len(SPLITS), shard.classes)
    _write_rows(chunks / _chunk_name(number), found.images, np.argsort(cells, kind="stable"))
    return Facts(counts, found.keys, sides.astype(np.int8), found.done, found.coloured)


def _chunk_name(number: int) -> str:
    return f"{number:06}.raw"


def _write_rows(place: Place, images: Pixels, order: Indices) -> None:
    """Images in an order, a few at a time."""
    if place.local is None:
        place.write_bytes(images[order].tobytes())
        return
    with _written(place):
        place.local.parent.mkdir(exist_ok=True)  # not the folder above: it is gone once the set is given up
        with place.local.open("wb") as sink:
            for first in range(0, len(order), WRITTEN_ROWS):
                sink.write(images[order[first : first + WRITTEN_ROWS]].data)


@contextlib.contextmanager
def _written(place: Place) -> Iterator[None]:
    """StorageError for what a disk says to one who writes."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{place} cannot be written ({error.strerror or error}); make room there, or name another folder as "
            f"data.cache, and run again"
        ) from None


# --- a merge -----------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Classes from ``first`` on, for one task to merge: what the ``chunks`` (R,) that hold any of them have of them.

    ``counts`` (R, 3, classes) of images, which begin in each chunk at row ``starts`` (R, 3), split by split.
    """

    first: int
    chunks: Indices
    counts: Indices
    starts: Indices


def pieces(counts: Indices, shape: Shape) -> list[Piece]:
    """The work of sorting chunks of ``counts`` (R, 3, K): ranges of classes that come to a part, or one class."""
    bytes_of = counts.sum(axis=(0, 1)) * int(np.prod(shape))
    before = np.cumsum(counts.reshape(len(counts), -1), axis=1).reshape(counts.shape) - counts
    found = []
    for first, last in _ranges(bytes_of):
        mine = np.flatnonzero(counts[:, :, first:last].any(axis=(1, 2)))
        found.append(Piece(first, mine, counts[mine, :, first:last], before[mine, :, first]))
    return found


def _ranges(bytes_of: Indices) -> Iterator[tuple[int, int]]:
    """Classes [first, last) after one another that come to no more than a part, or are one class."""
    first, total = 0, 0
    for label, size in enumerate(bytes_of):
        if label > first and total + size > PART_BYTES:
            yield first, label
            first, total = label, 0
        total += int(size)
    yield first, len(bytes_of)


class Merged(NamedTuple):
    """Of a class: its parts and the digest of its images, split by split, and sums over training pixels a channel."""

    parts: tuple[tuple[Part, ...], ...]
    digests: tuple[str, ...]
    sums: tuple[int, ...]
    squares: tuple[int, ...]


def merge(making: Making, piece: Piece, shape: Shape) -> list[Merged]:
    """Writes the parts of the classes of a piece. Raises StorageError where they cannot be written."""
    place, chunks = making
    classes = piece.counts.shape[2]
    merged = [_Class(piece.first + c, shape) for c in range(classes)]
    for split in range(len(SPLITS)):
        counts = piece.counts[:, split]
        for each, rows in zip(merged, counts.sum(axis=0), strict=True):
            each.begin(split, int(rows))
        if classes == 1:
            for images in _in_parts(chunks, piece, split, shape):
                merged[0].add(place, images)
        else:
            images = _gathered(chunks, piece, split, shape, 0, int(counts.sum()))
            ends = np.cumsum(counts.sum(axis=0))
            for each, block in zip(merged, np.split(images, ends[:-1]), strict=True):
                each.add(place, block)
    return [each.merged() for each in merged]


def _in_parts(chunks: Place, piece: Piece, split: int, shape: Shape) -> Iterator[Pixels]:
    """The images of one class, a part at a time."""
    most, rows = max(1, PART_BYTES // int(np.prod(shape))), int(piece.counts[:, split].sum())
    for first in range(0, rows, most):
        yield _gathered(chunks, piece, split, shape, first, min(first + most, rows))


def _gathered(chunks: Place, piece: Piece, split: int, shape: Shape, first: int, last: int) -> Pixels:
    """Images [first, last) of the classes of a piece, class after class, each in the order of the chunks."""
    counts, width = piece.counts[:, split], int(np.prod(shape))
    by_class = counts.T.ravel()  # in the order in which they are to lie
    begins = (np.cumsum(by_class) - by_class).reshape(counts.T.shape).T
    images = np.empty((last - first, *shape), np.uint8)
    for number, of_chunk, at, start in zip(piece.chunks, counts, begins, piece.starts[:, split], strict=True):
        low, high = np.maximum(at, first), np.minimum(at + of_chunk, last)
        wanted = np.maximum(high - low, 0)
        if not wanted.any():
            continue
        rows = np.cumsum(of_chunk) - of_chunk + np.maximum(low - at, 0)  # where each class's begin, among the chunk's
        some = np.flatnonzero(wanted)
        begin, end = int(rows[some[0]]), int(rows[some[-1]] + wanted[some[-1]])
        block = _read_rows(chunks / _chunk_name(int(number)), int(start) + begin, end - begin, width).reshape(
            -1, *shape
        )
        for c in some:
            images[low[c] - first : high[c] - first] = block[rows[c] - begin : rows[c] - begin + wanted[c]]
    return images


def _read_rows(place: Place, first: int, rows: int, width: int) -> Pixels:
    with place.open() as source:
        source.seek(first * width)
        found = np.frombuffer(source.read(rows * width), np.uint8)
    if len(found) != rows * width:
        raise StorageError(f"{place} was cut short while images were sorted; run again")
    return found


class _Class:
    """A class while it is merged, split by split and part by part."""

    def __init__(self, label: int, shape: Shape) -> None:
        self._label, self._shape = label, shape
        self._parts: list[list[Part]] = []
        self._digests: list[hashlib._Hash] = []
        self._sums = np.zeros((2, shape[0]), np.uint64)

    def begin(self, split: int, rows: int) -> None:
        """The next split, of so many images."""
        assert split == len(self._parts)
        self._parts.append([])
        self._digests.append(_digest_of(rows, self._shape))

    def add(self, place: Place, images: Pixels) -> None:
        """Its next images in this split."""
        if not len(images):
            return
        split, parts = len(self._parts) - 1, self._parts[-1]
        parts.append(_save(place / part_name(SPLITS[split], self._label, len(parts)), images))
        self._digests[-1].update(np.ascontiguousarray(images).data)
        if split == 0:
            for first in range(0, len(images), SUM_ROWS):
                some = images[first : first + SUM_ROWS]
                self._sums[0] += some.sum(axis=(0, 2, 3), dtype=np.uint64)
                self._sums[1] += np.square(some, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.uint64)

    def merged(self) -> Merged:
        """What came of it."""
        sums, squares = (tuple(int(value) for value in row) for row in self._sums)
        digests = tuple(digest.hexdigest() for digest in self._digests)
        return Merged(tuple(map(tuple, self._parts)), digests, sums, squares)


def _digest_of(rows: int, shape: Shape) -> hashlib._Hash:
    """The digest of so many images of a class in a split, before the first of them."""
    return hashlib.sha256(str((rows, *shape)).encode())


class Seal:
    """Tells whether a set is the one whose digest is known, without sorting it: gets all its images, in their order.

    ``counts``: the images a class (K,) that the set had, by split.
    """

    def __init__(self, counts: Mapping[str, Sequence[int]], shape: Shape) -> None:
        self._left = np.array([counts[split] for split in SPLITS], np.int64)
        self._digests = [[_digest_of(int(rows), shape) for rows in of_class] for of_class in self._left.T]

    def add(self, images: Pixels, labels: Indices, sides: NDArray[np.str_]) -> None:
        """The next images (n, C, H, W), their labels (n,) and the names of their splits (n,)."""
        for split, name in enumerate(SPLITS):
            for label in np.unique(labels[sides == name]):
                mine = images[(labels == label) & (sides == name)]
                self._left[split, label] -= len(mine)
                self._digests[label][split].update(mine.data)

    @property
    def is_whole(self) -> bool:
        """Whether there were as many images of every class in every split."""
        return not self._left.any()

    @property
    def digest(self) -> str:
        """What `Index.digest` is of a set of these images."""
        return digest_of(tuple(tuple(each.hexdigest() for each in of_class) for of_class in self._digests))


def _save(place: Place, images: Pixels) -> Part:
    """Writes a part; to an object store through a file here."""
    if place.local is not None:
        with _written(place):
            place.local.parent.parent.mkdir(exist_ok=True)
            place.local.parent.mkdir(exist_ok=True)
            return write_part(place.local, images)
    with tempfile.TemporaryDirectory() as folder, _written(Place(folder)):
        file = Path(folder) / "part.arrow"
        part = write_part(file, images)
        place.write_bytes(file.read_bytes())
        return part
