"""The connection to Ray: joins a running cluster or starts one here.

What must stay true: what does not answer is told within seconds, only what was started here is shut down here, and a
Ray that was started here listens on this machine alone, to who knows a token that is written nowhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray._private import ray_constants

from dasm_ray.config.keys import Runtime
from dasm_ray.errors import ConfigError, NonFinite, SessionError, StorageError, UserError
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.address import checked_address, is_same_head
from dasm_ray.runtime.autoscaler import ask_autoscaler, grows
from dasm_ray.runtime.machine import object_store_bytes, read_machine, shm_is_small
from dasm_ray.runtime.plan import GIB, Plan, Room, Shape, memory_for_workers, plan_here, plan_there, several
from dasm_ray.store.place import Place

Log = Callable[[str], None]

PROBE_SECONDS = 5.0
"""Longest wait for a sign of life from a cluster's port."""
SHUTDOWN_SECONDS = 8.0
"""Longest wait for Ray to let go of a cluster that is dead; without its GCS that takes 7 seconds, or for ever."""

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables by which the user says how Ray's processes know one another."""

logger = logging.getLogger(__name__)


# --- the session -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A connection to Ray, in which ``workers`` of a ``shape`` may be started, which compute on ``device``."""

    workers: int
    shape: Shape
    device: Literal["cpu", "cuda"]
    started_here: bool
    connected_here: bool

    @classmethod
    def open(cls, runtime: Runtime, log: Log) -> Session:
        """Connects to ``runtime.address`` or RAY_ADDRESS, else starts Ray here; an open connection is used as it is.

        Notices go to ``log``, one line each. Raises ResourceError for workers that can never be had, SessionError when
        the cluster does not answer, ConfigError where ``runtime.address`` names another than the open connection's,
        RunDirError in a folder whose name is not UTF-8.
        """
        Place(".")  # what Ray would say of such a folder is no sentence
        open_already = ray.is_initialized()
        asked = runtime.address  # an empty one was meant to be one
        if open_already and asked is not None:
            _check_is_open(asked)
        address = (os.environ.get("RAY_ADDRESS") or "local") if asked is None else asked
        here = address == "local" and not open_already
        plan = _start(runtime, log) if here else _join(runtime, None if open_already else address)
        if not open_already:
            watchdog.begin()
        for notice in plan.notices:
            log(notice)
        device = runtime.device or ("cuda" if plan.shape.num_gpus else "cpu")
        return cls(plan.workers, plan.shape, device, here, not open_already)

    def close(self) -> None:
        """Ends what was begun here: the connection, and the cluster if it was started here."""
        if not self.connected_here:
            return
        is_dead = watchdog.death() is not None
        if is_dead:
            watchdog.tidy_up()
        with contextlib.suppress(TimeoutError):
            if is_dead:
                watchdog.bounded(ray.shutdown, SHUTDOWN_SECONDS)
            else:
                ray.shutdown()
        watchdog.end()
        if self.started_here:
            _forget_token()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Closes. What failed, or was interrupted, because Ray has died is told as that."""
        death = watchdog.death() if self.connected_here else None
        self.close()
        if death is not None and isinstance(error, Exception | KeyboardInterrupt) and not _is_plain(error):
            raise SessionError(death.sentence) from error

    def __str__(self) -> str:
        where = "this machine" if self.started_here else "a Ray cluster"
        return f"{several(self.workers, 'worker')} of {self.shape} on {where}"


def _is_plain(error: BaseException) -> bool:
    """Whether an error says all there is to say, and would be the same with Ray alive."""
    return isinstance(error, SessionError | UserError | NonFinite | StorageError)


def _check_is_open(address: str) -> None:
    """Nobody's work goes to another cluster than the one that was named."""
    head = ray.get_runtime_context().gcs_address
    if not is_same_head(checked_address(address), head):
        raise ConfigError(
            f"runtime.address: {address} is not the cluster that this process is connected to already ({head}); leave "
            f"the address out, or call ray.shutdown() first"
        )


