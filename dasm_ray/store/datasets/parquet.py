"""Sets in Parquet, in the image layout of Hugging Face: which files are which split, and what they say of themselves.

What must stay true: files of two sets are never mixed, no split is trained on that is named otherwise, and a set that
lacks a file is refused. What each split holds is known from its labels before an image is read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasm_ray.config.keys import Data
from dasm_ray.config.shown import escaped, several
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.store import parquetfile
from dasm_ray.store.datasets.found import Found, LeftOut, SplitFound, leaving
from dasm_ray.store.datasets.listing import Listing, is_hidden, list_one_level
from dasm_ray.store.datasets.pixels import first_line
from dasm_ray.store.datasets.shards import SHARD_ROWS, Rows, Shard, Source, address, check_counts, cut_rows, needed_path
from dasm_ray.store.datasets.splits import (
    CALLED,
    SPLITS,
    cut_of,
    number_missing,
    roles_of,
    series_of,
    shard_of,
    shards_missing,
    splits_named,
)
from dasm_ray.store.place import Place

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SUFFIX = ".parquet"
READERS_AT_ONCE = 8
"""Files whose footers and labels are read side by side: what takes time is waiting, in an object store."""
AT_ONCE = 4 << 20
"""Bytes, as stored, of the rows that are in memory at once; one row is, however large."""


def open_parquet(data: Data) -> Source:
    """A folder of Parquet files (or a folder in it, or one file), their splits told by their names."""
    place = Place(needed_path(data))
    files = parquet_files(place)
    if files is None:
        raise DataError(f"data.path: {place} holds no Parquet file with training images{_what_else(place)}")
    return source_of(files, data)


def source_of(files: Files, data: Data) -> Source:
    """The set that Parquet files make up."""
    with ThreadPoolExecutor(READERS_AT_ONCE) as readers:
        tables = {
            split: list(readers.map(_table, [files.place / path for path in paths]))
            for split, paths in files.splits.items()
        }
    kept, unlabelled = _without_unlabelled(tables)
    class_names, notes = _class_names(kept)
    roles = roles_of(kept)
    splits = tuple(
        SplitFound(split, roles[split], _name(files.splits[split]), _per_class(of_split, len(class_names)))
        for split, of_split in kept.items()
    )
    check_counts({"train": np.array(splits[0].per_class)}, class_names)
    shards = {
        roles[split]: tuple(s for table in of_split for s in _shards(table, roles[split], len(class_names)))
        for split, of_split in kept.items()
    }
    found = Found(
        name=data.name,
        form=f"{_count(files)} in Parquet, column {' and '.join(kept['train'][0].columns)}",
        class_names=class_names,
        splits=splits,
        left_out=(*files.left_out, *unlabelled),
        notes=(*files.notes, *notes),
        cut=cut_of(roles.values(), data),
    )
    return Source(data.name, class_names, shards, found)


def _shards(table: _Table, role: str, classes: int) -> tuple[Shard, ...]:
    return cut_rows("parquet", role, address(table.file), len(table.labels), classes, SHARD_ROWS, table.columns)


# --- which files are which split ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Parquet files by split, by paths relative to a place."""

    place: Place
    splits: Mapping[str, tuple[str, ...]]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_at_top(self) -> bool:
        """Whether they lie in the folder itself or in its `data` folder."""
        return all("/" not in path or path.startswith("data/") for paths in self.splits.values() for path in paths)


def parquet_files(place: Place) -> Files | None:
    """The Parquet files of a set: in the folder, in split folders, or one folder down; None where there are none.

    DataError for names that can be read in two ways, and for sets of numbered shards that are not whole.
    """
    if place.name.lower().endswith(SUFFIX):
        return _one_file(place)
    if place.local is not None and not place.local.is_dir():
        return None
    holders, left_out = _holders(place)
    if not holders:
        return None
    if len(holders) > 1:
        names = " and in ".join(f"{escaped(str(place / holder)) if holder else place}" for holder in sorted(holders))
        raise DataError(f"data.path: there are Parquet files in {names}, which could be one set or several; name one")
    (paths,) = holders.values()
    splits, without = _by_split(place, paths)
    for split, of_split in splits.items():
        _check_one_series(place, split, of_split)
    if without:
        what = "Parquet files whose names say no split", "Parquet file whose name says no split"
        left_out = (*left_out, leaving(without, *what))
    return Files(place, splits, left_out)


