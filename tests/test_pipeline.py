"""The whole command, as users run it: same bytes for any number of workers, after losses, and after a restart."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from click.testing import CliRunner
from commands import LIMIT, SMALL, digest_in, end, finished, killed, wait_for
from local_pool import again as anew
from local_pool import local_run, small

from dasm_ray import pipeline
from dasm_ray.cli import main
from dasm_ray.config.digests import config_digest, digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import load_config, parse_config
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.errors import ArtifactError, ConfigError, RunDirError
from dasm_ray.method.estimate import Stage, estimate
from dasm_ray.method.run import connected, opened
from dasm_ray.method.sets import selected_set
from dasm_ray.report.table import Row
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.events import read_events
from dasm_ray.store.findings import STUDY_COLUMNS, read_trainings
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir, obeyed
from dasm_ray.store.trajectories import open_trajectory
from dasm_ray.studies import finished as again


def test_a_page_is_drawn_with_the_workers_that_did_it(reference: Path) -> None:
    page = (reference / "report" / "index.html").read_text()
    assert digest_in(reference) in page
    tasks = [event for event in read_events(Place(reference)) if event["kind"] == "task"]
    did_it = {task["worker"] for task in tasks}
    assert did_it
    assert did_it <= {1, 2}, "on a busy machine the first may have done all before the second is there"
    assert {number for number in (1, 2) if f"<td>worker {number}</td>" in page} >= did_it


def test_a_comparison_under_other_recipes_of_its_networks_is_another() -> None:
    """Their recipes (`networks`) are no part of how a set is made, and all of how these rows came about."""
    plan = pipeline.Plan((2,), ("random",), ("hard",), ("mlp",))

    def settings(**sections: Any) -> str:
        return pipeline._settings_of([parse_config({"name": "a", **sections})], plan)

    assert settings() == settings(networks={"lenet": {"epochs": 5}}), "which is not asked for"
    assert len({settings(), settings(networks={"mlp": {"epochs": 5}}), settings(networks={"mlp": {"epochs": 50}})}) == 3


def test_artifact_and_table_are_whole(reference: Path) -> None:
    artifact = read_artifact(Place(reference / "synthetic"))
    assert artifact.pixels.shape == (20, 1, 8, 8)
    assert artifact.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert artifact.segments.tolist() == [0, 1] * 10
    done = subprocess.run(
        [sys.executable, "-m", "dasm_ray.cli", "evaluate", str(reference), "--set", "evaluate.seeds=2",
         "--set", "evaluate.rows=[distilled, initial, random, herding, k_center, full]"],
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (each for each in reference.glob("report/table_*.json") if "full" in each.read_text())
    table = json.loads(file.read_text())
    names = [row["name"] for row in table["rows"]]
    assert names[:3] == ["distilled", "initial", "random"]
    assert names[3].startswith("selection: ")
    assert names[4] == "full"
    assert all(len(row["accuracies"]) == 2 for row in table["rows"])
    assert table["digest"] == digest_in(reference)
    assert file.with_suffix(".md").read_text().count("±") >= 5
    own = json.loads((reference / "report" / "table.json").read_text())
    assert [(row["name"], len(row["accuracies"])) for row in own["rows"]] == [("distilled", 1), ("random", 1)]


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accuracy", "code"), [(None, 0), (1.0, 1)])
def test_a_finished_run_is_held_against_what_its_recipe_says(
    reference: Path, tmp_path: Path, accuracy: float | None, code: int
) -> None:
    (own,) = (
        row for row in json.loads((reference / "report/table.json").read_text())["rows"] if row["name"] == "distilled"
    )
    (tmp_path / "small.yaml").write_text(f"# Expected: {100 * (accuracy or own['mean']):.1f} ± 0.1, nothing\n{SMALL}")
    call = ["reproduce", str(tmp_path / "small.yaml"), "--run", str(reference)]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == code, done.output
    assert ("within" if code == 0 else "outside") in done.stdout
    assert ("dasm-ray: small: the run is outside" in done.stderr) == (code == 1)
    changed = CliRunner().invoke(main, [*call, "--set", "matcher.rounds=9"])
    assert changed.exit_code == 2
    assert "matcher.rounds: is another recipe" in changed.stderr


@pytest.mark.long
@pytest.mark.parametrize("method", ["random", "herding", "forgetting", "ccs", "window", "patches"])
def test_a_selection_is_an_artifact_like_any_other(
    recipe: Path, tmp_path: Path, ray_session: object, method: str
) -> None:
    config = load_config(recipe, [f"experts.cache={tmp_path.parent / 'shared'}"])
    place, stamp = pipeline.select(config, method, str(tmp_path / "run"))
    found = read_artifact(place)
    assert digest(found) == stamp
    assert found.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert found.factor == (config.synthetic.factor if method == "patches" else 1)
    assert len({image.tobytes() for image in found.pixels}) == 20
    if method in ("random", "ccs"):  # those that draw
        assert pipeline.select(config, method, str(tmp_path / "again"))[1] == stamp


def test_evaluating_a_run_again_with_more_seeds_leaves_the_set_alone(reference: Path) -> None:
    before = digest_in(reference)
    done = subprocess.run(
        [sys.executable, "-m", "dasm_ray.cli", "evaluate", str(reference), "--set", "evaluate.seeds=3",
         "--set", "evaluate.rows=[distilled, random]"],
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = [json.loads(file.read_text()) for file in reference.glob("report/table*.json")]
    assert [3, 3] in [[len(row["accuracies"]) for row in table["rows"]] for table in tables]
    assert digest_in(reference) == before


# --- comparisons -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two recipes that differ in the matcher and the factor."""
    folder = tmp_path_factory.mktemp("recipes")
    by_features = SMALL.replace("name: small", "name: features").replace("factor: 2", "factor: 1")
    by_features = by_features.replace("snapshots: [[0, 3]], perturb: 0.1,", "")
    (folder / "idc.yaml").write_text(SMALL)
    (folder / "dm.yaml").write_text(by_features.replace("rounds: 3,", "name: dm, rounds: 3,"))
    return [str(folder / "idc.yaml"), str(folder / "dm.yaml")]


