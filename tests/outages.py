"""An S3 on this machine, behind a proxy that fails on purpose.

What must stay true: nothing leaves this machine, and what fails is what the test has asked for.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to the S3, or answers 503, or hangs up, for as long as ``failing`` says."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.mode = "sound"
        self.until = 0.0
        self.only: tuple[str, ...] = ()
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        """Bytes of what was answered."""

    @contextlib.contextmanager
    def failing(self, mode: str, seconds: float = 3600.0, only: tuple[str, ...] = ()) -> Iterator[None]:
        """For so long: ``busy`` answers 503, ``cut`` hangs up, ``denied`` 403. ``only``: to requests of these verbs."""
        self.mode, self.until, self.only = mode, time.monotonic() + seconds, only
        try:
            yield
        finally:
            self.mode = "sound"

    def fault(self, verb: str) -> str | None:
        is_over = self.mode == "sound" or time.monotonic() > self.until
        return None if is_over or (self.only and verb not in self.only) else self.mode


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _answer(self) -> None:
        body = self._body()
        self.server.requests.append((self.command, self.path))
        fault = self.server.fault(self.command)
        if fault is None:
            self._hand_on(body)
        elif fault == "cut":
            self.close_connection = True
        else:
            self.send_response(503 if fault == "busy" else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _hand_on(self, body: bytes) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        there.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = there.getresponse()
        data = answer.read()
        self.server.sent += len(data)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        there.close()

    def log_message(self, *_: object) -> None:
        pass


def age(name: str, seconds: float) -> int:
    """As if so many seconds had gone by since objects whose keys contain this were written; how many there are."""
    ((_, partitions),) = s3_backends.items()
    buckets = [backend.buckets[BUCKET] for backend in partitions.values() if BUCKET in backend.buckets]
    found = [key for bucket in buckets for key in bucket.keys.values() if name in key.name]
    for key in found:
        key.last_modified -= timedelta(seconds=seconds)
    return len(found)


@contextlib.contextmanager
def s3() -> Iterator[Proxy]:
    """The S3 with an empty bucket, and its proxy."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    there = http.client.HTTPConnection("127.0.0.1", port)  # which knows no proxy, whatever other tests have set
    there.request("PUT", f"/{BUCKET}")
    there.getresponse().read()
    there.close()
    proxy = Proxy(port)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()
