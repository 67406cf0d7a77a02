"""Deaths of stand-ins for Ray's processes; real ones die in test_session.py."""

from __future__ import annotations

import _thread
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import ObjectLostError, OutOfDiskError

from dasm_ray.errors import SessionError, StorageError
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.watchdog import Watch, bounded

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child of its own."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watch]]:
    """Makes a watch, which is then the one of this process."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(_thread, "interrupt_main", lambda: None)
    watches: list[Watch] = []

    def make(*args: Any, **options: Any) -> Watch:
        watches.append(Watch(*args, **options))
        monkeypatch.setattr(watchdog, "_watch", watches[-1])
        return watches[-1]

    yield make
    for watch in watches:
        watch.end()


def wait_until(what: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- who has died ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "store_is_gone"), [("raylet", True), ("gcs_server", False)])
def test_a_death_is_noticed_named_and_raised(
    kind: str, store_is_gone: bool, watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    watching([(kind, parent)])
    watchdog.check()
    assert watchdog.death() is None
    parent.kill()
    wait_until(watchdog.death)
    found = watchdog.death()
    assert found is not None
    assert found.store_is_gone == store_is_gone
    with pytest.raises(SessionError, match=rf"\({kind}\) has died \(killed by signal 9\); what is on disk is whole"):
        watchdog.check()
    with pytest.raises(SessionError, match="the same command goes on"):
        watchdog.put(1)


def test_processes_that_nothing_depends_on_may_die(
    watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    watch = watching([("log_monitor", parent)])
    parent.kill()
    parent.wait()
    assert watch.look() is None


def test_what_descends_from_a_dead_process_is_ended_too(
    watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    watch = watching([("gcs_server", parent)])
    family = set(watch._family)
    assert len(family) == 2
    parent.kill()
    wait_until(watchdog.death)
    assert any(watchdog._is_alive(each) for each in family)
    watchdog.tidy_up()
    assert not any(watchdog._is_alive(each) for each in family)


def test_the_family_is_that_of_a_look_for_each_process_and_nobody_elses(
    watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    script = [sys.executable, "-c", PARENT]
    with (
        subprocess.Popen(script, stdout=subprocess.PIPE) as other,
        subprocess.Popen(script, stdout=subprocess.PIPE) as no,
    ):
        for each in (other, no):
            assert each.stdout is not None
            each.stdout.readline()
        stranger = psutil.Process(no.pid)
        apart = [psutil.Process(each.pid) for each in (parent, other)]
        plain = {*apart, *(child for each in apart for child in each.children(recursive=True))}
        theirs = [stranger, *stranger.children(recursive=True)]
        found = watching([("raylet", parent), ("log_monitor", other)])._family
        for each in {*plain, *theirs} - {psutil.Process(parent.pid)}:
            each.kill()
    assert len(plain) == 4
    assert len(theirs) == 2
    assert found == plain


def test_a_main_thread_that_waits_is_interrupted_once(
    watching: Callable[..., Watch], parent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts: list[float] = []
    monkeypatch.setattr(watchdog, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(_thread, "interrupt_main", lambda: interrupts.append(time.monotonic()))
    watching([("raylet", parent)])
    died = time.monotonic()
    parent.kill()
    wait_until(lambda: interrupts)
    time.sleep(0.3)
    (interrupt,) = interrupts
    assert interrupt - died >= 0.3


def test_a_main_thread_that_has_been_told_is_not_interrupted(
    watching: Callable[..., Watch], parent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts: list[None] = []
    monkeypatch.setattr(watchdog, "STUCK_SECONDS", 1.5)
    monkeypatch.setattr(_thread, "interrupt_main", lambda: interrupts.append(None))
    watching([("raylet", parent)])
    parent.kill()
    wait_until(watchdog.death)
    with pytest.raises(SessionError):
        watchdog.check()
    time.sleep(1.8)
    assert not interrupts


STUCK = """
import signal, subprocess, sys, time
from dasm_ray.runtime import watchdog
watchdog.STUCK_SECONDS, watchdog.LAST_SECONDS = 0.2, 0.6
signal.signal(signal.SIGINT, signal.SIG_IGN)
raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
watch = watchdog.Watch([("raylet", raylet)])
raylet.kill()
time.sleep(60)
"""


def test_a_process_that_nothing_can_interrupt_is_ended_and_the_guardian_says_why() -> None:
    ran = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("dasm-ray: Ray's node process (raylet) has died (killed by signal 9); what is on disk")
    assert ran.stderr.count("\n") == 1


# --- joined clusters ---------------------------------------------------------------------------------------------


def test_a_port_that_refuses_for_long_is_dead_and_one_that_comes_again_is_not(
    watching: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "REFUSED_SECONDS", 0.3)
    monkeypatch.delenv(watchdog.RECONNECT, raising=False)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    watch = watching([], [("the head", "127.0.0.1", port, False)])
    watch._probe_ports()
    server.close()
    watch._probe_ports()
    with socket.create_server(("127.0.0.1", port)):
        time.sleep(0.4)
        watch._probe_ports()
    assert watch.death is None
    watch._probe_ports()
    time.sleep(0.4)
    watch._probe_ports()
    with pytest.raises(SessionError, match=rf"the head \(127.0.0.1:{port}\) has died or cannot be reached"):
        watchdog.check()


@pytest.mark.parametrize(
    ("fault", "asked", "seconds"),
    [
        ("Connection refused", None, watchdog.REFUSED_SECONDS),
        ("no answer", None, watchdog.SILENT_SECONDS),
        ("Connection refused", "600", 595),
        ("no answer", "1", watchdog.REFUSED_SECONDS),
    ],
)
def test_patience_follows_the_fault_and_what_ray_was_told(
    fault: str, asked: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(watchdog.RECONNECT, raising=False)
    if asked is not None:
        monkeypatch.setenv(watchdog.RECONNECT, asked)
    assert watchdog._patience(fault) == seconds


def test_a_joined_cluster_is_watched_by_its_ports(ray_session: object) -> None:
    ports = watchdog._ports_of_cluster()
    assert [(what, holds) for what, _, _, holds in ports] == [
        ("the head of the Ray cluster", False),
        ("this machine's raylet", True),
    ]


# --- calls with an end -------------------------------------------------------------------------------------------


def test_a_call_has_an_end() -> None:
    assert bounded(lambda: 3) == 3
    with pytest.raises(KeyError):
        bounded(lambda: {}["x"])
    with pytest.raises(TimeoutError):
        bounded(lambda: time.sleep(5), 0.1)


def test_a_call_is_given_up_when_a_look_raises() -> None:
    with pytest.raises(SessionError):
        bounded(lambda: time.sleep(5), 4, look=lambda: _raise(SessionError("dead")))


def _raise(error: Exception) -> None:
    raise error


@pytest.fixture
def objects(ray_session: object) -> tuple[Any, Any]:
    """A small answer of a task, which this process has, and a large one, which the store has."""
    small = ray.remote(lambda: np.arange(3)).remote()
    large = ray.remote(lambda: np.arange(10**6)).remote()
    ray.wait([small, large], num_returns=2, timeout=60)
    return small, large


def test_after_the_raylet_only_what_this_process_has_is_fetched(
    objects: tuple[Any, Any], watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    small, large = objects
    assert watchdog.fetch(large).sum() == 499999500000
    watching([("raylet", parent)])
    parent.kill()
    wait_until(watchdog.death)
    assert watchdog.fetch(small).tolist() == [0, 1, 2]
    with pytest.raises(SessionError, match="has died"):
        watchdog.fetch(large)


def test_after_the_gcs_objects_are_fetched_for_a_moment(
    objects: tuple[Any, Any], watching: Callable[..., Watch], parent: subprocess.Popen[bytes], ray_session: object
) -> None:
    never = ray.remote(lambda: time.sleep(20)).remote()
    watching([("gcs_server", parent)])
    parent.kill()
    wait_until(watchdog.death)
    assert len(watchdog.fetch(objects[1])) == 10**6
    found = watchdog.death()
    assert found is not None
    watchdog._watch.death = watchdog.Death(found.what, found.at - watchdog.SAVE_SECONDS, False)  # type: ignore[union-attr]
    with pytest.raises(SessionError, match="has died"):
        watchdog.fetch(never)
    ray.cancel(never, force=True)


def test_an_object_that_is_lost_is_a_sentence(ray_session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ObjectLostError("aa" * 28, None, "")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(SessionError, match="cannot be had from Ray any more"):
        watchdog.fetch(object())


def test_a_full_store_and_a_full_disk_are_a_sentence(ray_session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OutOfDiskError("Local disk is full")

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(StorageError, match=r"fits neither into Ray's object store nor onto the disk .*free room"):
        watchdog.put(object())


def test_waiting_ends_and_notices_a_death(
    objects: tuple[Any, Any], watching: Callable[..., Watch], parent: subprocess.Popen[bytes]
) -> None:
    never = ray.remote(lambda: time.sleep(20)).remote()
    assert watchdog.wait([never, objects[0]], 5) == [objects[0]]
    assert watchdog.wait([never], 0.2) == []
    watching([("raylet", parent)])
    parent.kill()
    with pytest.raises(SessionError):
        watchdog.wait([never], 15)
    ray.cancel(never, force=True)


def test_the_guardian_of_a_killed_process_speaks() -> None:
    text = (
        "import os, time; from dasm_ray.runtime.watchdog import Watch; Watch(); time.sleep(.5); os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == -9
    assert ran.stderr == watchdog.KILLED + "\n"


def test_a_watch_that_is_ended_leaves_no_process(watching: Callable[..., Watch]) -> None:
    watch = watching()
    watch.end()
    assert watch._guardian.poll() == 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(watch._guardian.pid, 0)
        pytest.fail("the guardian lives")
