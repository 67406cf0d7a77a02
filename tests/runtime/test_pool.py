"""The pool against a world that kills, stalls and raises; workers here are a few lines each."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError

from dasm_ray.errors import DataError, NonFinite, SessionError, TaskFailed, TaskLost
from dasm_ray.runtime import pool as pool_module
from dasm_ray.runtime.pool import Done, InputLost, Pool, Task, failure_of, loss_of
from dasm_ray.runtime.sharing import Shared

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


class Numbers(Shared):
    """Many numbers for many tasks."""

    def __init__(self, count: int) -> None:
        self.numbers = list(range(count))
        self.seen = 0

    def sum(self) -> int:
        return sum(self.numbers)


class Lasting(Numbers):
    """Numbers for all tasks."""

    @property
    def lasts(self) -> bool:
        return True


class Squarer:
    """Squares; when told to, first leaves its process id in a file and waits to be killed, once or always."""

    def __init__(self, folder: str = "", sentence: str = "") -> None:
        self.folder = Path(folder)
        if sentence:
            raise DataError(sentence) if sentence.startswith("data") else ValueError(sentence)

    def square(self, number: int) -> int:
        return number * number

    def square_once_killed(self, number: int) -> int:
        mark = self.folder / f"{number}.pid"
        if not mark.exists():
            self.wait_to_be_killed(number)
        return number * number

    def wait_to_be_killed(self, number: int) -> None:
        aside = self.folder / f"{number}.{os.getpid()}"
        aside.write_text(str(os.getpid()))
        aside.rename(self.folder / f"{number}.pid")
        time.sleep(60)

    def die(self) -> None:
        time.sleep(1)  # so that the greeting is back by then, even from a busy machine
        os.kill(os.getpid(), signal.SIGKILL)

    def meet(self, number: int, count: int) -> None:
        """Ends when so many are here, each in a worker of its own."""
        (self.folder / f"{number}.here").touch()
        wait_until(lambda: len(list(self.folder.glob("*.here"))) == count)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def parts(self, number: int) -> tuple[dict[str, int], Any, Any]:
        return {"number": number}, np.full(200_000, number), np.zeros(3)

    def total(self, pixels: Any) -> int:
        return int(pixels.sum())

    def fail(self, kind: str) -> None:
        if kind == "data":
            raise DataError("train.parquet row 7: the image is corrupt; mend or drop it")
        if kind == "nan":
            raise NonFinite("segment 1: the loss is nan; lower matcher.lr_img")
        if kind == "lost":
            raise ObjectLostError("00" * 28, None, "")
        if kind == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        raise ValueError("no good\nsecond line")

    def title(self) -> str:
        return Path("/proc/self/cmdline").read_text()

    def lose(self, _: Numbers) -> None:
        self.fail("lost")

    def threads(self) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    def look(self, numbers: Numbers) -> tuple[int, int, list[int]]:
        """The process, how often numbers came to it, and the counts of all that it remembers."""
        numbers.seen += 1
        return os.getpid(), numbers.seen, sorted(len(each.numbers) for each in self.__dict__["_remembered"].values())

    def pid(self) -> int:
        return os.getpid()

    def pid_after(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def make_pool(ray_session: object, notices: list[str], tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(**changes: Any) -> Pool:
        settings: dict[str, Any] = {
            "count": 1,
            "max_lost": 1,
            "task_seconds": 120.0,
            "idle_seconds": 60.0,
            "args": (str(tmp_path),),
        } | changes
        args = settings.pop("args")
        pools.append(Pool(Squarer, args, num_cpus=0.5, num_gpus=0, notice=notices.append, **settings))
        return pools[-1]

    yield make
    for made in pools:
        made.close()


def squares(numbers: range, method: str = "square") -> list[Task]:
    return [Task(f"square {number}", method, (number,)) for number in numbers]


def values(answers: Iterator[Done]) -> dict[str, Any]:
    return {done.task.name: done.value for done in answers}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_tasks_are_done_for_any_number_of_workers(make_pool: Callable[..., Pool], count: int) -> None:
    pool = make_pool(count=count)
    assert values(pool.run(squares(range(8)))) == {f"square {number}": number**2 for number in range(8)}
    assert 1 <= pool.alive <= count


def test_no_more_workers_are_asked_for_than_there_are_tasks(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(count=50)
    assert len(values(pool.run(squares(range(2))))) == 2
    assert pool.alive <= 2


def test_workers_with_nothing_to_do_are_given_back_and_asked_for_again(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(count=2, idle_seconds=0.5)
    assert len(values(pool.run([Task(f"meet {n}", "meet", (n, 2)) for n in range(2)]))) == 2
    assert pool.alive == 2
    values(pool.run([Task("long", "sleep", (3.0,))]))
    assert pool.alive == 1
    pids: set[int] = set()
    deadline = time.monotonic() + 120  # a busy machine takes long to start a process
    while len(pids) < 2 and time.monotonic() < deadline:
        pids |= set(values(pool.run([Task(f"pid {n}", "pid_after", (2.0,)) for n in range(4)])).values())
    assert len(pids) == 2


def test_a_worker_that_never_came_is_no_longer_asked_for_when_nothing_waits(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(count=5, idle_seconds=1)  # the session has room for four halves of a core
    for n in range(5):
        pool.submit(Task(f"nap {n}", "sleep", (0.1,)))
    values(pool.results())
    values(pool.run([Task("long", "sleep", (3.0,))]))
    assert len(pool._workers) == 1


def test_a_killed_worker_costs_one_notice_and_nothing_else(
    make_pool: Callable[..., Pool], notices: list[str], tmp_path: Path
) -> None:
    ended: list[tuple[str, int, float, str]] = []
    pool = make_pool(count=2, on_task=lambda *task: ended.append(task))
    for task in [*squares(range(1), "square_once_killed"), *squares(range(1, 6))]:
        pool.submit(task)
    seen = {}
    for done in pool.results():
        seen[done.task.name] = done.value
        if len(seen) == 5:  # all but the one that waits to be killed
            wait_until((tmp_path / "0.pid").exists)
            os.kill(int((tmp_path / "0.pid").read_text()), signal.SIGKILL)
    assert seen == {f"square {number}": number**2 for number in range(6)}
    assert len(notices) == 1
    for part in ("square 0", "worker process died", "1 of 1 allowed"):
        assert part in notices[0]
    lost = [task for task in ended if task[3]]
    assert [(task[0], "worker process died" in task[3]) for task in lost] == [("square 0", True)]
    assert sorted(task[0] for task in ended if not task[3]) == [f"square {number}" for number in range(6)]
    again = next(task for task in ended if task[0] == "square 0" and not task[3])
    assert again[1] != lost[0][1], "another worker does it"
    assert all(seconds >= 0 for _, _, seconds, _ in ended)


def test_a_task_that_kills_every_worker_is_given_up_with_task_cause_and_knob(
    make_pool: Callable[..., Pool], notices: list[str]
) -> None:
    with pytest.raises(TaskLost) as caught:
        values(make_pool(max_lost=1).run([Task("segment 2 group 0", "die", ())]))
    for part in ("segment 2 group 0", "lost 2 times", "worker process died", "runtime.max_lost=1", "runtime.workers"):
        assert part in str(caught.value)
    assert len(notices) == 1


def test_a_worker_that_died_idle_is_not_held_against_the_next_task(
    make_pool: Callable[..., Pool], notices: list[str]
) -> None:
    pool = make_pool(max_lost=0)
    (pid,) = values(pool.run([Task("who", "pid", ())])).values()
    os.kill(pid, signal.SIGKILL)
    assert values(pool.run(squares(range(1)))) == {"square 0": 0}
    assert notices == []


@pytest.mark.parametrize(("kind", "error"), [("data", DataError), ("nan", NonFinite)])
def test_an_error_of_the_package_arrives_as_itself(
    make_pool: Callable[..., Pool], kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        values(make_pool().run([Task("score 1", "fail", (kind,))]))
    assert type(caught.value) is error
    assert str(caught.value).startswith(("train.parquet row 7:", "segment 1:"))


def test_any_other_error_is_a_failed_task_and_is_not_tried_again(
    make_pool: Callable[..., Pool], notices: list[str]
) -> None:
    with pytest.raises(TaskFailed, match=r"^score 1: failed with ValueError: no good second line; ") as caught:
        values(make_pool(max_lost=5).run([Task("score 1", "fail", ("other",))]))
    assert "in fail" in str(caught.value.__cause__)  # the worker's traceback is kept
    assert notices == []


def test_a_gpu_out_of_memory_names_the_knobs(make_pool: Callable[..., Pool]) -> None:
    with pytest.raises(TaskFailed, match=r"score 1: the GPU ran out of memory; set matcher\.micro, lower"):
        values(make_pool().run([Task("score 1", "fail", ("memory",))]))


def test_a_lost_input_comes_back_to_the_caller_who_may_ask_again(make_pool: Callable[..., Pool]) -> None:
    pool, seen = make_pool(max_lost=0), []
    pool.submit(Task("round 3", "fail", ("lost",)))
    for done in pool.results():
        seen.append(done)
        if done.error:
            pool.submit(Task("round 3", "square", (3,)))
    assert isinstance(seen[0].error, InputLost)
    assert (seen[1].value, seen[1].error) == (9, None)


def test_a_task_that_takes_too_long_is_lost(make_pool: Callable[..., Pool], notices: list[str]) -> None:
    with pytest.raises(TaskLost, match=r"longer than runtime\.task_minutes=0\.05; raise runtime\.task_minutes"):
        values(make_pool(task_seconds=3).run([Task("expert 1", "sleep", (60,))]))
    assert len(notices) == 1


def test_an_answer_that_waits_for_a_busy_caller_is_not_late(make_pool: Callable[..., Pool], notices: list[str]) -> None:
    pool, seen = make_pool(count=2, task_seconds=1, max_lost=0), []
    for done in pool.run(squares(range(3))):
        seen.append(done.value)
        time.sleep(1.2)
    assert sorted(seen) == [0, 1, 4]
    assert notices == []


@pytest.mark.parametrize(
    ("sentence", "error", "pattern"),
    [
        ("no such device", TaskFailed, "^a worker's start: failed with ValueError: no such device"),
        ("data is missing; fetch it", DataError, "^data is missing; fetch it$"),
    ],
)
def test_a_worker_that_cannot_be_made_stops_the_run(
    make_pool: Callable[..., Pool], sentence: str, error: type[Exception], pattern: str
) -> None:
    with pytest.raises(error, match=pattern):
        values(make_pool(args=("", sentence)).run(squares(range(3))))


def test_tasks_may_be_submitted_while_answers_are_read(make_pool: Callable[..., Pool]) -> None:
    pool, seen = make_pool(count=2), []
    pool.submit(Task("square 0", "square", (0,)))
    for done in pool.results():
        seen.append(done.value)
        for number in [2 * len(seen) - 1, 2 * len(seen)]:
            if number < 7:
                pool.submit(Task(f"square {number}", "square", (number,)))
    assert sorted(seen) == [number**2 for number in range(7)]


def test_a_reading_that_is_left_leaves_nothing_behind(make_pool: Callable[..., Pool]) -> None:
    """Who comes next has answers to its own tasks alone, and the same names may come again."""
    pool = make_pool(count=2)
    (first,) = islice(pool.run(squares(range(5))), 1)
    assert first.value in {n**2 for n in range(5)}
    assert values(pool.results()) == {}
    assert values(pool.run(squares(range(5)))) == {f"square {n}": n**2 for n in range(5)}


def test_an_error_of_one_task_is_nothing_to_the_tasks_after_it(
    make_pool: Callable[..., Pool], notices: list[str]
) -> None:
    """Neither the error of another task of that batch, nor the time that one takes which is still out."""
    pool = make_pool(count=3)
    list(pool.run([Task(f"all here {number}", "meet", (number, 3)) for number in range(3)]))
    batch = [Task(f"{kind} {number}", "fail", (kind,)) for number, kind in enumerate(("nan", "nan"))]
    for _ in range(2):
        with pytest.raises(NonFinite):
            values(pool.run([Task("for an hour", "sleep", (3600,)), *batch]))
    assert values(pool.run(squares(range(5)))) == {f"square {n}": n**2 for n in range(5)}
    assert notices == []


def test_of_several_outputs_only_the_first_is_fetched(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    (done,) = pool.run([Task("parts 4", "parts", (4,), outputs=3)])
    assert done.value == {"number": 4}
    assert [type(ref) for ref in done.refs] == [ray.ObjectRef, ray.ObjectRef]
    assert values(pool.run([Task("total", "total", (done.refs[0],))])) == {"total": 800_000}


def test_what_many_tasks_are_given_is_put_once_and_let_go_with_it(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[object] = []
    monkeypatch.setattr(Pool, "put", staticmethod(lambda value: put.append(type(value)) or ray.put(value)))
    pool, numbers, others = make_pool(), Numbers(100_000), Numbers(3)
    tasks = [Task(f"total {n}", "total", (numbers if n % 2 else others,)) for n in range(6)]
    assert set(values(pool.run(tasks)).values()) == {sum(range(100_000)), 3}
    assert put == [Numbers, Numbers]
    assert len(pool._lending) == 2
    tasks.clear()
    del numbers
    assert len(pool._lending) == 1


def test_what_lasts_is_remembered_by_each_worker_until_it_is_let_go(make_pool: Callable[..., Pool]) -> None:
    pool, numbers, brief = make_pool(), Lasting(5), Numbers(3)
    names = iter(range(100))

    def look(at: Numbers) -> tuple[int, int, list[int]]:
        (found,) = values(pool.run([Task(f"look {next(names)}", "look", (at,))])).values()
        return found  # type: ignore[no-any-return]

    pid = look(numbers)[0]
    assert [look(numbers)[1:] for _ in range(3)] == [(2, [5]), (3, [5]), (4, [5])]
    assert [look(brief)[1:] for _ in range(2)] == [(1, [5]), (1, [5])]  # it comes anew each time
    others = Lasting(7)
    assert look(others)[1:] == (1, [5, 7])
    del numbers
    assert look(others)[1:] == (2, [7])
    os.kill(pid, signal.SIGKILL)
    again = look(others)
    assert again[0] != pid
    assert again[1:] == (1, [7])  # a new worker is given it
    assert look(others)[1:] == (2, [7])


def test_a_task_has_the_name_of_its_method_for_whoever_looks_at_what_runs(make_pool: Callable[..., Pool]) -> None:
    (title,) = values(make_pool().run([Task("title", "title", ())])).values()
    assert title.startswith("ray::Squarer.title")


def test_what_came_with_a_task_that_failed_comes_again(make_pool: Callable[..., Pool]) -> None:
    pool, numbers = make_pool(), Lasting(5)
    (done,) = pool.run([Task("lost", "lose", (numbers,))])
    assert done.error is not None
    looks = [Task(f"look {number}", "look", (numbers,)) for number in range(2)]
    assert [found[1:] for found in values(pool.run(looks)).values()] == [(1, [5]), (2, [5])]


@pytest.mark.parametrize("told", [0, 2])
def test_what_ray_never_tells_of_is_found_and_what_it_tells_twice_is_taken_once(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    once = Pool._await

    def tells(self: Pool, worker: Any) -> None:
        for _ in range(told):
            once(self, worker)

    monkeypatch.setattr(Pool, "_await", tells)
    pool = make_pool(count=2)
    found = [(done.task.name, done.value) for done in pool.run([Task(f"{n}", "square", (n,)) for n in range(5)])]
    assert sorted(found) == [(f"{n}", n * n) for n in range(5)]


def test_the_environment_reaches_the_worker(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(env={"OMP_NUM_THREADS": "3"})
    assert values(pool.run([Task("threads", "threads", ())])) == {"threads": "3"}


def test_close_leaves_no_worker_alive(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    with make_pool(count=2) as pool:
        pids = set(values(pool.run([Task(f"pid {n}", "pid", ()) for n in range(8)])).values())
        pool.submit(Task("busy", "wait_to_be_killed", (5,)))
        pool._staff()
        pool._give()
        wait_until((tmp_path / "5.pid").exists)
    assert pool.alive == 0
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):  # gone before, or between, the two looks
        os.kill(pid, 0)
        return not Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")
    return False


def test_workers_that_never_start_are_noticed_and_then_given_up(
    ray_session: object, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "START_NOTICE_SECONDS", 0.5)
    monkeypatch.setattr(pool_module, "START_LIMIT_SECONDS", 2)
    with (
        Pool(
            Squarer,
            (),
            count=1,
            num_cpus=1000,
            num_gpus=0,
            max_lost=1,
            task_seconds=1,
            idle_seconds=60,
            notice=notices.append,
        ) as pool,
        pytest.raises(SessionError, match=r"no worker has started .* each needs 1000 CPU and 0 GPU"),
    ):
        values(pool.run(squares(range(1))))
    assert [line.split(":")[0] for line in notices] == ["no worker has started in 0.5 s"]


# --- what an error means, without workers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "cause", "knob"),
    [
        (OutOfMemoryError("low memory"), "the host ran out of memory", "runtime.workers"),
        (NodeDiedError("gone"), "its node went away", "runtime.max_lost"),
        (ActorDiedError(), "its worker process died", "runtime.workers"),
        (ObjectLostError("00" * 28, None, ""), "its answer was lost with a node", "runtime.max_lost"),
    ],
)
def test_losses_have_a_cause_and_a_knob(error: Any, cause: str, knob: str) -> None:
    loss = loss_of(error)
    assert loss is not None
    assert loss.cause == cause
    assert knob in loss.advice


def test_a_machine_without_memory_left_names_the_knobs() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    error = RayTaskError("f", "Traceback", caught.value)
    assert str(failure_of("pace of matching", error)).startswith(
        "pace of matching: the machine had no memory left; set matcher.micro, lower matcher.batch_real"
    )


def test_an_error_of_the_task_is_no_loss_even_if_it_looks_like_one(ray_session: object) -> None:
    error = RayTaskError("f", "Traceback", ObjectLostError("00" * 28, None, "")).as_instanceof_cause()
    assert isinstance(error, ObjectLostError)
    assert loss_of(error) is None


def test_a_long_message_is_cut(ray_session: object) -> None:
    assert len(str(failure_of("t", RayTaskError("f", "Traceback", ValueError("x" * 5000))))) < 400


# --- nodes that are lost or taken away (a cluster of three nodes in a process of its own) ---------------------------

CLUSTER = """
import os, signal, sys, threading, time
os.environ["RAY_TMPDIR"] = sys.argv[1]
import numpy as np, ray
from ray.cluster_utils import Cluster
from dasm_ray.runtime.pool import Pool, Task

