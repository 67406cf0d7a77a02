"""The real images as shared objects: decoded once by Ray tasks, sorted by class, never all in the driver.

What must stay true: the blocks, and so their digest, depend on the images and their order in the set alone, not on how
the set was cut into shards nor on where they were decoded.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from dasm_ray.config.digests import digest_of
from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, SessionError, TaskLost
from dasm_ray.plain import Values
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.machine import check_whitening
from dasm_ray.runtime.pool import ObjectRef, failure_of, loss_of
from dasm_ray.runtime.progress import Progress
from dasm_ray.store.datasets.catalogue import rows_of
from dasm_ray.store.datasets.found import Found
from dasm_ray.store.datasets.shards import Shard, Source, check_counts, decode, digest_block, split_of
from dasm_ray.store.datasets.splits import SPLITS, Cut

WAIT_NOTICE_SECONDS = 60.0
"""Without a finished task for this long, say so."""
WAIT_LIMIT_SECONDS = 3600.0
"""Without a finished task for this long, give up."""

SUM_ROWS = 256
"""Images squared at a time: bounds the memory of the sums."""


@dataclass(frozen=True)
class RealRefs:
    """Real images in the object store. ``splits[s][c]`` refers to uint8 (n, C, H, W), in the order of the set.

    ``mean`` and ``std`` are per channel, of the training pixels scaled to [0, 1]; ``digest`` covers all splits.
    """

    splits: Mapping[str, tuple[ObjectRef, ...]]
    counts: Mapping[str, NDArray[np.int64]]  # (K,) images per class
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    found: Values = field(default_factory=dict)  # `Found` as plain values: what was read, and how


def load_real(source: Source, data: Data, notice: Callable[[str], None], progress: Progress | None = None) -> RealRefs:
    """Decodes a set on the cluster and sorts it by split and class; says what was found, before and after decoding.

    ``source``: the set of ``data``, opened. Raises DataError for a set that holds something that cannot be used,
    ResourceError for a whitening that fits on no node, TaskLost or SessionError when the cluster does not do the work.
    """
    _check_room(source, data)
    for line in source.found.lines():
        notice(line)
    source, chunks = _decode_in_its_colours(source, data, notice, progress)
    counts = np.stack([chunk.counts for chunk in chunks]).sum(axis=0)
    _check_differ(chunks)
    check_counts(dict(zip(SPLITS, counts, strict=True)), source.class_names)
    found = _completed_report(source.found, counts, chunks)
    for line in found.decoded_lines():
        notice(line)
    if progress is not None:
        progress.found(found.as_values())
    summaries, blocks = _gather_all(chunks, source, notice, progress)
    mean, std = _moments(summaries, int(counts[0].sum()) * math.prod(source.shape[1:]))
    return RealRefs(
        splits={split: tuple(of_class[s] for of_class in blocks) for s, split in enumerate(SPLITS)},
        counts=dict(zip(SPLITS, counts, strict=True)),
        shape=source.shape,
        class_names=source.class_names,
        mean=mean,
        std=std,
        digest=digest_of([summary.digests for summary in summaries]),
        found=found.as_values(),
    )


def _check_room(source: Source, data: Data) -> None:
    """ResourceError for a whitening that no node has room for."""
    if data.zca is not None:
        check_whitening(source.shape, largest_memory())


def largest_memory() -> int:
    """Bytes of memory that the largest node of the cluster lends to its workers, its object store included."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return max((int(has.get("memory", 0) + has.get("object_store_memory", 0)) for has in nodes), default=0)


