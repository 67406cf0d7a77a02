"""All that people read: code runs, command lines are parsed, links lead somewhere, every help ends with an example."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from local_pool import local_run, small
from PIL import Image

import dasm_ray
from dasm_ray.cli import main
from dasm_ray.config import keys, matchers
from dasm_ray.config.keys import Data
from dasm_ray.config.parsing import field_of, load_config
from dasm_ray.config.recipes import Kind, shipped
from dasm_ray.config.space import load_sweep
from dasm_ray.config.study import load_study
from dasm_ray.core import window
from dasm_ray.core.networks import zoo
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import Artifact, write_artifact
from dasm_ray.store.datasets import catalogue
from dasm_ray.store.datasets.shards import decode
from dasm_ray.store.place import Place

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READ = [*PAGES, ROOT / "cluster" / "README.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


NOT_RUN = "<!-- not run: "
"""Stands, with a reason, before a block that takes long or needs what is not here; it is only looked at."""


def blocks_of(page: Path, language: str, *, is_run: bool = True) -> list[str]:
    return blocks_in(page.read_text("utf-8"), language, is_run=is_run)


def blocks_in(text: str, language: str, *, is_run: bool = True) -> list[str]:
    found = re.finditer(rf"(?P<before>^[^\n]*\n)?^```{language}\n(?P<code>.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [each["code"] for each in found if (each["before"] or "").startswith(NOT_RUN) != is_run]


def test_blocks_are_found_and_those_told_apart_that_are_not_run() -> None:
    text = f"```python\na\n```\n\n{NOT_RUN}an hour -->\n```python\nb\n```\n```sh\nc\n```\nwords\n```python\nd\n```\n"
    assert blocks_in(text, "python") == ["a\n", "d\n"]
    assert blocks_in(text, "python", is_run=False) == ["b\n"]
    assert blocks_in(text, "sh") == ["c\n"]


# --- code --------------------------------------------------------------------------------------------------------

TABLES: tuple[Any, ...] = (
    *(matchers.MATCHERS, keys.NORMS, window.POLICIES, zoo.ARCHITECTURES, catalogue.DATASETS, main.commands),
)


@pytest.fixture
def tables() -> Iterator[None]:
    """What is added to a table is taken away again."""
    before, windows = [dict(table) for table in TABLES], list(keys.WINDOWS)
    yield
    keys.WINDOWS[:] = windows
    for table, kept in zip(TABLES, before, strict=True):
        for name in table.keys() - kept.keys():
            del table[name]


@pytest.fixture
def beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which runs/digits has a small set."""
    made = Artifact(
        pixels=np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32),
        labels=np.arange(20, dtype=np.int64) // 2,
        segments=np.zeros(20, np.int32),
        soft_labels=None,
        class_names=tuple("0123456789"),
        mean=(0.3,),
        std=(0.4,),
        factor=1,
        step_size=None,
        recipe={"model": {}, "training": {"lr": 0.01}},
        provenance={},
    )
    write_artifact(Place(tmp_path / "runs" / "digits" / "synthetic"), made)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_blocks(page: Path) -> dict[str, Any]:
    """All Python of a page, one block after another, as a reader would paste it."""
    names: dict[str, Any] = {"__name__": "page"}
    before = torch.random.get_rng_state()
    for block in blocks_of(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)
    torch.random.set_rng_state(before)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")], ids=name_of)
@pytest.mark.usefixtures("tables", "beside_a_run")
def test_the_code_of_a_page_runs(page: Path) -> None:
    assert run_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_that_is_not_run_could_be(page: Path) -> None:
    """It is Python, and what it takes from the package is there."""
    for block in blocks_of(page, "python", is_run=False):
        compile(block, name_of(page), "exec")
        named = set(re.findall(r"dasm_ray\.(\w+)", block))
        assert [name for name in named if not hasattr(dasm_ray, name)] == []


