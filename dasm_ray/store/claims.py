"""One driver at a time in a folder: a lock that dies with its process, and a claim that says who is at work.

    .lock                 locked while a driver is at work, where files can be locked; stays
    .claim-UUID.json      the driver's own file, gone when it has ended; elsewhere it is renewed and is the lock

What must stay true: two drivers are never at work in one folder at once; a driver whose claim is gone writes nothing
more there; and a driver removes nothing but its own files.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable

import filelock

from dasm_ray.errors import DasmError, RunDirError
from dasm_ray.plain import Tree
from dasm_ray.store.place import Place
from dasm_ray.store.retries import LOG

LOCK = ".lock"
CLAIM = re.compile(r"\.claim-[0-9a-f]{32}\.json")

LOCK_SECONDS = 0.2
"""Between two tries for a folder that another driver has."""

RENEW_SECONDS = 30.0
"""Between two renewals of a claim where files cannot be locked."""

STALE_SECONDS = 300.0
"""A claim not renewed for this long is that of a driver that is no more. Longer than an outage is ridden out."""

ENTER_SECONDS = 10.0
"""How long a driver waits for another one that came at the same time to give way."""

NO_LOCKS = {getattr(errno, name) for name in ("ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP") if hasattr(errno, name)}
"""What file systems say that cannot lock files."""


class Claim:
    """A folder that this driver alone may work in, until ``release``. ``place`` writes only while that is so.

    Made by ``take``. ``is_made``: the folder was not there before.
    """

    def __init__(self, bare: Place, name: str, *, is_made: bool, had_lock: bool) -> None:
        self.name = name
        self.place = bare.within(name)
        self.is_made = is_made
        self._bare, self._had_lock = bare, had_lock
        self._lock: filelock.BaseFileLock | None = None
        self._done = threading.Event()
        self._renewing: threading.Thread | None = None
        self._says: Tree = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "begun": _now(),
            "entered": False,
        }

    def hold(self, lock: filelock.BaseFileLock) -> None:
        """The folder is taken by this lock. What others claim is left over from drivers that are no more."""
        self._lock = lock
        self._says["entered"] = True
        for other in _claims(self._bare):
            (self._bare / other).delete()
        self.write()

    def keep_renewing(self) -> None:
        """The folder is taken by this claim, which is renewed from now on."""
        self._says["entered"] = True
        self.write()
        self._renewing = threading.Thread(target=self._renew, name=f"renews {self.name}", daemon=True)
        self._renewing.start()

    def write(self) -> None:
        """Writes the claim, or writes it again."""
        (self._bare / self.name).write_json({**self._says, "renewed": _now()})

    def withdraw(self) -> None:
        """Takes the claim away."""
        (self._bare / self.name).delete()

    def release(self) -> None:
        """Lets other drivers in; no more is said if the storage fails meanwhile: the claim goes stale by itself."""
        self._done.set()
        if self._renewing is not None:
            self._renewing.join()
            self._renewing = None
        with contextlib.suppress(DasmError):
            self.withdraw()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self, files: Iterable[str]) -> None:
        """Removes ``files``, which this driver has made, and the folder if it made that and nothing else is in it.

        Another driver that waits for the folder finds it empty or not there, and nothing of its own missing.
        """
        with contextlib.suppress(DasmError):
            self.place.check()
            for name in files:
                (self._bare / name).delete()
            self.withdraw()
            if self._lock is not None and (self.is_made or not self._had_lock):
                (self._bare / LOCK).delete()
            if self.is_made:
                self._bare.delete_if_empty()
        self.release()

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            with contextlib.suppress(DasmError):  # an outage that lasts: whoever writes will say so
                if not (self._bare / self.name).exists():
                    return  # taken over, or removed with its folder: never made anew
                self.write()
                if self._is_overtaken():  # at the very moment between the look and the write
                    self.withdraw()
                    return

    def _is_overtaken(self) -> bool:
        """Whether a driver that came later has entered: it found this one's claim stale."""
        others = (_read(self._bare, name) for name in _others(self, self._bare))
        return any(said.get("entered") and str(said.get("begun")) > self._says["begun"] for said in others)


