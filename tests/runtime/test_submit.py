"""Jobs on a real head with its job server: same bytes as here, the log as it comes, the exit code, and clear refusals.

What must stay true: each head lives in a folder and on ports of its own, and ends with everything that it started.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from dasm_ray import pipeline
from dasm_ray.cli import main
from dasm_ray.config.parsing import load_config
from dasm_ray.errors import ConfigError, ResourceError, SessionError
from dasm_ray.runtime import submit as jobs

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT = 400
"""Seconds after which a command counts as hanging."""

TINY = """
name: tiny
seed: 7
data: {name: digits}
model: {width: 8, depth: 1}
synthetic: {ipc: 1, segments: 1}
experts: {count: 1, epochs: 1, batch: 64, cutmix: 0.0}
matcher: {rounds: 1, networks: 2, lr_img: 0.01, scale_lr: false, snapshots: [[0, 1]]}
score: {early: 1, batch: 200}
probe: {epochs: 2, batch: 20, members: 1}
evaluate: {epochs: 2, full_epochs: 1, batch: 20, seeds: 1, checkpoints: 1, rows: [distilled, random]}
runtime: {compile: false, page: false}
"""
AT_EXIT = """

import atexit, sys

@atexit.register
def _tell():
    torch = sys.modules.get("torch")
    print("code that was sent; CUDA", "begun" if torch and torch.cuda.is_initialized() else "untouched", flush=True)