@pytest.mark.long
def test_a_comparison_that_was_killed_computes_only_what_is_missing(recipes: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--ipc", "1,2", "--labels", "hard,soft", "--network", "convnet,mlp", "--run", str(run)]
    options += ["--select", ",".join(["random", *SELECTIONS])]
    options += ["--set", "evaluate.rows=[distilled, random, full]"]
    call = [sys.executable, "-m", "dasm_ray.cli", "compare", *recipes, *options, "--set", "evaluate.seeds=2"]

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    process = begun()
    wait_for(process, lambda: len(list(run.glob("cells/*.json"))) >= 5, "some cells")
    left_behind = killed(process)
    kept = {path: path.stat().st_mtime_ns for path in run.glob("cells/*.json")}
    sets = {path: path.stat().st_mtime_ns for path in run.glob("sets/*/synthetic/dataset.json")}
    assert len(sets) == 4
    out = finished(begun())
    end(left_behind)
    assert all(path.stat().st_mtime_ns == then for path, then in (kept | sets).items()), "something was made again"

    table = json.loads((run / "table.json").read_text())
    rows = {(row["network"], row["ipc"], row["labels"], row["name"]): row for row in table["rows"]}
    names = {"small", "features", "random", *SELECTIONS}
    expected = {(n, i, k, s) for n in ("convnet", "mlp") for i in (1, 2) for k in ("hard", "soft") for s in names}
    assert set(rows) == expected | {("convnet", None, "hard", "full"), ("mlp", None, "hard", "full")}
    assert all(len(row["accuracies"]) == 2 for row in rows.values())
    for (network, ipc, labels, name), row in rows.items():
        if name not in ("random", "full"):
            assert row["ior"] == pytest.approx(row["mean"] - rows[network, ipc, labels, "random"]["mean"])
    lines = read_trainings(Place(run / "table.parquet"))
    assert len(lines) == 2 * len(rows)
    cells = len(list(run.glob("cells/*.json")))
    assert cells <= len(lines), "equal sets share a cell"
    assert {line["steps"] for line in lines if line["ipc"] == 2} == {16}, "as many for every set of a size"
    by_set = {(line["set"], line["labels"]): line["bytes"] for line in lines if line["ipc"] == 1}
    assert by_set["random", "hard"] == 10 * 64 + 10
    assert by_set["small", "soft"] == 10 * 64 * 4 + 10 * 10 * 4
    assert "convnet, 1 image a class" in out
    assert (run / "table.md").read_text().count("±") >= len(rows)


@pytest.mark.long
def test_a_study_that_was_killed_computes_only_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "study.yaml").write_text("""
name: some
recipe: small.yaml
set: {evaluate.seeds: 2}
against: base
arms:
  random: {select: random}
  herding: {select: herding}
  base: {set: {synthetic.segments: 1, window.policy: all, matcher.probe_share: 0.0}}
  dasm: {}
seeds: [0, 1]
thirds: true
""")
    run = tmp_path / "run"
    call = [sys.executable, "-m", "dasm_ray.cli", "study", str(tmp_path / "study.yaml"), "--run", str(run)]
    call += ["--set", "runtime.page=true"]

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    process = begun()
    wait_for(process, lambda: len(list(run.glob("outcomes/*.json"))) >= 5, "some outcomes")
    left_behind = killed(process)
    kept = {
        path: path.stat().st_mtime_ns for pattern in ("outcomes/*.json", "cells/*.json") for path in run.glob(pattern)
    }
    sets = {path: path.stat().st_mtime_ns for path in run.glob("sets/*/synthetic/dataset.json")}
    assert len(sets) >= 2, "both sets of the first seed"
    assert "rest is missing" in (run / "study.md").read_text()
    out = finished(begun())
    end(left_behind)
    assert all(path.stat().st_mtime_ns == then for path, then in (kept | sets).items()), "something was made again"
    assert f"study: {run}" in out
    assert "rest is missing" not in (run / "study.md").read_text()

    results = json.loads((run / "results.json").read_text())
    assert {arm["arm"]: arm["done"] for arm in results["arms"]} == dict.fromkeys(
        ("random", "herding", "base", "dasm"), 2
    )
    lines = read_trainings(Place(run / "trainings.parquet"), STUDY_COLUMNS)
    assert len(lines) == 4 * 2 * 2
    by_arm = {name: [line for line in lines if line["arm"] == name] for name in ("base", "dasm")}
    for measure in ("validation", "test", "easy", "middle", "hard"):
        means = {
            name: [sum(line[measure] for line in mine if line["seed"] == seed) / 2 for seed in (0, 1)]
            for name, mine in by_arm.items()
        }
        differences = [one - other for one, other in zip(means["dasm"], means["base"], strict=True)]
        found = next(arm for arm in results["arms"] if arm["arm"] == "dasm")["differences"][measure]
        assert found["mean"] == pytest.approx(sum(differences) / 2, abs=1e-12)
        assert found["error"] == pytest.approx(abs(differences[0] - differences[1]) / 2, abs=1e-12)
    made = {line["folder"]: line["digest"] for line in by_arm["base"]}
    assert len(made) == 2
    assert all(digest(read_artifact(Place(run / folder / "synthetic"))) == stamp for folder, stamp in made.items())
    page = (run / "report" / "index.html").read_text()
    assert "Points over base at 2 images a class" in page
    assert all(f"{arm} of 2" in page for arm in ("base", "dasm"))


