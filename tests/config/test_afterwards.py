"""What may be changed once a set is there."""

from __future__ import annotations

import pytest

from dasm_ray.config.afterwards import AFTERWARDS, RELABELLING, changed, check_allowed, without_address
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError


def test_only_what_leaves_the_set_as_it_is_can_be_changed() -> None:
    config = parse_config({})
    assert changed(config, ["evaluate.seeds=7", "runtime.workers=3"]).evaluate.seeds == 7
    with pytest.raises(ConfigError, match=r"matcher\.name=dc: after distillation only evaluate, runtime, data\.path"):
        changed(config, ["evaluate.seeds=7", "matcher.name=dc"])
    with pytest.raises(ConfigError, match=r"evaluate\.seeds"):
        changed(config, ["evaluate.seeds=0"])


def test_soft_labels_need_experts_that_may_lie_elsewhere() -> None:
    check_allowed(["experts.cache=/x"], RELABELLING)
    with pytest.raises(ConfigError, match=r"experts\.cache"):
        check_allowed(["experts.cache=/x"], AFTERWARDS)


def test_a_kept_configuration_calls_nobody() -> None:
    config = parse_config({"runtime": {"address": "10.0.0.1:6379", "workers": 2}})
    assert without_address(config).runtime.address is None
    assert without_address(config).runtime.workers == 2


@pytest.mark.parametrize("change", ["data.zca=0.1", "data.image_size=8", "data.name=mnist"])
def test_what_changes_the_real_images_is_no_change_afterwards(change: str) -> None:
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        check_allowed([change], AFTERWARDS)
