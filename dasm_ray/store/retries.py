"""Trying again what a storage service could not do for a moment, and telling such a fault from a wrong name.

What must stay true: the time is bounded, and only what may pass by itself is tried again.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds after which a storage service that does not answer has failed."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0
"""Seconds between two tries: twice as long every time."""

NOTICE_AFTER = 3.0
"""Seconds of outage before anyone is told: most are over by then."""

LOG = logging.getLogger("dasm_ray")
"""Where notices go: to stderr, unless the program that uses this package says otherwise."""


def _numbers(*names: str) -> frozenset[int]:
    """Error numbers by name: not every system has them all."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


NETWORK = _numbers(
    *("ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENETUNREACH", "ENETDOWN", "ENETRESET"),
    *("EHOSTUNREACH", "EHOSTDOWN", "ENOTCONN", "EPIPE", "EAGAIN", "EBUSY"),
)
"""Faults of a connection, which may pass."""

DEVICE = _numbers(
    *("ENOSPC", "EDQUOT", "EIO", "EREMOTEIO", "ESTALE", "EFBIG", "ENODEV", "ENXIO", "ENOMEM", "EMFILE", "ENFILE"),
    *("ENOBUFS", "ENOLINK"),
)
"""Faults of a disk or of the machine: neither another name for the place nor waiting would have avoided them."""

PASSING = re.compile(
    r"HTTP status (408|429|5\d\d)|\b(408|429|5\d\d) (client|server) error|curlCode|"
    r"\b(SLOW_?DOWN|THROTTL\w*|SERVICE_?UNAVAILABLE|INTERNAL_?(FAILURE|ERROR)|REQUEST_?TIMEOUT|NETWORK_CONNECTION|"
    r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b|"
    r"\b(timed[ -]out|timeout)\b|connection (was |has been )?(reset|refused|aborted|closed|lost)|"
    r"(could not|couldn't|cannot|failed to) (connect|resolve)|temporary failure|temporarily unavailable|"
    r"too many requests|bad gateway|service unavailable|server disconnected",
    re.IGNORECASE,
)
"""How storage services, and those who ask them, say that they cannot just now."""

QUOTED = re.compile(r"'[^']*'")
"""Names of files in what they say, which may hold any word."""

PASSING_KINDS = {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "ClientConnectionError"}
"""Names of error classes that mean the same, in the standard library and in the clients that fsspec uses."""


def may_pass(error: BaseException) -> bool:
    """Whether the fault is one of a connection or of a busy service, which may pass by itself."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return (
        getattr(error, "errno", None) in NETWORK
        or bool(kinds & PASSING_KINDS)
        or bool(PASSING.search(QUOTED.sub("", str(error))))
    ) and not isinstance(error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError)


def is_of_storage(error: BaseException) -> bool:
    """Whether storage failed, rather than that it was named wrongly."""
    return getattr(error, "errno", None) in DEVICE or may_pass(error)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def persistently(
    action: Callable[[], T], where: str, patience: float | None = None, say: Callable[[Exception], str] = first_line
) -> T:
    """What ``action`` returns, tried again for up to ``patience`` seconds (PATIENCE) while its fault may pass.

    ``where`` and what ``say`` makes of the error stand in the notice of an outage that lasts.
    """
    began, wait, noticed = time.monotonic(), FIRST_WAIT, False
    limit = PATIENCE if patience is None else patience
    while True:
        try:
            return action()
        except Exception as error:
            gone = time.monotonic() - began
            if not may_pass(error) or gone + wait > limit:
                raise
            if not noticed and gone + wait > NOTICE_AFTER:
                LOG.warning("%s does not answer (%s); it is tried again for %.0f s", where, say(error), limit)
                noticed = True
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
