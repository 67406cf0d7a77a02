"""Plans are pure and tested as such; one process of its own shows that refusals come before Ray is started."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from dasm_ray import pipeline
from dasm_ray.config.keys import Runtime
from dasm_ray.config.parsing import load_config
from dasm_ray.errors import ConfigError, DataError, ResourceError, RunDirError, SessionError, TaskLost
from dasm_ray.runtime import session as session_module
from dasm_ray.runtime import watchdog
from dasm_ray.runtime.plan import Shape
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

OF_ITS_OWN = """
import ipaddress
import os
import time
import psutil
import ray
from dasm_ray.config.keys import Runtime
from dasm_ray.runtime.session import Session
from ray._private import ray_constants

before = {name: value for name, value in os.environ.items() if "AUTH" in name}
workers = len(os.sched_getaffinity(0)) + 1
with Session.open(Runtime(workers=workers, gpus_per_worker=0), log=print) as session:
    print(session, session.device, ray.cluster_resources()["CPU"] >= session.workers)

    token = os.environ.get("RAY_AUTH_TOKEN", "")
    print(os.environ["RAY_AUTH_MODE"], len(token))
    print(ray.get(ray.remote(lambda: os.environ.get("RAY_AUTH_TOKEN", "")).remote()) == token)
    me = psutil.Process()
    listening = {
        connection.laddr.ip
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    print(sorted({ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in listening}))

    @ray.remote(num_cpus=0, max_retries=0)
    def die():
        os._exit(1)

    try:
        ray.get(die.remote())
    except ray.exceptions.WorkerCrashedError:
        print("died")
    time.sleep(2)  # Ray's own report of the death comes by another way, and later
print("open", ray.is_initialized())
print({name: value for name, value in os.environ.items() if "AUTH" in name} == before, ray_constants.ENABLE_RAY_CLUSTER)
"""
"""A session of more workers than cores in a process of its own, which has no home, and what it tells of itself."""


def run_script(text: str, **variables: str | None) -> list[str]:
    """What a process of its own prints; a variable of None is unset in it."""
    root = str(Path(__file__).parents[2])
    changed = {**os.environ, "PYTHONPATH": root, "RAY_AUTH_MODE": "disabled", **variables}
    env = {name: value for name, value in changed.items() if value is not None}
    ran = subprocess.run(
        [sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file system may refuse such a name")
def test_ray_puts_no_handlers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so first of all, and again when its processes run; each ends the process without a word."""
    seen: list[object] = []

    def init(**_: object) -> None:
        for _ in range(2):
            ray._private.utils.set_sigterm_handler(lambda number, frame: None)
            seen.append(signal.getsignal(signal.SIGTERM))

    before, theirs = signal.getsignal(signal.SIGTERM), ray._private.utils.set_sigterm_handler
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(session_module, "_keep_stdout_clean", lambda: None)
    session_module._init(address="local")
    assert seen == [before, before]
    assert signal.getsignal(signal.SIGTERM) == before
    assert ray._private.utils.set_sigterm_handler is theirs


def test_in_a_folder_that_is_not_utf8_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "d\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(RunDirError, match=r"d\\xe9: the name is not UTF-8; rename it"):
        Session.open(Runtime(workers=1, gpus_per_worker=0), log=lambda text: None)


def test_an_impossible_request_is_refused_before_ray_is_started() -> None:
    sentence, state = run_script(REFUSED)
    assert sentence.startswith("runtime.gpus_per_worker: a worker needs 64 GPUs, but this machine has")
    assert state == "started False torch False"


@pytest.fixture(scope="module")
def of_its_own() -> list[str]:
    """Each line that such a session prints."""
    return run_script(OF_ITS_OWN, RAY_AUTH_MODE=None, HOME="/nonexistent")


def test_a_session_of_more_workers_than_cores_starts_says_so_and_keeps_stdout_clean(of_its_own: list[str]) -> None:
    notice, session, *privacy, died, end, _ = of_its_own
    assert len(privacy) == 3
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


def test_another_cluster_than_the_one_that_is_open_is_refused(ray_session: Session) -> None:
    head = ray.get_runtime_context().gcs_address
    with Session.open(Runtime(workers=1, gpus_per_worker=0, address=head), log=lambda text: None) as inner:
        assert not inner.connected_here
    for other in ("10.255.255.1:6379", "local", f"{head.rpartition(':')[0]}:1"):
        with pytest.raises(ConfigError, match=r"is not the cluster that this process is connected to already"):
            Session.open(Runtime(workers=1, gpus_per_worker=0, address=other), log=lambda text: None)
    assert ray.is_initialized()


# --- privacy -----------------------------------------------------------------------------------------------------


def test_a_ray_started_here_has_its_own_token_needs_no_home_and_listens_here_alone(of_its_own: list[str]) -> None:
    assert of_its_own[2:5] == ["token 64", "True", "[True]"]
    assert of_its_own[-1] == "True True"


def test_what_the_user_says_of_tokens_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in session_module.AUTH:
        monkeypatch.delenv(name, raising=False)
    for name in session_module.AUTH:
        with monkeypatch.context() as own:
            own.setenv(name, "mine")
            session_module._make_token()
            assert session_module._made == []
            session_module._forget_token()
            assert os.environ[name] == "mine"


def test_a_ray_that_does_not_start_leaves_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go along to the next cluster that is joined."""

    def failing(**_: object) -> None:
        assert "RAY_AUTH_TOKEN" in os.environ
        raise SessionError("local: Ray did not start")

    for name in session_module.AUTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session_module, "_init", failing)
    with pytest.raises(SessionError, match="did not start"):
        session_module._start(Runtime(), lambda note: None)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert session_module._made == []


# --- Ray's own death ---------------------------------------------------------------------------------------------

RECIPE = """
name: killed
data: {name: digits}
model: {width: 4, depth: 1}
synthetic: {ipc: 2, segments: 1, group_size: 5}
experts: {count: 1, epochs: 2, batch: 128, cutmix: 0.0}
matcher: {rounds: 8, networks: 3, batch_real: 16, lr_img: 0.01, scale_lr: false, snapshots: [[0, 2]],
          probe_share: 0.0}
score: {early: 1, batch: 400}
probe: {epochs: 2, batch: 20, members: 1}
evaluate: {epochs: 2, full_epochs: 1, batch: 20, seeds: 1, checkpoints: 1, rows: [distilled, random]}
runtime: {compile: false, checkpoint_seconds: 0, page: false, device: cpu, gpus_per_worker: 0}
"""


def distil_and_kill(recipe: Path, run: Path, victim: str | None) -> subprocess.CompletedProcess[str]:
    """The command; once there is a newer checkpoint ``victim`` is killed, and then all must be over soon."""
    command = [sys.executable, "-m", "dasm_ray", "distill", str(recipe), "--run", str(run), "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        family: list[psutil.Process] = []
        if victim:
            start = time.time()
            while not any(file.stat().st_mtime > start for file in run.glob("segments/**/*.safetensors")):
                assert driver.poll() is None, driver.communicate()
                assert time.time() - start < 240
                time.sleep(0.05)
            family = psutil.Process(driver.pid).children(recursive=True)
            killed = time.monotonic()
            next(each for each in family if each.name() == victim).kill()
        out, err = driver.communicate(timeout=300)
        if victim:
            assert time.monotonic() - killed < 30
            _, left = psutil.wait_procs(family, timeout=5)
            assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        if driver.poll() is None:
            driver.kill()
    return subprocess.CompletedProcess(command, driver.returncode, out, err)


@pytest.mark.long
@pytest.mark.parametrize(
    ("victim", "name"),
    [("raylet", "node process"), pytest.param("gcs_server", "control process", marks=pytest.mark.slow(75))],
)
@pytest.mark.timeout(600)
def test_killed_ray_is_told_within_seconds_nothing_is_left_and_the_same_command_goes_on(
    victim: str, name: str, ray_session: Session, tmp_path: Path
) -> None:
    recipe, run = tmp_path / "killed.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    ended = distil_and_kill(recipe, run, victim)
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"dasm-ray: Ray's {name} ({victim}) has died (killed by signal 9); what is on disk is whole")
    assert ended.stderr.count("has died") == 1
    assert "Traceback" not in ended.stderr
    assert "state-dump" not in ended.stderr
    ended = distil_and_kill(recipe, run, None)
    assert ended.returncode == 0, ended.stderr
    alone = pipeline.distill(load_config(str(recipe)), tmp_path / "alone")
    assert json.loads((run / "synthetic" / "dataset.json").read_text())["digest"] == alone.digest


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TaskLost("lost"), SessionError),
        (RuntimeError("Ray's own"), SessionError),
        (KeyboardInterrupt(), SessionError),
        (DataError("of the user"), DataError),
        (SessionError("told"), SessionError),
        (SystemExit(3), SystemExit),
        (None, None),
    ],
)
def test_what_fails_because_ray_has_died_is_told_as_that(
    error: BaseException | None, raised: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "death", lambda: watchdog.Death("Ray's raylet has died", 0.0, True))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    session = Session(1, Shape(1, 0.0), "cpu", started_here=False, connected_here=True)

    def fail() -> None:
        with session:
            if error is not None:
                raise error

    if raised is None:
        fail()
        return
    with pytest.raises(raised) as caught:
        fail()
    assert ("raylet has died" in str(caught.value)) == (raised is SessionError and str(error) != "told")


def test_a_dead_cluster_that_does_not_let_go_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "death", lambda: watchdog.Death("Ray's GCS has died", 0.0, False))
    monkeypatch.setattr(ray, "shutdown", lambda: time.sleep(5))
    start = time.monotonic()
    Session(1, Shape(1, 0.0), "cpu", started_here=False, connected_here=True).close()
    assert time.monotonic() - start < 3


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
    ],
)
def test_a_dead_address_is_told_at_once(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SessionError, match=words) as caught:
        Session.open(Runtime(address=address), log=lambda text: None)
    assert address in str(caught.value)


@pytest.mark.parametrize("address", ["head", "head..svc:6379", "ray://head:10001", "http://head:8265", ""])
def test_a_misspelt_address_is_the_users_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="6379 by default"):
        Session.open(Runtime(address=address), log=lambda text: None)


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
