"""What a study shows: pairs, errors and effects by hand, and the same figures in every form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dasm_ray.config.study import Study, load_study
from dasm_ray.report.differences import Tried, markdown, render, summary, tables

BASE = {"set": {"synthetic.segments": 1}}


def study_of(folder: Path, **changes: Any) -> Study:
    (folder / "recipe.yaml").write_text("name: small\nsynthetic: {ipc: 2, segments: 2}\nevaluate: {seeds: 2}\n")
    file = {"name": "some", "recipe": "recipe.yaml", "arms": {"base": BASE, "dasm": {}}, "against": "base"} | changes
    (folder / "study.yaml").write_text(yaml.safe_dump({"seeds": [0, 1, 2], **file}, sort_keys=False))
    return load_study(folder / "study.yaml")


def tried(arm: str, seed: int, *validation: float, ipc: int = 2, **more: Any) -> Tried:
    trainings = tuple({"seed": n, "validation": v, "test": v / 2, "step": 4} for n, v in enumerate(validation))
    given = {"trainings": trainings, "steps": 4, "seconds": 12.0, "class_steps": 100, "images": 900} | more
    return Tried(arm=arm, source="distilled", labels="hard", ipc=ipc, seed=seed, digest="d", folder="f", **given)


BASE_SEEN = [(0.48, 0.52), (0.58, 0.62), (0.68, 0.72)]
DASM_SEEN = [(0.50, 0.52), (0.62, 0.64), (0.71, 0.73)]
"""Their means differ by 1, 3 and 2 points."""

SEEN = [
    tried(arm, seed, *each)
    for arm, seen in (("base", BASE_SEEN), ("dasm", DASM_SEEN))
    for seed, each in enumerate(seen)
]


def test_differences_are_of_pairs_of_means_over_evaluation_seeds(tmp_path: Path) -> None:
    base, dasm = summary(study_of(tmp_path), SEEN, 900)["arms"]
    found = dasm["differences"]["validation"]
    assert found["pairs"] == 3
    assert found["mean"] == pytest.approx(0.02)
    assert found["error"] == pytest.approx(0.01 / math.sqrt(3))
    assert dasm["differences"]["test"]["mean"] == pytest.approx(0.01)
    assert dasm["differences"]["hard"] is None
    assert base["differences"] == {}
    assert base["validation"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.1),
        "by_seed": {"0": pytest.approx(0.5), "1": pytest.approx(0.6), "2": pytest.approx(0.7)},
    }
    assert base["evaluation_std"] == pytest.approx(0.04 / math.sqrt(2)), "of two that are 0.04 apart, three times"
    assert (dasm["seconds"], dasm["class_steps"], dasm["done"]) == (12.0, 100, 3)


def test_what_is_missing_or_failed_is_in_no_pair_and_is_said(tmp_path: Path) -> None:
    known = [*SEEN[:4], tried("dasm", 1, failed="it diverged; lower matcher.lr_img", trainings=())]
    found = summary(study_of(tmp_path), known, 900)
    dasm = found["arms"][1]
    assert (dasm["done"], dasm["differences"]["validation"]["pairs"]) == (1, 1)
    assert dasm["differences"]["validation"]["error"] is None
    assert found["failed"] == ["dasm of 2 at seed 1: it diverged; lower matcher.lr_img"]
    assert "5 of 6 sets are done; the rest is missing here." in found["cautions"]
    assert "failed: dasm of 2 at seed 1" in markdown(found)


def test_cautions(tmp_path: Path) -> None:
    few = summary(study_of(tmp_path), SEEN, 900)["cautions"]
    assert [text.partition(":")[0] for text in few] == ["3 distillation seeds"]
    alone = summary(study_of(tmp_path, seeds=[0]), SEEN[:1] + SEEN[3:4], 900)["cautions"]
    assert alone == ["One distillation seed: no difference has an error, and none is shown to be more than chance."]
    shared = summary(study_of(tmp_path, set={"evaluate.base_seed": 1}), SEEN, 900)["cautions"]
    assert any("evaluate.base_seed" in text for text in shared)
    longer = [*SEEN[:3], *(tried("dasm", seed, 0.5, class_steps=200) for seed in range(3))]
    unlike = summary(study_of(tmp_path), longer, 900)["cautions"]
    assert unlike[-1] == "At 2 images a class not as many class-steps as base: dasm."


def test_a_screen_shows_what_each_factor_does(tmp_path: Path) -> None:
    """Made of a linear response with slopes 0.04 and -0.02; the spread over seeds is 0, spare columns show nothing."""
    keys = ("matcher.momentum", "matcher.lr_img", "matcher.perturb", "probe.lr", "experts.lr")
    factors = {f"f{number}": {"low": {key: 0.1}, "high": {key: 0.2}} for number, key in enumerate(keys)}
    study = study_of(tmp_path, arms={}, against=None, screen={"factors": factors})
    assert study.screen is not None
    slopes = (0.04, -0.02, 0.0, 0.0, 0.0)
    known = [
        tried(name, seed, 0.5 + 0.1 * seed + sum(s * (x - 0.5) for s, x in zip(slopes, row, strict=False)))
        for seed in range(3)
        for name, row in zip(study.screen.runs, study.screen.design, strict=True)
    ]
    found = summary(study, known, 900)
    effects = {effect["factor"]: effect["validation"] for effect in found["effects"]}
    assert [effects[name]["mean"] for name in factors] == pytest.approx(list(slopes), abs=1e-12)
    assert [effects[name]["error"] for name in factors] == pytest.approx([0.0] * 5, abs=1e-12)
    assert found["effects"][0]["spare"]["validation"] == pytest.approx(0.0, abs=1e-12)
    assert "| f1 | 2 | -2.0 ± 0.0 | -1.0 ± 0.0 | 0.0 | 0.0 |" in markdown(found)
    assert all(arm["differences"] == {} for arm in found["arms"])
    half = summary(study, known[:5], 900)
    assert half["effects"] == [], "no effect before all runs of a seed are done"
    assert not [text for text in half["cautions"] if "failed" in text]


def test_runs_that_failed_take_effects_away_which_is_said(tmp_path: Path) -> None:
    factors = {name: {"low": {f"{name}.lr": 0.1}, "high": {f"{name}.lr": 0.2}} for name in ("probe", "experts")}
    study = study_of(tmp_path, arms={}, against=None, screen={"design": "full", "factors": factors})
    assert study.screen is not None

    def of(lost: set[tuple[str, int]]) -> Any:
        known = [
            tried(name, seed, 0.5, **({"failed": "it diverged", "trainings": ()} if (name, seed) in lost else {}))
            for seed in range(3)
            for name in study.screen.runs  # type: ignore[union-attr]
        ]
        return summary(study, known, 900)

    whole, some, none = of(set()), of({("screen_02", 1)}), of({("screen_02", seed) for seed in range(3)})
    assert not [text for text in whole["cautions"] if "failed" in text]
    assert some["effects"][0]["validation"]["pairs"] == 2
    said = "At 2 images a class effects are of 2 seeds alone, since screen_02 failed, and an effect needs every run"
    assert f"{said} of the design." in some["cautions"]
    assert none["effects"] == []
    assert any(text.startswith("At 2 images a class there are no effects, since") for text in none["cautions"])


def test_sets_of_several_versions_are_said(tmp_path: Path) -> None:
    made = [tried("base", seed, 0.5, versions={"torch": "2.13.0", "ray": "2.60.0"}) for seed in range(3)]
    later = [tried("dasm", seed, 0.6, versions={"torch": "2.14.1", "ray": "2.60.0"}) for seed in range(3)]
    unknown = [tried("dasm", seed, 0.6) for seed in range(3)]
    said = "Made by torch 2.13.0 and 2.14.1: pairs across versions may differ by more than their arms."
    assert said in summary(study_of(tmp_path), made + later, 900)["cautions"]
    assert not [text for text in summary(study_of(tmp_path), made + unknown, 900)["cautions"] if "Made by" in text]


def test_leave_one_out_counts_from_all(tmp_path: Path) -> None:
    factors = {"a": {"high": {"matcher.momentum": 0.2}}, "b": {"high": {"matcher.perturb": 0.2}}}
    screen = {"design": "leave_one_out", "factors": factors}
    study = study_of(tmp_path, arms={}, against="screen_all", screen=screen)
    levels = {"screen_all": (0.6, 0.64), "without_a": (0.5, 0.5), "without_b": (0.61, 0.65)}
    known = [tried(name, seed, value) for name, values in levels.items() for seed, value in enumerate(values)]
    effects = summary(study, known, 900)["effects"]
    assert [effect["validation"]["mean"] for effect in effects] == pytest.approx([0.12, -0.01])
    assert effects[0]["validation"]["error"] == pytest.approx(0.02)
    assert effects[0]["spare"]["validation"] is None


def test_every_form_shows_the_same_cells(tmp_path: Path) -> None:
    found = summary(study_of(tmp_path), SEEN, 900)
    arms, costs = tables(found).values()
    assert arms == [
        ["arm", "seeds", "validation", "test", "Δ validation", "Δ test"],
        ["base", "3/3", "60.0 ± 10.0", "30.0 ± 5.0", "–", "–"],
        ["dasm", "3/3", "62.0 ± 10.5", "31.0 ± 5.3", "+2.0 ± 0.6 **", "+1.0 ± 0.3 **"],
    ]
    assert costs[1:] == [["base", "12", "100", "900", "4"], ["dasm", "12", "100", "900", "4"]]
    text = markdown(found)
    assert "| dasm | 3/3 | 62.0 ± 10.5 | 31.0 ± 5.3 | +2.0 ± 0.6 \\*\\* | +1.0 ± 0.3 \\*\\* |" in text
    assert text.startswith("# some: digits, 3 distillation × 2 evaluation seeds; Δ: less base\n")
    assert text.endswith("\n")
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render(found))
    drawn = capture.get()
    assert max(map(len, drawn.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in drawn.splitlines()]
    assert "dasm 3/3 62.0 ± 10.5 31.0 ± 5.3 +2.0 ± 0.6 ** +1.0 ± 0.3 **" in rows


def test_thirds_have_a_table_of_their_own(tmp_path: Path) -> None:
    third = {"easy": 0.9, "middle": 0.6, "hard": 0.3}
    known = [
        tried(arm, seed, trainings=({"seed": 0, "validation": 0.6, "test": None, "step": 1, **third},))
        for arm in ("base", "dasm")
        for seed in range(3)
    ]
    found = tables(summary(study_of(tmp_path, test=False), known, 900))
    assert list(found) == [
        "2 images a class",
        "2 images a class, validation images by difficulty",
        "2 images a class, cost",
    ]
    assert found["2 images a class"][0] == ["arm", "seeds", "validation", "Δ validation"]
    assert found["2 images a class, validation images by difficulty"][1][1:4] == [
        "90.0 ± 0.0",
        "60.0 ± 0.0",
        "30.0 ± 0.0",
    ]
