"""A small real run, done in this process, that pages are drawn of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_pool import WALKS, LocalPool, local_run, small

from dasm_ray import pipeline
from dasm_ray.config.keys import RunConfig
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.progress import Progress
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir


def done_run(config: RunConfig, folder: Path, real: RealRefs) -> Path:
    """Distils and evaluates in this process, as the command does, with its log; one task was lost on the way."""
    with RunDir.open(folder, config) as record, Progress(record.event, live=False) as progress:
        found = open_source(config.data).found
        counts = {role: tuple(map(int, of)) for role, of in real.counts.items()}
        progress.stage("data", 1, config.data.name)
        progress.found(replace(found, counts=counts).as_values())
        progress.task("segment 1, group 0, round 0", 2, 0.001, "its node went away")
        progress.task("segment 1, group 0, round 0", 1, 0.001)
        run = replace(local_run(config, folder, real, LocalPool()), progress=progress, place=Place(folder))
        pipeline._distilled(run)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[[RunConfig, Path, RealRefs], Path]:
    """Makes such a run in a folder, of other images."""
    return done_run


@pytest.fixture(scope="session")
def run_folder(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits by gradients, factor 2; it is not to be changed."""
    config = small(synthetic={"factor": 2}).model_copy(update={"name": "small"})
    return done_run(config, tmp_path_factory.mktemp("report") / "run", digits)


@pytest.fixture(scope="session")
def paged_folder(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its page."""
    config = small(synthetic={"factor": 2}, runtime={"page": True}).model_copy(update={"name": "small"})
    return done_run(config, tmp_path_factory.mktemp("report") / "run", digits)


@pytest.fixture(scope="session")
def walked_folder(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by trajectories, with soft labels."""
    config = small(**WALKS).model_copy(update={"name": "walked"})
    return done_run(config, tmp_path_factory.mktemp("report") / "run", digits)
