"""A finished set is opened with the images that it was made of, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import local_run, small

from dasm_ray.config.digests import result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.errors import ArtifactError
from dasm_ray.method.run import Run
from dasm_ray.method.sets import selected_set
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import Artifact, write_artifact
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir
from dasm_ray.studies import finished
from dasm_ray.studies.finished import opened_again

IMAGES = np.full((20, 1, 8, 8), 0.4, np.float32)


@pytest.fixture
def opened(digits: RealRefs, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Runs are opened in this process; the configurations that were asked for."""
    asked = []

    @contextlib.contextmanager
    def connected(config: RunConfig, place: Place, whitening: Any = None) -> Iterator[Run]:
        asked.append(config)
        yield local_run(config, Path(str(place)), digits)

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
