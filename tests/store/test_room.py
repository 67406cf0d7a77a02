"""Room for an array: in memory, or in a file that nobody sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasm_ray.store import room as rooms
from dasm_ray.store.room import room


def anonymous() -> int:
    """Bytes of this process's memory that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_large_array_takes_no_memory_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = anonymous()
    array = room((5, 1 << 22), np.float32)
    array[:] = np.arange(5)[:, None]
    assert anonymous() - before < array.nbytes / 2
    assert list(tmp_path.iterdir()) == []
    assert type(array) is np.ndarray
    assert array[:, -1].tolist() == [0, 1, 2, 3, 4]


def test_a_small_one_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms.tempfile, "TemporaryFile", None)
    assert room((3, 2), np.uint8).shape == (3, 2)


@pytest.mark.parametrize("lacks", ["room", "the call"])
def test_where_no_file_can_be_had_it_is_in_memory(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rooms, "HELD_BYTES", 0)
    if lacks == "room":
        monkeypatch.setattr(rooms.os, "posix_fallocate", full)
    else:
        monkeypatch.delattr(rooms.os, "posix_fallocate")
    array = room((3,), np.int64)
    array[:] = 7
    assert (array.dtype, array.tolist()) == (np.int64, [7, 7, 7])