def take(place: Place, patience: float = 0) -> Claim:
    """Takes a folder, which is made if need be, for this driver; RunDirError if another has it after ``patience`` s."""
    until = time.monotonic() + patience
    is_made = not place.exists()
    while True:
        place.make_dir()
        had_lock = (place / LOCK).exists()
        claim = Claim(place, f".claim-{uuid.uuid4().hex}.json", is_made=is_made, had_lock=had_lock)
        try:
            lock = _locked(place, until)
        except FileNotFoundError:  # another driver has just taken its new folder away again
            is_made = True
            continue
        try:
            if lock is None:
                _enter(claim, place, until)
            else:
                claim.hold(lock)
        except BaseException:
            claim.release()
            if lock is not None:
                lock.release()
            raise
        return claim


def is_own(name: str) -> bool:
    """Whether a file in a folder is there only to keep other drivers out."""
    return name == LOCK or CLAIM.fullmatch(name) is not None


# --- by a lock ---------------------------------------------------------------------------------------------------


def _locked(place: Place, until: float) -> filelock.BaseFileLock | None:
    """The lock of a local folder; None where files cannot be locked. The system frees it when its process ends."""
    path = (place / LOCK).local
    if path is None:
        return None
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=max(0.0, until - time.monotonic()), poll_interval=LOCK_SECONDS)
    except filelock.Timeout:
        raise _in_use(place, _claims(place)) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
            return None
        if isinstance(error, FileNotFoundError):
            raise
        why = os.strerror(error.errno) if error.errno else str(error)
        raise RunDirError(f"{place / LOCK} cannot be locked ({why}); mend that or name another place") from None
    return lock


# --- by claims alone ---------------------------------------------------------------------------------------------


def _enter(claim: Claim, place: Place, until: float) -> None:
    """Enters when no other claim is alive.

    Every driver writes its claim first and looks for others afterwards. So of two that come at once, one at least sees
    the other; of two that see each other the one with the smaller name waits for the other to give way.
    """
    while True:
        claim.write()
        others = _others(claim, place)
        if not others or _has_right_of_way(claim, place, others):
            break
        claim.withdraw()
        if time.monotonic() >= until:
            raise _in_use(place, others)
        time.sleep(LOCK_SECONDS)
    for name in _claims(place):
        if name != claim.name:
            LOG.warning("%s: takes over from %s", place, _who(place, name))
            (place / name).delete()
    claim.keep_renewing()


def _has_right_of_way(claim: Claim, place: Place, others: list[str]) -> bool:
    """Waits for drivers that have not entered to give way, if they must; False if this one must, or they do not."""
    until = time.monotonic() + ENTER_SECONDS
    while others:
        if min(others) < claim.name or time.monotonic() >= until or any(_has_entered(place, name) for name in others):
            return False
        time.sleep(LOCK_SECONDS)
        others = _others(claim, place)
    return True


def _others(claim: Claim, place: Place) -> list[str]:
    """Claims of others that are alive, by the storage's own clock: those of different machines differ.

    Where the storage tells no times, by what each claim says of its last renewal; one that says nothing is alive.
    """
    times = {name: when for name, when in place.times().items() if CLAIM.fullmatch(name)}
    if None in times.values():
        times = {name: _renewed(place, name) for name in times}
    own = times.pop(claim.name, None)
    now = own if own is not None else max((when for when in times.values() if when is not None), default=0.0)
    return [name for name, when in times.items() if when is None or now - when < STALE_SECONDS]


def _renewed(place: Place, name: str) -> float | None:
    """When a claim was last renewed, in seconds since 1970 by the clock of its driver; None where it does not say."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.fromisoformat(str(_read(place, name).get("renewed"))).timestamp()
    return None


# --- who it is ---------------------------------------------------------------------------------------------------


def _claims(place: Place) -> list[str]:
    return [name for name in place.names() if CLAIM.fullmatch(name)]


def _read(place: Place, name: str) -> Tree:
    """What a claim says; nothing where it cannot be read, or has just gone."""
    with contextlib.suppress(DasmError):
        said = (place / name).read_json()
        return said if isinstance(said, dict) else {}
    return {}


def _has_entered(place: Place, name: str) -> bool:
    return bool(_read(place, name).get("entered"))


def _who(place: Place, name: str) -> str:
    said = _read(place, name)
    if not said:
        return "a driver that does not say who it is"
    return (
        f"process {said.get('pid')} on {said.get('host')}, at work since {said.get('begun')}, which last said so at "
        f"{said.get('renewed')}"
    )


def _in_use(place: Place, claims: list[str]) -> RunDirError:
    who = f" ({_who(place, claims[0])})" if claims else ""
    return RunDirError(f"{place} is in use by another run{who}; wait for it, or choose another --run")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
