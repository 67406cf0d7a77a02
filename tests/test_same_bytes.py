"""The whole command gives the same bytes for any number of workers, after losses, and after a restart."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from commands import LIMIT, SMALL, digest_in, end, finished, kill_a_worker, killed, started, wait_for

from dasm_ray.store.artifact import read_artifact
from dasm_ray.store.place import Place

COUPLED = SMALL.replace(
    "rounds: 3, networks: 4", "name: dsa, rounds: 3, networks: 2, steps: 2, inner_steps: 2"
).replace("snapshots: [[0, 3]], perturb: 0.1,", "")


@pytest.mark.parametrize(
    "options",
    [("--workers", "1", "--set", "score.shards=5"), ("--workers", "3", "--set", "score.shards=1")],
    ids=["1 worker, 5 shards", "3 workers, 1 shard"],
)
def test_same_bytes_however_the_work_is_spread(
    recipe: Path, reference: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    finished(started(recipe, tmp_path / "run", *options))
    assert digest_in(tmp_path / "run") == digest_in(reference)


def test_same_bytes_after_a_worker_is_killed(recipe: Path, reference: Path, tmp_path: Path) -> None:
    process = started(recipe, tmp_path / "run", "--workers", "2")
    kill_a_worker(process, "distil")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "lost" in err
    assert digest_in(tmp_path / "run") == digest_in(reference)
    assert "Traceback" not in out + err


def test_same_bytes_after_the_driver_is_killed(recipe: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(recipe, run, "--workers", "2")
    wait_for(process, lambda: list(run.glob("segments/segment_001_*")), "a checkpoint of the second segment")
    left_behind = killed(process)
    assert not (run / "synthetic" / "dataset.json").exists()
    out = finished(started(recipe, run, "--workers", "2"))
    end(left_behind)
    assert digest_in(run) == digest_in(reference)
    assert digest_in(run) in out


def test_a_stopped_run_says_how_to_go_on_and_does(recipe: Path, reference: Path, tmp_path: Path) -> None:
    """Stopped by Ctrl-C, taken up, stopped by SIGTERM, taken up."""
    run = tmp_path / "run"
    for how, seen in ((signal.SIGINT, "segments/*"), (signal.SIGTERM, "segments/segment_001_*")):
        process = started(recipe, run, "--workers", "2")
        wait_for(process, lambda seen=seen: list(run.glob(seen)), "a checkpoint")  # type: ignore[misc]
        os.kill(process.pid, how)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from the last checkpoint" in err
        assert "Traceback" not in err
        assert "SIGTERM" not in err, "Ray's own handler was at work"
    finished(started(recipe, run, "--workers", "2"))
    assert digest_in(run) == digest_in(reference)


def test_a_finished_run_is_told_again_without_starting_anything(recipe: Path, reference: Path) -> None:
    began = time.time()
    out = finished(started(recipe, reference))
    assert digest_in(reference) in out
    newest = max(path.stat().st_mtime for path in (reference / "segments").iterdir())
    assert newest < began, "it distilled again"


@pytest.mark.long
def test_coupled_groups_give_the_same_bytes_for_one_and_three_workers(tmp_path: Path) -> None:
    recipe = tmp_path / "coupled.yaml"
    recipe.write_text(COUPLED)
    finished(started(recipe, tmp_path / "one", "--workers", "1"))
    finished(started(recipe, tmp_path / "three", "--workers", "3"))
    assert digest_in(tmp_path / "one") == digest_in(tmp_path / "three")


# --- trajectories ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walked(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of trajectory matching with three workers."""
    run = tmp_path_factory.mktemp("walked") / "run"
    finished(started(walks, run, "--workers", "3"))
    return run


def test_trajectories_give_a_normalised_whitened_set_with_soft_labels_and_both_kinds_of_rows(walked: Path) -> None:
    artifact = read_artifact(Place(walked / "synthetic"))
    assert artifact.is_normalised
    assert artifact.whitening_matrix is not None
    assert artifact.soft_labels is not None
    assert artifact.step_size is not None
    assert artifact.soft_labels.shape == (20, 10)
    assert artifact.pixels.min() < 0
    table = json.loads((walked / "report" / "table.json").read_text())
    rows = [(row["name"], row["labels"]) for row in table["rows"]]
    assert rows[:3] == [("distilled", "soft"), ("initial", "soft"), ("random", "soft")]
    assert rows[3:6] == [("distilled", "hard"), ("initial", "hard"), ("random", "hard")]
    assert rows[-1] == ("full", "hard")


def test_trajectories_give_the_same_bytes_with_one_worker(walks: Path, walked: Path, tmp_path: Path) -> None:
    finished(started(walks, tmp_path / "run", "--workers", "1"))
    assert digest_in(tmp_path / "run") == digest_in(walked)


def test_trajectories_give_the_same_bytes_after_workers_are_killed(walks: Path, walked: Path, tmp_path: Path) -> None:
    """One while experts are trained, one while students walk."""
    process = started(walks, tmp_path / "run", "--workers", "2")
    for doing in ("expert", "walk"):
        kill_a_worker(process, doing)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert err.count("lost") >= 2
    assert digest_in(tmp_path / "run") == digest_in(walked)


def test_trajectories_give_the_same_bytes_after_drivers_are_killed(walks: Path, walked: Path, tmp_path: Path) -> None:
    """One in the expert stage, the next while students walk."""
    run, left_behind = tmp_path / "run", []
    for seen in ("experts/*/*expert_*", "segments/segment_000_*"):
        process = started(walks, run, "--workers", "2")
        wait_for(process, lambda seen=seen: list(run.glob(seen)), seen)  # type: ignore[misc]
        left_behind += killed(process)
        assert not (run / "synthetic" / "dataset.json").exists()
    finished(started(walks, run, "--workers", "2"))
    end(left_behind)
    assert digest_in(run) == digest_in(walked)


def test_some_of_the_experts_are_usable_from_a_shared_cache(walks: Path, walked: Path, tmp_path: Path) -> None:
    cache = ("--set", f"experts.cache={walked / 'experts'}", "--set", "experts.count=2")
    process = started(walks, tmp_path / "run", *cache)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "to train for" not in err, "an expert was trained again"
    assert not (tmp_path / "run" / "experts").exists()
