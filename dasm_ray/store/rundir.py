"""The folder of one run: its configuration, a claim while a driver works on it, and a log of events.

What must stay true: a run directory never serves two runs or two configurations, and what a run has computed is gone
on with as long as either run.json or config.yaml says whose it is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator

from dasm_ray.config import plain_yaml
from dasm_ray.config.digests import config_digest, keys_that_differ
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config, to_yaml
from dasm_ray.errors import ConfigError, DasmError, RunDirError
from dasm_ray.plain import Plain
from dasm_ray.store import claims
from dasm_ray.store.checked import read_at_most
from dasm_ray.store.claims import Claim
from dasm_ray.store.events import EVENTS, PARTS, EventLog
from dasm_ray.store.place import Place

CONFIG, RECORD = "config.yaml", "run.json"

SHARED = ("experts", "report", "trials", "sets")
"""Folders in a run, a sweep or a comparison in which another command may be writing at this moment: `evaluate` and what
else is done with a finished set take no claim, since several may be at it at once."""

SHARED_SECONDS = 3600.0
"""A file in them that has been temporary for so long was left by a writer that was killed."""

VERSIONS_OF = ("dasm-ray", "torch", "torchvision", "numpy", "pyarrow", "ray")


class RunDir:
    """The folder of one run: its configuration, a claim while a driver works on it, and a log of events.

    Make one with ``open`` (to work on it) or ``read`` (to look at it). ``place`` writes only while the directory is
    there and this driver's own.
    """

    def __init__(self, place: Place, config: RunConfig, claim: Claim | None = None, made: tuple[str, ...] = ()) -> None:
        self.place = place
        self.config = config
        self._claim = claim
        self._made = made
        self._events = EventLog(place)

    @classmethod
    def open(cls, uri: str | os.PathLike[str] | Place, config: RunConfig, patience: float = 0) -> RunDir:
        """Makes or re-enters the run directory, and keeps other drivers out until ``close``.

        Raises RunDirError if it cannot be written, belongs to another configuration, or is in use for longer than
        ``patience`` seconds.
        """
        place = Place(uri)
        digest = config_digest(config)
        _is_of_a_run(place, config, digest)  # before anything is made in a folder of somebody else
        claim = claims.take(place, patience)
        try:
            made = _enter(claim.place, config, digest)
            remove_temporaries(claim.place)
        except BaseException:
            claim.discard(())
            raise
        return cls(claim.place, config, claim, made)

    @staticmethod
    def check(uri: str | os.PathLike[str] | Place, config: RunConfig) -> Place:
        """Where a run of ``config`` would write; RunDirError where something else is there. Makes and takes nothing."""
        place = Place(uri)
        _is_of_a_run(place, config, config_digest(config))
        return place

    @classmethod
    def read(cls, uri: str | os.PathLike[str] | Place) -> RunDir:
        """An existing run directory, to look at; RunDirError if there is none."""
        place = Place(uri)
        if not (place / RECORD).exists():
            if not place.exists():
                raise RunDirError(f"there is nothing at {place}; name a directory that a run has written")
            again = "; the command that made it writes it again" if (place / CONFIG).exists() else ""
            raise RunDirError(
                f"{place} is no run directory: it holds no {RECORD}{again}; name one that a run has written"
            )
        return cls(place.within(RECORD), _read_config(place))

    def cautions(self) -> Iterator[str]:
        """That the run was begun under other versions of packages than go on with it, where it was."""
        kept, now = _versions_of(self.place), versions()
        other = [f"{name} {kept[name]} (now {now[name]})" for name in now if kept.get(name, now[name]) != now[name]]
        if other:
            yield f"begun with {', '.join(other)}: what is still to come may differ in its last bits from what was then"

    def event(self, **fields: Plain) -> None:
        """Adds one line to the log: the time (seconds since 1970) and the fields; ``read_events`` reads them.

        Raises StorageError if the run directory is gone, and nothing else: the log is no reason to stop.
        """
        self._events.add(fields)

    def discard(self) -> None:
        """Lets go of a directory for a run that could not begin: removes what this start has made, and nothing else."""
        if self._claim is not None:
            self._claim.discard(self._made)
            self._claim = None

    def close(self) -> None:
        """Writes events still held, and lets other drivers in."""
        if self._claim is not None:
            try:
                self._events.send()
            finally:
                self._claim.release()
                self._claim = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_temporaries(place: Place, *, is_shared: bool = False) -> None:
    """Removes what killed writes have left below a folder that this driver holds, or that it shares with others."""
    now = time.time()
    for path, when in place.temporaries().items():
        is_own = not is_shared and path.partition("/")[0] not in SHARED
        if is_own or (when is not None and now - when > SHARED_SECONDS):
            with contextlib.suppress(DasmError):  # somebody else may have removed it, and it does no harm
                (place / path).delete()


def obeyed(config: RunConfig, place: Place) -> RunConfig:
    """A kept configuration as far as it is heard by those who did not write it: it may have come from a stranger.

    For the run directory in ``place`` nothing is fetched and no cache of images served or cleared, and whoever else
    keeps images, experts or rows than the one who keeps the run is not talked to: what lies there has to be named.
    """

    def known(path: str | None) -> str | None:
        with contextlib.suppress(RunDirError):
            return path if path is None or Place(path).service in ("", place.service) else None
        return None

    return config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"path": known(config.data.path), "download": False, "cache": None, "cache_gb": None}
            ),
            "experts": config.experts.model_copy(update={"cache": known(config.experts.cache)}),
            "evaluate": config.evaluate.model_copy(update={"cache": known(config.evaluate.cache)}),
        }
    )


def as_begun(config: RunConfig, uri: str | os.PathLike[str] | Place) -> RunConfig:
    """The configuration under which the run directory of a set goes on, that of a comparison or a study: no set depends
    on how it is evaluated, which may have been another when it was begun."""
    with contextlib.suppress(RunDirError):  # who opens the directory says what is wrong with it
        return config.model_copy(update={"evaluate": RunDir.read(uri).config.evaluate})
    return config


# --- whose it is -------------------------------------------------------------------------------------------------


def _enter(place: Place, config: RunConfig, digest: str) -> tuple[str, ...]:
    """Makes the folder this configuration's own, or finds that it is. ``run.json`` is written last.

    Returns the names of what is made by this start in a folder that no run had yet.
    """
    before = {CONFIG, RECORD, EVENTS, PARTS} if _is_of_a_run(place, config, digest) else set(place.names())
    (place / CONFIG).write_text(to_yaml(config))
    if _recorded(place) is None:
        (place / RECORD).write_json({"digest": digest, "versions": versions()})
    return tuple(name for name in (CONFIG, RECORD, EVENTS, PARTS) if name not in before)


def _is_of_a_run(place: Place, config: RunConfig, digest: str) -> bool:
    """Whether the folder holds a run of this configuration already; RunDirError if it holds anything else.

    Where run.json was lost or damaged, the configuration that the run has written beside it says whose it is.
    """
    recorded = _recorded(place)
    if recorded is not None:
        if recorded != digest:
            raise _of_another(place, _read_config(place), config)
        return True
    names = place.names()
    foreign = [name for name in names if name not in (CONFIG, RECORD, EVENTS, PARTS) and not claims.is_own(name)]
    if not foreign:
        return False
    state = "a damaged" if RECORD in names else "no"
    if CONFIG not in names:
        raise RunDirError(
            f"{place} holds {foreign[0]} and {state} {RECORD}, so it is not a run directory; choose another --run"
        )
    kept = _own_config(place)
    if kept is None:
        raise RunDirError(
            f"{place} holds {state} {RECORD}, and its {CONFIG} is not as a run has written it, so nobody can tell "
            f"whose {foreign[0]} is; choose another --run"
        )
    if config_digest(kept) != digest:
        raise _of_another(place, kept, config)
    return True


def _recorded(place: Place) -> str | None:
    """The digest of the configuration that the folder belongs to; None where run.json is not there or damaged."""
    file = place / RECORD
    if not file.exists():
        return None
    with contextlib.suppress(RunDirError):
        record = file.read_json()
        digest = record.get("digest") if isinstance(record, dict) else None
        return digest if isinstance(digest, str) and digest else None
    return None


def _versions_of(place: Place) -> dict[str, str]:
    """The versions that the run was begun with, as far as run.json has them."""
    with contextlib.suppress(RunDirError):
        record = (place / RECORD).read_json()
        kept = record.get("versions") if isinstance(record, dict) else None
        return {str(name): str(value) for name, value in kept.items()} if isinstance(kept, dict) else {}
    return {}


def _own_config(place: Place) -> RunConfig | None:
    """The configuration in the folder, if a run has written it: somebody's own recipe looks different."""
    with contextlib.suppress(RunDirError):
        kept = _read_config(place)
        return kept if (place / CONFIG).read_text() == to_yaml(kept) else None
    return None


def _of_another(place: Place, kept: RunConfig, config: RunConfig) -> RunDirError:
    keys = keys_that_differ(kept, config)
    why = f"another configuration ({', '.join(keys)} differ)" if keys else "another version of the configuration"
    return RunDirError(f"{place} belongs to {why}; choose another --run")


def _read_config(place: Place) -> RunConfig:
    file = place / CONFIG
    try:
        tree = plain_yaml.read_mapping(read_at_most(file, plain_yaml.MOST_BYTES).decode(), "it")
    except (ConfigError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise RunDirError(f"{file} cannot be read ({why}); the file is damaged, choose another --run") from None
    try:
        return parse_config(tree)
    except ConfigError as error:
        raise RunDirError(f"{file} is not for this version of dasm_ray: {error.problems[0]}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose change can change a result."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