@pytest.mark.usefixtures("tables")
def test_the_examples_of_extending_do_what_they_say(beside_a_run: Path, digits: RealRefs) -> None:
    """The matcher, the window and the network in one run; the data set and the command each by itself."""
    run_blocks(ROOT / "docs" / "extending.md")
    matcher = {"name": "weights", "rounds": 1, "networks": 2, "batch_real": 8, "lr_img": 0.1, "scale_lr": False}
    config = small(
        model={"arch": "strided", "width": 128, "depth": None}, matcher={**matcher, "snapshots": [[0, 3]]},
        window={"policy": "half"},
    )  # fmt: skip
    run = local_run(config, beside_a_run / "run", digits)
    made = distil(run, train_experts(run))
    pairs = zip(made.segments, made.starts, strict=True)
    moved = [float(np.abs(np.asarray(after.pixels) - np.asarray(before.pixels)).max()) for after, before in pairs]
    assert min(moved) > 1e-4

    for number in range(12):
        levels = np.full((5, 6), 20 * number, np.uint8)
        (beside_a_run / "flat").mkdir(exist_ok=True)
        Image.fromarray(levels).save(beside_a_run / "flat" / f"{'cat' if number % 2 else 'dog'}_{number}.png")
    data = Data(name="flat", path=str(beside_a_run / "flat"))
    source = catalogue.open_source(data)
    assert (source.class_names, source.shape) == (("cat", "dog"), (1, 5, 6))
    (shard,) = source.shards["train"]
    found = decode(shard, catalogue.rows_of(shard), data)
    assert [int(level) // 20 % 2 for level in found.images[:, 0, 0, 0]] == [1 - label for label in found.labels]

    done = CliRunner().invoke(main, ["classes", "runs/digits"])
    assert (done.exit_code, done.stdout.split()) == (0, list("0123456789"))


@pytest.mark.parametrize("page", [page for page in READ if blocks_of(page, "yaml")], ids=name_of)
def test_a_recipe_sweep_or_study_of_a_page_is_accepted(page: Path, tmp_path: Path) -> None:
    """Kubernetes' own files are not ours to read."""
    for number, block in enumerate(blocks_of(page, "yaml")):
        if "apiVersion:" in block:
            continue
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        load = load_sweep if "\nspace:" in block else load_study if "\narms:" in block else load_config
        assert load(file)


# --- command lines -----------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, Kind] = {"config": "recipe", "configs": "recipe", "sweeps": "sweep", "studies": "study"}


def command_lines(text: str) -> list[str]:
    """Every `dasm-ray ...` that stands alone on a line, or in backticks."""
    alone = re.findall(r"^[ \t]*(?:\$ )?(dasm-ray [a-z].*)$", text, re.MULTILINE)
    return [*alone, *re.findall(r"`(dasm-ray [a-z][^`]*)`", text)]


def faults_of(line: str) -> list[str]:
    """What is wrong with a command line: an option, a recipe or a key that there is not."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "&&", "...")), len(words))]
    words = [word.partition("|")[0] for word in words]
    if words[0] not in main.commands:
        return [f"{words[0]}: no such command"]
    return list(_faults(words[0], words[1:]))


def _faults(name: str, words: list[str]) -> Iterator[str]:
    if name == "submit" and words:
        context = main.commands[name].make_context(name, list(words))
        yield from faults_of(f"dasm-ray {shlex.join(context.params['words'])}")
        return
    try:
        given = main.commands[name].make_context(name, list(words)).params
    except click.UsageError as error:
        if words and "Missing argument" not in error.message:  # a sentence may name a command alone
            yield error.message
        return
    for argument, kind in ARGUMENTS.items():
        value = given.get(argument, ())
        for recipe in (value,) if isinstance(value, str) else value:
            if recipe.startswith("configs/"):
                yield from [] if (ROOT / recipe).exists() else [f"{recipe}: no such file"]
            elif not recipe.isupper() and not recipe.endswith(".yaml") and recipe not in shipped(kind):
                yield f"{recipe}: no such {kind}"
    for override in given.get("overrides", ()):
        key = override.partition("=")[0]
        if not key.isupper() and key != "section.key" and field_of(key) is None:
            yield f"--set {override}: no such key"


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_every_command_line_of_a_page_is_one(page: Path) -> None:
    lines = command_lines(page.read_text("utf-8"))
    assert [(line, faults) for line in lines if (faults := faults_of(line))] == []
    if page.name in ("README.md", "commands.md"):
        assert len(lines) > 4


@pytest.mark.parametrize(
    "line",
    [
        "dasm-ray destill digits",
        "dasm-ray distill digits --set synthetic.icp=3",
        "dasm-ray distill digit",
        "dasm-ray sweep mnist_dm",
        "dasm-ray distill configs/digit.yaml",
        "dasm-ray distill digits --worker-count 3",
        "dasm-ray export RUN --to out --format jpg",
        "dasm-ray submit distill digits --rum s3://b/r",
    ],
)
def test_a_wrong_line_is_seen(line: str) -> None:
    assert faults_of(line)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dasm-ray dist", ["plain,distill"]),
        ("dasm-ray distill dig", ["plain,digits"]),
        (
            "dasm-ray study mnist",
            ["plain,mnist", "plain,mnist_confirm", "plain,mnist_lossless", "plain,mnist_screen"],
        ),
        ("dasm-ray distill ./di", ["file,./di"]),
        ("dasm-ray inspect --p", ["plain,--png"]),
    ],
)
def test_a_shell_is_told_how_a_line_goes_on(words: str, found: list[str]) -> None:
    """As docs/commands.md says: by a variable in the environment, which click reads."""
    environment = {"_DASM_RAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = CliRunner().invoke(main, [], prog_name="dasm-ray", env=environment)
    assert (done.exit_code, done.stdout.split()) == (0, found)


@pytest.mark.parametrize("name", [None, *main.commands])
def test_every_help_ends_with_an_example(name: str | None) -> None:
    shown = CliRunner().invoke(main, [*([name] if name else []), "--help"]).output.rstrip().splitlines()
    before, last = shown[-2:]
    assert before == ""
    assert last.startswith(f"  Example: dasm-ray {name or ''}".rstrip())
    line = last.partition("Example: ")[2]
    assert faults_of(line) == []
    assert len(line.split()) > (3 if name == "submit" else 2)
    assert max(map(len, shown)) <= 80


# --- links, pictures, the site -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", READ, ids=name_of)
def test_every_link_and_picture_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    gone = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert gone == []


README = (ROOT / "README.md").read_text("utf-8")


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len(README.splitlines()) <= 95
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 60_000
    assert all(f"docs/{page.name}" in README for page in PAGES if page.name not in ("README.md", "index.md"))


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "site").glob("*/index.html"))) == len(PAGES) - 2
    start = (tmp_path / "site" / "index.html").read_text("utf-8")
    for part in ("lead", "how"):
        (of_readme,) = re.findall(rf"\[start:{part}\] -->\n(.*?)<!-- .*?\[end:{part}\]", README, re.DOTALL)
        assert of_readme.splitlines()[0].strip() in html.unescape(start)
        assert of_readme.splitlines()[0] not in (ROOT / "docs" / "index.md").read_text("utf-8"), "said in one place"
    assert "--8<--" not in start
