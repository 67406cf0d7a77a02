"""Places where files live: a local path or a URI that pyarrow or fsspec opens.

What must stay true: a file under its final name is whole. Every write goes aside and is renamed, so a killed writer
leaves at most a hidden temporary file. A folder that was taken for a run is never made anew under that run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from dasm_ray.config.shown import masked
from dasm_ray.errors import RunDirError, StorageError
from dasm_ray.plain import Plain
from dasm_ray.store import retries, uris
from dasm_ray.store.listed import Entry, entries

T = TypeVar("T")

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""The name that a file has while it is written."""

LISTINGS = 20
"""Tries to list a folder in which files come and go meanwhile."""

PIECE_BYTES = 1 << 22
"""Of a file that is read only to tell whether it has changed, how many bytes are fetched at once."""

FAULTS = (OSError, pa.ArrowException, NotImplementedError)
"""What file systems raise. Those of fsspec raise the errors of any client, all of which are caught."""


class Place:
    """A file or a folder, named by a local path or a URI (``file://``, ``s3://``, ``gs://``, ``hf://`` ...).

    It holds only strings, so it travels to workers as it is; a relative path is made absolute at once, because workers
    start elsewhere. What was named wrongly raises RunDirError, and storage that fails StorageError; a fault of a
    service that may pass is ridden out first. It holds no passwords and keys: they come from the environment.
    """

    def __init__(self, uri: str | os.PathLike[str] | Place) -> None:
        self._root: str
        self._path: str
        self._marks: tuple[str, ...]  # full paths of the files that must be there before anything is changed
        if isinstance(uri, Place):
            self._root, self._path, self._marks = uri._root, uri._path, uri._marks
        else:
            (self._root, self._path), self._marks = uris.split(uris.text_of(uri)), ()

    def within(self, mark: str) -> Place:
        """The same folder for one who writes only while ``mark``, a file in it, is there.

        Whatever is changed at it or below it raises StorageError once the mark is gone, also on another machine. So a
        folder that was removed, moved, unmounted or taken by another driver is not made anew by those still at work.
        """
        guarded = Place(self)
        guarded._marks = (*self._marks, f"{self._path.rstrip('/')}/{mark}")
        return guarded

    def __truediv__(self, name: str) -> Place:
        return self._moved(f"{self._path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self._root, self._path) == (other._root, other._path)

    def __hash__(self) -> int:
        return hash((self._root, self._path))

    @property
    def uri(self) -> str:
        """The path or URI with all that it takes to open it again; it holds no secret."""
        root, mark, query = self._root.partition("?")
        return root.removesuffix("/") + self._path + mark + query

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder that this place is in."""
        return self._moved(self._path.rpartition("/")[0] or "/")

    @property
    def service(self) -> str:
        """Who keeps it: "" for this machine's own file system, else the URI's scheme, authority and options."""
        return self._root

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
        return sorted(name for name, _ in self._listing(recursive=False) if not _is_temporary(name))

    def children(self) -> list[tuple[str, bool]]:
        """The same names, each with whether it is a folder."""
        found = self._listing(recursive=False)
        return sorted((name, entry.is_folder) for name, entry in found if not _is_temporary(name))

    def walk(self) -> tuple[list[str], list[str]]:
        """Sorted paths, relative to here, of all folders and of all files below this folder."""
        below = [found for found in self._listing(recursive=True) if not _is_temporary(found[0])]
        folders, files = ([path for path, entry in below if entry.is_folder is kind] for kind in (True, False))
        return sorted(folders), sorted(files)

    def times(self, *, recursive: bool = False) -> dict[str, float | None]:
        """When each file in this folder, or below it, was last written: its path relative to here to seconds since 1970
        by the clock of the storage; None where that tells no time."""
        found = self._listing(recursive=recursive)
        return {path: entry.time for path, entry in found if not entry.is_folder}

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below this folder, by its path relative to here."""
        below = self._listing(recursive=True)
        return {path: entry.size for path, entry in below if not (entry.is_folder or _is_temporary(path))}

    def stamps(self, names: Collection[str]) -> dict[str, tuple[int, int | str]]:
        """Bytes and version of those files in this folder that have these names, by name.

        The version is another one once a file was written anew: nanoseconds since 1970, or what else the storage tells.
        Where it tells nothing, the file is read, and it is the SHA-256 of its bytes.
        """
        wanted = set(names)
        found = [(name, entry) for name, entry in self._listing(recursive=False) if name in wanted]
        return {
            name: (entry.size, (self / name)._digest() if entry.version is None else entry.version)
            for name, entry in found
            if not entry.is_folder
        }

    def temporaries(self) -> dict[str, float | None]:
        """The files below this folder that are being written or that killed writers left: path to time as above."""
        return {path: time for path, time in self.times(recursive=True).items() if _is_temporary(path)}

    def make_dir(self) -> None:
        """Makes the folder, and its parents, if need be."""
        self._do("be made", lambda: self._make_folder(self._at), changes=True)

    def open(self) -> pa.NativeFile:
        """The file, open for reading at any offset; the caller closes it."""
        file = self._do("be read", lambda: self._fs.open_input_file(self._at))
        return pa.PythonFile(_Patient(self, file), mode="r") if self._root else file

    def read_bytes(self) -> bytes:
        """The whole file."""

        def read() -> bytes:
            with self._fs.open_input_stream(self._at, compression=None) as stream:
                return bytes(stream.read())

        return self._do("be read", read)

    def write_bytes(self, data: bytes | pa.Buffer, patience: float | None = None) -> None:
        """Writes the whole file aside and renames it, so that the name never stands for half a file.

        ``patience``: seconds to ride out an outage for, where it is not the usual time.
        """
        self._do("be written", lambda: self._write(data), changes=True, patience=patience)

    def append(self, data: bytes, *, to_disk: bool = False) -> None:
        """Adds to the end of a local file, and makes it if need be: for logs, whose last line may be torn.

        ``to_disk``: returns only when the bytes are on the disk.
        """
        path = self.local
        assert path is not None, "object stores cannot append"

        def write() -> None:
            with path.open("ab") as file:
                file.write(data)
            if to_disk:
                _flush_to_disk(str(path))

        self._do("be written", write, changes=True)

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        try:
            return self.read_bytes().decode()
        except UnicodeDecodeError:
            raise RunDirError(f"{self} cannot be read: it is not text; the file is damaged, remove it") from None

    def write_text(self, text: str) -> None:
        """Writes the whole file as UTF-8, aside and renamed."""
        self.write_bytes(text.encode())

    def read_json(self) -> Plain:
        """The value in a JSON file."""
        try:
            return json.loads(self.read_text())
        except (ValueError, RecursionError):
            raise RunDirError(f"{self} cannot be read: it is not JSON; the file is damaged, remove it") from None

    def write_json(self, value: Plain) -> None:
        """Writes a value as JSON, aside and renamed."""
        self.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def delete(self) -> None:
        """Removes the file, or the folder with all it holds; nothing happens where there is neither."""

        def delete() -> None:
            kind = self._fs.get_file_info(self._at).type
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it meanwhile
                if kind is fs.FileType.Directory:
                    self._fs.delete_dir(self._at)
                elif kind is not fs.FileType.NotFound:
                    self._fs.delete_file(self._at)

        self._do("be removed", delete, changes=True)

    def delete_if_empty(self) -> None:
        """Removes the folder if it holds nothing at all; locally in one step, so that nothing can come between."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                self.local.rmdir()
        elif not self._listing(recursive=False):
            self.delete()

    def check(self) -> None:
        """StorageError unless every mark that was set by ``within`` is still there."""
        for mark in self._marks:
            file = Place(self)._moved(mark)
            file._marks = ()
            if not file.exists():
                raise StorageError(
                    f"{file.parent} is not there any more as it was: it was removed, moved or unmounted, another "
                    f"driver has taken it, or this machine does not share it ({file.name} is gone); nothing more is "
                    f"written to it; put it back, and the same command goes on"
                )

    # --- how it is done ------------------------------------------------------------------------------------------

    def _moved(self, path: str) -> Place:
        other = Place(self)
        other._path = path
        return other

    @property
    def _fs(self) -> fs.FileSystem:
        return uris.file_system(self._root)[0]

    @property
    def _at(self) -> str:
        """The path as the file system knows it: a bucket belongs to it."""
        return uris.file_system(self._root)[1] + self._path if self._root else self._path

    def _type(self) -> fs.FileType:
        return self._do("be read", lambda: self._fs.get_file_info(self._at).type)

    def _listing(self, *, recursive: bool) -> list[tuple[str, Entry]]:
        """What is in the folder, or below it, by its path relative to the folder; nothing where there is no folder."""

        start = len(self._at.rstrip("/")) + 1

        def found() -> list[tuple[str, Entry]]:
            return [(entry.path[start:], entry) for entry in entries(self._fs, self._at, recursive=recursive)]

        def patiently() -> list[tuple[str, Entry]]:
            for _ in range(LISTINGS):
                with contextlib.suppress(FileNotFoundError):  # a file that went between being seen and being looked at
                    return found()
            return found()

        return self._do("be listed", patiently)

    def _digest(self) -> str:
        """SHA-256 (hex) of the file, which is read in pieces."""
        total = hashlib.sha256()
        with self.open() as file:
            while piece := file.read(PIECE_BYTES):
                total.update(piece)
        return total.hexdigest()

    def _write(self, data: bytes | pa.Buffer) -> None:
        folder, _, name = self._at.rpartition("/")
        aside = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        self._make_folder(folder)
        try:
            with self._fs.open_output_stream(aside, compression=None) as stream:
                stream.write(data)
            if not self._root:
                _flush_to_disk(aside)
            self._fs.move(aside, self._at)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.delete_file(aside)
            raise

    def _make_folder(self, path: str) -> None:
        """Makes a folder and its parents; but never the one that holds a mark, not even if it goes this very moment."""
        kept = self._marks[-1].rpartition("/")[0] if self._marks and not self._root else None
        if kept is None or not f"{path}/".startswith(f"{kept}/"):
            self._fs.create_dir(path, recursive=True)
            return
        for name in filter(None, path.removeprefix(kept).split("/")):
            kept = f"{kept}/{name}"
            self._fs.create_dir(kept, recursive=False)

    def _do(self, done: str, action: Callable[[], T], *, changes: bool = False, patience: float | None = None) -> T:
        """What ``action`` returns. Services are asked again for a while; faults come out as sentences."""
        if changes:
            self.check()
        try:
            if not self._root:
                return action()
            return retries.persistently(action, str(self), patience, self._reason)
        except Exception as error:
            if not isinstance(error, FAULTS) and (not self._root or uris.is_native(self._root)):
                raise
            self.check()  # the better reason, if the whole folder is gone
            raise self._trouble(done, error, is_running=changes and bool(self._marks)) from None

    def _trouble(self, done: str, error: Exception, *, is_running: bool) -> StorageError | RunDirError:
        """errors.py says the rule: storage has failed if it says so, or could be written before."""
        if is_running or retries.is_of_storage(error):
            return StorageError(
                f"{self} cannot {done} ({self._reason(error)}); what was written before is whole: mend that, and the "
                f"same command goes on"
            )
        return RunDirError(f"{self} cannot {done} ({self._reason(error)}); mend that or name another place")

    def _reason(self, error: Exception) -> str:
        """Why, in a few words, without the secrets that a client may have put into a URI of its own."""
        if isinstance(error, FileExistsError):
            return "a file stands where a folder must be"
        number = getattr(error, "errno", None)
        return masked(os.strerror(number) if number else retries.first_line(error))


class _Patient(io.RawIOBase):
    """A file of a storage service for random access, whose every read rides out an outage."""

    def __init__(self, place: Place, file: pa.NativeFile) -> None:
        self._place, self._file = place, file
        self._size, self._position = int(file.size()), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        start = self._position
        data: bytes = self._place._do("be read", lambda: self._file.read_at(count, start)) if count else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _flush_to_disk(path: str) -> None:
    """Waits until the bytes are on the disk: a rename must not survive a power cut that its content did not."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_temporary(path: str) -> bool:
    return TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None
