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

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_abreast import a_study
from test_audited import FOUND

from dasm_ray.cli import main
from dasm_ray.report import figures
from dasm_ray.report.webpage import PAGE, report, webpage
from dasm_ray.store.artifact import digest, read_artifact, write_artifact
from dasm_ray.store.checked import write_checked_json
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


@pytest.fixture(scope="session")
def pages(run_folder: Path, walked_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of each kind: of a run that has been audited, of a study, and of several runs, two of one name."""
    folder = tmp_path_factory.mktemp("pages")
    audited = shutil.copytree(run_folder, folder / "audited" / "run")
    stamp = digest(read_artifact(Place(audited) / "synthetic"))
    write_checked_json(Place(audited) / "report" / "audit.json", {**FOUND, "settings": "s", "set": stamp})
    found = {
        "run": [audited],
        "study": [a_study(folder / "study", run_folder)],
        "several": [audited, run_folder, walked_folder],
    }
    for name, runs in found.items():
        report(list(map(str, runs)), str(folder / f"{name}.html"))
    return {name: folder / f"{name}.html" for name in found}


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


def test_a_finished_run_has_its_page_unless_it_wants_none(paged_folder: Path, run_folder: Path) -> None:
    assert "The synthetic images" in Page((paged_folder / PAGE).read_text()).texts["h2"]
    assert not (run_folder / PAGE).exists()


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
        (["{tmp}/nothing"], "there is nothing at {tmp}/nothing;"),
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
    assert said.format(tmp=tmp_path) in line


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
def test_a_browser_finds_no_fault_and_fetches_nothing(
    paged_folder: Path, browser: Any, width: int, scheme: str
) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        tab, heard, asked = context.new_page(), [], []
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((paged_folder / PAGE).as_uri())
        tab.wait_for_load_state("load")
        assert heard == []
        assert [url for url in asked if not url.startswith("data:")] == [(paged_folder / PAGE).as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 382) == (scheme == "light")


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core as a script."""
    return pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT


def findings(tab: Any, axe: str) -> list[str]:
    """What axe-core finds on a page as it stands, of whatever impact, and what it leaves open.

    It cannot tell what a letter stands on in a figure, in an image's frame, or alone; `test_letters_stand_out`
    computes what it leaves open of contrasts.
    """
    tab.evaluate(axe)
    found = tab.evaluate("axe.run({resultTypes: ['violations', 'incomplete']})")
    left_open = [each for each in found["incomplete"] if each["id"] != "color-contrast"]
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]}"
        for each in found["violations"] + left_open
        for node in each["nodes"]
    ]


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_a_reader_out(pages: dict[str, Path], browser: Any, axe: str, width: int, scheme: str) -> None:
    """Of a run with its audit, of a study and of several runs, with all that unfolds unfolded and an image enlarged."""
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        tab = context.new_page()
        for name, path in pages.items():
            tab.goto(path.as_uri())
            assert (name, findings(tab, axe)) == (name, [])
            tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert (name, findings(tab, axe)) == (name, [])
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.click("[data-card]:visible >> nth=0")
            assert (name, findings(tab, axe)) == (name, [])


def test_letters_stand_out(text: str) -> None:
    """4.5 to 1 at least for whatever is read, 3 to 1 for what is seen in a figure (WCAG 2.2, 1.4.3 and 1.4.11)."""
    (style,) = Page(text).texts["style"]
    for start in (r":root \{", r"dark\) \{\s*:root \{"):
        found = re.search(rf"{start}(.*?)\}}", style, re.DOTALL)
        assert found is not None
        of = {name: levels(colour) for name, colour in re.findall(r"--(\w+): (#\w{6})", found[1])}
        for ground in ("paper", "card"):
            assert [name for name in ("ink", "muted", "accent", "bad") if contrast(of[name], of[ground]) < 4.5] == []
            assert [name for name in ("second", "soft") if contrast(of[name], of[ground]) < 3] == []
        assert contrast(of["paper"], of["accent"]) >= 4.5, "a class that is chosen"
        for band in figures.BANDS:
            assert contrast(of["ink"], band * of["second"] + (1 - band) * of["paper"]) >= 4.5, "the name of a stage"


def levels(colour: str) -> Any:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], np.float64)


def contrast(one: Any, other: Any) -> float:
    """Of two colours in levels, as WCAG defines it."""
    darker, lighter = sorted(luminance(colour / 255) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(shares: Any) -> float:
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_images_are_filtered_and_enlarged_by_keys_and_by_mouse(paged_folder: Path, browser: Any) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        tab = context.new_page()
        tab.goto((paged_folder / PAGE).as_uri())
        assert tab.inner_text("[data-count]") == "20 images"
        tab.focus("input[name=r0-class]")
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text("[data-count]") == "2 images"
        tab.click("text=segment >> xpath=.. >> label:has-text('2')")
        assert tab.inner_text("[data-count]") == "1 image"
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
