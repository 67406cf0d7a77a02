"""Workers that come and go, and tasks that always get done: gives tasks to Ray actors, and gives lost ones again.

What must stay true: the answer to a task depends on its arguments alone, so doing it twice does no harm; one task is in
a worker's hands at a time; and nothing here waits without an end.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from dasm_ray.errors import DasmError, SessionError, TaskFailed
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.ledger import Ledger
from dasm_ray.runtime.sharing import Lending, Memory, ObjectRef, Remembered, do

TICK_SECONDS = 1.0
"""Longest pause between looks at all workers: deadlines, nodes that drain, answers that nobody was told of."""
LEAVE_SECONDS = 3.0
"""So long before its node is taken away a worker lets go of its task."""
START_NOTICE_SECONDS = 60.0
"""Without a single worker for this long, say so."""
START_LIMIT_SECONDS = 300.0
"""Without a single worker for this long (or a task's longest time, if that is more), give up."""


Parameters = ParamSpec("Parameters")
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Task:
    """A call of ``method`` on any worker. ``name`` is unique among the open tasks of a pool.

    Arguments of kind `Shared` travel as references. Of several ``outputs`` the first is small and fetched, the others
    stay in the object store.
    """

    name: str
    method: str
    args: tuple[Any, ...]
    outputs: int = 1


def outputs(count: int) -> Callable[[Method], Method]:
    """Marks a worker's method that returns a tuple of ``count``: the first is fetched, the others stay in the store."""

    def mark(method: Method) -> Method:
        method.outputs = count  # type: ignore[attr-defined]
        return method

    return mark


def task(
    name: str,
    method: Callable[Concatenate[Any, Parameters], Any],
    *args: Parameters.args,
    **named: Parameters.kwargs,
) -> Task:
    """The task ``name`` that calls ``method``, given as ``Worker.distil`` so that its arguments are checked."""
    assert not named, "arguments travel by position"
    return Task(name, method.__name__, args, getattr(method, "outputs", 1))


class InputLost(Exception):
    """What the task reads is gone, an object with its node or a file; only who made it can make it again."""


@dataclass(frozen=True)
class Done:
    """An answered task: its first output and references to the others, or why it cannot be done as it was asked."""

    task: Task
    value: Any
    refs: tuple[ObjectRef, ...] = ()
    error: InputLost | None = None


@dataclass(frozen=True)
class Loss:
    """Why a worker is gone, and what would help."""

    cause: str
    advice: str


# --- what an error means -----------------------------------------------------------------------------------------


def loss_of(error: RayError) -> Loss | None:
    """The loss behind an error of Ray, or None if the task itself raised. Never a defect of the task, so done again."""
    if isinstance(error, RayTaskError):  # first, because it is also an instance of what the task raised
        return None
    if isinstance(error, OutOfMemoryError):
        return Loss(
            "the host ran out of memory",
            "lower runtime.workers, set matcher.micro if it was matching, or use hosts with more memory",
        )
    if isinstance(error, NodeDiedError) or getattr(error, "preempted", False) or "node has died" in str(error):
        return Loss("its node went away", "raise runtime.max_lost or use nodes that stay")
    if isinstance(error, ActorUnavailableError | GetTimeoutError):
        return Loss("its worker stopped answering", "raise runtime.max_lost or look at the network of the cluster")
    if isinstance(error, ObjectLostError):
        return Loss("its answer was lost with a node", "raise runtime.max_lost or use nodes that stay")
    if isinstance(error, RayActorError | WorkerCrashedError):
        return Loss(
            "its worker process died",
            "look for the kernel's out-of-memory killer; if it was that, lower runtime.workers, or set matcher.micro "
            "if it was matching",
        )
    return None


def failure_of(name: str, error: RayError) -> DasmError:
    """What to raise for a task that raised: the package's own errors as they are, anything else as TaskFailed."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, DasmError):
        return cause
    if type(cause).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(cause):
        return TaskFailed(
            f"{name}: the GPU ran out of memory; set matcher.micro, lower matcher.batch_real or matcher.batch_syn, "
            f"or give each worker a larger share of it (runtime.gpus_per_worker)"
        )
    if "can't allocate memory" in str(cause):
        return TaskFailed(
            f"{name}: the machine had no memory left; set matcher.micro, lower matcher.batch_real, matcher.batch_syn "
            f"or runtime.workers"
        )
    return TaskFailed(f"{name}: failed with {_last_line(cause)}; if no setting explains it, please report it")


def _last_line(cause: BaseException) -> str:
    text = " ".join("".join(traceback.format_exception_only(cause)).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


# --- the pool ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker:
    """An actor of a ``kind`` and its task; ``greeting`` goes ahead of one. ``since``: when it got or ended the last.

    ``is_fresh``: it has answered in this very reading of answers, so it need not be greeted. ``is_gone``: nothing more
    is expected of it. ``calls``: its methods by name and number of outputs, since Ray makes each anew when it is asked.
    """

    actor: Any
    greeting: ObjectRef
    number: int
    kind: str
    node: str | None = None
    task: Task | None = None
    refs: list[ObjectRef] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    is_fresh: bool = False
    is_gone: bool = False
    calls: dict[tuple[str, int], Any] = field(default_factory=dict)
    remembers: Remembered = field(default_factory=Remembered)

    def call(self, task: Task, memory: Memory, args: list[object]) -> list[ObjectRef]:
        """References to the outputs of a task that it begins."""
        key = task.method, task.outputs
        if key not in self.calls:
            name = f"{self.kind}.{task.method}"  # as Ray names the call of a method, for whoever looks at what runs
            self.calls[key] = self.actor.__ray_call__.options(num_returns=task.outputs, name=name)
        refs = self.calls[key].remote(do, task.method, memory, *args)
        return refs if task.outputs > 1 else [refs]

    @property
    def awaited(self) -> ObjectRef | None:
        """What this worker will answer next; None when it is idle."""
        if self.is_gone:
            return None
        if self.node is None:
            return self.greeting
        return self.refs[0] if self.task else None


class Pool:
    """Up to ``count`` actors of a plain class, started as tasks come and replaced when they die.

    Each takes ``num_cpus`` cores, ``num_gpus`` GPUs and ``memory`` bytes of a node, and is made with ``actor_args`` in
    an environment with ``env`` added. A task may be lost ``max_lost`` times, each attempt may take ``task_seconds``; an
    actor without one for ``idle_seconds`` is ended. ``notice`` gets one line for each event worth telling; ``on_task``
    the name of each task that came to an end, the number of its worker, seconds, and why it was lost, if it was.
    ``on_tick`` is called about every second while tasks are waited for.
    """

    def __init__(
        self,
        actor_class: type,
        actor_args: tuple[Any, ...],
        *,
        count: int,
        num_cpus: float,
        num_gpus: float,
        max_lost: int,
        task_seconds: float,
        idle_seconds: float,
        notice: Callable[[str], None],
        memory: float = 0.0,
        env: Mapping[str, str] | None = None,
        on_task: Callable[[str, int, float, str], None] = lambda name, worker, seconds, lost: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        if memory:
            options["memory"] = memory
        if env:
            options["runtime_env"] = {"env_vars": dict(env)}
        self._remote = ray.remote(actor_class).options(**options)
        self._actor_args, self._kind = actor_args, actor_class.__name__
        self._needs = f"{num_cpus:g} CPU and {num_gpus:g} GPU"
        self._count = count
        self._task_seconds = task_seconds
        self._idle_seconds = idle_seconds
        self._notice, self._on_task, self._on_tick = notice, on_task, on_tick
        self._hired = self._alive = 0
        self._ledger = Ledger(max_lost)
        self._tasks: dict[str, Task] = {}
        self._lending = Lending(self.put)
        self._workers: list[_Worker] = []
        self._idle: dict[int, _Worker] = {}
        """Those that have started and have no task, by number: looking at all at each answer costs a task's time."""
        self._answers: SimpleQueue[tuple[_Worker, ObjectRef, Future[object] | None]] = SimpleQueue()
        """Whose answer has come, and the answer, as Ray tells it: to ask for all at each costs more than most tasks."""
        self._draining: dict[str, float] = {}
        self._next_look = 0.0
        self._false_starts = 0
        self._empty_since: float | None = None
        self._told_empty = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def put(value: Any) -> ObjectRef:
        """Puts a value into the object store; whoever gets the reference reads the node's one copy.

        SessionError when Ray has died.
        """
        return watchdog.put(value)

    @staticmethod
    def fetch(ref: ObjectRef) -> Any:
        """What a reference refers to; arrays are read-only views. SessionError when it cannot be had any more."""
        return watchdog.fetch(ref)

    @property
    def alive(self) -> int:
        """Workers that have started."""
        return self._alive

    @property
    def lost(self) -> int:
        """Tasks that were lost and given again so far."""
        return self._ledger.lost

    def submit(self, task: Task) -> None:
        """Adds a task; it is begun by ``results``."""
        self._ledger.add(task.name)
        self._tasks[task.name] = task

    def run(self, tasks: Iterable[Task]) -> Generator[Done]:
        """Submits the tasks and yields their answers."""
        for task in tasks:
            self.submit(task)
        return self.results()

    def results(self) -> Generator[Done]:
        """Yields answers in the order in which tasks are completed, until none is open; more may come meanwhile.

        Who leaves before the end, by an error or by closing it, leaves nothing behind for whoever comes next.

        Raises a DasmError that a task raised, TaskFailed for any other error of a task, TaskLost for a task that is
        lost too often, SessionError when no worker can be had, or when Ray itself has died.
        """
        self._empty_since = None
        for worker in self._workers:
            worker.is_fresh = False
        try:
            while self._ledger.open:
                watchdog.check()
                if time.monotonic() >= self._next_look:
                    self._next_look = time.monotonic() + TICK_SECONDS
                    self._look()
                self._staff()
                self._give()
                yield from self._collect()
                self._check_empty()
        finally:
            self._abandon()

    def close(self) -> None:
        """Ends every worker, and with it what it was doing."""
        ray_lives = watchdog.death() is None
        for worker in self._workers:
            worker.is_gone = True
            if ray_lives:
                self._dismiss(worker.actor)
        self._workers.clear()
        self._idle.clear()
        self._alive = 0
        self._lending.clear()

    def _abandon(self) -> None:
        """Forgets what is open, and ends the workers that are at it: they may be for hours, and nobody waits for it."""
        at_work = [worker for worker in self._workers if worker.task]
        for worker in at_work if watchdog.death() is None else []:
            self._remove(worker)
        self._ledger.abandon()
        self._tasks.clear()

    def _hire(self) -> Any:
        return self._remote.remote(*self._actor_args)

    def _dismiss(self, actor: Any) -> None:
        ray.kill(actor)

    # --- the four steps ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """What is looked at about once a second, since it asks for every worker."""
        self._on_tick()
        self._leave_draining_nodes()
        self._give_back()
        self._drop_late()
        awaited = {ref: worker for worker in self._workers if (ref := worker.awaited) is not None}
        there = ray.wait(list(awaited), num_returns=len(awaited), timeout=0)[0] if awaited else []
        for ref in there:  # most have been told of; what is lost with its node may never be
            self._answers.put((awaited[ref], ref, None))

    def _staff(self) -> None:
        """Asks for workers, as many as there are open tasks: a pending actor is what makes a cluster grow."""
        while len(self._workers) < min(self._count, self._ledger.open):
            actor = self._hire()
            self._hired += 1
            self._workers.append(_Worker(actor, actor.__ray_call__.remote(_node), self._hired, self._kind))
            self._await(self._workers[-1])

    def _give(self) -> None:
        """Gives one task to each idle worker, behind a greeting that tells a dead worker from a lost task.

        A greeting costs the driver as much as a task: one that has answered a moment ago is known to live.
        """
        for worker in list(self._idle.values()) if self._ledger.waiting else []:
            if worker.node in self._draining:
                continue
            if (name := self._ledger.give()) is None:
                return
            del self._idle[worker.number]
            task = self._tasks[name]
            worker.is_fresh &= time.monotonic() - worker.since < TICK_SECONDS
            if not worker.is_fresh:
                worker.greeting = worker.actor.__ray_call__.remote(_node)
            worker.refs = worker.call(task, *self._lending.arguments(task.args, worker.remembers))
            worker.task, worker.since = task, time.monotonic()
            self._await(worker)

    def _await(self, worker: _Worker) -> None:
        """Has Ray tell when the worker answers."""
        ref, answers = worker.awaited, self._answers
        assert ref is not None
        ref.future().add_done_callback(lambda answer: answers.put((worker, ref, answer)))

    def _collect(self) -> Iterator[Done]:
        """Waits a moment for whatever comes first, and takes in all that is there by then."""
        for wait in (TICK_SECONDS, *[0.0] * self._answers.qsize()):
            try:
                worker, ref, answer = self._answers.get(timeout=wait)
            except Empty:
                watchdog.check()
                return
            watchdog.check()  # what has come may tell of nothing else, and dead Ray must not be asked
            if ref is not worker.awaited:  # it was told of twice, or the worker is gone
                continue
            if worker.task is None:
                self._started(worker)
            elif (done := self._answer(worker, answer)) is not None:
                yield done

    def _drop_late(self) -> None:
        """Kills workers whose task takes longer than allowed."""
        now = time.monotonic()
        late = [worker for worker in self._workers if worker.task and now - worker.since > self._task_seconds]
        for worker in late:
            if not _is_there(worker.refs[0]):  # it may have answered while the caller was busy with another answer
                minutes = self._task_seconds / 60
                cause = f"it took longer than runtime.task_minutes={minutes:g}"
                self._lose(worker, Loss(cause, "raise runtime.task_minutes or make the work of one task smaller"))

    # --- what may happen -----------------------------------------------------------------------------------------

    def _started(self, worker: _Worker) -> None:
        """A new worker greets, or could not be made."""
        try:
            worker.node = ray.get(worker.greeting, timeout=self._task_seconds)
            worker.since, worker.is_fresh = time.monotonic(), True
            self._idle[worker.number] = worker
            self._alive += 1
        except RayError as error:
            self._remove(worker)
            raised = error.args[0] if getattr(error, "actor_init_failed", False) and error.args else None
            if isinstance(raised, RayTaskError):
                raise failure_of("a worker's start", raised) from error
            self._count_false_start(error)

    def _answer(self, worker: _Worker, answer: Future[object] | None) -> Done | None:
        """A worker answers, or is found to be gone. What Ray has told is not asked for again, unless it is an error."""
        task, refs = worker.task, worker.refs
        assert task is not None
        try:
            there = answer is not None and answer.exception() is None
            value = answer.result() if answer and there else ray.get(refs[0], timeout=self._task_seconds)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, ObjectLostError | InputLost):
                self._finish(worker)
                return Done(task, None, error=InputLost(f"{task.name}: an object that it reads is gone"))
            loss = loss_of(error)
            if loss is None:
                self._release(worker)
                raise failure_of(task.name, error) from error
            self._lose(worker, loss)
            return None
        worker.remembers.answered()
        self._finish(worker)
        self._false_starts = 0
        return Done(task, value, tuple(refs[1:]))

    def _finish(self, worker: _Worker) -> None:
        assert worker.task is not None
        self._on_task(worker.task.name, worker.number, time.monotonic() - worker.since, "")
        self._ledger.finish(worker.task.name)
        del self._tasks[worker.task.name]
        self._release(worker)

    def _release(self, worker: _Worker) -> None:
        """It has nothing to do any more."""
        worker.task, worker.refs, worker.since, worker.is_fresh = None, [], time.monotonic(), True
        self._idle[worker.number] = worker

    def _lose(self, worker: _Worker, loss: Loss) -> None:
        """Gives the worker's task back, counted as lost if the worker was there when it came."""
        task = worker.task
        assert task is not None
        began = worker.is_fresh or _is_answered(worker.greeting)
        self._remove(worker)
        if not began:
            self._ledger.put_back(task.name)
            self._count_false_start(loss.cause)
            return
        self._on_task(task.name, worker.number, time.monotonic() - worker.since, loss.cause)
        self._ledger.lose(task.name, loss.cause, loss.advice)
        tally = f"{self._ledger.losses(task.name)} of {self._ledger.max_lost} allowed"
        self._notice(f"{task.name}: lost, {loss.cause} ({tally}); another worker does it")

    def _remove(self, worker: _Worker) -> None:
        """Kills, since a worker that does not answer may still live, and hold a GPU."""
        self._dismiss(worker.actor)
        self._workers.remove(worker)
        self._idle.pop(worker.number, None)
        self._alive -= worker.node is not None
        worker.is_gone = True

    def _count_false_start(self, reason: object) -> None:
        """A worker gone before it did anything is replaced, but not for ever."""
        self._false_starts += 1
        if self._false_starts > self._count + self._ledger.max_lost:
            text = " ".join(str(reason).split())[:300]
            raise SessionError(f"{self._false_starts} workers died before they did anything; the last: {text}")

    def _check_empty(self) -> None:
        """Tells when no worker could be had for long, and gives up when for too long."""
        if self.alive or not self._ledger.open:
            self._empty_since, self._told_empty = None, False
            return
        now = time.monotonic()
        self._empty_since = self._empty_since or now
        waited = now - self._empty_since
        limit = max(self._task_seconds, START_LIMIT_SECONDS)
        if waited > limit:
            raise SessionError(
                f"no worker has started in {limit / 60:g} minutes: each needs {self._needs}; "
                f"look at the cluster's nodes (ray status)"
            )
        if waited > START_NOTICE_SECONDS and not self._told_empty:
            self._told_empty = True
            self._notice(
                f"no worker has started in {START_NOTICE_SECONDS:g} s: each needs {self._needs}; still waiting"
            )

    def _give_back(self) -> None:
        """Ends workers beyond the open tasks that had nothing to do for long, or never came: so a cluster shrinks."""
        long_ago = time.monotonic() - self._idle_seconds
        idle = [worker for worker in self._workers if not worker.task and worker.since < long_ago]
        for worker in idle[: max(0, len(self._workers) - self._ledger.open)]:
            self._remove(worker)

    def _leave_draining_nodes(self) -> None:
        """Gives nothing more to workers on nodes that are being taken away, and ends the idle ones to let a node go.

        What a worker cannot finish before its node goes is given to another, and does not count as lost.
        """
        try:
            draining = watchdog.bounded(draining_nodes, look=watchdog.check)
        except (TimeoutError, RayError):
            return  # its head does not answer, or not with that; whether it is gone for good the watchdog says
        for node in draining.keys() - self._draining:
            if any(worker.node == node for worker in self._workers):
                self._notice(f"node {node[:8]} is being taken away: its workers finish what they have")
        self._draining = draining
        for worker in [worker for worker in self._workers if worker.node in draining]:
            assert worker.node is not None
            if not worker.task:
                self._remove(worker)
            elif draining[worker.node] - time.time() < LEAVE_SECONDS and not _is_there(worker.refs[0]):
                self._ledger.put_back(worker.task.name)
                self._notice(f"{worker.task.name}: its node goes before it is done; another worker does it")
                self._remove(worker)


def draining_nodes() -> dict[str, float]:
    """Nodes that have notice to leave (a spot node about to be taken, a pod about to be stopped), by id.

    Each with the time.time() at which it goes; infinity where that is not known.
    """
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: milliseconds / 1000 if milliseconds > 0 else math.inf for node, milliseconds in found.items()}


def _node(_: Any) -> str:
    """Runs in the worker: the id of its node."""
    return str(ray.get_runtime_context().get_node_id())


def _is_there(ref: ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def _is_answered(greeting: ObjectRef) -> bool:
    if not _is_there(greeting):
        return False
    try:
        ray.get(greeting, timeout=TICK_SECONDS)
    except RayError:
        return False
    return True
