"""The configuration as a user meets it: what is refused and in which words, and what a digest does and does not see.

What must stay true: the tests walk the fields themselves, so a field that is added later is held to the same rules.
"""

from __future__ import annotations

import ast
import pickle
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
import pytest
from pydantic.fields import FieldInfo

import dasm_ray
from dasm_ray import config
from dasm_ray.config import ArchRecipe, RunConfig, digest_of, load_config, parse_config, to_yaml, what
from dasm_ray.errors import ConfigError

PACKAGE = Path(config.__file__).parent
PROJECT = PACKAGE.parent


def problems_of(tree: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    return caught.value.problems


def sections() -> dict[str, type[pydantic.BaseModel]]:
    """Each section's class by its name in a recipe."""
    found = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {n: a for n, a in found.items() if isinstance(a, type) and issubclass(a, pydantic.BaseModel)}


def leaves() -> Iterator[tuple[str, FieldInfo]]:
    """Every field of every section as ``section.key``, and those of the top as ``key``."""
    inner = sections()
    yield from ((name, field) for name, field in RunConfig.model_fields.items() if name not in inner)
    for section, model in inner.items():
        yield from ((f"{section}.{name}", field) for name, field in model.model_fields.items())


LEAVES = dict(leaves())


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
        ("matcher.snapshots", [[0, 4, 5]], "at most 2 items"),
        ("matcher.snapshots", 4, "valid tuple"),
        ("data", None, "valid dictionary"),
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


WALKS: dict[str, Any] = {"matcher": {"name": "mtt"}, "trajectory": {"starts": [[0, 1, 2]]}}

IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("a norm of another", {"model": {"arch": "vit"}}, "model.norm: vit takes none, not instance; set model.norm to no"),
    ("no norm at all", {"model": {"arch": "vgg11", "norm": "none"}}, "model.norm: vgg11 takes instance or batch, not"),
    ("depth of another", {"model": {"arch": "resnet18", "depth": 3}}, "model.depth: resnet18 has a depth of its own"),
    ("ipc and segments", {"synthetic": {"ipc": 10, "segments": 3}}, "synthetic.ipc: 10 images a class cannot be cut"),
    ("batch and factor", {"synthetic": {"factor": 3}, "matcher": {"batch_syn": 8}}, "raise it to at least 9"),
    ("dc on experts", {"matcher": {"name": "dc", "network": "experts"}}, "matcher.network: dc trains its own network"),
    ("dsa on experts", {"matcher": {"name": "dsa", "network": "experts"}}, "matcher.network: dsa trains its own"),
    ("dsa that is dc", {"matcher": {"name": "dsa", "augment": "none"}}, "matcher.augment: dsa without augmentation"),
    ("dm that trains", {"matcher": {"name": "dm", "network": "train"}}, "matcher.network: dm trains no network"),
    ("a metric for dm", {"matcher": {"name": "dm", "metric": "l1"}}, "matcher.metric: has no meaning for dm"),
    (
        "groups of cafe",
        {"matcher": {"name": "cafe"}, "synthetic": {"group_size": 3}},
        "synthetic.group_size: cafe tells all classes apart",
    ),
    ("walks on tiles", {**WALKS, "synthetic": {"factor": 2}}, "synthetic.factor: mtt matches images as they are"),
    ("a metric for walks", {**WALKS, "matcher": {"name": "mtt", "metric": "cos"}}, "matcher.metric: has no meaning"),
    ("a net for walks", {**WALKS, "matcher": {"name": "mtt", "network": "train"}}, "matcher.network: has no meaning"),
    ("probes for walks", {**WALKS, "matcher": {"name": "mtt", "probe_share": 0.1}}, "matcher.probe_share: mtt starts"),
    (
        "one of no augmentations",
        {**WALKS, "matcher": {"name": "mtt", "augment": "none"}},
        "trajectory.single: there is",
    ),
    ("no starts", {**WALKS, "trajectory": {"starts": []}}, "trajectory.starts: is empty; give at least one row"),
    ("starts out of order", {**WALKS, "trajectory": {"starts": [[2, 2, 3]]}}, "trajectory.starts: [2, 2, 3] must be"),
    (
        "starts past the end",
        {**WALKS, "trajectory": {"starts": [[0, 1, 20]]}},
        "starts: a student that starts at epoch 19",
    ),
    ("empty range", {"matcher": {"snapshots": [[4, 4]]}}, "matcher.snapshots: [4, 4] is empty"),
    ("no range", {"matcher": {"snapshots": []}}, "matcher.snapshots: is empty; give at least one"),
    (
        "epochs not trained",
        {"matcher": {"snapshots": [[0, 7]]}, "experts": {"epochs": 5}},
        "matcher.snapshots: [0, 7] reaches past epoch 5",
    ),
    ("early beyond epochs", {"score": {"early": 6}, "experts": {"epochs": 5}}, "score.early: 6 is more than the 5"),
    (
        "forgetting in one epoch",
        {
            "score": {"static": "forgetting", "early": 1},
            "experts": {"epochs": 1},
            "matcher": {"snapshots": [[0, 1]]},
        },
        "score.static: forgetting needs at least 2 epochs",
    ),
    ("no distilled row", {"evaluate": {"rows": ["random"]}}, "evaluate.rows: must hold at least distilled and random"),
    ("no random row", {"evaluate": {"rows": ["distilled"]}}, "evaluate.rows: must hold at least distilled and random"),
    ("one GPU and a half", {"runtime": {"gpus_per_worker": 1.5}}, "runtime.gpus_per_worker: 1.5 is neither"),
]