def _one_file(place: Place) -> Files:
    """A file that the user named is the whole set, whatever its name says; that it is one of several is said."""
    shard = shard_of(_stem(place.name))
    note = f"{place.name} is taken alone, as data.path names it, and is one of {shard[1]} shards" if shard else ""
    return Files(place.parent, {"train": (place.name,)}, (), (note,) if shard and shard[1] > 1 else ())


def _holders(place: Place) -> tuple[dict[str, list[str]], tuple[LeftOut, ...]]:
    """Relative paths of Parquet files by the folder that holds them ("" for the place itself); and what is hidden.

    A folder that names a split belongs to the folder that it lies in.
    """
    top = list_one_level(place)
    holders = {"": _parquet_in(top, "")}
    hidden = list(top.hidden)
    for folder in top.folders:
        inner = list_one_level(place / folder)
        holder = "" if splits_named(folder) else folder
        if not holder:
            holders[""] += _parquet_in(inner, f"{folder}/")
            continue
        holders[folder] = _parquet_in(inner, f"{folder}/")
        for split in inner.folders:
            if splits_named(split):
                holders[folder] += _parquet_in(list_one_level(place / folder / split), f"{folder}/{split}/")
        hidden += [f"{folder}/{name}" for name in inner.hidden]
    hidden = [name for name in hidden if name.lower().endswith(SUFFIX)]
    left_out = (leaving(hidden, "hidden Parquet files", "hidden Parquet file"),) if hidden else ()
    return {holder: paths for holder, paths in holders.items() if paths}, left_out


def _parquet_in(listing: Listing, prefix: str) -> list[str]:
    return [prefix + name for name in listing.files if name.lower().endswith(SUFFIX)]


