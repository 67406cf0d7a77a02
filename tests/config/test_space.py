"""Sweep files: a good one is the same list of trials whenever it is read, a bad one is refused in a sentence."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from dasm_ray.cli import main
from dasm_ray.config.parsing import field_of, load_config
from dasm_ray.config.space import Sweep, Values, load_sweep
from dasm_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPE = "name: small\ndata: {name: digits}\nsynthetic: {ipc: 2, segments: 2}\n"
GRID: dict[str, Any] = {"matcher.lr_img": {"grid": [0.1, 0.2]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def written(folder: Path, **changes: Any) -> Path:
    file = {"name": "some", "recipe": "recipe.yaml", "space": GRID} | changes
    (folder / "sweep.yaml").write_text(yaml.safe_dump({name: part for name, part in file.items() if part is not None}))
    return folder / "sweep.yaml"


def loaded(folder: Path, **changes: Any) -> Sweep:
    return load_sweep(written(folder, **changes))


# --- good ones ---------------------------------------------------------------------------------------------------


def test_grids_are_crossed_in_the_order_of_the_file(folder: Path) -> None:
    space = {"window.policy": {"grid": ["all", "frontier"]}, "matcher.lr_img": {"grid": [0.1, "2e-1"]}}
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "some", "recipe": "recipe.yaml", "space": space}, sort_keys=False)
    )
    sweep = load_sweep(folder / "sweep.yaml")
    assert list(sweep.trials[0].values) == ["window.policy", "matcher.lr_img"]
    assert [tuple(trial.values.values()) for trial in sweep.trials] == [
        ("all", 0.1), ("all", 0.2), ("frontier", 0.1), ("frontier", 0.2),
    ]  # fmt: skip
    assert [trial.number for trial in sweep.trials] == [0, 1, 2, 3]
    assert [trial.config.matcher.lr_img for trial in sweep.trials] == [0.1, 0.2, 0.1, 0.2]
    assert all(trial.config.synthetic.ipc == 2 for trial in sweep.trials)


def test_draws_lie_in_their_ranges_and_follow_from_the_seed(folder: Path) -> None:
    space = {
        "matcher.lr_img": {"loguniform": [1e-4, 1.0]},
        "matcher.momentum": {"uniform": [0.2, 0.4]},
        "matcher.networks": {"int": [3, 4]},
        "window.policy": {"choice": ["all", "trim"]},
    }
    trials = loaded(folder, space=space, samples=60).trials
    assert trials == loaded(folder, space=space, samples=60).trials
    assert trials[:20] == loaded(folder, space=space, samples=20).trials, "more samples move no earlier one"
    other = loaded(folder, space=space, samples=60, seed=1).trials
    assert [trial.values for trial in other] != [trial.values for trial in trials]
    drawn = {key: [trial.values[key] for trial in trials] for key in space}
    assert all(1e-4 <= rate <= 1 for rate in drawn["matcher.lr_img"])
    assert 20 <= sum(rate < 1e-2 for rate in drawn["matcher.lr_img"]) <= 40, "even over magnitudes"
    assert all(0.2 <= value <= 0.4 for value in drawn["matcher.momentum"])
    assert set(drawn["matcher.networks"]) == {3, 4}
    assert set(drawn["window.policy"]) == {"all", "trim"}
    del space["window.policy"]
    fewer = loaded(folder, space=space, samples=60).trials
    assert [trial.values["matcher.lr_img"] for trial in fewer] == drawn["matcher.lr_img"], (
        "a key moves no other's draws"
    )


def test_points_of_a_grid_share_their_draws_and_equal_points_are_one_trial(folder: Path) -> None:
    both = loaded(folder, space={**GRID, "matcher.momentum": {"uniform": [0.1, 0.9]}}, samples=3).trials
    momenta = [trial.values["matcher.momentum"] for trial in both]
    assert len(both) == 6
    assert momenta[::2] == momenta[1::2]
    few = loaded(folder, space={"window.policy": {"choice": ["all", "trim"]}}, samples=50).trials
    assert len(few) == 2
    assert [trial.number for trial in few] == [0, 1]


def test_fixed_keys_and_overrides_hold_for_all_trials(folder: Path) -> None:
    path = written(folder, set={"matcher.rounds": 3, "data.path": "here"}, workers=2, scheduler="asha")
    sweep = load_sweep(path, ["probe.members=4"], 5)
    assert all((t.config.matcher.rounds, t.config.probe.members) == (3, 4) for t in sweep.trials)
    assert (sweep.workers, sweep.trials[0].config.runtime.workers) == (5, 5)
    assert (sweep.scheduler.name, sweep.scheduler.grace, sweep.scheduler.reduction) == ("asha", 1, 2)
    assert load_sweep(path).trials[1].config.runtime.workers == 2


def test_what_a_section_sets_as_a_whole_is_set_too(folder: Path) -> None:
    """Nothing that was set may be replaced in silence by a trial's value, or by the sweep's workers."""
    space = {"score.batch": {"grid": [200, 300]}}
    path = written(folder, space=space, set={"score": {"batch": 100}})
    with pytest.raises(ConfigError, match=r"space.score.batch: is set to one value too"):
        load_sweep(path)
    path = written(folder, space=space)
    with pytest.raises(ConfigError, match=r"space.score.batch: is set to one value too"):
        load_sweep(path, ["score={batch: 100}"])
    with pytest.raises(ConfigError, match=r"runtime.workers: a sweep says so by workers"):
        load_sweep(path, ["runtime={workers: 4}"])
    assert len(load_sweep(path, ["score={shards: 4}"]).trials) == 2


@pytest.mark.parametrize("key", ["data.image_size", "data.ground", "evaluate.base_seed"])
def test_what_would_judge_trials_by_other_images_or_draws_is_no_axis(folder: Path, key: str) -> None:
    values = ["white", "black"] if key == "data.ground" else [16, 32]
    with pytest.raises(ConfigError, match=f"space.{key}: trials are compared by it, so it must be the same in all"):
        loaded(folder, space={key: {"grid": values}})


def test_the_definition_tells_sweeps_apart_by_what_affects_a_result(folder: Path) -> None:
    plain = loaded(folder).definition
    assert loaded(folder, workers=3, set={"data.path": "elsewhere"}).definition == plain
    assert loaded(folder, set={"matcher.rounds": 3}).definition["recipe"] != plain["recipe"]
    assert loaded(folder, space={"matcher.lr_img": {"grid": [0.1, 0.3]}}).definition["space"] != plain["space"]
    assert loaded(folder, scheduler="asha").definition["scheduler"] != plain["scheduler"]


def test_a_loguniform_draw_is_what_a_table_shows() -> None:
    class First:
        def uniform(self, first: float, last: float) -> float:
            return math.log(0.0123456789)

    assert Values(loguniform=(1e-4, 1)).draw(First()) == 0.01235  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_that_are_shipped_can_be_meant(path: Path) -> None:
    sweep = load_sweep(path)
    assert len(sweep.trials) > 1
    assert sweep.name == path.stem


def test_what_is_known_of_a_key() -> None:
    assert field_of("matcher.lr_img") is not None
    for key, affects, section in [
        ("matcher.lr_img", True, False), ("matcher", True, True), ("data.path", False, False), ("name", False, False),
        ("networks.resnet18.lr", False, False), ("runtime.workers", False, False), ("runtime.compile", True, False),
    ]:  # fmt: skip
        found = field_of(key)
        assert found is not None
        assert (found.affects_result, found.is_section) == (affects, section)
    assert field_of("matcher.lr") is None
    assert field_of("matcher.lr_img.x") is None
    assert load_config(None).matcher.lr_img > 0


# --- bad ones, through the command -------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown part": ({"spaces": {}}, "spaces: there is no such key; did you mean 'space'?"),
    "no space": ({"space": None}, "space: is missing"),
    "an empty space": ({"space": {}}, "space: "),
    "no recipe": ({"recipe": None}, "recipe: is missing"),
    "a recipe that is not there": ({"recipe": "none.yaml"}, "none.yaml: there is no such file"),
    "an unknown key": ({"space": {"matcher.lr_imgs": {"grid": [1]}}}, "matcher.lr_imgs: there is no such key; did you"),
    "below a value": ({"space": {"seed.x": {"grid": [1]}}, "set": {"seed": 1}}, "'seed' is a value, not a section"),
    "an unknown kind": (
        {"space": {"seed": {"gird": [1]}}},
        "space.seed.gird: there is no such key; did you mean 'grid'?",
    ),
    "two kinds": ({"space": {"seed": {"grid": [1], "choice": [2]}}}, "space.seed: must say one of grid, choice"),
    "an empty grid": ({"space": {"seed": {"grid": []}}}, "space.seed: has no value to try"),
    "a value of the wrong type": (
        {"space": {"synthetic.ipc": {"grid": [2, "many"]}}},
        "synthetic.ipc: input should be",
    ),
    "a value that cannot be": (
        {"space": {"synthetic.ipc": {"grid": [2, 3]}}},
        "synthetic.ipc: 3 images a class cannot",
    ),
    "a fraction for a count": ({"space": {"probe.epochs": {"uniform": [1, 9]}}, "samples": 2}, "probe.epochs: input"),
    "a range the wrong way round": ({"space": {"seed": {"int": [9, 1]}}, "samples": 2}, "must begin below its end"),
    "a log of nothing": ({"space": {"matcher.lr_img": {"loguniform": [0, 1]}}}, "must begin above 0"),
    "a key that changes nothing": ({"space": {"runtime.address": {"grid": ["a"]}}}, "space.runtime.address: does not"),
    "the name": ({"space": {"name": {"grid": ["a"]}}}, "space.name: does not change the result"),
    "the shape of a worker": ({"space": {"runtime.cpus_per_worker": {"grid": [1]}}}, "says how the work is done"),
    "the yardstick": (
        {"space": {"evaluate.seeds": {"grid": [1, 2]}}},
        "space.evaluate.seeds: trials are compared by it",
    ),
    "a section": ({"space": {"window": {"grid": [{"policy": "all"}]}}}, "space.window: is a section"),
    "set and swept": ({"set": {"matcher.lr_img": 1}}, "space.matcher.lr_img: is set to one value too"),
    "draws of nothing": ({"samples": 4}, "samples: 4 draws of nothing"),
    "workers of a run": ({"set": {"runtime.workers": 4}}, "set.runtime.workers: a sweep says so by workers"),
    "no workers": ({"workers": 0}, "workers: input should be greater"),
    "an unknown scheduler": (
        {"scheduler": "ahsa"},
        "scheduler.name: 'ahsa' must be 'all' or 'asha'; did you mean 'asha'?",
    ),
    "asha without a segment to stop at": (
        {"scheduler": "asha", "set": {"synthetic.segments": 1}},
        "scheduler: asha can",
    ),
    "asha over segments": (
        {"scheduler": "asha", "space": {"synthetic.segments": {"grid": [1, 2]}}},
        "scheduler: asha compares trials after the same segment",
    ),
    "a name that is a path": ({"name": "../up"}, "name: "),
    "10**9 draws": (
        {"samples": 10**9, "space": {"seed": {"int": [1, 9]}}},
        "samples: input should be less than or equal",
    ),
    "more trials than 10 000": (
        {"samples": 101, "space": {"seed": {"int": [1, 9]}, "matcher.lr_img": {"grid": [0.1] * 100}}},
        "space: makes 10100 trials, and at most 10000 are run",
    ),
    "10**9 trials by grids": (
        {"space": {key: {"grid": list(range(1, 1001))} for key in ("seed", "matcher.rounds", "probe.epochs")}},
        "space: makes 1000000000 trials, and at most 10000 are run",
    ),
    "10**9 workers": ({"workers": 10**9}, "workers: input should be less than or equal to 10000"),
    "10**9 segments of grace": ({"scheduler": {"name": "asha", "grace": 10**9}}, "grace: input should be less than"),
    "a reduction by 10**9": (
        {"scheduler": {"name": "asha", "reduction": 10**9}},
        "reduction: input should be less than",
    ),
    "whole numbers that no key takes": ({"space": {"seed": {"int": [0, 2**80]}}, "samples": 2}, "less than or equal"),
    "numbers without end": (
        {"space": {"matcher.lr_img": {"uniform": [-1e308, 1e308]}}, "samples": 2},
        "is wider than any",
    ),
    "a secret that is set": ({"set": {"data.path": "s3://K:S3CR3T@b"}}, "data.path: holds credentials"),
    "a secret that is swept": ({"space": {"data.name": {"grid": ["s3://K:S3CR3T@b"]}}}, "data.name"),
    "a secret as the recipe": ({"recipe": "s3://K:S3CR3T@b"}, "recipe: holds credentials"),
    "a section and its key": (
        {"set": {"model": {"depth": 1}, "model.width": 3}},
        "set.model: speaks of what set.model.width",
    ),
    "a cursor that moves": ({"space": {"\x1b[2J": {"grid": [1]}}}, r"\x1b[2J: there is no such key"),
}


@pytest.mark.parametrize(("changes", "part"), BAD.values(), ids=BAD.keys())
def test_sweeps_that_cannot_be_meant(folder: Path, changes: dict[str, Any], part: str) -> None:
    done = CliRunner().invoke(main, ["sweep", str(written(folder, **changes)), "--run", str(folder / "run")])
    said = [line for line in done.stderr.splitlines() if line]
    assert done.exit_code == 2, done.output
    assert len(said) == 1, said
    assert said[0].startswith("dasm-ray: ")
    assert part in said[0]
    assert done.stdout == ""
    assert "S3CR3T" not in done.output
    assert "\x1b" not in done.output
    assert not (folder / "run").exists()


def test_a_sweep_of_ten_thousand_trials_is_listed_within_seconds(folder: Path) -> None:
    begun = time.monotonic()
    space = {"seed": {"grid": list(range(100))}, "matcher.rounds": {"grid": list(range(1, 101))}}
    assert len(loaded(folder, space=space).trials) == 10_000
    assert time.monotonic() - begun < 60


def test_a_sweep_file_is_read_by_the_rules_of_recipes(folder: Path) -> None:
    for text in (
        "name: a\nname: b\n",
        "name: 2001-99-99\n",
        "name: &a x\n",
        "space: {seed: {grid: [010]}}\n",
        "[" * 3000,
    ):
        (folder / "sweep.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_sweep(folder / "sweep.yaml")
        assert len(caught.value.problems) == 1


def test_all_faults_at_once(folder: Path) -> None:
    space = {"synthetic.ipc": {"grid": [3, 5, "x"]}, "window.policy": {"grid": ["al"]}}
    with pytest.raises(ConfigError) as caught:
        loaded(folder, space=space)
    assert len(caught.value.problems) == 2, "the type and the near name; combinations are looked at afterwards"


def test_one_folder_is_not_for_two_sweeps(folder: Path) -> None:
    path = str(written(folder))
    done = CliRunner().invoke(main, ["sweep", path, path, "--run", str(folder / "run")])
    assert done.exit_code == 2
    assert "is the folder of one sweep, and there are 2" in done.stderr


def test_keys_of_one_sample_are_drawn_apart(folder: Path) -> None:
    space = {"matcher.momentum": {"uniform": [0.1, 0.9]}, "experts.momentum": {"uniform": [0.1, 0.9]}}
    for trial in loaded(folder, space=space, samples=5).trials:
        assert trial.values["matcher.momentum"] != trial.values["experts.momentum"]
