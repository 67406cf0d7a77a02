"""What a run keeps on its way, under the digest of all that affects it: scores, and groups of a segment.

    scores/segment_NNN.parquet                      how hard every real image is before a segment, a row an image
    segments/segment_NNN_group_NNNN.safetensors     a group of classes after some round
    segments/segment_NNN_round_NNNNNN/              such files of all groups after a round that is not the last, where
                                                    groups go on together: until all files of a later one are there
    segments/segment_NNN_start.safetensors          where a segment began, for those whose groups do not hold it

What must stay true: what is read back is what was written, bit for bit, under the key that it was written with; and a
group's file holds all that the next round needs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dasm_ray.errors import RunDirError
from dasm_ray.plain import Tree, Values
from dasm_ray.store import parquetfile, tensors
from dasm_ray.store.checked import parse_json
from dasm_ray.store.place import Place
from dasm_ray.store.room import room

COLUMNS = {
    "label": np.int64,
    "index": np.int64,
    "dynamic": np.float64,
    "static": np.float64,
    "wrong": np.bool_,
    "known": np.bool_,
    "window": np.bool_,
    "missed": np.bool_,
}
MAY_LACK = {"missed"}
"""Columns that not every file has."""

ROUND = re.compile(r"segment_(\d+)_round_(\d+)")
"""The name of a folder of all groups after a round."""

LOOKS = 3
"""Times to look for the pixels of a segment that goes on meanwhile."""


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
    missed: np.ndarray | None = None  # bool: every probe gets it wrong; kept where a start asks for it


def scores_name(segment: int) -> str:
    """The file name of a segment's scores."""
    return f"segment_{segment:03d}.parquet"


def write_scores(place: Place, segment: int, scores: Scores, key: str) -> None:
    """Writes the scores of ``segment`` into folder ``place``."""
    columns = {name: array.astype(COLUMNS[name]) for name, array in vars(scores).items() if array is not None}
    note = {"key": key, "segment": segment}
    text = json.dumps({**note, "checksum": tensors.checksum(columns, note)}, sort_keys=True)
    parquetfile.write(place / scores_name(segment), pa.table(columns).replace_schema_metadata({tensors.NOTE: text}))


def read_scores(place: Place, segment: int, key: str | None) -> Scores | None:
    """The scores of ``segment``, or None; ArtifactError if the file is damaged or was written under another key.

    ``key`` None: to look at, whatever the key.
    """
    file = place / scores_name(segment)
    if not file.exists():
        return None
    data = file.read_bytes()
    try:
        table = parquetfile.read(data)
        note = parse_json(table.schema.metadata[tensors.NOTE.encode()].decode())
        names = [name for name in COLUMNS if name in table.column_names or name not in MAY_LACK]
        columns = {name: table.column(name).to_numpy() for name in names}
        expected = note.pop("checksum")
        found = tensors.checksum(columns, note)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise tensors.damaged(file, str(error)) from None
    if expected != found:
        raise tensors.damaged(file, "its checksum does not match")
    if key is not None:
        tensors.check_key(file, note, key)
    return Scores(**columns)


def group_name(segment: int, group: int) -> str:
    """The file name of a group's state."""
    return f"segment_{segment:03d}_group_{group:04d}.safetensors"


def round_name(segment: int, round: int) -> str:
    """The folder name of all groups of a segment after ``round`` rounds."""
    return f"segment_{segment:03d}_round_{round:06d}"


def rounds_among(names: Iterable[str], segment: int) -> list[int]:
    """The rounds of a segment whose folders are among ``names``, the newest first."""
    found = [match for match in map(ROUND.fullmatch, names) if match and int(match[1]) == segment]
    return sorted((int(match[2]) for match in found), reverse=True)


def write_group(place: Place, segment: int, group: int, arrays: Mapping[str, np.ndarray], round: int, key: str) -> None:
    """Writes the float32 ``arrays`` of a group after ``round`` rounds into folder ``place``, in an earlier one's stead.

    Random numbers follow from the run's seed and the round, so the round is the whole generator state.
    """
    _write(place, segment, group, arrays, {"round": round}, key)


def read_group(place: Place, segment: int, group: int, key: str) -> tuple[dict[str, np.ndarray], int] | None:
    """The arrays last written and their round, or None; ArtifactError if the file is damaged or under another key."""
    kept = _read(place, segment, group, key)
    return None if kept is None else (kept[0], int(kept[1]["round"]))


class KeptSet(NamedTuple):
    """A segment as trajectories move it: its arrays after ``round`` rounds."""

    arrays: dict[str, np.ndarray]
    round: int
    unused: int
    """Of these rounds the last ones in a row in which no student ended within the threshold."""


def write_set(place: Place, segment: int, kept: KeptSet, key: str) -> None:
    """Writes a segment that trajectories move, the one group of it, as `write_group` does."""
    _write(place, segment, 0, kept.arrays, {"round": kept.round, "unused": kept.unused}, key)


