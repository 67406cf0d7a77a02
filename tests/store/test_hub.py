"""Publishing a set, against a stand-in of the hub's HTTP API on this machine: what arrives is the set that was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasm_ray.errors import ArtifactError, ConfigError
from dasm_ray.store.artifact import Artifact, read_artifact, write_artifact, write_card
from dasm_ray.store.hub import push
from dasm_ray.store.place import Place

TOKEN = "hf_standinstandinstandinstandin"


class Hub:
    """What the stand-in holds: files by path, and who asked for what. Parquet goes by LFS, all else in the commit."""

    def __init__(self) -> None:
        self.repository = ""
        self.private: bool | None = None
        self.files: dict[str, bytes] = {"data/train-00007-of-00009.parquet": b"old", "notes.txt": b"theirs"}
        self.objects: dict[str, bytes] = {}
        self.commits = 0
        self.tokens: set[str] = set()
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if "/tree/" in self.path:
            return self.answer(
                [{"type": "file", "path": p, "size": len(d), "oid": "0"} for p, d in self.hub.files.items()]
            )
        siblings = [{"rfilename": name} for name in self.hub.files]
        return self.answer({"id": self.hub.repository, "sha": "0" * 40, "siblings": siblings, "private": False})

    def do_PUT(self) -> None:
        data = self.body()
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def do_POST(self) -> None:
        hub, body, where = self.hub, self.body(), self.path.partition("?")[0]
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.status != 200:
            return self.answer({"error": "no"}, hub.status)
        host = f"http://{self.headers['Host']}"
        if where == "/api/repos/create":
            asked = json.loads(body)
            hub.repository, hub.private = (
                f"{asked.get('organization')}/{asked['name']}",
                (asked.get("private") or asked.get("visibility") == "private"),
            )
            return self.answer({"url": f"{host}/datasets/{hub.repository}"})
        if where == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in where:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("parquet") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if where.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{host}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        assert "/commit/" in where, where
        for line in map(json.loads, body.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                hub.files[value["path"]] = hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del hub.files[value["path"]]
        hub.commits += 1
        return self.answer(
            {"success": True, "commitUrl": f"{host}/datasets/{hub.repository}/commit/abc", "commitOid": "abc"}
        )


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    """A stand-in, and its address."""
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": held}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def a_set() -> Artifact:
    return Artifact(
        pixels=np.random.default_rng(0).random((6, 1, 4, 4), np.float32),
        labels=np.arange(6) % 2,
        segments=np.zeros(6, np.int32),
        soft_labels=None,
        class_names=("ant", "bee"),
        mean=(0.5,),
        std=(0.25,),
        factor=1,
        step_size=None,
        recipe={"model": {}, "training": {}},
        provenance={},
    )


def called(folder: Path, address: str, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-m", "dasm_ray", "push", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **own},
        check=False,
    )


def test_what_is_published_is_the_set_under_its_licence_and_an_older_one_is_gone(
    hub: tuple[Hub, str], tmp_path: Path
) -> None:
    held, address = hub
    write_artifact(Place(tmp_path / "set"), a_set())
    write_card(Place(tmp_path / "set"), a_set(), [("distilled", "89.7 ± 1.3")], b"picture")
    (tmp_path / "set" / "private.txt").write_text("mine")
    (tmp_path / "set" / "data" / "private.parquet").write_text("mine")
    done = called(tmp_path / "set", address, tmp_path / "home", "me/ants", "--license", "cc-by-4.0", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{address}/datasets/me/ants/commit/abc"
    assert (held.repository, held.private, held.commits) == ("me/ants", True, 1)
    assert set(held.files) == {
        *("README.md", "picture.png", "dataset.json", "data/train-00000-of-00001.parquet", "notes.txt")
    }
    for name, data in held.files.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(data)
    np.testing.assert_array_equal(read_artifact(Place(tmp_path / "there")).pixels, a_set().pixels)
    card = held.files["README.md"].decode()
    assert "license: cc-by-4.0" in card
    assert "| licence | cc-by-4.0 |" in card
    assert "license: unknown" in (tmp_path / "set" / "README.md").read_text(), "the set here is left as it is"
    assert f"Bearer {TOKEN}" in held.tokens
    said = done.stdout + done.stderr
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert TOKEN not in said
    assert not any(TOKEN.encode() in data for data in kept)


def test_a_whitened_set_is_published_with_its_whitening(hub: tuple[Hub, str], tmp_path: Path) -> None:
    held, address = hub
    mean, matrix = np.zeros(16, np.float32), np.eye(16, dtype=np.float32)
    artifact = replace(a_set(), is_normalised=True, whitening_mean=mean, whitening_matrix=matrix)
    write_artifact(Place(tmp_path / "set"), artifact)
    done = called(tmp_path / "set", address, tmp_path / "home", "me/ants", "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    assert held.files["whitening.safetensors"] == (tmp_path / "set" / "whitening.safetensors").read_bytes()


def test_a_set_whose_card_is_gone_is_published_under_a_new_one(hub: tuple[Hub, str], tmp_path: Path) -> None:
    held, address = hub
    write_artifact(Place(tmp_path / "set"), a_set())
    (tmp_path / "set" / "README.md").unlink()
    done = called(tmp_path / "set", address, tmp_path / "home", "me/ants", "--license", "mit")
    assert done.returncode == 0, done.stderr
    card = held.files["README.md"].decode()
    assert "license: mit" in card
    assert "`ant`, `bee`" in card
    assert not (tmp_path / "set" / "README.md").exists(), "the set here is left as it is"


def test_a_refusal_says_what_to_do_and_shows_no_token(hub: tuple[Hub, str], tmp_path: Path) -> None:
    held, address = hub
    write_artifact(Place(tmp_path / "set"), a_set())
    held.status = 403
    done = called(tmp_path / "set", address, tmp_path / "home", "me/ants")
    assert done.returncode == 1
    assert "with status 403; log in by" in done.stderr
    assert TOKEN not in done.stderr
    assert "Traceback" not in done.stderr
    assert held.commits == 0


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path) -> None:
    write_artifact(Place(tmp_path / "set"), a_set())
    done = called(tmp_path / "set", "http://127.0.0.1:9", tmp_path / "home", "me/ants")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_published_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write OWNER/NAME"):
        push(str(tmp_path), "ants")
    write_artifact(Place(tmp_path / "set"), a_set())
    (tmp_path / "set" / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"README.md is not UTF-8, so that no licence can be written"):
        push(str(tmp_path / "set"), "me/ants", licence="mit")
    with pytest.raises(ConfigError, match="--license a b"):
        push(str(tmp_path), "me/ants", licence="a b")
    with pytest.raises(ArtifactError, match=r"holds no dataset\.json"):
        push(str(tmp_path), "me/ants")
    write_artifact(Place(tmp_path), a_set())
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        push(str(tmp_path), "me/ants")
