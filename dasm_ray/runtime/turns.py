"""One compilation a machine: who compiles a step first, who waits for what comes of it, and where that is kept.

    CACHE/compiled/VERSIONS/               what torch's compiler keeps; by torch, this package and the processor
    CACHE/compiled/VERSIONS/done/KEY       there once a step was compiled: of which kind, and in how many seconds
    CACHE/compiled/VERSIONS/done/KEY.lock  locked by who compiles it

What must stay true: nobody waits for one that has died, nor for ever; where nothing can be kept each process compiles
for itself; and the folder may be deleted whenever nothing runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import ray
import torch
from ray.exceptions import RayError
from ray.experimental import internal_kv

from dasm_ray.config.gains import COLD
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.compiled import First
from dasm_ray.errors import RunDirError
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.machine import installed, processor
from dasm_ray.store.datasets.blockcache import cache_folder

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Of the environment: torch's own, the folder of what is compiled; a user's is left as it is."""

PATIENCE = 900.0
"""Longest wait, in seconds, for another process that compiles the same step: then it is compiled here as well."""

PREFIX = "dasm_ray/compiling"
"""Of keys in Ray's own store, by which workers tell their driver that they compile."""

Tell = Callable[[First | None], None]


def begin() -> None:
    """From now on this process keeps what it compiles where the next one finds it, and compiles nothing twice."""
    folder = _folder()
    if folder is not None:
        os.environ.setdefault(VARIABLE, str(folder))
        compiled.turn = Turns(folder / "done", tell)


def _folder() -> Path | None:
    """The folder of these versions; None where there is no place for it."""
    versions = hashlib.sha256(repr((torch.__version__, installed("dasm-ray"), processor())).encode()).hexdigest()[:16]
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) / "dasm_ray" / versions
    with contextlib.suppress(RunDirError):
        return (cache_folder(None).parent / "compiled" / versions).local
    return None


class Turns:
    """One process at a time compiles a step of a shape; those that come after find what it has left."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        self._folder, self._tell = folder, tell

    @contextlib.contextmanager
    def __call__(self, first: First) -> Iterator[None]:
        """Around a first call. ``tell`` hears of one that compiles, and None when it is over."""
        done = self._folder / hashlib.sha256(repr(first).encode()).hexdigest()[:32]
        if done.exists():
            yield
            return
        with self._held(done) as is_first:
            if is_first:
                began = time.monotonic()
                self._tell(first)
                try:
                    yield
                finally:
                    self._tell(None)
                _keep(done, f"{first.kind}: {time.monotonic() - began:.1f}\n")
                return
        yield  # what another has left is read by all at once

    @contextlib.contextmanager
    def _held(self, done: Path) -> Iterator[bool]:
        """The lock of a step; whether nobody has compiled it by now. Without a lock one is the first."""
        lock = filelock.FileLock(done.with_suffix(".lock"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE)
        except (OSError, filelock.Timeout):
            yield True
            return
        try:
            yield not done.exists()
        finally:
            lock.release()


def _keep(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        file.write_text(text)


# --- what the driver hears ---------------------------------------------------------------------------------------


def tell(first: First | None) -> None:
    """Tells the driver of this worker that it compiles, or does no more; outside of Ray nobody is told."""
    if not ray.is_initialized():
        return
    mine = f"{_of_job()}/{ray.get_runtime_context().get_worker_id()}/"
    with contextlib.suppress(RayError):  # a word to the driver is no part of the work
        if first is None:
            internal_kv._internal_kv_del(mine, del_by_prefix=True)
        else:
            internal_kv._internal_kv_put(f"{mine}{first.kind.partition(' ')[0]}", "", overwrite=True)


def _of_job() -> str:
    return f"{PREFIX}/{ray.get_runtime_context().get_job_id()}/"


class Hearing:
    """What the driver knows of its workers' compiling: says to ``say`` for how many seconds it will go on, or None.

    A worker that died while it compiled tells nobody that it is over: what goes on for much too long is not believed.
    """

    MOST = 10.0
    """Times the usual cost of a step."""

    def __init__(self, say: Callable[[float | None], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._since: dict[bytes, float] = {}

    def __call__(self) -> None:
        """Looks once."""
        with contextlib.suppress(TimeoutError, RayError):  # whether Ray is gone for good the watchdog says
            self.hear(watchdog.bounded(lambda: internal_kv._internal_kv_list(_of_job()), look=watchdog.check))

    def hear(self, keys: list[bytes]) -> None:
        """Takes in who compiles by now."""
        now = self._clock()
        self._since = {key: self._since.get(key, now) for key in keys}
        left = []
        for key, since in self._since.items():
            cost = COLD.get(key.decode().rpartition("/")[2], COLD["train"])
            if now - since < self.MOST * cost:
                left.append(max(0.0, cost - (now - since)))
        self._say(max(left) if left else None)