def _start(runtime: Runtime, log: Log) -> Plan:
    """Starts Ray here, with as many logical cores as the planned workers ask for."""
    machine = read_machine()
    plan = plan_here(runtime, machine)
    if shm_is_small(machine.shm):
        size = machine.shm / 2**20
        log(f"/dev/shm holds only {size:.0f} MiB: objects go through the disk, slowly; enlarge it (docker --shm-size)")
    _make_token()
    try:
        with _loopback():
            _init(
                address="local",
                num_cpus=max(machine.cores, plan.workers * plan.shape.num_cpus),
                num_gpus=machine.gpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes(machine.memory, machine.shm),
                _memory=memory_for_workers(machine),
            )
    except BaseException:
        _forget_token()
        raise
    return plan


_made: list[str] = []
"""The variables of AUTH that were set here, to be taken back."""


def _make_token() -> None:
    """A token for this session alone, unless the user has said how Ray's processes know one another.

    It stands in the environment of this process and of those it starts, which only their owner can read. Ray would
    write one to the home directory, which other clusters of this user would then take for theirs.
    """
    if not any(name in os.environ for name in AUTH):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _made[:] = ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]  # the mode Ray sets itself
        _read_auth_again()


def _forget_token() -> None:
    """Takes back what ``_make_token`` set, so that a cluster that is joined next is not met with it."""
    for name in _made:
        os.environ.pop(name, None)
    if _made:
        _made.clear()
        _read_auth_again()


def _read_auth_again() -> None:
    """Ray reads the variables once a process; older ones have no tokens."""
    loader = getattr(ray._raylet, "AuthenticationTokenLoader", None)
    if loader is not None:
        loader.instance().reset_cache()
        ray._raylet.Config.initialize("")


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """A Ray that is started here listens on 127.0.0.1 alone, as Ray itself has it on macOS and Windows."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(runtime: Runtime, address: str | None) -> Plan:
    """Joins the cluster (None: joined already) and plans on it; leaves it again if it cannot meet the request."""
    if address is not None:
        address = _resolved(address)
        _probe(address)
        _init(address=address)
    try:
        totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Room(each.get("CPU", 0), each.get("GPU", 0), each.get("memory", 0) / GIB) for each in totals]
        plan = plan_there(runtime, nodes, grows=grows())
        if not any(node.slots(plan.shape) for node in nodes):
            ask_autoscaler(plan.shape)
        return plan
    except BaseException:  # nobody would watch that connection, and the next session take it for the user's own
        if address is not None:
            ray.shutdown()
        raise


def _init(**options: Any) -> None:
    # Ray's coming default; while it is unset, each worker without a GPU warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _own_sigterm():
            ray.init(logging_level="ERROR", log_to_driver=False, **options)
    except Exception as error:  # of many types; whichever it is, there is no cluster to work with
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise SessionError(f"{options['address']}: Ray did not start or did not answer ({reason})") from error
    _keep_stdout_clean()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """SIGTERM does what it did before.

    Ray puts handlers of its own, which end a command with 15 and without a word, and at last one below Python's, which
    prints a stack: that goes when Python's is put anew.
    """
    utils = ray._private.utils
    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _keep_stdout_clean() -> None:
    """Ray prints a paragraph on *stdout* for each dead worker, whatever log_to_driver says; it belongs in a log."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix: logger.debug("%s", "\n".join(data["lines"]))


def _resolved(address: str) -> str:
    """``host:port`` for an address as users write it; ``auto`` is the cluster of this machine."""
    if address != "auto":
        return checked_address(address)
    try:
        return str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError:
        unset = "start one or leave runtime.address unset"
        raise SessionError(f"auto: not one Ray cluster, or several, run on this machine; {unset}") from None


def _probe(address: str) -> None:
    """Asks the port for a sign of gRPC; against a dead one ``ray.init`` itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1"):
        host = ray._private.services.get_node_ip_address()  # Ray replaces it so, too
    try:
        answered = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or error
        hint = "check runtime.address or RAY_ADDRESS"
        raise SessionError(f"{address}: no Ray cluster answers there ({reason}); {hint}") from None
    if not answered:
        raise SessionError(f"{address}: something else listens there; give the port of the Ray head (6379 by default)")


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether the port answers the greeting of HTTP/2 with a SETTINGS frame (RFC 9113, section 3.4)."""
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS"):
            return True  # only Ray itself can speak first here
        connection.sendall(greeting)
        return connection.recv(9)[3:4] == b"\x04"
