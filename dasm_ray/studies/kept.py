"""Figures at rest: a JSON file under a checksum, so that nobody is shown a figure that was not computed.

What must stay true: `kept` gives back what `keep` was given, or None, and then it is computed anew; a number that is
none is never kept; a table is written under the settings that it shows, and never over one of other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dasm_ray.errors import RunDirError
from dasm_ray.store.place import Place

CHECKSUM = "checksum"
SETTINGS = "settings"


def keep(place: Place, value: Mapping[str, Any]) -> None:
    """Writes plain values by name, with a checksum of them; ValueError for NaN or infinity."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    place.write_json({**plain, CHECKSUM: _checksum(plain)})


def kept(place: Place) -> dict[str, Any] | None:
    """What was kept; None where there is no such file, or one that is damaged, was changed or has no checksum."""
    if not place.exists():
        return None
    try:
        value = json.loads(place.read_text())
        is_right = isinstance(value, dict) and value.pop(CHECKSUM, None) == _checksum(value)
    except (ValueError, RecursionError, RunDirError):
        return None
    return value if is_right else None


def keep_table(folder: Place, settings: str, tree: Mapping[str, Any], text: str) -> str:
    """Writes a table as JSON and Markdown; returns the stem of its files' names.

    The first table of a folder is ``table``; those of other settings have their digest in their names.
    """
    own = kept(folder / "table.json")
    is_its_place = own is None or own.get(SETTINGS) == settings
    stem = "table" if is_its_place else f"table_{settings}"
    (folder / f"{stem}.md").write_text(text)
    keep(folder / f"{stem}.json", {**tree, SETTINGS: settings})
    return stem


def _checksum(plain: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of values as JSON has them, whatever the order of their names."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