# --- decoding ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What the driver gets to know of a decoded shard: ``counts`` (3, K) of images, and their content ``keys`` (n,).

    ``sides`` (n,) says which split each key is in, ``done`` what was done to how many images, ``coloured`` how many
    are in colour.
    """

    counts: NDArray[np.int64]
    keys: NDArray[np.float64]
    sides: NDArray[np.int8]
    done: Counter[str]
    coloured: int


@dataclass(frozen=True)
class _Chunk:
    """A decoded shard, sorted by split and class: ``counts`` (3, K) says where each class lies."""

    facts: _Facts
    images: ObjectRef

    @property
    def counts(self) -> NDArray[np.int64]:
        return self.facts.counts

    def range_of(self, split: int, label: int) -> tuple[int, int]:
        """First and one past the last of the images of a class in a split."""
        before = self.counts.reshape(-1)[: split * self.counts.shape[1] + label].sum()
        return int(before), int(before + self.counts[split, label])


@ray.remote(num_cpus=1, num_returns=2, scheduling_strategy="SPREAD")
def _decode(shard: Shard, data: Data, cut: Cut) -> tuple[_Facts, NDArray[np.uint8]]:
    """What there is to tell of a shard, and its images (n, C, H, W) sorted by split and class, else in their order."""
    found = decode(shard, rows_of(shard), data)
    names = split_of(found.keys, cut) if shard.split == "train" else np.full(len(shard), shard.split)
    sides = np.array([SPLITS.index(name) for name in names], dtype=np.int64)
    cells = sides * shard.classes + found.labels
    counts = np.bincount(cells, minlength=len(SPLITS) * shard.classes).reshape(len(SPLITS), shard.classes)
    facts = _Facts(counts, found.keys, sides.astype(np.int8), found.done, found.coloured)
    return facts, found.images[np.argsort(cells, kind="stable")]


def _decode_in_its_colours(
    source: Source, data: Data, notice: Callable[[str], None], progress: Progress | None
) -> tuple[Source, list[_Chunk]]:
    """All shards, in their order, and the set in the shape that it turned out to have.

    A set whose first look showed grey images alone is decoded as such; an image in colour among the rest of the
    training images makes it a set in colour, and it is decoded once more.
    """
    shards = [shard for of_role in source.shards.values() for shard in of_role]
    chunks = _decode_all(shards, source, data, notice, progress)
    coloured = sum(c.facts.coloured for s, c in zip(shards, chunks, strict=True) if s.split == "train")
    if source.shape[0] == 3 or not coloured:
        return source, chunks
    notice(f"{coloured} training images are in colour, unlike those looked at first: all are read as RGB, once more")
    source = source.with_shape((3, *source.shape[1:]))
    _check_room(source, data)
    shards = [shard for of_role in source.shards.values() for shard in of_role]
    return source, _decode_all(shards, source, data, notice, progress)


def _decode_all(
    shards: list[Shard], source: Source, data: Data, notice: Callable[[str], None], progress: Progress | None
) -> list[_Chunk]:
    """All shards, in their order."""
    if progress is not None:
        progress.stage("data", len(shards) + len(source.class_names), source.name)
    calls = [partial(_decode.remote, shard, data, source.cut) for shard in shards]
    chunks: dict[int, _Chunk] = {}
    for index, facts, (images,) in _completed(calls, "decoding", notice):
        chunks[index] = _Chunk(facts, images)
        if progress is not None:
            progress.advance(samples=len(shards[index]))
    return [chunks[index] for index in range(len(shards))]


def _check_differ(chunks: list[_Chunk]) -> None:
    """DataError for a set all of whose images are one."""
    keys = np.concatenate([chunk.facts.keys for chunk in chunks])
    if len(keys) > 1 and np.all(keys == keys[0]):
        raise DataError(
            f"all {len(keys)} images are equal, pixel for pixel, so there is nothing to learn from; look at one "
            f"(drawings in one colour on a transparent ground of that colour look like that; data.ground sets it)"
        )


def _completed_report(found: Found, counts: NDArray[np.int64], chunks: list[_Chunk]) -> Found:
    """What was found, with what decoding has added."""
    keys = np.concatenate([chunk.facts.keys for chunk in chunks])
    sides = np.concatenate([chunk.facts.sides for chunk in chunks])
    trained = np.unique(keys[sides == 0])
    leaked = {split: int(np.isin(keys[sides == s], trained).sum()) for s, split in enumerate(SPLITS) if s}
    done = sum((chunk.facts.done for chunk in chunks), Counter[str]())
    return replace(
        found,
        counts={split: tuple(map(int, of_split)) for split, of_split in zip(SPLITS, counts, strict=True)},
        converted=dict(sorted(done.items())),
        equal=int((sides == 0).sum()) - len(trained),
        leaked={split: count for split, count in leaked.items() if count},
    )


# --- gathering ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Summary:
    """What the driver keeps of a class: a digest a split, and sums over training pixels a channel (Python integers)."""

    digests: tuple[str, ...]
    sums: tuple[int, ...]
    squares: tuple[int, ...]


@ray.remote(num_cpus=1, num_returns=1 + len(SPLITS))
def _gather(
    shape: tuple[int, int, int], ranges: list[list[tuple[int, int]]], *chunks: NDArray[np.uint8]
) -> tuple[Any, ...]:
    """The blocks of one class: ``ranges[s][i]`` is what split ``s`` takes of chunk ``i``."""
    nothing = np.empty((0, *shape), np.uint8)
    blocks = []
    for of_split in ranges:
        parts = [chunk[first:last] for chunk, (first, last) in zip(chunks, of_split, strict=True)]
        blocks.append(np.concatenate([nothing, *parts]))
    sums, squares = _sums(blocks[0])
    return _Summary(tuple(digest_block(block) for block in blocks), sums, squares), *blocks


def _sums(block: NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Exact sums of the pixels and of their squares, a channel."""
    total = np.zeros((2, block.shape[1]), np.uint64)
    for first in range(0, len(block), SUM_ROWS):
        part = block[first : first + SUM_ROWS]
        total[0] += part.sum(axis=(0, 2, 3), dtype=np.uint64)
        total[1] += np.square(part, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.uint64)
    return tuple(int(value) for value in total[0]), tuple(int(value) for value in total[1])


