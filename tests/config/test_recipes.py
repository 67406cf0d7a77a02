"""Recipes by name: which file is meant, what cannot be meant, and what every shipped file says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dasm_ray.config import recipes
from dasm_ray.config.parsing import load_config
from dasm_ray.config.recipes import COMMANDS, FOLDERS, WIDTH, Kind, header_of, listing, located, shipped
from dasm_ray.config.space import load_sweep
from dasm_ray.config.study import load_study
from dasm_ray.errors import ConfigError

ALL = [(kind, name, path) for kind in FOLDERS for name, path in shipped(kind).items()]
IDS = [f"{kind}-{name}" for kind, name, _ in ALL]


def refused(given: str, kind: Kind) -> str:
    with pytest.raises(ConfigError) as caught:
        located(given, kind)
    (problem,) = caught.value.problems
    return problem


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- which file is meant -----------------------------------------------------------------------------------------


def test_a_name_is_a_shipped_file_of_its_kind() -> None:
    found = {kind: located("digits", kind) for kind in FOLDERS}
    assert [path.relative_to(recipes.folder()).as_posix() for path in found.values()] == [
        "digits.yaml",
        "sweeps/digits.yaml",
        "studies/digits.yaml",
    ]
    assert load_config("digits").name == "digits"
    assert load_sweep("digits").trials[0].config.data.name == "digits"
    assert load_study("digits").name == "study_digits"


def test_a_path_is_a_path(here: Path) -> None:
    for given in ("mine.yaml", "./digits", "mine/digits", Path("digits"), "s3://bucket/digits"):
        assert located(given, "recipe") == given, "as it is, since a URI is no path"
    assert located("mine.yaml", "recipe", here / "deep") == here / "deep" / "mine.yaml"


def test_a_place_that_cannot_be_read_shows_no_secret() -> None:
    for load in (load_config, load_sweep, load_study):
        with pytest.raises(ConfigError) as caught:
            load("s3://user:hidden@bucket/none.yaml")
        assert "hidden" not in str(caught.value)
    for odd in ("x" * 5000, "x" * 5000 + "/digits.yaml", "a\0b", "\0/digits.yaml"):
        with pytest.raises(ConfigError):
            load_config(odd)


def test_a_file_without_a_suffix_is_a_file(here: Path) -> None:
    (here / "mine").write_text("seed: 3\n")
    assert load_config("mine").seed == 3


def test_a_file_and_a_recipe_of_one_name_are_refused(here: Path) -> None:
    (here / "digits").write_text("seed: 3\n")
    assert refused("digits", "recipe").startswith("digits: is a file there and a recipe that comes with dasm-ray")
    assert load_config("./digits").seed == 3
    assert located("mnist_dm", "recipe") == shipped("recipe")["mnist_dm"]


def test_a_folder_of_the_name_is_no_second_reading(here: Path) -> None:
    (here / "digits").mkdir()
    assert located("digits", "recipe") == shipped("recipe")["digits"]


def test_of_a_folder_the_recipe_beside_it_is_named_or_how_one_is_written(here: Path) -> None:
    (here / "photos").mkdir()
    for given in ("photos", "./photos", "photos/"):
        assert refused(given, "recipe") == (
            "photos: is a folder and no recipe; `dasm-ray init photos` writes a recipe for the images in it"
        )
    assert refused(".", "recipe").startswith(".: is a folder and no recipe; `dasm-ray init .` writes")
    assert refused("photos", "sweep") == "photos: is a folder and no sweep; name the file of a sweep"
    (here / "photos.yaml").write_text("name: photos\n")
    assert refused("photos", "recipe") == "photos: is a folder and no recipe; the recipe beside it is photos.yaml"
    assert refused(f"{here}/photos", "recipe").endswith(f"beside it is {here}/photos.yaml")


def test_the_recipe_of_a_sweep_is_looked_for_beside_it(here: Path) -> None:
    (here / "deep").mkdir()
    text = "name: mine\nrecipe: digits\nspace: {seed: {grid: [1, 2]}}\n"
    (here / "deep" / "sweep.yaml").write_text(text)
    assert load_sweep("deep/sweep.yaml").trials[0].config.name == "digits"
    (here / "digits").write_text("name: other\n")
    assert load_sweep("deep/sweep.yaml").trials[0].config.name == "digits", "only what lies beside the sweep counts"
    (here / "deep" / "digits").write_text("name: other\n")
    with pytest.raises(ConfigError, match="is a file there and a recipe"):
        load_sweep("deep/sweep.yaml")


def test_a_name_that_there_is_not_has_near_ones_told() -> None:
    assert refused("digit", "recipe").endswith("did you mean digits?")
    assert "did you mean mnist_idc or " in refused("mnist_dc", "recipe")
    assert refused("xyzzy", "recipe").endswith("`dasm-ray recipes` lists them")
    assert refused("mnist_confirm", "recipe").endswith("it is a study: dasm-ray study mnist_confirm")
    assert refused("mnist_dm", "study").endswith("it is a recipe: dasm-ray distill mnist_dm")


def test_the_path_of_a_checkout_that_is_not_there_leads_to_the_name() -> None:
    assert "given by its name alone, digits" in refused("configs/digits.yaml", "recipe")
    assert "given by its name alone, cifar10" in refused("configs/sweeps/cifar10.yaml", "sweep")
    assert refused("s3://user:hidden@bucket/digits.yaml", "recipe").startswith(
        "s3://***@bucket/digits.yaml: there is no"
    )


def test_in_a_wheel_they_lie_in_the_package(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = here / "site-packages" / "dasm_ray" / "config" / "recipes.py"
    monkeypatch.setattr(recipes, "__file__", str(installed))
    assert recipes.folder() == here / "site-packages" / "configs"
    inside = here / "site-packages" / "dasm_ray" / "configs"
    inside.mkdir(parents=True)
    assert recipes.folder() == inside


# --- what they say of themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "path"), ALL, ids=IDS)
def test_every_shipped_file_says_what_it_is_for(kind: Kind, name: str, path: Path) -> None:
    header = header_of(path)
    assert len(header.purpose) <= WIDTH - 2
    assert re.match(r"not measured(,|$)|(under )?\d+,", header.minutes)
    assert re.match(r"not measured(,|$)|\d+\.\d ± \d+\.\d, ", header.expected)
    loaded = {
        "recipe": load_config,
        "sweep": lambda given: load_sweep(given).trials[0].config,
        "study": lambda given: load_study(given).config,
    }[kind](name)
    assert header.data == ("built in" if loaded.data.name == "digits" else loaded.data.name)


@pytest.mark.parametrize(("kind", "name", "path"), ALL, ids=IDS)
def test_a_figure_of_a_header_stands_in_the_text_or_the_results(kind: Kind, name: str, path: Path) -> None:
    """Who changes one of the two must change the other."""
    figures = re.findall(r"\d+\.\d ± \d+\.\d", header_of(path).expected)
    below = " ".join(path.read_text().partition("\n# Data:")[2].replace("\n#", "").split())
    assert [figure for figure in figures if figure not in below] == []


def test_the_list_names_every_file_once_and_fits_a_terminal() -> None:
    lines = list(listing())
    for kind, command in COMMANDS.items():
        own = [line for line in listing(kind) if line.startswith("for dasm-ray ")]
        assert [line.partition(":")[0].split()[2].rstrip(",") for line in own] == [command]
        assert set(listing(kind)) <= set(lines)
    assert [line for line in lines if len(line) > WIDTH] == []
    names = [line.split()[0] for line in lines if re.match(r"\w[\w-]* {2,}\S", line)]
    assert sorted(names) == sorted(name for _, name, _ in ALL)
    assert names[0] == "digits", "what needs nothing comes first"


def test_sizes_stand_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [Path(f"c10_ipc{size}.yaml") for size in (10, 1, 1000, 50)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(paths))
    assert list(shipped("recipe")) == ["c10_ipc1", "c10_ipc10", "c10_ipc50", "c10_ipc1000"]
