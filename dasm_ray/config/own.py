"""Networks of the caller's own: ``MODULE:FUNCTION`` of what Python can import, or ``timm:NAME``.

What must stay true: such a name comes from a command line or a call, never from a file, since what it names is run;
and a network is another one once a module that its own imports has changed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError

TIMM = "timm"
INSTALLED = {"site-packages", "dist-packages"}
"""Folders whose modules are taken to stay as they are, like those of Python and of this package."""

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[\w.-]+")


def is_own(network: str) -> bool:
    """Whether a name is of this kind; a row of the table of networks has to be looked for before."""
    return NAME.fullmatch(network) is not None


def code_of(network: str) -> str:
    """What stands for the code of a network in digests: of its file and of those it imports, or the version of timm.

    Imports the network, and nothing else. Raises ConfigError where there is no such module or function.
    """
    module, _, _ = network.partition(":")
    function = function_of(network)
    if module == TIMM:
        try:
            return f"timm {version(TIMM)}"
        except PackageNotFoundError:
            return TIMM
    maker = getattr(function, "__module__", None) or module
    file = _file_of(maker) or _file_of(module)
    others = {name: path for name, path in _sources({module, maker}).items() if path != file}
    if not others:
        return "" if file is None else _sha256(file)[:16]
    total = hashlib.sha256()
    for name, path in sorted({maker: file, **others}.items()):
        total.update(f"{name}:{_sha256(path) if path else ''};".encode())
    return total.hexdigest()[:16]


def function_of(network: str) -> Callable[..., object]:
    """What makes the network: of one's own a function of (shape (C, H, W), classes), of timm its ``create_model``.

    Modules are looked for where Python looks, and in the working directory.
    """
    module, _, name = network.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        how = "pip install 'dasm-ray[timm]'" if module == TIMM else "run in its folder, or install it"
        raise ConfigError(f"{network}: {module} cannot be imported ({escaped(str(error), 200)}); {how}") from None
    function: Callable[..., object] | None = getattr(found, "create_model" if module == TIMM else name, None)
    if not callable(function):
        raise ConfigError(f"{network}: {module} has no function {name}; name one of (shape, classes)")
    return function


# --- what a module imports ---------------------------------------------------------------------------------------


def _sources(modules: set[str]) -> dict[str, Path]:
    """The files, by module, of ``modules`` and of all that these import; what is installed or empty is left out.

    Imports are found in the text, also those inside functions, so it does not matter what is imported by now.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    left = sorted(modules)
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        left += [name.rpartition(".")[0]] if "." in name else []  # a package is imported before what is in it
        path = _file_of(name)
        if path is None or path.suffix != ".py" or not _may_change(name, path) or not path.stat().st_size:
            continue
        found[name] = path
        left += _imports(name, path)
    return found


def _may_change(name: str, path: Path) -> bool:
    """Whether a module is the caller's own: not of Python, of this package, or installed."""
    top = name.partition(".")[0]
    return top not in (*sys.stdlib_module_names, __package__.partition(".")[0]) and not INSTALLED & set(path.parts)


def _imports(name: str, path: Path) -> Iterator[str]:
    """The names that a module may import: ``from a import b`` is a, and may be a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # imported by a function that nobody has called yet
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # more dots than packages
                origin = resolve_name("." * node.level + (node.module or ""), package)
                yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def _file_of(name: str) -> Path | None:
    """The file of a module, whether it is imported or not; None where there is none."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = _spec(name)
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file is not None and Path(file).is_file() else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module that is not imported lies; unlike `find_spec` of importlib, this imports no package on the way."""
    package = name.rpartition(".")[0]
    places = None
    if package:
        held = getattr(sys.modules[package], "__spec__", None) if package in sys.modules else _spec(package)
        places = None if held is None else held.submodule_search_locations
        if places is None:
            return None
    specs = (finder.find_spec(name, places) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
