"""Plain YAML: what has one reading is read, what has two or none is refused in one sentence, at once."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dasm_ray.config import plain_yaml
from dasm_ray.config.plain_yaml import MOST_BYTES, MOST_DEPTH, read, read_file, read_mapping, write
from dasm_ray.errors import ConfigError


def refused(text: str) -> str:
    """The one sentence that refuses a text, within seconds."""
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(text, "here")
    assert time.monotonic() - begun < 5
    (sentence,) = caught.value.problems
    assert sentence.startswith("here: ")
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1.5e+3", 1500.0),
        ("1.0e-05", 1e-5),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("text", "text"),
        ("'yes'", "yes"),
        ('"010"', "010"),
        ("'2001-01-01'", "2001-01-01"),
        ("1e-3", "1e-3"),
        ("[1, a, [b]]", [1, "a", ["b"]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("a: 1\nb:\n- x\n- z", {"a": 1, "b": ["x", "z"]}),
        ("10.0.0.5:6379", "10.0.0.5:6379"),
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("2024-05-01-run", "2024-05-01-run"),
        ("cifar10_ipc10", "cifar10_ipc10"),
        ("1.2.3", "1.2.3"),
        ("'a\n\n  b'", "a\nb"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("--- 3", 3),
        ("3\n...", 3),
        ("# nothing", None),
        ("\ufeffa: 1", {"a": 1}),
        ("{a: , b: }", {"a": None, "b": None}),
    ],
)
def test_what_has_one_reading_is_read(text: str, value: Any) -> None:
    assert read(text, "here") == value
    assert type(read(text, "here")) is type(value)


def test_comments_are_left_out_where_they_can_be_meant() -> None:
    assert read("a:  # unset\nb: #\nc: 'x' # one\nd: '#ff0000'\n", "t") == {
        "a": None,
        "b": None,
        "c": "x",
        "d": "#ff0000",
    }


def test_numbers_that_are_none_are_read_as_what_they_are() -> None:
    """Each key refuses them in its own words."""
    assert math.isnan(read(".nan", "here"))
    assert read("-.inf", "here") == -math.inf


TWO_READINGS = {
    "yes": "true or the text",
    "On": "true or the text",
    "n": "false or the text",
    "OFF": "false or the text",
    "010": "base 8 or 10",
    "-017": "base 8 or 10",
    "08": "base 8 or 10",
    "0o17": "base 8",
    "0b11": "base 2",
    "0x1_F": "number or text",
    "1:30:00": "base 60",
    "190:20:30.15": "base 60",
    "12:34": "base 60",
    "1_000": "number or text",
    "1_0.5": "number or text",
    "2001-99-99": "a date or text",
    "2001-01-01": "a date or text",
    "2001-1-1 10:00:00": "a date or text",
    "2001-12-14t21:59:43.10-05:00": "a date or text",
    "=": "a mark of YAML",
    "<<": "a mark of YAML",
}


@pytest.mark.parametrize("text", TWO_READINGS)
@pytest.mark.parametrize("form", ["{}", "a: {}", "[3, {}]", "{}: 3"])
def test_what_has_two_readings_is_refused_with_both(text: str, form: str) -> None:
    sentence = refused(form.format(text))
    assert "can be read as" in sentence
    assert TWO_READINGS[text] in sentence
    assert read(f"'{text}'", "here") == text


REFUSED = {
    "a tag on a number": ("!!int abc", "the tag !!int is not read"),
    "a tag on a mapping": ("!!map {a: 1}", "the tag !!map"),
    "a tag of Python": ("!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system"),
    "a tag of one's own": ("!mine 3", "the tag !mine"),
    "a tag for bytes": ("!!binary aGVsbG8=", "the tag !!binary"),
    "no tag in particular": ("! 12", "the tag !"),
    "an alias": ("[&a 1, *a]", "&a names a value"),
    "an alias to nothing": ("[1, *a]", "*a stands for another value"),
    "nine anchors of nine": (
        "a: &a [x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "&a names a value",
    ),
    "a circle": ("&a [*a]", "&a names a value"),
    "a merged mapping": ("{<<: {a: 1}, b: 2}", "<< can be read as"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice, first in line 1; leave one"),
    "a key twice inside": ("s:\n  a: {b: [{c: 1, c: 2}]}", "'c' is given twice"),
    "a section twice": ("a:\n  b: 1\na:\n  c: 2", "'a' is given twice"),
    "a key twice in other quotes": ("{a: 1, 'a': 2}", "'a' is given twice"),
    "a number as a key": ("1: 2", "1: a key must be a name"),
    "nothing as a key": ("~: 2", "~: a key must be a name"),
    "a list as a key": ("? [a]\n: 2", "a list or a mapping: a key must be a name"),
    "two documents": ("a: 1\n---\nb: 2", "a second document begins"),
    "5000 digits": ("9" * 5000, "a number of 5000 characters"),
    "5000 digits after the point": ("0." + "9" * 5000, "a number of 5002 characters"),
    "3000 lists": ("[" * 3000, f"nested deeper than {MOST_DEPTH}"),
    "3000 lists, closed": ("[" * 3000 + "]" * 3000, f"nested deeper than {MOST_DEPTH}"),
    "3000 mappings": ("{a: " * 3000, f"nested deeper than {MOST_DEPTH}"),
    "3000 indented mappings": ("\n".join(f"{' ' * n}a:" for n in range(600)), f"nested deeper than {MOST_DEPTH}"),
    "3000 lists by dashes": ("- " * 3000 + "1", f"nested deeper than {MOST_DEPTH}"),
    "a million values": (f"[{'1,' * 100_000}]", "holds more than"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(25_000)), "holds more than"),
    "too large": ("# " + "x" * MOST_BYTES, "is larger than"),
    "open": ("a: [1", "is not YAML"),
    "a tab": ("a:\n\tb: 1", "is not YAML"),
    "a control character": ("a: \x1b[31m", "is not YAML"),
    "half a character": ("a: \udcff", "is not YAML"),
    "a character that there is not": ('"\\UFFFFFFFF"', "is not YAML"),
    "a percent sign": ("%a", "is not YAML"),
    "a colour without quotes": ("a: 1\ndata:\n  ground: #ff0000\n", "line 3: a colour begins with #, which makes it"),
    "a colour in a list": ("a:\n- #ff0000\n- b\n", "line 2: a colour begins with #"),
}


@pytest.mark.parametrize(("text", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(text: str, part: str) -> None:
    assert part in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "x" * MOST_BYTES,
        "# " + "x" * (MOST_BYTES - 2),
        " " * MOST_BYTES,
        "\n" * MOST_BYTES,
        "'" + "a\n" * (MOST_BYTES // 2 - 1),
    ],
    ids=["a word", "a comment", "spaces", "lines", "quoted lines"],
)
def test_the_largest_texts_take_no_longer_than_seconds(text: str) -> None:
    begun = time.monotonic()
    with contextlib.suppress(ConfigError):
        read(text, "here")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("bracket", ["[", "{", "[{", "[ ", "{a: "])
def test_brackets_are_not_looked_into_deeper_than_a_recipe_goes(bracket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser looks a thousand characters ahead for each of them, and took seconds for these."""
    fetched: list[int] = []
    by_itself = yaml.SafeLoader.fetch_more_tokens
    monkeypatch.setattr(
        yaml.SafeLoader, "fetch_more_tokens", lambda loader: fetched.append(loader.flow_level) or by_itself(loader)
    )
    assert "nested deeper" in refused(bracket * 3000)
    assert len(fetched) < 10 * MOST_DEPTH


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "zeros.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"zeros.yaml: is larger than \d+ bytes"):
        read_file(tmp_path / "zeros.yaml")


