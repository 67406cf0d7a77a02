"""Holes in the heap go back to the system where they are many, and nothing happens where nobody can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from dasm_ray.core import heap
from dasm_ray.runtime.worker import environment

HOLES = """
import numpy as np
from pathlib import Path
from dasm_ray.core.heap import tidy

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

print(tidy())
before = own()
kept = []
blocks = [(np.ones(1 << 20), kept.append(np.ones(1 << 12))) for _ in range(25)]  # 8 MiB, and 32 KiB between them
del blocks
held = own()
print(tidy(), held - before, own() - before)
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="no glibc"
)
def test_holes_of_a_worker_go_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, env={**os.environ, **environment(1)}
    )
    first, second = done.stdout.splitlines()
    gave, held, left = second.split()
    assert (first, gave) == ("False", "True")
    assert int(held) > 190
    assert int(left) < 20


def test_where_the_c_library_does_not_tell_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Any) -> Any:
        raise OSError("no C library")

    monkeypatch.setattr(heap.ctypes, "CDLL", none)
    heap._library.cache_clear()
    assert not heap.tidy()
    heap._library.cache_clear()
