"""Who has which task, how many are done, and how often each was lost: the decisions of a coordinator as plain state.

What must stay true: a task is in one place only (waiting, given or done), so none is lost from sight or done twice.
"""

from __future__ import annotations

from collections import Counter, deque

from dasm_ray.errors import TaskLost


class Ledger:
    """Tasks by name. ``max_lost`` is how often one task may be lost before the run stops."""

    def __init__(self, max_lost: int) -> None:
        self.max_lost = max_lost
        self.done = 0
        self.lost = 0
        self._waiting: deque[str] = deque()
        self._given: set[str] = set()
        self._open: set[str] = set()
        self._losses: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Tasks that no worker has."""
        return len(self._waiting)

    @property
    def given(self) -> int:
        """Tasks that a worker has."""
        return len(self._given)

    @property
    def open(self) -> int:
        """Tasks that are not done."""
        return len(self._open)

    def losses(self, name: str) -> int:
        """How often an open task was lost so far."""
        return self._losses[name]

    def add(self, name: str) -> None:
        """Puts a task at the end of the line. A name may come again only after its task is done."""
        assert name not in self._open, f"{name} is open already"
        self._open.add(name)
        self._waiting.append(name)

    def give(self) -> str | None:
        """The task to do next, from now on in a worker's hands; None when none waits."""
        if not self._waiting:
            return None
        name = self._waiting.popleft()
        self._given.add(name)
        return name

    def finish(self, name: str) -> None:
        """A worker has answered."""
        self._given.remove(name)
        self._open.remove(name)
        self._losses.pop(name, None)
        self.done += 1

    def abandon(self) -> None:
        """Forgets all tasks that are not done, and how often they were lost."""
        for tasks in (self._waiting, self._given, self._open, self._losses):
            tasks.clear()

    def put_back(self, name: str) -> None:
        """The worker was gone before it began: the task is first in line again, and nothing is counted."""
        self._given.remove(name)
        self._waiting.appendleft(name)

    def lose(self, name: str, cause: str, advice: str) -> None:
        """The worker went away with the task: it is first in line again.

        Raises TaskLost, with ``cause`` and ``advice`` in its sentence, when that happened more than ``max_lost`` times.
        """
        self.put_back(name)
        self.lost += 1
        self._losses[name] += 1
        if self._losses[name] > self.max_lost:
            times = "once" if self._losses[name] == 1 else f"{self._losses[name]} times"
            raise TaskLost(f"{name}: lost {times}, more than runtime.max_lost={self.max_lost}; {cause}; {advice}")
