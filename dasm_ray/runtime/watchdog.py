"""Notices that Ray itself has died under a session, and sees to it that the command ends, says so and leaves nothing.

Ray's own way is silence: a driver whose raylet is gone is ended by Ray without a word at its next look into the object
store, or after 13 seconds; one whose GCS is gone waits for 60 seconds. What must stay true: no wait outlives Ray by
more than ``LAST_SECONDS``, the object store is never touched after its raylet is gone, and what was started here goes
with it.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import psutil
import ray
from ray.exceptions import RayError

from dasm_ray.errors import SessionError, StorageError

LOOK_SECONDS = 0.25
"""Time between two looks at Ray's processes."""
PROBE_SECONDS = 5.0
"""Longest wait for a connection to a cluster's port."""
REFUSED_SECONDS = 10.0
"""A joined cluster whose port refuses for so long is dead; Ray's own limit, where it is set, is respected."""
SILENT_SECONDS = 45.0
"""A joined cluster that does not answer at all for so long is dead: it may be the network, so it has longer."""
FETCH_SECONDS = 600.0
"""Longest wait for an object that is there, be it on another node."""
SAVE_SECONDS = 8.0
"""Longest wait, in all, for objects that are fetched after Ray has died."""
STUCK_SECONDS = 5.0
"""So long after Ray has died a main thread that has not noticed is interrupted."""
LAST_SECONDS = 22.0
"""So long after Ray has died the process is ended, whatever it waits for."""
GUARDED_SECONDS = 5.0
"""Longest wait for a call that asks Ray's processes something on the way."""

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own setting: how long drivers wait for a GCS that comes again."""

WHOLE = "what is on disk is whole, and the same command goes on from the last checkpoint"
KILLED = (
    f"dasm-ray: the command was ended from outside before it could say why (by a signal, or by Ray, whose own "
    f"processes may have died); {WHOLE}"
)
"""What is said for a driver that is gone without a word."""

ESSENTIAL = {"gcs_server": "control process (gcs_server)", "raylet": "node process (raylet)"}
"""The processes without which nothing goes on; a dead dashboard or log monitor stops no run."""

Result = TypeVar("Result")
ObjectRef = Any
"""Ray names no type for what refers to an object."""


@dataclass(frozen=True)
class Death:
    """What has died, when, and whether objects in the store went with it."""

    what: str
    at: float
    store_is_gone: bool

    @property
    def sentence(self) -> str:
        return f"{self.what}; {WHOLE}"


class Watch:
    """Looks at Ray in a thread of its own, from the start of a session to its end.

    ``started``: the processes of a Ray that was started here, by kind, as Ray's own handles. Without any, the cluster
    was joined, and ``ports`` says what must answer: (what it is, host, port, whether objects go with it).
    """

    def __init__(
        self,
        started: Sequence[tuple[str, subprocess.Popen[bytes]]] = (),
        ports: Sequence[tuple[str, str, int, bool]] = (),
    ) -> None:
        self.death: Death | None = None
        self.is_told = False
        """Whether the main thread knows; from then on it is not interrupted."""
        self._is_tidy = False
        self._started, self._ports = tuple(started), tuple(ports)
        self._family: set[psutil.Process] = set()
        self._ended = threading.Event()
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._since: dict[str, float] = {}
        self._guardian = _start_guardian()
        self._look_at_family()
        self._thread = threading.Thread(target=self._watch, name="watch on Ray", daemon=True)
        self._thread.start()

    # --- looking -------------------------------------------------------------------------------------------------

    def look(self) -> Death | None:
        """Whether Ray has died by now; cheap for a Ray that was started here."""
        if self.death is None:
            for kind, process in self._started:
                if kind in ESSENTIAL and (code := process.poll()) is not None:
                    self._note(f"Ray's {ESSENTIAL[kind]} has died ({_how(code)})", store_is_gone=kind == "raylet")
                    break
        return self.death

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS if self._started else 1.0):
            if self.look() is None:
                self._look_at_family()
                self._probe_ports()
            else:
                self._see_to_the_end()

    def _probe_ports(self) -> None:
        """A joined cluster: refused or silent for too long is dead."""
        for what, host, port, holds_objects in self._ports:
            fault = _fault_of(host, port)
            if fault is None:
                self._since.pop(what, None)
                continue
            since = self._since.setdefault(what, time.monotonic())
            if time.monotonic() - since >= _patience(fault):
                self._note(f"{what} ({host}:{port}) has died or cannot be reached ({fault})", holds_objects)

    def _look_at_family(self) -> None:
        """Who descends from the Ray that was started here; their parents may be gone when they are looked for."""
        family = _descendants({process.pid for _, process in self._started})
        if not family <= self._family:
            self._family |= family
            self._tell(processes=[[each.pid, each.create_time()] for each in self._family if _is_alive(each)])

    def _note(self, what: str, store_is_gone: bool) -> None:
        if self.death is None:
            self.death = Death(what, time.monotonic(), store_is_gone)
            self._tell(sentence=f"dasm-ray: {self.death.sentence}")

    # --- ending --------------------------------------------------------------------------------------------------

    def _see_to_the_end(self) -> None:
        """Interrupts a main thread that waits for what will not come, and at last ends the process."""
        assert self.death is not None
        if self.death.store_is_gone and not self._is_tidy:
            self._is_tidy = True
            self.end_family()  # while its GCS lives, Ray ends the driver in a moment
        late = time.monotonic() - self.death.at
        if late > LAST_SECONDS:
            self.end_family()
            os._exit(1)  # the guardian says why
        if late > STUCK_SECONDS and self._interrupts and not self.is_told:
            self.is_told = True
            _thread.interrupt_main()

    def end_family(self) -> None:
        """Ends every process of the Ray that was started here."""
        for _ in range(2):  # whoever was just being started is found the second time
            self._look_at_family()
            for each in self._family:
                with contextlib.suppress(psutil.Error):
                    each.kill()
        psutil.wait_procs([each for each in self._family if _is_alive(each)], timeout=3)

    def end(self) -> None:
        """Nothing is to be watched any more."""
        if not self._ended.is_set():
            self._ended.set()
            self._tell(bye=True)
            with contextlib.suppress(OSError):
                if self._guardian.stdin is not None:
                    self._guardian.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guardian.wait(2)

    def _tell(self, **words: object) -> None:
        """A line to the guardian; without one all goes on."""
        with contextlib.suppress(OSError, ValueError):
            pipe: IO[bytes] | None = self._guardian.stdin
            assert pipe is not None
            pipe.write(json.dumps(words).encode() + b"\n")
            pipe.flush()


def _start_guardian() -> subprocess.Popen[bytes]:
    """The process that speaks and tidies up for a driver that was ended without a word."""
    from dasm_ray.runtime import guardian

    command = [sys.executable, "-P", guardian.__file__, KILLED]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def _descendants(started: set[int]) -> set[psutil.Process]:
    """The children of this process that have these ids, and all who descend from them.

    The machine's processes are read once: a look for each of them took a fortieth of a core, which the workers lacked.
    """
    family: set[psutil.Process] = set()
    if started:
        ids = set(started)
        for each in psutil.Process().children(recursive=True):  # whoever is a parent comes before its children
            with contextlib.suppress(psutil.Error):
                if each.pid in ids or each.ppid() in ids:
                    ids.add(each.pid)
                    family.add(each)
    return family


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _fault_of(host: str, port: int) -> str | None:
    """Why nobody can be reached there, or None."""
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _patience(fault: str) -> float:
    """Seconds for which a fault may last; a GCS that is set up to come again has the time that Ray was told."""
    asked = os.environ.get(RECONNECT, "")
    if asked.isdecimal():
        return max(REFUSED_SECONDS, int(asked) - 5.0)
    return REFUSED_SECONDS if "refused" in fault else SILENT_SECONDS


# --- the watch on this process's connection ----------------------------------------------------------------------

_watch: Watch | None = None
"""A process has one connection to Ray, so one watch."""


def begin() -> None:
    """Watches the Ray that this process is connected to, until ``end``."""
    global _watch
    end()
    assert ray.is_initialized()
    node = ray._private.worker._global_node
    started = [(kind, each.process) for kind, processes in node.all_processes.items() for each in processes]
    _watch = Watch(started, () if started else _ports_of_cluster())


def _ports_of_cluster() -> list[tuple[str, str, int, bool]]:
    """What of a joined cluster must answer: its head and this machine's raylet, as far as they do now."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    ports = [("the head of the Ray cluster", host.strip("[]"), int(port), False)]
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            ports.append(("this machine's raylet", node["NodeManagerAddress"], node["NodeManagerPort"], True))
    return [each for each in ports if _fault_of(each[1], each[2]) is None]


