"""Trajectories of experts at rest: a whole one is read a snapshot at a time by offset, an unfinished one grows.

    KEY/expert_NNNN.safetensors         a whole trajectory; its note has a checksum of every snapshot
    KEY/unfinished_expert_NNNN.rows     the epochs so far: records, each the bytes of a safetensors file behind their
                                        length (8 bytes, little endian); it goes when the whole one is there

What must stay true: what is read back is what was written, bit for bit, under the key that it was written with; a write
that is killed costs nothing but the epochs that it was to add; and two runs at once, or one of another version, do no
harm to each other: a whole file comes by its name at once, and versions from before there were checksums of snapshots
read it as their own, as theirs are read here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.plain import Plain, Values
from dasm_ray.store import tensors
from dasm_ray.store.place import Place
from dasm_ray.store.tensors import Span

Array = NDArray[np.float32]

TRAJECTORY = ("snapshots", "velocity", "accuracy", "loss")
"""float32: (E+1, P) parameters after each of E epochs, index 0 being the initialisation; (P,) velocity of SGD after the
last; (E+1,) accuracy on validation images and (E+1,) loss on training images."""

SUMS = "rows"
"""The entry of the note with the checksums of the rows of each array."""

LENGTH = 8
"""Bytes that say how long a record is."""


def trajectory_name(expert: int) -> str:
    """The file name of an expert's trajectory."""
    return f"expert_{expert:04d}.safetensors"


def unfinished_name(expert: int) -> str:
    """The file name of a trajectory on its way."""
    return f"unfinished_expert_{expert:04d}.rows"


def _of_earlier_versions(expert: int) -> str:
    """What they called a trajectory on its way, which they wrote whole each time."""
    return f"unfinished_{trajectory_name(expert)}"


# --- whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptTrajectory:
    """A whole trajectory at rest. ``digest`` is of all of it; ``sums`` of each row of each array.

    ``is_finite``: whether it holds no NaN and no infinity, which only earlier versions did not see to.
    """

    file: Place
    digest: str
    spans: Mapping[str, Span]
    sums: Mapping[str, tuple[str, ...]]
    is_finite: bool = True

    @property
    def epochs(self) -> int:
        """Epochs that it is of."""
        return self.spans["snapshots"].shape[0] - 1

    def snapshot(self, epoch: int) -> Array:
        """The parameters (P,) after an epoch, not to be written to: 4 P bytes are read, and held against their sum.

        ArtifactError where they are not what was written.
        """
        return self._row("snapshots", epoch)

    def curve(self, name: str) -> Array:
        """``accuracy`` or ``loss`` (E+1,), or ``velocity`` (P,)."""
        return self._row(name, 0)

    def arrays(self) -> dict[str, Array]:
        """All of it, by name."""
        snapshots = np.stack([self.snapshot(epoch) for epoch in range(self.epochs + 1)])
        return {"snapshots": snapshots, **{name: self.curve(name) for name in TRAJECTORY[1:]}}

    def _row(self, name: str, row: int) -> Array:
        found = _read_row(self.file, self.spans[name], row)
        if _sum(found) != self.sums[name][row]:
            raise tensors.damaged(self.file, f"row {row} of its {name} is not what was written")
        return found


def open_trajectory(place: Place, expert: int, key: str) -> KeptTrajectory | None:
    """The whole trajectory of ``expert`` in folder ``place``, none of it read but its header; None if there is none.

    One of an earlier version, which lacks checksums of its rows, is read once and held against that of all of it.
    Raises ArtifactError if the file is damaged or was written under another key.
    """
    file = place / trajectory_name(expert)
    if not file.exists():
        return None
    header = tensors.read_header(file)
    tensors.check_key(file, header.note, key)
    shapes = {name: span.shape for name, span in header.spans.items()}
    if header.note.get("expert") != expert or set(shapes) != set(TRAJECTORY) or not _fit(**shapes):
        raise tensors.damaged(file, f"it does not hold expert {expert}")
    if SUMS not in header.note:
        return _verified(file, header)
    sums = header.note[SUMS]
    if not _are_sums(sums, header.spans):
        raise tensors.damaged(file, "it lacks checksums of its rows")
    return KeptTrajectory(file, header.checksum, header.spans, {name: tuple(found) for name, found in sums.items()})


