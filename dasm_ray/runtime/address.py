"""How the address of a Ray cluster is spelt.

What must stay true: an address that cannot be one is refused without Ray, and whoever gave another kind of address is
told what it is for; no credentials of an address are shown.
"""

from __future__ import annotations

import contextlib
import re
import socket

from dasm_ray.config.shown import masked
from dasm_ray.errors import ConfigError

NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
"""One part of a host's name."""

MISTAKES: dict[str, str] = {
    # a spelling, and what to do about it
    r"https?://.*": "is the address of a job server; send the command there by `dasm-ray submit --address {0} ...`, or "
    "give host:port of the head (6379 by default)",
    r"ray://.*": "a Ray client address is not supported; give host:port of the head (6379 by default), or send the "
    "command as a job by `dasm-ray submit`",
    r"\w+://.*": "is no address of a Ray cluster; give host:port of the head (6379 by default)",
    r".*\s.*|": "has a space in it, or nothing but spaces; give host:port of the head (6379 by default)",
    r"[^\[\]]*:[^\[\]]*:.*": "looks like IPv6; write it in brackets, as [fd00::1]:6379",
}


def checked_address(address: str) -> str:
    """An address that is spelt as one of a Ray head (``local`` and ``auto`` are); ConfigError for any other."""
    if address in ("local", "auto"):
        return address
    for spelling, advice in MISTAKES.items():
        if re.fullmatch(spelling, address, re.DOTALL):
            named = without_credentials(address)
            raise ConfigError(f"{named or 'an empty address'}: {advice.format(named)}")
    host, _, port = address.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535 or not _is_host(host):
        raise ConfigError(
            f"{without_credentials(address)}: is not host:port of a Ray head (6379 by default); check runtime.address "
            f"or RAY_ADDRESS"
        )
    return address


def without_credentials(address: str) -> str:
    """An address as it may be shown: ``***`` for what stands before an ``@``, whether it has a scheme or none."""
    return masked(address) if "://" in address else masked(f"http://{address}").removeprefix("http://")


def is_same_head(address: str, head: str) -> bool:
    """Whether an address leads to ``head`` (IP:PORT): hosts may be called by several names."""
    if address == "auto":
        return True
    (host, _, port), (ip, _, its_port) = address.rpartition(":"), head.rpartition(":")
    with contextlib.suppress(OSError):
        found = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), None)}
        is_here = any(str(each).startswith("127.") or each == "::1" for each in found)
        return port == its_port and (ip.strip("[]") in found or is_here)
    return False


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        with contextlib.suppress(OSError):
            return bool(socket.inet_pton(socket.AF_INET6, host[1:-1].partition("%")[0]))
        return False
    return len(host) <= 253 and all(NAME.fullmatch(part) for part in host.removesuffix(".").split("."))
