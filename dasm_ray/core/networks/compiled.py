"""Compiling a step once per shape, with the eager form as the reference and the fallback.

What must stay true: the compiled form is the same mathematics; where no compiler works, the run goes on eagerly and
says so; the compiler is loaded by whoever compiles, not by whoever imports this; and what is found out about a call
before it is made costs it microseconds.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Result = TypeVar("Result")

fallbacks: list[str] = []
"""Why something runs eagerly in this process, one sentence each; the worker hands them to the driver."""


class First(NamedTuple):
    """A call that compiles: of which ``kind`` of step, and what its inputs are like: so that others know it again."""

    kind: str
    shape: str


def _at_once(_: First) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


turn: Callable[[First], contextlib.AbstractContextManager[None]] = _at_once
"""Around a step's first call at each shape. Whoever has several processes on a machine puts one here that lets one
compile while the others wait for what it leaves on disk."""

captures = False
"""Whether steps that are made from now on are captured as CUDA graphs, so that a device gets them as a whole and not
kernel by kernel. A processor has none, and is asked for none."""


def capture(is_asked: bool) -> None:
    """Whether the steps that this process makes from now on are captured."""
    global captures
    captures = is_asked


SHAPES = 256
"""Steps of different shape that one process may compile; beyond, the compiler would silently run eagerly."""


class Compiled(Generic[Result]):
    """``fast`` compiled at its first call; ``eager`` from then on if the compiler cannot do it for some shape.

    ``kind``: what step it is, a word; with a second one where steps of a kind differ in more than their inputs.
    """

    def __init__(
        self, fast: Callable[..., Result], eager: Callable[..., Result] | None = None, kind: str = "step"
    ) -> None:
        from dasm_ray.core.networks.convolutions import LeanConvolutions  # brings the compiler: 1.5 s, in workers alone

        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.accumulated_recompile_limit = SHAPES
        self._eager = eager or fast
        self._kind, self._known, self._not_built = kind, set[tuple[object, ...]](), set[tuple[object, ...]]()
        options: dict[str, bool | Callable[..., None]] = {"post_grad_custom_pre_pass": LeanConvolutions()}
        options |= {"triton.cudagraphs": True} if captures else {}
        call = torch.compile(fast, fullgraph=True, dynamic=False, options={**options})
        self._call: Callable[..., Result] = partial(_replayed, call) if captures else call

    def __call__(self, *inputs: object) -> Result:
        shape = tuple(_shapes(inputs))
        if shape in self._not_built:
            return self._eager(*inputs)
        if shape in self._known:
            return self._tried(inputs, shape)
        with turn(First(self._kind, repr(shape))):
            result = self._tried(inputs, shape)
        self._known.add(shape)
        return result

    def _tried(self, inputs: tuple[object, ...], shape: tuple[object, ...]) -> Result:
        """A call, which compiles where the compiler has not met such inputs.

        Other shapes stay as they are where one cannot be built: whether a worker has met that one must not show in what
        it makes of them. What fails is tried once more, since a disk may have been full, or a compiler killed.
        """
        for _ in range(2):
            try:
                return self._call(*inputs)
            except torch._dynamo.exc.TorchDynamoException as error:
                cause = _in_short(error)
        # Inputs that no form accepts raise here, as themselves, and are no fault of the compiler.
        result = self._eager(*inputs)
        if not self._not_built:
            fallbacks.append(
                f"the compiler cannot build a step, so it runs eagerly, slower and rounded otherwise: {cause}"
            )
        self._not_built.add(shape)
        return result


def _replayed(call: Callable[..., Result], *inputs: object) -> Result:
    """What a captured step gives, in memory of its own: the next replay writes where this one wrote."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    found: Result = tree_map_only(Tensor, Tensor.clone, call(*inputs))
    return found


def _shapes(inputs: Iterable[object]) -> Iterator[object]:
    """What the compiler tells inputs by, near enough: shapes and types of tensors, in sequences and mappings too."""
    for each in inputs:
        if isinstance(each, Tensor):
            yield (each.shape, each.dtype, each.device.type)
        elif isinstance(each, tuple | list):
            yield from _shapes(each)
        elif isinstance(each, Mapping):
            yield from _shapes(each.values())
        else:
            yield each


def _in_short(error: Exception) -> str:
    """What the compiler said, on one line and without its advice on debugging."""
    return textwrap.shorten(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0], 400, placeholder=" ...")


def maybe_compiled(
    compile_it: bool, fast: Callable[..., Result], eager: Callable[..., Result] | None = None, kind: str = "step"
) -> Callable[..., Result]:
    """``fast`` to be compiled, or the eager reference (``fast`` itself where there is no other)."""
    return Compiled(fast, eager, kind) if compile_it else (eager or fast)
