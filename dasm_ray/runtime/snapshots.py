"""Snapshots of experts where they are needed: references to files travel, and a worker reads the rows that it uses.

A worker whose node does not have the file, as where `experts.cache` is a folder that each node has for itself, asks the
node that has it for the row. What must stay true: a reference means the very bytes that it was made for, wherever and
whenever it is read, or it is said to be lost; a worker keeps no more rows than a bound says.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, overload

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dasm_ray.errors import ArtifactError, DasmError, RunDirError
from dasm_ray.runtime.parts import this_node
from dasm_ray.runtime.pool import InputLost
from dasm_ray.store.place import Place
from dasm_ray.store.trajectories import KeptTrajectory, open_trajectory

KEPT_BYTES = 1 << 27
"""Of rows that a worker keeps: 100 of a ConvNet-3 of width 128."""

Flat = NDArray[np.float32]
Value = TypeVar("Value", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True)
class TrajectoryRef:
    """An expert's trajectory on disk: its folder, key and number, how many epochs, and the checksum of its file.

    ``node``: that of Ray that has the folder, where others may not; empty where the place is the same for all.
    """

    place: Place
    key: str
    number: int
    epochs: int
    digest: str
    node: str

    @classmethod
    def of(cls, place: Place, key: str, number: int, found: KeptTrajectory) -> TrajectoryRef:
        """To what was found here."""
        node = this_node() if place.local is not None and ray.is_initialized() else ""
        return cls(place, key, number, found.epochs, found.digest, node)


@dataclass(frozen=True)
class SnapshotRef:
    """The parameters (P,) of an expert after an epoch, on disk."""

    of: TrajectoryRef
    epoch: int


OnDisk = TrajectoryRef | SnapshotRef


class Indexed(Protocol[Value]):
    """What is had one by one, by a number from 0."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Value: ...


class Lazily(Sequence[Value], Generic[Value]):
    """A sequence of ``count`` values each of which is had when it is asked for, by ``get``."""

    def __init__(self, count: int, get: Callable[[int], Value]) -> None:
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...

    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        at = range(self._count)[index]
        return self._get(at) if isinstance(at, int) else [self._get(each) for each in at]


def lazily(change: Callable[[Value], Other], of: Indexed[Value]) -> Lazily[Other]:
    """What ``change`` makes of each value, when it is asked for."""
    return Lazily(len(of), lambda index: change(of[index]))


class Reader:
    """Reads what references mean, and keeps up to ``most`` bytes of rows that were used last."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._bytes = most, 0
        self._rows: OrderedDict[SnapshotRef, Flat] = OrderedDict()
        self._files: dict[TrajectoryRef, KeptTrajectory] = {}

    def have(self, ref: OnDisk) -> Lazily[Flat] | Flat:
        """The snapshots (E+1, P) of a trajectory, each read when it is asked for, or one (P,); not to be written to."""
        if isinstance(ref, SnapshotRef):
            return self._row(ref)
        return Lazily(ref.epochs + 1, lambda epoch: self._row(SnapshotRef(ref, epoch)))

    def _row(self, ref: SnapshotRef) -> Flat:
        """A row, read if it is not kept. InputLost where its file is gone, or holds other bytes by now."""
        if ref not in self._rows:
            row = self._here(ref.of, ref.epoch)
            self._keep(ref, _from_its_node(ref) if row is None else row)
        self._rows.move_to_end(ref)
        return self._rows[ref]

    def _keep(self, ref: SnapshotRef, row: Flat) -> None:
        self._rows[ref] = row
        self._bytes += row.nbytes
        while self._bytes > self._most and len(self._rows) > 1:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes

    def _here(self, of: TrajectoryRef, epoch: int) -> Flat | None:
        """A row from the file as this node has it; None where that is not there, or another."""
        known = self._files.pop(of, None)
        if known is None or (row := _unless_changed(known, epoch)) is None:
            known = open_trajectory(of.place, of.number, of.key)
            if known is None or known.digest != of.digest:
                return None
            row = known.snapshot(epoch)
        self._files[of] = known
        return row


def _unless_changed(known: KeptTrajectory, epoch: int) -> Flat | None:
    """A row by a header that was read before; None if the file was damaged, replaced or removed since."""
    with contextlib.suppress(ArtifactError, RunDirError):
        return known.snapshot(epoch)
    return None


# --- of another node -----------------------------------------------------------------------------------------------


def _from_its_node(ref: SnapshotRef) -> Flat:
    """A row from the node that has its file."""
    of = ref.of
    what = f"expert {of.number} in {of.place}"
    if not of.node or of.node == this_node():
        raise InputLost(f"{what}: its file is gone, or is another by now")
    there = NodeAffinitySchedulingStrategy(of.node, soft=False)
    try:
        return np.array(ray.get(_row_there.options(num_cpus=0, scheduling_strategy=there).remote(ref)))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DasmError | InputLost):
            raise cause from None
        raise InputLost(
            f"{what}: the node that has its file is gone ({str(error).partition(chr(10))[0][:200]})"
        ) from None


@ray.remote
def _row_there(ref: SnapshotRef) -> Flat:
    """A row, read where its file is."""
    row = _reader().have(ref)
    assert isinstance(row, np.ndarray)
    return row


@functools.cache
def _reader() -> Reader:
    """That of a process that reads for others: it keeps what it knows of files, and one row."""
    return Reader(0)
