"""What a user writes, read into a configuration: YAML, ``--set`` overrides, and a sentence for everything wrong.

What must stay true: all problems are told at once, each in one line that names its key and shows no secret, a misspelt
key gets the nearest name, and nothing that was set is replaced by something else that was set.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import types
import typing
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import pydantic
from pydantic.fields import FieldInfo

from dasm_ray.config import plain_yaml
from dasm_ray.config.keys import RunConfig, Section
from dasm_ray.config.recipes import located
from dasm_ray.config.rules import contradictions
from dasm_ray.config.shown import escaped, not_utf8, several
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree, Values

MOST_PARTS = 4
"""Of a dotted key: more than any key has."""

MOST_SENTENCES = 50

Listed = TypeVar("Listed", bound=Hashable)

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 3, 120, 120, 120

# --- reading -----------------------------------------------------------------------------------------------------


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML recipe (None: all defaults), applies ``a.b=c`` overrides, and returns the checked configuration.

    ``path``: a file, or as text the name of a recipe that comes with the package, such as ``digits``.

    Raises ConfigError with one sentence for each problem found.
    """
    tree = {} if path is None else plain_yaml.read_file(located(path, "recipe"))
    apply_overrides(tree, overrides)
    return parse_config(tree)


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> None:
    """Sets every ``a.b=value`` in the tree; ConfigError where two of them speak of one key."""
    given: list[str] = []
    for override in overrides:
        key = apply_override(tree, override)
        twice = next((other for other in given if meet(key, other)), None)
        if twice is not None:
            how = "is set twice" if key == twice else f"speaks of {escaped(twice, 60)} too, which another --set sets"
            raise ConfigError(f"--set {escaped(override, 120)}: {escaped(key, 60)} {how}; leave one")
        given.append(key)


def repeated(values: Sequence[Listed]) -> list[Listed]:
    """Which of a list's values it holds more than once, in their order."""
    return [value for value, count in Counter(values).items() if count > 1]


def meet(one: str, other: str) -> bool:
    """Whether one of two keys is the other, or stands below it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def apply_override(tree: Tree, override: str) -> str:
    """Sets one ``a.b=value`` in the tree, and returns the key; the value is read as YAML."""
    key, equals, value = (part.strip() for part in override.partition("="))
    source = f"--set {escaped(override, 120)}"
    shown = not_utf8(override)
    if shown is not None:
        raise ConfigError(f"--set {escaped(shown, 120)}: is not UTF-8; write it so")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{source}: write it as section.key=value")
    set_key(tree, key, plain_yaml.read_value(value, source), source)
    return key


def set_key(tree: Tree, key: str, value: Plain, source: str) -> None:
    """Sets the key ``a.b`` in the tree; ``source`` names who asked, for the ConfigError.

    ``a`` must be a section. A section that holds keys is not replaced by another one, in which they would be lost.
    """
    *parents, last = key.split(".")
    if len(parents) >= MOST_PARTS:
        raise ConfigError(f"{source}: there is no key of {len(parents) + 1} parts")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {escaped(parent, 60)!r} is a value, not a section")
        node = child
    held = node.get(last)
    if isinstance(held, dict) and held and isinstance(value, dict):
        one = escaped(f"{key}.{next(iter(value or held))}", 60)
        raise ConfigError(
            f"{source}: would replace all of {escaped(key, 60)}, which is set already; set its keys, as in {one}=..."
        )
    node[last] = value


def said_of(tree: Values, key: str) -> Plain:
    """What a tree says of the key ``a.b``; None where it says nothing."""
    found: Plain = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def as_one_of_many(recipe: Tree) -> Tree:
    """A recipe's tree for several runs that share experts: what it leaves to each run is unset in all of them."""
    runtime = recipe.get("runtime")
    if not isinstance(runtime, dict) or runtime.get("compile") != "auto":
        return recipe
    return {**recipe, "runtime": {key: value for key, value in runtime.items() if key != "compile"}}