@pytest.mark.long
def test_relabelling_changes_labels_alone(reference: Path, tmp_path: Path, ray_session: object) -> None:
    place, stamp = pipeline.relabel(str(reference), str(tmp_path / "soft"))
    before, after = read_artifact(Place(reference / "synthetic")), read_artifact(place)
    assert digest(after) == stamp
    assert after.pixels.tobytes() == before.pixels.tobytes()
    assert after.soft_labels is not None
    assert after.soft_labels.shape == (20, 10)
    assert len({tuple(logits) for logits in after.soft_labels.tolist()}) == 20
    result = pipeline.evaluate(str(place), ["evaluate.rows=[distilled, random]"])
    assert {(row.name, row.labels) for row in result.rows} >= {("distilled", "soft"), ("distilled", "hard")}


# --- what a run will take ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_an_estimate_counts_what_a_run_then_has(recipe: Path, reference: Path, ray_session: object) -> None:
    config = load_config(recipe)
    with connected(config, Place(reference)) as here:
        found = estimate(here)
    parallel = [("experts", 2), ("probes", 2), ("distil", 3), ("evaluate", 2)]
    assert [(stage.name, stage.tasks) for stage in found.stages] == parallel
    assert all(stage.seconds > 0 for stage in found.stages)
    experts = [open_trajectory(Place(file.parent), number, file.parent.name)
               for number, file in enumerate(sorted(reference.glob("experts/*/expert_*")))]  # fmt: skip
    snapshots = sum(expert.arrays()["snapshots"].nbytes for expert in experts if expert)
    stored = 20 * 64 * 4
    assert found.disk == snapshots + 4 * stored
    assert found.object_store == 2 * stored
    assert found.sorted_images == 1797 * 64
    assert found.moved_each_round == 4 * 64 * 8 * 2, "a group of 4 classes with one image each, there and back"
    assert 1e8 < found.worker_memory < 1e11
    assert found.useful_workers == 3
    three = Stage("some", 3, 30.0)
    assert [three.wall(workers) for workers in (1, 2, 3, 9)] == [30, 20, 10, 10]


