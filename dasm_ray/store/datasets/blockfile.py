"""Images of one class in one Arrow file, which readers map and never copy, with a checksum that Arrow lacks.

What must stay true: what `mapped` returns is what `write_part` was given, or it raises `Damaged`; the array may not be
written to, and keeps its file mapped for as long as it lives.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

COLUMN = "image"

Shape = tuple[int, int, int]


class Damaged(Exception):
    """A file that is not what was once written; says why."""


class Part(NamedTuple):
    """A file of ``rows`` images of one class, of so many ``bytes``, and the CRC-32 of its pixels."""

    rows: int
    bytes: int
    crc: int


def write_part(file: Path, images: NDArray[np.uint8]) -> Part:
    """Writes images (n, C, H, W) as one record batch of one column of fixed width. Raises OSError."""
    pixels = np.ascontiguousarray(images)
    kind = pa.binary(int(np.prod(pixels.shape[1:])))
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)])
    schema = pa.schema([pa.field(COLUMN, kind, nullable=False)])
    with pa.OSFile(str(file), "wb") as sink, ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    return Part(len(pixels), file.stat().st_size, checksum(pixels))


def mapped(file: Path, part: Part, shape: Shape, *, is_checked: bool) -> NDArray[np.uint8]:
    """The images (n, C, H, W) of a file, in place. ``is_checked``: their checksum is known to be right.

    Raises Damaged, or OSError where the file cannot be opened.
    """
    size = os.stat(file).st_size
    if size != part.bytes:
        raise Damaged(f"it has {size} bytes instead of {part.bytes}")
    source = pa.memory_map(str(file))
    try:
        reader = ipc.open_file(source)
        column = reader.get_batch(0).column(0)
        kind, pixels = column.type, column.buffers()[1]
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise Damaged(str(error).partition("\n")[0]) from None
    width = int(np.prod(shape))
    if kind != pa.binary(width) or len(column) != part.rows or pixels.size < part.rows * width:
        raise Damaged("it holds other images than it should")
    images = np.frombuffer(pixels, np.uint8, part.rows * width).reshape(part.rows, *shape)
    if not is_checked and checksum(images) != part.crc:
        raise Damaged("its checksum does not match")
    return images


def checksum(images: NDArray[np.uint8]) -> int:
    """CRC-32 of pixels that lie one after another."""
    return zlib.crc32(images.reshape(-1).data)