def write_trajectory(place: Place, expert: int, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays of a whole trajectory into folder ``place``; what there was of it unfinished goes."""
    kept = _float32(arrays)
    sums = {name: [_sum(row) for row in np.atleast_2d(array)] for name, array in kept.items()}
    tensors.write(place / trajectory_name(expert), kept, {"key": key, "expert": expert, SUMS: sums})
    for name in (unfinished_name(expert), _of_earlier_versions(expert)):
        (place / name).delete()


def _verified(file: Place, header: tensors.Header) -> KeptTrajectory:
    """A file of an earlier version, read once, a row in memory at a time."""
    total, is_finite = tensors.begun_checksum(header.note), True
    sums: dict[str, tuple[str, ...]] = {}
    for name, span in sorted(header.spans.items()):
        total.update(tensors.heading(name, np.dtype(np.float32).str, span.shape))
        found = []
        for row in range(_rows(span)):
            values = _read_row(file, span, row)
            total.update(values.data)
            found.append(_sum(values))
            is_finite &= bool(np.isfinite(values).all())
        sums[name] = tuple(found)
    if total.hexdigest() != header.checksum:
        raise tensors.damaged(file, "its checksum does not match")
    return KeptTrajectory(file, header.checksum, header.spans, sums, is_finite)


def _read_row(file: Place, span: Span, row: int) -> Array:
    """One row of a two-dimensional array, or all of another."""
    size = 4 * math.prod(span.shape) // _rows(span)
    with file.open() as source:
        data = tensors.read_range(file, source, size, span.start + row * size)
    if len(data) != size:
        raise tensors.damaged(file, "it is cut off")
    return np.frombuffer(data, np.float32)


def _are_sums(found: Plain, spans: Mapping[str, Span]) -> bool:
    """Whether there is one for each row of each array."""
    if not (isinstance(found, dict) and all(isinstance(rows, list) for rows in found.values())):
        return False
    return {name: len(rows) for name, rows in found.items()} == {name: _rows(span) for name, span in spans.items()}


def _rows(span: Span) -> int:
    return span.shape[0] if len(span.shape) == 2 else 1


def _fit(**shapes: tuple[int, ...]) -> bool:
    """Whether the arrays of a trajectory fit together, and there is at least its initialisation."""
    snapshots = shapes["snapshots"]
    return (
        len(snapshots) == 2
        and snapshots[0] > 0
        and shapes["velocity"] == snapshots[1:]
        and shapes["accuracy"] == shapes["loss"] == snapshots[:1]
    )


def _sum(row: np.ndarray) -> str:
    """SHA-256 of the bytes of a row, the first 64 bits of it (hex)."""
    return hashlib.sha256(np.ascontiguousarray(row).view(np.uint8).data).hexdigest()[:16]


def _float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name].astype(np.float32, copy=False) for name in TRAJECTORY}


# --- unfinished --------------------------------------------------------------------------------------------------


class Unfinished(NamedTuple):
    """A trajectory on its way: its arrays, and how many snapshots more can be added behind in the file (0: none)."""

    arrays: dict[str, Array]
    in_file: int
    is_cut: bool
    """Whether the file holds more, which cannot be read: a write was killed, or it is damaged."""


def add_epochs(place: Place, expert: int, key: str, arrays: Mapping[str, np.ndarray], in_file: int) -> int:
    """Adds the snapshots from ``in_file`` on to the file of an unfinished trajectory; returns how many it has then.

    Where nothing can be added to files, in an object store, the file is written anew with all of them.
    """
    file, kept = place / unfinished_name(expert), _float32(arrays)
    goes_on = in_file > 0 and file.local is not None and file.exists()
    record = _record(kept, in_file if goes_on else 0, {"key": key, "expert": expert})
    if goes_on:
        file.append(record, to_disk=True)
    else:
        file.write_bytes(record)
    return len(kept["snapshots"])


def read_unfinished(place: Place, expert: int, key: str) -> Unfinished | None:
    """What folder ``place`` has of a trajectory on its way; None if nothing was written yet.

    What cannot be read ends it: it is as if that had not been written. Raises ArtifactError for another key.
    """
    found = _read_records(place / unfinished_name(expert), expert, key)
    earlier = place / _of_earlier_versions(expert)
    if not earlier.exists():
        return found
    arrays, note = tensors.read(earlier)
    tensors.check_key(earlier, note, key)
    if note.get("expert") != expert or set(arrays) != set(TRAJECTORY):
        raise tensors.damaged(earlier, f"it does not hold expert {expert}")
    is_further = found is None or len(arrays["snapshots"]) > len(found.arrays["snapshots"])
    return Unfinished(arrays, 0, is_cut=False) if is_further else found


def _record(arrays: Mapping[str, np.ndarray], first: int, note: Values) -> bytes:
    """The snapshots from ``first`` on, with what a training needs to go on from the last. It says what it follows."""
    after = _sum(arrays["snapshots"][first - 1]) if first else ""
    parts = {name: array if name == "velocity" else array[first:] for name, array in arrays.items()}
    data = tensors.packed(parts, {**note, "first": first, "after": after})
    return len(data).to_bytes(LENGTH, "little") + data


def _read_records(file: Place, expert: int, key: str) -> Unfinished | None:
    """All records that follow one another. Others, of a run that has trained the same expert at once, are left out."""
    if not file.exists():
        return None
    parts: list[dict[str, np.ndarray]] = []
    at, count, is_cut = 0, 0, False
    with file.open() as source:
        size = int(source.size())
        while at < size and not is_cut:
            length = int.from_bytes(tensors.read_range(file, source, LENGTH, at), "little")
            data = tensors.read_range(file, source, min(length, size), at + LENGTH)
            try:
                arrays, note = tensors.unpacked(data)
            except ValueError:
                is_cut = True
                continue
            tensors.check_key(file, note, key)
            if note.get("expert") != expert or set(arrays) != set(TRAJECTORY):
                raise tensors.damaged(file, f"it does not hold expert {expert}")
            after = _sum(parts[-1]["snapshots"][-1]) if parts else ""
            if (note.get("first"), note.get("after")) == (count, after):
                parts.append(arrays)
                count += len(arrays["snapshots"])
            at += LENGTH + length
    if not parts:
        return None
    joined = {name: np.concatenate([part[name] for part in parts]) for name in TRAJECTORY if name != "velocity"}
    return Unfinished({**joined, "velocity": parts[-1]["velocity"]}, 0 if is_cut else count, is_cut)