"""
"""Stands in the code that is sent, and only there."""


# --- what can be known before anything is sent -------------------------------------------------------------------

RUN = {"config": "a.yaml", "run": "s3://b/r", "overrides": (), "workers": None, "address": None}


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("distill", RUN),
        ("distill", {**RUN, "run": "/shared/r"}),
        ("reproduce", RUN),
        ("estimate", {"config": "a.yaml", "address": None}),
        ("compare", {"configs": ("a.yaml", "b.yaml"), "run": "/shared/r"}),
        ("relabel", {"path": "gs://b/r", "target": "gs://b/t"}),
        ("doctor", {"address": None}),
    ],
)
def test_commands_that_compute_are_for_jobs(command: str, given: dict[str, Any]) -> None:
    jobs.check(command, given)


@pytest.mark.parametrize(
    ("command", "given", "parts"),
    [
        ("destill", {}, ["destill: is no command for a job; distill, "]),
        ("export", {"path": "/r", "target": "/t"}, ["export: is no command"]),
        ("distill", {**RUN, "run": None}, ["--run: is missing"]),
        ("reproduce", {**RUN, "run": None}, ["--run: is missing"]),
        ("distill", {**RUN, "run": "runs/c10"}, ["--run runs/c10: is relative"]),
        ("distill", {**RUN, "run": "~/c10"}, ["--run ~/c10: is relative"]),
        ("distill", {**RUN, "address": "auto", "run": "r"}, ["--address: a job joins", "--run r: is relative"]),
        ("evaluate", {"path": "runs/c10"}, ["runs/c10: is relative"]),
        ("relabel", {"path": "/r", "target": "t"}, ["--to t: is relative"]),
    ],
)
def test_what_makes_no_sense_in_a_job_is_refused(command: str, given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs.check(command, given)
    assert len(caught.value.problems) == len(parts)
    for part, problem in zip(parts, caught.value.problems, strict=True):
        assert problem.startswith(part)


def test_recipes_of_the_folder_are_sent_and_others_are_the_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("{recipe: digits}")
    assert jobs.sent_configs(RUN) == ["a.yaml"]
    assert jobs.sent_configs({"configs": ("a.yaml", "/opt/b.yaml", "s3://b/c.yaml")}) == ["a.yaml"]
    assert jobs.sent_configs({"sweeps": ("a.yaml", "/opt/b.yaml")}) == ["a.yaml"]
    assert jobs.sent_configs({"studies": ("a.yaml", "/opt/b.yaml")}) == ["a.yaml"]
    assert jobs.sent_configs({"path": "s3://b/r"}) == []


@pytest.mark.parametrize("argument", ["sweeps", "studies"])
def test_the_recipe_that_a_file_names_is_sent_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    below, given = tmp_path / "here" / "below", {argument: ("below/a.yaml",)}
    below.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    sent = {}
    for recipe in ("base.yaml", "../base.yaml", "../../base.yaml", str(tmp_path / "base.yaml"), "digits"):
        (below / "a.yaml").write_text(f"{{recipe: {recipe}}}")
        sent[recipe] = jobs.sent_configs(given)[1:]
    assert list(sent.values()) == [["below/base.yaml"], ["base.yaml"], ["../base.yaml"], [], []]


KEYS = ("data.path=images", "data.cache=c", "experts.cache=runs/experts", "evaluate.cache=../cells")


@pytest.mark.parametrize("given", [{"overrides": KEYS}, {"overrides": ()}])
def test_keys_that_mean_something_else_in_a_job_are_refused(given: dict[str, Any]) -> None:
    config = load_config(None, [*KEYS, "runtime.address=head:6379"])
    with pytest.raises(ConfigError) as caught:
        jobs.check_keys(given, [config, config], {"imagesx/a.png": 1})
    assert {problem.partition(": ")[0] for problem in caught.value.problems} == {
        *(key.replace("=", " ") for key in KEYS),
        "runtime.address",
    }
    assert len(caught.value.problems) == 5
    there = "give a URI or an absolute path that every node reaches"
    assert f"data.path images: is not among the files sent from this folder; {there}" in caught.value.problems
    assert f"data.cache c: is relative to a temporary folder of the job; {there}" in caught.value.problems


def test_keys_of_a_set_that_is_the_clusters_are_looked_at_too() -> None:
    with pytest.raises(ConfigError, match=r"^data\.path data/cifar10: is not among the files sent"):
        jobs.check_keys({"path": "/shared/r", "overrides": ("data.path=data/cifar10",)}, [], {"a.yaml": 1})


def test_places_that_a_job_finds_are_taken() -> None:
    keys = ["data.path=./images", "data.cache=s3://b/blocks", "experts.cache=/shared/experts"]
    jobs.check_keys({"overrides": keys}, [load_config(None, keys)], {"images/a/1.png": 1})
    jobs.check_keys({"overrides": ("data.path=.",)}, [], {"a/1.png": 1})
    jobs.check_keys({"address": None}, [load_config("digits")], {})


def test_what_comes_with_the_package_is_read_here_and_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("{recipe: digits}")
    given = {"sweeps": ("digits", "a.yaml", "/opt/b.yaml")}
    assert jobs.known_configs(given) == [("sweep", "digits"), ("sweep", "a.yaml")]
    assert jobs.sent_configs(given) == ["a.yaml"]
    assert jobs.sent_configs({"config": "digits"}) == []
    assert jobs.sent_configs({"config": "mine"}) == ["mine"]


def test_only_a_url_is_the_address_of_a_job_server() -> None:
    for good in ("http://127.0.0.1:8265", "https://rays.example.com/cluster", "http://[::1]:8265"):
        jobs.check_address(good)
    for bad in ("10.0.0.5:6379", "10.0.0.5", "auto", "ray://10.0.0.5:10001", "http://", "http://h:port", "http://h:0"):
        with pytest.raises(ConfigError, match="is no URL of a job server"):
            jobs.check_address(bad)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with files of all kinds; the large one takes no room on the disk."""
    folder = tmp_path / "checkout"
    sizes = {"configs/a.yaml": 10, "pyproject.toml": 20, "assets/deep/film.bin": 101 * 2**20, "notes.txt": 2 * 2**20}
    hidden = ("runs/r/x", "data/x", ".git/x", ".venv/x", "code/__pycache__/x", "code/secret.txt", "build/x")
    for name, size in {**sizes, **dict.fromkeys(hidden, 7)}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
    (folder / ".gitignore").write_text("build/\n")
    (folder / "code" / ".rayignore").write_text("secret.txt\n")
    return folder


