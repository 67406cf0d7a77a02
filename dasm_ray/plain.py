"""Plain values: what YAML and JSON hold, before anyone has looked at what they mean.

What must stay true: a value of these types can be written as JSON and read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Plain = Any
"""A text, a number, true, false, nothing, or a list or a mapping of plain values."""

Tree = dict[str, Plain]
"""Plain values by name, of one's own."""

Values = Mapping[str, Plain]
"""Plain values by name, to be read."""
