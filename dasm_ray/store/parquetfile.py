"""Small tables in Parquet files of their own, written and read whole.

What must stay true: the thread that reads does all of it. Another of Arrow's threads may be the last to let go of bytes
that Python lent it, and one that does so while the interpreter ends takes the whole process with it (SIGABRT).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasm_ray.store.place import Place


@contextmanager
def returned() -> Iterator[None]:
    """What Arrow takes and lets go in here goes back to the system; Arrow would keep it while the process lives.

    Pages of a set of images take some hundred MB, of which a driver that then waits for days has no use.
    """
    try:
        yield
    finally:
        pa.default_memory_pool().release_unused()


@returned()
def write(place: Place, table: pa.Table) -> None:
    """Writes ``table`` as one Parquet file, in the stead of an older one."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    place.write_bytes(sink.getvalue().to_pybytes())


@returned()
def read(data: bytes) -> pa.Table:
    """The table of a Parquet file whose bytes are ``data``; OSError or pa.ArrowException if they are none."""
    return opened(data).read(use_threads=False)


def opened(data: bytes | np.ndarray) -> pq.ParquetFile:
    """The Parquet file whose bytes are ``data``, to be read with ``use_threads=False``; errors as ``read``."""
    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), pre_buffer=False)
