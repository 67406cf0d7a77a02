"""The difficulty of every real sample before one segment at rest: one Parquet file a segment, a row a sample.

What must stay true: rows stand in class-sorted order, and a column read back is the column written, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasm_ray.store import tensors
from dasm_ray.store.rundir import Place

TYPES = {
    "label": np.int64,
    "index": np.int64,
    "dynamic": np.float64,
    "static": np.float64,
    "wrong": np.bool_,
    "known": np.bool_,
    "window": np.bool_,
}


@dataclass(frozen=True)
class Scores:
    """One entry a real training sample, in class-sorted order; every array is (N,)."""

    label: np.ndarray  # int64
    index: np.ndarray  # int64, within the class
    dynamic: np.ndarray  # float64, under the probe
    static: np.ndarray  # float64, under the experts
    wrong: np.ndarray  # bool: the probe gets it wrong
    known: np.ndarray  # bool: the experts get it right
    window: np.ndarray  # bool: the segment may see it


def name_of(segment: int) -> str:
    """The file name of a segment's scores."""
    return f"segment_{segment:03d}.parquet"


def write(place: Place, segment: int, scores: Scores, key: str) -> None:
    """Writes the scores of ``segment`` into folder ``place``."""
    columns = {
        field.name: getattr(scores, field.name).astype(TYPES[field.name]) for field in dataclasses.fields(scores)
    }
    note = {"key": key, "segment": segment}
    text = json.dumps({**note, "checksum": tensors.checksum(columns, note)}, sort_keys=True)
    table = pa.table(columns).replace_schema_metadata({tensors.NOTE: text})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    (place / name_of(segment)).write_bytes(sink.getvalue().to_pybytes())


def read(place: Place, segment: int, key: str) -> Scores | None:
    """The scores of ``segment``, or None; ArtifactError if the file is damaged or was written under another key."""
    file = place / name_of(segment)
    if not file.exists():
        return None
    data = file.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(data))
        note = json.loads(table.schema.metadata[tensors.NOTE.encode()])
        columns = {name: table.column(name).to_numpy() for name in TYPES}
        expected = note.pop("checksum")
        found = tensors.checksum(columns, note)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise tensors.damaged(file, str(error)) from None
    if expected != found:
        raise tensors.damaged(file, "its checksum does not match")
    tensors.check_key(file, note, key)
    return Scores(**columns)
