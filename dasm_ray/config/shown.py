"""What a terminal, a log or a kept file may be given of a text: no secret, and nothing that moves a cursor; and how
many of a thing there are, in words.

What must stay true: a text that `secret_in` finds nothing in holds nothing that `masked` would hide, and the other way
round; `escaped` changes no other text that can be printed as it is.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

MASK = "***"

BY_NAME_ALONE = ("abfs", "abfss", "gcs", "gs", "hdfs", "scp", "sftp", "ssh", "viewfs", "wasb", "wasbs")
"""Schemes whose part before the `@` may be a mere name: a user's, an Azure container's, `anonymous`."""

AUTHORITY = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^/?#\s]*|[^/?#\s@]*:(?!\d+(?:[/?#]|$))[^\s?#@]*)@")
"""Scheme, and what stands before the `@`. A secret may hold an unquoted `/`; after HOST:PORT a `/` begins the path."""

PARAMETER = re.compile(r"(?<=[?&#;])(?P<name>[^?&#;=\s]+)=(?P<value>[^&#;\s]*)")

SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|pwd|credential|signature|access[-_]?key|account[-_]?key|api[-_]?key"
    r"|private[-_]?key|shared[-_]?key|access[-_]?id|^(sig|sas|key|auth|authorization)$",
    re.IGNORECASE,
)
"""Names of URI parameters whose values are nobody else's business."""

INSTEAD = (
    "leave them out and give them by the environment (for s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN) or by the machine's own role"
)

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's control characters, halves of characters, and breaks of lines and paragraphs."""

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what is read, so that a name looks like another."""


# --- secrets -----------------------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """The text with ``***`` for the credentials in its URIs: before an ``@``, and in parameters named like secrets."""
    if "://" not in text:
        return text
    hidden = AUTHORITY.sub(lambda found: found[0] if _is_name(found) else f"{found['scheme']}://{MASK}@", text)
    return PARAMETER.sub(lambda found: f"{found['name']}={MASK}" if _is_secret(found) else found[0], hidden)


def secret_in(text: str) -> str | None:
    """What a URI gives away, in words; None where it gives nothing away."""
    if masked(text) == text:
        return None
    named = [found["name"] for found in PARAMETER.finditer(text) if _is_secret(found)]
    return f"the parameter {named[0]!r}" if named else "credentials before the '@'"


def _is_name(found: re.Match[str]) -> bool:
    user = unquote(found["user"])
    return user in ("", MASK) or (":" not in user and found["scheme"].lower() in BY_NAME_ALONE)


def _is_secret(found: re.Match[str]) -> bool:
    """Whether a parameter is named like a secret, or holds a URI that has one."""
    if found["value"] in ("", MASK):
        return False
    value = unquote(found["value"])
    return bool(SECRET_NAME.search(unquote(found["name"]))) or (value != found["value"] and masked(value) != value)


# --- characters --------------------------------------------------------------------------------------------------


def odd_character(text: str) -> str | None:
    """The first character that must not reach a terminal as it is, written out (``\\x1b``); None if there is none."""
    return next((_written(character) for character in text if _is_odd(character)), None)


def not_utf8(text: str) -> str | None:
    """A text that came as bytes which are not UTF-8, with these written out (``caf\\xe9``); None for any other text.

    Python keeps such bytes of an argument or a file's name as halves of characters, which nothing else takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_as_byte(character) for character in text)
    return None


def _as_byte(character: str) -> str:
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else _written(character) if _is_odd(character) else character


def short(value: float) -> str:
    """A positive number to three digits, or to all in front of its point: never by a power of ten."""
    return f"{value:.3g}" if 1e-4 < value < 999.5 else f"{value:,.0f}" if value >= 1 else f"{value:.4f}"


def escaped(text: object, most: int = 200) -> str:
    """A text, or what anything prints as, without its secrets, on one line, odd characters written out.

    Cut to about ``most`` characters.
    """
    whole = masked(str(text))
    shown = "".join(_written(character) if _is_odd(character) else character for character in whole[:most])
    return shown if len(whole) <= most else f"{shown} ... ({len(whole)} characters)"


def _is_odd(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) in UNSEEN


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()


def several(count: int, things: str, one: str | None = None) -> str:
    """So many ``things``: 1 seed, 3 seeds. ``one``: what a single one is called, where that is not an s less."""
    if count != 1:
        return f"{count} {things}"
    return f"{count} {things.removesuffix('s') if one is None else one}"
