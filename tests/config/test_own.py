"""Names of the caller's own networks: what they may look like, and that no file can name one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from commands import SMALL

from dasm_ray.config.digests import result_keys
from dasm_ray.config.keys import OwnModel, RunConfig
from dasm_ray.config.own import code_of, function_of, is_own
from dasm_ray.config.parsing import parse_config, parse_result_keys
from dasm_ray.errors import ConfigError


@pytest.mark.parametrize("name", ["nets:small", "my.nets:small", "timm:resnet10t.c3_in1k"])
def test_names_of_this_kind(name: str) -> None:
    assert is_own(name)


@pytest.mark.parametrize("name", ["resnet18", ":small", "nets:", "../nets:small", "nets.py:sm all", "a:b:c", "/x:y"])
def test_other_names(name: str) -> None:
    assert not is_own(name)


def test_a_changed_file_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_of_a_test.py").write_text("def small(shape, classes): ...\n")
    before = code_of("nets_of_a_test:small")
    (tmp_path / "nets_of_a_test.py").write_text("def small(shape, classes): ...  # other\n")
    assert code_of("nets_of_a_test:small") != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:small", "no_such_module cannot be imported"),
        ("own_networks:small", "own_networks has no function small"),
        ("own_networks:not_callable", "has no function not_callable"),
    ],
)
def test_what_is_not_there_is_said(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        function_of(name)


def test_a_run_under_a_network_of_ones_own_keeps_the_rest_and_has_a_key_of_its_own() -> None:
    config = parse_config(yaml.safe_load(SMALL))
    own = config.under("own_networks:plain")
    assert isinstance(own.model, OwnModel)
    assert own.evaluate == config.evaluate
    assert result_keys(own.model)["function"] == "own_networks:plain"
    assert result_keys(own.model) != result_keys(config.under("own_networks:with_batch_norm").model)
    with pytest.raises(ConfigError, match=r"there is no such network.*MODULE:FUNCTION"):
        config.under("resnt18")
    with pytest.raises(ConfigError, match="there is no such network"):
        config.under("resnet18:instnce")


def test_no_file_can_name_one() -> None:
    tree = yaml.safe_load(SMALL)
    tree["model"] |= {"function": "os:system", "code": ""}
    for read in (parse_config, parse_result_keys):
        with pytest.raises(ConfigError, match="function: there is no such key"):
            read(tree)
    with pytest.raises(ValueError, match="function"):
        RunConfig.model_validate(tree)
    with pytest.raises(ConfigError, match="arch"):
        parse_config({"model": {"arch": "own_networks:plain"}})
