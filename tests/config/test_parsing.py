"""What users write: typos, overrides, bad files, and the way back to YAML."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from tree import PROJECT, problems_of

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import load_config, parse_config, to_yaml
from dasm_ray.errors import ConfigError

# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"matchr": {}}, "matchr: there is no such key; did you mean 'matcher'?"),
        ({"matcher": {"lr_imgs": 1.0}}, "matcher.lr_imgs: there is no such key; did you mean 'lr_img'?"),
        ({"evaluate": {"seed": 3}}, "evaluate.seed: there is no such key; did you mean 'seeds'?"),
        ({"window": {"q": 1}}, "window.q: there is no such key; the keys here are policy, w_min, width, trim"),
    ],
)
def test_a_typo_gets_the_nearest_name(tree: dict[str, Any], sentence: str) -> None:
    assert problems_of(tree) == (sentence,)


def test_a_choice_that_is_misspelt_gets_the_choices_and_the_nearest() -> None:
    (sentence,) = problems_of({"matcher": {"name": "icd"}})
    assert (
        sentence == "matcher.name: 'icd' must be 'idc', 'dc', 'dsa', 'dm', 'cafe', 'mtt' or 'datm'; did you mean 'idc'?"
    )


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("synthetic.ipc", "ten", "valid integer, not 'ten'"),
        ("synthetic.ipc", 2.5, "valid integer"),
        ("synthetic.ipc", True, "valid integer"),
        ("synthetic.ipc", 0, "greater than or equal to 1, not 0"),
        ("matcher.lr_img", -1, "greater than 0"),
        ("matcher.lr_img", float("nan"), "finite"),
        ("matcher.lr_img", float("inf"), "finite"),
        ("matcher.momentum", 1.0, "less than 1"),
        ("matcher.scale_lr", "yes", "valid boolean"),
        ("matcher.augment", "color_corp", "'corp' is no augmentation: join any of color, crop"),
        ("matcher.augment", "crop_crop", "names an augmentation twice"),
        ("matcher.snapshots", [[0, 4, 5]], "at most 2 items"),
        ("matcher.snapshots", 4, "valid tuple"),
        ("data", None, "valid dictionary"),
        ("data.name", 3, "valid string"),
        ("data.val_share", 0.5, "less than 0.5"),
        ("evaluate.rows", ["distilled", "randm"], "did you mean 'random'?"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: Any, part: str) -> None:
    section, _, name = key.partition(".")
    (sentence,) = problems_of({section: {name: value}} if name else {section: value})
    assert sentence.startswith(f"{key}")
    assert part in sentence
    assert "\n" not in sentence


def test_all_problems_are_told_at_once() -> None:
    tree = {"seed": -1, "matcher": {"nam": "idc"}, "synthetic": {"ipc": "x"}, "evaluate": {"rows": ["half"]}}
    assert [sentence.split(":")[0] for sentence in sorted(problems_of(tree))] == [
        "evaluate.rows.0",
        "matcher.nam",
        "seed",
        "synthetic.ipc",
    ]


def test_the_error_survives_the_way_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a: one", "b: two")))
    assert error.problems == ("a: one", "b: two")
    assert str(error) == "a: one\nb: two"
    assert error.exit_code == 2


# --- files and overrides -----------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("synthetic: {ipc: 20}\nseed: 1\n", encoding="utf-8")
    overrides = ["synthetic.ipc=4", "seed=7", "matcher.snapshots=[[0, 2], [1, 3]]", "data.path=a=b", "model.depth=null"]
    read = load_config(recipe, overrides)
    assert (read.synthetic.ipc, read.seed, read.data.path, read.model.depth) == (4, 7, "a=b", None)
    assert read.matcher.snapshots == ((0, 2), (1, 3))
    assert load_config(recipe).synthetic.ipc == 20


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("synthetic.ipc", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("seed.x.y=3", "'seed' is a value, not a section"),
        ("data.name=[", "is not YAML"),
        ("synthetic.icp=3", "did you mean 'ipc'?"),
    ],
)
def test_a_bad_override_is_one_sentence(override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=1", override])
    (sentence,) = caught.value.problems
    assert part in sentence


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "there is no such file"),
        (b"a: [1", "is not YAML"),
        (b"- 1\n- 2", "must be a mapping of sections, not a list"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"1: 2", "1: "),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, content: bytes | None, part: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    (sentence,) = caught.value.problems
    assert part in sentence
    assert "\n" not in sentence


def test_a_folder_in_place_of_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_config(tmp_path / "empty.yaml") == load_config(None) == RunConfig()


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"matcher": {"name": "dc"}},
        {"matcher": {"name": "dsa", "metric": "l1"}},
        {"matcher": {"snapshots": [[0, 2], [2, 4]]}, "model": {"depth": 2}},
        {"matcher": {"network": "train", "inner_samples": 7}},
        {"name": "läuft", "data": {"name": "parquet", "path": "s3://bucket/a b"}},
        {"runtime": {"gpus_per_worker": 0.1}, "matcher": {"lr_img": 1e-7}},
    ],
)
def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    first = parse_config(tree)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(first), encoding="utf-8")
    again = load_config(resolved)
    assert again == first
    assert digest_of(what(again)) == digest_of(what(first))


def test_every_recipe_in_configs_can_be_meant() -> None:
    recipes = sorted((PROJECT / "configs").rglob("*.yaml"))
    recipes = [recipe for recipe in recipes if "sweeps" not in recipe.parts]
    assert recipes, "configs/ holds the recipes"
    for recipe in recipes:
        load_config(recipe)


def test_a_typo_in_the_recipe_of_a_network_is_named() -> None:
    (problem,) = problems_of({"networks": {"mlp": {"lrr": 1}}})
    assert problem == "networks.mlp.lrr: there is no such key; did you mean 'lr'?"
    (problem,) = problems_of({"networks": {"resnet": {"lr": 1}}})
    assert "networks.resnet" in problem
    assert "did you mean 'resnet18'?" in problem