@pytest.mark.long
def test_the_estimate_of_trajectories_counts_lanes(walks: Path, ray_session: object) -> None:
    lines = pipeline.estimate(load_config(walks))
    assert any("distil" in line and "3 parallel tasks" in line for line in lines)
    assert any(line.startswith("moved by a round's task") for line in lines)


# --- uses ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_set_as_the_memory_of_class_incremental_learning(reference: Path, ray_session: object) -> None:
    changes = ["evaluate.seeds=2"]
    of_the_table = set(reference.glob("report/cells/*"))
    found = pipeline.learn_incrementally(str(reference), 2, changes)
    assert set(found) == {(name, part) for name in ("distilled", "random") for part in ("5 classes", "10 classes")}
    assert all(len(accuracies) == 2 for accuracies in found.values())
    cells = {path: path.stat().st_mtime_ns for path in reference.glob("report/cells/*")}
    assert len(cells.keys() - of_the_table) == 8
    assert pipeline.learn_incrementally(str(reference), 2, changes) == found
    assert {path: path.stat().st_mtime_ns for path in reference.glob("report/cells/*")} == cells


@pytest.mark.long
def test_an_audit_is_kept_under_its_settings_and_its_networks_are_trained_once(
    reference: Path, ray_session: object
) -> None:
    found = pipeline.audit(str(reference), 2)
    own = found["sets"]["distilled"]
    assert own["images"] == 20 * 4, "training images, four of each that is stored"
    assert own["started from"]["images"] == 80
    kept = json.loads((reference / "report" / "audit.json").read_text())
    assert kept["sets"] == found["sets"]
    assert "Who took part" in (reference / "report" / "audit.md").read_text()
    networks = {path: path.stat().st_mtime_ns for path in reference.glob("report/cells/*.safetensors")}
    assert len(networks) == 1 + 2 + 1
    again = pipeline.audit(str(reference), 3)
    assert len(list(reference.glob("report/audit_*.json"))) == 1, "beside the first one"
    assert again["sets"]["full"]["right"] == found["sets"]["full"]["right"]
    assert networks.items() <= {path: path.stat().st_mtime_ns for path in reference.glob("report/cells/*")}.items()
    with pytest.raises(ConfigError, match="--networks 1"):
        pipeline.audit(str(reference), 1)


@pytest.mark.long
def test_networks_are_ranked_by_the_set_and_by_the_full_data(reference: Path, ray_session: object) -> None:
    models = pipeline.convnets((4, 16), (1, 2), ("instance",))
    found, agreement = pipeline.rank(str(reference / "synthetic"), models)
    names = {f"width {width}, depth {depth}, instance" for width in (4, 16) for depth in (1, 2)}
    assert set(found) == {(row, name) for row in ("distilled", "random", "full") for name in names}
    assert all(-1 <= value <= 1 or math.isnan(value) for value in agreement.values())


