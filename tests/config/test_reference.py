"""The keys as a reader wants them: every key in a sentence, who reads it, the page of the docs, the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from tree import LEAVES, PROJECT

from dasm_ray.cli import main
from dasm_ray.config import plain_yaml
from dasm_ray.config.keys import ArchRecipe, RunConfig
from dasm_ray.config.parsing import parse_config, to_yaml
from dasm_ray.config.recipes import FOLDERS, Kind, shipped
from dasm_ray.config.reference import MODELS, WIDTH, lines, markdown, schema, sections
from dasm_ray.errors import ConfigError

KEYS = {key.name: key for _, keys in sections().values() for key in keys}
VALIDATORS = {kind: jsonschema.Draft202012Validator(schema(kind)) for kind in MODELS}


# --- the list ----------------------------------------------------------------------------------------------------


def test_every_key_is_told() -> None:
    of_networks = {f"networks.ARCH.{name}" for name in ArchRecipe.model_fields}
    assert KEYS.keys() == {*LEAVES, *of_networks} - {"networks"}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_every_key_has_a_sentence_and_its_values(key: Any) -> None:
    first = key.meaning[0]
    assert first.isupper() or key.meaning.startswith(("host:port", "f times")), key.meaning
    assert key.meaning.endswith("."), key.meaning
    assert len(key.meaning) > 10
    assert key.values


def test_a_key_is_told_with_default_values_and_readers() -> None:
    assert list(lines("matcher.inner_samples"))[1:] == [
        "matcher.inner_samples   default 500",
        "  Real images that the network inside the loop is trained on between two steps.",
        "  values: whole number, 1 to 1,000,000",
        "  read by: idc (matcher.network train)",
    ]
    assert KEYS["window.trim"].readers == "with window.policy trim"
    assert KEYS["matcher.relative"].readers == "idc, dc, dsa with matcher.metric mse or l1"
    assert KEYS["matcher.deviation"].readers == "dm"
    assert KEYS["synthetic.ipc"].readers == ""
    assert KEYS["experts.rho"].values == "number from 0"
    assert KEYS["data.val_share"].values == "number above 0 and below 0.5"
    assert KEYS["matcher.snapshots"].default == "[[0, 4]]"
    assert "  does not change the result" in list(lines("runtime.workers"))
    assert "  does not change the result" not in list(lines("runtime.cpus_per_worker"))


OTHER = {
    **{"matcher.metric": "l1", "matcher.budget": "set", "matcher.context": "residual", "matcher.augment": "crop"},
    **{"matcher.micro": 8, "matcher.snapshots": [[0, 3]], "trajectory.starts": [[0, 4, 8]]},
}
"""Values other than the defaults, where one is not simply another number."""

NETWORKS = {"idc": "train", "dm": "experts"}
MATCHERS = ("idc", "dc", "dsa", "dm", "cafe", "mtt", "datm")


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith(("matcher.", "trajectory."))])
def test_who_reads_a_key_is_who_accepts_it(key: str, matcher: str) -> None:
    """What is told against what is refused: the key set to another value than its default, under every matcher."""
    if key in ("matcher.name", "matcher.network"):
        return
    readers = [reader.strip() for reader in KEYS[key].readers.partition("with ")[0].split(",")]
    for network in (None, NETWORKS.get(matcher)):
        told = readers == [""] or {matcher, f"{matcher} (matcher.network {network or 'unset'})"} & set(readers)
        assert bool(told) == (not refused_as_unread(key, matcher, network)), network


def refused_as_unread(key: str, matcher: str, network: str | None) -> bool:
    section, name = key.split(".")
    tree: dict[str, Any] = {"matcher": {"name": matcher, "network": network}}
    if matcher in ("mtt", "datm"):
        tree["trajectory"] = {"starts": [[0, 5, 9]]}
    tree.setdefault(section, {})[name] = OTHER[key] if key in OTHER else another(LEAVES[key].default)
    try:
        parse_config(tree)
    except ConfigError as error:
        return any(problem.startswith(f"{key}: has no meaning for {matcher}") for problem in error.problems)
    return False


def another(value: Any) -> Any:
    return not value if isinstance(value, bool) else value / 2 or 0.5 if isinstance(value, float) else value + 1


def test_a_section_and_the_whole_fit_a_terminal() -> None:
    assert [line for line in lines() if len(line) > WIDTH] == []
    assert sum(line.startswith("window.") for line in lines("window")) == 4
    assert sum(not line.startswith(" ") and "default" in line for line in lines()) > 100


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("lr_img", "did you mean matcher.lr_img or trajectory.lr_img?"),
        ("matcher.lr_imgs", "did you mean matcher.lr_img"),
        ("matchr", "did you mean matcher"),
        ("\x1b[2J", "the sections are data, model"),
    ],
)
def test_a_key_that_there_is_not(asked: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(lines(asked))
    assert hint in caught.value.problems[0]
    assert "\x1b" not in caught.value.problems[0]


def test_the_page_of_the_docs_is_what_the_command_prints() -> None:
    """`dasm-ray config --markdown > docs/config.md` writes it anew."""
    assert (PROJECT / "docs" / "config.md").read_text(encoding="utf-8") == markdown()
    assert CliRunner().invoke(main, ["config", "--markdown"]).stdout == markdown()


# --- the schema --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_schema_is_one(kind: Kind) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    printed = CliRunner().invoke(main, ["config", "--schema", *([kind] if kind != "recipe" else [])]).stdout
    assert json.loads(printed) == schema(kind)
    assert "affects_result" not in printed


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind in FOLDERS for path in shipped(kind).values()])
def test_every_shipped_file_is_valid_by_it(kind: Kind, path: Path) -> None:
    assert list(VALIDATORS[kind].iter_errors(plain_yaml.read_file(path))) == []


def test_what_a_run_keeps_is_valid_by_it() -> None:
    kept = plain_yaml.read(to_yaml(RunConfig()), "kept")
    assert list(VALIDATORS["recipe"].iter_errors(kept)) == []


@pytest.mark.parametrize(
    "tree",
    [
        {"matcer": {}},
        {"synthetic": {"icp": 2}},
        {"networks": {"mlp": {"lrr": 1}}},
        {"networks": {"resnet": {}}},
        {"synthetic": {"ipc": 0}},
        {"synthetic": {"ipc": "many"}},
        {"matcher": {"lr_img": 0}},
        {"matcher": {"lr_img": True}},
        {"matcher": {"name": "idcc"}},
        {"matcher": {"augment": "color_crup"}},
        {"window": {"policy": "frontal"}},
        {"evaluate": {"rows": ["distilled", "rendom"]}},
        {"experts": {"momentum": 1}},
        {"data": {"val_share": 0.5}},
        {"data": {"ground": "red"}},
        {"trajectory": {"starts": [[0, 1]]}},
        {"name": "../up"},
    ],
    ids=str,
)
def test_what_the_command_refuses_of_one_key_the_schema_refuses(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_config(tree)
    assert list(VALIDATORS["recipe"].iter_errors(tree))


def test_only_one_thing_is_asked_for() -> None:
    done = CliRunner().invoke(main, ["config", "seed", "--markdown"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "dasm-ray: config: give one of KEY, --markdown and --schema\n"
    done = CliRunner().invoke(main, ["config", "seed"])
    assert done.stdout.startswith("seed   default 0\n")