def end() -> None:
    """Ends the watch, if there is one."""
    global _watch
    if _watch is not None:
        _watch.end()
        _watch = None


atexit.register(end)


def death() -> Death | None:
    """How the watched Ray has died, or None."""
    return _watch.look() if _watch is not None else None


def check() -> None:
    """SessionError once Ray has died."""
    found = death()
    if found is not None:
        assert _watch is not None
        _watch.is_told = True
        raise SessionError(found.sentence)


def tidy_up() -> None:
    """After a death: no process of the Ray that was started here is left."""
    if _watch is not None and _watch.look() is not None:
        _watch.is_told = True
        _watch.end_family()


# --- calls with an end -------------------------------------------------------------------------------------------


def bounded(
    call: Callable[[], Result], seconds: float = GUARDED_SECONDS, look: Callable[[], object] = lambda: None
) -> Result:
    """What ``call`` returns or raises; TimeoutError after so long, and then it goes on waiting for itself.

    ``look`` is called now and then meanwhile, and may raise.
    """
    answers: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive() and (left := end - time.monotonic()) > 0:
        thread.join(min(left, LOOK_SECONDS))
        look()
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answers[0]


def fetch(ref: ObjectRef) -> Any:
    """What a reference refers to; waits for it only as long as Ray lives, and a moment more.

    Raises SessionError when it cannot be had any more.
    """
    found = death()
    try:
        if found is not None:
            return _fetch_late(ref, found)
        return bounded(lambda: ray.get(ref, timeout=FETCH_SECONDS), FETCH_SECONDS + 1, _look_while_fetching)
    except RayError as error:
        check()
        text = " ".join(str(error).split())[:200]
        raise SessionError(f"an object cannot be had from Ray any more ({text}); {WHOLE}") from error


