"""Expert trajectories at rest: one safetensors file an expert, named by the expert alone.

What must stay true: a trajectory is read back only under the key (the digest of all that affects it) it was written
with, so experts that are shared between runs are never mistaken for one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dasm_ray.store import tensors
from dasm_ray.store.rundir import Place


@dataclass(frozen=True)
class Trajectory:
    """One network's way: P parameters after each of E epochs, index 0 being its initialisation."""

    snapshots: np.ndarray  # (E+1, P) float32
    accuracy: np.ndarray  # (E+1,) float32, share in [0, 1]


def name_of(expert: int) -> str:
    """The file name of an expert's trajectory."""
    return f"expert_{expert:04d}.safetensors"


def write(place: Place, expert: int, key: str, snapshots: np.ndarray, accuracy: np.ndarray) -> None:
    """Writes one trajectory, snapshots (E+1, P) and accuracy (E+1,) as float32, into folder ``place``."""
    arrays = {"snapshots": snapshots, "accuracy": accuracy}
    tensors.write(
        place / name_of(expert),
        {name: array.astype(np.float32, copy=False) for name, array in arrays.items()},
        {"key": key, "expert": expert},
    )


def read(place: Place, expert: int, key: str) -> Trajectory | None:
    """The trajectory of ``expert``, or None if it was not written yet.

    Raises ArtifactError if the file is damaged or was written under another key.
    """
    file = place / name_of(expert)
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    if note.get("expert") != expert or set(arrays) != {"snapshots", "accuracy"}:
        raise tensors.damaged(file, f"it does not hold expert {expert}")
    return Trajectory(arrays["snapshots"], arrays["accuracy"])
