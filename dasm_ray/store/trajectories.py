"""Expert trajectories at rest: one safetensors file an expert, named by the expert alone.

What must stay true: a trajectory is read back only under the key (the digest of all that affects it) it was written
with, so experts that are shared between runs are never mistaken for one another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dasm_ray.store import tensors
from dasm_ray.store.rundir import Place

ARRAYS = ("snapshots", "velocity", "accuracy", "loss")
"""float32: (E+1, P) parameters after each of E epochs, index 0 being the initialisation; (P,) velocity of SGD after the
last; (E+1,) accuracy on validation images and (E+1,) loss on training images."""


def name_of(expert: int) -> str:
    """The file name of an expert's trajectory."""
    return f"expert_{expert:04d}.safetensors"


def write(place: Place, expert: int, key: str, arrays: Mapping[str, np.ndarray], epochs: int) -> None:
    """Writes the ARRAYS of a trajectory of ``epochs`` epochs, whole or not yet, into folder ``place``.

    One that is not whole goes into a file of its own, and that file goes away when the whole one is written.
    """
    unfinished, whole = place / f"unfinished_{name_of(expert)}", place / name_of(expert)
    is_whole = len(arrays["snapshots"]) == epochs + 1
    kept = {name: arrays[name].astype(np.float32, copy=False) for name in ARRAYS}
    tensors.write(whole if is_whole else unfinished, kept, {"key": key, "expert": expert})
    if is_whole:
        unfinished.delete()


def read(place: Place, expert: int, key: str) -> dict[str, np.ndarray] | None:
    """The ARRAYS of ``expert``, maybe of fewer epochs than it will have, or None if nothing was written yet.

    Raises ArtifactError if the file is damaged or was written under another key.
    """
    files = (place / name_of(expert), place / f"unfinished_{name_of(expert)}")
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, key)
    if note.get("expert") != expert or set(arrays) != set(ARRAYS):
        raise tensors.damaged(file, f"it does not hold expert {expert}")
    return arrays