def test_a_path_that_is_none() -> None:
    for path in ("a\0b", "x" * 5000, "/dev/null/x"):
        with pytest.raises(ConfigError, match=r"cannot be read|there is no such file"):
            read_file(path)


@pytest.mark.parametrize(("text", "kind"), [("- 1", "list"), ("3", "int"), ("text", "str"), ("true", "bool")])
def test_a_mapping_is_asked_for(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: must be a mapping of sections, not a {kind}$"):
        read_mapping(text, "here")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from([*TWO_READINGS, "null", "1e5", ".inf", "3"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abyn01_ ", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
@example("\x85")
@example(["a\u2028 b", " \n x\n"])
def test_what_is_written_is_read_back(value: Any) -> None:
    text = write(value)
    assert read(text, "here") == value
    assert yaml.safe_load(text) == value or "1e" in text, "as any other reader reads it"


def test_a_long_text_stays_on_its_line() -> None:
    """The emitter folds at 80 characters, and what goes on at the indent of its mapping is no value any more."""
    value = {"data": {"name": "folder", "path": "/photos/a folder whose name is long and holds spaces " * 4 + "mine"}}
    assert read(write(value), "here") == value
    assert "path: /photos" in write(value)


def test_the_bounds_are_above_every_recipe() -> None:
    recipes = sorted((Path(plain_yaml.__file__).parents[2] / "configs").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert read_file(recipe) == yaml.safe_load(recipe.read_text())
        assert recipe.stat().st_size * 20 < MOST_BYTES
