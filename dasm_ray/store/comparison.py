"""A comparison at rest: one Parquet row for every training, so that any tool can group and plot it.

What must stay true: shares in [0, 1] with all their digits; what a row does not have is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasm_ray.errors import RunDirError
from dasm_ray.store.rundir import Place, versions

SCHEMA = pa.schema(
    {
        "set": pa.string(),
        "ipc": pa.int64(),  # null: the full data
        "labels": pa.string(),
        "network": pa.string(),
        "seed": pa.int64(),
        "test": pa.float64(),
        "validation": pa.float64(),
        "step": pa.int64(),  # whose checkpoint validation chose
        "steps": pa.int64(),
        "bytes": pa.int64(),  # of images and labels
        "digest": pa.string(),  # of what was trained on
    }
)


MARK = "comparison.json"


def claim(place: Place) -> None:
    """Makes ``place`` the folder of a comparison; RunDirError if it holds something else."""
    foreign = [] if (place / MARK).exists() else place.names()
    if foreign:
        raise RunDirError(f"{place} holds {foreign[0]} and no {MARK}, so it is no comparison; choose another --run")
    (place / MARK).write_json({"versions": versions()})


def write(place: Place, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``rows``, each with the columns of SCHEMA, as one Parquet file, in the stead of an older one."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), sink)
    place.write_bytes(sink.getvalue().to_pybytes())


def read(place: Place) -> list[dict[str, Any]]:
    """The rows of a file that ``write`` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(place.read_bytes()), schema=SCHEMA).to_pylist()
    return rows
