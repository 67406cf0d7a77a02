"""A recipe that fits: accepted as it stands for any set, no larger than the smallest class, and never over a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasm_ray.config import plain_yaml
from dasm_ray.config.fitting import (
    Facts,
    blocks,
    image_size,
    name_for,
    next_steps,
    recipe_for,
    shape_of_the_set,
    write_new,
)
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.networks.convnet import default_depth
from dasm_ray.errors import ConfigError


def facts(**changes: object) -> Facts:
    usual = {
        **{"kind": "folder", "path": "/data/pets", "name": "pets", "colour": True, "sizes": frozenset({(32, 32)})},
        **{"per_class": (500, 400), "has_validation": False, "has_test": False, "found": ("data folder",)},
    }
    return Facts(**{**usual, **changes})  # type: ignore[arg-type]


def config_for(of: Facts) -> RunConfig:
    return parse_config(plain_yaml.read_mapping(recipe_for(of), "made"))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.frozensets(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=4),
    per_class=st.lists(st.integers(1, 20_000), min_size=2, max_size=300).map(tuple),
    colour=st.booleans(),
    has_validation=st.booleans(),
    has_test=st.booleans(),
    kind=st.sampled_from(["folder", "parquet"]),
)
def test_whatever_the_set_the_recipe_is_accepted_and_fits(**changes: object) -> None:
    of = facts(**changes)
    config = config_for(of)
    side = config.data.image_size or min(min(of.sizes))
    asked = config.synthetic.ipc * config.start_factor**2
    assert asked <= max(1, of.fewest // 2)
    assert config.synthetic.factor <= side
    assert side >> (config.model.depth or default_depth(side)) >= 1 or side == 1
    assert (config.data.name, config.data.path) == (of.kind, "/data/pets")
    assert len(of.sizes) == 1 or config.data.image_size, "images of several sizes must be scaled"


def test_small_images_that_agree_are_taken_as_they_are() -> None:
    assert image_size(facts()) is None
    assert image_size(facts(sizes=frozenset({(28, 28)}))) is None
    assert image_size(facts(sizes=frozenset({(28, 28), (28, 29)}))) == 32
    assert image_size(facts(sizes=frozenset({(500, 300)}))) == 64
    assert image_size(facts(sizes=frozenset({(500, 300)}), per_class=(9000, 9000))) == 32


def test_the_set_is_as_large_as_the_smallest_class_allows() -> None:
    assert shape_of_the_set(facts(), 32) == (10, 2, 2)
    assert shape_of_the_set(facts(per_class=(500, 150)), 32) == (6, 2, 2)
    assert shape_of_the_set(facts(per_class=(500, 40)), 32) == (6, 2, 1)
    assert shape_of_the_set(facts(), 8) == (1, 1, 1)
    assert shape_of_the_set(facts(per_class=(3, 3)), 32) == (1, 1, 1)


def test_many_classes_are_matched_by_distributions_and_grey_images_are_not_flipped() -> None:
    assert config_for(facts(per_class=(400,) * 51)).matcher.name == "dm"
    grey = config_for(facts(colour=False))
    assert (grey.matcher.name, grey.matcher.augment, grey.experts.augment) == ("idc", "crop", "crop")


def test_the_run_decides_about_the_compiler_and_few_synthetic_images_are_seen_more_often() -> None:
    few, many = (config_for(facts(per_class=(400,) * classes)).runtime for classes in (3, 51))
    assert (few.compile, few.precision) == ("auto", "float32")
    assert (many.compile, many.precision) == ("auto", "auto")
    assert [config_for(facts(per_class=each)).evaluate.epochs for each in ((500, 400), (500, 40))] == [100, 200]


def test_blocks_are_those_of_the_network() -> None:
    assert [blocks(side) for side in range(1, 600)] == [default_depth(side) for side in range(1, 600)]


def test_what_is_written_says_why(tmp_path: Path) -> None:
    text = recipe_for(facts())
    assert text.startswith("# data folder\n\nname: pets\n")
    assert text.count(" # ") >= 6
    odd = facts(path="/data/it's: #1", name=name_for("my photos (2024)"))
    config = config_for(odd)
    assert (config.name, config.data.path) == ("my_photos_2024", "/data/it's: #1")
    assert name_for("…") == "mine"
    named = {
        "été": "été",
        "e\u0301te\u0301": "été",
        "写真 2024": "写真_2024",
        "हिन्दी": "हिन्दी",
        "m² _x_": "m_x",
        "v1.5": "v1_5",
    }
    assert {folder: name_for(folder) for folder in named} == named
    for name in named.values():
        assert config_for(facts(name=name)).name == name, "the key takes it"


def test_a_name_that_looks_like_something_else_stays_a_name() -> None:
    assert [config_for(facts(name=name_for(name))).name for name in ("2024", "no", "1e5")] == ["2024", "no", "1e5"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    write_new(str(file), "seed: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: is there already; name another file by --to"):
        write_new(str(file), "seed: 2\n")
    assert file.read_text() == "seed: 1\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_new(str(tmp_path / "none" / "mine.yaml"), "")


def test_the_next_steps_can_be_pasted() -> None:
    assert "dasm-ray distill 'my photos.yaml'" in next_steps("my photos.yaml")[-1]
