"""A set sorted through the disk against a plain loop over its images, however it is cut."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made import encoded, parquet, pixels_of, table_of, write

from dasm_ray.errors import StorageError
from dasm_ray.runtime.decoding import index_of
from dasm_ray.store.datasets import sorting
from dasm_ray.store.datasets.blockcache import Making, part_name
from dasm_ray.store.datasets.blockfile import mapped
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode, split_of
from dasm_ray.store.datasets.sorting import Merged, Seal, merge, pieces, write_chunk
from dasm_ray.store.datasets.splits import SPLITS
from dasm_ray.store.place import Place

SHAPE = (1, 2, 3)
WIDTH = 6


def making(folder: Path) -> Making:
    return Making(Place(folder), Place(folder) / "chunks")


def sort_here(folder: Path, chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int) -> list[Merged]:
    """Chunks of images, their splits and labels, through the functions that tasks call."""
    counts = []
    for number, (images, sides, labels) in enumerate(chunks):
        cells = sides * classes + labels
        counts.append(np.bincount(cells, minlength=3 * classes).reshape(3, classes))
        order = np.argsort(cells, kind="stable")
        sorting._write_rows(Place(folder) / "chunks" / sorting._chunk_name(number), images, order)
    work = pieces(np.stack(counts), SHAPE)
    assert [piece.first for piece in work] == sorted(piece.first for piece in work)
    return [each for piece in work for each in merge(making(folder), piece, SHAPE)]


def read(folder: Path, merged: list[Merged], split: int, label: int) -> np.ndarray:
    parts = merged[label].parts[split]
    files = [folder / part_name(SPLITS[split], label, number) for number in range(len(parts))]
    found = [mapped(file, part, SHAPE, is_checked=False) for file, part in zip(files, parts, strict=True)]
    return np.concatenate([np.empty((0, *SHAPE), np.uint8), *found])


def random_chunks(seed: int, sizes: list[int], classes: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(seed)
    return [
        (
            draw.integers(0, 256, (size, *SHAPE), np.uint8),
            draw.choice(3, size, p=[0.7, 0.1, 0.2]),
            draw.integers(0, classes, size) ** 2 // classes,  # the last classes are larger, some are in no chunk
        )
        for size in sizes
    ]


def test_a_seal_gives_the_digest_of_the_sorted_set_and_of_no_other(tmp_path: Path) -> None:
    chunks = random_chunks(3, [60, 1, 0, 97], 7)
    wanted = index_of(sort_here(tmp_path, chunks, 7), SHAPE, {}).digest
    images, sides, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    counts = {name: np.bincount(labels[sides == split], minlength=7) for split, name in enumerate(SPLITS)}
    names = np.array(SPLITS)

    def seal(of: np.ndarray, first: int) -> Seal:
        made = Seal(counts, SHAPE)
        for part in (slice(first), slice(first, None)):
            made.add(of[part], labels[part], names[sides[part]])
        return made

    for first in (0, 1, 80):
        assert (seal(images, first).digest, seal(images, first).is_whole) == (wanted, True)
    assert seal(255 - images, 80).digest != wanted
    cut = Seal(counts, SHAPE)
    cut.add(images[1:], labels[1:], names[sides[1:]])
    assert not cut.is_whole


@pytest.mark.parametrize("part_bytes", [1, 5 * WIDTH, 40 * WIDTH, 10**9])
@pytest.mark.parametrize(("sizes", "classes"), [([60, 1, 0, 97], 7), ([200], 2), ([3, 4, 5], 20)])
def test_every_class_has_its_images_in_the_order_of_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, sizes: list[int], classes: int
) -> None:
    monkeypatch.setattr(sorting, "PART_BYTES", part_bytes)
    monkeypatch.setattr(sorting, "WRITTEN_ROWS", 7)
    monkeypatch.setattr(sorting, "SUM_ROWS", 3)
    chunks = random_chunks(len(sizes), sizes, classes)
    images, sides, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    merged = sort_here(tmp_path, chunks, classes)
    assert len(merged) == classes
    for label, each in enumerate(merged):
        for split in range(3):
            wanted = images[(sides == split) & (labels == label)]
            np.testing.assert_array_equal(read(tmp_path, merged, split, label), wanted)
            assert each.digests[split] == hashlib.sha256(str(wanted.shape).encode() + wanted.tobytes()).hexdigest()
            assert all(part.rows * WIDTH <= max(part_bytes, WIDTH) for part in each.parts[split])
        train = images[(sides == 0) & (labels == label)].astype(int)
        assert (each.sums, each.squares) == ((train.sum(),), ((train**2).sum(),))


def test_work_is_cut_into_ranges_of_classes_that_come_to_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "PART_BYTES", 10 * WIDTH)
    counts = np.array([[[4, 5, 30, 0, 2, 9], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]])
    assert [(piece.first, piece.counts.shape[2]) for piece in pieces(counts, SHAPE)] == [(0, 2), (2, 1), (3, 2), (5, 1)]


def test_a_merge_reads_one_range_of_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[str, int, int]] = []
    plain = sorting._read_rows

    def watched(place: Place, first: int, rows: int, width: int) -> np.ndarray:
        ranges.append((place.name, first, rows))
        return plain(place, first, rows, width)

    monkeypatch.setattr(sorting, "_read_rows", watched)
    monkeypatch.setattr(sorting, "PART_BYTES", 20 * WIDTH)
    chunks = random_chunks(3, [80, 90], 6)
    counts = [np.bincount(sides * 6 + labels, minlength=18).reshape(3, 6) for _, sides, labels in chunks]
    sort_here(tmp_path, chunks, 6)
    work = pieces(np.stack(counts), SHAPE)
    small = [piece for piece in work if piece.counts.sum() <= 20]
    assert small
    for piece in small:
        for number, starts, of_chunk in zip(piece.chunks, piece.starts, piece.counts, strict=True):
            for start, rows in zip(starts, of_chunk.sum(axis=1), strict=True):
                assert not rows or ranges.count((f"{number:06}.raw", start, rows)) == 1
    assert sum(rows for _, _, rows in ranges) == 170, "every image is read once"


def test_a_chunk_is_the_decoded_shard(tmp_path: Path) -> None:
    images = [encoded(pixels_of(seed, channels=1)) for seed in range(30)]
    write(tmp_path / "train.parquet", table_of(images, [seed % 3 for seed in range(30)]))
    data = parquet(tmp_path, val_share=0.3)
    source = open_source(data)
    (shard,) = source.shards["train"]
    facts = write_chunk(Place(tmp_path) / "chunks", 4, shard, data, source.cut)
    found = decode(shard, rows_of(shard), data)
    names = split_of(found.keys, source.cut)
    wanted = [found.images[(names == s) & (found.labels == c)] for s in SPLITS for c in range(3)]
    assert facts.counts.ravel().tolist() == [len(each) for each in wanted]
    assert (tmp_path / "chunks" / "000004.raw").read_bytes() == np.concatenate(wanted).tobytes()
    assert (facts.keys.tolist(), facts.coloured, facts.done) == (found.keys.tolist(), 0, Counter())


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "000000.raw").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); make room there, or name"):
        sorting._write_rows(Place(tmp_path) / "chunks/000000.raw", np.zeros((9000, *SHAPE), np.uint8), np.arange(9000))


def test_a_chunk_that_was_cut_short_is_said(tmp_path: Path) -> None:
    chunks = random_chunks(1, [50], 2)
    sort_here(tmp_path, chunks, 2)
    with (tmp_path / "chunks" / "000000.raw").open("r+b") as file:
        file.truncate(100)
    counts = np.stack([np.bincount(s * 2 + c, minlength=6).reshape(3, 2) for _, s, c in chunks])
    with pytest.raises(StorageError, match="was cut short"):
        [merge(making(tmp_path), piece, SHAPE) for piece in pieces(counts, SHAPE)]
