"""What users write: typos, overrides, bad files, and the way back to YAML."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tree import LEAVES, PROJECT, problems_of

from dasm_ray.cli import _with_options, main
from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import (
    MOST_SENTENCES,
    as_one_of_many,
    load_config,
    parse_config,
    parse_result_keys,
    to_yaml,
)
from dasm_ray.errors import ConfigError, RunDirError
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir

# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"matchr": {}}, "matchr: there is no such key; did you mean 'matcher'?"),
        ({"matcher": {"lr_imgs": 1.0}}, "matcher.lr_imgs: there is no such key; did you mean 'lr_img'?"),
        ({"evaluate": {"seed": 3}}, "evaluate.seed: there is no such key; did you mean 'seeds'?"),
        ({"window": {"q": 1}}, "window.q: there is no such key; the keys here are policy, w_min, width, trim"),
    ],
)
def test_a_typo_gets_the_nearest_name(tree: dict[str, Any], sentence: str) -> None:
    assert problems_of(tree) == (sentence,)


def test_a_choice_that_is_misspelt_gets_the_choices_and_the_nearest() -> None:
    (sentence,) = problems_of({"matcher": {"name": "icd"}})
    assert (
        sentence == "matcher.name: 'icd' must be 'idc', 'dc', 'dsa', 'dm', 'cafe', 'mtt' or 'datm'; did you mean 'idc'?"
    )


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("synthetic.ipc", "ten", "valid integer, not 'ten'"),
        ("synthetic.ipc", 2.5, "valid integer"),
        ("synthetic.ipc", True, "valid integer"),
        ("synthetic.ipc", 0, "greater than or equal to 1, not 0"),
        ("matcher.lr_img", -1, "greater than 0"),
        ("matcher.lr_img", float("nan"), "finite"),
        ("matcher.lr_img", float("inf"), "finite"),
        ("matcher.momentum", 1.0, "less than 1"),
        ("matcher.scale_lr", "yes", "valid boolean"),
        ("matcher.augment", "color_corp", "'corp' is no augmentation: join any of color, crop"),
        ("matcher.augment", "crop_crop", "names an augmentation twice"),
        ("matcher.snapshots", [[0, 4, 5]], ".0: must have at most 2 values, not 3"),
        ("matcher.snapshots", [[0]], ".0: must have more values than [0]; `dasm-ray config` says which"),
        ("trajectory.starts", [[]], ".0: must have more values than []; `dasm-ray config` says which"),
        ("matcher.snapshots", 4, ": must be a list in brackets, not 4"),
        ("matcher.snapshots", [4], ".0: must be a list in brackets, not 4"),
        ("networks", 4, ": must have keys below it, not be 4"),
        ("data", None, ": must have keys below it, not be None"),
        ("data.name", 3, "valid string"),
        ("data.val_share", 0.5, "less than 0.5"),
        ("evaluate.rows", ["distilled", "randm"], "did you mean 'random'?"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: Any, part: str) -> None:
    section, _, name = key.partition(".")
    (sentence,) = problems_of({section: {name: value}} if name else {section: value})
    assert sentence.startswith(f"{key}")
    assert part in sentence
    assert "\n" not in sentence


def test_all_problems_are_told_at_once() -> None:
    tree = {"seed": -1, "matcher": {"nam": "idc"}, "synthetic": {"ipc": "x"}, "evaluate": {"rows": ["half"]}}
    assert [sentence.split(":")[0] for sentence in sorted(problems_of(tree))] == [
        "evaluate.rows.0",
        "matcher.nam",
        "seed",
        "synthetic.ipc",
    ]


def test_the_error_survives_the_way_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a: one", "b: two")))
    assert error.problems == ("a: one", "b: two")
    assert str(error) == "a: one\nb: two"
    assert error.exit_code == 2


# --- files and overrides -----------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("synthetic: {ipc: 20}\nseed: 1\n", encoding="utf-8")
    overrides = ["synthetic.ipc=4", "seed=7", "matcher.snapshots=[[0, 2], [1, 3]]", "data.path=a=b", "model.depth=null"]
    read = load_config(recipe, overrides)
    assert (read.synthetic.ipc, read.seed, read.data.path, read.model.depth) == (4, 7, "a=b", None)
    assert read.matcher.snapshots == ((0, 2), (1, 3))
    assert load_config(recipe).synthetic.ipc == 20


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("synthetic.ipc", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("seed.x.y=3", "'seed' is a value, not a section"),
        ("data.name=[", "is not YAML"),
        ("synthetic.icp=3", "did you mean 'ipc'?"),
    ],
)
def test_a_bad_override_is_one_sentence(override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=1", override])
    (sentence,) = caught.value.problems
    assert part in sentence


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "there is no such file"),
        (b"a: [1", "is not YAML"),
        (b"- 1\n- 2", "must be a mapping of sections, not a list"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"1: 2", "1: "),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, content: bytes | None, part: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    (sentence,) = caught.value.problems
    assert part in sentence
    assert "\n" not in sentence


def test_a_folder_in_place_of_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder and no recipe; `dasm-ray init"):
        load_config(tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_config(tmp_path / "empty.yaml") == load_config(None) == RunConfig()


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"matcher": {"name": "dc"}},
        {"matcher": {"name": "dsa", "metric": "l1"}},
        {"matcher": {"snapshots": [[0, 2], [2, 4]]}, "model": {"depth": 2}},
        {"matcher": {"network": "train", "inner_samples": 7}},
        {"name": "läuft", "data": {"name": "parquet", "path": "s3://bucket/a b"}},
        {"runtime": {"gpus_per_worker": 0.1}, "matcher": {"lr_img": 1e-7}},
    ],
)
def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    first = parse_config(tree)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(first), encoding="utf-8")
    again = load_config(resolved)
    assert again == first
    assert digest_of(result_keys(again)) == digest_of(result_keys(first))


def test_every_recipe_in_configs_can_be_meant() -> None:
    recipes = sorted((PROJECT / "configs").rglob("*.yaml"))
    recipes = [recipe for recipe in recipes if not {"sweeps", "studies"} & set(recipe.parts)]
    assert recipes, "configs/ holds the recipes"
    for recipe in recipes:
        load_config(recipe)


def test_a_typo_in_the_recipe_of_a_network_is_named() -> None:
    (problem,) = problems_of({"networks": {"mlp": {"lrr": 1}}})
    assert problem == "networks.mlp.lrr: there is no such key; did you mean 'lr'?"
    (problem,) = problems_of({"networks": {"resnet": {"lr": 1}}})
    assert "networks.resnet" in problem
    assert "did you mean 'resnet18'?" in problem


# --- one sentence, at once, exit 2: in a file, by --set, and in a kept config.yaml ---------------------------------

ODD_VALUES = {
    "a date that there is not": ("name", "2001-99-99", "a date or text"),
    "a date": ("name", "2001-01-01", "a date or text"),
    "a tag": ("seed", "!!int abc", "the tag !!int is not read"),
    "a time": ("seed", "1:30:00", "to the base 60 or text"),
    "base 8": ("seed", "010", "to the base 8 or 10"),
    "yes": ("matcher.scale_lr", "yes", "true or the text"),
    "no": ("name", "no", "false or the text"),
    "5000 digits": ("seed", "9" * 5000, "a number of 5000 characters"),
    "5000 digits as text": ("matcher.lr_img", "'" + "9" * 5000 + "'", "finite"),
    "nested 3000 deep": ("seed", "[" * 3000, "nested deeper"),
    "nine anchors of nine": ("data", "[&a [x], &b [*a, *a]]", "&a names a value"),
    "a key twice": ("data", "{name: digits, name: mnist}", "'name' is given twice"),
    "ipc 10**30": ("synthetic.ipc", "1" + "0" * 30, "less than or equal to 100000, not 1000"),
    "experts.count": ("experts.count", "1000000000", "less than or equal to 10000"),
    "evaluate.seeds": ("evaluate.seeds", "1000000000", "less than or equal to 10000"),
    "score.shards": ("score.shards", "1000000000", "less than or equal to 100000"),
    "probe.members": ("probe.members", "1000000000", "less than or equal to 1000"),
    "trajectory.lanes": ("trajectory.lanes", "1000000000", "less than or equal to 10000"),
    "matcher.lanes": ("matcher.lanes", "1000000000", "less than or equal to 10000"),
    "runtime.workers": ("runtime.workers", "1000000000", "less than or equal to 10000"),
    "too many ranges": ("matcher.snapshots", str([[0, 1]] * 1001).replace(" ", ""), "at most 1000 values"),
    "a secret in a path": ("data.path", "s3://KEY:S3CR3T@bucket/x", "data.path: holds credentials"),
    "a secret in a parameter": ("experts.cache", "s3://bucket/x?secret_key=S3CR3T", "holds the parameter 'secret_key'"),
    "a secret in an address": ("runtime.address", "ray://me:S3CR3T@head:10001", "holds credentials"),
    "a secret for a name": ("data.name", "s3://KEY:S3CR3T@bucket/x", "holds credentials"),
    "a secret in a list": ("data.path", "[s3://KEY:S3CR3T@bucket]", "valid string"),
    "a secret as a key": ("data", "{'s3://KEY:S3CR3T@bucket': 1}", "there is no such key"),
    "a cursor that moves": ("data.path", '"a\\e[2J"', r"holds \x1b"),
    "a path with an end in it": ("data.path", '"a\\0b"', r"holds \x00"),
    "a path without end": ("data.path", "x" * 5000, "at most 4096 characters"),
    "a name without end": ("name", "x" * 300, "at most 200 characters"),
}


def run(*arguments: Any) -> tuple[int, list[str]]:
    """Exit code and lines of a command that must start nothing."""
    begun = time.monotonic()
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert time.monotonic() - begun < 5
    assert done.stdout == ""
    assert "S3CR3T" not in done.output
    return done.exit_code, done.stderr.splitlines()


def written(tmp_path: Path, key: str, value: str) -> Path:
    section, _, name = key.rpartition(".")
    text = f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\n"
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "odd.yaml"


@pytest.mark.parametrize(("key", "value", "part"), ODD_VALUES.values(), ids=ODD_VALUES.keys())
def test_an_odd_value_in_a_file(tmp_path: Path, key: str, value: str, part: str) -> None:
    code, lines = run("distill", written(tmp_path, key, value), "--run", tmp_path / "run")
    assert (code, len(lines)) == (2, 1), lines
    assert part in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value", "part"), ODD_VALUES.values(), ids=ODD_VALUES.keys())
def test_an_odd_value_by_set(tmp_path: Path, key: str, value: str, part: str) -> None:
    recipe = tmp_path / "empty.yaml"
    recipe.write_text("", encoding="utf-8")
    code, lines = run("distill", recipe, "--run", tmp_path / "run", "--set", f"{key}={value}")
    assert (code, len(lines)) == (2, 1), lines
    assert part in lines[0]
    assert key in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value", "part"), ODD_VALUES.values(), ids=ODD_VALUES.keys())
def test_an_odd_value_in_a_kept_configuration(tmp_path: Path, key: str, value: str, part: str) -> None:
    RunDir.open(tmp_path / "run", RunConfig()).close()
    written(tmp_path, key, value).rename(tmp_path / "run" / "config.yaml")
    with pytest.raises(RunDirError) as caught:
        RunDir.read(tmp_path / "run")
    assert str(caught.value).count("\n") == 0
    assert part in str(caught.value)
    assert "S3CR3T" not in str(caught.value)


def test_a_kept_configuration_of_terabytes_is_not_read(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", RunConfig()).close()
    with (tmp_path / "run" / "config.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunDirError, match=r"config\.yaml cannot be read \(it has \d+ bytes"):
        RunDir.read(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=1", "seed=2"], "--set seed=2: seed is set twice; leave one"),
        (["seed=1", " seed =1"], "seed is set twice"),
        (["data.name=mnist", "data={name: digits}"], "would replace all of data, which is set already"),
        (["data={name: digits}", "data.path=here"], "data.path speaks of data too"),
        (
            ["matcher={rounds: 2}"],
            "would replace all of matcher, which is set already; set its keys, as in matcher.rounds=...",
        ),
        (["matcher={}"], "would replace all of matcher"),
        (["networks.mlp={lr: 1}"], "would replace all of networks.mlp"),
        (["a.b.c.d.e.f=1"], "there is no key of 6 parts"),
        (["a" + ".a" * 3000 + "=1"], "there is no key of 3001 parts"),
        (["data..name=1"], "write it as section.key=value"),
        (
            ["data.ground=#ff0000"],
            "what begins with # would be left out as a comment; put the value in quotes",
        ),
        (["data.path=/data/set #1"], "what begins with # would be left out as a comment"),
        (["evaluate.rows=[distilled, random] # those"], "what begins with # would be left out as a comment"),
        ([".=1"], "write it as section.key=value"),
    ],
)
def test_overrides_that_speak_of_one_thing_twice(tmp_path: Path, overrides: list[str], part: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("matcher: {lr_img: 0.1}\nnetworks: {mlp: {epochs: 3}}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    (sentence,) = caught.value.problems
    assert part in sentence


def test_a_number_sign_within_a_value_is_part_of_it() -> None:
    config = load_config(None, ["data.ground='#ff0000'", "data.path=/data/set#1", 'name="a"'])
    assert (config.data.ground, config.data.path, config.name) == ("#ff0000", "/data/set#1", "a")


def test_an_option_and_a_set_that_say_two_things(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("", encoding="utf-8")
    code, lines = run("distill", recipe, "--run", tmp_path / "run", "--workers", 2, "--set", "runtime.workers=1")
    assert code == 2
    assert "runtime.workers is set twice" in lines[0]


@pytest.mark.parametrize("address", ["ray://me:S3CR3T@head:10001", "head\x1b[2J", "x" * 5000])
def test_an_address_that_cannot_be_shown(tmp_path: Path, address: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("", encoding="utf-8")
    for command in (["distill", recipe, "--run", tmp_path / "run"], ["doctor"]):
        code, lines = run(*command, "--address", address)
        assert (code, len(lines)) == (2, 1)
        assert lines[0].startswith(("dasm-ray: runtime.address: ", "dasm-ray: --set runtime.address="))


def test_an_address_is_text_whatever_it_looks_like() -> None:
    for address in ("[::1]:6379", "12:34", "yes", "010", "{a", "10.0.0.5:6379", "auto"):
        assert load_config(None, _with_options((), None, address)).runtime.address == address


def test_of_very_many_problems_the_first_are_told() -> None:
    begun = time.monotonic()
    problems = problems_of({f"seed{number}": 1 for number in range(15_000)})
    assert len(problems) == MOST_SENTENCES + 1
    assert problems[-1] == f"and {15_000 - MOST_SENTENCES} more of the kind"
    assert time.monotonic() - begun < 5


ANYTHING = {
    "a huge number": 10**5000,
    "a huge negative one": -(10**5000),
    "a list of one": [10**400],
    "deep": {"a": {"b": {"c": [[[[[]]]]]}}},
    "a long text": "x" * 10**6,
    "bytes": b"x",
    "a complex number": 1j,
    "a set": {1},
}


@pytest.mark.parametrize("value", ANYTHING.values(), ids=ANYTHING.keys())
def test_a_value_of_any_kind_is_told_in_a_line(value: Any) -> None:
    for tree in (
        {"seed": value},
        {"matcher": {"lr_img": value}},
        {"matcher": {"name": value}},
        {"data": value},
        {"name": value},
    ):
        for sentence in problems_of(tree):
            assert len(sentence) < 1200
            assert "\n" not in sentence


# --- bounds ------------------------------------------------------------------------------------------------------


def bounds_of(schema: Any) -> list[dict[str, Any]]:
    """Every whole number in the JSON schema of a field, as it is bounded."""
    if isinstance(schema, list):
        return [found for part in schema for found in bounds_of(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") == "integer" else []
    return own + [found for part in schema.values() if isinstance(part, dict | list) for found in bounds_of(part)]


def test_every_count_has_a_largest_value() -> None:
    schema = RunConfig.model_json_schema()
    numbers = bounds_of(schema)
    assert len(numbers) > 40, "the schema was walked"
    assert [number for number in numbers if not {"maximum", "exclusiveMaximum"} & number.keys()] == []


@pytest.mark.parametrize(
    "override",
    [
        "synthetic.ipc=100000",
        "experts.epochs=100000",
        "experts.count=10000",
        "matcher.rounds=1000000",
        "evaluate.seeds=1000",
        "evaluate.epochs=100000",
        "trajectory.lanes=1000",
        "probe.members=100",
        "score.shards=10000",
        "runtime.workers=5000",
        "synthetic.group_size=21841",
        "evaluate.batch=1000000",
        "model.width=4096",
        "data.image_size=1024",
    ],
)
def test_the_bounds_are_above_what_anybody_runs(override: str) -> None:
    matcher = ["matcher.name=mtt"] * override.startswith("trajectory.")
    load_config(None, [override, "synthetic.segments=1", *matcher])


# --- a configuration that came with somebody's files ---------------------------------------------------------------


def test_where_and_how_it_was_done_is_not_read_from_a_kept_configuration() -> None:
    kept = json.loads(RunConfig().model_dump_json())
    kept["name"] = "theirs"
    kept["data"] |= {"name": "parquet", "path": "s3://theirs/x", "download": True}
    kept["experts"]["cache"] = "/theirs"
    kept["runtime"] |= {"address": "theirs:6379", "workers": 99, "cpus_per_worker": 3, "task_minutes": 1}
    kept["score"]["shards"] = 7
    kept["seed"] = 5
    found = parse_result_keys(kept)
    usual = RunConfig()
    assert (found.data.path, found.data.download, found.experts.cache) == (None, False, None)
    assert (found.name, found.score.shards) == (usual.name, usual.score.shards)
    assert found.runtime == usual.runtime.model_copy(update={"cpus_per_worker": 3})
    assert (found.seed, found.data.name) == (5, "parquet")
    assert result_keys(found) == result_keys(parse_config(kept)), "all that affects the result is read"


def test_where_it_was_done_is_not_even_checked() -> None:
    assert parse_result_keys({"data": {"path": 3}, "runtime": {"address": ["x"]}, "networks": 3}) == RunConfig()
    with pytest.raises(ConfigError, match=r"seed: .*\ndata.nam: there is no such key|data.nam.*\nseed"):
        parse_result_keys({"data": {"nam": 3}, "seed": "x"})


# --- anything at all ---------------------------------------------------------------------------------------------

WORDS = [
    "data",
    "matcher",
    "name",
    "path",
    "seed",
    "synthetic",
    "ipc",
    "networks",
    "mlp",
    "lr",
    "runtime",
    "workers",
    "x",
]
VALUES = (
    st.sampled_from([value for _, value, _ in ODD_VALUES.values()])
    | st.sampled_from(
        ["1", "0", "-1", "0.5", "true", "null", "''", "idc", "[[0, 4]]", "[]", "{}", "{a: 1}", "&a 1", "*a", "? x"]
    )
    | st.text(max_size=20)
)
LINES = st.builds(
    lambda indent, word, value, end: f"{' ' * indent}{word}: {value}{end}",
    st.integers(0, 6),
    st.sampled_from(WORDS) | st.text(max_size=6),
    VALUES,
    st.sampled_from(["\n", "", ",", " }", " ]", "\n- "]),
)
TEXTS = st.lists(LINES, max_size=8).map("".join) | st.text(alphabet="ab:{}[]&*!|>%@`'\"#- \n\t01.,?~", max_size=60)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, *LEAVES]) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = st.sampled_from([*LEAVES, *WORDS, "networks.mlp.lr", "a.b.c.d.e", ".", ""]) | st.text(max_size=8)


def problems_raised(call: Any) -> tuple[str, ...]:
    try:
        call()
    except ConfigError as error:
        return error.problems or ("",)
    except RunDirError as error:
        return (str(error),)
    return ()


def only_sentences(call: Any) -> None:
    """Whatever was written is read, or refused in sentences of one line, within seconds."""
    begun = time.monotonic()
    problems = problems_raised(call)
    assert all(problem and "\n" not in problem and "S3CR3T" not in problem for problem in problems)
    assert time.monotonic() - begun < 5


SECRET = "s3://KEY:S3CR3T@bucket"


@pytest.mark.parametrize(
    "overrides",
    [
        [f"name={{'{SECRET}': 1}}"] * 2,
        [f"data={{'{SECRET}': 1}}", "data={a: 1}"],
        [f"{SECRET}=1", f"{SECRET}.b=2"],
        [f"name.{SECRET}.x=1", "name=1"],
        [f"name={{'{SECRET}': 1, '{SECRET}': 2}}"],
        [f"networks.{SECRET}.lr=x"],
        [f"a.b.c.d.e.{SECRET}=1"],
        [f"'{SECRET}'"],
    ],
)
def test_a_secret_that_was_typed_for_a_key_is_not_repeated(overrides: list[str]) -> None:
    problems = problems_raised(lambda: load_config(None, overrides))
    assert problems
    assert not any("S3CR3T" in problem for problem in problems), problems


@settings(max_examples=400)
@given(TEXTS)
def test_any_text_is_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    only_sentences(lambda: load_config(file))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(data)
    only_sentences(lambda: load_config(file))


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), TREES, max_size=4))
def test_any_tree_is_a_configuration_or_refused(tree: dict[str, Any]) -> None:
    only_sentences(lambda: parse_config(tree))
    only_sentences(lambda: parse_result_keys(tree))


@settings(max_examples=400)
@given(
    st.lists(
        st.builds(lambda key, mark, value: key + mark + value, KEYS, st.sampled_from(["=", " = ", ""]), VALUES),
        max_size=3,
    )
)
def test_any_override_is_taken_or_refused(overrides: list[str]) -> None:
    only_sentences(lambda: load_config(None, overrides))


@settings(max_examples=150)
@given(TEXTS)
def test_any_kept_configuration_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    place = tmp_path_factory.getbasetemp() / "kept"
    Place(place / "run.json").write_text("{}")
    (place / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    only_sentences(lambda: RunDir.read(place))


def test_what_a_recipe_leaves_to_each_run_is_unset_where_several_share_experts() -> None:
    recipe = {"name": "x", "runtime": {"compile": "auto", "workers": 2}}
    assert as_one_of_many(recipe) == {"name": "x", "runtime": {"workers": 2}}
    for kept in ({"runtime": {"compile": True}}, {"name": "x"}, {"runtime": None}):
        assert as_one_of_many(kept) == kept
    assert recipe["runtime"] == {"compile": "auto", "workers": 2}, "what was read stays as it was"


def test_steps_are_compiled_by_a_word_or_a_yes_or_a_no() -> None:
    for said in (True, False, None, "trainings", "graphs", "auto"):
        found = parse_config({"runtime": {"compile": said, "device": "cuda"}}).runtime.compile
        assert (found, type(found)) == (said, type(said))
    with pytest.raises(ConfigError, match=r"'maybe' must be True, False, 'trainings', 'graphs' or 'auto'"):
        parse_config({"runtime": {"compile": "maybe"}})
