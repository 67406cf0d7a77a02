"""Room for an array that may be larger than memory.

What must stay true: what it takes on disk goes with the array, however the process ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

HELD_BYTES = 1 << 26
"""What an array may take in memory without more ado."""


Scalar = TypeVar("Scalar", bound=np.generic)


def room(shape: tuple[int, ...], kind: type[Scalar]) -> NDArray[Scalar]:
    """An array to be filled: a large one in a file that goes with it, so that its pages need not stay in memory."""
    size = np.dtype(kind).itemsize * math.prod(shape)
    if size > HELD_BYTES and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:  # where there is no room: in memory
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, kind, "r+", shape=shape))
    return np.empty(shape, kind)
