"""The keys of a configuration as a reader wants them: meaning, default, values, who reads them; and as a JSON schema.

What must stay true: nothing is said here that the models, the table of matchers and the rules do not say, so what is
printed, the page `docs/config.md` and the schema never differ from what is accepted.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from dasm_ray.config import plain_yaml
from dasm_ray.config.keys import ArchRecipe, RunConfig, Section
from dasm_ray.config.matchers import MATCHERS, keys_without_meaning
from dasm_ray.config.parsing import is_how
from dasm_ray.config.recipes import Kind
from dasm_ray.config.rules import CONDITIONS
from dasm_ray.config.shown import escaped
from dasm_ray.config.space import SweepFile
from dasm_ray.config.study import StudyFile
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree

WIDTH = 80
MODELS: dict[Kind, type[Section]] = {"recipe": RunConfig, "sweep": SweepFile, "study": StudyFile}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Key:
    """One key.

    ``readers``: who reads it, empty where everybody does. ``affects_result``: whether a digest covers it.
    """

    name: str
    meaning: str
    values: str
    default: str
    readers: str
    affects_result: bool


# --- the list ----------------------------------------------------------------------------------------------------


def sections() -> dict[str, tuple[str, list[Key]]]:
    """Each section by its name, what it is and its keys; the keys of none come first, under an empty name."""
    whole = schema("recipe")
    definitions = whole["$defs"]
    found: dict[str, tuple[str, list[Key]]] = {"": (_first(RunConfig), [])}
    for name, field in RunConfig.model_fields.items():
        of = whole["properties"][name]
        if isinstance(field.default, Section):
            section = type(field.default)
            told = definitions[section.__name__]["properties"]
            keys = [_key(f"{name}.{key}", inner, told[key]) for key, inner in section.model_fields.items()]
            found[name] = (_first(section), keys)
        elif "additionalProperties" in of:  # sections by names that a user gives
            inner = definitions["ArchRecipe"]["properties"]
            keys = [_key(f"{name}.ARCH.{key}", f, inner[key]) for key, f in ArchRecipe.model_fields.items()]
            found[name] = (str(field.description), keys)
        else:
            found[""][1].append(_key(name, field, of))
    return found


def _key(name: str, field: FieldInfo, told: Tree) -> Key:
    affects = not is_how(field) and not name.startswith("networks.")
    default = plain_yaml.write([_plain(field.default)]).partition("- ")[2].strip()
    return Key(name, str(field.description), _values(told), _flow(field.default, default), _readers(name), affects)


def _plain(value: Plain) -> Plain:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _flow(value: Plain, written: str) -> str:
    """A default as a recipe spells it, a list on one line."""
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return f"[{', '.join(_flow(each, str(each)) for each in value)}]"
    return written


def _first(section: type[Section]) -> str:
    return str(section.__doc__).partition("\n")[0]


def _readers(key: str) -> str:
    """The matchers that read a key, and what it needs beside; empty where all do and it needs nothing."""
    by = {name: [states for states in row.states if _is_read(name, states, key)] for name, row in MATCHERS.items()}
    said = []
    if any(len(by[name]) < len(row.states) for name, row in MATCHERS.items()):
        said.append(", ".join(_with_states(name, states) for name, states in by.items() if states))
    if key in CONDITIONS:
        said.append(f"with {CONDITIONS[key].when}")
    return " ".join(said)


def _is_read(matcher: str, states: str | None, key: str) -> bool:
    return key not in keys_without_meaning(MATCHERS[matcher], states, [key])


def _with_states(matcher: str, states: list[str | None]) -> str:
    if len(states) == len(MATCHERS[matcher].states):
        return matcher
    return f"{matcher} (matcher.network {' or '.join('unset' if each is None else each for each in states)})"


# --- values in words ---------------------------------------------------------------------------------------------


def _values(told: Tree) -> str:
    """Which values a key takes, from its schema."""
    if "anyOf" in told:
        parts = [_values(part) for part in told["anyOf"] if part.get("type") != "null"]
        return " or ".join(parts)
    if "enum" in told:
        return ", ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in told["enum"])
    if told["type"] == "boolean":
        return "true, false"
    if told["type"] in ("integer", "number"):
        return _number(told)
    if told["type"] == "array":
        return _list(told)
    return _text(told.get("pattern", ""))


def _text(pattern: str) -> str:
    if pattern.startswith("^(none|"):
        names = pattern.removeprefix("^(none|(").partition(")")[0].split("|")
        return f"none, or any of {', '.join(names)} joined by _"
    return {"": "text", r"^\w[\w.-]*$": "letters, digits and ._-"}.get(pattern, "white, black, #rrggbb")


def _list(told: Tree) -> str:
    if "prefixItems" in told:
        return f"[{', '.join(_values(item) for item in told['prefixItems'])}]"
    return f"a list, each of it {_values(told['items'])}"


MANY = 2**53
"""Bounds beyond it are those of a file format, and no reader's business."""


