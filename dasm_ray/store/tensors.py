"""Named arrays and a few plain values in one safetensors file, with a checksum that the format itself lacks.

What must stay true: what `read` returns is what `write` was given, or it raises; the same values give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.numpy

from dasm_ray.errors import ArtifactError, RunDirError
from dasm_ray.plain import Tree, Values
from dasm_ray.store.checked import parse_json, read_at_most
from dasm_ray.store.place import Place

NOTE = "dasm_ray"
"""The one metadata entry (JSON): several would stand in the file in an order that changes from run to run."""

METADATA = "__metadata__"
"""Where a header holds what is not an array."""

CHECKSUM = "checksum"


def checksum(arrays: Mapping[str, np.ndarray], note: Values) -> str:
    """SHA-256 (hex) over the note, and the names, types, shapes and bytes of the arrays in the order of their names."""
    total = begun_checksum(note)
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        total.update(heading(name, array.dtype.str, array.shape))
        total.update(array.reshape(-1).view(np.uint8).data)
    return str(total.hexdigest())


def begun_checksum(note: Values) -> hashlib._Hash:
    """The checksum of a note alone, to which each array's `heading` and bytes are added by ``update``."""
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode())


def heading(name: str, kind: str, shape: tuple[int, ...]) -> bytes:
    """What a checksum takes of an array before its bytes; ``kind`` is its type as NumPy writes it, `<f4`."""
    return f"{name}:{kind}:{shape};".encode()


def write(place: Place, arrays: Mapping[str, np.ndarray], note: Values) -> None:
    """Writes the arrays and the plain values of ``note`` whole."""
    place.write_bytes(packed(arrays, note))


def packed(arrays: Mapping[str, np.ndarray], note: Values) -> bytes:
    """The bytes of a file of these arrays and plain values."""
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps({**note, CHECKSUM: checksum(whole, note)}, sort_keys=True)
    return bytes(safetensors.numpy.save(whole, metadata={NOTE: text}))


def read(place: Place, most: int | None = None) -> tuple[dict[str, np.ndarray], Tree]:
    """The arrays (writable) and the note; ArtifactError if the file is damaged, or larger than ``most`` bytes."""
    try:
        return unpacked(place.read_bytes() if most is None else read_at_most(place, most))
    except ValueError as error:
        raise damaged(place, str(error)) from None


def unpacked(data: bytes) -> tuple[dict[str, np.ndarray], Tree]:
    """The arrays (writable) and the note in the bytes of a file; ValueError where they are not what was packed."""
    try:
        arrays = dict(safetensors.numpy.load(data))
        note = _note(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    if note.pop(CHECKSUM, None) != checksum(arrays, note):
        raise ValueError("its checksum does not match")
    return arrays, note


# --- a part of a file ----------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """Where a float32 array of ``shape`` stands in its file: from byte ``start`` on."""

    shape: tuple[int, ...]
    start: int


class Header(NamedTuple):
    """What stands before the arrays of a file: where each is, the note, and the checksum of all of it."""

    spans: dict[str, Span]
    note: Tree
    checksum: str


def read_header(place: Place) -> Header:
    """What a file of float32 arrays says of itself, read without its arrays.

    ArtifactError where that is nothing that `write` has written, or where the file is not as long as it says.
    """
    try:
        with place.open() as file:
            size = int(file.size())
            length = int.from_bytes(read_range(place, file, 8, 0), "little")
            if length > size - 8:
                raise ValueError("it is cut off in its header")
            text = read_range(place, file, length, 8)
        spans = {name: _span(said, 8 + length) for name, said in _header(text).items() if name != METADATA}
        note = _note(text)
        if not all(span.start >= 8 + length for span in spans.values()):
            raise ValueError("its arrays begin in its header")
        if max((_end(span) for span in spans.values()), default=8 + length) != size:
            raise ValueError("it is not as long as it says")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(place, str(error)) from None
    return Header(spans, note, str(note.pop(CHECKSUM, "")))


def read_range(place: Place, file: pa.NativeFile, count: int, start: int) -> bytes:
    """``count`` bytes from ``start`` on of an open file, fewer where it ends; RunDirError where it cannot be read."""
    try:
        return bytes(file.read_at(count, start))
    except (OSError, pa.ArrowException) as error:
        raise RunDirError(f"{place} cannot be read ({str(error).partition(chr(10))[0]})") from None


def _span(said: Tree, begin: int) -> Span:
    if said["dtype"] != "F32":
        raise ValueError(f"an array of it is {said['dtype']}, not F32")
    shape, (first, last) = tuple(map(int, said["shape"])), map(int, said["data_offsets"])
    if min(shape, default=0) < 0 or last - first != 4 * math.prod(shape):
        raise ValueError("an array of it is not as long as its shape says")
    return Span(shape, begin + first)


def _end(span: Span) -> int:
    return span.start + 4 * math.prod(span.shape)


def check_key(place: Place, note: Values, key: str) -> None:
    """ArtifactError unless the file was written under this key."""
    if note.get("key") != key:
        raise ArtifactError(
            f"{place} was written by another configuration (key {note.get('key')}, not {key}); "
            f"remove it or choose another place"
        )


def damaged(place: Place, why: str) -> ArtifactError:
    """The error for a file that is not what was once written."""
    return ArtifactError(f"{place} is damaged ({why.partition(chr(10))[0]}); remove it and run again")


def _header(text: bytes) -> Tree:
    """What the JSON says that stands behind the eight bytes of its length (little endian)."""
    header = parse_json(text.decode())
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    return header


def _note(text: bytes) -> Tree:
    """The note out of the header."""
    note = parse_json(_header(text)[METADATA][NOTE])
    if not isinstance(note, dict):
        raise ValueError("its note is not a mapping")
    return note
