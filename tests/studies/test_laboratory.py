"""Studies: pairs share what they must, seeds come one after another, and nothing is computed twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from local_pool import SMALL, LocalPool, blocks_of, local_run, with_blocks

from dasm_ray.config.study import Study, load_study
from dasm_ray.errors import DataError
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.run import Run
from dasm_ray.method.sets import flattened
from dasm_ray.report.differences import Tried
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Stored
from dasm_ray.store.artifact import digest, read_artifact
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.place import Place
from dasm_ray.studies import laboratory
from dasm_ray.studies.cells import cells_place
from dasm_ray.studies.laboratory import WORK, Laboratory, rows_of
from dasm_ray.studies.rows import evaluate_rows

ARMS: dict[str, Any] = {
    "random": {"select": "random"},
    "base": {"set": {"synthetic.segments": 1, "window.policy": "all", "matcher.rounds": 4}},
    "dasm": {},
    "start": {"take": "initial"},
}


def study_of(folder: Path, **changes: Any) -> Study:
    recipe = {name: dict(section) for name, section in SMALL.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "small", **recipe}))
    file = {"name": "some", "recipe": "recipe.yaml", "arms": ARMS, "against": "base", "seeds": [0, 1]} | changes
    (folder / "study.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return load_study(folder / "study.yaml")


def opened(study: Study, folder: Path, real: RealRefs) -> Run:
    return local_run(study.config, folder / "run", real)


def done_by(run: Run) -> list[str]:
    assert isinstance(run.pool, LocalPool)
    return run.pool.done


def worked(study: Study, folder: Path, real: RealRefs) -> tuple[list[Tried], list[str]]:
    """What is known after the work, and the tasks that it took."""
    run = opened(study, folder, real)
    return Laboratory(run, study).work(), done_by(run)


@pytest.fixture(scope="module")
def finished(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tried], list[str]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, *worked(study_of(folder), folder, digits)


def test_every_arm_is_tried_at_every_seed(finished: tuple[Path, list[Tried], list[str]]) -> None:
    folder, known, _ = finished
    assert [(tried.seed, tried.arm) for tried in known] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    assert all([training["seed"] for training in tried.trainings] == [0, 1] for tried in known)
    assert all(0 <= training["test"] <= 1 for tried in known for training in tried.trainings)
    assert len({tried.steps for tried in known}) == 1, "all arms of a size are trained alike"
    by_name = {(tried.arm, tried.seed): tried for tried in known}
    assert by_name["base", 0].digest != by_name["base", 1].digest
    assert by_name["dasm", 0].folder == by_name["start", 0].folder, "the start lies in the run of its set"
    for tried in known:
        if tried.folder is not None:
            kind = "initial" if tried.arm == "start" else "synthetic"
            assert digest(read_artifact(Place(folder / "run" / tried.folder / kind))) == tried.digest
    assert by_name["base", 0].class_steps == by_name["dasm", 0].class_steps == 4 * 10
    assert by_name["dasm", 0].seconds is not None
    assert by_name["dasm", 0].seconds > 0
    assert (by_name["start", 0].seconds, by_name["random", 0].class_steps) == (None, 0)


def test_a_set_and_its_trainings_are_those_of_a_run_of_its_own(
    finished: tuple[Path, list[Tried], list[str]], digits: RealRefs, tmp_path: Path
) -> None:
    folder, known, _ = finished
    config = study_of(folder).arms[1].at(2, 1)
    evaluate = config.evaluate.model_copy(
        update={"cache": str(folder / "run" / "cells"), "rows": ("distilled", "random")}
    )
    run = local_run(config.model_copy(update={"evaluate": evaluate}), tmp_path, digits)
    experts = train_experts(run)
    made = distil(run, experts)
    (mine,) = [tried for tried in known if (tried.arm, tried.seed) == ("base", 1)]
    kept = read_artifact(Place(folder / "run" / str(mine.folder) / "synthetic"))
    assert digest(kept) == mine.digest
    assert kept.pixels.tobytes() == flattened(made.segments).pixels.tobytes()
    rows = evaluate_rows(run, {"distilled": flattened(made.segments)}, 1, experts, cells_place(run))
    assert rows[0].accuracies == [training["test"] for training in mine.trainings]
    assert not [name for name in done_by(run) if name.startswith("evaluate distilled")], "found in the shared folder"


def test_one_seed_is_done_before_the_next_and_experts_are_trained_once_a_seed(
    finished: tuple[Path, list[Tried], list[str]],
) -> None:
    _, _, tasks = finished
    evaluated = [name for name in tasks if name.startswith("evaluate ")]
    seeds = [name.split(" at seed ")[1].partition(",")[0] for name in evaluated]
    assert seeds == sorted(seeds)
    assert len(evaluated) == len(set(evaluated)) == 2 * 2 * len(ARMS)
    assert [name for name in tasks if name.startswith("expert ")] == ["expert 0", "expert 1"] * 2


def test_arms_draw_the_same_numbers_at_one_seed_and_others_at_the_next(digits: RealRefs, tmp_path: Path) -> None:
    study = study_of(tmp_path, arms={"random": {"select": "random"}, "herding": {"select": "herding"}}, against=None)
    laboratory = Laboratory(opened(study, tmp_path, digits), study)
    cells = {
        (unit.arm.name, unit.seed): laboratory._cells(unit, laboratory._material(unit))[0] for unit in laboratory._units
    }
    draws = {key: (cell.job.config.evaluation_seed, cell.label, cell.seed) for key, cell in cells.items()}
    assert draws["random", 0] == draws["herding", 0] != draws["random", 1] == draws["herding", 1]


def test_patches_are_trained_on_as_stored_images_with_either_labels(digits: RealRefs, tmp_path: Path) -> None:
    patches = {"select": "patches"}
    study = study_of(tmp_path, arms={"hard": patches, "soft": patches | {"labels": "soft"}}, against=None, seeds=[0])
    laboratory = Laboratory(opened(study, tmp_path, digits), study)
    hard, soft = (laboratory._material(unit).training_of(0) for unit in laboratory._units)
    assert isinstance(hard, Stored)
    assert isinstance(soft, Stored)
    assert (hard.labels.shape, soft.labels.shape) == ((20,), (20, 10))
    assert hard.digest != soft.digest
    assert laboratory._run.pool.fetch(hard.pixels).tobytes() == laboratory._run.pool.fetch(soft.pixels).tobytes()


def test_a_study_that_was_done_computes_nothing_and_one_that_grew_what_is_new(
    finished: tuple[Path, list[Tried], list[str]], digits: RealRefs
) -> None:
    folder, known, _ = finished
    again, tasks = worked(study_of(folder), folder, digits)
    assert (again, tasks) == (known, [])
    grown, tasks = worked(study_of(folder, seeds=[0, 1, 2], set={"evaluate.seeds": 3}), folder, digits)
    assert len(grown) == 3 * len(ARMS)
    evaluated = {name for name in tasks if name.startswith("evaluate ")}
    expected = {f"evaluate {arm} of 2 at seed {seed}, seed 2" for arm in ARMS for seed in (0, 1)}
    expected |= {f"evaluate {arm} of 2 at seed 2, seed {seed}" for arm in ARMS for seed in range(3)}
    assert evaluated == expected
    rounds = [name for name in tasks if "round" in name]
    assert rounds, "the new seed is distilled"
    sets = sorted(path.name for path in (folder / "run" / "sets").iterdir())
    assert [name.split("_")[1] for name in sets] == ["seed0"] * 2 + ["seed1"] * 2 + ["seed2"] * 2
    first = {(tried.arm, tried.seed): tried.trainings for tried in known}
    kept = {(tried.arm, tried.seed): tried.trainings[:2] for tried in grown if tried.seed < 2}
    assert kept == first


def test_a_study_that_was_stopped_goes_on_and_tells_at_once_what_is_known(digits: RealRefs, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    arms = {name: ARMS[name] for name in ("random", "base")}
    study = study_of(tmp_path, arms=arms)

    def stopping(known: list[Tried]) -> None:
        if len(known) == 2:
            raise Stop

    run = opened(study, tmp_path, digits)
    with pytest.raises(Stop):
        Laboratory(run, study, stopping).work()
    before = done_by(run)
    heard: list[int] = []
    later = opened(study, tmp_path, digits)
    known = Laboratory(later, study, lambda found: heard.append(len(found))).work()
    assert heard == [2, 3, 4], "first what was known, then each outcome"
    assert len(known) == 2 * len(arms)
    evaluated = [name for name in (*before, *done_by(later)) if name.startswith("evaluate ")]
    assert len(evaluated) == len(set(evaluated)), "no training twice"


def test_a_set_that_was_begun_goes_on_though_trainings_are_others_now(digits: RealRefs, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    arms = {"dasm": {}}
    study = study_of(tmp_path, arms=arms, against=None, seeds=[0])
    run = opened(study, tmp_path, digits)
    pool = run.pool
    assert isinstance(pool, LocalPool)
    do = pool._do

    def failing(task: Any) -> Any:
        if task.name.startswith("probe "):
            raise Stop
        return do(task)

    pool._do = failing  # type: ignore[method-assign]
    with pytest.raises(Stop):
        Laboratory(run, study).work()
    known, tasks = worked(study_of(tmp_path, arms=arms, against=None, seeds=[0], set={"evaluate.epochs": 5}),
                          tmp_path, digits)  # fmt: skip
    assert len(known) == 1
    assert not [name for name in tasks if "segment 1" in name and "round" in name], "the first segment was there"


def test_thirds_are_of_the_same_trainings(digits: RealRefs, tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("random", "base")}
    plain, _ = worked(study_of(tmp_path, arms=arms, seeds=[0]), tmp_path, digits)
    thirds, tasks = worked(study_of(tmp_path, arms=arms, seeds=[0], thirds=True), tmp_path, digits)
    assert [name for name in tasks if "round" in name] == [], "sets are as they were"
    counts = [0, 0, 0]
    for of_class in digits.counts["val"]:
        for place in range(of_class):
            counts[place * 3 // of_class] += 1
    for before, after in zip(plain, thirds, strict=True):
        for one, other in zip(before.trainings, after.trainings, strict=True):
            assert {name: other[name] for name in one} == one
            whole = sum(count * other[name] for count, name in zip(counts, ("easy", "middle", "hard"), strict=True))
            assert whole / sum(counts) == pytest.approx(one["validation"])


def test_a_third_without_an_image_has_no_accuracy(digits: RealRefs, tmp_path: Path) -> None:
    """Of classes with one validation image each."""
    real = with_blocks(digits, tmp_path / "kept", val=[block[:1] for block in blocks_of(digits, "val")])
    study = study_of(tmp_path, arms={"random": {"select": "random"}}, against=None, seeds=[0], thirds=True)
    known, _ = worked(study, tmp_path, real)
    for training in known[0].trainings:
        assert (training["easy"], training["middle"], training["hard"]) == (training["validation"], None, None)
    assert known[0].mean("hard") is None


def test_without_the_test_set_none_is_read(digits: RealRefs, tmp_path: Path) -> None:
    study = study_of(tmp_path, arms={"random": {"select": "random"}}, against=None, seeds=[0], test=False)
    blind = replace(digits, splits=("train", "val"))
    known, _ = worked(study, tmp_path, blind)
    assert [training["test"] for training in known[0].trainings] == [None, None]
    assert known[0].mean("test") is None


def test_an_arm_that_diverges_has_failed_and_the_others_go_on(digits: RealRefs, tmp_path: Path) -> None:
    arms = {"wild": {"set": {"experts.lr": 1e30}}, "random": {"select": "random"}}
    study = study_of(tmp_path, arms=arms, against="random", seeds=[0])
    known, _ = worked(study, tmp_path, digits)
    wild, random = known
    assert "experts.lr" in wild.failed
    assert not wild.trainings
    assert random.trainings
    assert worked(study, tmp_path, digits) == (known, []), "and is not tried again"


def test_experts_that_diverge_take_thirds_away_and_no_arm_but_those_that_need_them(
    digits: RealRefs, tmp_path: Path
) -> None:
    """By whose scores the validation images are cut; they are trained once, and the arms beside them stand."""
    arms = {"wild": {"set": {"experts.lr": 1e30}}, "random": {"select": "random"}, "base": ARMS["base"]}
    study = study_of(tmp_path, arms=arms, against="wild", seeds=[0], thirds=True)
    known, tasks = worked(study, tmp_path, digits)
    by_name = {tried.arm: tried for tried in known}
    assert "experts.lr" in by_name["wild"].failed
    for name in ("random", "base"):
        assert [training["hard"] for training in by_name[name].trainings] == [None, None]
        assert by_name[name].mean("validation") is not None
    assert tasks.count("pace of an expert") == 2, "those that diverge are begun once, not for every arm"
    assert worked(study, tmp_path, digits) == (known, []), "and nothing is tried again"


def test_outcomes_say_which_versions_made_them(finished: tuple[Path, list[Tried], list[str]]) -> None:
    _, known, _ = finished
    assert all(tried.versions.keys() >= {"torch", "numpy", "python"} for tried in known)


def test_seconds_are_without_what_arms_share(digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock starts when static scores and strata lie there, for the first arm as for the others."""
    there: list[int] = []

    def monotonic() -> float:
        there.append(len(list((tmp_path / "run").rglob("static_*"))) + len(list((tmp_path / "run").rglob("strata_*"))))
        return 0.0

    monkeypatch.setattr(laboratory, "time", SimpleNamespace(monotonic=monotonic))
    arms = {"one": {"set": {"matcher.strata": True, "matcher.batch_real": 4}}}
    worked(study_of(tmp_path, arms=arms, against=None, seeds=[0]), tmp_path, digits)
    assert there[0] == there[-1] == 2


