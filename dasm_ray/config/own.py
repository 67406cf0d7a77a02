"""Networks of the caller's own: ``MODULE:FUNCTION`` of what Python can import, or ``timm:NAME``.

What must stay true: such a name comes from a command line or a call, never from a file, since what it names is run.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError

TIMM = "timm"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[\w.-]+")


def is_own(network: str) -> bool:
    """Whether a name is of this kind; a row of the table of networks has to be looked for before."""
    return NAME.fullmatch(network) is not None


def code_of(network: str) -> str:
    """What stands for the code of a network in digests: of its file, or the version of timm. Imports it.

    Raises ConfigError where there is no such module or function.
    """
    module, _, _ = network.partition(":")
    function = function_of(network)
    if module == TIMM:
        try:
            return f"timm {version(TIMM)}"
        except PackageNotFoundError:
            return TIMM
    file = getattr(sys.modules[function.__module__], "__file__", None) or getattr(sys.modules[module], "__file__", None)
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


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
