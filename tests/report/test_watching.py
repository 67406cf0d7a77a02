"""The page of a run while it goes on: served on loopback alone, drawn anew, ended when the run is done."""

from __future__ import annotations

import http.client
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dasm_ray.cli import main
from dasm_ray.errors import ConfigError, RunDirError
from dasm_ray.report import watching
from dasm_ray.report.watching import watch

LIMIT = 60
"""Seconds after which a test gives up."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(watching, "REDRAW_SECONDS", 0)


@pytest.fixture
def unfinished(paged_folder: Path, tmp_path: Path) -> Path:
    """A run that has its set and no table yet."""
    folder = shutil.copytree(paged_folder, tmp_path / "run")
    (folder / "report" / "table.json").rename(tmp_path / "table.json")
    return folder


class Watched:
    """A watch in a thread: its address, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.thread = threading.Thread(target=self._watch, args=(folder,), daemon=True)
        self.thread.start()
        wait_until(lambda: bool(self.said))
        self.port = int(self.said[0].partition("http://127.0.0.1:")[2].partition("/")[0])

    def _watch(self, folder: Path) -> None:
        watch(str(folder), port=0, until_done=True, say=self.said.append)

    def get(self, path: str = "/", *, host: str = "127.0.0.1", method: str = "GET") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.request(method, path, headers={"Host": f"{host}:{self.port}"})
        self.answer = connection.getresponse()
        self.text = self.answer.read().decode()
        connection.close()
        return self.answer


def wait_until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def watched(unfinished: Path, tmp_path: Path) -> Iterator[Watched]:
    found = Watched(unfinished)
    yield found
    if found.thread.is_alive():
        shutil.copy(tmp_path / "table.json", unfinished / "report" / "table.json")
        found.thread.join(LIMIT)


def test_the_page_is_drawn_anew_until_the_run_is_done(
    watched: Watched, unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One watch from beginning to end, since each drawing takes a second or more."""
    answer = watched.get()
    assert (answer.status, answer.headers["Refresh"], answer.headers["Cache-Control"]) == (200, "0", "no-store")
    assert "Not finished: page" in watched.text
    only_this_machine_and_only_the_page(watched)

    with monkeypatch.context() as patch:  # a moment at which the files cannot be read: the last page stays
        patch.setattr(watching, "webpage", refusing)
        log(unfinished, '{"time": 1.0, "kind": "stage", "stage": "a new stage", "detail": "", "total": 7, "done": 3}')
        wait_until(lambda: len(watched.said) > 1)
        assert watched.said[1] == "the page cannot be drawn now, and the last one stays: half of it is there"
        assert watched.get().status == 200
        assert "Not finished: page" in watched.text

    def is_told() -> bool:
        watched.get()
        return "Not finished: a new stage, 3 of 7 done" in watched.text

    wait_until(is_told)
    shutil.copy(tmp_path / "table.json", unfinished / "report" / "table.json")
    watched.thread.join(LIMIT)
    assert not watched.thread.is_alive(), "it ends once the run has its table"
    with pytest.raises(ConnectionRefusedError):
        watched.get()


def refusing(*_: object, **__: object) -> str:
    raise RunDirError("half of it is there")


def log(run: Path, line: str) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write(f"{line}\n")


def only_this_machine_and_only_the_page(watched: Watched) -> None:
    assert watched.get("/index.html?again", host="localhost").status == 200
    assert watched.get(method="HEAD").status == 200
    assert watched.text == ""
    assert watched.get(host="attacker.example").status == 403
    assert "Not finished" not in watched.text
    for path in ("/config.yaml", "/../run/config.yaml", "//etc/passwd"):
        assert watched.get(path).status == 404
    assert watched.get(method="POST").status == 501


def test_what_cannot_be_watched(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        watch(str(tmp_path / "none"), port=0)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = CliRunner().invoke(main, ["watch", str(run_folder), "--port", str(port)])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == (
            f"dasm-ray: --port {port}: something else listens there; give another one, or 0 for any that is free\n"
        )
    with pytest.raises(ConfigError, match=r"--port 70000: is no port"):
        watch(str(run_folder), port=70000)


def test_several_runs_have_no_end(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    (folder / "sets").mkdir(parents=True)
    (folder / "comparison.json").write_text("{}")
    shutil.copytree(run_folder, folder / "sets" / "one")
    with pytest.raises(ConfigError, match=r"--until-done: .* holds several runs"):
        watch(str(folder), port=0, until_done=True)
