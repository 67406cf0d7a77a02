"""Holds the code to the picture of the layers: who imports whom, who may touch what, and what ``--help`` costs.

What must stay true: the rules are read off the source by parsing it, so a rule also holds for code that no test runs;
each rule is itself tried on a line that breaks it.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "dasm_ray", ROOT / "tests"

BASE = {"config", "errors", "plain"}
MAY_IMPORT: dict[str, set[str]] = {
    # each part of the package, and the other parts that it may import: the arrows of the picture
    "__main__": {"cli"},
    "api": {"pipeline", "studies", "report", "store", *BASE},
    "cli": {"pipeline", "synthetic", "runtime", "report", "store", "core", *BASE},
    "pipeline": {"studies", "method", "runtime", "report", "store", "core", *BASE},
    "studies": {"method", "runtime", "report", "store", "core", *BASE},
    "method": {"runtime", "store", "core", *BASE},
    "synthetic": {"store", "core", *BASE},
    "runtime": {"store", "core", *BASE},
    "report": {"store", "core", *BASE},
    "store": BASE,
    "core": BASE,
    "config": {"errors", "plain"},
    "errors": set(),
    "plain": set(),
}
"""The package's own ``__init__`` stands outside: it names the public functions, and imports each when asked for it."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    # a library, and the files that alone may import it
    "ray": ("runtime/",),
    "click": ("cli.py",),
    "rich": ("cli.py", "report/", "runtime/progress.py"),
    "matplotlib": ("report/figures.py",),
    "jinja2": ("report/webpage.py",),
    "markupsafe": ("report/",),
}
NOT_IN_CORE = {
    *(
        "os",
        "pathlib",
        "io",
        "shutil",
        "tempfile",
        "glob",
        "fsspec",
        "pyarrow",
        "PIL",
        "safetensors",
        "torchvision",
    ),  # disks
    *("time", "datetime"),  # clocks
    *("random", "secrets", "uuid"),  # generators that nobody seeded
}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
HEAVY = ("torch", "torchvision", "ray", "sklearn", "pyarrow", "matplotlib", "jinja2")
"""What ``--help`` must not wait for."""

WITHOUT_TWIN = {
    "__init__.py": "holds names only; what they lead to is tested where it lives",
    "__main__.py": "three lines; test_help_through_the_front_door runs it",
    "errors.py": "declarations; the one with code, ConfigError, is tested with the configuration",
    "plain.py": "names of types only",
    "runtime/autoscaler.py": "only a real autoscaler can say anything, see test_autoscaling.py",
}
"""Files of the package that have no test file of their own, and why."""

WITHOUT_ORIGINAL = {
    "gpu/test_cuda.py",
    "test_architecture.py",
    "test_autoscaling.py",
    "test_bench.py",
    "test_cluster.py",
    "test_docs.py",
    "test_elsewhere.py",
    "test_faults.py",
    "test_notebooks.py",
    "test_peers.py",
    "test_rotation.py",
    "test_same_bytes.py",
    "test_soak.py",
    "test_wheel.py",
}
"""Tests of the package as a whole, and of what lies beside it."""