def test_the_files_counted_are_those_that_ray_packs(checkout: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    files = jobs.files_sent(checkout)
    packed = tmp_path / "package.zip"
    create_package(str(checkout), packed, include_gitignore=True, excludes=list(jobs.EXCLUDES))
    with zipfile.ZipFile(packed) as package:
        sizes = {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}
    assert files == sizes
    assert set(files) == {
        *("configs/a.yaml", "pyproject.toml", "assets/deep/film.bin", "notes.txt"),
        *(".gitignore", "code/.rayignore"),
    }
    assert sum(sizes.values()) <= packed.stat().st_size, "a package is not compressed"


def test_a_package_that_no_cluster_takes_is_refused(checkout: Path) -> None:
    files = jobs.files_sent(checkout)
    with pytest.raises(ResourceError, match=r"103 MiB, of which assets 101 MiB, notes\.txt 2 MiB, .*takes 100 MiB"):
        jobs.check_package(files, [], install=False)
    (checkout / ".rayignore").write_text("*.bin\n")
    jobs.check_package(jobs.files_sent(checkout), ["configs/a.yaml", "./configs/a.yaml"], install=True)


def test_a_package_holds_what_the_job_needs_of_it() -> None:
    for name in ("runs/r/config.yaml", "../a.yaml"):
        with pytest.raises(ConfigError, match=f"{name}: is not among the files sent"):
            jobs.check_package({"a.yaml": 1}, ["a.yaml", name], install=False)
    with pytest.raises(ConfigError, match="--install: this folder has no pyproject"):
        jobs.check_package({"a.yaml": 1}, ["a.yaml"], install=True)


@pytest.mark.parametrize("name", ["", "two words", "../up", "-x", "a/b", "x" * 101])
def test_names_that_are_no_part_of_a_url_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--id"):
        jobs.send(["doctor"], "http://127.0.0.1:1", tmp_path, name=name)


def test_without_the_client_it_is_said_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['aiohttp'] = None; from dasm_ray.cli import main; main()"
    command = [sys.executable, "-c", program, "submit", "doctor"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    expected = "dasm-ray: submit: Ray's job client is not installed here; pip install 'ray[default]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


# --- the command line --------------------------------------------------------------------------------------------


def call(*words: object) -> Any:
    return CliRunner().invoke(main, ["submit", *(str(word) for word in words)])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "Missing argument 'COMMAND [ARGS]...'"),
        (["--nowait", "doctor"], "No such option '--nowait'"),
        (["distill"], "Missing argument 'CONFIG'"),
        (["distill", "a.yaml", "--runn", "/r"], "No such option '--runn'"),
        (["distill", "a.yaml", "--run", "/r", "--no-wait"], "No such option '--no-wait'"),
        (["--", "distill", "a.yaml"], "dasm-ray: --run: is missing"),
        (["destill", "a.yaml"], "dasm-ray: destill: is no command"),
        (["submit", "doctor"], "dasm-ray: submit: is no command"),
        (["distill", "none.yaml", "--run", "/r"], "dasm-ray: none.yaml: there is no such file"),
        (["distill", "typo.yaml", "--run", "/r"], "dasm-ray: synthetic.icp: there is no such key"),
        (["sweep", "bad.yaml", "--run", "/r"], "dasm-ray: bad.yaml: matcher.lr: there is no such key"),
        (["study", "arms.yaml", "--run", "/r"], "dasm-ray: arms.yaml: against: there is no arm 'b'"),
        (["distill", "runs/a.yaml", "--run", "/r"], "dasm-ray: runs/a.yaml: is not among the files sent"),
        (["sweep", "sweep.yaml", "--run", "/r"], "dasm-ray: runs/a.yaml: is not among the files sent"),
        (["study", "study.yaml", "--run", "/r"], "dasm-ray: runs/a.yaml: is not among the files sent"),
        (["distill", "digits", "--run", "/r", "--set", "data.path=data/c"], "dasm-ray: data.path data/c: is not among"),
        (["sweep", "digits", "--run", "/r", "--set", "experts.cache=e"], "dasm-ray: experts.cache e: is relative to"),
        (
            ["study", "study.yaml", "--run", "/r", "--set", "evaluate.cache=e"],
            "dasm-ray: evaluate.cache e: is relative",
        ),
        (["evaluate", "/r", "--set", "runtime.address=h:1"], "dasm-ray: runtime.address: a job joins its own cluster"),
        (["--address", "localhost:8265", "doctor"], "dasm-ray: --address localhost:8265: is no URL"),
        (["--address", "ray://me:pass@h:1", "doctor"], "dasm-ray: --address ray://***@h:1: is no URL"),
        (["--address", "me:pass@h:1", "doctor"], "dasm-ray: --address ***@h:1: is no URL"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.yaml").write_text(TINY)
    (tmp_path / "typo.yaml").write_text(TINY.replace("ipc", "icp"))
    (tmp_path / "arms.yaml").write_text("{name: bad, recipe: runs/a.yaml, arms: {a: {}}, against: b}")
    (tmp_path / "study.yaml").write_text("{name: good, recipe: runs/a.yaml, arms: {a: {}}}")
    (tmp_path / "sweep.yaml").write_text("{name: good, recipe: runs/a.yaml, space: {seed: {grid: [1]}}}")
    (tmp_path / "bad.yaml").write_text("{name: bad, recipe: runs/a.yaml, space: {matcher.lr: {grid: [1]}}}")
    result = call(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr
    assert "Traceback" not in result.stderr


class Wrong(http.server.BaseHTTPRequestHandler):
    """Some web server."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def refused_in_time(url: str, folder: Path) -> str:
    """The one sentence with which a server is refused."""
    begun = time.monotonic()
    done = submit(url, folder, "doctor")
    assert time.monotonic() - begun < 10
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"dasm-ray: {url}: ")
    return done.stderr


def test_a_server_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "no job server answers there" in refused_in_time(f"http://127.0.0.1:{free_ports(1)[0]}", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no job server answers there" in refused_in_time(f"http://127.0.0.1:{port_of(silent)}", tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as wrong:
        threading.Thread(target=wrong.serve_forever).start()
        try:
            assert "something else answers there" in refused_in_time(f"http://127.0.0.1:{wrong.server_port}", tmp_path)
        finally:
            wrong.shutdown()


@pytest.mark.parametrize(("code", "said", "ends"), [(127, "has no dasm-ray command; --install", 1), (3, "code 3", 3)])
def test_an_image_that_lacks_the_command_is_said_to(code: int, said: str, ends: int) -> None:
    told: list[str] = []
    info = SimpleNamespace(status="FAILED", driver_exit_code=code, message="")
    assert jobs._told_end(jobs.Job("job", "http://head:8265", None), info, told.append) == ends
    assert said in told[0]


@pytest.mark.parametrize(
    "word", ["s3://KEY:S3CR3T@bucket/x", "data.path=s3://KEY:S3CR3T@bucket/x", "--run=s3://KEY:S3CR3T@bucket/x"]
)
def test_credentials_in_a_word_of_the_job_are_not_sent(tmp_path: Path, word: str) -> None:
    """Whoever sees the jobs of a cluster would read them."""
    with pytest.raises(ConfigError, match="holds credentials before the '@', which the job would show") as caught:
        jobs.send(["distill", "digits", word], "http://127.0.0.1:9", tmp_path)
    assert "S3CR3T" not in str(caught.value)


def test_the_credentials_of_an_address_are_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports(1)[0]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://me:hunter2@127.0.0.1:{port}")
    monkeypatch.chdir(tmp_path)
    result = call("doctor")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"dasm-ray: http://***@127.0.0.1:{port}: no job server answers there")


def test_the_credentials_of_an_address_are_not_in_the_hint_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    class Client:
        def submit_job(self, **_: object) -> None:
            taken.append("a job")
            if len(taken) > 1:
                raise RuntimeError("http://me:hunter2@head:8265 is full")

    monkeypatch.setattr(jobs, "_connect", lambda _: Client())
    job = jobs.send(["doctor"], "http://me:hunter2@head:8265", tmp_path, name="looked")
    assert job.hint.startswith("`ray job logs --address http://***@head:8265 --follow looked`")
    with pytest.raises(SessionError) as caught:
        jobs.send(["doctor"], "http://me:hunter2@head:8265", tmp_path)
    told = "http://***@head:8265: the job server did not take the job (http://***@head:8265 is full)"
    assert str(caught.value) == told


# --- a head ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A Ray head of these tests."""

    url: str
    gcs_port: int
    folder: Path
    pid: int

    def client(self) -> Any:
        return jobs._connect(self.url)


def environment(**more: str) -> dict[str, str]:
    """Of the tests' own Python and code, knowing nothing of another Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {"PATH": f"{BIN}:{kept.get('PATH', '')}", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    return {**kept, **ours, "RAY_AUTH_MODE": "disabled", **more}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [port_of(stack.enter_context(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@contextlib.contextmanager
def started(cpus: int, **variables: str) -> Iterator[Head]:
    """Starts a head, and at the end leaves nothing of it. Its dashboard listens where it does by default."""
    folder = Path(tempfile.mkdtemp(prefix="dasm", dir="/tmp"))  # paths of sockets must be short
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = free_ports(len(names) + 1)
    options = [f"--{name}={port}" for name, port in zip((*names, "ray-client-server-port"), ports, strict=True)]
    options += [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    options += ["--include-dashboard=true", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    variables = environment(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0", **variables)
    said = folder / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *options],
            env=variables,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        head = Head(f"http://127.0.0.1:{ports[1]}", ports[0], folder, process.pid)
        wait_for_answer(head, process, said)
        yield head
    finally:
        stop(process)
        left = belonging_to(folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def wait_for_answer(head: Head, process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{head.url}/api/version", timeout=5)
            return
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):  # it asks for a token
                return
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a head with all its descendants, and no other Ray of this machine."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def belonging_to(folder: Path) -> list[str]:
    """The processes that were started for, or work in, the folder of a head."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if process.cwd().startswith(str(folder)) or any(str(folder) in word for word in line):
                found.append(" ".join(line))
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started(cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is sent: recipes, and the code with a word at its exit."""
    made = tmp_path_factory.mktemp("sent")
    shutil.copytree(ROOT / "dasm_ray", made / "dasm_ray", ignore=shutil.ignore_patterns("__pycache__"))
    with (made / "dasm_ray" / "__init__.py").open("a") as code:
        code.write(AT_EXIT)
    (made / "tiny.yaml").write_text(TINY)
    (made / "long.yaml").write_text(TINY.replace("epochs: 1, batch: 64", "epochs: 100000, batch: 64"))
    return made


def submit(url: str, folder: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "dasm-ray"), "submit", "--address", url, *(str(word) for word in words)]
    return subprocess.run(
        command, env=environment(**variables), cwd=folder, capture_output=True, text=True, timeout=LIMIT
    )


@contextlib.contextmanager
def followed(head: Head, folder: Path, name: str, run: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that follows a job which would take for ever, from the first line of its log on."""
    command = [str(BIN / "dasm-ray"), "submit", "--address", head.url, "--id", name]
    command += ["experts", "long.yaml", "--run", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), cwd=folder, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert select.select([process.stdout], [], [], LIMIT)[0], "no log came"
            yield process
        finally:
            process.kill()


def digest_in(text: str) -> str:
    found = re.findall(r"^digest (\w+)$", text, re.MULTILINE)
    assert len(found) == 1, text
    return str(found[0])


def same_by_three_ways(
    head: Head, folder: Path, tmp_path: Path, config: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Distils here, by our command and by Ray's own, and expects one digest; returns what ours said."""
    words = ["distill", config, *options]
    elsewhere = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}  # --address counts
    rays = [str(BIN / "ray"), "job", "submit", "--address", head.url, "--working-dir", str(folder), "--"]
    rays += ["dasm-ray", *words, "--run", str(tmp_path / "rays"), "--workers", "1"]
    with subprocess.Popen(
        rays, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as other:
        try:
            ours = submit(head.url, folder, *words, "--run", tmp_path / "ours", "--workers", 1, **elsewhere)
            assert ours.returncode == 0, ours.stderr
            said, _ = other.communicate(timeout=LIMIT)
            assert other.returncode == 0, said
        finally:
            other.kill()
    here = pipeline.distill(load_config(folder / config, list(options[1::2])), str(tmp_path / "here"))
    assert digest_in(ours.stdout) == digest_in(said) == here.digest
    return ours


@pytest.mark.long
def test_a_job_gives_the_bytes_of_a_run_here(ray_session: object, head: Head, folder: Path, tmp_path: Path) -> None:
    """The driver runs the code that was sent, and leaves CUDA alone."""
    ours = same_by_three_ways(head, folder, tmp_path, "tiny.yaml")
    assert "code that was sent; CUDA untouched\n" in ours.stdout
    (hint,) = ours.stderr.splitlines()
    assert hint.startswith("job distill-")


@pytest.mark.long
def test_the_exit_code_is_that_of_the_command(head: Head, folder: Path, tmp_path: Path) -> None:
    """An absolute path is the cluster's, so what is wrong there is found there."""
    (tmp_path / "typo.yaml").write_text(TINY.replace("ipc", "icp"))
    done = submit(head.url, folder, "--id", "typo", "distill", tmp_path / "typo.yaml", "--run", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "dasm-ray: synthetic.icp: there is no such key; did you mean 'ipc'?\n" in done.stdout
    assert done.stderr.splitlines()[1:] == ["typo: failed with exit code 2"]


@pytest.mark.long
def test_without_waiting_the_name_is_printed_and_serves_once(head: Head, folder: Path, tmp_path: Path) -> None:
    words = ("--id", "once", "--no-wait", "evaluate", tmp_path / "none")
    first, second = submit(head.url, folder, *words), submit(head.url, folder, *words)
    assert (first.returncode, first.stdout) == (0, "once\n"), first.stderr
    assert f"`ray job stop --address {head.url} once` ends it" in first.stderr
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == "dasm-ray: --id once: the cluster has had a job of this name; give another one\n"


@pytest.mark.long
def test_interrupted_the_job_goes_on_and_stopped_it_has_failed(head: Head, folder: Path, tmp_path: Path) -> None:
    client = head.client()
    with followed(head, folder, "watched", tmp_path / "watched") as process:
        assert client.get_job_status("watched") in ("PENDING", "RUNNING"), "the log comes while the job runs"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert f"dasm-ray: job watched goes on: `ray job logs --address {head.url} --follow watched`" in told
    assert client.get_job_status("watched") in ("PENDING", "RUNNING")
    assert client.stop_job("watched")
    with followed(head, folder, "stopped", tmp_path / "stopped") as process:
        assert client.stop_job("stopped")
        _, told = process.communicate(timeout=LIMIT)
        assert (process.returncode, told.splitlines()[1:]) == (1, ["stopped: was stopped"])


class Relay:
    """A way to the head that can break, as a tunnel can."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{port_of(self._server)}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def drop(self) -> None:
        """Ends the connections of now."""
        while self._open:
            self._close(self._open.pop())

    def cut(self) -> None:
        """Ends them, and takes no more."""
        self._close(self._server)
        self.drop()

    @staticmethod
    def _close(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@pytest.mark.long
def test_a_way_that_breaks_is_opened_again_and_one_that_is_gone_is_noticed(
    head: Head, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(jobs, "SLOW_START_SECONDS", 0.0)
    relay = Relay(int(head.url.rpartition(":")[2]))
    shown: list[str] = []
    notes: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        relay.drop() if len(shown) == 1 else relay.cut()

    job = jobs.send(["experts", "long.yaml", "--run", str(tmp_path / "away")], relay.url, folder, name="away")
    try:
        with pytest.raises(SessionError) as caught:
            jobs.follow(job, show, notes.append)
        log = head.client().get_job_logs("away")
    finally:
        head.client().stop_job("away")
    assert len(shown) > 1
    assert log.startswith("".join(shown)), "nothing of it is lost or shown twice"
    assert str(caught.value).startswith(f"{relay.url}: the job server is gone (")
    assert "if the cluster lives, job away goes on: `ray job logs" in str(caught.value)
    (note,) = notes
    assert note.startswith("away: has not begun (Job has not started yet.")


@pytest.mark.long
def test_the_job_server_listens_on_this_machine_only(head: Head) -> None:
    port = int(head.url.rpartition(":")[2])
    listening = [link.laddr for link in psutil.net_connections("tcp") if link.status == "LISTEN"]
    assert {place.ip for place in listening if place.port == port} == {"127.0.0.1"}


@pytest.mark.long
def test_the_port_of_the_head_is_not_that_of_its_job_server(head: Head, tmp_path: Path) -> None:
    assert "job server" in refused_in_time(f"http://127.0.0.1:{head.gcs_port}", tmp_path)


@pytest.mark.long
def test_a_token_is_found_and_its_lack_is_explained_and_it_is_never_shown(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 4
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    words = ("--no-wait", "evaluate", "/none")
    with started(cpus=1, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as head:
        none = submit(head.url, tmp_path, *words, HOME=str(home), RAY_AUTH_MODE="")
        off = submit(head.url, tmp_path, *words, HOME=str(home), RAY_AUTH_TOKEN=token)
        wrong = submit(head.url, tmp_path, *words, HOME=str(home), RAY_AUTH_TOKEN="f" * 64, RAY_AUTH_MODE="")
        (home / ".ray" / "auth_token").write_text(token)
        found = submit(head.url, tmp_path, *words, HOME=str(home), RAY_AUTH_MODE="")
    asks = f"dasm-ray: {head.url}: the cluster asks for its token and was given"
    put = "put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    assert (none.returncode, none.stderr) == (1, f"{asks} none; {put}\n")
    assert (off.returncode, off.stderr) == (1, f"{asks} none; {put}, and unset RAY_AUTH_MODE=disabled\n")
    assert (wrong.returncode, wrong.stderr) == (1, f"{asks} another one; {put}\n")
    assert (found.returncode, found.stdout.count("\n")) == (0, 1), found.stderr
    assert all(token not in done.stdout + done.stderr for done in (none, off, wrong, found))


# --- real images -------------------------------------------------------------------------------------------------

CIFAR = """
name: cifar
seed: 7
data: {name: cifar10}
model: {width: 8}
synthetic: {ipc: 1, segments: 1}
experts: {count: 1, epochs: 1, cutmix: 0.0}
matcher: {rounds: 2, networks: 2, snapshots: [[0, 1]]}
score: {early: 1}
probe: {epochs: 2, members: 1}
evaluate: {epochs: 2, batch: 10, seeds: 1, checkpoints: 1, rows: [distilled, random]}
runtime: {compile: false, page: false}
"""


@pytest.mark.slow(240)
@pytest.mark.timeout(900)
def test_a_job_on_cifar10_gives_the_bytes_of_a_run_here(
    ray_session: object, head: Head, folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    images = data_folder / "cifar10"
    if not images.is_dir():
        pytest.skip(f"needs CIFAR-10 as Parquet in {images}")
    (folder / "cifar.yaml").write_text(CIFAR)
    same_by_three_ways(head, folder, tmp_path, "cifar.yaml", "--set", f"data.path={images.resolve()}")
