"""The configuration as a user meets it: what is refused and in which words, and what a digest does and does not see.

What must stay true: the tests walk the fields themselves, so a field that is added later is held to the same rules.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pydantic
import pytest
from tree import LEAVES, PACKAGE, PROJECT, sections

import dasm_ray
from dasm_ray.config import keys
from dasm_ray.config.parsing import parse_config
from dasm_ray.config.plain_yaml import read_mapping
from dasm_ray.errors import ConfigError

INITS = ("mix", "loop", "cover", "real", "noise")

# --- fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEAVES)
def test_every_field_says_what_it_means(key: str) -> None:
    assert LEAVES[key].description


def test_keys_that_say_where_files_lie_are_listed() -> None:
    """Each says so by how it is described."""
    assert set(keys.PLACES) == {key for key, field in LEAVES.items() if "older or URI" in str(field.description)}


def test_settings_that_fall_back_to_the_matcher() -> None:
    assert [parse_config({"matcher": {"name": name}}).metric for name in ("idc", "dc", "dsa")] == ["mse", "cos", "cos"]
    assert parse_config({"matcher": {"name": "dc", "metric": "l1"}}).metric == "l1"
    assert parse_config({"matcher": {"name": "dc"}}).augment == "none"
    assert parse_config({"matcher": {"name": "dsa"}}).augment == "color_crop_cutout"


def test_the_last_snapshot_range_holds_for_the_segments_that_are_left() -> None:
    read = parse_config({"matcher": {"snapshots": [[0, 2], [1, 5]]}})
    assert [read.snapshots_of(segment) for segment in range(4)] == [(0, 2), (1, 5), (1, 5), (1, 5)]


def test_segments_are_equal_unless_their_sizes_are_given() -> None:
    assert parse_config({"synthetic": {"ipc": 12, "segments": 4}}).sizes == (3, 3, 3, 3)
    unequal = parse_config({"synthetic": {"ipc": 50, "segments": 3, "sizes": [17, 17, 16]}})
    assert unequal.sizes == (17, 17, 16)
    assert [unequal.size_up_to(segment) for segment in range(3)] == [17, 34, 50]


def rounds_of(segments: int, **matcher: object) -> list[int]:
    """Rounds of each of the segments, of 17, 17 and 16 images, and of the polish."""
    synthetic = {"ipc": 50, "segments": 3, "sizes": [17, 17, 16]} if segments == 3 else {"ipc": 50, "segments": 1}
    config = parse_config({"synthetic": synthetic, "matcher": {"rounds": 100, **matcher}})
    return [config.rounds_of(stage) for stage in range(segments + 1)]


def test_rounds_are_those_of_a_segment_or_of_the_whole_set_which_segments_share_by_size() -> None:
    assert rounds_of(3) == [100, 100, 100, 0]
    assert rounds_of(3, budget="set") == [34, 34, 32, 0]
    assert rounds_of(3, budget="set", polish=0.2) == [27, 27, 26, 20]
    assert rounds_of(3, polish=0.2) == [80, 80, 80, 60]
    assert rounds_of(1, polish=0.2) == rounds_of(1, budget="set", polish=0.2) == [100, 0], "it is the base matcher"
    for rounds in range(4, 200):
        assert sum(rounds_of(3, rounds=rounds, budget="set", polish=0.3)) == rounds


@pytest.mark.parametrize(
    ("ipc", "factor", "depth"),
    [(9, 1, 0), (10, 1, 0.25), (37, 2, 0.25), (38, 2, 0.5), (124, 2, 0.5), (125, 2, 0.75), (5000, 1, 0.75)],
)
def test_the_depth_grows_with_the_images_of_a_class(ipc: int, factor: int, depth: float) -> None:
    synthetic = {"ipc": ipc, "segments": 1, "factor": factor}
    assert parse_config({"synthetic": synthetic, "matcher": {"depth": True}}).depth_of(0) == depth
    assert parse_config({"synthetic": synthetic}).depth_of(0) == 0


def test_a_slot_starts_from_as_many_real_images_as_its_init_packs() -> None:
    factors = {init: parse_config({"synthetic": {"factor": 2, "init": init}}).start_factor for init in INITS}
    assert factors == {"mix": 2, "loop": 2, "cover": 2, "real": 1, "noise": 1}


def test_another_network_has_the_recipe_that_networks_says_and_the_norm_that_it_takes() -> None:
    run = parse_config({"model": {"depth": 2}, "networks": {"resnet18": {"lr": 0.5, "epochs": 7}}})
    assert run.under("convnet") is run
    assert (run.network_name, run.under("convnet:batch").network_name) == ("convnet", "convnet:batch")
    assert run.under("convnet:batch").model == run.model.model_copy(update={"norm": "batch"}), "all else is the run's"
    other = run.under("resnet18")
    assert (other.model.arch, other.model.norm, other.model.depth) == ("resnet18", "instance", None)
    assert (other.evaluate.lr, other.evaluate.epochs, other.evaluate.batch) == (0.5, 7, run.evaluate.batch)
    assert run.under("mlp").evaluate == run.evaluate
    for unknown in ("resnet", "mlp:batch", "resnet18:group"):
        with pytest.raises(ConfigError, match=f"{unknown}: there is no such network; take any of convnet:instance"):
            run.under(unknown)


def test_the_page_of_the_method_says_what_the_defaults_are_and_its_example_can_be_run() -> None:
    page = (PROJECT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    defaults = {row[0].strip("`"): row[1].strip("`") for row in rows}
    for key, said in defaults.items():
        default = LEAVES[key].default
        shown = {None: "equal segments", False: "false"}.get(default, str(default).removesuffix(".0"))
        assert said == ("0" if default == 0 and default is not False else shown), key
    (example,) = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    config = parse_config(read_mapping(example, "docs/method.md"))
    for key in defaults.keys() - {"matcher.deviation", "matcher.frontier_share"}:
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) != LEAVES[key].default, f"{key} is in the example"


# --- every field is read -----------------------------------------------------------------------------------------


@cache
def reads() -> frozenset[str]:
    """Every ``section.key`` that the package reads, outside dasm_ray/config.

    A read is an attribute of something that is named like the section (``config.matcher.rounds``, ``matcher.rounds``)
    or was declared as one (``def train(recipe: TrainRecipe)``). A property or method of RunConfig counts as a read of
    what it reads, once it is used.
    """
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "config" not in path.parents:
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
    return [keys.TrainRecipe, *sections().values()]


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
    tree = ast.parse(Path(keys.__file__).read_text(encoding="utf-8"))
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RunConfig")
    return {node.name: node for node in model.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("key", LEAVES)
def test_every_field_is_read_somewhere(key: str) -> None:
    assert key in reads(), f"{key} is set but nothing outside dasm_ray/config reads it"


@pytest.mark.parametrize(
    ("source", "key", "read"),
    [
        ("config.matcher.rounds", "matcher.rounds", True),
        ("def f(matcher: Matcher): return matcher.rounds", "matcher.rounds", True),
        ("def f(recipe: TrainRecipe): return recipe.lr", "probe.lr", True),
        ("def f(policy: keys.Window): return policy.trim", "window.trim", True),
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
    assert Path(dasm_ray.__path__[0]).parent == Path(__file__).parents[2]


def test_what_rounds_a_training_is_told_as_before_unless_its_precision_is_set() -> None:
    assert keys.Runtime(cpus_per_worker=2, compile=False).rounding("cpu") == (2, False, "cpu")
    assert keys.Runtime(compile="trainings").rounding("cpu") == keys.Runtime(compile=True).rounding("cpu")
    assert keys.Runtime(precision="bf16").rounding("cuda") == (1, None, "cuda", "bf16")


@pytest.mark.parametrize(("base_seed", "seed"), [(None, 7), (0, 0), (4, 4)])
def test_the_seed_of_a_table_is_its_own_where_it_has_one(base_seed: int | None, seed: int) -> None:
    assert parse_config({"seed": 7, "evaluate": {"base_seed": base_seed}}).evaluation_seed == seed


def test_the_polish_asks_for_no_network_that_knows_all_of_the_set() -> None:
    matcher = {"probe_share": 0.3, "bank_share": 0.4, "polish": 0.5}
    config = parse_config({"matcher": matcher, "synthetic": {"ipc": 2, "segments": 2}})
    assert [config.probe_share_of(stage) for stage in range(3)] == [0.3, 0.3, 0.0]
    assert [config.bank_share_of(stage) for stage in range(3)] == [0.4, 0.4, 0.0]
