"""The page as a whole: it stands alone, escapes what it is given, and does in a browser what it says."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dasm_ray.cli import main
from dasm_ray.report.webpage import PAGE, report, webpage
from dasm_ray.store.artifact import read_artifact, write_artifact
from dasm_ray.store.place import Place

WITHOUT_END = {"meta", "img", "br", "input", "use", "path"}


class Page(HTMLParser):
    """What a page holds: its elements, their attributes and texts; and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in WITHOUT_END:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in WITHOUT_END:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.texts.setdefault(self._open[-1], []).append(data.strip())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(run_folder: Path) -> str:
    return webpage([Place(run_folder)])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def stands_alone(page: Page, text: str) -> None:
    """Nothing on the page is fetched from anywhere, or could be."""
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#")), attributes
    for style in page.texts["style"]:
        assert "url(" not in style
        assert "@import" not in style
    (script,) = page.texts["script"]
    (policy,) = (each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    (exact,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(exact.encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in policy
    assert "default-src 'none'" in policy
    assert "fetch(" not in script


def test_the_page_stands_alone(page: Page, text: str) -> None:
    stands_alone(page, text)
    assert len(text.encode()) < 5_000_000


def test_every_image_and_figure_is_told_in_words(page: Page) -> None:
    assert len(page.of("img")) == 60
    assert all(image["alt"].strip() for image in page.of("img"))
    figures = [svg for svg in page.of("svg") if svg.get("class") == "figure"]
    assert len(figures) >= 8
    assert all(svg["role"] == "img" and svg["aria-label"].strip() for svg in figures)
    assert page.of("html") == [{"lang": "en"}]


def test_every_section_is_there_once_and_links_lead_somewhere(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert [name for name, times in Counter(names).items() if times > 1] == []
    assert {f"r0-{part}" for part in ("what", "table", "images", "method", "time", "again")} <= set(names)
    for _, attributes in page.elements:
        led_to = [attributes["href"].removeprefix("#")] if attributes.get("href", "").startswith("#") else []
        assert set(led_to) | set(attributes.get("aria-labelledby", "").split()) <= set(names)


def test_it_is_read_in_the_light_and_in_the_dark_and_on_a_telephone(page: Page) -> None:
    (style,) = page.texts["style"]
    starts = (r":root \{", r"dark\) \{\s*:root \{")
    light, dark = (re.search(rf"{start}(.*?)\}}", style, re.DOTALL) for start in starts)
    assert light
    assert dark
    colours = [set(re.findall(r"--(\w+): #", found[1])) for found in (light, dark)]
    assert colours[0] == colours[1] >= {"paper", "ink", "accent", "bad"}
    assert "max-width: 40rem" in style
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_names_of_strangers_are_text(run_folder: Path, tmp_path: Path) -> None:
    names = ['</style><script src="http://evil.example/x.js"></script>', '"><img src=x onerror=alert(1)>', "{{ 7*7 }}"]
    names += ["$x^2$", "</script>", "<!--", "&amp;", "' onclick='x", "%s{0}", "a" * 500]
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    artifact = read_artifact(Place(folder) / "synthetic")
    found = {**artifact.provenance["found"], "notes": [names[0]], "form": names[1]}
    write_artifact(
        Place(folder) / "synthetic",
        replace(artifact, class_names=tuple(names), provenance={**artifact.provenance, "found": found}),
    )
    text = webpage([Place(folder)])
    page = Page(text)
    stands_alone(page, text)
    assert len(page.of("script")) == 1
    assert len(page.of("img")) >= 40
    shown = [words for tag in ("h3", "span", "text") for words in page.texts[tag]]
    for name in ("{{ 7*7 }}", "$x^2$", "<!--", "&amp;"):
        assert name in shown
    assert "49" not in page.texts["h3"]


def test_several_runs_stand_on_one_page(run_folder: Path, walked_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert report([str(run_folder), str(walked_folder)], str(target)) == Place(target)
    text = target.read_text()
    page = Page(text)
    stands_alone(page, text)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {"r0-table", "r1-table", "all-runs"} <= set(names)
    assert "Accuracy against size" in page.texts["h3"]
    assert "Accuracy against time" in page.texts["h3"]


def test_a_finished_run_has_its_page(run_folder: Path) -> None:
    assert "The synthetic images" in Page((run_folder / PAGE).read_text()).texts["h2"]


# --- the command -------------------------------------------------------------------------------------------------

ALONE = """
import sys
for name in ("torch", "torchvision", "ray"):
    sys.modules[name] = None  # an import of it fails
from dasm_ray.cli import main
main(["report", sys.argv[1]], prog_name="dasm-ray")
"""


def test_the_command_needs_neither_pytorch_nor_ray(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / PAGE).unlink()
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"page {folder / PAGE}\n"
    assert len(Page((folder / PAGE).read_text()).of("img")) == 60


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}"], "is no run directory"),
        (["{tmp}/nothing"], "is no run directory"),
        (["{run}", "{run}"], "--to: there are 2 runs"),
        (["{run}", "--to", "{tmp}/file/page.html"], "cannot be"),
        (["{damaged}"], "is damaged"),
    ],
)
def test_refusals_are_one_sentence(run_folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "file").write_text("")
    damaged = tmp_path / "damaged"
    shutil.copytree(run_folder, damaged)
    (damaged / "synthetic" / "dataset.json").write_text("[]")
    result = call(*(word.format(tmp=tmp_path, run=run_folder, damaged=damaged) for word in words))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("dasm-ray: ")
    assert said in line


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium of this machine, where there is one."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    api = pytest.importorskip("playwright.sync_api")
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_finds_no_fault_and_fetches_nothing(run_folder: Path, browser: Any, width: int, scheme: str) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        tab, heard, asked = context.new_page(), [], []
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((run_folder / PAGE).as_uri())
        tab.wait_for_load_state("load")
        assert heard == []
        assert [url for url in asked if not url.startswith("data:")] == [(run_folder / PAGE).as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 382) == (scheme == "light")


def test_images_are_filtered_and_enlarged_by_keys_and_by_mouse(run_folder: Path, browser: Any) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        tab = context.new_page()
        tab.goto((run_folder / PAGE).as_uri())
        assert tab.inner_text("[data-count]") == "20 images"
        tab.focus("input[name=r0-class]")
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text("[data-count]") == "2 images"
        tab.click("text=segment >> xpath=.. >> label:has-text('2')")
        assert tab.inner_text("[data-count]") == "1 images"
        tab.click("[data-beside]")
        assert not tab.is_visible(".start >> nth=1")
        tab.click("label:has(input[name=r0-class][value=''])")
        tab.click("[data-card]:visible >> nth=0")
        assert tab.inner_text("#closer-title") == "0, image 2, segment 2"
        assert tab.locator("#closer img").count() == 3
        tab.keyboard.press("ArrowLeft")
        assert tab.inner_text("#closer-title") == "9, image 2, segment 2"
        tab.click("[data-step='1']")
        assert tab.inner_text("#closer-title") == "0, image 2, segment 2"
        tab.keyboard.press("Escape")
        assert not tab.is_visible("#closer")
        tab.keyboard.press("Enter")
        assert tab.is_visible("#closer"), "the focus is where it was"
