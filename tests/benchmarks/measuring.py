"""A process that makes the calls of one row and measures them: CPU and wall time, page faults, memory, FLOP.

What must stay true: who conducts a measurement computes nothing while one is taken; a process that dies is told so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

STATUS, PEAKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")
"""What would make a plain process other than a user's; `MALLOC_` variables are read once, when a process starts."""

ROOM = 0.8
"""The share of the memory that is free which a measurement of memory may take; beyond, it is told as too much."""


Problem = tuple[int, bool, str]
"""What a row is built from: the fields of `pairs.Sizes`."""


class Failed(Exception):
    """A call of a row raised, or its process died."""


class Measured:
    """The process of one row, started with some environment variables; asked for one thing after another."""

    def __init__(self, row: str, sizes: Problem, remembered: bool, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(row, sizes, remembered, theirs), daemon=True)
        with _environment(environment):
            self._process.start()
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer to one of the questions of ``ANSWERS``. Failed where there is none."""
        try:
            self._pipe.send((what, *arguments))
            is_good, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failed(f"its process died (exit code {self._process.exitcode})") from None
        if not is_good:
            raise Failed(answer)
        return answer

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._pipe.close()  # which ends it
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """This process's variables as a child is to have them: without an allocator's, and with those that are given."""
    before = dict(os.environ)
    for name in ALLOCATOR:
        os.environ.pop(name, None)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(row: str, sizes: Problem, remembered: bool, pipe: Connection) -> None:
    """Answers until nobody asks any more."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler reports itself, and a missing GPU as an error
    import torch
    from pairs import Sizes
    from rows import ROWS

    warnings.simplefilter("ignore")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says that there is no CUDA
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the conductor, who ends this process
    torch.set_num_threads(1)
    pair: Any = None
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if pair is None:
                build = ROWS[row].build
                pair = ((ROWS[row].remembered or build) if remembered else build)(Sizes(*sizes))
            answer = True, ANSWERS[what](pair, *arguments)
        except Exception as error:  # the conductor tells it and goes on with the next row
            answer = False, f"{type(error).__name__}: {error}"
        pipe.send(answer)


# --- answers -----------------------------------------------------------------------------------------------------


def _facts(pair: Any) -> dict[str, Any]:
    return {"units": pair.units, "unit": pair.unit}


def _warm(pair: Any, form: str) -> float:
    """Seconds of a first call, which compiles where runs do."""
    began = time.perf_counter()
    getattr(pair, form)()
    return time.perf_counter() - began


def _apart(pair: Any) -> float:
    return pair.apart(pair.ours(), pair.twin())


def _time(pair: Any, form: str, repeat: int) -> dict[str, float]:
    """Of one call, as the mean of ``repeat``: CPU and wall seconds, and page faults that the kernel had to serve."""
    call = getattr(pair, form)
    gc.collect()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"cpu": cpu / repeat, "wall": wall / repeat, "faults": faults / repeat}


def _memory(pair: Any, form: str) -> dict[str, int] | None:
    """Bytes that one more call adds at its peak to what a process that has made one holds; and all at that moment.

    ``more_than`` instead where there is not enough memory for it; None where the system does not tell.
    """
    import psutil

    if not STATUS.exists():
        return None
    free = int(ROOM * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + free, resource.RLIM_INFINITY))
    call = getattr(pair, form)
    try:
        call()
        gc.collect()
        _give_back()
        PEAKS.write_text("5")  # the peak begins anew from what is held now
        before = _status("VmRSS")
        call()
    except (RuntimeError, MemoryError) as error:
        if "memory" in str(error).lower() or isinstance(error, MemoryError):
            return {"more_than": free}
        raise
    return {"added": _status("VmHWM") - before, "peak": _status("VmHWM")}


def _give_back() -> None:
    """Hands freed memory to the system, where the C library can be told so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """Bytes of a line of the kernel's account of this process."""
    return 1024 * int(STATUS.read_text(encoding="ascii").partition(f"{name}:")[2].split()[0])


def _work(pair: Any) -> int:
    """FLOP of one call of the twin, multiplications and additions apart, in convolutions and products."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Whole()
    with counter:
        pair.twin()
    return int(counter.get_total_flops())


class _Whole(contextlib.AbstractContextManager[None]):
    """In the place of what tells modules apart, whose hooks cannot stand a derivative of a derivative."""

    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        return None


def _limit(pair: Any) -> float:
    import limits

    return limits.convolution()


def _spent(pair: Any) -> dict[str, float]:
    import spent

    return spent.spent(pair.ours)


ANSWERS = {
    "facts": _facts,
    "warm": _warm,
    "apart": _apart,
    "time": _time,
    "memory": _memory,
    "work": _work,
    "limit": _limit,
    "spent": _spent,
}
