"""Named arrays and a few plain values in one safetensors file, with a checksum that the format itself lacks.

What must stay true: what `read` returns is what `write` was given, or it raises; the same values give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dasm_ray.errors import ArtifactError
from dasm_ray.store.checked import parse_json, read_at_most
from dasm_ray.store.place import Place

NOTE = "dasm_ray"
"""The one metadata entry (JSON): several would stand in the file in an order that changes from run to run."""


def checksum(arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the note, and the names, types, shapes and bytes of the arrays in the order of their names."""
    total = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        total.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def write(place: Place, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
    """Writes the arrays and the plain values of ``note`` whole."""
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps({**note, "checksum": checksum(whole, note)}, sort_keys=True)
    place.write_bytes(safetensors.numpy.save(whole, metadata={NOTE: text}))


def read(place: Place, most: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays (writable) and the note; ArtifactError if the file is damaged, or larger than ``most`` bytes."""
    try:
        data = place.read_bytes() if most is None else read_at_most(place, most)
        arrays = dict(safetensors.numpy.load(data))
        note = _note(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(place, str(error)) from None
    if note.pop("checksum", None) != checksum(arrays, note):
        raise damaged(place, "its checksum does not match")
    return arrays, note


def check_key(place: Place, note: Mapping[str, Any], key: str) -> None:
    """ArtifactError unless the file was written under this key."""
    if note.get("key") != key:
        raise ArtifactError(
            f"{place} was written by another configuration (key {note.get('key')}, not {key}); "
            f"remove it or choose another place"
        )


def damaged(place: Place, why: str) -> ArtifactError:
    """The error for a file that is not what was once written."""
    return ArtifactError(f"{place} is damaged ({why.partition(chr(10))[0]}); remove it and run again")


def _note(data: bytes) -> dict[str, Any]:
    """The note out of the header: eight bytes of length (little endian), then JSON."""
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    note = parse_json(header["__metadata__"][NOTE])
    if not isinstance(note, dict):
        raise ValueError("its note is not a mapping")
    return note
