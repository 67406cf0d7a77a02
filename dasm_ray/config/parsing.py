"""What a user writes, read into a configuration: YAML, ``--set`` overrides, and a sentence for everything wrong.

What must stay true: all problems are told at once, each names its key, and a misspelt key gets the nearest name.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import pydantic
import yaml

from dasm_ray.config.keys import RunConfig, Section
from dasm_ray.config.rules import contradictions
from dasm_ray.errors import ConfigError

# --- reading -----------------------------------------------------------------------------------------------------


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML recipe (None: all defaults), applies ``a.b=c`` overrides, and returns the checked configuration.

    Raises ConfigError with one sentence for each problem found.
    """
    tree = {} if path is None else read_yaml(path)
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if there is none."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; configs/ holds the recipes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not a {type(tree).__name__}")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one ``a.b=value`` in the tree; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML; quote it") from None
    set_key(tree, key.strip(), found, f"--set {override}")


def set_key(tree: dict[str, Any], key: str, value: Any, told: str) -> None:
    """Sets the key ``a.b`` in the tree; ``told`` names who asked, for the error where ``a`` is no section."""
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{told}: {parent!r} is a value, not a section")
        node = child
    node[last] = value


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Checks a tree of plain values; raises ConfigError with every problem at once."""
    try:
        config = RunConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(*(sentence_of(detail, RunConfig) for detail in error.errors())) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError(*problems)
    return config


def sentence_of(detail: Any, root: type[Section]) -> str:
    """One pydantic finding about a ``root`` as a sentence that names the key and what to do."""
    where = ".".join(str(part) for part in detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_beside(detail["loc"], root)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(known)}"
        return f"{where}: there is no such key; {hint}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(detail["input"]), _quoted(context["expected"]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: {detail['input']!r} must be {context['expected']}{hint}"
    if kind == "missing":
        return f"{where}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, not {detail['input']!r}"


def _quoted(expected: str) -> list[str]:
    return [part for part in expected.split("'") if part.strip(" ,or")]


def _keys_beside(loc: tuple[int | str, ...], root: type[Section]) -> list[str]:
    annotation: Any = root
    for part in loc[:-1]:
        annotation = _below(annotation, str(part))
    return [field.alias or name for name, field in _model_of(annotation).model_fields.items()]


@dataclass(frozen=True)
class Key:
    """What is known of a key of the configuration without a value."""

    affects_result: bool
    is_section: bool


def field_of(key: str) -> Key | None:
    """The key ``a.b`` of a RunConfig; None where there is none, which parsing says in words."""
    annotation: Any = RunConfig
    affects_result = True
    for part in key.split("."):
        if typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
            continue
        field = _model_of(annotation).model_fields.get(part) if _is_section(annotation) else None
        if field is None:
            return None
        extra, annotation = field.json_schema_extra, field.annotation
        affects_result &= not (isinstance(extra, dict) and extra.get("affects_result") is False)
    return Key(affects_result, _is_section(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _below(annotation: Any, part: str) -> Any:
    """What stands under a key of a section, or of a mapping of sections."""
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1]
    return _model_of(annotation).model_fields[part].annotation


def _model_of(annotation: Any) -> type[pydantic.BaseModel]:
    options = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    return next(option for option in options if isinstance(option, type) and issubclass(option, pydantic.BaseModel))


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