def _look_while_fetching() -> None:
    """With a dead raylet nothing comes any more; with a dead GCS it still may, for a moment."""
    found = death()
    if found is not None and (found.store_is_gone or time.monotonic() - found.at > SAVE_SECONDS):
        check()


def _fetch_late(ref: ObjectRef, found: Death) -> Any:
    """After a death: what this process has itself can always be had, the store only while its raylet lives."""
    assert _watch is not None
    _watch.is_told = True
    if found.store_is_gone and not _is_in_this_process(ref):
        raise SessionError(found.sentence)
    return ray.get(ref, timeout=max(0.0, found.at + SAVE_SECONDS - time.monotonic()))


def _is_in_this_process(ref: ObjectRef) -> bool:
    """Whether an object is so small that it came with its answer; asks nobody."""
    where = ray.experimental.get_local_object_locations([ref]).get(ref, {})
    return bool(where.get("object_size")) and not where.get("node_ids") and not where.get("did_spill")


def put(value: object) -> ObjectRef:
    """A reference to a value in the object store.

    Raises SessionError once Ray has died, StorageError where neither the store nor the disk behind it has room.
    """
    check()
    try:
        return ray.put(value)
    except RayError as error:
        check()
        text = " ".join(str(error).split())[:200]
        raise StorageError(
            f"what workers are to be given fits neither into Ray's object store nor onto the disk behind it ({text}); "
            f"free room on that disk, and run the same command again"
        ) from error


def wait(refs: list[ObjectRef], seconds: float) -> list[ObjectRef]:
    """The first reference that is there, or none after ``seconds``. Raises SessionError once Ray has died."""
    end = time.monotonic() + seconds
    while True:
        check()
        first, _ = ray.wait(refs, num_returns=1, timeout=max(0.0, min(1.0, end - time.monotonic())))
        check()
        if first or time.monotonic() >= end:
            return list(first)
