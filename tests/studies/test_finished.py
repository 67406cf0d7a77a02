"""A finished set is opened with the images that it was made of, or not at all, and nothing is distilled for it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import SESSION, WALKS, LocalPool, local_run, small

from dasm_ray import pipeline
from dasm_ray.config.digests import result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.errors import ArtifactError
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Images, flattened, selected_set
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir
from dasm_ray.studies import finished
from dasm_ray.studies.finished import Finished, opened_again, sets_again

IMAGES = np.full((20, 1, 8, 8), 0.4, np.float32)


@pytest.fixture
def opened(digits: RealRefs, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Runs are opened in this process; the configurations that were asked for."""
    asked = []

    @contextlib.contextmanager
    def connected(config: RunConfig, place: Place, whitening: Any = None) -> Iterator[Run]:
        asked.append(config)
        yield replace(local_run(config, Path(str(place)), digits), place=place)

    monkeypatch.setattr(finished, "connected", connected)
    return asked


def made(digits: RealRefs, folder: Path) -> Artifact:
    kept = selected_set(local_run(small(), folder, digits), IMAGES)
    return replace(kept, provenance={**kept.provenance, "config": result_keys(small())})


def test_a_set_alone_has_no_place_for_outcomes(digits: RealRefs, tmp_path: Path, opened: list[RunConfig]) -> None:
    write_artifact(Place(tmp_path / "set"), made(digits, tmp_path))
    with opened_again(str(tmp_path / "set"), ["evaluate.seeds=3"]) as kept:
        assert kept.cells is None
        assert kept.artifact.pixels.shape == IMAGES.shape
    assert [config.evaluate.seeds for config in opened] == [3]


def test_a_set_in_its_run_keeps_outcomes_there(digits: RealRefs, tmp_path: Path, opened: list[RunConfig]) -> None:
    with RunDir.open(tmp_path / "run", small(runtime={"address": "10.0.0.1:6379"})):
        pass
    write_artifact(Place(tmp_path / "run" / "synthetic"), made(digits, tmp_path))
    with opened_again(str(tmp_path / "run"), []) as kept:
        assert kept.cells == Place(tmp_path / "run" / "report" / "cells")
    assert opened[0].runtime.address is None


def test_a_set_of_other_classes_is_refused(digits: RealRefs, tmp_path: Path, opened: list[RunConfig]) -> None:
    others = replace(made(digits, tmp_path), class_names=tuple("abcdefghij"))
    write_artifact(Place(tmp_path / "set"), others)
    with (
        pytest.raises(ArtifactError, match="its classes or image shape are not those of digits"),
        opened_again(str(tmp_path / "set"), []),
    ):
        raise AssertionError("opened on images of something else")


# --- a run directory, evaluated anew ---------------------------------------------------------------------------------

ROWS = ["distilled", "initial", "random", "herding"]
RUNS = {
    "groups": small(evaluate={"rows": ROWS}, matcher={"polish": 0.5}),
    "trajectories": small(**WALKS, evaluate={"rows": ROWS}),
}
FILES = ("experts", "scores", "segments", "synthetic")


@pytest.fixture(scope="module", params=RUNS)
def distilled(
    request: pytest.FixtureRequest, digits: RealRefs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Images]:
    """A run that was made on a device of another name, and where its set began."""
    config, folder = RUNS[request.param], tmp_path_factory.mktemp("made") / "run"
    RunDir.open(folder, config).close()
    run = replace(local_run(config, folder, digits), session=replace(SESSION, device="cpu:0"))
    pipeline._distilled(run)
    return folder, flattened(distil(run, train_experts(run)).starts)


def files_in(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for name in FILES for file in (folder / name).rglob("*") if file.is_file()}


def done_by(kept: Finished) -> list[str]:
    assert isinstance(kept.run.pool, LocalPool)
    return kept.run.pool.done


@pytest.mark.parametrize("change", ["runtime.cpus_per_worker=2", "runtime.precision=bf16", "evaluate.seeds=1"])
def test_what_a_run_has_kept_serves_its_table_wherever_and_however_the_work_is_done(
    distilled: tuple[Path, Images], opened: list[RunConfig], change: str
) -> None:
    folder, began = distilled
    before = files_in(folder)
    with opened_again(str(folder), [change]) as kept:
        sets, experts = sets_again(kept)
        assert {name.partition(" ")[0] for name in done_by(kept)} <= {"expert", "soft"}
    made = read_artifact(Place(folder / "synthetic"))
    assert sets["distilled"].pixels.tobytes() == made.pixels.tobytes()
    assert sets["initial"].pixels.tobytes() == began.pixels.tobytes()
    assert sets["initial"].is_normalised == began.is_normalised
    if change.startswith("evaluate") and began.logits is not None and sets["initial"].logits is not None:
        assert sets["initial"].logits.tobytes() == began.logits.tobytes()
    assert [images.logits is None for images in sets.values()] == [began.logits is None] * 2
    assert experts is not None
    assert files_in(folder) == before


def test_a_table_of_a_run_under_another_runtime_stands_beside_its_own(
    distilled: tuple[Path, Images], opened: list[RunConfig]
) -> None:
    folder, _ = distilled
    before, own = files_in(folder), (folder / "report" / "table.json").read_bytes()
    result = pipeline.evaluate(str(folder), ["runtime.cpus_per_worker=3"])
    assert {row.name for row in result.rows} >= {"distilled", "initial", "random"}
    assert result.digest == digest(read_artifact(Place(folder / "synthetic")))
    (other,) = (folder / "report").glob("table_*.json")
    assert json.loads(other.read_text())["digest"] == result.digest
    assert (folder / "report" / "table.json").read_bytes() == own
    assert files_in(folder) == before


def test_a_start_that_is_gone_is_said_before_anything_is_trained(
    distilled: tuple[Path, Images], opened: list[RunConfig], tmp_path: Path
) -> None:
    shutil.copytree(distilled[0], tmp_path / "run")
    for name in ("scores", "segments", "experts"):
        shutil.rmtree(tmp_path / "run" / name)
    with opened_again(str(tmp_path / "run"), ["runtime.precision=bf16"]) as kept:
        with pytest.raises(ArtifactError, match=r"segments: where segment 1 began is not .*; leave initial out of"):
            sets_again(kept)
        assert not done_by(kept)
    with opened_again(str(tmp_path / "run"), ["evaluate.rows=[distilled, random, herding]"]) as kept:
        sets, _ = sets_again(kept)
        assert [name for name in done_by(kept) if "pace" not in name] == ["expert 0", "expert 1"]
    assert list(sets) == ["distilled"]
    assert not (tmp_path / "run" / "segments").exists()
    (trained,) = (tmp_path / "run" / "experts").iterdir()
    assert trained.name == kept.run.expert_key, "under the key of what they are trained by now"


def test_a_run_is_not_evaluated_on_other_images(
    distilled: tuple[Path, Images], digits: RealRefs, opened: list[RunConfig]
) -> None:
    with opened_again(str(distilled[0]), []) as kept:
        other = replace(kept, run=replace(kept.run, real=replace(digits, digest="0" * 16)))
        with pytest.raises(ArtifactError, match="the images of digits are not those that its set was made of"):
            sets_again(other)
        assert not done_by(kept)
