"""The real images, decoded once by Ray tasks and kept on disk, sorted by class.

Neither the driver nor the object store ever holds them.

What must stay true: the blocks, and so their digest, depend on the images and their order in the set alone, not on how
the set was cut into shards nor on where they were decoded; and a set that is kept already is not decoded again.
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
from dasm_ray.config.shown import several
from dasm_ray.errors import DataError, SessionError, TaskLost
from dasm_ray.plain import Tree, Values
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.machine import check_whitening
from dasm_ray.runtime.parts import on_node, this_node
from dasm_ray.runtime.pool import failure_of, loss_of
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.store.datasets import sorting
from dasm_ray.store.datasets.blockcache import BlockCache, Index, Kept, Making
from dasm_ray.store.datasets.fingerprint import fingerprint
from dasm_ray.store.datasets.found import Found
from dasm_ray.store.datasets.shards import Shard, Source, check_counts
from dasm_ray.store.datasets.sorting import Facts, Merged, Piece, pieces
from dasm_ray.store.datasets.splits import SPLITS, Cut
from dasm_ray.store.place import Place

WAIT_NOTICE_SECONDS = 60.0
"""Without a finished task for this long, say so."""
WAIT_LIMIT_SECONDS = 3600.0
"""Without a finished task for this long, give up."""

Notice = Callable[[str], None]


@dataclass(frozen=True)
class RealRefs:
    """Real images where they are kept, class-sorted, in the order of the set. ``splits``: those that may be read.

    ``mean`` and ``std`` are per channel, of the training pixels scaled to [0, 1]; ``digest`` covers all splits.
    """

    kept: Kept
    counts: Mapping[str, NDArray[np.int64]]  # (K,) images per class
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    found: Values = field(default_factory=dict)  # `Found` as plain values: what was read, and how
    splits: tuple[str, ...] = SPLITS


def load_real(source: Source, data: Data, notice: Notice, progress: Progress | None = None) -> RealRefs:
    """The set, decoded on the cluster and sorted by split and class unless that is done; says what was found.

    ``source``: the set of ``data``, opened. Raises DataError for a set that holds something that cannot be used,
    ResourceError for a whitening that fits on no node or a set that fits on no disk, StorageError where it cannot be
    written, TaskLost or SessionError when the cluster does not do the work.
    """
    _check_room(source, data)
    for line in source.found.lines():
        notice(line)
    cache, key = BlockCache(data, notice), fingerprint(source, data)
    index = cache.find(key)
    if index is None:
        with cache.alone(key, source.name):
            index = cache.find(key) or _sort(cache, key, source, data, notice, progress)
    else:
        notice(f"  kept       sorted images in {cache.place / key}; nothing is decoded")
    source = source.with_shape(index.shape)
    _check_room(source, data)
    found = _completed_report(source.found, index)
    for line in found.decoded_lines():
        notice(line)
    if progress is not None:
        progress.found(found.as_values())
    return RealRefs(
        kept=cache.kept(key, this_node()),
        counts=index.counts,
        shape=index.shape,
        class_names=source.class_names,
        mean=index.mean,
        std=index.std,
        digest=index.digest,
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


def _completed_report(found: Found, index: Index) -> Found:
    """What was found, with what decoding has added."""
    counts = {split: tuple(map(int, of_split)) for split, of_split in index.counts.items()}
    return replace(found, counts=counts, **index.told)


# --- decoding ----------------------------------------------------------------------------------------------------


def _sort(cache: BlockCache, key: str, source: Source, data: Data, notice: Notice, progress: Progress | None) -> Index:
    """Decodes all shards, sorts them, and puts the set where it is kept."""
    with cache.making(key, _pixels(source)) as making:
        source, facts = _decode_in_its_colours(source, data, making.chunks, notice, progress)
        counts = np.stack([each.counts for each in facts])
        _check_differ(facts)
        check_counts(dict(zip(SPLITS, counts.sum(axis=0), strict=True)), source.class_names)
        merged = _merge_all(pieces(counts, source.shape), making, source.shape, notice, progress)
        index = index_of(merged, source.shape, told(facts))
        index.write(making.place)
    return index


def _pixels(source: Source) -> int:
    """Bytes of all images, decoded."""
    return sum(split.images for split in source.found.splits) * math.prod(source.shape)


@ray.remote(num_cpus=1)
def _decode(chunks: Place, number: int, shard: Shard, data: Data, cut: Cut) -> Facts:
    return sorting.write_chunk(chunks, number, shard, data, cut)


def _decode_in_its_colours(
    source: Source, data: Data, chunks: Place, notice: Notice, progress: Progress | None
) -> tuple[Source, list[Facts]]:
    """All shards, in their order, and the set in the shape that it turned out to have.

    A set whose first look showed grey images alone is decoded as such; an image in colour among the rest of the
    training images makes it a set in colour, and it is decoded once more.
    """
    shards = [shard for of_role in source.shards.values() for shard in of_role]
    facts = _decode_all(shards, source, data, chunks, notice, progress)
    coloured = sum(each.coloured for shard, each in zip(shards, facts, strict=True) if shard.split == "train")
    if source.shape[0] == 3 or not coloured:
        return source, facts
    what = several(coloured, "training images are", "training image is")
    notice(f"{what} in colour, unlike those looked at first: all are read as RGB, once more")
    source = source.with_shape((3, *source.shape[1:]))
    _check_room(source, data)
    shards = [shard for of_role in source.shards.values() for shard in of_role]
    return source, _decode_all(shards, source, data, chunks, notice, progress)


def _decode_all(
    shards: list[Shard], source: Source, data: Data, chunks: Place, notice: Notice, progress: Progress | None
) -> list[Facts]:
    """All shards, in their order."""
    if progress is not None:
        progress.stage("data", len(shards) + len(source.class_names), source.name)
    decode, most = on_node(_decode, chunks)
    calls = [partial(decode.remote, chunks, n, shard, data, source.cut) for n, shard in enumerate(shards)]
    facts: dict[int, Facts] = {}
    for number, each in _completed(calls, most, "decoding", notice):
        facts[number] = each
        if progress is not None:
            progress.advance(samples=len(shards[number]))
    return [facts[number] for number in range(len(shards))]


def _check_differ(facts: list[Facts]) -> None:
    """DataError for a set all of whose images are one."""
    keys = np.concatenate([each.keys for each in facts])
    if len(keys) > 1 and np.all(keys == keys[0]):
        raise DataError(
            f"all {len(keys)} images are equal, pixel for pixel, so there is nothing to learn from; look at one "
            f"(drawings in one colour on a transparent ground of that colour look like that; data.ground sets it)"
        )


def told(facts: list[Facts]) -> Tree:
    """What decoding has found out about the set."""
    keys = np.concatenate([each.keys for each in facts])
    sides = np.concatenate([each.sides for each in facts])
    trained = np.unique(keys[sides == 0])
    leaked = {split: int(np.isin(keys[sides == s], trained).sum()) for s, split in enumerate(SPLITS) if s}
    done = sum((each.done for each in facts), Counter[str]())
    return {
        "converted": dict(sorted(done.items())),
        "equal": int((sides == 0).sum()) - len(trained),
        "leaked": {split: count for split, count in leaked.items() if count},
    }


# --- merging -----------------------------------------------------------------------------------------------------


@ray.remote(num_cpus=1)
def _merge(making: Making, piece: Piece, shape: tuple[int, int, int]) -> list[Merged]:
    return sorting.merge(making, piece, shape)


def _merge_all(
    work: list[Piece], making: Making, shape: tuple[int, int, int], notice: Notice, progress: Progress | None
) -> list[Merged]:
    """What came of every class, in their order."""
    merge, most = on_node(_merge, making.place)
    calls = [partial(merge.remote, making, piece, shape) for piece in work]
    merged: dict[int, list[Merged]] = {}
    for number, classes in _completed(calls, most, "sorting", notice):
        merged[number] = classes
        if progress is not None:
            progress.advance(len(classes))
    return [each for number in range(len(work)) for each in merged[number]]


def index_of(merged: list[Merged], shape: tuple[int, int, int], told: Values) -> Index:
    """The index of a set whose classes are merged."""
    parts = {split: tuple(each.parts[s] for each in merged) for s, split in enumerate(SPLITS)}
    images = sum(part.rows for of_class in parts["train"] for part in of_class)
    mean, std = _moments(merged, images * math.prod(shape[1:]))
    digests = tuple(each.digests for each in merged)
    return Index(shape, parts, digests, mean, std, digest_of(digests), told)


def _moments(merged: list[Merged], pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of ``pixels`` values in [0, 1], rounded once; a constant channel has 1."""
    mean, std = [], []
    for channel in range(len(merged[0].sums)):
        total = sum(each.sums[channel] for each in merged)
        square = sum(each.squares[channel] for each in merged)
        mean.append(total / (255 * pixels))
        std.append(math.sqrt((pixels * square - total * total) / (255 * pixels) ** 2) or 1.0)
    return tuple(mean), tuple(std)


# --- waiting -----------------------------------------------------------------------------------------------------


def _completed(
    calls: Sequence[Callable[[], ObjectRef]], most: int, what: str, notice: Notice
) -> Iterator[tuple[int, Any]]:
    """Index and answer of each call, as they are completed.

    Only ``most`` calls are under way at a time, so that after an error the rest is simply never sent. Calling tasks off
    is no way: ``ray.cancel`` of a task that is just being sent can abort the driver (a failed check in Ray 2.60).
    """
    todo = iter(enumerate(calls))
    under_way: dict[ObjectRef, int] = {}
    last = time.monotonic()
    while True:
        for index, call in itertools.islice(todo, most - len(under_way)):
            under_way[call()] = index
        if not under_way:
            return
        ready = watchdog.wait(list(under_way), WAIT_NOTICE_SECONDS)
        for ref in ready:
            yield under_way.pop(ref), _value(ref, what)
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
