"""What a notebook shows: the rows of the table, pictures of every class, and nothing that is obeyed."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from dasm_ray.report.notebook import page, picture, table
from dasm_ray.report.table import Row
from dasm_ray.store.artifact import Artifact

ROWS = [Row("distilled", [0.5, 0.6], [0.5, 0.6]), Row("<b>random", [0.3, 0.4], [0.3, 0.4], note="a & b")]


def elements(text: str) -> list[str]:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    return found


def a_set(names: tuple[str, ...]) -> Artifact:
    classes = len(names)
    return Artifact(
        pixels=np.random.default_rng(0).random((2 * classes, 1, 8, 8), np.float32),
        labels=np.repeat(np.arange(classes), 2),
        segments=np.zeros(2 * classes, np.int32),
        soft_labels=None,
        class_names=names,
        mean=(0.5,),
        std=(0.25,),
        factor=1,
        step_size=None,
        recipe={},
        provenance={},
    )


def test_a_table_has_a_line_a_row_and_its_own_in_bold() -> None:
    shown = table(ROWS, "digits <i>", 385)
    assert elements(shown).count("tr") == 3
    assert "55.0 ± 7.1" in shown
    assert "font-weight:bold" in re.findall(r"<tr>.*?</tr>", shown)[1]
    assert "font-weight:bold" not in re.findall(r"<tr>.*?</tr>", shown)[2]
    assert {"b", "i"} & set(elements(shown)) == set(), "names are text"
    assert "a &amp; b" in shown


def test_a_picture_has_a_row_a_class_and_says_which() -> None:
    shown = picture(a_set(("ant", '"><script>')))
    assert elements(shown) == ["img", "p"]
    data = base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])  # type: ignore[index]
    assert Image.open(io.BytesIO(data)).size == (2 * 68, 2 * 68), "8 pixels enlarged to 64, and a margin"
    assert "a row a class: ant" in shown


def test_of_many_classes_the_first_ones_are_shown() -> None:
    shown = picture(a_set(tuple(f"class {number}" for number in range(30))))
    assert "class 19" in shown
    assert "class 20" not in shown


def test_a_page_stays_in_its_frame() -> None:
    shown = page('<p title="x">text</p>', "runs/a & b")
    assert elements(shown) == ["iframe", "p"]
    assert "allow-same-origin" not in shown