def _gather_all(
    chunks: list[_Chunk], source: Source, notice: Callable[[str], None], progress: Progress | None
) -> tuple[list[_Summary], list[list[ObjectRef]]]:
    """A summary and the blocks of the three splits for each class; the chunks are free afterwards."""
    labels = range(len(source.class_names))
    calls = [partial(_send_gather, chunks, label, source.shape) for label in labels]
    summaries: dict[int, _Summary] = {}
    blocks: dict[int, list[ObjectRef]] = {}
    for label, summary, of_splits in _completed(calls, "sorting by class", notice):
        summaries[label], blocks[label] = summary, of_splits
        if progress is not None:
            progress.advance()
    return [summaries[label] for label in labels], [blocks[label] for label in labels]


def _send_gather(chunks: list[_Chunk], label: int, shape: tuple[int, int, int]) -> list[ObjectRef]:
    """Asks for the blocks of a class, from the chunks that hold any of it."""
    holders = [chunk for chunk in chunks if chunk.counts[:, label].any()]
    ranges = [[chunk.range_of(split, label) for chunk in holders] for split in range(len(SPLITS))]
    refs: list[ObjectRef] = _gather.remote(shape, ranges, *(chunk.images for chunk in holders))
    return refs


def _moments(summaries: list[_Summary], pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of ``pixels`` values in [0, 1], rounded once; a constant channel has 1."""
    mean, std = [], []
    for channel in range(len(summaries[0].sums)):
        total = sum(summary.sums[channel] for summary in summaries)
        square = sum(summary.squares[channel] for summary in summaries)
        mean.append(total / (255 * pixels))
        std.append(math.sqrt((pixels * square - total * total) / (255 * pixels) ** 2) or 1.0)
    return tuple(mean), tuple(std)


# --- waiting -----------------------------------------------------------------------------------------------------


def _completed(
    calls: Sequence[Callable[[], list[ObjectRef]]], what: str, notice: Callable[[str], None]
) -> Iterator[tuple[int, Any, list[ObjectRef]]]:
    """Index, first output and references to the others for each call, as they are completed.

    Only a few calls are under way at a time, so that after an error the rest is simply never sent. Calling tasks off is
    no way: ``ray.cancel`` of a task that is just being sent can abort the driver (a failed check in Ray 2.60).
    """
    todo = iter(enumerate(calls))
    most = max(8, 2 * int(ray.cluster_resources().get("CPU", 0)))
    under_way: dict[ObjectRef, tuple[int, list[ObjectRef]]] = {}
    last = time.monotonic()
    while True:
        for index, call in itertools.islice(todo, most - len(under_way)):
            first, *others = call()
            under_way[first] = index, others
        if not under_way:
            return
        ready = watchdog.wait(list(under_way), WAIT_NOTICE_SECONDS)
        for ref in ready:
            index, others = under_way.pop(ref)
            yield index, _value(ref, what), others
            last = time.monotonic()
        if not ready:
            _tell_idle(time.monotonic() - last, what, notice)


def _value(ref: ObjectRef, what: str) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        name = f"{what} the real images"
        if (loss := loss_of(error)) is not None:
            raise TaskLost(f"{name}: lost for good; {loss.cause}; {loss.advice}") from error
        raise failure_of(name, error) from error


def _tell_idle(seconds: float, what: str, notice: Callable[[str], None]) -> None:
    if seconds > WAIT_LIMIT_SECONDS:
        raise SessionError(f"{what} the real images: nothing happened for {seconds / 60:.0f} minutes; see `ray status`")
    notice(f"{what} the real images: nothing has come back for {seconds:.0f} s; each task needs one free core")
