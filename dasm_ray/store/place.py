"""Places where files live: a local path or any `pyarrow.fs` URI.

What must stay true: a file under its final name is whole. Every write goes aside and is renamed, so a killed writer
leaves at most a hidden temporary file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from dasm_ray.config.shown import INSTEAD, masked, secret_in
from dasm_ray.errors import RunDirError


class Place:
    """A file or a folder, named by a local path or a URI (``file://``, ``s3://``, ``gs://`` ...).

    It holds only strings, so it travels to workers as it is; a relative path is made absolute at once, because workers
    start elsewhere. Whatever cannot be read or written raises RunDirError, and so does a URI that holds credentials:
    places are written down and shown.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        secret = secret_in(text)
        if secret is not None:
            raise RunDirError(f"{masked(text)}: holds {secret}, which would be kept and shown; {INSTEAD}")
        if text.startswith("file://"):
            text = fs.FileSystem.from_uri(text)[1]
        if "://" in text:
            parts = urlsplit(text)
            self._root = f"{parts.scheme}://{parts.netloc}/" + (f"?{parts.query}" if parts.query else "")
            self._path = "/" + parts.path.strip("/")
        else:
            self._root, self._path = "", os.path.abspath(os.path.expanduser(text))

    def __truediv__(self, name: str) -> Place:
        child = Place.__new__(Place)
        child._root, child._path = self._root, f"{self._path.rstrip('/')}/{name}"
        return child

    def __str__(self) -> str:
        root, mark, query = self._root.partition("?")
        return root.removesuffix("/") + self._path + mark + query

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self._root, self._path) == (other._root, other._path)

    def __hash__(self) -> int:
        return hash((self._root, self._path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder that this place is in."""
        above = Place.__new__(Place)
        above._root, above._path = self._root, self._path.rpartition("/")[0] or "/"
        return above

    @property
    def local(self) -> Path | None:
        """The path, where the place is on this machine's own file system."""
        return None if self._root else Path(self._path)

    def exists(self) -> bool:
        """Whether there is a file or a folder here."""
        return self._type() is not fs.FileType.NotFound

    def is_dir(self) -> bool:
        """Whether there is a folder here."""
        return self._type() is fs.FileType.Directory

    def names(self) -> list[str]:
        """Sorted names of what the folder holds, temporary files left out; empty where there is no folder."""
        return [path for path, _ in self._listing(recursive=False)]

    def walk(self) -> tuple[list[str], list[str]]:
        """Sorted paths, relative to here, of all folders and of all files below this folder."""
        below = self._listing(recursive=True)
        return [path for path, folder in below if folder], [path for path, folder in below if not folder]

    def make_dir(self) -> None:
        """Makes the folder, and its parents, if need be."""
        with self._trouble("be made"):
            self._fs.create_dir(self._at, recursive=True)

    def open(self) -> pa.NativeFile:
        """The file, open for reading at any offset; the caller closes it."""
        with self._trouble("be read"):
            return self._fs.open_input_file(self._at)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self._trouble("be read"), self._fs.open_input_stream(self._at, compression=None) as stream:
            return bytes(stream.read())

    def write_bytes(self, data: bytes) -> None:
        """Writes the whole file aside and renames it, so that the name never stands for half a file."""
        folder, _, name = self._at.rpartition("/")
        aside = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        with self._trouble("be written"):
            self._fs.create_dir(folder, recursive=True)
            try:
                with self._fs.open_output_stream(aside, compression=None) as stream:
                    stream.write(data)
                if not self._root:
                    _flush_to_disk(aside)
                self._fs.move(aside, self._at)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(aside)
                raise

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        try:
            return self.read_bytes().decode()
        except UnicodeDecodeError:
            raise RunDirError(f"{self} cannot be read: it is not text; the file is damaged, remove it") from None

    def write_text(self, text: str) -> None:
        """Writes the whole file as UTF-8, aside and renamed."""
        self.write_bytes(text.encode())

    def read_json(self) -> Any:
        """The value in a JSON file."""
        try:
            return json.loads(self.read_text())
        except ValueError:
            raise RunDirError(f"{self} cannot be read: it is not JSON; the file is damaged, remove it") from None

    def write_json(self, value: Any) -> None:
        """Writes a value as JSON, aside and renamed."""
        self.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def delete(self) -> None:
        """Removes the file, or the folder with all it holds; nothing happens where there is neither."""
        with self._trouble("be removed"):
            kind = self._fs.get_file_info(self._at).type
            if kind is fs.FileType.Directory:
                self._fs.delete_dir(self._at)
            elif kind is not fs.FileType.NotFound:
                self._fs.delete_file(self._at)

    @property
    def _fs(self) -> fs.FileSystem:
        return _file_system(self._root)[0]

    @property
    def _at(self) -> str:
        """The path as the file system knows it: a bucket belongs to it."""
        return _file_system(self._root)[1] + self._path if self._root else self._path

    def _type(self) -> fs.FileType:
        with self._trouble("be read"):
            return self._fs.get_file_info(self._at).type

    def _listing(self, *, recursive: bool) -> list[tuple[str, bool]]:
        with self._trouble("be listed"):
            found = self._fs.get_file_info(fs.FileSelector(self._at, allow_not_found=True, recursive=recursive))
        start = len(self._at.rstrip("/")) + 1
        return sorted(
            (info.path[start:], info.type is fs.FileType.Directory)
            for info in found
            if not _is_temporary(info.base_name)
        )

    @contextlib.contextmanager
    def _trouble(self, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise RunDirError(f"{self} cannot {done} ({_reason(error)}); mend that or name another place") from None


@functools.lru_cache
def _file_system(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI root, opened once a process (it may ask the network), and its path, say a bucket."""
    if not root:
        return fs.LocalFileSystem(), ""
    system, path = fs.FileSystem.from_uri(root)
    return system, path.rstrip("/")


def _flush_to_disk(path: str) -> None:
    """Waits until the bytes are on the disk: a rename must not survive a power cut that its content did not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError):
        return "a file stands where a folder must be"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).partition("\n")[0]
