"""Places where files live (a local path or any `pyarrow.fs` URI), and the folder of one run.

What must stay true: a file under its final name is whole. Every write goes aside and is renamed, so a killed writer
leaves at most a hidden temporary file, and a run directory never serves two runs or two configurations.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa
import yaml
from pyarrow import fs

from dasm_ray import config as configuration
from dasm_ray.errors import ConfigError, RunDirError

CONFIG, RECORD, EVENTS, LOCK = "config.yaml", "run.json", "events.jsonl", ".lock"

VERSIONS_OF = ("dasm-ray", "torch", "torchvision", "numpy", "pyarrow", "ray")

LOCK_SECONDS = 0.2
"""Between two tries for a lock that another process has."""

EVENT_SECONDS = 10.0
"""Least time between two uploads of the event file where files cannot be appended to."""


class Place:
    """A file or a folder, named by a local path or a URI (``file://``, ``s3://``, ``gs://`` ...).

    It holds only strings, so it travels to workers as it is; a relative path is made absolute at once, because workers
    start elsewhere. Whatever cannot be read or written raises RunDirError.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
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


class RunDir:
    """The folder of one run: its configuration, a lock while a driver works on it, and a log of events.

    Make one with ``open`` (to work on it) or ``read`` (to look at it).
    """

    def __init__(self, place: Place, config: configuration.RunConfig, lock: IO[str] | None = None) -> None:
        self.place = place
        self.config = config
        self._lock = lock
        self._unsent: list[str] = []
        self._sent_at = 0.0

    @classmethod
    def open(cls, uri: str | os.PathLike[str], config: configuration.RunConfig, patience: float = 0) -> RunDir:
        """Makes or re-enters the run directory, and keeps other drivers out until ``close``.

        Raises RunDirError if it cannot be written, belongs to another configuration, or is in use for longer than
        ``patience`` seconds.
        """
        place = Place(uri)
        if not (place / RECORD).exists():
            _check_free(place)
        place.make_dir()
        lock = take_lock(place, patience)
        try:
            _enter(place, config)
        except BaseException:
            release_lock(lock)
            raise
        return cls(place, config, lock)

    @classmethod
    def read(cls, uri: str | os.PathLike[str]) -> RunDir:
        """An existing run directory, to look at; RunDirError if there is none."""
        place = Place(uri)
        if not (place / RECORD).exists():
            raise RunDirError(f"{place} is no run directory: it holds no {RECORD}; name one that a run has written")
        return cls(place, _read_config(place))

    def event(self, **fields: Any) -> None:
        """Appends one line to events.jsonl: the time (seconds since 1970) and the fields."""
        line = json.dumps({"time": round(time.time(), 3), **fields}, default=_plain) + "\n"
        target = self.place / EVENTS
        if target.local is not None:
            with target._trouble("be written"), target.local.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._unsent.append(line)
        if time.monotonic() - self._sent_at >= EVENT_SECONDS:
            self._send()

    def close(self) -> None:
        """Sends events still held, and lets other drivers in."""
        try:
            self._send()
        finally:
            release_lock(self._lock)
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self) -> None:
        """Object stores cannot append: the whole file is written again, with the lines that it lacks."""
        if self._unsent:
            target = self.place / EVENTS
            before = target.read_text() if target.exists() else ""
            target.write_text(before + "".join(self._unsent))
            self._unsent.clear()
            self._sent_at = time.monotonic()


def take_lock(place: Place, patience: float = 0) -> IO[str] | None:
    """An exclusive lock that dies with the process, tried for ``patience`` seconds; RunDirError if another has it.

    Object stores have none: two drivers there are the user's care.
    """
    path = (place / LOCK).local
    if path is None:
        return None
    until = time.monotonic() + patience
    with (place / LOCK)._trouble("be locked"):
        file = path.open("a")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= until:
                    file.close()
                    break
            time.sleep(LOCK_SECONDS)
    raise RunDirError(f"{place} is in use by another run; wait for it, or choose another --run")


def release_lock(lock: IO[str] | None) -> None:
    if lock is not None:
        lock.close()


def _enter(place: Place, config: configuration.RunConfig) -> None:
    """Checks that the folder is this configuration's own, or makes it so. ``run.json`` is written last."""
    if (place / RECORD).exists():
        _check_same(place, config)
    else:
        _check_free(place)
    (place / CONFIG).write_text(configuration.to_yaml(config))
    if not (place / RECORD).exists():
        digest = configuration.digest_of(configuration.what(config))
        (place / RECORD).write_json({"digest": digest, "versions": versions()})


def _check_free(place: Place) -> None:
    foreign = [name for name in place.names() if name not in (CONFIG, LOCK)]
    if foreign:
        raise RunDirError(
            f"{place} holds {foreign[0]} and no {RECORD}, so it is not a run directory; choose another --run"
        )


def _check_same(place: Place, config: configuration.RunConfig) -> None:
    record = (place / RECORD).read_json()
    if isinstance(record, dict) and record.get("digest") == configuration.digest_of(configuration.what(config)):
        return
    keys = list(_different(configuration.what(_read_config(place)), configuration.what(config)))
    why = f"another configuration ({', '.join(keys)} differ)" if keys else "another version of the configuration"
    raise RunDirError(f"{place} belongs to {why}; choose another --run")


def _different(one: dict[str, Any], other: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted names of the keys whose values differ."""
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _different(left, right, f"{above}{key}.")
        elif left != right:
            yield above + key


def _read_config(place: Place) -> configuration.RunConfig:
    file = place / CONFIG
    try:
        return configuration.parse_config(yaml.safe_load(file.read_text()))
    except ConfigError as error:
        raise RunDirError(f"{file} is not for this version of dasm_ray: {error.problems[0]}") from None
    except yaml.YAMLError:
        raise RunDirError(f"{file} cannot be read: it is not YAML; the file is damaged, choose another --run") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose change can change a result."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _plain(value: Any) -> Any:
    """Numbers out of numpy or torch as plain ones; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
