"""The name of a set: another one for all that could change a pixel, a label or a split, the same for all else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.store.datasets import fingerprint as module
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.fingerprint import fingerprint
from dasm_ray.store.memory import keep
from dasm_ray.store.place import Place


def name_of(**keys: object) -> str:
    data = Data(**keys)  # type: ignore[arg-type]
    return fingerprint(open_source(data), data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng([ord(label), number]).integers(0, 255, (5, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.bmp")
    return tmp_path / "set"


def test_what_changes_no_pixel_changes_no_name(folder: Path) -> None:
    name = name_of(name="folder", path=str(folder))
    assert name == name_of(name="folder", path=str(folder), zca=0.1, cache=str(folder.parent / "c"), cache_gb=1)
    assert len(name) == 32


@pytest.mark.parametrize("keys", [{"image_size": 3}, {"val_share": 0.2}, {"test_share": 0.3}, {"ground": "black"}])
def test_a_key_that_changes_pixels_or_splits_changes_the_name(folder: Path, keys: dict[str, object]) -> None:
    assert name_of(name="folder", path=str(folder)) != name_of(name="folder", path=str(folder), **keys)


def test_a_file_that_is_changed_in_place_changes_the_name(folder: Path) -> None:
    """To the same size, and with its time set back."""
    name, file = name_of(name="folder", path=str(folder)), folder / "a" / "1.bmp"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert name_of(name="folder", path=str(folder)) != name


def test_files_that_come_go_or_move_change_the_name(folder: Path) -> None:
    names = [name_of(name="folder", path=str(folder))]
    (folder / "a" / "2.bmp").rename(folder / "b" / "7.bmp")
    names.append(name_of(name="folder", path=str(folder)))
    (folder / "b" / "7.bmp").unlink()
    names.append(name_of(name="folder", path=str(folder)))
    assert len(set(names)) == 3


def test_another_version_of_what_decodes_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name_of(name="digits")]
    monkeypatch.setattr(module, "LAYOUT", module.LAYOUT + 1)
    names.append(name_of(name="digits"))
    monkeypatch.setattr(module, "_versions", lambda: ["another"])
    names.append(name_of(name="digits"))
    assert len(set(names)) == 3


def test_the_files_of_a_loader_of_arrays_are_those_below_its_folder_or_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    for name in ("raw/b", "raw/deep/a", "train_32x32.mat", "test_32x32.mat", "other.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert list(module._below(tmp_path / "raw")) == [str(tmp_path / "raw" / name) for name in ("b", "deep/a")]
    beside = [str(tmp_path / name) for name in ("test_32x32.mat", "train_32x32.mat")]
    assert list(module._below(tmp_path / "train_32x32.mat")) == beside


def test_files_of_an_object_store_are_known_by_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    at = {"memory://bucket/a": {"1.png": (5, 7), "2.png": (6, 8)}, "memory://bucket/b": {"1.png": (9, 10)}}
    monkeypatch.setattr(module.Place, "stamps", lambda place, names: asked.append(place.uri) or at[place.uri])
    paths = ["memory://bucket/a/1.png", "memory://bucket/b/1.png", "memory://bucket/a/2.png"]
    assert sorted(module._stamps(paths)) == [(paths[0], 5, 7, 0), (paths[2], 6, 8, 0), (paths[1], 9, 10, 0)]
    assert asked == ["memory://bucket/a", "memory://bucket/b"]


def test_a_file_of_fsspec_that_is_replaced_by_one_of_the_same_size_changes_the_name() -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 4, 4), np.uint8)
    place = keep(Place("memory://fingerprint-of-a-test"), (images, np.arange(8) % 2))
    name = name_of(name="parquet", path=place.uri)
    assert name_of(name="parquet", path=place.uri) == name
    file = place / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes())
    assert name_of(name="parquet", path=place.uri) != name
