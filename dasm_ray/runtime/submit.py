"""A command of ours as a job of a Ray cluster: checked and packed here, run there, followed to its end.

What must stay true: what cannot work there is refused before anything is sent; every wait has an end and says why it
ended; a token is read by Ray alone, and it and the credentials of an address are shown nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from dasm_ray.config import plain_yaml
from dasm_ray.config.keys import PLACES, RunConfig
from dasm_ray.config.parsing import apply_overrides, said_of
from dasm_ray.config.recipes import Kind, is_shipped, located
from dasm_ray.config.shown import INSTEAD, escaped, masked, secret_in
from dasm_ray.errors import ConfigError, ResourceError, SessionError
from dasm_ray.plain import Tree, Values
from dasm_ray.runtime.address import without_credentials

COMMANDS = (
    *("distill", "reproduce", "experts", "estimate", "score", "select", "compare", "sweep", "study"),
    *("relabel", "evaluate", "incremental", "rank", "audit", "doctor"),
)
"""Those that compute on a cluster; the others only read and write files."""

CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
EXCLUDES = ["/runs", "/data", "/.git", "/.venv", "/venv", *CACHES]
"""What of a folder is not sent, beside what its .gitignore and .rayignore name."""

REACHED = "give a URI or an absolute path that every node reaches"

IMAGES = "data.path"
"""The one of PLACES that is only read, so that it may be sent along."""

MOST_BYTES = 100 * 2**20
"""Ray's job server takes no larger package; files are packed as they are, without compression."""

ANSWER_SECONDS = 5.0
"""Longest wait for the answer to a question."""

WORK_SECONDS = 60.0
"""Longest wait for the answer to a request that makes the server work: to take a job, to hand out a whole log."""

UPLOAD_SECONDS = 600.0
"""Longest time for sending the package."""

PATIENCE_SECONDS = 30.0
"""A server that was silent for so long while a job was followed is gone."""

POLL_SECONDS = 0.5
SLOW_START_SECONDS = 20.0
"""After so long it is said why a job has not begun."""

Given = Mapping[str, Any]
Say = Callable[[str], None]


# --- what can be known before anything is sent -------------------------------------------------------------------


def check(command: str, given: Given) -> None:
    """Refuses what makes no sense in a job. ``given``: the options of the command by their names.

    Raises ConfigError with a sentence for each fault.
    """
    if command not in COMMANDS:
        raise ConfigError(f"{command}: is no command for a job; {', '.join(COMMANDS)} are")
    faults = []
    if given.get("address") is not None:
        faults.append(f"--address: a job joins its own cluster; the job server's address stands before {command}")
    if "run" in given and given["run"] is None:
        faults.append(f"--run: is missing, and the default lies in a temporary folder of the job; {REACHED}")
    for name, label in (("run", "--run "), ("target", "--to "), ("path", "")):
        place = given.get(name)
        if place is not None and not is_shared(place):
            faults.append(f"{label}{place}: is relative to a temporary folder of the job; {REACHED}")
    if faults:
        raise ConfigError(*faults)


def check_keys(given: Given, configs: Sequence[RunConfig], files: Mapping[str, int]) -> None:
    """Refuses keys that mean something else in a job: of the ``configs`` that were read here, and of every ``--set``.

    ``files``: what is sent; images may lie among them. Raises ConfigError with a sentence for each fault.
    """
    changes: Tree = {}
    apply_overrides(changes, given.get("overrides", ()))
    trees: list[Values] = [changes, *(config.model_dump(mode="json") for config in configs)]
    faults = [fault for tree in trees for fault in _misplaced(tree, files)]
    if faults:
        raise ConfigError(*dict.fromkeys(faults))


