"""Which settings a result depends on, and short names for them.

What must stay true: a digest covers each key that can change a byte of the result, and no other. A key that came after
results were made is covered once it is set, so that older digests stand.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pydantic

# --- digests -----------------------------------------------------------------------------------------------------


def what(section: pydantic.BaseModel) -> dict[str, Any]:
    """The fields of a section that can change the result, as plain values."""
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("affects_result") is False:
            continue
        value = getattr(section, name)
        if value is None and isinstance(extra, dict) and extra.get("only_if_set"):
            continue
        kept[name] = what(value) if isinstance(value, pydantic.BaseModel) else value
    return kept


def config_digest(config: pydantic.BaseModel) -> str:
    """The digest of all that the result of a run depends on."""
    return digest_of(what(config))


def digest_of(*parts: Any) -> str:
    """A short stable digest (16 hex digits) of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
