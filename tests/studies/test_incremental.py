"""Class-incremental learning with a set as memory: which classes are known when, and what stands beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, local_run, small

from dasm_ray.errors import DataError
from dasm_ray.method.sets import selected_set
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.place import Place
from dasm_ray.studies.incremental import _memories, learn_incrementally


def test_classes_come_in_parts_and_both_memories_grow_alike(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    artifact = selected_set(run, np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32))
    found = learn_incrementally(run, artifact, 3, Place(tmp_path / "cells"))
    assert list(found) == [(name, f"{count} classes") for count in (4, 7, 10) for name in ("distilled", "random")]
    assert all(len(accuracies) == 2 for accuracies in found.values())
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    assert learn_incrementally(run, artifact, 3, Place(tmp_path / "cells")) == found
    assert len(run.pool.done) == before


def test_a_first_part_that_nothing_can_be_asked_of_is_refused(digits: RealRefs, tmp_path: Path) -> None:
    empty = np.where(np.arange(10) == 4, digits.counts["val"], 0)  # a class alone has validation images
    run = local_run(small(), tmp_path, replace(digits, counts={**digits.counts, "val": empty}))
    artifact = selected_set(run, np.zeros((20, 1, 8, 8), np.float32))
    with pytest.raises(
        DataError, match=r"digits: the first part of the classes \('\d'\) has no image in the val split"
    ):
        learn_incrementally(run, artifact, 10, None)


def test_the_memory_holds_the_images_of_the_classes_so_far(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    artifact = selected_set(run, np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32))
    known = np.array([2, 7])
    memories = _memories(run, artifact, known)
    distilled, random = memories["distilled"](0), memories["random"](0)
    assert distilled.labels.tolist() == [2, 2, 7, 7]  # type: ignore[union-attr]
    labels = np.repeat(np.arange(10), digits.counts["train"])
    assert labels[random.indices].tolist() == [2, 2, 7, 7]  # type: ignore[union-attr]
    assert memories["random"](1).digest != random.digest
