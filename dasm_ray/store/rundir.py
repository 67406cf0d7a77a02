"""The folder of one run: its configuration, a lock while a driver works on it, and a log of events.

What must stay true: a run directory never serves two runs or two configurations.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from typing import IO, Any

from dasm_ray.config import plain_yaml
from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config, to_yaml
from dasm_ray.errors import ConfigError, RunDirError
from dasm_ray.store.checked import read_at_most
from dasm_ray.store.place import Place

CONFIG, RECORD, EVENTS, LOCK = "config.yaml", "run.json", "events.jsonl", ".lock"


VERSIONS_OF = ("dasm-ray", "torch", "torchvision", "numpy", "pyarrow", "ray")


LOCK_SECONDS = 0.2
"""Between two tries for a lock that another process has."""


EVENT_SECONDS = 10.0
"""Least time between two uploads of the event file where files cannot be appended to."""


class RunDir:
    """The folder of one run: its configuration, a lock while a driver works on it, and a log of events.

    Make one with ``open`` (to work on it) or ``read`` (to look at it).
    """

    def __init__(self, place: Place, config: RunConfig, lock: IO[str] | None = None) -> None:
        self.place = place
        self.config = config
        self._lock = lock
        self._unsent: list[str] = []
        self._sent_at = 0.0

    @classmethod
    def open(cls, uri: str | os.PathLike[str], config: RunConfig, patience: float = 0) -> RunDir:
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


def _enter(place: Place, config: RunConfig) -> None:
    """Checks that the folder is this configuration's own, or makes it so. ``run.json`` is written last."""
    if (place / RECORD).exists():
        _check_same(place, config)
    else:
        _check_free(place)
    (place / CONFIG).write_text(to_yaml(config))
    if not (place / RECORD).exists():
        digest = digest_of(what(config))
        (place / RECORD).write_json({"digest": digest, "versions": versions()})


def _check_free(place: Place) -> None:
    foreign = [name for name in place.names() if name not in (CONFIG, LOCK)]
    if foreign:
        raise RunDirError(
            f"{place} holds {foreign[0]} and no {RECORD}, so it is not a run directory; choose another --run"
        )


def _check_same(place: Place, config: RunConfig) -> None:
    record = (place / RECORD).read_json()
    if isinstance(record, dict) and record.get("digest") == digest_of(what(config)):
        return
    keys = list(_different(what(_read_config(place)), what(config)))
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


def _read_config(place: Place) -> RunConfig:
    file = place / CONFIG
    try:
        tree = plain_yaml.read_mapping(read_at_most(file, plain_yaml.MOST_BYTES).decode(), "it")
    except (ConfigError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise RunDirError(f"{file} cannot be read ({why}); the file is damaged, choose another --run") from None
    try:
        return parse_config(tree)
    except ConfigError as error:
        raise RunDirError(f"{file} is not for this version of dasm_ray: {error.problems[0]}") from None


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
