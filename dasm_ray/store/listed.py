"""What a storage tells of its files: kind, size, when each was last written, and which version of it is there.

What must stay true: a time that nobody knows is None, and never a number that looks like one; a file that is written
anew has another version.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple, Protocol

from pyarrow import fs

from dasm_ray.plain import Values

TIMES = ("mtime", "last_modified", "LastModified", "updated", "modified", "created")
"""What file systems of fsspec call the time of a file: each has its own name for it, and some have none."""

VERSIONS = ("etag", "ETag", "blob_id", "xet_hash", "generation", "sha")
"""What they call that which is another one for other bytes."""


class Entry(NamedTuple):
    """A file or a folder as it is listed."""

    path: str
    is_folder: bool
    size: int
    """In bytes."""
    time: float | None
    """When it was last written, in seconds since 1970 by the clock of the storage; None where that is not told."""
    version: int | str | None
    """Another one once it is written anew: nanoseconds since 1970, or what the storage says; None for not told."""


class Lister(Protocol):
    """What is asked of a file system of fsspec."""

    def isdir(self, path: str) -> bool: ...

    def exists(self, path: str) -> bool: ...

    def find(
        self, path: str, *, maxdepth: int | None, withdirs: bool, detail: bool
    ) -> dict[str, dict[str, object]]: ...

    def invalidate_cache(self, path: str | None = None) -> None: ...


def entries(system: fs.FileSystem, folder: str, *, recursive: bool) -> list[Entry]:
    """What is in ``folder`` of a file system, or below it, by its path there; nothing where there is no such folder."""
    if isinstance(system, fs.PyFileSystem):
        return _of_fsspec(system.handler.fs, folder, recursive=recursive)
    found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))
    return [_native(info) for info in found]


def _native(info: fs.FileInfo) -> Entry:
    time = None if info.mtime is None else float(info.mtime.timestamp())
    return Entry(info.path, info.type is fs.FileType.Directory, info.size or 0, time, info.mtime_ns)


def _of_fsspec(system: Lister, folder: str, *, recursive: bool) -> list[Entry]:
    """The same of fsspec, asked itself: pyarrow passes on neither versions nor most times."""
    system.invalidate_cache(folder)  # many keep what they once listed, and others write there too
    if not system.isdir(folder):
        if system.exists(folder):
            raise NotADirectoryError(folder)
        return []
    found = system.find(folder, maxdepth=None if recursive else 1, withdirs=True, detail=True)
    return [_told(path, info) for path, info in found.items() if path.strip("/") != folder.strip("/")]


def _told(path: str, info: Values) -> Entry:
    times = (_seconds(info.get(name)) for name in TIMES)
    time = next((seconds for seconds in times if seconds is not None), None)
    version = next((f"{name} {info[name]}" for name in VERSIONS if info.get(name)), None)
    if version is None and time is not None:
        version = f"written {time!r}"
    size = info.get("size")
    return Entry(path, info.get("type") == "directory", size if isinstance(size, int) else 0, time, version)


def _seconds(told: object) -> float | None:
    """Seconds since 1970 of a number of them, a time, or a text of one; a time without a zone is that of Greenwich."""
    if isinstance(told, str):
        try:
            told = datetime.datetime.fromisoformat(told)
        except ValueError:
            return None
    if isinstance(told, datetime.datetime):
        return (told if told.tzinfo else told.replace(tzinfo=datetime.UTC)).timestamp()
    return float(told) if isinstance(told, int | float) and told > 0 else None
