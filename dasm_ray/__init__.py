"""Dataset distillation by difficulty-aligned sequential matching. The public names load what they need when used."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("dasm-ray")
__all__ = ["distill", "evaluate", "load"]

if TYPE_CHECKING:
    from dasm_ray.pipeline import distill, evaluate
    from dasm_ray.synthetic import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from dasm_ray.synthetic import load

        return load
    if name in ("distill", "evaluate"):
        from dasm_ray import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'dasm_ray' has no attribute {name!r}")
