"""Standard streams whose reader may go away, or whose disk may fill up, while a command runs.

What must stay true: a stream that cannot be written raises no OSError out of whoever happened to print, and none when
the interpreter flushes it at its end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TextIO, cast

from dasm_ray.errors import StorageError


class _Guarded:
    """A text stream like ``stream``, but for the faults of writing: ``on_fault`` is told the first, at every write."""

    def __init__(self, stream: TextIO, on_fault: Callable[[OSError], None]) -> None:
        self._stream, self._on_fault = stream, on_fault
        self._fault: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._fault is None:
            try:
                action()
            except OSError as error:
                self._fault = error
                _drain(self._stream)
        if self._fault is not None:
            self._on_fault(self._fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def onlooking(stream: TextIO) -> TextIO:
    """The stream for what is only looked at, such as progress: where nobody looks any more, nothing is said."""
    return cast(TextIO, _Guarded(stream, lambda error: None))


def awaited(stream: TextIO) -> TextIO:
    """The stream for results: StorageError where they cannot be written."""

    def lost(error: OSError) -> None:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"standard output cannot be written ({why}); what is on disk is whole: mend that, and the same command "
            f"shows it again"
        ) from None

    return cast(TextIO, _Guarded(stream, lost))


def _drain(stream: TextIO) -> None:
    """Lets all further writing go nowhere, with what is still held, which would fail again when it is flushed."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
