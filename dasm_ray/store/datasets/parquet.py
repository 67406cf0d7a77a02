"""Sets in Parquet, in the image layout of Hugging Face.

What must stay true: files of two sets are never mixed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.shards import SHARD_ROWS, Rows, Shard, Source, cut, first_line, needed_path
from dasm_ray.store.place import Place

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class _Footer:
    """What a Parquet file says of itself."""

    path: str
    rows: int
    columns: tuple[str, str]  # of image and label
    class_names: tuple[str, ...] | None


def open_parquet(data: Data) -> Source:
    """A folder (or its `data` folder) of Parquet files in the image layout of Hugging Face, or one such file."""
    place = Place(needed_path(data))
    files = parquet_files(place)
    if not files.get("train"):
        raise DataError(f"data.path: {place} holds no Parquet file with training images")
    footers = {split: [_footer(file) for file in of_split] for split, of_split in files.items()}
    class_names = _class_names([footer for of_split in footers.values() for footer in of_split], footers["train"])
    shards = {
        split: tuple(shard for footer in of_split for shard in _parquet_shards(footer, split, len(class_names)))
        for split, of_split in footers.items()
    }
    return Source("parquet", class_names, shards)


def _parquet_shards(footer: _Footer, split: str, classes: int) -> tuple[Shard, ...]:
    return cut("parquet", split, footer.path, footer.rows, classes, SHARD_ROWS, footer.columns)


def parquet_files(place: Place) -> dict[str, list[Place]]:
    """Files by split. Validation files are the test split where there is none; files without a split word train."""
    if place.name.endswith(".parquet"):
        return {"train": [place]}
    found = [folder / name for folder in (place, place / "data") for name in folder.names()]
    words: dict[str, list[Place]] = {}
    for file in found:
        if file.name.endswith(".parquet"):
            words.setdefault(re.split(r"[-_.]", file.name)[0].lower(), []).append(file)
    test = next((words[word] for word in ("test", "validation", "valid", "val") if word in words), None)
    if "train" not in words and test is None:
        return {"train": [file for files in words.values() for file in files]} if words else {}
    return {"train": words.get("train", []), **({"test": test} if test else {})}


def _footer(file: Place) -> _Footer:
    with _readable(str(file)), file.open() as source:
        parquet = pq.ParquetFile(source)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    return _Footer(str(file), rows, _columns(schema, file), _names_in(schema))


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """DataError instead of what pyarrow raises for damaged bytes."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be read as Parquet ({first_line(error)}); copy it again") from None


def _columns(schema: pa.Schema, file: Place) -> tuple[str, str]:
    """The names of the image and the label column, whose types must fit."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        lacking = IMAGE_COLUMNS if image is None else LABEL_COLUMNS
        raise DataError(f"{file} has no column {' or '.join(lacking)}; rename one (it has {', '.join(schema.names)})")
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column {image} is {kind}, not encoded images (binary, or struct with bytes)")
    if not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{file}: column {label} is {schema.field(label).type}, not whole numbers; number the classes")
    return image, label


def _names_in(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names in label order from the metadata of `datasets`, if there are any."""
    text = (schema.metadata or {}).get(b"huggingface")
    label = next(name for name in LABEL_COLUMNS if name in schema.names)
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(str(name) for name in names) if names else None


def _class_names(footers: list[_Footer], train: list[_Footer]) -> tuple[str, ...]:
    """Names that all files agree on, else the labels themselves, which must then be 0 .. K-1."""
    for footer in footers[1:]:
        if footer.class_names != footers[0].class_names:
            raise DataError(f"{footer.path} names other classes than {footers[0].path}; they are not of one set")
    return footers[0].class_names or tuple(str(label) for label in range(_highest_label(train) + 1))


def _highest_label(footers: list[_Footer]) -> int:
    """K - 1, for files that do not name their classes; rows with a null are left to `decode`."""
    found: set[int] = set()
    for footer in footers:
        with _readable(footer.path), Place(footer.path).open() as source:
            column = pq.read_table(source, columns=[footer.columns[1]]).column(0)
            found.update(pc.unique(column.drop_null()).to_pylist())
    if not found:
        raise DataError(f"{footers[0].path} holds no labelled row")
    gap = next((label for label in range(len(found)) if label not in found), None)
    if gap is not None:
        raise DataError(
            f"{footers[0].path}: its {len(found)} labels reach from {min(found)} to {max(found)} and class {gap} has "
            f"no training image; number the classes from 0 without a gap"
        )
    return max(found)


def read_parquet(shard: Shard) -> Rows:
    """The rows of a shard, read from the row groups that hold them, a few at a time."""
    with _readable(f"{shard.path}: rows {shard.first} to {shard.last - 1}"), Place(shard.path).open() as source:
        file = pq.ParquetFile(source)
        groups, row = _groups_of(file.metadata, shard)
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=list(shard.columns)):
            images, labels = (batch.column(batch.schema.get_field_index(name)).to_pylist() for name in shard.columns)
            for image, label in zip(images, labels, strict=True):
                if shard.first <= row < shard.last:
                    yield f"{shard.path}: row {row}", image["bytes"] if isinstance(image, dict) else image, label
                row += 1


def _groups_of(metadata: pq.FileMetaData, shard: Shard) -> tuple[list[int], int]:
    """The row groups that overlap a shard, and the first row of the first one."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    first, last = np.searchsorted(ends, [shard.first, shard.last - 1], side="right")
    return list(range(first, min(int(last) + 1, len(ends)))), int(ends[first - 1]) if first else 0
