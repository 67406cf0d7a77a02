"""What many tasks are given: put into the object store once, and of what lasts each worker is told once.

What must stay true: a worker's answer is the same whether it was given a value with its task or remembers it; and what
nobody has any more on the driver, no worker remembers beyond its next task.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ObjectRef = Any
"""A reference to an object in the store, a ``ray.ObjectRef``."""


class Shared:
    """Marks what many tasks are given, as one and the same object: it goes into the object store once.

    A task that has it among its arguments carries a reference of a few bytes, whatever it holds, and each node fetches
    it once.
    """

    @property
    def lasts(self) -> bool:
        """Whether a worker remembers it from one task to the next, until the driver has let go of it.

        To read it anew, with all references in it, may cost more than what else a task carries. But as long as it is
        remembered, what it refers to stays in the object store: nothing lasts that is of a few tasks.
        """
        return False


class Memory(NamedTuple):
    """What goes ahead of a task: ``places`` of arguments that last, with the values' numbers, and all that lasts now.

    An argument at such a place is None if the worker remembers it. Of what does not last any more it lets go.
    """

    places: tuple[tuple[int, int], ...]
    lasting: frozenset[int]


@dataclass
class Remembered:
    """What the driver knows of a worker's memory: numbers of values that came with tasks which it has answered."""

    numbers: set[int] = field(default_factory=set)
    given: tuple[int, ...] = ()
    """With the task that it has."""

    def answered(self) -> None:
        """The worker has done its task, so it has what came with it."""
        self.numbers.update(self.given)


class _Lent(NamedTuple):
    """A shared value in the object store: the value, as long as anybody has it, and a number that is its own."""

    value: weakref.ref[Shared]
    ref: ObjectRef
    number: int


class Lending:
    """The shared values of a pool, each put by ``put`` when it is first given, and let go with the value itself."""

    def __init__(self, put: Callable[[object], ObjectRef]) -> None:
        self._put = put
        self._lent: dict[int, _Lent] = {}
        self._count = 0
        self._lasting = frozenset[int]()

    def __len__(self) -> int:
        """Values that somebody has."""
        return len(self._lent)

    def arguments(self, args: Sequence[object], remembered: Remembered) -> tuple[Memory, list[object]]:
        """A task's arguments for a worker: references to what is shared, None for what it remembers."""
        there, places = list(args), list[tuple[int, int]]()
        remembered.numbers &= self._lasting
        for place, value in enumerate(args):
            if isinstance(value, Shared):
                lent = self._lend(value)
                there[place] = None if lent.number in remembered.numbers else lent.ref
                if value.lasts:
                    places.append((place, lent.number))
        remembered.given = tuple(number for _, number in places)
        return Memory(tuple(places), self._lasting), there

    def clear(self) -> None:
        """Lets go of all."""
        self._lent.clear()
        self._lasting = frozenset()

    def _lend(self, value: Shared) -> _Lent:
        key = id(value)
        if key not in self._lent:
            self._count += 1
            number = self._count
            there = weakref.ref(value, lambda _: self._let_go(key, number))
            self._lent[key] = _Lent(there, self._put(value), number)
            self._lasting |= {number} if value.lasts else set()
        return self._lent[key]

    def _let_go(self, key: int, number: int) -> None:
        """Nobody has the value any more: workers that remember it are told with their next tasks."""
        self._lent.pop(key, None)
        self._lasting -= {number}


def do(actor: object, method: str, memory: Memory, *args: object) -> object:
    """Runs in the worker: a task, whose lasting arguments are remembered when they come and found when they do not."""
    remembered, there = actor.__dict__.setdefault("_remembered", {}), list(args)
    for number in remembered.keys() - memory.lasting:
        del remembered[number]
    for place, number in memory.places:
        if there[place] is None:
            there[place] = remembered[number]
        remembered[number] = there[place]
    return getattr(actor, method)(*there)
