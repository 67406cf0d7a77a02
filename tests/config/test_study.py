"""Study files: a good one lists every arm at every size, a bad one is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.study import Study, load_study
from dasm_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPE = "name: small\ndata: {name: digits}\nsynthetic: {ipc: 2, segments: 2}\n"
ARMS: dict[str, Any] = {"base": {"set": {"synthetic.segments": 1, "window.policy": "all"}}, "dasm": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def written(folder: Path, **changes: Any) -> Path:
    file = {"name": "some", "recipe": "recipe.yaml", "arms": ARMS} | changes
    kept = {name: part for name, part in file.items() if part is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    return folder / "study.yaml"


def loaded(folder: Path, *overrides: str, **changes: Any) -> Study:
    return load_study(written(folder, **changes), overrides)


def factors(*names: str) -> dict[str, Any]:
    """Each with a key of its own."""
    keys = ("matcher.momentum", "matcher.lr_img", "matcher.perturb", "probe.lr", "experts.lr", "window.w_min")
    return {name: {"low": {key: 0.1}, "high": {key: 0.2}} for name, key in zip(names, keys, strict=False)}


# --- good ones ---------------------------------------------------------------------------------------------------


def test_arms_change_the_recipe_at_every_size_and_seed(folder: Path) -> None:
    study = loaded(folder, ipc=[2, 4], seeds=[3, 5], against="base", set={"evaluate.seeds": 2, "matcher.rounds": 7})
    base, dasm = study.arms
    assert (base.name, base.source, base.labels, dasm.name) == ("base", "distilled", "hard", "dasm")
    assert [base.at(ipc, seed).synthetic.ipc for ipc, seed in ((2, 3), (4, 5))] == [2, 4]
    assert (base.at(4, 5).seed, base.at(4, 5).name) == (5, "base")
    assert (base.at(2, 3).synthetic.segments, dasm.at(2, 3).synthetic.segments) == (1, 2)
    assert base.at(2, 3).matcher.rounds == dasm.at(4, 5).matcher.rounds == 7
    assert study.config.evaluate.seeds == 2
    assert study.reference is base


def test_an_arm_may_change_what_is_set_for_all(folder: Path) -> None:
    study = loaded(folder, set={"window.policy": "trim"})
    assert [arm.at(2, 0).window.policy for arm in study.arms] == ["all", "trim"]


def test_options_hold_for_all_arms(folder: Path) -> None:
    study = loaded(folder, "matcher.rounds=3", set={"matcher.rounds": 7})
    assert {arm.at(2, 0).matcher.rounds for arm in study.arms} == {3}


def test_real_images_and_starts_are_arms(folder: Path) -> None:
    arms = {
        "random": {"select": "random"},
        "soft": {"select": "random", "labels": "soft"},
        "start": {"take": "initial"},
    }
    study = loaded(folder, arms=ARMS | arms)
    assert [arm.source for arm in study.arms] == ["distilled", "distilled", "random", "random", "initial"]
    assert [arm.is_selected for arm in study.arms] == [False, False, True, True, False]


def test_random_images_with_labels_of_other_experts_are_another_arm(folder: Path) -> None:
    soft: dict[str, Any] = {"select": "random", "labels": "soft"}
    study = loaded(folder, arms={"a": soft, "b": {**soft, "set": {"experts.epochs": 16}}}, against=None)
    assert [arm.name for arm in study.arms] == ["a", "b"]


def test_a_screen_makes_arms_of_factors(folder: Path) -> None:
    study = loaded(folder, arms=None, screen={"set": {"matcher.rounds": 4}, "factors": factors(*"abcde")})
    assert study.screen is not None
    assert (study.screen.kind, study.screen.factors) == ("plackett_burman", ("a", "b", "c", "d", "e"))
    assert study.screen.runs == tuple(arm.name for arm in study.arms)
    assert (study.arms[0].name, study.arms[-1].name) == ("screen_01", "screen_12")
    for arm, row in zip(study.arms, study.screen.design, strict=True):
        config = arm.at(2, 0)
        found = (config.matcher.momentum, config.matcher.lr_img, config.matcher.perturb, config.probe.lr)
        assert found == tuple(0.2 if level else 0.1 for level in row[:4])
        assert config.matcher.rounds == 4


def test_each_factor_left_out_of_the_best(folder: Path) -> None:
    study = loaded(folder, arms=None, screen={"design": "leave_one_out", "factors": factors("rate", "push")})
    assert [arm.name for arm in study.arms] == ["screen_all", "without_rate", "without_push"]
    assert [arm.at(2, 0).matcher.momentum for arm in study.arms] == [0.2, 0.1, 0.2]


def test_a_named_arm_may_be_a_run_of_the_screen(folder: Path) -> None:
    screen = {"design": "full", "factors": {"segments": {"low": {"synthetic.segments": 1}}}}
    study = loaded(folder, screen=screen, arms={"dasm": {}})
    assert study.arms[0].configs[2].model_copy(update={"name": ""}) == study.arms[2].configs[2].model_copy(
        update={"name": ""}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_can_be_meant(path: Path) -> None:
    study = load_study(path)
    assert study.name == f"study_{path.stem}"
    assert study.against in {arm.name for arm in study.arms} | {None}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_arms_that_are_distilled_take_as_many_class_steps(path: Path) -> None:
    """What `matcher.networks` and `rounds` make of segments: no arm wins by working longer, unless its name says so."""
    study = load_study(path)

    def work(config: RunConfig) -> int:
        rounds = sum(config.rounds_of(stage) for stage in range(config.synthetic.segments + 1))
        return rounds * config.matcher.networks * config.matcher.steps

    made = [arm for arm in study.arms if arm.source == "distilled" and not arm.name.endswith(("_longer", "_steps"))]
    assert all(len({work(arm.configs[ipc]) for arm in made}) <= 1 for ipc in study.ipcs)


# --- bad ones ----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no arm": ({"arms": None}, "arms: there is none; name some, or a screen"),
    "an unknown key": ({"arm": {}}, "arm: there is no such key; did you mean 'arms'?"),
    "an unknown key of an arm": ({"arms": {"a": {"sett": {}}}}, "arms.a.sett: there is no such key"),
    "an unknown selection": ({"arms": {"a": {"select": "herdin"}}}, "did you mean 'herding'?"),
    "an unknown opponent": ({"against": "bass"}, "against: there is no arm 'bass'; take any of base, dasm"),
    "the same arm twice": ({"arms": {"a": {}, "b": {"set": {"synthetic.segments": 2}}}}, "arms.b: is what a is"),
    "the same choice twice": (
        {"arms": {"a": {"select": "random"}, "b": {"select": "random", "set": {"matcher.rounds": 3}}}},
        "arms.b: is what a is",
    ),
    "a key that judges": ({"arms": {"a": {"set": {"evaluate.lr": 0.1}}}}, "arms.a.set.evaluate.lr: arms are judged by"),
    "another network": (
        {"arms": {"a": {"set": {"model.width": 8}}}},
        "so it must be the same in all; put it under set",
    ),
    "a key without effect": ({"arms": {"a": {"set": {"score.shards": 8}}}}, "tells no arms apart"),
    "sizes in two places": ({"set": {"synthetic.ipc": 4}}, "set.synthetic.ipc: a study says so by ipc"),
    "seeds in two places": ({"arms": {"a": {"set": {"seed": 4}}}}, "arms.a.set.seed: a study says so by seeds"),
    "a section": ({"arms": {"a": {"set": {"window": {"policy": "all"}}}}}, "is a section; name one of its keys"),
    "an unknown key of the recipe": ({"arms": {"a": {"set": {"matcher.lr": 1}}}}, "matcher.lr: there is no such key"),
    "segments that do not divide": ({"ipc": [3]}, "arms.dasm: synthetic.ipc: 3 images a class cannot be cut into 2"),
    "a size twice": ({"ipc": [2, 2]}, "ipc: holds 2 twice"),
    "a seed twice": ({"seeds": [1, 0, 1]}, "seeds: holds 1 twice"),
    "no seed": ({"seeds": []}, "seeds: must have at least 1 value, not 0"),
    "too many trainings": ({"seeds": list(range(1000)), "set": {"evaluate.seeds": 9}}, "make 18000 trainings"),
    "a name that is a path": ({"name": "../up"}, "name"),
    "an arm that is a path": ({"arms": {"../up": {}}}, "arms"),
    "the start of a selection": ({"arms": {"a": {"select": "random", "take": "initial"}}}, "has no initialisation"),
    "soft labels of all": ({"arms": {"a": {"select": "full", "labels": "soft"}}}, "their own labels"),
    "few factors": ({"screen": {"factors": factors(*"abcd")}}, "take design full, of 16 runs"),
    "a factor that does nothing": ({"screen": {"design": "full", "factors": {"a": {}}}}, "is the same at both levels"),
    "factors that dispute": (
        {"screen": {"design": "full", "factors": {**factors("a"), "b": {"high": {"matcher.momentum": 0.7}}}}},
        "screen.factors.b: changes a key that a changes too",
    ),
    "a factor that judges": (
        {"screen": {"design": "full", "factors": {"a": {"high": {"data.zca": 0.1}}}}},
        "screen.factors.a.data.zca: arms are judged by it",
    ),
    "an arm of the screen": (
        {"arms": {"screen_01": {}}, "screen": {"design": "full", "factors": factors("a")}},
        "arms.screen_01: is the name of an arm of the screen too",
    ),
}


@pytest.mark.parametrize("seed", [-1, 1.0])
def test_a_list_whose_one_value_is_wrong_is_not_called_empty_too(folder: Path, seed: float) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, seeds=[seed])
    (problem,) = caught.value.problems
    assert "seeds.0: " in problem


@pytest.mark.parametrize(("changes", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_studies_that_cannot_be_meant(folder: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **changes)
    said = "\n".join(caught.value.problems)
    assert part in said, said
    assert all(problem.startswith(f"{folder / 'study.yaml'}: ") for problem in caught.value.problems), said


def test_too_many_factors_to_cross(folder: Path) -> None:
    keys = (
        "matcher.momentum",
        "matcher.lr_img",
        "matcher.perturb",
        "probe.lr",
        "experts.lr",
        "window.w_min",
        "probe.momentum",
    )
    crossed = {f"f{number}": {"low": {key: 0.1}, "high": {key: 0.2}} for number, key in enumerate(keys)}
    with pytest.raises(ConfigError, match="7 of them make 128 arms, and at most 6 are crossed"):
        loaded(folder, screen={"design": "full", "factors": crossed})


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("window.policy=trim", "arms.base.set.window.policy: is set by --set window.policy too"),
        ("synthetic.ipc=4", "--set synthetic.ipc: a study says so by ipc"),
        ("seed=4", "--set seed: a study says so by seeds"),
    ],
)
def test_options_that_an_arm_or_the_file_says_too(folder: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, override)
    assert part in str(caught.value)


def test_an_arm_that_is_given_twice(folder: Path) -> None:
    path = written(folder)
    path.write_text(path.read_text().replace("  dasm: {}", "  base: {}"))
    with pytest.raises(ConfigError, match="'base' is given twice"):
        load_study(path)
