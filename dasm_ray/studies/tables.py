"""Tables on disk: under a checksum, and each under the settings that it shows.

What must stay true: no table is written over one of other settings; one that is damaged, or of other settings than the
asked ones, is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dasm_ray.config.digests import digest_of
from dasm_ray.report.table import Row, as_json, markdown
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.place import Place

OWN = "table"
"""The stem of the names of a folder's own table; others have a digest of their settings behind it."""


class Shown(NamedTuple):
    """What the figures of a table hang on: the digest of its settings, and the device that it was computed on."""

    settings: str
    device: str


def stem_for(folder: Place, shown: Shown, own: str | None = None) -> str:
    """The stem of the names under which a table is written.

    ``own``: the settings of the folder's own table (unset: of the first table that was written there).
    """
    first = read_checked_json(folder / f"{OWN}.json")
    found = None if first is None else Shown(first["settings"], first["device"])
    if own is None:
        is_own = found is None or found == shown
    else:
        is_own = shown.settings == own and (found is None or found.settings != own or found == shown)
    return OWN if is_own else f"{OWN}_{digest_of(*shown)}"


def keep_table(
    folder: Place, stem: str, rows: Sequence[Row], title: str, tested: int, shown: Shown, **more: Any
) -> None:
    """Writes a table as Markdown and JSON; ``tested``: how many images its test set has."""
    (folder / f"{stem}.md").write_text(markdown(rows, title, tested))
    write_checked_json(folder / f"{stem}.json", {**as_json(rows, title, tested), **shown._asdict(), **more})


def kept_table(folder: Place, settings: str) -> dict[str, Any] | None:
    """The folder's own table, if it is whole and shows these settings."""
    found = read_checked_json(folder / f"{OWN}.json")
    return found if found is not None and found.get("settings") == settings else None