def _misplaced(tree: Values, files: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each key of one configuration."""
    if said_of(tree, "runtime.address") is not None:
        yield "runtime.address: a job joins its own cluster; leave it out"
    for key in PLACES:
        place = said_of(tree, key)
        if not isinstance(place, str) or is_shared(place):
            continue
        if key != IMAGES:
            yield f"{key} {escaped(place)}: is relative to a temporary folder of the job; {REACHED}"
        elif not any(PurePosixPath(name).is_relative_to(os.path.normpath(place)) for name in files):
            yield f"{key} {escaped(place)}: is not among the files sent from this folder; {REACHED}"


def is_shared(place: str) -> bool:
    """Whether the place means the same in a job: a URI or an absolute path."""
    return "://" in place or place.startswith("/")


LISTED: dict[str, Kind] = {"configs": "recipe", "sweeps": "sweep", "studies": "study"}
"""Arguments of several files, and of which kind these are."""


def known_configs(given: Given) -> list[tuple[Kind, str]]:
    """The recipes, sweeps or studies that can be read here; an absolute path is one of the cluster's own."""
    one: list[tuple[Kind, str]] = [("recipe", given["config"])] if "config" in given else []
    several = [(kind, name) for argument, kind in LISTED.items() for name in given.get(argument, ())]
    return [(kind, name) for kind, name in [*one, *several] if not is_shared(name)]


def sent_configs(given: Given) -> list[str]:
    """Those that go along with the folder, and the recipes that they name; what comes with the package is there."""
    sent = [(kind, name) for kind, name in known_configs(given) if not is_shipped(name, kind)]
    named = [_recipe_in(name) for kind, name in sent if kind != "recipe"]
    return [*(name for _, name in sent), *(recipe for recipe in named if not is_shared(recipe))]


def _recipe_in(name: str) -> str:
    """The recipe that a sweep or a study names, as a path from here; an absolute one where it comes with the package.

    Raises ConfigError where the file, or the recipe, cannot be read.
    """
    recipe = str(plain_yaml.read_file(name).get("recipe"))
    return os.path.normpath(located(recipe, "recipe", Path(name).parent))


def check_address(address: str) -> None:
    """Refuses what is not the URL of a job server."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ConfigError(
            f"--address {without_credentials(address)}: is no URL of a job server; write it as http://127.0.0.1:8265"
        )


def files_sent(folder: Path) -> dict[str, int]:
    """The files that Ray sends of a folder, with their sizes in bytes."""
    _get_ready()
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    try:
        _dir_travel(folder, [_get_excludes(folder, EXCLUDES)], note, include_gitignore=True)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}); name it in .rayignore") from None
    return found


def check_package(files: Mapping[str, int], configs: Sequence[str], *, install: bool) -> None:
    """Refuses a package that is too large, or that lacks what the job needs of it."""
    total = sum(files.values())
    if total > MOST_BYTES:
        raise ResourceError(
            f"this folder: the files to send are {_mib(total)}, of which {largest(files)}, and a cluster takes "
            f"{_mib(MOST_BYTES)}; name what the job does not need in .rayignore"
        )
    lacking = [name for name in configs if os.path.normpath(name) not in files]
    if lacking:
        hint = "give one below it that is not ignored, or an absolute path of the cluster"
        raise ConfigError(*(f"{name}: is not among the files sent from this folder; {hint}" for name in lacking))
    if install and "pyproject.toml" not in files:
        raise ConfigError("--install: this folder has no pyproject.toml; go to the root of the checkout")


def largest(files: Mapping[str, int]) -> str:
    """The three largest of the folder's files and folders, in words."""
    sizes: Counter[str] = Counter()
    for name, size in files.items():
        sizes[name.split("/")[0]] += size
    return ", ".join(f"{name} {_mib(size)}" for name, size in sizes.most_common(3))


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


# --- the server --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job that the cluster has taken. ``address``: of the job server, as it may be shown."""

    name: str
    address: str
    client: Any

    @property
    def hint(self) -> str:
        """How to look at it and how to end it."""
        at = f"--address {self.address}"
        return f"`ray job logs {at} --follow {self.name}` shows it, `ray job stop {at} {self.name}` ends it"


def send(words: Sequence[str], address: str, folder: Path, *, name: str | None = None, install: bool = False) -> Job:
    """Submits ``dasm-ray WORDS...`` to the job server, together with the folder.

    ``install``: the folder's package is installed for the job. Raises SessionError where no job server answers or it
    does not take the job, ConfigError for a name that is taken.
    """
    for word in words:  # which everybody reads who sees the jobs of the cluster
        secret = secret_in(word)
        if secret is not None:
            raise ConfigError(f"{masked(word)}: holds {secret}, which the job would show; {INSTEAD}")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
        raise ConfigError(f"--id {name}: must be letters, digits, and ._- after the first")
    name = name or f"{words[0]}-{secrets.token_hex(4)}"
    client, shown = _connect(address), without_credentials(address)
    environment: dict[str, Any] = {"working_dir": str(folder), "excludes": EXCLUDES}
    if install:
        environment["pip"] = ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/"]  # Ray puts the folder there, on the node
    try:
        client.submit_job(entrypoint=shlex.join(["dasm-ray", *words]), submission_id=name, runtime_env=environment)
    except Exception as error:  # of many types: of packing, of the connection, of an answer that is no 200
        if f"{name} already exists" in str(error):
            raise ConfigError(f"--id {name}: the cluster has had a job of this name; give another one") from None
        raise SessionError(f"{shown}: the job server did not take the job ({_reason(error)})") from None
    return Job(name, shown, client)


def _connect(address: str) -> Any:
    """A client of the job server, which has answered."""
    _get_ready()
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
        """Ray's own, but no request waits for ever."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            seconds = UPLOAD_SECONDS if method == "PUT" else WORK_SECONDS
            if endpoint == "/api/version" or (method == "GET" and endpoint.rpartition("/")[0] == "/api/jobs"):
                seconds = ANSWER_SECONDS
            return super()._do_request(method, endpoint, timeout=seconds, **options)

    shown = without_credentials(address)
    try:
        with _alone(address):
            return Client(address)
    except AuthenticationError as error:
        raise SessionError(f"{shown}: {_without_the_right_token(str(error))}") from None
    except (ConnectionError, requests.Timeout):
        open_it = "`ray dashboard` and `kubectl port-forward` open a way to one"
        raise SessionError(f"{shown}: no job server answers there; {open_it}, --address names it") from None
    except (OSError, RuntimeError, KeyError, TypeError):  # another status, no JSON, other JSON
        raise SessionError(f"{shown}: something else answers there; give the URL of the head's job server") from None


@contextlib.contextmanager
def _alone(address: str) -> Iterator[None]:
    """Ray's client lets these variables outvote its argument; meanwhile they say the same."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _get_ready() -> None:
    """What Ray's client needs before it is imported: its parts, a mode that makes it look for a token, and silence."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:  # Ray alone comes without it
        raise ResourceError("submit: Ray's job client is not installed here; pip install 'ray[default]'") from None
    # Ray's client sends a token only in this mode, which is read once, when ray is imported.
    if not os.environ.get("RAY_AUTH_MODE") and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    import ray.job_submission

    del ray
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_token() -> bool:
    """Whether a token lies where Ray looks for one."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or file.is_file()


def _without_the_right_token(error: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    wrong = "was given another one" if error.startswith("Authentication failed") else "was given none"
    unset = f", and unset RAY_AUTH_MODE={mode}" if mode not in ("", "token") else ""
    return f"the cluster asks for its token and {wrong}; put it into RAY_AUTH_TOKEN or ~/.ray/auth_token{unset}"


def _reason(error: BaseException) -> str:
    """The last telling line of an error, without credentials; a server's holds a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return masked(lines[-1] if lines else type(error).__name__)[:300]


# --- following ---------------------------------------------------------------------------------------------------


class _Log:
    """The log as far as it was shown."""

    def __init__(self, show: Say) -> None:
        self._show = show
        self.length = 0

    def add(self, text: str) -> None:
        if text:
            self._show(text)
            self.length += len(text)


def follow(job: Job, show: Say, note: Say) -> int:
    """Shows the log of a job as it is written until the job ends; returns its exit code (1 where it has none).

    ``show`` takes pieces of the log, ``note`` sentences. Raises SessionError when the server is gone, KeyboardInterrupt
    when the user has seen enough; in both cases the job goes on.
    """
    return asyncio.run(_follow(job, show, note))


async def _follow(job: Job, show: Say, note: Say) -> int:
    log = _Log(show)
    tail = asyncio.create_task(_tail(job, log))
    try:
        info = await _ended(job, note)
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)
    try:  # the tail may lag, and takes seconds to end by itself
        log.add((await asyncio.to_thread(job.client.get_job_logs, job.name))[log.length :])
    except Exception as error:  # the exit code is known all the same
        note(f"{job.name}: the end of its log cannot be read ({_reason(error)})")
    return _told_end(job, info, note)


async def _tail(job: Job, log: _Log) -> None:
    """Shows what is written, for ever; a connection that breaks is opened again, and what was shown is not repeated."""
    import aiohttp

    while True:
        known = log.length
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            async for text in job.client.tail_job_logs(job.name):
                log.add(text[known:])
                known = max(0, known - len(text))
        await asyncio.sleep(POLL_SECONDS)


async def _ended(job: Job, note: Say) -> Any:
    """What the server knows of the job once it has ended."""
    started = answered = time.monotonic()
    explained = False
    while True:
        try:
            info = await asyncio.to_thread(job.client.get_job_info, job.name)
        except Exception as error:  # of many types; whichever it is, this was no answer
            if time.monotonic() - answered > PATIENCE_SECONDS:
                gone = f"{job.address}: the job server is gone ({_reason(error)})"
                raise SessionError(f"{gone}; if the cluster lives, job {job.name} goes on: {job.hint}") from None
        else:
            answered = time.monotonic()
            if info.status.is_terminal():
                return info
            if info.status == "PENDING" and not explained and answered - started > SLOW_START_SECONDS:
                note(f"{job.name}: has not begun ({info.message})")
                explained = True
        await asyncio.sleep(POLL_SECONDS)


def _told_end(job: Job, info: Any, note: Say) -> int:
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        note(f"{job.name}: was stopped")
        return 1
    code = info.driver_exit_code
    if code is None:
        note(f"{job.name}: failed before or without its command ({_reason(RuntimeError(info.message or ''))})")
        return 1
    if code in (126, 127):  # of the shell that was to start it
        note(f"{job.name}: the cluster's image has no dasm-ray command; --install brings it along from a checkout")
        return 1
    note(f"{job.name}: failed with exit code {code}")
    return code if 0 < code < 256 else 1
