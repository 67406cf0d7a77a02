"""What may be changed once a set is there, and where its parts are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_pool import small

from dasm_ray.errors import ConfigError
from dasm_ray.store.place import Place
from dasm_ray.studies.finished import artifact_place, changed


def test_only_what_leaves_the_set_as_it_is_can_be_changed() -> None:
    config = small()
    assert changed(config, ["evaluate.seeds=7", "runtime.workers=3"]).evaluate.seeds == 7
    with pytest.raises(ConfigError, match=r"matcher\.name=dc: after distillation only evaluate, runtime, data\.path"):
        changed(config, ["evaluate.seeds=7", "matcher.name=dc"])
    with pytest.raises(ConfigError, match=r"evaluate\.seeds"):
        changed(config, ["evaluate.seeds=0"])


def test_an_artifact_is_found_in_its_run_and_by_itself(tmp_path: Path) -> None:
    (tmp_path / "synthetic").mkdir()
    assert artifact_place(Place(tmp_path)) == Place(tmp_path / "synthetic")
    (tmp_path / "dataset.json").write_text("{}")
    assert artifact_place(Place(tmp_path)) == Place(tmp_path)