def test_what_selections_do_not_need_is_not_asked_of_the_data(digits: RealRefs, tmp_path: Path) -> None:
    """Whole images have no tiles, so a class of few is enough; a set and patches are packed of several."""
    fewest = int(digits.counts["train"].min())
    real = with_blocks(digits, tmp_path / "kept", train=[block[:6] for block in blocks_of(digits, "train")])
    assert fewest > 6
    tiled = {"set": {"synthetic.factor": 2}}
    study = study_of(tmp_path, arms={"random": {"select": "random", **tiled}}, against=None, seeds=[0])
    Laboratory(opened(study, tmp_path, real), study)
    for arm in ({**tiled}, {"select": "patches", **tiled}):
        study = study_of(tmp_path, arms={"arm": arm}, against=None, seeds=[0])
        with pytest.raises(DataError, match="has 6 training images"):
            Laboratory(opened(study, tmp_path, real), study)


def test_soft_labels_are_those_of_the_experts(digits: RealRefs, tmp_path: Path) -> None:
    arms = {"hard": {"select": "random"}, "soft": {"select": "random", "labels": "soft"},
            "all": {"select": "full"}, "made": {"labels": "soft"}}  # fmt: skip
    known, tasks = worked(study_of(tmp_path, arms=arms, against="hard", seeds=[0]), tmp_path, digits)
    assert len({tried.digest for tried in known}) == 4
    assert {name for name in tasks if name.startswith("soft labels")} == {"soft labels 0", "soft labels 1"}
    by_name = {tried.arm: tried for tried in known}
    assert by_name["all"].steps != by_name["hard"].steps


