"""The compiler at work, and every way in which it may refuse."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.compiled import Compiled, maybe_compiled


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    compiled.fallbacks.clear()
    yield
    compiled.fallbacks.clear()
    torch._dynamo.reset()


LOCK = threading.Lock()


def untraceable(x: Tensor) -> Tensor:
    with LOCK:
        return x + 1


def test_what_compiles_runs_compiled_and_says_nothing() -> None:
    was_compiling = []

    def fast(x: Tensor) -> Tensor:
        was_compiling.append(torch.compiler.is_compiling())
        return x.sin() * 2

    def eager(x: Tensor) -> Tensor:
        raise AssertionError("the eager form must not be needed")

    x = torch.linspace(0, 1, 7)
    step = Compiled(fast, eager)
    for size in (7, 3, 7):  # another shape is compiled anew
        torch.testing.assert_close(step(x[:size]), x[:size].sin() * 2)
    assert compiled.fallbacks == []
    assert False not in was_compiling


def test_what_cannot_be_traced_runs_in_its_eager_form_and_says_so_once() -> None:
    called = []

    def eager(x: Tensor) -> Tensor:
        called.append(len(x))
        return x + 10

    step = Compiled(untraceable, eager)
    assert step(torch.zeros(2)).tolist() == [10, 10]
    assert step(torch.zeros(3)).tolist() == [10, 10, 10]
    assert called == [2, 3]
    (sentence,) = compiled.fallbacks
    assert sentence.startswith("the compiler cannot build a step, so it runs eagerly, slower and rounded otherwise: ")
    assert "context manager" in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500


def test_without_another_form_the_fast_one_itself_runs_eagerly() -> None:
    assert Compiled(untraceable)(torch.zeros(2)).tolist() == [1, 1]
    assert len(compiled.fallbacks) == 1


def test_a_compiler_that_fails_at_a_later_shape_stops_nothing() -> None:
    def fast(x: Tensor) -> Tensor:
        return untraceable(x) if len(x) > 2 else x + 1

    eager = []

    def plain(x: Tensor) -> Tensor:
        eager.append(len(x))
        return x + 1

    step = Compiled(fast, plain)
    assert step(torch.zeros(2)).tolist() == [1, 1]
    assert compiled.fallbacks == []
    assert step(torch.zeros(3)).tolist() == [1, 1, 1]
    assert len(compiled.fallbacks) == 1
    assert step(torch.zeros(2)).tolist() == [1, 1]
    assert step(torch.zeros(3)).tolist() == [1, 1, 1]
    assert eager == [3, 3], (
        "the shape that was built stays built: no result may depend on which shapes a worker has met"
    )


def test_a_compiler_that_fails_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the disk was full for a moment."""
    step, asked = Compiled(lambda x: x + 1, lambda x: x + 10), list[int]()
    call = step._call

    def failing(x: Tensor) -> Tensor:
        asked.append(len(x))
        if len(asked) == 1:
            raise torch._dynamo.exc.BackendCompilerFailed(compiled, OSError("No space left on device"), None)  # type: ignore[arg-type]
        return call(x)

    monkeypatch.setattr(step, "_call", failing)
    assert step(torch.zeros(2)).tolist() == [1, 1]
    assert asked == [2, 2]
    assert compiled.fallbacks == []


@pytest.mark.filterwarnings("ignore:dynamo_pgo")  # says that the cache, which would save compiling, is off
def test_a_machine_without_a_cpp_compiler_runs_eagerly() -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}):
        assert Compiled(lambda x: x.cos() + 3)(torch.zeros(5)).tolist() == [4] * 5
    (sentence,) = compiled.fallbacks
    assert "/nowhere/g++" in sentence


def test_wrong_inputs_raise_as_themselves_and_are_not_the_compilers_fault() -> None:
    step = Compiled(lambda x, y: x @ y)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        step(torch.zeros(3, 4), torch.zeros(3, 4))
    assert compiled.fallbacks == []
    torch.testing.assert_close(step(torch.ones(2, 2), torch.ones(2, 2)), torch.full((2, 2), 2.0))


def test_without_compilation_the_eager_form_is_handed_out() -> None:
    def eager(x: Tensor) -> Tensor:
        return x

    assert maybe_compiled(False, untraceable, eager) is eager
    assert maybe_compiled(False, untraceable) is untraceable
    assert isinstance(maybe_compiled(True, untraceable, eager), Compiled)


def test_more_shapes_may_be_compiled_than_a_run_has() -> None:
    Compiled(untraceable)
    assert torch._dynamo.config.recompile_limit >= compiled.SHAPES
    assert torch._dynamo.config.accumulated_recompile_limit >= compiled.SHAPES


@pytest.fixture
def capturing() -> Iterator[None]:
    compiled.capture(True)
    yield
    compiled.capture(False)


def test_captured_steps_ask_for_graphs_and_are_plain_ones_on_a_processor(
    capturing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor has no graphs: torch leaves them out, and the numbers are those of any compiled step."""
    asked, compile = list[dict[str, object]](), torch.compile

    def watched(fast: Callable[[Tensor], Tensor], **given: Any) -> Callable[[Tensor], Tensor]:
        asked.append(given["options"])
        return compile(fast, **given)

    monkeypatch.setattr(torch, "compile", watched)
    step, x = Compiled(lambda x: x.sin() * 2), torch.linspace(0, 1, 7)
    torch.testing.assert_close(step(x), x.sin() * 2)
    compiled.capture(False)
    Compiled(lambda x: x)
    assert [each.get("triton.cudagraphs") for each in asked] == [True, None]
    assert compiled.fallbacks == []


def test_what_a_captured_step_gave_is_not_written_over_by_the_next(
    capturing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph writes where it wrote before: here a step that does so in the compiler's place."""
    place = torch.empty(2)

    def compile(fast: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], tuple[Tensor]]:
        return lambda x: (place.copy_(fast(x)),)

    monkeypatch.setattr(torch, "compile", compile)
    step = Compiled(lambda x: x + 1)
    (first,), (second,) = step(torch.zeros(2)), step(torch.ones(2))
    assert (first.tolist(), second.tolist()) == ([1, 1], [2, 2])


def test_importing_what_compiles_does_not_load_the_compiler() -> None:
    """It takes a driver more than a second, and only workers compile."""
    text = "import sys, dasm_ray.pipeline; print(sorted({'torch._dynamo', 'torch._inductor'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
