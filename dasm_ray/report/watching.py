"""The page of a run served on this machine alone, and drawn anew as the run goes on.

What must stay true: it listens on loopback and answers to no other name, so neither another machine nor a page of
another site reads it; it only reads the run; and a page that cannot be drawn leaves the last one.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dasm_ray.errors import ConfigError, DasmError
from dasm_ray.plain import Plain
from dasm_ray.report.gathered import runs_in
from dasm_ray.report.webpage import webpage
from dasm_ray.store.events import EVENTS, PARTS
from dasm_ray.store.place import Place

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
"""What a browser may call this machine; whoever comes by another name was sent by a page of another site."""

PATHS = ("/", "/index.html")

REDRAW_SECONDS = 5
"""How often a browser asks again, and the least time between two drawings."""

LOOK_SECONDS = 1.0
"""How often the files of the run are looked at."""

TABLE = "report/table.json"
"""What a run has once it is done."""

Say = Callable[[str], None]


@dataclass
class _Page:
    """The page as it was last drawn. ``is_last``: browsers need not ask again."""

    text: bytes = b""
    is_last: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, text: str, *, is_last: bool) -> None:
        with self.lock:
            self.text, self.is_last = text.encode(), is_last

    def get(self) -> tuple[bytes, bool]:
        with self.lock:
            return self.text, self.is_last


def watch(path: str, *, port: int = 8000, until_done: bool = False, say: Say = lambda text: None) -> None:
    """Serves the page of a run, comparison or sweep on loopback until it is interrupted.

    ``port`` 0 takes any that is free; ``say`` hears the address. ``until_done``: returns once the run has its table.
    Raises ConfigError for a port in use, RunDirError where no run is.
    """
    place = Place(path)
    if until_done and runs_in(place) != [place]:
        raise ConfigError(f"--until-done: {place} holds several runs, whose number may grow; watch one of them")
    page = _Page()
    with _listening(page, port) as server:  # first, since a port in use is known at once
        seen = _stamp(place)
        page.put(_drawn(place), is_last=_is_done(place))
        with _answering(server):
            address = f"http://{LOOPBACK}:{server.server_address[1]}/"
            say(f"watching {place} at {address}; Ctrl-C ends it, and not the run")
            _follow(place, page, seen, until_done, say)


def _follow(place: Place, page: _Page, seen: Plain, until_done: bool, say: Say) -> None:
    """Draws the page anew whenever the files have changed."""
    drawn_at, said = time.monotonic(), ""
    while not (until_done and page.is_last):
        time.sleep(LOOK_SECONDS)
        try:
            now = _stamp(place)
            is_done = _is_done(place)
            if now == seen or (time.monotonic() - drawn_at < REDRAW_SECONDS and not is_done):
                continue
            page.put(_drawn(place), is_last=is_done)
            seen = now
        except DasmError as error:
            if str(error) != said:
                said = str(error)
                say(f"the page cannot be drawn now, and the last one stays: {said}")
        drawn_at = time.monotonic()
    time.sleep(REDRAW_SECONDS)  # a browser that asks again gets the last page, not a closed port


def _drawn(place: Place) -> str:
    """The page without the nearest real images, which take as long as decoding them all."""
    return webpage([place], looks_at_data=False)


def _is_done(place: Place) -> bool:
    return (place / TABLE).exists()


def _stamp(place: Place) -> Plain:
    """Changes whenever a run has logged something, another run is there, or the table is."""
    runs = runs_in(place)
    return [str(run) for run in runs], [_of_log(run) for run in runs], _is_done(place)


def _of_log(run: Place) -> Plain:
    if run.local is None:
        return (run / PARTS).names()
    try:
        found = (run.local / EVENTS).stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


# --- the server --------------------------------------------------------------------------------------------------


@contextmanager
def _listening(page: _Page, port: int) -> Iterator[ThreadingHTTPServer]:
    """A server of the page that has its port."""
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(page))
    except OverflowError:
        raise ConfigError(f"--port {port}: is no port; give 0 to 65535") from None
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        why = "something else listens there" if busy else str(error.strerror)
        raise ConfigError(f"--port {port}: {why}; give another one, or 0 for any that is free") from None
    server.daemon_threads = True
    with server:
        yield server


@contextmanager
def _answering(server: ThreadingHTTPServer) -> Iterator[None]:
    """Answers in a thread of its own meanwhile."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _handler(page: _Page) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers with the page, and asks the browser to come again while the run goes on."""

        timeout = 30

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            name = self.headers.get("Host", "").rpartition(":")[0]
            if name not in NAMES or self.path.partition("?")[0] not in PATHS:
                self.send_error(403 if name not in NAMES else 404)
                return
            text, is_last = page.get()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Cache-Control", "no-store")
            if not is_last:
                self.send_header("Refresh", str(REDRAW_SECONDS))
            self.end_headers()
            if with_body:
                self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: stderr is for what the user should know."""

    return Handler
