"""A run, or several, as one HTML page that holds all it needs: figures, images, style and script.

What must stay true: the page asks nothing of a network; all text that comes out of a run is escaped, and none of it is
obeyed; what a run has not done yet is said to be missing.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from importlib.resources import files

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain
from dasm_ray.report.abreast import names_of, side_by_side
from dasm_ray.report.gathered import gather_all, runs_in
from dasm_ray.report.sections import sections
from dasm_ray.store.place import Place

ROOM = 3_400_000
"""Bytes of all images of a page and of what is written around each; so the page as a whole stays below 5 MB."""

PAGE = "report/index.html"
"""Where the page of a folder lies in it."""

MOST_BESIDE = 8
"""Runs of one page up to which the nearest real images are looked for."""

FOOTER = "Drawn by dasm-ray on {} UTC from the files of the run. This page holds all it shows."


def report(paths: Sequence[str | Place], to: str | None = None, *, is_own: bool = False) -> Place:
    """Writes the page of the runs in ``paths``, and returns where it is: ``to``, or in the folder of a single path.

    A path is a run directory, finished or not, a comparison, a study or a sweep. Raises a UserError for anything else.
    ``is_own``: this command has just made them, so that their real images are looked at wherever they lie.
    """
    if len(paths) > 1 and to is None:
        raise ConfigError(f"--to: there are {len(paths)} runs, and the page of several lies in none; name its file")
    places = [Place(path) for path in paths]
    page = webpage(places, is_own=is_own)
    target = places[0] / PAGE if to is None else Place(to)
    target.write_bytes(page.encode())
    return target


def webpage(places: Sequence[Place], *, looks_at_data: bool = True, is_own: bool = False) -> str:
    """The page of the runs, comparisons, studies or sweeps in ``places``.

    ``looks_at_data``: off, the nearest real images are left out, which take as long as decoding all of them.
    """
    found = [run for place in places for run in runs_in(place)]
    few = looks_at_data and len(found) <= MOST_BESIDE
    runs = [run for place in places for run in gather_all(place, looks_at_data=few, is_own=is_own)]
    parts = [sections(run, f"r{place}", ROOM // len(runs)) for place, run in enumerate(runs)]
    if found == list(places) and len(found) == 1:
        (only,) = parts
        return rendered(runs=parts, together=None, title=only["name"], lead=only["lead"], status=only["status"])
    for part, name in zip(parts, names_of(runs), strict=True):
        part["name"] = escaped(name)
    together = side_by_side(places, runs)
    return rendered(runs=parts, together=together, title=together["title"], lead=together["lead"], status="")


def rendered(**context: Plain) -> str:
    """The template with everything in it; what is not markup of our own is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("dasm_ray.report") / "templates"
    text = {kind: (folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    script = text["js"].strip()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text["html"]).render(
        css=Markup(text["css"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        footer=FOOTER.format(time.strftime("%Y-%m-%d %H:%M", time.gmtime())),
        **context,
    )