@pytest.fixture(autouse=True)
def _no_cluster_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_data_of_a_configuration_are_described_without_ray(recipe: Path, tmp_path: Path) -> None:
    lines = pipeline.describe_data(load_config(recipe), str(tmp_path / "sheet.png"))
    assert lines[0] == "data digits: built in"
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"


# --- what an artifact is obeyed in ----------------------------------------------------------------------------------

THEIRS: dict[str, Any] = {
    "name": "theirs",
    "seed": 3,
    "data": {"name": "parquet", "path": "s3://theirs/images", "download": True},
    "model": {"width": 8, "depth": 1},
    "synthetic": {"ipc": 1, "segments": 1},
    "experts": {"cache": "s3://theirs/experts"},
    "runtime": {"address": "theirs.example:6379", "workers": 999, "cpus_per_worker": 2},
}
"""A configuration as it may stand in the file of a stranger."""


class Reached(Exception):
    """Carries the configuration that a command would have started Ray with."""


@pytest.fixture
def caught_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(config: RunConfig, place: Place, *_: Any, **__: Any) -> NoReturn:
        raise Reached(config, place)

    monkeypatch.setattr(pipeline, "connected", connected)
    monkeypatch.setattr(again, "connected", connected)


def of_a_stranger(folder: Path, **changes: Any) -> Path:
    """An artifact, written as versions before wrote it: with all of the configuration in it."""
    made = Artifact(
        pixels=np.full((10, 1, 8, 8), 0.5, np.float32),
        labels=np.arange(10, dtype=np.int64),
        segments=np.zeros(10, np.int32),
        soft_labels=None,
        class_names=tuple("0123456789"),
        mean=(0.3,),
        std=(0.4,),
        factor=1,
        step_size=None,
        recipe={"model": {"width": 8}, "training": {}},
        provenance={"config": {**THEIRS, **changes}},
    )
    write_artifact(Place(folder), made)
    return folder


COMMANDS: dict[str, Callable[[Path, list[str]], object]] = {
    "evaluate": lambda path, changes: pipeline.evaluate(str(path), changes),
    "incremental": lambda path, changes: pipeline.learn_incrementally(str(path), 2, changes),
    "audit": lambda path, changes: pipeline.audit(str(path), 2, changes),
    "rank": lambda path, changes: pipeline.rank(str(path), [], changes),
    "relabel": lambda path, changes: pipeline.relabel(
        str(path),
        str(path.parent / "to"),
        [*changes, *["experts.cache=mine"] * (not (path.parent / "run.json").exists())],
    ),
}


def reached(name: str, path: Path, *changes: str) -> RunConfig:
    with pytest.raises(Reached) as caught:
        COMMANDS[name](path, list(changes))
    found: RunConfig = caught.value.args[0]
    return found


@pytest.mark.usefixtures("caught_at_the_start")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_file_of_a_stranger_chooses_neither_host_nor_place(tmp_path: Path, name: str) -> None:
    found = reached(name, of_a_stranger(tmp_path / "set"), "data.path=mine")
    assert (found.runtime.address, found.runtime.workers, found.name) == (None, None, "run")
    assert (found.data.path, found.data.download) == ("mine", False)
    assert found.experts.cache == ("mine" if name == "relabel" else None)
    assert (found.seed, found.model.width, found.runtime.cpus_per_worker) == (3, 8, 2), (
        "what affects the result is obeyed"
    )


@pytest.mark.usefixtures("caught_at_the_start")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("data", ["parquet", "folder", "tiny_imagenet"])
def test_a_set_that_lies_somewhere_is_asked_for(tmp_path: Path, name: str, data: str) -> None:
    path = of_a_stranger(tmp_path / "set", data={"name": data, "path": "s3://theirs/images"})
    with pytest.raises(
        ConfigError, match=r"data.path: .*set does not say where its images lie; name them by --set data.path="
    ):
        COMMANDS[name](path, [])
    assert reached(name, of_a_stranger(tmp_path / "digits", data={"name": "digits"})).data.name == "digits"


