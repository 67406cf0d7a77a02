"""Shared values: put once, given to a worker once where they last, and let go on both sides."""

from __future__ import annotations

import pytest

from dasm_ray.runtime.sharing import Lending, Memory, Remembered, Shared, do


class Value(Shared):
    """One that lasts or does not."""

    def __init__(self, lasts: bool) -> None:
        self._lasts = lasts

    @property
    def lasts(self) -> bool:
        return self._lasts


class Actor:
    """A worker, and what it was called with."""

    def take(self, *args: object) -> tuple[object, ...]:
        return args


@pytest.fixture
def put() -> list[object]:
    return []


@pytest.fixture
def lending(put: list[object]) -> Lending:
    def to_store(value: object) -> str:
        put.append(type(value))
        return f"reference {len(put)}"

    return Lending(to_store)


def test_a_value_is_put_once_and_let_go_with_itself(lending: Lending, put: list[object]) -> None:
    value, worker = Value(lasts=False), Remembered()
    for _ in range(3):
        memory, args = lending.arguments((1, value, None), worker)
        assert (memory, args) == (Memory((), frozenset()), [1, "reference 1", None])
        worker.answered()
    assert (put, len(lending)) == ([Value], 1)
    del value
    assert len(lending) == 0


def test_what_lasts_goes_to_each_worker_until_it_has_answered(lending: Lending) -> None:
    value, one, other = Value(lasts=True), Remembered(), Remembered()
    assert lending.arguments((value,), one) == (Memory(((0, 1),), frozenset({1})), ["reference 1"])
    assert lending.arguments((value,), one)[1] == ["reference 1"]  # its task before came to nothing
    one.answered()
    assert lending.arguments((2, value), one) == (Memory(((1, 1),), frozenset({1})), [2, None])
    assert lending.arguments((value,), other)[1] == ["reference 1"]


def test_what_is_let_go_lasts_no_more(lending: Lending) -> None:
    value, other, worker = Value(lasts=True), Value(lasts=True), Remembered()
    lending.arguments((value, other), worker)
    worker.answered()
    assert worker.numbers == {1, 2}
    del value
    assert lending.arguments((other,), worker) == (Memory(((0, 2),), frozenset({2})), [None])
    assert worker.numbers == {2}
    lending.clear()
    assert (len(lending), lending.arguments((3,), worker)) == (0, (Memory((), frozenset()), [3]))


def test_a_worker_finds_what_it_was_given_and_forgets_what_lasts_no_more() -> None:
    actor, lasting = Actor(), frozenset({1, 2})
    assert do(actor, "take", Memory(((0, 1), (2, 2)), lasting), "a", 7, "b") == ("a", 7, "b")
    assert do(actor, "take", Memory(((1, 1),), lasting), None, None) == (None, "a")  # None is also a value of its own
    assert do(actor, "take", Memory(((0, 2),), frozenset({2})), None) == ("b",)
    with pytest.raises(KeyError):
        do(actor, "take", Memory(((0, 1),), frozenset({1, 2})), None)
    assert do(actor, "take", Memory((), frozenset())) == ()
    assert actor.__dict__["_remembered"] == {}
