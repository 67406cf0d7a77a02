"""The C library's heap: holes in it that no work can use any more are given back to the system.

Blocks of one kind of work lie as that kind needs them. The next kind finds the holes too small and takes more, so that
a process comes to hold twice what it ever uses. Nothing happens where the C library does not tell (it is glibc's).
"""

from __future__ import annotations

import ctypes
from functools import cache

HOLES_BYTES = 1 << 26
"""Holes of so many bytes, and of a third of what is in use, are worth the page faults when they are used again."""


class _Figures(ctypes.Structure):
    """glibc's struct mallinfo2, of which two are read: bytes in use, and bytes in holes, given back or not."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def tidy() -> bool:
    """Gives holes back to the system where they are many; whether it did. For between one kind of work and the next."""
    library = _library()
    if library is None:
        return False
    figures = library.mallinfo2()
    if figures.fordblks < max(HOLES_BYTES, figures.uordblks // 3):
        return False
    library.malloc_trim(0)
    return True


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Figures
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError, TypeError):
        return None
    return library
