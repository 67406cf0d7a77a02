"""The state of one group of classes of one segment at rest, after some round of distillation.

What must stay true: the file holds all that the next round needs, so a run goes on from it as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dasm_ray.store import tensors
from dasm_ray.store.rundir import Place


def name_of(segment: int, group: int) -> str:
    """The file name of a group's state."""
    return f"segment_{segment:03d}_group_{group:04d}.safetensors"


def write(place: Place, segment: int, group: int, arrays: Mapping[str, np.ndarray], round: int, key: str) -> None:
    """Writes the float32 ``arrays`` of a group after ``round`` rounds into folder ``place``, in an earlier one's stead.

    Random numbers follow from the run's seed and the round, so the round is the whole generator state.
    """
    kept = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
    note = {"key": key, "segment": segment, "group": group, "round": round}
    tensors.write(place / name_of(segment, group), kept, note)


def read(place: Place, segment: int, group: int, key: str) -> tuple[dict[str, np.ndarray], int] | None:
    """The arrays last written and their round, or None; ArtifactError if the file is damaged or under another key."""
    file = place / name_of(segment, group)
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    if (note.get("segment"), note.get("group")) != (segment, group):
        raise tensors.damaged(file, f"it does not hold group {group} of segment {segment}")
    return arrays, int(note["round"])