@pytest.mark.usefixtures("caught_at_the_start")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_knows_where_its_own_images_lie_but_not_whom_to_call(tmp_path: Path, name: str) -> None:
    mine = {
        **THEIRS,
        "data": {"name": "parquet", "path": "/mine"},
        "experts": {"cache": "/mine/experts"},
        "score": {"shards": 3},
    }
    RunDir.open(tmp_path / "run", parse_config(mine)).close()
    found = reached(name, of_a_stranger(tmp_path / "run" / "herding"))
    assert (found.data.path, found.experts.cache, found.score.shards) == ("/mine", "/mine/experts", 3)
    assert (found.runtime.address, found.runtime.workers) == (None, 999)
    assert reached(name, tmp_path / "run" / "herding", "runtime.address=head:1").runtime.address == "head:1"


@pytest.mark.usefixtures("caught_at_the_start")
def test_a_run_that_is_evaluated_anew_calls_nobody_that_its_file_names(tmp_path: Path) -> None:
    """Nor does it fetch, or let the file name a folder that is served, cleared or written to as a cache."""
    theirs = {**THEIRS, "evaluate": {"cache": "http://theirs/cells"}}
    theirs["data"] = {**THEIRS["data"], "cache": str(tmp_path / "mine"), "cache_gb": 0.001}
    RunDir.open(tmp_path / "run", parse_config(theirs)).close()
    of_a_stranger(tmp_path / "run" / "synthetic")
    with pytest.raises(ConfigError, match=r"lie in s3://theirs/images, with another service .* name them by --set"):
        COMMANDS["evaluate"](tmp_path / "run", [])
    found = reached("evaluate", tmp_path / "run", "data.path=s3://theirs/images")
    assert (found.runtime.address, found.data.path) == (None, "s3://theirs/images")
    assert (found.data.download, found.data.cache, found.data.cache_gb) == (False, None, None)
    assert (found.experts.cache, found.evaluate.cache) == (None, None)


