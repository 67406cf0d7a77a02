"""The log of a run as data: one JSON value a line, in the order of time.

    events.jsonl              where files can be appended to
    events/00000.jsonl ...    elsewhere: parts, each of which is written once

What must stay true: no part is ever written again, and a log that cannot be written stops no run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from dasm_ray.errors import DasmError
from dasm_ray.plain import Plain, Tree
from dasm_ray.store.place import Place
from dasm_ray.store.retries import LOG

EVENTS, PARTS = "events.jsonl", "events"

PART_SECONDS = 10.0
"""Least time between two parts, to begin with."""

LONGEST_PART_SECONDS = 60.0
"""The same for a run that has written many: a second longer after each."""

MOST_HELD = 10_000
"""Lines that are kept while they cannot be written; older ones are lost, and how many is said."""


class EventLog:
    """The events of one driver in the folder ``run``: appended to those that are there."""

    def __init__(self, run: Place) -> None:
        self._run = run
        self._held: list[str] = []
        self._lost = 0
        self._parts: list[str] = []
        self._next: int | None = None
        self._sent_at = float("-inf")
        self._has_failed = self._is_begun = False

    def add(self, fields: Tree) -> None:
        """Adds one line: the time (seconds since 1970) and the fields. StorageError only if the run directory is gone.

        A line that cannot be written is said once, and is written with a later one.
        """
        self._held.append(json.dumps({"time": round(time.time(), 3), **fields}, default=_plain) + "\n")
        if len(self._held) > MOST_HELD:
            self._lost += len(self._held) - MOST_HELD
            del self._held[:-MOST_HELD]
        is_local = self._run.local is not None
        if is_local or time.monotonic() - self._sent_at >= min(PART_SECONDS + len(self._parts), LONGEST_PART_SECONDS):
            self._run.check()
            self.send()

    def send(self) -> None:
        """Writes the lines that are held; a fault is said, and they are still held."""
        if not self._held:
            return
        self._sent_at = time.monotonic()
        lost = json.dumps({"time": round(time.time(), 3), "kind": "lost", "events": self._lost}) + "\n"
        data = "".join([*([lost] if self._lost else []), *self._held]).encode()
        try:
            self._write(data)
        except DasmError as error:
            if not self._has_failed:
                LOG.warning("%s; the run goes on without its log, which is tried again", error)
            self._has_failed = True
            return
        self._held.clear()
        self._lost, self._has_failed = 0, False

    def _may_be_torn(self) -> bool:
        """Whether the file ends within a line: after a fault, or where another driver was killed."""
        path = (self._run / EVENTS).local
        if self._has_failed or self._is_begun or path is None or not path.exists():
            return self._has_failed
        try:
            with path.open("rb") as file:
                return file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
        except OSError:  # what is wrong is said by who writes to it
            return True

    def _write(self, data: bytes) -> None:
        if self._run.local is not None:
            (self._run / EVENTS).append((b"\n" if self._may_be_torn() else b"") + data)
            self._is_begun = True
            return
        if self._next is None:
            self._next = 1 + max((int(name.partition(".")[0]) for name in _parts_of(self._run)), default=-1)
        name = f"{PARTS}/{self._next:05d}.jsonl"
        (self._run / name).write_bytes(data, patience=0)
        self._parts.append(name)
        self._next += 1


def read_events(run: Place) -> Iterator[Tree]:
    """The events of a run, the oldest first; a line that is no JSON, as one that was torn, is left out."""
    files = [run / EVENTS, *(run / PARTS / name for name in _parts_of(run))]
    for file in files:
        for line in file.read_bytes().splitlines() if file.exists() else ():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def _parts_of(run: Place) -> list[str]:
    names = (run / PARTS).names()
    return sorted((name for name in names if name.removesuffix(".jsonl").isdecimal()), key=lambda name: int(name[:-6]))


def _plain(value: Plain) -> Plain:
    """Numbers out of numpy or torch as plain ones; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
