"""Which settings a result depends on, and short names for them.

What must stay true: a digest covers each key that can change a byte of the result, and no other. A key that came after
results were made is covered once it is set, so that older digests stand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pydantic

from dasm_ray.plain import Plain, Tree

# --- digests -----------------------------------------------------------------------------------------------------


def result_keys(section: pydantic.BaseModel) -> Tree:
    """The fields of a section that can change the result, as plain values."""
    kept: Tree = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("affects_result") is False:
            continue
        value = getattr(section, name)
        if isinstance(extra, dict) and extra.get("only_if_set") and value == field.default:
            continue
        kept[name] = result_keys(value) if isinstance(value, pydantic.BaseModel) else value
    return kept


def config_digest(config: pydantic.BaseModel) -> str:
    """The digest of all that the result of a run depends on."""
    return digest_of(result_keys(config))


def digest_of(*parts: Plain) -> str:
    """A short stable digest (16 hex digits) of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keys_that_differ(one: pydantic.BaseModel, other: pydantic.BaseModel) -> list[str]:
    """Dotted names of the keys, sorted, whose values differ and can change the result."""
    return list(_different(result_keys(one), result_keys(other)))


def _different(one: Tree, other: Tree, above: str = "") -> Iterator[str]:
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _different(left, right, f"{above}{key}.")
        elif left != right:
            yield above + key
