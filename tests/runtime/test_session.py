"""Plans are pure and tested as such; one process of its own shows that refusals come before Ray is started."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dasm_ray.config.keys import Runtime
from dasm_ray.errors import ResourceError, SessionError
from dasm_ray.runtime import session as session_module
from dasm_ray.runtime.session import Session

# --- sessions ----------------------------------------------------------------------------------------------------


REFUSED = """
import sys
import ray
from dasm_ray.config.keys import Runtime
from dasm_ray.errors import ResourceError
from dasm_ray.runtime.session import Session
try:
    Session.open(Runtime(gpus_per_worker=64), log=print)
except ResourceError as error:
    print(error)
    print("started", ray.is_initialized(), "torch", "torch" in sys.modules)
"""

OVERBOOKED = """
import os
import time
import ray
from dasm_ray.config.keys import Runtime
from dasm_ray.runtime.session import Session
workers = len(os.sched_getaffinity(0)) + 1
with Session.open(Runtime(workers=workers, gpus_per_worker=0), log=print) as session:
    print(session, session.device, ray.cluster_resources()["CPU"] >= session.workers)

    @ray.remote(num_cpus=0, max_retries=0)
    def die():
        os._exit(1)

    try:
        ray.get(die.remote())
    except ray.exceptions.WorkerCrashedError:
        print("died")
    time.sleep(2)  # Ray's own report of the death comes by another way, and later
print("open", ray.is_initialized())
"""


def run_script(text: str) -> list[str]:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "RAY_AUTH_MODE": "disabled"}
    ran = subprocess.run(
        [sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_an_impossible_request_is_refused_before_ray_is_started() -> None:
    sentence, state = run_script(REFUSED)
    assert sentence.startswith("runtime.gpus_per_worker: a worker needs 64 GPUs, but this machine has")
    assert state == "started False torch False"


def test_a_session_of_more_workers_than_cores_starts_says_so_and_keeps_stdout_clean() -> None:
    notice, session, died, end = run_script(OVERBOOKED)
    assert notice.endswith("of 1 core will share")
    assert session.endswith("of 1 core and 0 GPUs on this machine cpu True")
    assert (died, end) == ("died", "open False")


def test_an_open_connection_is_used_and_left_open(ray_session: Session) -> None:
    assert ray_session.started_here
    with Session.open(Runtime(workers=1, gpus_per_worker=0), log=lambda text: None) as inner:
        assert (inner.started_here, inner.connected_here, inner.workers) == (False, False, 1)
    assert ray.is_initialized()


def test_a_request_that_an_open_connection_cannot_meet_is_refused_and_leaves_it_open(ray_session: Session) -> None:
    with pytest.raises(ResourceError, match="64 GPUs"):
        Session.open(Runtime(gpus_per_worker=64), log=lambda text: None)
    assert ray.is_initialized()


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("head", "is not host:port"),
        ("head:99999", "is not host:port"),
        ("ray://head:10001", "Ray client address"),
    ],
)
def test_a_dead_address_is_told_at_once(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SessionError, match=words) as caught:
        Session.open(Runtime(address=address), log=lambda text: None)
    assert address in str(caught.value)


def test_the_environment_may_hold_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SessionError, match=r"127\.0\.0\.1:1: "):
        Session.open(Runtime(), log=lambda text: None)


def test_a_port_that_speaks_something_else_is_told_apart(listener: socket.socket) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert not session_module._speaks_grpc(*listener.getsockname())
    thread.join()


def test_a_port_that_says_nothing_is_no_cluster(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(ray._private.services, "get_node_ip_address", lambda: "127.0.0.1")
    address = f"localhost:{listener.getsockname()[1]}"
    with pytest.raises(SessionError, match=r"no Ray cluster answers there \(no answer in time\)"):
        session_module._probe(address)


def test_a_living_head_passes_the_probe(ray_session: Session) -> None:
    session_module._probe(ray.get_runtime_context().gcs_address)
    assert not session_module.grows()
