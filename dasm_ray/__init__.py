"""Dataset distillation by difficulty-aligned sequential matching. The public names load what they need when used.

distill      a recipe, and perhaps images of your own, into a small synthetic set and its table
load         a finished set as a PyTorch data set, with the transform that test images need
load_config  a recipe, with keys changed
evaluate     networks trained on a set anew
compare      recipes and selections of real images in one table
incremental  a set as the memory of class-incremental learning
audit        how much a set tells of its real images
report       a run, or several, as one HTML page
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

try:
    __version__ = version("dasm-ray")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+checkout"
__all__ = ["audit", "compare", "distill", "evaluate", "incremental", "load", "load_config", "report"]

if TYPE_CHECKING:
    from dasm_ray.api import audit, compare, distill, evaluate, incremental, load_config, report
    from dasm_ray.synthetic import load


def __getattr__(name: str) -> object:
    if name == "load":
        from dasm_ray.synthetic import load

        return load
    if name in __all__:
        from dasm_ray import api

        return getattr(api, name)
    raise AttributeError(f"module 'dasm_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(ModuleType):
    """This package, of which `report` is the function, also once the sub-package of that name has been imported.

    Importing a sub-package sets it as an attribute of its package; ``from dasm_ray.report import ...`` needs none.
    """

    def _report(self) -> object:
        return __getattr__("report")

    def _keep(self, module: ModuleType) -> None:
        pass

    if not TYPE_CHECKING:
        report = property(_report, _keep)


sys.modules[__name__].__class__ = _Package