def parse_config(tree: Values) -> RunConfig:
    """Checks a tree of plain values; raises ConfigError with every problem at once."""
    try:
        config = RunConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(*sentences_of(error, RunConfig)) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError(*problems)
    return config


def parse_result_keys(tree: Values) -> RunConfig:
    """The same of a configuration that came with somebody's files: where and how it was done there is not looked at.

    Keys that are marked ``NOT_IN_RESULT`` have their defaults, whatever the tree says.
    """
    return parse_config(_without_how(tree, RunConfig))


def _without_how(tree: Values, section: type[pydantic.BaseModel]) -> Tree:
    kept: Tree = {}
    for name, value in tree.items():
        field = section.model_fields.get(name)
        if field is not None and is_how(field):
            continue
        inner = None if field is None else field.annotation
        is_part = _is_section(inner) and isinstance(value, Mapping)
        kept[name] = _without_how(value, _model_of(inner)) if is_part else value
    return kept


def is_how(field: FieldInfo) -> bool:
    """Whether a field cannot change a result."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("affects_result") is False


# --- what is wrong, in words -------------------------------------------------------------------------------------

_KEYS = "must have keys below it, not be {given}"
IN_WORDS = {
    "missing": "is missing",
    "tuple_type": "must be a list in brackets, not {given}",
    "too_long": "must have at most {most}, not {actual_length}",
    "too_short": "must have at least {least}, not {actual_length}",
    "dict_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
}
"""Findings of pydantic that it tells in the words of Python."""


def sentences_of(error: pydantic.ValidationError, root: type[Section]) -> list[str]:
    """The findings about a ``root`` as sentences, of very many the first."""
    found = error.errors(include_url=False)
    wrong_below = {detail["loc"][:-1] for detail in found}  # a list is called too short where all in it are wrong
    details = [detail for detail in found if detail["type"] != "too_short" or detail["loc"] not in wrong_below]
    more = [f"and {len(details) - MOST_SENTENCES} more of the kind"] if len(details) > MOST_SENTENCES else []
    return [*dict.fromkeys(sentence_of(detail, root) for detail in details[:MOST_SENTENCES]), *more]


def sentence_of(detail: Plain, root: type[Section]) -> str:
    """One pydantic finding about a ``root`` as a sentence that names the key and what to do."""
    where = ".".join(escaped(str(part), 60) for part in detail["loc"])
    kind, context, given = detail["type"], detail.get("ctx", {}), _spelt(detail["input"])
    if kind == "extra_forbidden":
        known = _keys_beside(detail["loc"], root)
        near = difflib.get_close_matches(str(detail["loc"][-1])[:100], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(known)}"
        return f"{where}: there is no such key; {hint}"
    if kind == "literal_error":
        near = difflib.get_close_matches(given.strip("'")[:100], _quoted(context["expected"]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: {given} must be {context['expected']}{hint}"
    if kind == "missing" and isinstance(detail["loc"][-1], int):  # of a row of numbers, and its own place is no key
        return f"{where.rpartition('.')[0]}: must have more values than {given}; `dasm-ray config` says which"
    if kind in IN_WORDS:
        bounds = {"most": context.get("max_length"), "least": context.get("min_length")}
        in_words = {name: several(count, "values") for name, count in bounds.items() if count is not None}
        return f"{where}: {IN_WORDS[kind].format(given=given, **in_words, **context)}"
    message = escaped(detail["msg"].removeprefix("Value error, "), 400)
    return f"{where}: {message[0].lower()}{message[1:]}, not {given}"


def _spelt(value: Plain) -> str:
    """A value as Python spells it, without secrets, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    return escaped(SHORT.repr(value), 200)


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
        annotation = field.annotation
        affects_result &= not is_how(field)
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
    return plain_yaml.write(config.model_dump(mode="json"))
