"""The tree of sections and keys, and how faults in it are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from pydantic.fields import FieldInfo

import dasm_ray
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError

PACKAGE = Path(dasm_ray.__file__).parent
PROJECT = PACKAGE.parent


def problems_of(tree: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    return caught.value.problems


def sections() -> dict[str, type[pydantic.BaseModel]]:
    """Each section's class by its name in a recipe."""
    found = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {n: a for n, a in found.items() if isinstance(a, type) and issubclass(a, pydantic.BaseModel)}


def leaves() -> Iterator[tuple[str, FieldInfo]]:
    """Every field of every section as ``section.key``, and those of the top as ``key``."""
    inner = sections()
    yield from ((name, field) for name, field in RunConfig.model_fields.items() if name not in inner)
    for section, model in inner.items():
        yield from ((f"{section}.{name}", field) for name, field in model.model_fields.items())


LEAVES = dict(leaves())
