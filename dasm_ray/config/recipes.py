"""Recipes that come with the package, found by their names; the first lines of each say what it is for.

What must stay true: what can be a file and a recipe is refused, never guessed; every shipped file begins with the four
lines of a Header, and a figure in it was measured, or the line says that it was not.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError

Kind = Literal["recipe", "sweep", "study"]

FOLDERS: dict[Kind, str] = {"recipe": "", "sweep": "sweeps", "study": "studies"}
"""Where files of a kind lie below the folder of all."""

COMMANDS: dict[Kind, str] = {"recipe": "distill", "sweep": "sweep", "study": "study"}
"""The command that takes a file of a kind; a recipe serves others too."""

NAME = re.compile(r"\w[\w-]{0,199}")
"""What may name a recipe: no path, no suffix."""

NOT_MEASURED = "not measured"
BUILT_IN = "built in"
WIDTH = 80


@dataclass(frozen=True)
class Header:
    """The first lines of a shipped file, ``# For: ...`` and so on. Up to its first comma a line is short."""

    purpose: str
    minutes: str
    expected: str
    """Test accuracy in %, mean ± std over seeds."""
    data: str


FIELDS = ("For", "Minutes", "Expected", "Data")


# --- finding -----------------------------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of all shipped files: in the package where a wheel was installed, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped(kind: Kind) -> dict[str, Path]:
    """The shipped files of a kind by name, sizes in their order."""
    files = {path.stem: path for path in (folder() / FOLDERS[kind]).glob("*.yaml")}
    return dict(sorted(files.items(), key=lambda file: _numbers_as_such(file[0])))


def located(given: str | Path, kind: Kind, beside: Path | None = None) -> str | Path:
    """The file that is meant: a path, relative to ``beside``, or the name of a shipped file.

    Raises ConfigError, one sentence, for a name that is a file and a recipe, for one that is neither, and for a folder.
    Whether a path leads to a file is for the reader to say; it is given back as it is, since a URI is no path.
    """
    path = Path(given) if beside is None else beside / given
    if not is_name(given):
        _check_suffixed(given, path, kind)
        _check_no_folder(path, kind)
        return given if beside is None else path
    name, files = str(given), shipped(kind)
    if os.path.isfile(path):
        if name in files:
            raise ConfigError(
                f"{name}: is a file there and a {kind} that comes with dasm-ray; write ./{name} for the file, or "
                f"rename it"
            )
        return path
    if name not in files:
        _check_no_folder(path, kind)
        raise ConfigError(f"{name}: is neither a file nor a {kind} that comes with dasm-ray; {_hint(name, kind)}")
    return files[name]


def is_name(given: str | Path) -> bool:
    """Whether it could name a recipe: text without a folder or a suffix."""
    return isinstance(given, str) and NAME.fullmatch(given) is not None


def is_shipped(given: str, kind: Kind) -> bool:
    """Whether the name of a shipped file is meant, and no file here."""
    return is_name(given) and not os.path.isfile(given) and given in shipped(kind)


def text_of(name: str, kind: Kind) -> str:
    """A shipped file as it is written; ConfigError for a name that there is not."""
    files = shipped(kind)
    if name not in files:
        raise ConfigError(f"{escaped(name, 80)}: is no {kind} that comes with dasm-ray; {_hint(name, kind)}")
    return files[name].read_text(encoding="utf-8")


def _check_suffixed(given: str | Path, path: Path, kind: Kind) -> None:
    """Of a file that is not there, as `configs/digits.yaml` without a checkout, the recipe of that name is told."""
    if path.suffix == ".yaml" and path.stem in shipped(kind) and not os.path.exists(path):
        raise ConfigError(
            f"{escaped(str(given))}: there is no such file; the {kind} that comes with dasm-ray is given by "
            f"its name alone, {path.stem}"
        )


def _check_no_folder(path: Path, kind: Kind) -> None:
    """Of a folder the file of its name is told, as `init` writes one, or how one is written."""
    if not os.path.isdir(path):
        return
    shown, file = shlex.quote(escaped(str(path))), path.parent / f"{path.name}.yaml"
    if path.name and file.is_file():
        hint = f"the {kind} beside it is {escaped(str(file))}"
    elif kind == "recipe":
        hint = f"`dasm-ray init {shown}` writes a recipe for the images in it"
    else:
        hint = f"name the file of a {kind}"
    raise ConfigError(f"{escaped(str(path))}: is a folder and no {kind}; {hint}")


def _hint(name: str, kind: Kind) -> str:
    others = [other for other in FOLDERS if other != kind and name in shipped(other)]
    if others:
        return f"it is a {others[0]}: dasm-ray {COMMANDS[others[0]]} {name}"
    near = difflib.get_close_matches(name[:100], shipped(kind), n=3)
    return f"did you mean {' or '.join(near)}?" if near else "`dasm-ray recipes` lists them"


def _numbers_as_such(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part or 0), text) for part, text in re.findall(r"(\d*)(\D*)", name))


# --- what they say of themselves ---------------------------------------------------------------------------------


def header_of(path: Path) -> Header:
    """The header of a shipped file."""
    lines = path.read_text(encoding="utf-8").splitlines()[: len(FIELDS)]
    found = [line.partition(": ") for line in lines]
    assert [start for start, _, _ in found] == [f"# {field}" for field in FIELDS], path
    return Header(*(value for _, _, value in found))


def _eagerness(header: Header) -> tuple[bool, bool]:
    return header.data != BUILT_IN, header.expected.startswith(NOT_MEASURED)


def listing(only: Kind | None = None) -> Iterator[str]:
    """All shipped files, or ``only`` those of a kind, as lines of at most WIDTH characters, two for each: what needs
    nothing first, then what is measured."""
    yield f"{'':25} {'minutes':13} {'accuracy in %':13} data"
    for kind, command in COMMANDS.items():
        if only not in (None, kind):
            continue
        also = ", and every command that takes a CONFIG" if kind == "recipe" else ""
        yield from ("", f"for dasm-ray {command}{also}:")
        headers = {name: header_of(path) for name, path in shipped(kind).items()}
        for name, header in sorted(headers.items(), key=lambda each: _eagerness(each[1])):
            minutes, expected = (value.partition(",")[0] for value in (header.minutes, header.expected))
            yield f"{name:25} {minutes:13} {expected:13} {header.data}"
            yield f"  {header.purpose}"
    yield ""
    yield from textwrap.wrap(
        "Accuracy is of the test set after training on the set alone, mean ± std over seeds. `dasm-ray recipes NAME` "
        "prints a recipe with all that is known of it. Where data is a name, say where they lie by "
        "--set data.path=FOLDER; --set data.download=true fetches MNIST and CIFAR there.",
        WIDTH,
    )
