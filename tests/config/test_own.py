"""Names of the caller's own networks: what they may look like, and that no file can name one."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
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


NET = "{how}\n\n\ndef small(shape, classes):\n    from own_package.deep import DEPTH\n    return WIDTH * DEPTH\n"
HELPER = "import json\nimport numpy\n\nfrom own_package import *\n\nWIDTH = 8\n"


@pytest.fixture
def neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A network that imports its width from a neighbour, which imports a package, and its depth when it is made."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_net.py").write_text(NET.format(how="from own_helper import WIDTH"))
    (tmp_path / "own_helper.py").write_text(HELPER)
    (tmp_path / "own_stranger.py").write_text("")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from .near import A\n")
    (tmp_path / "own_package" / "near.py").write_text("A = 1\n")
    (tmp_path / "own_package" / "deep.py").write_text("DEPTH = 2\n")
    (tmp_path / "own_package" / "other.py").write_text("B = 1\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_") and name != "own_networks"]:
        del sys.modules[name]


@pytest.mark.parametrize("file", ["own_helper.py", "own_package/__init__.py", "own_package/near.py"])
@pytest.mark.parametrize("is_imported", [True, False])
def test_a_changed_module_that_a_network_imports_is_another_network(
    neighbours: Path, file: str, is_imported: bool
) -> None:
    before = code_of("own_net:small")
    assert code_of("own_net:small") == before
    if not is_imported:
        del sys.modules[file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")]
    (neighbours / file).write_text((neighbours / file).read_text() + "# other\n")
    assert code_of("own_net:small") != before


def test_what_a_network_imports_when_it_is_made_counts_and_is_not_imported(neighbours: Path) -> None:
    before = code_of("own_net:small")
    (neighbours / "own_package" / "deep.py").write_text("DEPTH = 3\n")
    after = code_of("own_net:small")
    assert after != before
    assert "own_package.deep" not in sys.modules
    importlib.import_module("own_package.deep")
    importlib.import_module("own_stranger")
    assert code_of("own_net:small") == after, "what else is imported by now does not count"


def test_what_a_network_does_not_import_does_not_count(neighbours: Path) -> None:
    before = code_of("own_net:small")
    (neighbours / "own_package" / "other.py").write_text("B = 2\n")
    (neighbours / "own_stranger.py").write_text("C = 2\n")
    assert code_of("own_net:small") == before


def test_a_function_that_another_module_has_made_depends_on_both(neighbours: Path) -> None:
    (neighbours / "own_front.py").write_text(
        "import functools\n\nimport own_net\n\nsmall = functools.partial(own_net.small, classes=2)\n"
    )
    codes = [code_of("own_front:small")]
    for file in ("own_front.py", "own_net.py", "own_helper.py"):
        (neighbours / file).write_text((neighbours / file).read_text() + "# other\n")
        codes.append(code_of("own_front:small"))
    assert len(set(codes)) == 4


def test_the_code_of_a_single_file_is_the_digest_of_it(neighbours: Path) -> None:
    """As earlier versions had it, so that their outcomes are found."""
    file = neighbours / "own_single.py"
    file.write_text("import torch\n\nimport dasm_ray\n\n\ndef small(shape, classes): ...\n")
    assert code_of("own_single:small") == hashlib.sha256(file.read_bytes()).hexdigest()[:16]


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
