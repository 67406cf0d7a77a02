"""Names of places: what a local path or a URI means, and how it is shown to people.

What must stay true: what can be read in two ways is refused with both readings named, and no place holds a secret: all
of them are written down and shown.
"""

from __future__ import annotations

import functools
import os
import re
from urllib.parse import SplitResult, unquote, urlsplit

from pyarrow import fs

from dasm_ray.config.shown import INSTEAD, escaped, masked, not_utf8, secret_in
from dasm_ray.errors import RunDirError
from dasm_ray.plain import Tree

NATIVE = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "mock")
"""Schemes that pyarrow opens itself; every other one is left to fsspec."""

PACKAGES = {"hf": "huggingface_hub"}
"""What a scheme of fsspec needs that our extra `hub` installs."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")
DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)|\\\\")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def text_of(path: object) -> str:
    """What a place is named by, as text; RunDirError for what is neither text nor a path."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise RunDirError(
            f"{escaped(repr(path), 60)} names no place: {type(path).__name__} is no path; give a path or a URI"
        )
    return text


def _check_text(path: str) -> None:
    """RunDirError for a path that is not UTF-8, which could be neither written down nor shown."""
    shown = not_utf8(path)
    if shown is not None:
        raise RunDirError(f"{masked(shown)}: the name is not UTF-8; rename it")


def split(text: str) -> tuple[str, str]:
    """The root of a place (empty for the local file system, else a URI with its options) and the path below it.

    Raises RunDirError for a name that can be read in two ways, or in none, and for one that holds credentials.
    """
    if not text.strip():
        raise RunDirError("'' names no place: it is empty; name a folder, a file or a URI")
    if CONTROL.search(text):
        raise RunDirError(f"{masked(text)!r} names no place: it holds a control character; write it without")
    _check_text(text)
    secret = secret_in(text)
    if secret is not None:
        raise RunDirError(f"{masked(text)}: holds {secret}, which would be kept and shown; {INSTEAD}")
    found = SCHEME.match(text)
    if found is None or DRIVE.match(text):
        return "", _local(text)
    scheme, slashes = found[1].lower(), len(found[2])
    if slashes >= 2:
        return _remote(text, scheme)
    if slashes or scheme in (*NATIVE, *PACKAGES, "file", "http", "https"):
        whole = f"{scheme}://{'/' if scheme == 'file' else ''}{text[found.end() :]}"
        raise RunDirError(
            f"{masked(text)} may be a URI or a local path; write {masked(whole)} for the one, ./{text} for the other"
        )
    return "", _local(text)


def _local(text: str) -> str:
    """An absolute path with forward slashes, which Windows understands as well."""
    if os.name != "nt" and DRIVE.match(text):
        raise RunDirError(
            f"{text} is a path of Windows, and this machine is none; write ./{text} if a file here has that name"
        )
    home = os.path.expanduser(text)
    if home == text and text.startswith("~"):
        raise RunDirError(f"{text} is in the home of nobody known here; write ./{text} if a file here has that name")
    path = os.path.abspath(home)
    _check_text(path)  # the folder that a command was started in may be such a one
    return path.replace(os.sep, "/")


def _remote(text: str, scheme: str) -> tuple[str, str]:
    try:
        parts = urlsplit(text, allow_fragments=False)
        _ = parts.port  # asked for because it raises where there is none
    except ValueError as error:
        raise RunDirError(f"{masked(text)} is no URI ({error}); write it as {scheme}://NAME/PATH") from None
    if scheme == "file":
        return "", _file(text, parts)
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{parts.netloc}/{query}", "/" + parts.path.strip("/")


def _file(text: str, parts: SplitResult) -> str:
    """The path of a file URI, which names a path on this machine in the letters that URIs allow."""
    if parts.netloc not in ("", "localhost"):
        raise RunDirError(
            f"{text} names the host {parts.netloc!r}, and files of other hosts cannot be reached so; write "
            f"file:///{parts.netloc}{parts.path} if that is a path on this machine"
        )
    path = unquote(parts.path)
    if parts.query or " " in text or re.search(r"%(?![0-9A-Fa-f]{2})", text) or not path.strip("/"):
        raise RunDirError(
            f"{text} is no URI of a file: blanks, % and ? are written %20, %25 and %3F there; write it so, or as a path"
        )
    if CONTROL.search(path):
        raise RunDirError(f"{text} names no place: it holds a control character; write it without")
    return os.path.abspath(path[1:] if re.match(r"/[A-Za-z]:", path) and os.name == "nt" else path).replace(os.sep, "/")


# --- opening -----------------------------------------------------------------------------------------------------


def is_native(root: str) -> bool:
    """Whether pyarrow opens this root itself."""
    return root.partition("://")[0] in NATIVE


@functools.lru_cache
def file_system(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a root, opened once a process (it may ask the network), and its path, say a bucket."""
    if not root:
        return fs.LocalFileSystem(), ""
    scheme = root.partition("://")[0]
    if not is_native(root):
        return _through_fsspec(root, scheme)
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in root:
        root += ("&" if "?" in root else "?") + "retry_limit_seconds=20"  # else Google's client tries for 15 minutes
    system, path = fs.FileSystem.from_uri(root)
    return _without_own_retries(system) if scheme == "s3" else system, path.rstrip("/")


def _without_own_retries(system: fs.FileSystem) -> fs.FileSystem:
    """The same S3 with one try a request.

    Arrow's own tries take 6 seconds where nobody listens and 100 where nobody answers, and say nothing meanwhile. A
    URI cannot ask for others, so the options are those that the system would travel with.
    """
    options: Tree = system.__reduce__()[1][0]
    return fs.S3FileSystem(**{**options, "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=1)})


def _through_fsspec(root: str, scheme: str) -> tuple[fs.FileSystem, str]:
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise OSError(f"no file system is known by the name {scheme}") from None
    except ImportError as error:
        package = PACKAGES.get(scheme)
        how = f"it needs {package}: pip install 'dasm-ray[hub]'" if package else str(error)
        raise OSError(f"{scheme}:// is not installed; {how}") from None
    if "?" in root:
        raise OSError(f"options after ? have no meaning for {scheme}://")
    system, path = fsspec.url_to_fs(root)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path.rstrip("/")
