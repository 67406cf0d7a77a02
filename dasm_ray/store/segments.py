"""The state of one group of classes of one segment at rest, after some round of distillation.

What must stay true: the file holds all that the next round needs, so a run goes on from it as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dasm_ray.store import tensors
from dasm_ray.store.rundir import Place

ARRAYS = ("pixels", "velocity", "initial")


@dataclass(frozen=True)
class GroupState:
    """The images of a group after ``round`` rounds; all three arrays are float32 (classes, ipc_k, C, H, W).

    Random numbers follow from the run's seed and the round, so the round is the whole generator state.
    """

    pixels: np.ndarray  # in [0, 1], as stored
    velocity: np.ndarray  # of SGD with momentum
    initial: np.ndarray  # pixels before the first round
    round: int


def name_of(segment: int, group: int) -> str:
    """The file name of a group's state."""
    return f"segment_{segment:03d}_group_{group:04d}.safetensors"


def write(place: Place, segment: int, group: int, state: GroupState, key: str) -> None:
    """Writes the state into folder ``place``, in the stead of an earlier round's."""
    arrays = {name: getattr(state, name).astype(np.float32, copy=False) for name in ARRAYS}
    note = {"key": key, "segment": segment, "group": group, "round": state.round}
    tensors.write(place / name_of(segment, group), arrays, note)


def read(place: Place, segment: int, group: int, key: str) -> GroupState | None:
    """The last state written, or None; ArtifactError if the file is damaged or was written under another key."""
    file = place / name_of(segment, group)
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    if (note.get("segment"), note.get("group")) != (segment, group) or set(arrays) != set(ARRAYS):
        raise tensors.damaged(file, f"it does not hold group {group} of segment {segment}")
    return GroupState(arrays["pixels"], arrays["velocity"], arrays["initial"], int(note["round"]))