def test_a_start_of_one_segment_asks_for_no_distillation(digits: RealRefs, tmp_path: Path) -> None:
    arms = {"start": {"take": "initial", "set": {"synthetic.segments": 1, "synthetic.factor": 2}}}
    known, tasks = worked(study_of(tmp_path, arms=arms, against=None, seeds=[0]), tmp_path, digits)
    assert not [name for name in tasks if "round" in name]
    made = read_artifact(Place(tmp_path / "run" / str(known[0].folder) / "initial"))
    assert made.factor == 2
    assert known[0].steps == 3 * 2 * 10 * 4 // 20


def test_random_images_of_all_seeds_are_one_where_their_draws_are_shared(digits: RealRefs, tmp_path: Path) -> None:
    arms = {"random": {"select": "random"}}
    known, tasks = worked(study_of(tmp_path, arms=arms, against=None, set={"evaluate.base_seed": 4}), tmp_path, digits)
    assert known[0].trainings == known[1].trainings
    assert len([name for name in tasks if name.startswith("evaluate ")]) == 2


def test_a_row_for_every_training(finished: tuple[Path, list[Tried], list[str]]) -> None:
    _, known, _ = finished
    rows = rows_of(known)
    assert len(rows) == 2 * len(known)
    first = rows[0]
    assert (first["arm"], first["ipc"], first["seed"], first["evaluation_seed"]) == ("random", 2, 0, 0)
    assert {(row["seed"], row["evaluation_seed"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_arms_of_one_size_are_trained_for_as_many_steps_whatever_they_decode_to(
    digits: RealRefs, tmp_path: Path
) -> None:
    arms = {"random": {"select": "random"}, "one": {}, "four": {"set": {"synthetic.factor": 2}}}
    study = study_of(tmp_path, arms=arms, against=None, seeds=[0])
    laboratory = Laboratory(opened(study, tmp_path, digits), study)
    assert [laboratory._steps(unit) for unit in laboratory._units] == [3 * 2 * 10 * 4 // 20] * 3


def test_seconds_of_a_start_that_was_killed_are_counted(digits: RealRefs, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    study = study_of(tmp_path, arms={"dasm": {}}, against=None, seeds=[0])
    run = opened(study, tmp_path, digits)
    assert isinstance(run.pool, LocalPool)
    do = run.pool._do

    def failing(task: Any) -> Any:
        if task.name.startswith("probe "):
            raise Stop
        return do(task)

    run.pool._do = failing  # type: ignore[method-assign]
    with pytest.raises(Stop):
        Laboratory(run, study).work()
    (file,) = (tmp_path / "run" / "sets").glob(f"*/{WORK}")
    kept = read_checked_json(Place(file))
    assert kept is not None
    write_checked_json(Place(file), {**kept, "seconds": 1000.0})
    known, _ = worked(study, tmp_path, digits)
    assert known[0].seconds is not None
    assert known[0].seconds > 1000
