"""What storages tell of their files: times and versions, where they tell any, and None where they do not."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.dircache import DirCache
from fsspec.implementations.memory import MemoryFileSystem

from dasm_ray.store.listed import Entry, _told, entries
from dasm_ray.store.place import Place


@pytest.mark.parametrize("root", ["here", "memory://listing-of-a-test/folder"])
def test_files_and_folders_with_size_time_and_version(root: str, tmp_path: Path) -> None:
    place = Place(tmp_path if root == "here" else root)
    began = time.time()
    (place / "a").write_bytes(b"12")
    (place / "b" / "c").write_bytes(b"12345")
    found = {entry.path[len(place._at) + 1 :]: entry for entry in entries(place._fs, place._at, recursive=True)}
    assert {path: (entry.is_folder, entry.size) for path, entry in found.items()} == {
        **{"a": (False, 2), "b": (True, 0), "b/c": (False, 5)}
    }
    assert found["a"].time is not None
    assert abs(found["a"].time - began) < 600
    assert found["a"].version
    assert entries(place._fs, f"{place._at}/nothing", recursive=False) == []


NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("told", "when", "version"),
    [
        ({"mtime": 5.5, "created": 3.0}, 5.5, "written 5.5"),
        ({"last_modified": NOON, "etag": "0x8"}, NOON.timestamp(), "etag 0x8"),
        ({"LastModified": NOON.replace(tzinfo=None)}, NOON.timestamp(), f"written {NOON.timestamp()}"),
        ({"updated": "2026-01-01T12:00:00.000Z", "generation": 7}, NOON.timestamp(), "generation 7"),
        ({"blob_id": "9daeafb", "last_commit": None}, None, "blob_id 9daeafb"),
        ({"modified": "yesterday", "mtime": 0}, None, None),
        ({}, None, None),
    ],
)
def test_file_systems_call_times_and_versions_by_many_names(
    told: dict[str, object], when: float | None, version: str | None
) -> None:
    assert _told("f", {"type": "file", "size": 3, **told}) == Entry("f", False, 3, when, version)


class Remembering(MemoryFileSystem):
    """Keeps what it once listed, as clients of object stores do."""

    protocol = "remembering-of-tests"
    listings = DirCache()

    def find(self, path: str, maxdepth: int | None = None, **how: object) -> dict[str, dict[str, object]]:
        if path not in self.listings:
            self.listings[path] = super().find(path, maxdepth, **how)
        return self.listings[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()


def test_what_others_write_is_seen_also_where_a_client_keeps_its_listings() -> None:
    fsspec.register_implementation("remembering-of-tests", Remembering, clobber=True)
    place = Place("remembering-of-tests://bucket/remembered")
    (place / "a").write_text("x")
    assert place.names() == ["a"]
    MemoryFileSystem().pipe(f"{place._at}/b", b"of another machine")
    assert place.names() == ["a", "b"]
