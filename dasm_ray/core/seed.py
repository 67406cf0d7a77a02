"""The seed belongs to the task: every generator follows from the run's seed and the name of the work, never the worker.

What must stay true: equal parts give equal numbers on every machine, and different parts give independent ones.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from plain parts such as (run seed, "distil", segment, group, round)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator: drawn there, numbers are the same whatever device they are used on."""
    return torch.Generator().manual_seed(seed_of(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """The same for numpy."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))