# --- reading source ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One file of the package, parsed. ``path`` is relative to the package, ``core/window.py``."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def part(self) -> str:
        """The layer that the file belongs to: ``core``, ``cli``."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        dotted = "dasm_ray/" + self.path.removesuffix(".py").removesuffix("/__init__")
        return dotted.replace("/", ".").removesuffix(".__init__")

    @cached_property
    def imports(self) -> list[str]:
        """Full dotted names of all that is imported anywhere in the file, also inside functions and by string."""
        return [name for node in ast.walk(self.tree) for name in self.imported_by(node)]

    @cached_property
    def imports_at_once(self) -> list[str]:
        """The same for what runs when the module is imported: not inside functions, not for type checkers only."""
        return [name for node in at_module_level(self.tree) for name in self.imported_by(node)]

    def imported_by(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = self.absolute(node)
            return [f"{base}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Call) and self.dotted(node.func) in ("importlib.import_module", "__import__"):
            return [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        return []

    def absolute(self, node: ast.ImportFrom) -> str:
        """``from ..errors import X`` as an absolute module name."""
        if not node.level:
            return node.module or ""
        package = self.module.split(".") if self.path.endswith("__init__.py") else self.module.split(".")[:-1]
        return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Local names of imported things: ``np`` is numpy, ``F`` is torch.nn.functional."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {
                    a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                found |= {a.asname or a.name: f"{self.absolute(node)}.{a.name}" for a in node.names}
        return found

    def dotted(self, node: ast.expr) -> str:
        """``np.random.rand`` as numpy.random.rand; a method of something unknown as ``?.rand``."""
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        return self.aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    @cached_property
    def calls(self) -> list[tuple[str, ast.Call]]:
        return [(self.dotted(node.func), node) for node in ast.walk(self.tree) if isinstance(node, ast.Call)]


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_module_level(child)


def sources() -> list[Source]:
    files = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
    return [Source(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) for path in files]


SOURCES = sources()


def library(name: str) -> str:
    return name.split(".")[0]


def own_parts(names: list[str]) -> set[str]:
    """The parts of this package among imported names; the package itself stands for ``__init__``."""
    return {[*name.split("."), "__init__"][1] for name in names if library(name) == "dasm_ray"}


# --- the rules: each takes a file and yields what is wrong with it -------------------------------------------------


def wrong_way(source: Source) -> Iterator[str]:
    if source.path == "__init__.py":
        return
    if source.part not in MAY_IMPORT:
        yield f"{source.part} has no place in MAY_IMPORT"
        return
    for part in sorted(own_parts(source.imports) - {source.part} - MAY_IMPORT[source.part]):
        yield f"imports {part}"


def foreign_library(source: Source) -> Iterator[str]:
    for name in source.imports:
        homes = ONLY_IN.get(library(name))
        if homes is not None and not source.path.startswith(homes):
            yield f"imports {name}; only {' and '.join(homes)} may"


def impure_core(source: Source) -> Iterator[str]:
    if source.part != "core":
        return
    yield from (f"imports {name}" for name in source.imports if library(name) in NOT_IN_CORE)
    for name, _ in source.calls:
        if name == "open" or name in ("numpy.load", "numpy.save", "numpy.savez", "torch.load", "torch.save"):
            yield f"calls {name}"


def torch_in_store(source: Source) -> Iterator[str]:
    if source.part in ("store", "config", "errors"):
        heavy = ("torch", "torchvision")
        yield from (f"imports {name} when it is imported" for name in source.imports_at_once if library(name) in heavy)


def pickled(source: Source) -> Iterator[str]:
    yield from (f"imports {name}" for name in source.imports if PICKLES & set(name.split(".")))
    for name, call in source.calls:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if name == "torch.load" or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            yield f"calls {name}"
        if name == "numpy.load" and not is_false(keywords.get("allow_pickle", ast.Constant(False))):
            yield "calls numpy.load with allow_pickle"
        if name.endswith((".read_pickle", ".to_pickle")):
            yield f"calls {name}"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


TORCH_DRAWS = {
    f"torch.{name}"
    for name in (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        *("normal", "bernoulli", "multinomial", "poisson"),
    )
}
TENSOR_DRAWS = tuple(
    f".{name}_"
    for name in ("normal", "uniform", "random", "bernoulli", "exponential", "cauchy", "geometric", "log_normal")
)
INIT_DRAWS = ("uniform_", "normal_", "trunc_normal_", "orthogonal_", "sparse_")
GLOBAL_STATE = (
    *("torch.manual_seed", "torch.seed", "torch.initial_seed", "torch.get_rng_state", "torch.set_rng_state"),
    *("torch.random.", "torch.cuda.manual_seed", "torch.cuda.seed", "torch.nn.functional.dropout", "torch.nn.Dropout"),
    *("torch.nn.functional.rrelu", "torch.nn.functional.gumbel_softmax", "torch.default_generator"),
)
NUMPY_RANDOM = ("numpy.random.Generator", "numpy.random.PCG64")


SEEDS_THE_GLOBAL_ONE = "core/networks/foreign.py"
"""Modules of others draw from it, so there it is seeded before they do."""


def global_generator(source: Source) -> Iterator[str]:
    """Every draw names its generator, and every generator its seed."""
    if source.path == SEEDS_THE_GLOBAL_ONE:
        return
    for name, call in source.calls:
        given = {keyword.arg for keyword in call.keywords}
        if draws(name) and "generator" not in given:
            yield f"calls {name} without generator="
        if name == "numpy.random.PCG64" and not (call.args or call.keywords):
            yield "calls numpy.random.PCG64 without a seed"
        if name.endswith(".seed") and not (call.args or call.keywords):
            yield f"calls {name}(), which seeds from the clock"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = source.dotted(node)
            if name.startswith(GLOBAL_STATE):
                yield f"uses {name}"
            if name.startswith("numpy.random.") and not name.startswith(NUMPY_RANDOM):
                yield f"uses {name}"


def draws(name: str) -> bool:
    if name.startswith("torch.nn.init."):
        return name.endswith(INIT_DRAWS)
    return name in TORCH_DRAWS or name.endswith(TENSOR_DRAWS) or name.endswith(".bernoulli")


def unseeded_module(source: Source) -> Iterator[str]:
    yield from (f"imports {name}" for name in source.imports if library(name) == "random")


MATCHER_NAMES = {"idc", "dc", "dsa", "dm", "cafe", "mtt", "datm"}

ON_WORKERS = ("core/", "runtime/worker.py")


def device_of_the_driver(source: Source) -> Iterator[str]:
    """The driver may run where there is no GPU: only what runs on workers puts anything on a device."""
    if source.path.startswith(ON_WORKERS):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and source.dotted(node).startswith("torch.cuda"):
            yield f"uses {source.dotted(node)}"
    for name, call in source.calls:
        if name.endswith((".to", ".cuda")) or any(keyword.arg == "device" for keyword in call.keywords):
            yield f"calls {name}, which may put a tensor on a device"


def matcher_by_name(source: Source) -> Iterator[str]:
    """What a matcher is stands in its row of the table; who asks for it by name or by class has a second table."""
    if source.path == "config/matchers.py":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Compare) and MATCHER_NAMES & set(constants_of(node)):
            yield f"compares with {sorted(MATCHER_NAMES & set(constants_of(node)))}"
    for name, call in source.calls:
        if name == "isinstance" and "Matching" in ast.unparse(call.args[1]):
            yield f"asks for {ast.unparse(call.args[1])}"


def constants_of(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def no_docstring(source: Source) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield "does not open with a docstring that says what it is for"


def forgotten_f(source: Source) -> Iterator[str]:
    """A call in braces, in a text that nobody fills in: the user would read the code."""
    filled = {id(part) for node in ast.walk(source.tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in filled:
            yield from (f"shows {call} as it is" for call in re.findall(r"\{[A-Za-z_][\w.]*\(.*?\}", node.value))


def full_init(source: Source) -> Iterator[str]:
    if source.path.endswith("/__init__.py") and source.text.strip():
        yield "is not empty"


Rule = Callable[[Source], Iterator[str]]
RULES: tuple[Rule, ...] = (
    *(wrong_way, foreign_library, impure_core, torch_in_store, pickled),
    *(global_generator, unseeded_module, device_of_the_driver, matcher_by_name, no_docstring, forgotten_f, full_init),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    broken = [f"dasm_ray/{source.path}: {fault}" for source in SOURCES for fault in rule(source)]
    assert not broken, "\n".join(["", *broken])


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (wrong_way, "core/x.py", "from dasm_ray.store import artifact"),
        (wrong_way, "core/matching/x.py", "from ...store import artifact"),
        (wrong_way, "store/x.py", "import dasm_ray.core.window"),
        (wrong_way, "runtime/x.py", "def f():\n    from dasm_ray import report"),
        (wrong_way, "report/x.py", "from dasm_ray.runtime.pool import Pool"),
        (wrong_way, "synthetic.py", "from dasm_ray import pipeline"),
        (wrong_way, "pipeline.py", "from dasm_ray.cli import main"),
        (wrong_way, "config/keys.py", "from dasm_ray.core import window"),
        (wrong_way, "store/x.py", "import dasm_ray"),
        (wrong_way, "helpers.py", ""),
        (foreign_library, "pipeline.py", "def f():\n    import ray"),
        (foreign_library, "core/window.py", "from ray.exceptions import RayError"),
        (foreign_library, "cli.py", "import importlib\nimportlib.import_module('ray')"),
        (foreign_library, "pipeline.py", "import click"),
        (foreign_library, "runtime/pool.py", "from rich.console import Console"),
        (foreign_library, "report/sections.py", "def f():\n    import matplotlib.pyplot"),
        (foreign_library, "cli.py", "from jinja2 import Environment"),
        (impure_core, "core/x.py", "import os.path"),
        (impure_core, "core/x.py", "def f():\n    from time import monotonic"),
        (impure_core, "core/x.py", "open('x')"),
        (impure_core, "core/x.py", "import numpy as np\nnp.save('x', 1)"),
        (torch_in_store, "store/x.py", "import torch"),
        (torch_in_store, "store/x.py", "try:\n    from torchvision import datasets\nexcept ImportError:\n    pass"),
        (pickled, "store/x.py", "import pickle"),
        (pickled, "runtime/x.py", "from ray import cloudpickle"),
        (pickled, "synthetic.py", "import torch as t\nt.load('x')"),
        (pickled, "store/x.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
        (pickled, "config/parsing.py", "import yaml\nyaml.load('x')"),
        (global_generator, "core/x.py", "import torch\ntorch.randn(3)"),
        (global_generator, "core/x.py", "from torch import randperm as shuffle\nshuffle(3)"),
        (global_generator, "core/x.py", "def f(x):\n    x.normal_(0, 1)"),
        (global_generator, "core/x.py", "def f(x):\n    (x + 1).uniform_()"),
        (global_generator, "core/x.py", "from torch import nn\nnn.init.kaiming_normal_(1)"),
        (global_generator, "core/x.py", "from torch.nn import functional as F\nF.dropout(1)"),
        (global_generator, "runtime/x.py", "import torch\ntorch.manual_seed(0)"),
        (global_generator, "core/x.py", "import numpy as np\nnp.random.rand(3)"),
        (global_generator, "core/x.py", "from numpy.random import default_rng\ndefault_rng()"),
        (global_generator, "core/x.py", "import numpy as np\nnp.random.Generator(np.random.PCG64())"),
        (global_generator, "core/x.py", "def f(generator):\n    generator.seed()"),
        (unseeded_module, "runtime/x.py", "import random"),
        (device_of_the_driver, "method/x.py", "import torch\ntorch.cuda.synchronize()"),
        (device_of_the_driver, "pipeline.py", "def f(here, x):\n    return x.to(here.job.device)"),
        (device_of_the_driver, "runtime/pool.py", "import torch\ndef f(d):\n    return torch.zeros(3, device=d)"),
        (matcher_by_name, "method/x.py", "def f(config):\n    return config.matcher.name in ('mtt', 'datm')"),
        (matcher_by_name, "core/x.py", "def f(m):\n    return isinstance(m, GradientMatching)"),
        (no_docstring, "core/x.py", "import torch"),
        (forgotten_f, "config/x.py", "def f(text):\n    return '--set {shown(text)}'"),
        (full_init, "core/__init__.py", "from dasm_ray.core.window import window"),
    ],
)
def test_a_line_that_breaks_the_rule_is_seen(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("__init__.py", "'''Doc.'''\ndef __getattr__(name):\n    from dasm_ray import synthetic, pipeline"),
        ("core/matching/x.py", "'''Doc.'''\nfrom ..window import window\nfrom dasm_ray.core import params"),
        ("store/x.py", "'''Doc.'''\nimport io, os, time\ndef f():\n    import torch\n    open('x')"),
        ("store/x.py", "'''Doc.'''\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("runtime/x.py", "'''Doc.'''\nimport ray\nfrom ray.exceptions import RayError"),
        (
            "core/x.py",
            "'''Doc.'''\nimport torch\ndef f(g):\n    return torch.randn(3, generator=g).normal_(generator=g)",
        ),
        (
            "core/x.py",
            "'''Doc.'''\nimport numpy as np\nr = np.random.Generator(np.random.PCG64(3))\nr.normal()\nr.random()",
        ),
        (
            "core/x.py",
            "'''Doc.'''\nfrom torch import nn\nnn.init.zeros_(1)\nfrom dasm_ray.core.selection import random",
        ),
        ("synthetic.py", "'''Doc.'''\nimport numpy as np, torch\ntorch.save(1, 'x')\nnp.load('x', allow_pickle=False)"),
        (
            "runtime/worker.py",
            "'''Doc.'''\nimport torch\ndef f(d):\n    torch.cuda.empty_cache()\n    torch.ones(1).to(d)",
        ),
        ("runtime/x.py", "'''Doc.'''\nimport torch.version\nbuilt_for = torch.version.cuda"),
        ("config/x.py", "'''Doc.'''\ndef f(text):\n    return f'--set {shown(text)}' + '{what}'"),
        ("core/__init__.py", ""),
    ],
)
def test_a_file_that_keeps_the_rules_passes_them_all(path: str, text: str) -> None:
    assert [fault for rule in RULES for fault in rule(Source(path, text))] == []


# --- the package as a whole --------------------------------------------------------------------------------------


def in_circles(files: list[Source]) -> list[str]:
    """The modules that import one another in a circle, or lead to such: what is left when leaves are taken away."""
    modules = {source.module for source in files}
    arrows = {source.module: modules_among(source.imports, modules) - {source.module} for source in files}
    while leaves := {module for module, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}
    return sorted(arrows)


def modules_among(names: list[str], modules: set[str]) -> set[str]:
    """The modules that imported names lead to: ``dasm_ray.core.window.window`` to the file core/window.py."""
    return {max((m for m in modules if f"{name}.".startswith(f"{m}.")), key=len, default="") for name in names}


def test_no_import_goes_round_in_a_circle() -> None:
    """Also not by an import inside a function, which would only hide the circle."""
    assert in_circles([source for source in SOURCES if source.path != "__init__.py"]) == []


def test_a_circle_is_seen() -> None:
    a = Source("core/a.py", "from dasm_ray.core.b import x")
    b = Source("core/b.py", "def f():\n    from dasm_ray.core import c")
    c = Source("core/c.py", "from .a import y")
    assert in_circles([a, b]) == []
    assert in_circles([a, b, c]) == ["dasm_ray.core.a", "dasm_ray.core.b", "dasm_ray.core.c"]


def test_every_sub_package_has_its_empty_init() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_a_wheel_holds_every_sub_package() -> None:
    """They are named one by one, since the recipes join them from elsewhere; one that is forgotten is in no wheel."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert sorted(setup["packages"]) == sorted({*folders, "dasm_ray.configs"})
    assert [name for name in setup["package-dir"].values() if not (ROOT / name).is_dir()] == []
    patterns = setup["package-data"]["dasm_ray.configs"]
    held = {path for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    assert held == {path for path in (ROOT / "configs").rglob("*") if path.is_file()}


def twin(path: str) -> str:
    """Where the tests of a file are."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/test_{name}".lstrip("/")


def test_files() -> set[str]:
    found = (path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))
    return {path.as_posix() for path in found if path.parts[0] != "benchmarks"}


test_files.__test__ = False  # type: ignore[attr-defined]


def test_every_file_has_its_tests_or_a_reason() -> None:
    present = test_files()
    code = {source.path for source in SOURCES if not source.path.endswith("/__init__.py")}
    assert [path for path in sorted(code - WITHOUT_TWIN.keys()) if twin(path) not in present] == []


def test_the_reasons_are_of_today() -> None:
    code, present = {source.path for source in SOURCES}, test_files()
    assert [path for path in WITHOUT_TWIN if path not in code or twin(path) in present] == []


def test_every_test_file_has_its_original() -> None:
    expected = {twin(source.path) for source in SOURCES}
    assert sorted(test_files() - expected - WITHOUT_ORIGINAL) == []


def stems_that_stand_twice(paths: list[str]) -> list[str]:
    stems = [path.rpartition("/")[2] for path in paths if not path.endswith("__init__.py")]
    return sorted({stem for stem in stems if stems.count(stem) > 1})


def test_a_file_stem_occurs_once() -> None:
    """So a name alone says which room is meant."""
    assert stems_that_stand_twice([source.path for source in SOURCES]) == []
    assert stems_that_stand_twice(["core/x.py", "core/y/x.py", "y.py", "a/__init__.py", "b/__init__.py"]) == ["x.py"]


def test_names_of_test_files_differ() -> None:
    """pytest imports them by their bare names, as there are no packages among the tests."""
    names = [path.rpartition("/")[2] for path in test_files()]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
    assert list(TESTS.rglob("__init__.py")) == []


def tree_of(page: str) -> list[tuple[str, str]]:
    """Every file of the tree in a page, in its order, and the phrase beside it."""
    folders: list[str] = []
    found: list[tuple[str, str]] = []
    for line in page[page.index("    dasm_ray/\n") :].splitlines():
        if not line.strip():
            break
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        name, _, phrase = line.strip().partition(" ")
        if name.endswith("/"):
            folders[depth:] = [name]
        elif folders[:1] == ["dasm_ray/"]:
            found.append(("".join(folders[1:depth]) + name, phrase.strip()))
    return found


def test_the_tree_of_the_house_says_of_every_file_what_its_header_says() -> None:
    """It is docs/house.md, which the README leads to: with a line for every file the README would be twice as long."""
    tree = tree_of((ROOT / "docs" / "house.md").read_text())
    assert len(tree) == len(dict(tree)), "a file stands in the tree once"
    headers = {source.path: " ".join((ast.get_docstring(source.tree) or "").split()) for source in sources()}
    assert set(dict(tree)) == {name for name, header in headers.items() if header}
    for name, phrase in tree:
        follows = headers[name].removeprefix(phrase)[:1]
        assert headers[name].startswith(phrase), name
        assert follows in {"", " ", ".", ",", ":", ";"}, name


def test_every_test_file_says_what_it_is_for() -> None:
    silent = [str(path) for path in TESTS.rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []


# --- what --help costs -------------------------------------------------------------------------------------------

HELP = f"""
import contextlib, io, json, sys
import click
from dasm_ray import cli

def commands(group, path=()):
    yield path
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)

group = next(value for value in vars(cli).values() if isinstance(value, click.Group))
report = {{}}
for path in commands(group):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = group.main([*path, "--help"], prog_name="dasm-ray", standalone_mode=False)
    loaded = sorted(set({HEAVY!r}) & set(sys.modules))
    report[" ".join(path)] = [code, shown.getvalue(), loaded]
print(json.dumps(report))
"""


def fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The output of an interpreter that has imported nothing yet; it must exit with 0."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_help_of_every_command_waits_for_no_heavy_library() -> None:
    report = json.loads(fresh_python("-c", HELP).stdout)
    assert {"distill", "evaluate"} <= report.keys(), "the commands were found"
    assert {command: loaded for command, (_, _, loaded) in report.items() if loaded} == {}
    assert all("Usage: dasm-ray" in shown and code in (0, None) for code, shown, _ in report.values())


def test_help_through_the_front_door() -> None:
    """The real command line, with the interpreter's own list of what it imported."""
    done = fresh_python("-X", "importtime", "-m", "dasm_ray", "--help")
    assert "distill" in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported, "the list was read"
    assert sorted(imported & set(HEAVY)) == []