class Worker:
    def make(self, number):
        time.sleep(1)
        return number, np.full(10**6, number)
    def total(self, pixels):
        time.sleep(1)
        return int(pixels.sum())
    def long(self, mark):
        if os.path.exists(mark):
            return "done by another"
        open(mark, "w").close()
        time.sleep(50)

quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 500,
         "health_check_failure_threshold": 3}
small = {"object_store_memory": 10**8}
cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick, **small})
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
try:
    say = lambda text: print("NOTICE", text, flush=True)
    needs = {"count": 2, "num_cpus": 1, "num_gpus": 0, "max_lost": 3, "task_seconds": 60, "idle_seconds": 60}
    with Pool(Worker, (), **needs, notice=say) as pool:
        made = {done.value: done.refs[0] for done in pool.run([Task(f"make {n}", "make", (n,), 2) for n in range(6)])}
        cluster.remove_node(nodes[0], allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1, **small))
        for number, ref in made.items():
            pool.submit(Task(f"total {number}", "total", (ref,)))
        lost, totals, draining = 0, {}, None
        for done in pool.results():
            if done.error:
                lost += 1
                pool.submit(Task(done.task.name, "total", (np.full(10**6, int(done.task.name.split()[1])),)))
            else:
                totals[done.task.name] = done.value // 10**6
            if lost and len(totals) == 4 and draining is None:
                draining = next(w.node for w in pool._workers if w.node and w.node != nodes[2].node_id)
                ray._raylet.GcsClient(cluster.address).drain_node(draining, 2, "spot", int(1000 * (time.time() + 60)))
                for n in range(6, 10):
                    pool.submit(Task(f"total {n}", "total", (np.full(10**6, n),)))
        print("TOTALS", sorted(totals.items()))
        print("LOST INPUTS", lost > 0)
        print("LEFT", draining not in [w.node for w in pool._workers])
        nodes.append(cluster.add_node(num_cpus=1, **small))
        mark = os.path.join(sys.argv[1], "mark")
        pool.submit(Task("long", "long", (mark,)))
        def drain_where_it_is():
            while not os.path.exists(mark):
                time.sleep(0.1)
            node = next(w.node for w in pool._workers if w.task)
            ray._raylet.GcsClient(cluster.address).drain_node(node, 2, "spot", int(1000 * (time.time() + 8)))
        threading.Thread(target=drain_where_it_is, daemon=True).start()
        began = time.monotonic()
        print("LONG", [done.value for done in pool.results()], "IN TIME", time.monotonic() - began < 30)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow(40)
def test_a_lost_node_and_a_draining_node_change_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    # Ray's sockets lie in the folder, and their paths may have no more than 107 bytes: tmp_path is too long.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        ran = subprocess.run(
            [sys.executable, str(script), folder],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = ran.stdout.splitlines()
    assert f"TOTALS {sorted((f'total {n}', n) for n in range(10))}" in lines
    assert "LOST INPUTS True" in lines
    assert "LEFT True" in lines
    assert "LONG ['done by another'] IN TIME True" in lines
    assert sum("is being taken away" in line for line in lines) == 2
    assert sum("its node goes before it is done" in line for line in lines) == 1
