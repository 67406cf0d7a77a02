"""YAML as people mean it: mappings, lists and plain values, each of which can be read in one way only.

YAML has two versions in use that read `no`, `010`, `1:30`, `0o17` and `1_000` as different things; dates and tags make
objects; anchors copy, and copies of copies grow without end. None of these is read here: a sentence says both readings.

What must stay true: whatever `read` accepts, readers of YAML 1.1 and of 1.2 read alike, but for 1e-3: without a point
it stays text here, and keys that take numbers read it as one. `write` writes only what `read` gives back unchanged.
What is refused is refused within a second or so, however it is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree

MOST_BYTES = 1 << 18
MOST_VALUES = 20_000
MOST_DEPTH = 24
MOST_DIGITS = 100
"""Bounds on a text, far above any recipe: bytes, values, lists within lists, and characters of one number."""

TOO_DEEP = f"is nested deeper than {MOST_DEPTH}, which no recipe is"

NUMBER = re.compile(r"[-+]?(?:\d+|\d+\.\d*(?:[eE][-+]\d+)?|\.\d+(?:[eE][-+]\d+)?)")
COLOUR_LOST = re.compile(r"[:-]\s+#[0-9a-fA-F]{6}\s*$")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
SPECIAL: Tree = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}

TWO_READINGS: tuple[tuple[str, str], ...] = (
    # an unquoted value, and what it may be read as
    (r"(?i:y|yes|on)", "true or the text {0!r}; write true, or the text in quotes"),
    (r"(?i:n|no|off)", "false or the text {0!r}; write false, or the text in quotes"),
    (r"[-+]?0[\d_]+", "a number to the base 8 or 10, or text; leave the zeros before it out, or write text in quotes"),
    (r"[-+]?0[oO][0-7_]+", "a number to the base 8 or text; write it to the base 10, or text in quotes"),
    (r"[-+]?0[bB][01_]+", "a number to the base 2 or text; write it to the base 10, or text in quotes"),
    (r"[-+]?0[xX][\da-fA-F]*_[\da-fA-F_]*", "a number or text; leave the _ out, or write text in quotes"),
    (r"[-+]0x[\da-fA-F_]+", "a number or text; write it to the base 10, or text in quotes"),
    (r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?", "a number to the base 60 or text; write a number, or text in quotes"),
    (
        r"[-+]?(?=[\d_.]*_)[\d.][\d_]*(\.[\d_]*)?([eE][-+]\d+)?",
        "a number or text; leave the _ out, or write text in quotes",
    ),
    (r"\d{4}-\d\d?-\d\d?([Tt \t]+\d.*)?", "a date or text; write text in quotes"),
    (r"=|<<", "text or a mark of YAML; write text in quotes"),
)
READINGS = tuple((re.compile(pattern, re.DOTALL), readings) for pattern, readings in TWO_READINGS)


class _Fault(Exception):
    """What is wrong with a text, and in which line (from 1; 0: in all of it)."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line, self.problem = line, problem