@pytest.mark.parametrize(("tree", "part"), [row[1:] for row in IMPOSSIBLE], ids=[row[0] for row in IMPOSSIBLE])
def test_an_impossible_combination_is_refused(tree: dict[str, Any], part: str) -> None:
    (sentence,) = problems_of(tree)
    assert part in sentence


def test_every_impossible_combination_has_a_case() -> None:
    """One ``yield`` of config.impossible, one key at the head of its sentence, at least one case above."""
    functions = [
        node
        for node in ast.parse(Path(config.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "impossible" in node.name
    ]
    written = [
        ast.unparse(node) for function in functions for node in ast.walk(function) if isinstance(node, ast.Yield)
    ]
    sentences = {problems_of(tree)[0] for _, tree, _ in IMPOSSIBLE}
    starts = {sentence.split(" ")[0] for sentence in sentences}
    for line in written:
        assert any(start in line for start in starts) or "{key}" in line, line
    assert len(IMPOSSIBLE) >= len(written)


@pytest.mark.parametrize(
    "tree",
    [
        {"synthetic": {"factor": 2}, "matcher": {"batch_syn": 4}},
        {"matcher": {"snapshots": [[0, 6]]}, "experts": {"epochs": 5}},
        {"matcher": {"name": "dc", "augment": "none"}},
        {"model": {"arch": "vit", "norm": "none"}},
        {"runtime": {"gpus_per_worker": 0.25}},
        {"runtime": {"gpus_per_worker": 2}},
    ],
)
def test_the_edge_of_the_possible_is_accepted(tree: dict[str, Any]) -> None:
    parse_config(tree)


def test_combinations_are_told_together() -> None:
    tree = {"synthetic": {"ipc": 10, "segments": 3, "factor": 12}, "evaluate": {"rows": ["full"]}}
    assert len(problems_of(tree)) == 3


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
    with pytest.raises(ConfigError, match="cannot be read"):
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
        {"matcher": {"network": "train", "snapshots": [[0, 2], [2, 4]]}, "model": {"depth": 2}},
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
    assert digest_of(what(again)) == digest_of(what(first))


def test_every_recipe_in_configs_can_be_meant() -> None:
    recipes = sorted((PROJECT / "configs").rglob("*.yaml"))
    recipes = [recipe for recipe in recipes if "sweeps" not in recipe.parts]
    assert recipes, "configs/ holds the recipes"
    for recipe in recipes:
        load_config(recipe)


# --- fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEAVES)
def test_every_field_says_what_it_means(key: str) -> None:
    assert LEAVES[key].description


def another(field: FieldInfo, value: Any) -> Any:
    """A value of the field's type other than ``value``."""
    options = [choice for choice in choices(field.annotation) if choice != value]
    if options:
        return options[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {"mlp": ArchRecipe(lr=1)}
    if isinstance(value, tuple):
        return value[:-1] if len(value) > 1 else value * 2
    return f"{value}x" if isinstance(value, str) else 3 if value is None else value + 1


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of ``Literal[...]``, also where None may stand instead."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return parts
    return sum(map(choices, parts), ()) if isinstance(annotation, types.UnionType) else ()


def changed(key: str) -> RunConfig:
    """The default configuration with one field changed."""
    base = RunConfig()
    section, _, name = key.rpartition(".")
    holder = getattr(base, section) if section else base
    holder = holder.model_copy(update={name: another(LEAVES[key], getattr(holder, name))})
    return base.model_copy(update={section: holder}) if section else holder


def is_how(key: str) -> bool:
    extra = LEAVES[key].json_schema_extra
    return isinstance(extra, dict) and extra.get("affects_result") is False


@pytest.mark.parametrize("key", LEAVES)
def test_the_digest_sees_exactly_the_fields_that_can_change_the_result(key: str) -> None:
    before, after = RunConfig(), changed(key)
    assert after != before
    assert (digest_of(what(after)) == digest_of(what(before))) == is_how(key)


def test_what_a_run_is_does_not_hold_where_it_is_done() -> None:
    """Written out, so that marking one more field as HOW is a decision that this line records."""
    assert sorted(filter(is_how, LEAVES)) == [
        "data.download",
        "data.path",
        "experts.cache",
        "name",
        "networks",
        "runtime.address",
        "runtime.checkpoint_seconds",
        "runtime.idle_seconds",
        "runtime.max_lost",
        "runtime.memory_per_worker",
        "runtime.task_minutes",
        "runtime.workers",
        "score.shards",
    ]


def test_a_digest_is_stable_and_sees_the_order_of_its_parts() -> None:
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    assert digest_of(1, 2) != digest_of(2, 1)
    assert len(digest_of()) == 16


def test_settings_that_fall_back_to_the_matcher() -> None:
    assert [parse_config({"matcher": {"name": name}}).metric for name in ("idc", "dc", "dsa")] == ["mse", "cos", "cos"]
    assert parse_config({"matcher": {"name": "dc", "metric": "l1"}}).metric == "l1"
    assert parse_config({"matcher": {"name": "dc"}}).augment == "none"
    assert parse_config({"matcher": {"name": "dsa"}}).augment == "color_crop_cutout"


def test_the_last_snapshot_range_holds_for_the_segments_that_are_left() -> None:
    read = parse_config({"matcher": {"snapshots": [[0, 2], [1, 5]]}})
    assert [read.snapshots_of(segment) for segment in range(4)] == [(0, 2), (1, 5), (1, 5), (1, 5)]
    assert parse_config({"synthetic": {"ipc": 12, "segments": 4}}).segment_ipc == 3


def test_another_network_has_the_recipe_that_networks_says_and_the_norm_that_it_takes() -> None:
    run = parse_config({"model": {"depth": 2}, "networks": {"resnet18": {"lr": 0.5, "epochs": 7}}})
    assert run.under("convnet") is run
    assert (run.network_name, run.under("convnet:batch").network_name) == ("convnet", "convnet:batch")
    other = run.under("resnet18")
    assert (other.model.arch, other.model.norm, other.model.depth) == ("resnet18", "instance", None)
    assert (other.evaluate.lr, other.evaluate.epochs, other.evaluate.batch) == (0.5, 7, run.evaluate.batch)
    assert run.under("mlp").evaluate == run.evaluate
    for unknown in ("resnet", "mlp:batch", "resnet18:group"):
        with pytest.raises(ConfigError, match=f"{unknown}: there is no such network; take any of convnet:instance"):
            run.under(unknown)


def test_a_typo_in_the_recipe_of_a_network_is_named() -> None:
    (problem,) = problems_of({"networks": {"mlp": {"lrr": 1}}})
    assert problem == "networks.mlp.lrr: there is no such key; did you mean 'lr'?"
    (problem,) = problems_of({"networks": {"resnet": {"lr": 1}}})
    assert "networks.resnet" in problem
    assert "did you mean 'resnet18'?" in problem


# --- every field is read -----------------------------------------------------------------------------------------


@cache
def reads() -> frozenset[str]:
    """Every ``section.key`` that the package reads, outside config.py.

    A read is an attribute of something that is named like the section (``config.matcher.rounds``, ``matcher.rounds``)
    or was declared as one (``def train(recipe: TrainRecipe)``). A property or method of RunConfig counts as a read of
    what it reads, once it is used.
    """
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path != Path(config.__file__):
            found |= reads_of(ast.parse(path.read_text(encoding="utf-8")))
    derived = {name: reads_of(node) for name, node in derived_settings().items()}
    return frozenset(found.union(*(derived[key] for key in found if key in derived)))


def reads_of(tree: ast.AST) -> set[str]:
    holders = declared_holders(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder = last_name(node.value)
            found |= {f"{section}.{node.attr}" for section in holders.get(holder, {holder})}
            if holder in ("config", "self", *holders.get("RunConfig", ())):
                found.add(node.attr)
    return found


def declared_holders(tree: ast.AST) -> dict[str, set[str]]:
    """The sections that a declared name may hold: ``recipe: TrainRecipe`` may hold any section that is a recipe."""
    by_class = {model.__name__: {n for n, m in sections().items() if issubclass(m, model)} for model in models()}
    holders: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            name = node.arg if isinstance(node, ast.arg) else last_name(node.target)
            holders.setdefault(name, set()).update(*(by_class.get(n, ()) for n in names_in(node.annotation)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target, value in pairs(node.targets[0], node.value):
                if last_name(value) in sections():
                    holders.setdefault(last_name(target), set()).add(last_name(value))
    return {name: held for name, held in holders.items() if held}


def models() -> list[type[pydantic.BaseModel]]:
    return [config.TrainRecipe, *sections().values()]


def pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def names_in(annotation: ast.expr) -> set[str]:
    return {last_name(node) for node in ast.walk(annotation) if isinstance(node, ast.expr)}


def derived_settings() -> dict[str, ast.FunctionDef]:
    """The properties and methods of RunConfig by name."""
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RunConfig")
    return {node.name: node for node in model.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("key", LEAVES)
def test_every_field_is_read_somewhere(key: str) -> None:
    assert key in reads(), f"{key} is set but nothing outside config.py reads it"


@pytest.mark.parametrize(
    ("source", "key", "read"),
    [
        ("config.matcher.rounds", "matcher.rounds", True),
        ("def f(matcher: Matcher): return matcher.rounds", "matcher.rounds", True),
        ("def f(recipe: TrainRecipe): return recipe.lr", "probe.lr", True),
        ("def f(policy: config.Window): return policy.trim", "window.trim", True),
        ("m, w = run.matcher, run.window\nm.rounds", "matcher.rounds", True),
        ("config.seed", "seed", True),
        ("batch.rounds", "matcher.rounds", False),
        ("config.probe.batch", "evaluate.batch", False),
        ("matcher.rounds = 3", "matcher.rounds", False),
        ("'matcher.rounds'", "matcher.rounds", False),
    ],
)
def test_the_search_for_reads_finds_reads_and_nothing_else(source: str, key: str, read: bool) -> None:
    assert (key in reads_of(ast.parse(source))) == read


def test_the_package_is_the_one_of_this_checkout() -> None:
    assert Path(dasm_ray.__path__[0]).parent == Path(__file__).parent.parent