def read_set(place: Place, segment: int, key: str) -> KeptSet | None:
    """What was last written, or None; raises as `read_group`. Earlier versions wrote no ``unused``: 0."""
    kept = _read(place, segment, 0, key)
    return None if kept is None else KeptSet(kept[0], int(kept[1]["round"]), int(kept[1].get("unused", 0)))


def _write(
    place: Place, segment: int, group: int, arrays: Mapping[str, np.ndarray], standing: Values, key: str
) -> None:
    kept = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
    note = {"key": key, "segment": segment, "group": group, **standing}
    tensors.write(place / group_name(segment, group), kept, note)


def _read(place: Place, segment: int, group: int, key: str) -> tuple[dict[str, np.ndarray], Tree] | None:
    file = place / group_name(segment, group)
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    if (note.get("segment"), note.get("group")) != (segment, group):
        raise tensors.damaged(file, f"it does not hold group {group} of segment {segment}")
    return arrays, note


def not_finite(place: Place, segment: int) -> str:
    """What is said of a checkpoint in folder ``place`` that holds no numbers."""
    return (
        f"segment {segment + 1}: its checkpoint in {place} holds numbers that are not finite; remove that folder and "
        f"run again"
    )


@dataclass(frozen=True)
class KeptPixels:
    """The pixels of a segment that is on disk, group by group in class order, read whenever they are asked for.

    ``name``: "pixels", the distilled ones, or "initial", where they began. ``rounds``: after how many (0: any).
    """

    place: Place
    segment: int
    key: str
    groups: int
    classes: int
    name: str
    rounds: int = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """(k, m, C, H, W) float32 of each group; ArtifactError if a file is missing, damaged or under another key.

        Also of one of an earlier round, which a worker that was given up has written late: the same command goes on
        from there.
        """
        for group in range(self.groups):
            kept = read_group(self.place, self.segment, group, self.key)
            if kept is None:
                raise tensors.damaged(self.place / group_name(self.segment, group), "it is missing")
            if self.rounds and self.name == "pixels" and kept[1] < self.rounds:
                file = self.place / group_name(self.segment, group)
                raise tensors.damaged(file, f"it is of round {kept[1]} of {self.rounds}, written by a worker given up")
            yield kept[0][self.name]


# --- what a page shows of them ---------------------------------------------------------------------------------


def start_name(segment: int) -> str:
    """The file name of where a segment began."""
    return f"segment_{segment:03d}_start.safetensors"


def write_start(place: Place, segment: int, pixels: np.ndarray, key: str) -> None:
    """Writes the pixels (K, m, C, H, W) float32 that a segment begins with into folder ``place``: a run never goes on
    from them."""
    tensors.write(place / start_name(segment), {"initial": pixels}, {"key": key, "segment": segment})


def read_start(place: Place, segment: int, key: str) -> np.ndarray | None:
    """The pixels (K, m, C, H, W) that a segment began with, or None; errors as ``read_group``."""
    file = place / start_name(segment)
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    return arrays["initial"]


def segment_pixels(place: Place, segment: int, classes: int, name: str) -> np.ndarray | None:
    """What folder ``place`` holds of a segment, to look at: (K, m, C, H, W) float32; None unless of every class.

    ``name``: "pixels", as last written, or "initial", where they began. Raises ArtifactError for a damaged file.
    """
    for _ in range(LOOKS - 1):
        with contextlib.suppress(RunDirError):  # a round that went while it was read, for a later one is there
            return _found(place, segment, classes, name)
    return _found(place, segment, classes, name)


def _found(place: Place, segment: int, classes: int, name: str) -> np.ndarray | None:
    names = place.names()
    whole = _of_groups(place, names, segment, classes, name)
    for round in rounds_among(names, segment):
        if whole is None:
            folder = place / round_name(segment, round)
            whole = _of_groups(folder, folder.names(), segment, classes, name)
    if whole is None and name == "initial" and (place / start_name(segment)).exists():
        whole = _whole([tensors.read(place / start_name(segment))[0]], classes, name)
    return whole


def _of_groups(place: Place, names: list[str], segment: int, classes: int, name: str) -> np.ndarray | None:
    """What the files of groups among ``names`` hold together."""
    start = f"segment_{segment:03d}_group_"
    return _whole((tensors.read(place / each)[0] for each in names if each.startswith(start)), classes, name)


def _whole(groups: Iterable[Mapping[str, np.ndarray]], classes: int, name: str) -> np.ndarray | None:
    """An array of all classes out of those of groups, one of which is in memory at a time; None unless they fit."""
    whole, first = None, 0
    for part in (group[name] for group in groups if name in group):
        if whole is None and part.ndim == 5:
            whole = room((classes, *part.shape[1:]), np.float32)
        if whole is None or part.shape[1:] != whole.shape[1:] or first + len(part) > classes:
            return None
        whole[first : first + len(part)] = part
        first += len(part)
    return whole if first == classes else None
