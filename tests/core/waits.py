"""A device without numbers that stands for a GPU: shapes alone, and whoever makes the host wait for it is told.

Tensors on torch's device ``meta`` have shape, type and place, and no values, so loops run on them on any machine, and
only if nothing in them depends on a value. What a GPU would wait for raises ``Waits``: a number or a copy that comes
back, a shape that depends on values, a copy from memory that is not pinned, indices or operands left on the host.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch._dynamo  # modes bring it in, for seconds: not while they watch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

DEVICE = "meta"

COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}
DEPENDS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
MADE_FROM_NUMBERS = {torch.tensor, torch.as_tensor}

PACKAGE = str(Path(torch.__file__).parent), str(Path(__file__).resolve())


class Waits(AssertionError):
    """The host would wait for the device here."""


class Waiting(TorchDispatchMode):
    """Lets work on ``meta`` pass as long as nobody waits for it, but in the functions that ``may``: FILE:FUNCTION.

    There a wait is counted, in ``waited``, and what comes back is 0 or False everywhere, or 1 where ``answer`` says so
    of a function.
    """

    def __init__(self, may: Collection[str] = (), answer: Collection[str] = ()) -> None:
        super().__init__()
        self.may, self.answer, self.waited = may, answer, Counter[str]()
        self._numbers = _Numbers(self)

    def __enter__(self) -> Waiting:
        self._numbers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        super().__exit__(kind, error, trace)
        self._numbers.__exit__(kind, error, trace)

    def waits(self, why: str) -> float:
        """Somebody waits: an error, or the number that comes back."""
        where = _caller()
        if where not in self.may:
            raise Waits(f"{where} waits for the device: {why}")
        self.waited[where] += 1
        return float(where in self.answer)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._pin_memory.default:  # no device is there to pin it for
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = [tensor for tensor in tensors if tensor.device.type == DEVICE]
        here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if func in COPIES:
            return self._copied(func, args, kwargs, bool(there))
        if not there:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            number = self.waits("it asks for a number")
            return bool(number) if args[0].dtype == torch.bool else number
        if func in INDEXING:
            self._index(args[1])
        elif set(DEPENDS) & set(func.tags):
            self.waits(f"{func} depends on values")
        elif any(tensor.dim() for tensor in here):
            raise Waits(f"{_caller()} mixes what is here with what is there: {func}")
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_there: bool) -> Any:
        if func is aten.copy_.default:
            target, source = args[0].device.type, args[1]
        else:
            target, source = torch.device(kwargs.get("device") or args[0].device).type, args[0]
        if target == source.device.type:
            return func(*args, **kwargs)
        if target == DEVICE:
            is_pinned = getattr(source, "is_pinned_here", False)
            non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if source.dim() == 0 and func is aten.copy_.default:
                return func(*args, **kwargs)  # a number that is part of the call
            if not (is_pinned and non_blocking):
                self.waits("it copies from memory that is not pinned, or waits for the copy")
            return func(*args, **kwargs)
        number = self.waits("it copies to the host")
        if func is aten.copy_.default:
            return args[0].fill_(number)
        return torch.full(source.shape, number, dtype=kwargs.get("dtype") or source.dtype)

    def _index(self, indices: list[Tensor | None]) -> None:
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.waits("a mask has as many places as it has ones")
            if index is not None and index.device.type == "cpu":
                self.waits("indices lie here")


class _Numbers(TorchFunctionMode):
    """Sees what is made of Python's numbers on the device, which is a copy from memory that is not pinned."""

    def __init__(self, watched: Waiting) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MADE_FROM_NUMBERS and torch.device(kwargs.get("device") or "cpu").type == DEVICE:
            self.watched.waits("it copies numbers that are not pinned")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == DEVICE:
            chosen = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, list | np.ndarray) for each in chosen):
                self.watched.waits("indices lie here")
        return func(*args, **kwargs)


def _caller() -> str:
    """The innermost function that is neither torch's nor this file's: FILE:FUNCTION."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    name = frame.f_code.co_qualname.partition(".<locals>.<")[0]  # a comprehension is its function
    return f"{Path(frame.f_code.co_filename).stem}:{name.rpartition('.')[2]}"