def _number(told: Tree) -> str:
    kind = "whole number" if told["type"] == "integer" else "number"
    low, above = told.get("minimum"), told.get("exclusiveMinimum")
    high, below = (_unless_many(told.get(name)) for name in ("maximum", "exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{kind}, {low:,} to {high:,}"
    said = {"from": low, "above": above, "up to": high, "below": below}
    return f"{kind} {' and '.join(f'{words} {bound:,}' for words, bound in said.items() if bound is not None)}"


def _unless_many(bound: float | None) -> float | None:
    return None if bound is None or bound > MANY else bound


# --- printed -----------------------------------------------------------------------------------------------------


def lines(asked: str | None = None) -> Iterator[str]:
    """All keys, those of a section, or one key, as lines of at most WIDTH characters.

    Raises ConfigError for what is neither a section nor a key.
    """
    everything = sections()
    if asked is not None:
        everything = _asked(asked, everything)
    for name, (meaning, keys) in everything.items():
        if asked is None or asked == name:
            yield from ["", *_wrapped(f"{name}: {meaning}" if name else meaning, "")]
        for key in keys:
            yield ""
            yield f"{key.name}   default {key.default}" if len(key.default) < WIDTH - 40 else key.name
            if len(key.default) >= WIDTH - 40:
                yield from _wrapped(f"default: {key.default}", "  ")
            yield from _wrapped(key.meaning, "  ")
            yield from _wrapped(f"values: {key.values}", "  ")
            if key.readers:
                yield from _wrapped(f"read by: {key.readers}", "  ")
            if not key.affects_result:
                yield "  does not change the result"


def _asked(asked: str, everything: dict[str, tuple[str, list[Key]]]) -> dict[str, tuple[str, list[Key]]]:
    if asked in everything:
        return {asked: everything[asked]}
    keys = {key.name: (name, key) for name, (_, of) in everything.items() for key in of}
    if asked in keys:
        name, key = keys[asked]
        return {name: ("", [key])}
    of_that_name = [key for key in keys if key.rpartition(".")[2] == asked]
    near = of_that_name or difflib.get_close_matches(asked[:100], [*keys, *filter(None, everything)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the sections are {', '.join(filter(None, everything))}"
    raise ConfigError(f"{escaped(asked, 60)}: there is no such key; {hint}")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def markdown() -> str:
    """The page `docs/config.md`."""
    parts = [PREFACE]
    for name, (meaning, keys) in sections().items():
        parts.append(f"## {f'`{name}`' if name else 'At the top'}\n\n{meaning}\n")
        parts.append("| key | default | meaning | values | read by |\n|---|---|---|---|---|")
        parts += [_row(key) for key in keys]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


PREFACE = """# The keys of a recipe

<!-- Written by `dasm-ray config --markdown`; the words stand beside the fields in dasm_ray/config/keys.py. -->

A recipe is a YAML file of sections; what it leaves out has its default. `--set section.key=value` changes one key for
one command. Unknown keys are refused with the nearest name, and so is a key that is set and that nobody reads beside
the others. `dasm-ray config KEY` prints what stands here. Keys marked ° do not change the result, so digests leave
them out.

`dasm-ray config --schema > dasm-ray.schema.json` writes a JSON schema; editors that know YAML complete and check
recipes by it, given a first line `# yaml-language-server: $schema=dasm-ray.schema.json`. `--schema sweep` and
`--schema study` are those of the other two kinds of files.
"""


def _row(key: Key) -> str:
    mark = "" if key.affects_result else " °"
    cells = (f"`{key.name}`{mark}", f"`{key.default}`", key.meaning, key.values, key.readers or "all")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# --- the schema --------------------------------------------------------------------------------------------------

OURS = ("affects_result", "only_if_set", "title")
BOUNDS = {"gt": "exclusiveMinimum", "lt": "exclusiveMaximum", "ge": "minimum", "le": "maximum"}
"""Names that pydantic gives to the bounds of what a function looks at first, and those of a schema."""


def schema(kind: Kind = "recipe") -> Tree:
    """The JSON schema of a file of a kind; unknown keys are refused in it too."""
    return {"$schema": DIALECT, "title": f"dasm-ray {kind}", **_cleaned(MODELS[kind].model_json_schema())}


def _cleaned(told: Plain) -> Plain:
    """Without our marks, and with the names of bounds that a schema has; names of keys are left alone."""
    if isinstance(told, list):
        return [_cleaned(each) for each in told]
    if not isinstance(told, dict):
        return told
    kept = {}
    for name, value in told.items():
        if name in ("properties", "$defs"):
            kept[name] = {key: _cleaned(of) for key, of in value.items()}
        elif name == "default":
            kept[name] = value
        elif name not in OURS:
            kept[BOUNDS.get(name, name)] = _cleaned(value)
    return kept
