"""Files of images of one class: what comes back is what was written, in place, or it is said to be damaged."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from dasm_ray.store.datasets.blockfile import Damaged, Part, mapped, write_part


def images_of(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 1, 1)])
def test_what_is_mapped_is_what_was_written(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    images = images_of(11, *shape)
    part = write_part(tmp_path / "a.arrow", images[::-1])
    found = mapped(tmp_path / "a.arrow", part, shape, is_checked=False)
    np.testing.assert_array_equal(found, images[::-1])
    assert (part.rows, part.bytes) == (11, (tmp_path / "a.arrow").stat().st_size)
    assert not found.flags.writeable


def test_it_is_an_arrow_file_that_others_read(tmp_path: Path) -> None:
    images = images_of(3, 1, 2, 2)
    write_part(tmp_path / "a.arrow", images)
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        column = pa.ipc.open_file(source).read_all().column("image")
    assert [list(value) for value in column.to_pylist()] == images.reshape(3, -1).tolist()


def test_a_file_is_mapped_and_not_copied_for_as_long_as_its_images_are_used(tmp_path: Path) -> None:
    part = write_part(tmp_path / "a.arrow", images_of(300, 3, 64, 64))
    files = [psutil.Process().memory_maps(grouped=False)]
    found = mapped(tmp_path / "a.arrow", part, (3, 64, 64), is_checked=True)[5:]
    files.append(psutil.Process().memory_maps(grouped=False))
    assert [any(each.path.endswith("a.arrow") for each in maps) for maps in files] == [False, True]
    (tmp_path / "a.arrow").unlink()
    np.testing.assert_array_equal(found, images_of(300, 3, 64, 64)[5:])
    del found
    gc.collect()
    assert not any("a.arrow" in each.path for each in psutil.Process().memory_maps(grouped=False))


@pytest.mark.parametrize("at", [0, 300, 500, 1000, -300, -20, -1])
def test_a_byte_that_is_another_is_damage_or_means_nothing(tmp_path: Path, at: int) -> None:
    """Padding, and fields of the format that this reader does not ask for, may change."""
    file, images = tmp_path / "a.arrow", images_of(20, 1, 8, 8)
    part = write_part(file, images)
    data = bytearray(file.read_bytes())
    data[at] ^= 0x5A
    file.write_bytes(data)
    with contextlib.suppress(Damaged):
        np.testing.assert_array_equal(mapped(file, part, (1, 8, 8), is_checked=False), images)


def test_a_pixel_that_is_another_is_damage(tmp_path: Path) -> None:
    file, images = tmp_path / "a.arrow", images_of(20, 1, 8, 8)
    part = write_part(file, images)
    data = file.read_bytes()
    at = data.index(images[7].tobytes())
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(Damaged, match="its checksum does not match"):
        mapped(file, part, (1, 8, 8), is_checked=False)


@pytest.mark.parametrize(
    ("part", "shape", "words"),
    [
        (Part(20, 7, 0), (1, 8, 8), "bytes instead of 7"),
        (None, (1, 8, 9), "other images"),
        (None, (1, 4, 4), "other images"),
    ],
)
def test_other_images_are_damage(tmp_path: Path, part: Part | None, shape: tuple[int, int, int], words: str) -> None:
    written = write_part(tmp_path / "a.arrow", images_of(20, 1, 8, 8))
    with pytest.raises(Damaged, match=words):
        mapped(tmp_path / "a.arrow", part or written, shape, is_checked=True)
    (tmp_path / "a.arrow").write_bytes(b"no arrow" * (written.bytes // 8) + b"x" * (written.bytes % 8))
    with pytest.raises(Damaged):
        mapped(tmp_path / "a.arrow", written, (1, 8, 8), is_checked=True)