def _by_split(place: Place, paths: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Paths by split, train first, and those whose names say none where others do."""
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(_split_of(place, path), []).append(path)
    without = splits.pop("", [])
    if not splits:
        return {"train": tuple(without)}, []
    if "train" not in splits:
        _refuse_no_train(place, splits, without)
    return {split: tuple(splits[split]) for split in SPLITS if split in splits}, without


def _split_of(place: Place, path: str) -> str:
    """The split that a file's folder and name say; empty for none, DataError for two."""
    folders, _, name = path.rpartition("/")
    said = {part: found for part in (*folders.split("/"), _stem(name)) if (found := splits_named(part))}
    splits = sorted({split for found in said.values() for split in found}, key=SPLITS.index)
    if len(splits) > 1:
        both = " and as ".join(f"the {CALLED[split]} split" for split in splits)
        raise DataError(f"{escaped(str(place / path))} can be read as {both} by its name; rename it")
    return splits[0] if splits else ""


def _refuse_no_train(place: Place, splits: Mapping[str, Sequence[str]], without: Sequence[str]) -> None:
    """A DataError for files none of which says that it is to be trained on."""
    named = " and ".join(escaped(paths[0]) for paths in splits.values())
    if without:
        raise DataError(
            f"data.path: {place} holds {named} beside {escaped(without[0])}, which could be the training images or no "
            f"part of the set; rename it to train{SUFFIX} or move it away"
        )
    raise DataError(
        f"data.path: {place} holds no Parquet file with training images, only {named}; "
        f"add train{SUFFIX}, or name one file as data.path to take it as the whole set"
    )


def _check_one_series(place: Place, split: str, paths: Sequence[str]) -> None:
    """DataError unless the files of a split differ in their number alone and none of them is missing."""
    first = paths[0]
    other = next((path for path in paths if _series(path) != _series(first)), None)
    if other is not None:
        raise DataError(
            f"{escaped(str(place / first))} and {escaped(other.rpartition('/')[2])} could be two parts of the "
            f"{CALLED[split]} split or belong to two sets; let their names differ in a number alone, or move one away"
        )
    if gap := number_missing([_stem(path.rpartition("/")[2]) for path in paths]):
        raise DataError(
            f"{escaped(str(place / first))} and those beside it: the files of the {CALLED[split]} split are numbered, "
            f"and {escaped(gap)}{SUFFIX} is missing; fetch it, or number them without a gap"
        )
    shards = {path: shard for path in paths if (shard := shard_of(_stem(path))) is not None}
    seen: dict[int, str] = {}
    for path, (number, total) in shards.items():
        if number in seen or total != shards[first][1]:
            twin = seen.get(number, first)
            raise DataError(
                f"{escaped(str(place / path))} and {escaped(twin.rpartition('/')[2])} are of two writings of the "
                f"{CALLED[split]} split, and either could be meant; move one writing away"
            )
        seen[number] = path
    if missing := shards_missing([_stem(path) for path in shards]):
        more = f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is"
        raise DataError(
            f"{escaped(str(place / missing[0]))}{SUFFIX}{more} missing from the {CALLED[split]} split, which has "
            f"{len(shards)} of its {shards[first][1]} files; fetch the set again"
        )


def _stem(path: str) -> str:
    """A path without the suffix of Parquet."""
    return path[: -len(SUFFIX)] if path.lower().endswith(SUFFIX) else path


def _series(path: str) -> tuple[str, str]:
    """The folder of a file and the series that its name is of."""
    folder, _, name = path.rpartition("/")
    return folder, series_of(_stem(name)).template


def _name(paths: Sequence[str]) -> str:
    """What a split is called: its file, or its files with their numbers as ``*``; its folder where that names it."""
    folder, _, name = paths[0].rpartition("/")
    last = folder.rpartition("/")[2]
    if splits_named(last):
        return last
    return name if len(paths) == 1 else series_of(_stem(name)).template.replace("*-of-*", "*") + SUFFIX


def _count(files: Files) -> str:
    count = sum(map(len, files.splits.values()))
    return several(count, "files")


def _what_else(place: Place) -> str:
    """What a folder without usable Parquet holds instead, as far as it helps."""
    if place.local is not None and place.local.is_file():
        return f"; {place.name} is a file of another kind"
    folders = [path for path in list_one_level(place).folders if not is_hidden(path)]
    for folder in folders:
        for deeper in list_one_level(place / folder).folders:
            if _parquet_in(list_one_level(place / folder / deeper), ""):
                return f"; there is some in {escaped(str(place / folder / deeper))}, name that folder"
    return "; name the folder that holds some" + (", or set data.name to folder for image files" if folders else "")


# --- what files say of themselves --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What a Parquet file says of itself, and its labels; ``lacking`` (n,) marks rows without one."""

    file: Place
    columns: tuple[str, str]  # of image and label
    class_names: tuple[str, ...] | None
    labels: np.ndarray  # (n,) int64
    lacking: np.ndarray  # (n,) bool

    @property
    def is_unlabelled(self) -> bool:
        """Whether no row has a label: null, or negative as the hub writes it."""
        return bool(np.all(self.lacking | (self.labels < 0)))


def _table(file: Place) -> _Table:
    with _readable(str(file)), file.open() as source:
        parquet = pq.ParquetFile(source)
        schema = parquet.schema_arrow
        columns = _columns(schema, file)
        column = parquet.read(columns=[columns[1]]).column(0).combine_chunks()
        lacking = column.is_null().to_numpy(zero_copy_only=False)
        labels = column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return _Table(file, columns, _names_in(schema, columns[1]), labels, lacking)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """DataError instead of what pyarrow raises for damaged bytes."""
    try:
        yield
    except RunDirError as error:
        raise DataError(str(error)) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be read as Parquet ({first_line(error)}); copy it again") from None


def _columns(schema: pa.Schema, file: Place) -> tuple[str, str]:
    """The names of the image and the label column, whose types must fit."""
    image, label = _column(schema, IMAGE_COLUMNS, file), _column(schema, LABEL_COLUMNS, file)
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column {image} is {kind}, not encoded images (binary, or struct with bytes)")
    if not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{file}: column {label} is {schema.field(label).type}, not whole numbers; number the classes")
    return image, label


def _column(schema: pa.Schema, names: Sequence[str], file: Place) -> str:
    """The one column of a schema that bears one of the names."""
    present = [name for name in names if name in schema.names]
    if not present:
        has = ", ".join(map(escaped, schema.names))
        raise DataError(f"{file} has no column {' or '.join(names)}; rename one (it has {has})")
    if len(present) > 1 or schema.names.count(present[0]) > 1:
        raise DataError(f"{file} has the columns {' and '.join(present)}, and either could be meant; leave one out")
    return present[0]


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names in label order from the metadata of `datasets`, if there are any."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


_Tables = dict[str, list[_Table]]


def _without_unlabelled(tables: _Tables) -> tuple[_Tables, tuple[LeftOut, ...]]:
    """The splits that have labels and those left out since they have none; DataError for one that has no row."""
    kept: _Tables = {}
    left_out = []
    for split, of_split in tables.items():
        rows = sum(len(table.labels) for table in of_split)
        if not rows:
            raise DataError(f"{of_split[0].file} holds no {CALLED[split]} image; fill it or move it away")
        if all(table.is_unlabelled for table in of_split):
            if split == "train":
                raise DataError(f"{of_split[0].file} holds no labelled row; label its images")
            name = of_split[0].file.name
            what = (
                f"{CALLED[split]} image without a label"
                if rows == 1
                else f"{CALLED[split]} images, none of which has a label"
            )
            left_out.append(LeftOut(what, rows, name))
        else:
            kept[split] = of_split
    return kept, tuple(left_out)


def _class_names(tables: _Tables) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that all files with names agree on, else the labels themselves; and a note on files without."""
    every = [table for of_split in tables.values() for table in of_split]
    named = [table for table in every if table.class_names is not None]
    if not named:
        return _numbered_classes(tables["train"]), ()
    for table in named[1:]:
        if table.class_names != named[0].class_names:
            raise DataError(f"{table.file} names other classes than {named[0].file}; they are not of one set")
    names = named[0].class_names
    assert names is not None
    without = [table.file.name for table in every if table.class_names is None]
    if not without:
        return names, ()
    return names, (f"{', '.join(without[:3])}: no class names; those of {named[0].file.name} hold",)


def _numbered_classes(tables: Sequence[_Table]) -> tuple[str, ...]:
    """The labels 0 .. K-1 of files that do not name their classes; rows without a label are refused later."""
    found = sorted({int(label) for table in tables for label in np.unique(table.labels[~table.lacking])})
    found = [label for label in found if label >= 0]
    gap = next((label for label in range(len(found)) if label not in set(found)), None)
    if gap is not None:
        raise DataError(
            f"{tables[0].file}: its {len(found)} labels reach from {min(found)} to {max(found)} and class {gap} has "
            f"no training image; number the classes from 0 without a gap"
        )
    return tuple(str(label) for label in found)


def _per_class(tables: Sequence[_Table], classes: int) -> tuple[int, ...]:
    """Images a class; DataError naming the first row whose label is none of the classes."""
    counts = np.zeros(classes, np.int64)
    for table in tables:
        odd = np.flatnonzero(table.lacking | (table.labels < 0) | (table.labels >= classes))
        if len(odd):
            row = int(odd[0])
            if table.lacking[row]:
                raise DataError(f"{table.file}: row {row} has no label; remove the row or label it")
            raise DataError(
                f"{table.file}: row {row} has label {table.labels[row]}, which is not in 0..{classes - 1}; "
                f"mend or remove it"
            )
        counts += np.bincount(table.labels, minlength=classes)
    return tuple(map(int, counts))


# --- reading -----------------------------------------------------------------------------------------------------


def read_parquet(shard: Shard) -> Rows:
    """The rows of a shard, read from the row groups that hold them, a few at a time."""
    with parquetfile.returned():  # a column's pages may be a row group twice over
        yield from _rows(shard)


def _rows(shard: Shard) -> Rows:
    place = Place(shard.path)
    with _readable(f"{place}: rows {shard.first} to {shard.last - 1}"), place.open() as source:
        file = pq.ParquetFile(source)
        groups, row = _groups_of(file.metadata, shard)
        size = _rows_at_once(file.metadata, groups)
        for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=list(shard.columns)):
            if row >= shard.last:
                return
            images, labels = (batch.column(batch.schema.get_field_index(name)).to_pylist() for name in shard.columns)
            for image, label in zip(images, labels, strict=True):
                if shard.first <= row < shard.last:
                    yield f"{place}: row {row}", image["bytes"] if isinstance(image, dict) else image, label
                row += 1


def _rows_at_once(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """So many that some MB of images are in memory: large ones are taken a few at a time."""
    of = [metadata.row_group(group) for group in groups]
    rows, size = sum(group.num_rows for group in of), sum(group.total_byte_size for group in of)
    at_once: int = AT_ONCE * rows // max(size, 1)
    return max(1, min(256, at_once))


def _groups_of(metadata: pq.FileMetaData, shard: Shard) -> tuple[list[int], int]:
    """The row groups that overlap a shard, and the first row of the first one."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    first, last = np.searchsorted(ends, [shard.first, shard.last - 1], side="right")
    return list(range(first, min(int(last) + 1, len(ends)))), int(ends[first - 1]) if first else 0