def test_what_lies_with_the_service_that_keeps_the_run_is_known_to_it() -> None:
    config = parse_config({**THEIRS, "evaluate": {"cache": "/mine/cells"}})
    assert obeyed(config, Place("s3://theirs/runs/one")).data.path == "s3://theirs/images"
    assert obeyed(config, Place("s3://theirs/runs/one")).experts.cache == "s3://theirs/experts"
    assert obeyed(config, Place("s3://others/runs/one")).data.path is None
    assert obeyed(config, Place("s3://others/runs/one")).evaluate.cache == "/mine/cells"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "does not say which configuration made it"),
        ([1], "does not say which configuration made it"),
        ("x", "does not say which configuration made it"),
        ({"seed": "x"}, "was made by another version of dasm_ray: seed: "),
        ({"sed": 1}, "was made by another version of dasm_ray: sed: there is no such key"),
        ({"data": {"name": "s3://K:S@b"}}, "data.name: holds credentials"),
        ({"synthetic": {"ipc": 10**30}}, "synthetic.ipc: input should be less"),
    ],
)
@pytest.mark.usefixtures("caught_at_the_start")
def test_an_artifact_whose_configuration_cannot_be_meant(tmp_path: Path, config: Any, message: str) -> None:
    place = of_a_stranger(tmp_path / "set")
    described = json.loads((place / "dataset.json").read_text())
    described["provenance"]["config"] = config
    (place / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(ArtifactError, match=message):
        pipeline.evaluate(str(place))


def test_a_set_that_goes_out_does_not_say_where_and_how_it_was_made() -> None:
    config = parse_config(THEIRS | {"score": {"shards": 7}, "networks": {"mlp": {"lr": 1}}})
    real = SimpleNamespace(class_names=("a",), mean=(0.5,), std=(0.5,), shape=(1, 8, 8), digest="0" * 16, found={})
    session = SimpleNamespace(device="cpu")
    run: Any = SimpleNamespace(config=config, real=real, session=session, whitening=None, classes=1)
    artifact = selected_set(run, np.zeros((1, 1, 8, 8), np.float32))
    assert "theirs" not in json.dumps(artifact.provenance)
    assert artifact.provenance["config"] == result_keys(config)
    assert result_keys(parse_config(artifact.provenance["config"])) == result_keys(config)
    assert artifact.provenance["config_digest"] == digest_of(result_keys(config))


# --- tables and their settings ---------------------------------------------------------------------------------------


def result_in(place: Path, config: RunConfig) -> pipeline.Result | None:
    with RunDir.open(place, config) as record:
        return pipeline._finished(record)


def test_each_table_belongs_to_its_settings_and_none_overwrites_another(digits: RealRefs, tmp_path: Path) -> None:
    own = small(evaluate={"rows": ["distilled", "initial", "random"]})
    few = small(evaluate={"rows": ["distilled", "random"], "seeds": 1})
    RunDir.open(tmp_path, own).close()
    run = local_run(own, tmp_path, digits)
    assert result_in(tmp_path, own) is None
    made = pipeline._distilled(run)
    written = (tmp_path / "report" / "table.md").read_bytes()
    smaller = pipeline._reported(anew(run, few), made.rows[:1], made.digest, config_digest(own))
    assert (tmp_path / "report" / "table.md").read_bytes() == written
    assert len(list(tmp_path.glob("report/table_*.json"))) == len(list(tmp_path.glob("report/table_*.md"))) == 1
    told = result_in(tmp_path, own)
    assert told is not None
    assert ([row.name for row in told.rows], told.digest, told.tested) == (
        ["distilled", "initial", "random"],
        made.digest,
        digits.counts["test"].sum(),
    )
    assert [row.accuracies for row in told.rows] == [row.accuracies for row in made.rows]
    assert smaller.rows == made.rows[:1]
    with pytest.raises(RunDirError, match="belongs to another configuration"), opened(few, tmp_path):
        pass


def test_a_table_of_other_settings_written_first_is_not_taken_for_the_run_s_own(
    digits: RealRefs, tmp_path: Path
) -> None:
    own, few = small(evaluate={"rows": ["distilled", "random"]}), small(evaluate={"seeds": 1})
    RunDir.open(tmp_path, own).close()
    run = local_run(own, tmp_path, digits)
    row = [Row("distilled", [0.5], [0.5])]
    pipeline._reported(anew(run, few), row, "digest", config_digest(own))
    assert not (tmp_path / "report" / "table.json").exists()
    assert result_in(tmp_path, own) is None


@pytest.mark.parametrize("how", ["a figure changed", "of an older version"])
def test_a_table_that_cannot_be_trusted_is_computed_anew(digits: RealRefs, tmp_path: Path, how: str) -> None:
    own = small(evaluate={"rows": ["distilled", "random"]})
    RunDir.open(tmp_path, own).close()
    made = pipeline._distilled(local_run(own, tmp_path, digits))
    file = tmp_path / "report" / "table.json"
    tree = json.loads(file.read_text())
    whole = file.read_bytes()
    tree["rows"][0]["accuracies"][0] = 0.99
    if how == "of an older version":
        tree = {name: tree[name] for name in ("title", "rows", "digest")}
    file.write_text(json.dumps(tree))
    assert result_in(tmp_path, own) is None
    computed = pipeline._distilled(local_run(own, tmp_path, digits))
    assert [row.accuracies for row in computed.rows] == [row.accuracies for row in made.rows]
    assert file.read_bytes() == whole


def spoilt(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.long
def test_a_finished_set_that_is_damaged_is_written_again_from_its_segments(
    recipe: Path, ray_session: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = load_config(recipe), tmp_path / "run"
    made = pipeline.distill(config, str(run))
    whole = {file: file.read_bytes() for file in (run / "synthetic").rglob("*") if file.is_file()}
    segments = {file: file.stat().st_mtime_ns for file in (run / "segments").iterdir()}
    (images,) = (file for file in whole if file.suffix == ".parquet")
    for damage in (
        lambda: spoilt(images),
        lambda: images.unlink(),
        lambda: (run / "synthetic" / "dataset.json").write_text("{}"),
    ):
        damage()
        capsys.readouterr()
        assert pipeline.distill(config, str(run)).digest == made.digest
        assert "it is written again from its segments" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in (run / "synthetic").rglob("*") if file.is_file()} == whole
    assert {file: file.stat().st_mtime_ns for file in (run / "segments").iterdir()} == segments


def test_rows_of_an_older_table_are_read() -> None:
    old = {"name": "full", "accuracies": [0.5], "validation": [0.4], "labels": "hard"}
    assert pipeline.from_json({"rows": [old]}) == [Row("full", [0.5], [0.4])]