# --- reading -----------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> Tree:
    """The mapping in a YAML file; ConfigError, one sentence that names file and line, if there is none."""
    source = escaped(str(path))
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        return read_mapping(data.decode("utf-8"), source)
    except FileNotFoundError:
        raise ConfigError(
            f"{source}: there is no such file; `dasm-ray recipes` lists those that come by name"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: cannot be read (byte {error.start} is no UTF-8)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: cannot be read ({escaped(error)})") from None


def read_mapping(text: str, source: str) -> Tree:
    """The mapping that the text spells, nothing being an empty one; ``source`` names it in the ConfigError."""
    tree = read(text, source)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: must be a mapping of sections, not a {type(tree).__name__}")
    return tree


def read(text: str, source: str) -> Plain:
    """The value that the text spells; ``source`` names it in the ConfigError, one sentence for the first fault."""
    try:
        return _Reader(text).document()
    except _Fault as fault:
        where = f"line {fault.line}: " if fault.line and "\n" in text.rstrip() else ""
        raise ConfigError(f"{source}: {where}{fault.problem}") from None


def read_value(text: str, source: str) -> Plain:
    """The same of a text in which nothing can be meant as a comment, as what stands behind ``--set a.b=``."""
    value = read(text, source)
    tokens = yaml.scan(text, Loader=_Loader)
    end = max((token.end_mark.index for token in tokens if not isinstance(token, yaml.StreamEndToken)), default=0)
    if text[end:].strip().startswith("#"):
        raise ConfigError(f"{source}: what begins with # would be left out as a comment; put the value in quotes")
    return value


class _Reader:
    """Values out of the events of a parser, which come one by one: what is too deep or too much is never parsed."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_BYTES or len(text.encode("utf-8", "replace")) > MOST_BYTES:
            raise _Fault(0, f"is larger than {MOST_BYTES} bytes, which no recipe is")
        self._lines = text.splitlines()
        self._events: Iterator[yaml.Event] = _events(text)
        self._values = 0

    def document(self) -> Plain:
        """The only document of the text, None if there is none."""
        next(self._events)  # the beginning of the stream
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the end of the document
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _Fault(_line(after), "a second document begins; leave one")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Plain:
        self._values += 1
        _check_event(event)
        if self._values > MOST_VALUES:
            raise _Fault(_line(event), f"holds more than {MOST_VALUES} values, which no recipe does")
        if depth > MOST_DEPTH:
            raise _Fault(_line(event), TOO_DEEP)
        if isinstance(event, yaml.SequenceStartEvent):
            return list(self._items(depth))
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        assert isinstance(event, yaml.ScalarEvent)
        if not event.value and not event.style:
            self._check_empty(event)
        return _scalar(event)

    def _check_empty(self, event: yaml.Event) -> None:
        """A fault for a colour: to YAML it is a comment, and the value is empty."""
        line = self._lines[_line(event) - 1] if 0 < _line(event) <= len(self._lines) else ""
        if COLOUR_LOST.search(line):
            raise _Fault(_line(event), "a colour begins with #, which makes it a comment; put it in quotes")

    def _items(self, depth: int) -> Iterator[Plain]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._value(event, depth + 1)

    def _mapping(self, depth: int) -> Tree:
        found: Tree = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth)
            if key in lines:
                first = f", first in line {lines[key]}" if lines[key] != _line(event) else ""
                raise _Fault(_line(event), f"{escaped(key, 60)!r} is given twice{first}; leave one")
            lines[key] = _line(event)
            found[key] = self._value(next(self._events), depth + 1)
        return found

    def _key(self, event: yaml.Event, depth: int) -> str:
        key = self._value(event, depth + 1) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(key, str):
            spelt = escaped(event.value, 60) if isinstance(event, yaml.ScalarEvent) else "a list or a mapping"
            raise _Fault(_line(event), f"{spelt}: a key must be a name, in quotes if it looks like something else")
        return key


class _Loader(yaml.SafeLoader):
    """A loader that looks no further into brackets within brackets than any recipe goes: there it takes seconds."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level > MOST_DEPTH:
            raise _Fault(self.line + 1, TOO_DEEP)
        super().fetch_flow_collection_start(token)


def _events(text: str) -> Iterator[yaml.Event]:
    """The parser's events, its complaints as faults."""
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Fault(mark.line + 1 if mark else 1, f"is not YAML ({escaped(error.problem or error.context)})") from None
    except yaml.YAMLError as error:
        raise _Fault(1, f"is not YAML ({escaped(' '.join(str(error).split()))})") from None
    except (ValueError, OverflowError):  # a character by a number that there is not: "\UFFFFFFFF"
        raise _Fault(1, "is not YAML (it names a character that there is not)") from None


def _check_event(event: yaml.Event) -> None:
    """A fault for what stands for something else: an alias, an anchor, a tag."""
    anchor, tag = (getattr(event, name, None) or "" for name in ("anchor", "tag"))
    if isinstance(event, yaml.AliasEvent):
        raise _Fault(_line(event), f"*{escaped(anchor, 60)} stands for another value; write that value out")
    if anchor:
        raise _Fault(_line(event), f"&{escaped(anchor, 60)} names a value; leave the name out, copies are not read")
    if tag:
        tag = escaped(tag.replace("tag:yaml.org,2002:", "!!"), 100)
        raise _Fault(_line(event), f"the tag {tag} is not read; leave it out, and put text in quotes")


def _scalar(event: yaml.ScalarEvent) -> Plain:
    """What a value without parts is: text if it is quoted, else by its spelling."""
    text = event.value
    if event.style not in (None, ""):
        return text
    if text in SPECIAL:
        return SPECIAL[text]
    for pattern, readings in READINGS:
        if pattern.fullmatch(text):
            raise _Fault(_line(event), f"{escaped(text, 40)} can be read as {readings.format(escaped(text, 40))}")
    is_hexadecimal = HEXADECIMAL.fullmatch(text) is not None
    if not is_hexadecimal and not NUMBER.fullmatch(text):
        return text
    if len(text) > MOST_DIGITS:
        raise _Fault(_line(event), f"a number of {len(text)} characters is none of any key")
    return int(text, 16) if is_hexadecimal else float(text) if "." in text else int(text)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


# --- writing -----------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Puts into quotes each text that would be read as something else, or refused, without them."""

    def ignore_aliases(self, data: Plain) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = '"' if not text.isprintable() else None if _is_plain(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _is_plain(text: str) -> bool:
    """Whether the text needs no quotes: the emitter itself knows of characters that do."""
    return text not in SPECIAL and not any(
        pattern.fullmatch(text) for pattern in (NUMBER, HEXADECIMAL, *(pattern for pattern, _ in READINGS))
    )


def write(value: Plain) -> str:
    """Plain values as YAML that ``read`` gives back, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
