"""Compiling a step once per shape, with the eager form as the reference and the fallback.

What must stay true: the compiled form is the same mathematics; where no compiler works, the run goes on eagerly and
says so; and the compiler is loaded by whoever compiles, not by whoever imports this.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

fallbacks: list[str] = []
"""Why something runs eagerly in this process, one sentence each; the worker hands them to the driver."""

SHAPES = 256
"""Steps of different shape that one process may compile; beyond, the compiler would silently run eagerly."""


class Compiled(Generic[Result]):
    """``fast`` compiled at its first call; ``eager`` from then on if the compiler cannot do it for some shape."""

    def __init__(self, fast: Callable[..., Result], eager: Callable[..., Result] | None = None) -> None:
        from dasm_ray.core.networks.convolutions import LeanConvolutions  # brings the compiler: 1.5 s, in workers alone

        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.accumulated_recompile_limit = SHAPES
        self._eager = eager or fast
        self._call: Callable[..., Result] = torch.compile(
            fast, fullgraph=True, dynamic=False, options={"post_grad_custom_pre_pass": LeanConvolutions()}
        )

    def __call__(self, *inputs: object) -> Result:
        try:
            return self._call(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = _in_short(error)
        # Inputs that no form accepts raise here, as themselves, and are no fault of the compiler.
        result = self._eager(*inputs)
        self._call = self._eager
        fallbacks.append(f"the compiler cannot build a step, so it runs eagerly and slower: {cause}")
        return result


def _in_short(error: Exception) -> str:
    """What the compiler said, on one line and without its advice on debugging."""
    return textwrap.shorten(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0], 400, placeholder=" ...")


def maybe_compiled(
    compile_it: bool, fast: Callable[..., Result], eager: Callable[..., Result] | None = None
) -> Callable[..., Result]:
    """``fast`` to be compiled, or the eager reference (``fast`` itself where there is no other)."""
    return Compiled(fast, eager) if compile_it else (eager or fast)
