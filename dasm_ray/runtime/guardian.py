"""A process beside the driver that says the last sentence and tidies up when the driver is ended without a word.

Ray ends a driver from within, past every handler, when its own processes die; the kernel does when memory runs out.
What must stay true: it ends with its driver, never holds one up, and ends no process but those that it was told of.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, BinaryIO, TextIO

import psutil

PATIENCE_SECONDS = 3.0
"""So long what the driver has started may take to go by itself."""


def guard(lines: BinaryIO, stderr: TextIO, sentence: str) -> None:
    """Reads what the driver says until it is gone; after a goodbye there is nothing to do.

    A line is a JSON object: a ``sentence`` to say, ``processes`` as [pid, time of creation], or ``bye``.
    """
    told: dict[str, Any] = {"sentence": sentence}
    for line in lines:
        with contextlib.suppress(ValueError):  # the last one may be cut off
            told |= json.loads(line)
    if told.get("bye"):
        return
    with contextlib.suppress(OSError, ValueError):
        print(told["sentence"], file=stderr, flush=True)
    _end(told.get("processes", []))


def _end(processes: list[tuple[int, float]]) -> None:
    """Ends what is left after a moment; a number that another process has by now is let alone."""
    mine = []
    for pid, created in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                mine.append(process)
    _, left = psutil.wait_procs(mine, timeout=PATIENCE_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    guard(sys.stdin.buffer, sys.stderr, sys.argv[1])
